"""Attention of maps against loops over cells, heads and tokens, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.errors import ConfigError
from rasterformer.nn.denoiser_inputs import Tokens
from rasterformer.nn.map_attention import MapAttention

F64 = torch.float64
CHANNELS, HEADS, TEXT = 4, 2, 3
KINDS = {
    "cells": {"text_dim": None},
    "cells and text": {"text_dim": TEXT},
    "text": {"text_dim": TEXT, "self_attention": False},
}


def make(kind: str) -> MapAttention:
    torch.manual_seed(0)
    layer = MapAttention(CHANNELS, num_heads=HEADS, norm_groups=2, **KINDS[kind]).to(F64)  # type: ignore[arg-type]
    for weight in layer.parameters():
        nn.init.normal_(weight)
    return layer


def softmax_mix(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    weights = [math.exp(float(query @ key) / math.sqrt(len(query))) for key in keys]
    return sum(w / sum(weights) * value for w, value in zip(weights, values, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("has_gradients", [False, True])  # two ways to compute it
def test_it_equals_a_loop_over_cells_heads_and_what_they_see(kind: str, is_masked: bool, has_gradients: bool) -> None:
    layer, rng = make(kind), torch.Generator().manual_seed(1)
    h = torch.randn(2, CHANNELS, 2, 3, dtype=F64, generator=rng)
    states = torch.randn(2, 3, TEXT, dtype=F64, generator=rng)
    known = torch.tensor([[True, False, True], [True, True, False]]) if is_masked else None
    with torch.set_grad_enabled(has_gradients):
        found = layer(h, None if kind == "cells" else Tokens(states, known)).detach()
    with torch.no_grad():
        normed = F.group_norm(h, 2, layer.norm.weight, layer.norm.bias, 1e-6)
        for image in range(2):
            cells = [normed[image, :, row, col] for row in range(2) for col in range(3)]
            seen = [layer.of_cells(cell) for cell in cells] if layer.of_cells is not None else []
            if layer.of_text is not None:
                tokens = states[image] if known is None else states[image, known[image]]
                seen += [layer.of_text(state) for state in tokens]
            for place, cell in enumerate(cells):
                mixed = []
                for first in range(0, CHANNELS, CHANNELS // HEADS):
                    head = slice(first, first + CHANNELS // HEADS)
                    keys, values = [s[:CHANNELS][head] for s in seen], [s[CHANNELS:][head] for s in seen]
                    mixed.append(softmax_mix(layer.query(cell)[head], keys, values))
                expected = h[image, :, place // 3, place % 3] + layer.out(torch.cat(mixed))
                torch.testing.assert_close(found[image, :, place // 3, place % 3], expected, rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_it_begins_as_the_identity() -> None:
    torch.manual_seed(0)
    layer, h = MapAttention(CHANNELS, num_heads=HEADS, text_dim=None, norm_groups=2), torch.randn(1, CHANNELS, 2, 2)
    assert torch.equal(layer(h, None), h)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3, "text_dim": None, "norm_groups": 2}, "num_heads = 3 does not divide 4 channels"),
        (
            {"num_heads": 2, "text_dim": None, "norm_groups": 3},
            "norm_groups = 3 does not divide 4 channels.* of 1, 2, 4,",
        ),
        ({"num_heads": 2, "text_dim": None, "norm_groups": 2, "self_attention": False}, "leave nothing to attend to"),
    ],
    ids=["heads", "groups", "nothing to see"],
)
def test_what_cannot_be_made_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MapAttention(CHANNELS, **arguments)  # type: ignore[arg-type]
