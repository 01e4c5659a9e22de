"""Truncation and the inverse CDF against plain loops over the values."""

import math

import pytest
import torch

from rasterformer.distributions.pmf import check_options, inverse_cdf, truncate
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


def test_inverse_cdf_is_the_smallest_value_whose_cumulative_probability_exceeds_u() -> None:
    pmf = [0.125, 0.25, 0.0, 0.5, 0.125]
    for u in (0.0, 0.124, 0.125, 0.3, 0.374, 0.375, 0.8, 0.874, 0.875, 1 - 2**-24):
        expected = next(value for value in range(5) if math.fsum(pmf[: value + 1]) > u)
        assert int(inverse_cdf(torch.tensor(pmf), torch.tensor(u))) == expected, u


def test_inverse_cdf_never_draws_a_value_of_probability_zero() -> None:
    pmf = torch.tensor([0.0, 0.0, 0.7, 0.0, 0.3, 0.0])
    drawn = inverse_cdf(pmf.expand(3, -1), torch.tensor([0.0, 0.5, 1 - 2**-24]))
    assert drawn.tolist() == [2, 2, 4]


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
