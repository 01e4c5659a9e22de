"""The discretized mixture of logistics against differences of logistic CDFs, looped in float64.

Reference: Salimans et al. 2017 (PixelCNN++), section 2.1 and equations 1-3, written out for one position at a time.
"""

import itertools
import math
from collections.abc import Callable

import pytest
import scipy.special
import torch
from torch import Tensor

from rasterformer.distributions import DiscretizedLogisticMixture
from rasterformer.errors import ConfigError
from rasterformer.interfaces import SampleOptions

MIXTURES = 3


def random_params(
    count: int, *, mixtures: int = MIXTURES, mean: float = 1.0, log_scale: float | None = None, seed: int = 0
) -> Tensor:
    """float64 [count, 10 M]: means of spread `mean`, log-scales as given or between -3 and 0."""
    rng = torch.Generator().manual_seed(seed)
    params = torch.randn(count, 10 * mixtures, dtype=torch.float64, generator=rng)
    parts = params[:, mixtures:].view(count, 3, 3, mixtures)
    parts[:, 0] *= mean
    parts[:, 1] = -3 * torch.rand(count, 3, mixtures, dtype=torch.float64, generator=rng)
    if log_scale is not None:
        parts[:, 1] = log_scale
    return params


def logistic_mass(level: int, mean: float, scale: float, levels: int) -> float:
    """CDF difference of a bin; the outermost bins reach to infinity."""
    grid, half = 2 * level / (levels - 1) - 1, 1 / (levels - 1)
    low = -math.inf if level == 0 else (grid - half - mean) / scale
    high = math.inf if level == levels - 1 else (grid + half - mean) / scale
    if low > 0:  # the upper tail, by symmetry
        low, high = -high, -low
    return float(scipy.special.expit(high) - scipy.special.expit(low))


def reference_pmf(params: Tensor, levels: int, mixtures: int, temperature: float = 1.0) -> Tensor:
    """params [10 M] -> P(r, g, b), float64 [levels, levels, levels]."""
    values = params.tolist()
    logits = torch.tensor(values[:mixtures], dtype=torch.float64) / temperature
    weights = torch.softmax(logits, 0).tolist()
    joint = torch.zeros(levels, levels, levels, dtype=torch.float64)

    def entry(kind: int, channel: int, component: int) -> float:  # kind: 0 means, 1 log-scales, 2 raw coefficients
        return float(values[mixtures + (3 * kind + channel) * mixtures + component])

    for m in range(mixtures):
        scales = [temperature * math.exp(max(entry(1, c, m), -7.0)) for c in range(3)]
        c0, c1, c2 = (math.tanh(entry(2, c, m)) for c in range(3))
        for r in range(levels):
            x_r = 2 * r / (levels - 1) - 1
            of_r = logistic_mass(r, entry(0, 0, m), scales[0], levels)
            for g in range(levels):
                x_g = 2 * g / (levels - 1) - 1
                of_g = logistic_mass(g, entry(0, 1, m) + c0 * x_r, scales[1], levels)
                for b in range(levels):
                    of_b = logistic_mass(b, entry(0, 2, m) + c1 * x_r + c2 * x_g, scales[2], levels)
                    joint[r, g, b] += weights[m] * of_r * of_g * of_b
    return joint


def every_pixel(levels: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(levels), repeat=3)))


