import pytest
import torch
from torch import Tensor

from rasterformer.errors import CheckpointError
from rasterformer.interfaces import Cond
from rasterformer.systems.vqgan_transformer.config import Config
from rasterformer.systems.vqgan_transformer.model import CodeTransformer, Vocabulary
from rasterformer.weights.layouts import from_taming
from rasterformer.weights.net2net import PriorShape, from_net2net, is_net2net

WIDTH, VOCAB, LENGTH, DEPTH = 4, 7, 6, 2


def transformer() -> dict[str, Tensor]:
    """minGPT's names, as taming-transformers stores them, with random weights."""
    shapes = {"tok_emb.weight": (VOCAB, WIDTH), "pos_emb": (1, LENGTH, WIDTH), "head.weight": (VOCAB, WIDTH)}
    shapes |= {"ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,)}
    for i in range(DEPTH):
        for norm in ("ln1", "ln2"):
            shapes |= {f"blocks.{i}.{norm}.weight": (WIDTH,), f"blocks.{i}.{norm}.bias": (WIDTH,)}
        for part in ("key", "query", "value", "proj"):
            shapes |= {f"blocks.{i}.attn.{part}.weight": (WIDTH, WIDTH), f"blocks.{i}.attn.{part}.bias": (WIDTH,)}
        shapes |= {f"blocks.{i}.mlp.0.weight": (4 * WIDTH, WIDTH), f"blocks.{i}.mlp.0.bias": (4 * WIDTH,)}
        shapes |= {f"blocks.{i}.mlp.2.weight": (WIDTH, 4 * WIDTH), f"blocks.{i}.mlp.2.bias": (WIDTH,)}
    rng = torch.Generator().manual_seed(1)
    state = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    mask = torch.tril(torch.ones(LENGTH, LENGTH)).view(1, 1, LENGTH, LENGTH)
    return state | {f"blocks.{i}.attn.mask": mask for i in range(DEPTH)}


def checkpoint(first: dict[str, Tensor], cond: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    state = {f"transformer.{name}": tensor for name, tensor in transformer().items()}
    state |= {f"first_stage_model.{name}": tensor for name, tensor in first.items()}
    state |= {f"cond_stage_model.{name}": tensor for name, tensor in (cond or {}).items()}
    return state | {f"permuter.{way}_shuffle_idx": torch.arange(5) for way in ("forward", "backward")}


def test_parts_are_told_apart(small_taming: dict[str, Tensor]) -> None:
    imported = from_net2net(checkpoint(small_taming))
    assert imported.cond_stage is None
    expected = from_taming(small_taming).state
    assert all(torch.equal(imported.first_stage.state[name], tensor) for name, tensor in expected.items())
    assert imported.shape == PriorShape(vocab_size=VOCAB, width=WIDTH, depth=DEPTH, hidden=4 * WIDTH, seq_len=LENGTH)


def test_condition_has_its_own_autoencoder(small_taming: dict[str, Tensor]) -> None:
    cond = {name: tensor + 1 for name, tensor in small_taming.items()}
    imported = from_net2net(checkpoint(small_taming, cond))
    assert imported.cond_stage is not None
    assert torch.equal(imported.cond_stage.state["before.bias"], small_taming["quant_conv.bias"] + 1)


def test_attention_is_query_key_value_under_one_another(small_taming: dict[str, Tensor]) -> None:
    """One product with the stacked matrix is the three products with theirs."""
    theirs, prior = transformer(), from_net2net(checkpoint(small_taming)).prior
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2))
    for i in range(DEPTH):
        got = x @ prior[f"layers.{i}.attention.project.weight"].T + prior[f"layers.{i}.attention.project.bias"]
        for part, chunk in zip(("query", "key", "value"), got.chunk(3, -1), strict=True):
            name = f"blocks.{i}.attn.{part}"
            torch.testing.assert_close(chunk, x @ theirs[f"{name}.weight"].T + theirs[f"{name}.bias"])


def test_every_weight_has_its_place(small_taming: dict[str, Tensor]) -> None:
    theirs, prior = transformer(), from_net2net(checkpoint(small_taming)).prior
    pairs = {
        "token_embedding.weight": "tok_emb.weight",
        "position_embedding": "pos_emb",
        "final_norm.weight": "ln_f.weight",
        "final_norm.bias": "ln_f.bias",
        "head.weight": "head.weight",
        "layers.1.attention_norm.weight": "blocks.1.ln1.weight",
        "layers.1.attention_norm.bias": "blocks.1.ln1.bias",
        "layers.1.feed_forward_norm.weight": "blocks.1.ln2.weight",
        "layers.0.attention.out.weight": "blocks.0.attn.proj.weight",
        "layers.0.attention.out.bias": "blocks.0.attn.proj.bias",
        "layers.1.feed_forward.up.weight": "blocks.1.mlp.0.weight",
        "layers.1.feed_forward.up.bias": "blocks.1.mlp.0.bias",
        "layers.1.feed_forward.down.weight": "blocks.1.mlp.2.weight",
        "layers.1.feed_forward.down.bias": "blocks.1.mlp.2.bias",
    }
    assert all(torch.equal(prior[ours], theirs[name]) for ours, name in pairs.items())
    assert sum(t.numel() for t in prior.values()) == sum(t.numel() for n, t in theirs.items() if "mask" not in n)


