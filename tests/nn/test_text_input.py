"""What a network sees of texts: padding does not matter, order does, and every wrong condition is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rasterformer.errors import ConfigError
from rasterformer.interfaces import Cond
from rasterformer.nn.text_input import PADDING, ByteLayer, TextInput

KNOWN = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])


def make(*, is_bytes: bool, dim: int = 6) -> TextInput:
    torch.manual_seed(0)
    made = TextInput(10, dim=dim, length=5, is_bytes=is_bytes).double()
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return made


def states() -> Tensor:
    return torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_states_are_projected_and_normalised() -> None:
    """y = W x + b, then (y - mean) / sqrt(variance + 1e-5), scaled and moved."""
    made, text = make(is_bytes=False), states()
    shown, known = made(Cond(text=text, text_known=KNOWN))
    y = torch.einsum("bsd,wd->bsw", text, made.project.weight) + made.project.bias
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(shown, y * made.norm.weight + made.norm.bias)
    assert torch.equal(known, KNOWN) and made(Cond(text=text))[1].all()


def test_padding_of_bytes_does_not_matter_and_their_order_does() -> None:
    made = make(is_bytes=True)
    tokens = torch.tensor([[256, 1, 2, 257], [256, 257, PADDING, PADDING]])
    shown, known = made(Cond(text_tokens=tokens, text_known=KNOWN))
    assert shown.shape == (2, 4, 10) and torch.equal(known, KNOWN)
    other = torch.where(KNOWN, tokens, 7)
    torch.testing.assert_close(made(Cond(text_tokens=other, text_known=KNOWN))[0][KNOWN], shown[KNOWN])
    torch.testing.assert_close(made(Cond(text_tokens=tokens[1:, :2]))[0][0], shown[1, :2])
    swapped = made(Cond(text_tokens=tokens[:, [0, 2, 1, 3]], text_known=KNOWN))[0]
    assert (swapped[0] - shown[0][[0, 2, 1, 3]]).abs().max() > 1e-3


@pytest.mark.parametrize("dim", [1, 7, 96])
def test_every_number_of_dimensions_has_heads(dim: int) -> None:
    shown, _ = make(is_bytes=True, dim=dim)(Cond(text_tokens=torch.tensor([[256, 257]])))
    assert shown.shape == (1, 2, 10) and shown.isfinite().all()


def test_a_layer_over_bytes_is_attention_and_feed_forward_on_normalised_inputs() -> None:
    """64 dimensions are two heads; head by head and token by token, after Vaswani et al. 2017, 3.2, with norms before."""
    torch.manual_seed(0)
    layer = ByteLayer(64).double()
    h = torch.randn(2, 4, 64, dtype=torch.float64)
    expected = h.clone()
    for row in range(2):
        there = int(KNOWN[row].sum())
        q, k, v = (layer.attention_norm(h[row]) @ layer.qkv.weight.T + layer.qkv.bias).chunk(3, -1)
        for token in range(4):
            heads = [
                (k[:there, part] @ q[token, part] / 32**0.5).softmax(0) @ v[:there, part]
                for part in (slice(0, 32), slice(32, 64))
            ]
            attended = h[row, token] + layer.out(torch.cat(heads))
            expected[row, token] = attended + layer.down(F.gelu(layer.up(layer.norm(attended))))
    torch.testing.assert_close(layer(h, KNOWN), expected)


@pytest.mark.parametrize(
    ("is_bytes", "given", "message"),
    [
        (False, {}, "text is missing: this model was trained with states of a text encoder"),
        (True, {}, "text is missing: this model was trained with bytes"),
        (True, {"text": states()}, "text was given as states of a text encoder, but this model was trained with bytes"),
        (False, {"text_tokens": torch.zeros(2, 4).long()}, "text was given as bytes .text_tokens., but .* with states"),
        (False, {"text": torch.zeros(2, 6, 6)}, r"text is \[2, 6, 6\]; this model takes \[B, S\] states of 6 .*1\.\.5"),
        (False, {"text": torch.zeros(2, 4, 5)}, r"text is \[2, 4, 5\]"),
        (False, {"text": torch.zeros(2, 6)}, r"text is \[2, 6\]"),
        (True, {"text_tokens": torch.zeros(2, 6).long()}, r"text is \[2, 6\]; this model takes \[B, S\] bytes"),
        (False, {"text": states(), "text_known": KNOWN[:1]}, r"torch.bool \[1, 4\]; the text has tokens for bool \[2, 4\]"),
        (False, {"text": states(), "text_known": KNOWN.long()}, r"text_known is torch.int64 \[2, 4\]"),
    ],
)
def test_what_is_no_text_of_this_model_is_refused(is_bytes: bool, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(is_bytes=is_bytes)(Cond(**given))
