"""What users would take instead for codes: each opponent with the weights of ours, so that it computes the same.

vector-quantize-pytorch, diffusers and transformers are from PyPI (extra `bench`); `PlainGPT` is written here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.opponents import require
from rasterformer.codecs.vq.autoencoder import VQAutoencoder
from rasterformer.codecs.vq.quantise import FiniteScalarQuantiser, Quantiser, VectorQuantiser
from rasterformer.systems.vqgan.config import Config as AutoencoderConfig
from rasterformer.systems.vqgan.model import build
from rasterformer.systems.vqgan_transformer.config import Config as PriorConfig
from rasterformer.systems.vqgan_transformer.model import CodeTransformer
from rasterformer.weights.layouts import from_diffusers


def library_quantiser(ours: Quantiser) -> nn.Module:
    """vector-quantize-pytorch's layer of the same kind, in training mode: its z and values are [B, D, h, w] too."""
    package = require("vector_quantize_pytorch")
    if isinstance(ours, FiniteScalarQuantiser):
        layer: nn.Module = package.FSQ(list(ours.levels))
        return layer.train()
    assert isinstance(ours, VectorQuantiser), "the two kinds that are compared"
    is_learned = ours.update == "gradient"
    layer = package.VectorQuantize(
        dim=ours.dim,
        codebook_size=ours.vocab_size,
        decay=ours.decay,
        commitment_weight=ours.commitment_weight,
        use_cosine_sim=ours.normalise,
        learnable_codebook=is_learned,
        ema_update=not is_learned,
        rotation_trick=ours.estimator == "rotation",
        accept_image_fmap=True,
    )
    entries = ours.codebook.detach()[None]
    found = layer.load_state_dict({"_codebook.embed": entries, "_codebook.embed_avg": entries}, strict=False)
    assert not found.unexpected_keys, found
    return layer.train()


def autoencoders(config: AutoencoderConfig) -> tuple[VQAutoencoder, Any]:
    """Our autoencoder and diffusers' `VQModel`, with fresh weights, the same in both; codes are spread out."""
    count = len(config.multipliers)
    theirs = require("diffusers").VQModel(
        block_out_channels=tuple(config.base_width * multiplier for multiplier in config.multipliers),
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        layers_per_block=config.res_blocks,
        latent_channels=config.z_channels,
        vq_embed_dim=config.dim,
        num_vq_embeddings=config.vocab_size,
        norm_num_groups=config.norm_groups,
    )
    nn.init.normal_(theirs.quantize.embedding.weight)
    ours = build(config)
    ours.load_state_dict(from_diffusers(theirs.state_dict(), dict(theirs.config)).state)
    return ours, theirs


class PlainGPT(nn.Module):
    """minGPT without a cache, under the names of `CodeTransformer` in the paper's form, one token as condition.

    Args:
        ours: gives sizes and weights.
    """

    def __init__(self, ours: CodeTransformer) -> None:
        super().__init__()
        config = ours.config
        self.num_heads, self.length = config.num_heads, ours.x_shape[0]
        self.token_embedding = nn.Embedding(ours.vocabulary.shared, config.width)
        self.position_embedding = nn.Parameter(torch.empty(1, self.length, config.width))
        self.layers = nn.ModuleList(PlainLayer(config) for _ in range(config.depth))
        self.final_norm = nn.LayerNorm(config.width, eps=1e-5)
        self.head = nn.Linear(config.width, ours.vocabulary.codes, bias=False)
        self.load_state_dict(ours.state_dict())

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [B, n] -> logits [B, n, K] of what follows each."""
        h = self.token_embedding(tokens) + self.position_embedding[:, : tokens.shape[1]]
        for layer in self.layers:
            h = layer(h, self.num_heads)
        return self.head(self.final_norm(h))

    def next(self, tokens: Tensor) -> Tensor:
        """int64 [B, n] -> [B, n + 1]: the whole sequence again for one code, as `sample` of the paper's code does."""
        probs = F.softmax(self(tokens)[:, -1], -1)
        return torch.cat([tokens, torch.multinomial(probs, 1)], 1)


class PlainLayer(nn.Module):
    """Attention and feed-forward of minGPT, with PyTorch's own causal attention, which is faster than minGPT's."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        width = config.width
        self.attention_norm = nn.LayerNorm(width, eps=1e-5)
        self.attention = nn.ModuleDict({"project": nn.Linear(width, 3 * width), "out": nn.Linear(width, width)})
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-5)
        self.feed_forward = nn.ModuleDict(
            {"up": nn.Linear(width, config.mlp_width), "down": nn.Linear(config.mlp_width, width)}
        )

    def forward(self, h: Tensor, num_heads: int) -> Tensor:
        """h [B, n, D] -> [B, n, D]."""
        projected = self.attention["project"](self.attention_norm(h))
        q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in projected.chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        h = h + self.attention["out"](mixed)
        return h + self.feed_forward["down"](F.gelu(self.feed_forward["up"](self.feed_forward_norm(h))))


class LibraryGPT:
    """transformers' GPT-2 with its key-value cache.

    Args:
        ours: gives sizes and weights; the paper's form, one token as condition.
    """

    def __init__(self, ours: CodeTransformer) -> None:
        transformers = require("transformers")
        transformers.logging.set_verbosity_error()
        config = ours.config
        self.length = ours.x_shape[0]
        settings = transformers.GPT2Config(
            vocab_size=ours.vocabulary.codes,
            n_positions=self.length,
            n_embd=config.width,
            n_layer=config.depth,
            n_head=config.num_heads,
            n_inner=config.mlp_width,
            activation_function="gelu",
            layer_norm_epsilon=1e-5,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        self.model: Any = transformers.GPT2LMHeadModel(settings).eval()
        self.model.load_state_dict(dict(_gpt2_names(ours.state_dict(), config.depth)))

    def generate(self, batch_size: int) -> Tensor:
        """Draws the codes [B, L] of whole images by the library's own `generate`."""
        start = torch.zeros(batch_size, 1, dtype=torch.int64)
        out: Tensor = self.model.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=self.length,
            do_sample=True,
            use_cache=True,
            top_k=0,
        )
        return out[:, 1:]


def _gpt2_names(own: dict[str, Tensor], depth: int) -> Iterator[tuple[str, Tensor]]:
    """Our weights under GPT-2's names; its linear maps are stored [in, out]."""
    yield "transformer.wte.weight", own["token_embedding.weight"]
    yield "transformer.wpe.weight", own["position_embedding"][0]
    parts = {
        "ln_1": "attention_norm",
        "attn.c_attn": "attention.project",
        "attn.c_proj": "attention.out",
        "ln_2": "feed_forward_norm",
        "mlp.c_fc": "feed_forward.up",
        "mlp.c_proj": "feed_forward.down",
    }
    for i in range(depth):
        for theirs, ours in parts.items():
            yield f"transformer.h.{i}.{theirs}.weight", own[f"layers.{i}.{ours}.weight"].t()
            yield f"transformer.h.{i}.{theirs}.bias", own[f"layers.{i}.{ours}.bias"]
    for kind in ("weight", "bias"):
        yield f"transformer.ln_f.{kind}", own[f"final_norm.{kind}"]
    yield "lm_head.weight", own["head.weight"]