def test_the_two_kinds_of_checkpoint_are_told_apart(small_taming: dict[str, Tensor]) -> None:
    assert is_net2net(checkpoint(small_taming)) and not is_net2net(small_taming)


def prefix_mask() -> Tensor:
    mask = torch.tril(torch.ones(LENGTH, LENGTH))
    mask[:2, :2] = 1
    return mask.view(1, 1, LENGTH, LENGTH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"permuter.forward_shuffle_idx": torch.tensor([1, 0, 2])}, "permuter.forward_shuffle_idx is not 0, 1, 2"),
        ({"transformer.blocks.1.attn.mask": prefix_mask()}, "transformer.blocks.1.attn.mask is not lower triangular.*n_unmasked"),
        ({"transformer.tok_emb.weight": torch.zeros(3)}, "1 missing: transformer.tok_emb.weight"),
        ({"transformer.vtokens_pos": torch.zeros(1)}, "1 unknown: 'transformer.vtokens_pos'"),
        ({"transformer.head.weight": torch.zeros(2, 2)}, r"1 of another shape: transformer.head.weight \[2, 2\] for \[7, 4\]"),
        ({"ema.x": torch.zeros(1)}, "1 unknown: 'ema.x'"),
        ({"first_stage_model.x": torch.zeros(1)}, "first_stage_model: the weights do not fit.*1 unknown: 'x'"),
    ],
)  # fmt: skip
def test_transformers_that_are_not_read_are_refused(
    change: dict[str, Tensor], message: str, small_taming: dict[str, Tensor]
) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_net2net({**checkpoint(small_taming), **change})


def test_missing_weight_is_named(small_taming: dict[str, Tensor]) -> None:
    state = checkpoint(small_taming)
    del state["transformer.blocks.1.attn.value.bias"]
    with pytest.raises(CheckpointError, match="1 missing: transformer.blocks.1.attn.value.bias"):
        from_net2net(state)


@torch.no_grad()
def mingpt(state: dict[str, Tensor], tokens: Tensor, num_heads: int) -> Tensor:
    """Pre-norm transformer with learned positions, one head and one position at a time."""
    norm = torch.nn.functional.layer_norm

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def normed(name: str, x: Tensor) -> Tensor:
        return norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"])

    x = state["tok_emb.weight"][tokens] + state["pos_emb"][0, : len(tokens)]
    for i in range(DEPTH):
        h = normed(f"blocks.{i}.ln1", x)
        q, k, v = (linear(f"blocks.{i}.attn.{part}", h) for part in ("query", "key", "value"))
        mixed = torch.zeros_like(x)
        size = WIDTH // num_heads
        for head in range(num_heads):
            own = slice(head * size, (head + 1) * size)
            for t in range(len(tokens)):
                weights = (k[: t + 1, own] @ q[t, own] / size**0.5).softmax(0)
                mixed[t, own] = weights @ v[: t + 1, own]
        x = x + linear(f"blocks.{i}.attn.proj", mixed)
        up = linear(f"blocks.{i}.mlp.0", normed(f"blocks.{i}.ln2", x))
        x = x + linear(f"blocks.{i}.mlp.2", up * 0.5 * (1 + torch.erf(up / 2**0.5)))
    return normed("ln_f", x) @ state["head.weight"].T


@pytest.mark.parametrize("label", [None, 4])
def test_our_transformer_gives_their_logits(label: int | None, small_taming: dict[str, Tensor]) -> None:
    """Atol: float32 sums in another order."""
    prior = from_net2net(checkpoint(small_taming)).prior
    codes = 5  # one start token or class and 5 codes, the last of which is never an input
    prior["position_embedding"] = prior["position_embedding"][:, :codes]
    config = Config(width=WIDTH, depth=DEPTH, num_heads=2, mlp_width=4 * WIDTH)
    vocabulary = Vocabulary(codes=VOCAB, classes=0 if label is None else VOCAB)
    model = CodeTransformer(config, torch.arange(codes), (1, codes), vocabulary).eval()
    model.load_state_dict(prior)
    x = torch.randint(VOCAB, (codes,), generator=torch.Generator().manual_seed(3))
    expected = mingpt(transformer(), torch.cat([torch.tensor([label or 0]), x[:-1]]), 2)
    cond = Cond() if label is None else Cond(label=torch.tensor([label]))
    with torch.no_grad():
        got = model(x[None, :, None], cond)[0]
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
