"""The noise streams against one draw of everything at once."""

import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from rasterformer.autoregressive.noise import NUMBERS_AT_A_TIME, NoiseStream, image_generators

LENGTH, PER_POSITION = 50, 1000


def stream(count: int = 2, per_position: int = PER_POSITION) -> NoiseStream:
    return NoiseStream(image_generators(5, count), per_position, LENGTH, torch.device("cpu"))


def all_at_once(count: int = 2) -> Tensor:
    """-log(1 - u), float64, from the same generators."""
    uniform = [torch.rand(LENGTH, PER_POSITION, generator=g, dtype=torch.float64) for g in image_generators(5, count)]
    return -torch.log(1 - torch.stack(uniform))


@pytest.mark.parametrize("count", [1, 7, 40])
def test_the_noise_of_a_position_does_not_depend_on_how_it_is_asked_for(count: int) -> None:
    source, expected = stream(), all_at_once()
    for first in range(0, LENGTH, max(1, count // 2)):  # windows overlap
        number = min(count, LENGTH - first)
        torch.testing.assert_close(
            source.at(first, number).double(), expected[:, first : first + number], rtol=1e-6, atol=1e-12
        )


def test_positions_may_be_left_out() -> None:
    torch.testing.assert_close(stream().at(43, 2).double(), all_at_once()[:, 43:45], rtol=1e-6, atol=1e-12)


def test_only_what_is_still_needed_is_kept() -> None:
    source = stream()
    held = [source.numbers.shape[1] for position in range(LENGTH) if source.at(position) is not None]
    assert max(held) * PER_POSITION <= NUMBERS_AT_A_TIME


def test_going_back_is_refused() -> None:
    source = stream()
    source.at(30)
    with pytest.raises(AssertionError, match="in the order of positions"):
        source.at(2)


def test_the_numbers_are_standard_exponential_and_never_zero() -> None:
    numbers = stream(1, per_position=4000).at(0, LENGTH).flatten()
    assert scipy.stats.kstest(numbers.numpy(), "expon").pvalue > 1e-4
    assert float(numbers.min()) > 0
    clock = NoiseStream([torch.Generator()], 1, 1, torch.device("cpu"))
    smallest = (-torch.log1p(-torch.zeros(1, dtype=torch.float64))).clamp_(min=2.0**-54)
    assert math.isfinite(float(clock.at(0))) and float(smallest) > 0
