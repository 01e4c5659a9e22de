"""Truncation and the race of clocks against plain loops over the values."""

import math
from collections.abc import Callable

import pytest
import torch

from rasterformer.distributions.pmf import check_options, race, truncate
from rasterformer.errors import ConfigError
from rasterformer.interfaces import SampleOptions


def truncated_by_loop(pmf: list[float], *, top_k: int | None, top_p: float | None) -> list[float]:
    """Most probable first, of equals the smaller value first; stops at k values or when p is reached."""
    ranked = sorted(range(len(pmf)), key=lambda value: (-pmf[value], value))
    kept, reached = [], 0.0
    for value in ranked:
        if (top_k is not None and len(kept) == top_k) or (top_p is not None and reached >= top_p):
            break
        kept.append(value)
        reached += pmf[value]
    total = math.fsum(pmf[value] for value in kept)
    return [pmf[value] / total if value in kept else 0.0 for value in range(len(pmf))]


@pytest.mark.parametrize("top_k", [None, 1, 3, 6, 100])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.3, 0.77, 1.0])
def test_truncate_equals_a_loop_over_ranked_values(top_k: int | None, top_p: float | None) -> None:
    pmf = torch.rand(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pmf = pmf / pmf.sum(-1, keepdim=True)
    expected = [truncated_by_loop(row, top_k=top_k, top_p=top_p) for row in pmf.tolist()]
    torch.testing.assert_close(truncate(pmf, SampleOptions(1.0, top_k, top_p)), torch.tensor(expected).double())


def test_truncate_keeps_the_smaller_of_equally_probable_values() -> None:
    pmf = torch.tensor([0.1, 0.3, 0.3, 0.3], dtype=torch.float64)
    assert truncate(pmf, SampleOptions(1.0, 2, None)).tolist() == [0.0, 0.5, 0.5, 0.0]
    assert truncate(pmf, SampleOptions(1.0, None, 0.3)).tolist() == [0.0, 1.0, 0.0, 0.0]


def test_race_is_won_by_the_clock_that_rings_first() -> None:
    pmf, clocks = [0.125, 0.25, 0.0, 0.5, 0.125], [0.3, 0.5, 1e-9, 1.3, 0.24]
    times = [clock / p if p else math.inf for p, clock in zip(pmf, clocks, strict=True)]
    assert int(race(torch.tensor(pmf), torch.tensor(clocks))) == times.index(min(times)) == 4


def test_race_never_draws_a_value_of_probability_zero() -> None:
    pmf = torch.tensor([0.0, 0.0, 0.7, 0.0, 0.3, 0.0]).expand(1000, -1)
    clocks = torch.rand(1000, 6, generator=torch.Generator().manual_seed(0)) + 1e-9
    assert set(race(pmf, clocks).tolist()) == {2, 4}


def clocks_of(count: int, values: int) -> torch.Tensor:
    return -torch.rand(count, values, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log()


def test_race_draws_from_the_pmf(fit_p_value: Callable[[torch.Tensor, torch.Tensor], float]) -> None:
    pmf = torch.softmax(2 * torch.randn(12, generator=torch.Generator().manual_seed(0)), 0)
    assert fit_p_value(torch.bincount(race(pmf, clocks_of(20_000, 12)), minlength=12), pmf) > 1e-4


def test_race_gives_the_same_value_under_a_nearby_pmf_about_as_often_as_the_two_overlap() -> None:
    """At total variation distance d two races with the same clocks agree with probability (1 - d) / (1 + d) or more."""
    values = torch.arange(256.0)
    near, far = (torch.softmax(-((values - mean) / 12).square(), 0) for mean in (128.0, 129.0))
    distance = float((near - far).abs().sum() / 2)
    clocks = clocks_of(20_000, 256)
    agree = float((race(near, clocks) == race(far, clocks)).float().mean())
    assert agree > (1 - distance) / (1 + distance) - 0.01 > 0.85


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SampleOptions(temperature=0.0), r"temperature = 0\.0 must be above 0"),
        (SampleOptions(temperature=math.nan), r"temperature = nan must be above 0"),
        (SampleOptions(top_k=0), "top_k = 0 must be at least 1"),
        (SampleOptions(top_p=0.0), r"top_p = 0\.0 must lie above 0"),
        (SampleOptions(top_p=1.5), r"top_p = 1\.5 must lie above 0"),
    ],
)
def test_options_that_describe_no_distribution_are_refused(options: SampleOptions, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_options(options)


def test_the_default_options_are_accepted_and_change_nothing() -> None:
    pmf = torch.tensor([0.25, 0.75])
    check_options(SampleOptions())
    assert torch.equal(truncate(pmf, SampleOptions()), pmf)
