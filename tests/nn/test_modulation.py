"""Adaptive layer norms against plain loops, where they begin, and their embeddings."""

import math

import pytest
import torch

from rasterformer.nn.modulation import Modulation, adaptive_norm, sinusoids

NORMS, WIDTH, VALUES = 3, 6, 5


def make(*, num_values: int | None) -> Modulation:
    torch.manual_seed(0)
    modulation = Modulation(NORMS, WIDTH, num_values=num_values).double()
    for weight in modulation.parameters():
        torch.nn.init.normal_(weight)
    return modulation


@torch.no_grad()
@pytest.mark.parametrize("num_values", [VALUES, None], ids=["table", "sinusoids"])
def test_modulation_is_silu_and_a_linear_map_of_each_norm(num_values: int | None) -> None:
    modulation = make(num_values=num_values)
    value = torch.tensor([4, 0, 4, 2])
    found = modulation(value)
    assert found.shape == (NORMS, 4, 2, WIDTH)
    for norm in range(NORMS):
        for image, index in enumerate(value.tolist()):
            if modulation.table is None:
                embedding = sinusoids(torch.tensor([float(index)]), WIDTH)[0].double()
            else:
                embedding = modulation.table.weight[index, WIDTH * norm : WIDTH * norm + WIDTH]
            active = torch.stack([e / (1 + torch.exp(-e)) for e in embedding])
            expected = active @ modulation.weight[norm] + modulation.bias[norm, 0]
            torch.testing.assert_close(found[norm, image].flatten(), expected, rtol=1e-6, atol=1e-6)  # float32 sines


@torch.no_grad()
def test_adaptive_norm_scales_and_shifts_what_a_layer_norm_makes() -> None:
    rng = torch.Generator().manual_seed(1)
    h = torch.randn(2, 4, WIDTH, dtype=torch.float64, generator=rng)
    modulation = torch.randn(2, 2, WIDTH, dtype=torch.float64, generator=rng)
    found = adaptive_norm(h, modulation)
    for image in range(2):
        for position in range(4):
            centred = h[image, position] - h[image, position].mean()
            normed = centred / (centred.square().mean() + 1e-5).sqrt()
            scale, shift = modulation[image]
            torch.testing.assert_close(found[image, position], normed * (1 + scale) + shift, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_norms_begin_as_plain_layer_norms_whatever_the_value() -> None:
    modulation = Modulation(NORMS, WIDTH, num_values=VALUES)(torch.arange(VALUES))
    assert not modulation.any()
    h = torch.randn(VALUES, 4, WIDTH, generator=torch.Generator().manual_seed(1))
    plain = torch.nn.LayerNorm(WIDTH)(h)
    torch.testing.assert_close(adaptive_norm(h, modulation[1]), plain)


def test_sinusoids_are_sines_then_cosines_of_scales_down_to_a_ten_thousandth() -> None:
    found = sinusoids(torch.tensor([0.0, 2.5, 4000.0]), 6)
    for row, value in zip(found.tolist(), (0.0, 2.5, 4000.0), strict=True):
        angles = [value * 10000 ** (-k / 2) for k in range(3)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert row == pytest.approx(expected, abs=2e-4)  # 4000 radians in float32 are exact to 1.2e-4