@pytest.mark.parametrize("log_scale", [None, -2.0, 0.7])
def test_log_prob_equals_cdf_differences_for_every_pixel(log_scale: float | None) -> None:
    distribution = DiscretizedLogisticMixture(MIXTURES, levels=4)
    for params in random_params(4, log_scale=log_scale):
        got = distribution.log_prob(params.expand(64, -1), every_pixel(4)).exp()
        torch.testing.assert_close(got, reference_pmf(params, 4, MIXTURES).flatten(), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("pixel", [(0, 0, 0), (255, 255, 255), (0, 255, 128), (1, 254, 77)])
def test_log_prob_at_256_levels_equals_cdf_differences(pixel: tuple[int, int, int]) -> None:
    params = random_params(1, mixtures=1)[0]
    means, log_scales, raw = params[1:].view(3, 3).tolist()
    r, g, _ = (2 * value / 255 - 1 for value in pixel)
    c0, c1, c2 = map(math.tanh, raw)
    shifted = (means[0], means[1] + c0 * r, means[2] + c1 * r + c2 * g)
    expected = [
        math.log(logistic_mass(value, mean, math.exp(s), 256))
        for value, mean, s in zip(pixel, shifted, log_scales, strict=True)
    ]
    got = DiscretizedLogisticMixture(1).symbol_log_prob(params, torch.tensor(pixel))
    assert got.tolist() == pytest.approx(expected, rel=1e-9)


def test_log_prob_is_exact_far_in_the_tail_where_cdf_differences_vanish() -> None:
    mean, scale = -0.9, math.exp(-6.0)
    params = torch.zeros(10, dtype=torch.float64)
    params[1:4], params[4:7] = mean, -6.0
    low, high = ((2 * 200 + side) / 255 - 1 for side in (-1, 1))
    lower, upper = ((edge - mean) / scale for edge in (low, high))
    assert scipy.special.expit(upper) - scipy.special.expit(lower) == 0.0
    # the survival function e^-z of a logistic at z >> 1
    expected = -lower + math.log1p(-math.exp(lower - upper))
    got = DiscretizedLogisticMixture(1).symbol_log_prob(params, torch.tensor([200, 200, 200]))
    assert float(got[0]) == pytest.approx(expected, rel=1e-12)


EXTREMES = {
    "ordinary": {},
    "log-scales at the clamp": {"log_scale": -9.0},
    "log-scales of 5": {"log_scale": 5.0},
    "means outside the range": {"mean": 4.0},
    "sharp and outside": {"mean": 4.0, "log_scale": -7.0},
}
PRECISIONS = [(torch.float64, 1e-12), (torch.float32, 1e-5)]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("extreme", EXTREMES)
def test_probabilities_of_all_pixels_sum_to_one(extreme: str, dtype: torch.dtype, tolerance: float) -> None:
    params = random_params(50, **EXTREMES[extreme]).to(dtype)
    pixels = every_pixel(4)
    distribution = DiscretizedLogisticMixture(MIXTURES, levels=4)
    total = distribution.log_prob(params[:, None].expand(-1, 64, -1), pixels.expand(50, -1, -1)).exp().sum(-1)
    assert float((total - 1).abs().max()) <= tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("extreme", EXTREMES)
def test_symbol_pmf_of_every_channel_sums_to_one(extreme: str, dtype: torch.dtype, tolerance: float) -> None:
    params = random_params(200, **EXTREMES[extreme]).to(dtype)
    distribution = DiscretizedLogisticMixture(MIXTURES)
    pixels = torch.randint(0, 256, (200, 3), generator=torch.Generator().manual_seed(1))
    for channel in range(3):
        pmf = distribution.symbol_pmf(params, pixels[:, :channel])
        assert pmf.shape == (200, 256) and bool((pmf >= 0).all())
        assert float((pmf.sum(-1) - 1).abs().max()) <= tolerance


def test_symbol_log_prob_sums_to_log_prob() -> None:
    params = random_params(30)
    pixels = torch.randint(0, 256, (30, 3), generator=torch.Generator().manual_seed(1))
    distribution = DiscretizedLogisticMixture(MIXTURES)
    by_symbol = distribution.symbol_log_prob(params, pixels)
    torch.testing.assert_close(by_symbol.sum(-1), distribution.log_prob(params, pixels), rtol=1e-12, atol=1e-12)


def test_symbol_pmf_holds_what_symbol_log_prob_says() -> None:
    params = random_params(30)
    pixels = torch.randint(0, 256, (30, 3), generator=torch.Generator().manual_seed(1))
    distribution = DiscretizedLogisticMixture(MIXTURES)
    by_symbol = distribution.symbol_log_prob(params, pixels)
    for channel in range(3):
        pmf = distribution.symbol_pmf(params, pixels[:, :channel])
        chosen = pmf.gather(-1, pixels[:, channel : channel + 1])[:, 0]
        torch.testing.assert_close(chosen, by_symbol[:, channel].exp(), rtol=1e-10, atol=1e-15)


def test_log_scales_below_minus_7_count_as_minus_7() -> None:
    pixels = torch.randint(0, 256, (5, 3), generator=torch.Generator().manual_seed(1))
    distribution = DiscretizedLogisticMixture(MIXTURES)
    clamped, sharper = (random_params(5, log_scale=s) for s in (-7.0, -30.0))
    assert torch.equal(distribution.log_prob(clamped, pixels), distribution.log_prob(sharper, pixels))


@pytest.mark.parametrize("log_scale", [-100.0, -7.0, 0.0, 20.0, 80.0])
@pytest.mark.parametrize("mean", [-1e4, 0.0, 1e4])
def test_gradients_are_finite_for_extreme_parameters(log_scale: float, mean: float) -> None:
    params = torch.zeros(4, 10 * 2)
    params[:, 0], params[:, 1] = 1e3, -1e3
    params[:, 2:8], params[:, 8:14], params[:, 14:] = mean, log_scale, 50.0
    params.requires_grad_()
    pixels = torch.tensor([[0, 0, 0], [255, 255, 255], [128, 0, 255], [1, 254, 3]])
    log_prob = DiscretizedLogisticMixture(2).log_prob(params, pixels)
    log_prob.sum().backward()
    assert bool(log_prob.isfinite().all())
    assert params.grad is not None and bool(params.grad.isfinite().all())


def test_gradients_equal_finite_differences() -> None:
    params = random_params(3, mixtures=2).requires_grad_()
    pixels = torch.tensor([[0, 3, 1], [2, 0, 3], [1, 2, 2]])
    distribution = DiscretizedLogisticMixture(2, levels=4)
    assert torch.autograd.gradcheck(lambda p: distribution.log_prob(p, pixels), params)


def exponential(*shape: int) -> Tensor:
    uniform = torch.rand(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return -torch.log1p(-uniform).float()


def counts_of_pixels(params: Tensor, options: SampleOptions, count: int = 20_000) -> Tensor:
    """Draws at 4 levels -> counts int64 [64], r slowest."""
    noise = exponential(count, 12)
    x = DiscretizedLogisticMixture(MIXTURES, levels=4).sample(params.expand(count, -1), noise, options=options)
    assert x.dtype == torch.int64 and x.shape == (count, 3)
    return torch.bincount(x @ torch.tensor([16, 4, 1]), minlength=64)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_samples_fit_the_likelihood(
    seed: int, temperature: float, fit_p_value: Callable[[Tensor, Tensor], float]
) -> None:
    params = random_params(1, seed=seed)[0]
    expected = reference_pmf(params, 4, MIXTURES, temperature).flatten()
    assert fit_p_value(counts_of_pixels(params, SampleOptions(temperature)), expected) > 1e-4


@pytest.mark.parametrize("options", [SampleOptions(top_k=2), SampleOptions(top_p=0.7), SampleOptions(1.5, 3, 0.95)])
def test_samples_fit_the_channel_by_channel_truncated_likelihood(
    options: SampleOptions, fit_p_value: Callable[[Tensor, Tensor], float]
) -> None:
    params = random_params(1)[0]
    joint = reference_pmf(params, 4, MIXTURES, options.temperature)
    expected = torch.zeros(4, 4, 4, dtype=torch.float64)

    def truncated(weights: Tensor) -> list[float]:
        probs = (weights / weights.sum()).tolist()
        kept, reached = [], 0.0
        for value in sorted(range(4), key=lambda value: -probs[value]):
            if len(kept) == (options.top_k or 4) or reached >= (options.top_p or 2.0):
                break
            kept.append(value)
            reached += probs[value]
        return [probs[value] / reached if value in kept else 0.0 for value in range(4)]

    for r, of_r in enumerate(truncated(joint.sum((1, 2)))):
        for g, of_g in enumerate(truncated(joint[r].sum(1))):
            for b, of_b in enumerate(truncated(joint[r, g])):
                expected[r, g, b] = of_r * of_g * of_b
    assert 0 < int((expected == 0).sum()) < 64
    assert fit_p_value(counts_of_pixels(params, options), expected.flatten()) > 1e-4


def test_samples_of_red_at_256_levels_fit_their_pmf(fit_p_value: Callable[[Tensor, Tensor], float]) -> None:
    params = random_params(1, log_scale=-4.0)[0]
    noise = exponential(20_000, 768)
    distribution = DiscretizedLogisticMixture(MIXTURES)
    x = distribution.sample(params.expand(20_000, -1), noise, options=SampleOptions())
    pmf = distribution.symbol_pmf(params, torch.empty(0, dtype=torch.int64))
    assert fit_p_value(torch.bincount(x[:, 0], minlength=256), pmf) > 1e-4


def test_half_precision_params_are_scored_in_float32() -> None:
    params = random_params(3).bfloat16()
    pixels = torch.tensor([[0, 10, 200], [255, 3, 4], [100, 100, 100]])
    distribution = DiscretizedLogisticMixture(MIXTURES)
    got = distribution.log_prob(params, pixels)
    assert got.dtype == torch.float32
    assert torch.equal(got, distribution.log_prob(params.float(), pixels))


def test_sampling_refuses_options_that_describe_no_distribution() -> None:
    with pytest.raises(ConfigError, match="top_k = -2"):
        DiscretizedLogisticMixture(1).sample(torch.zeros(1, 10), torch.ones(1, 768), options=SampleOptions(top_k=-2))
