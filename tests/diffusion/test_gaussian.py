"""The Gaussian process against published values, Bayes on products of Gaussians, and conversions by hand."""

import math
import re

import pytest
import torch
from torch import Tensor

from rasterformer.diffusion.edm import make_edm
from rasterformer.diffusion.gaussian import GaussianProcess, Prediction, make_gaussian, resolution_shift
from rasterformer.errors import ConfigError, ShapeError

F64 = torch.float64
PROCESSES = {
    "cosine": make_gaussian("cosine"),
    "linear": make_gaussian("linear"),
    "cosine, shifted": make_gaussian("cosine", shift=-2.5),
    "edm": make_edm(),
}
PREDICTIONS: tuple[Prediction, ...] = ("eps", "x0", "v")
every_process = pytest.mark.parametrize("name", PROCESSES)


def times(*t: float) -> Tensor:
    return torch.tensor(t, dtype=F64)


def images(count: int, *, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(count, 3, 2, 4, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("schedule", "t", "value", "digits"),
    [
        ("cosine", 0.0, 8.769, 5e-4),
        ("cosine", 0.2, 2.181, 5e-4),
        ("cosine", 0.5, -0.025, 5e-4),
        ("cosine", 0.9, -3.702, 5e-4),
        ("cosine", 1.0, -15.0, 1e-12),
        ("linear", 0.0, 9.210, 5e-4),
        ("linear", 0.2, 0.709, 5e-4),
        ("linear", 0.5, -2.414, 5e-4),
        ("linear", 0.9, -8.10, 5e-3),
        ("linear", 1.0, -10.0, 5e-4),
    ],
)
def test_log_snr_has_the_published_values(schedule: str, t: float, value: float, digits: float) -> None:
    process = make_gaussian(schedule)  # type: ignore[arg-type]
    assert float(process.log_snr(times(t))) == pytest.approx(value, abs=digits)


def test_linear_is_near_a_thousand_steps_of_beta() -> None:
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64), 0)
    for step in (200, 500, 900, 1000):
        log_snr = float((kept[step - 1] / (1 - kept[step - 1])).log())
        assert float(PROCESSES["linear"].log_snr(times(step / 1000))) == pytest.approx(log_snr, abs=0.15)


@every_process
def test_times_on_another_device_are_used_without_being_read(name: str) -> None:
    """A GPU would have to finish all its work first. The meta device has no numbers to be read at all."""
    process, there = PROCESSES[name], torch.empty(2, device="meta")
    x = torch.empty(2, 3, 2, 4, device="meta")
    for level in (process.log_snr(there), process.alpha(there), process.sigma(there)):
        assert level.device.type == "meta" and level.shape == (2,)
    assert process.diffuse(x, there, x).shape == x.shape
    assert process.posterior(x, x, there, there)[0].shape == x.shape and process.transition(there, there)[0].shape == (
        2,
    )


@every_process
def test_snr_falls_strictly_to_both_ends_and_is_finite_there(name: str) -> None:
    process = PROCESSES[name]
    for count, dtype in ((100_001, F64), (2001, torch.float32)):
        log_snr = process.log_snr(torch.linspace(0, 1, count, dtype=dtype))
        assert log_snr.dtype == dtype and bool(log_snr.isfinite().all()) and bool((log_snr.diff() < 0).all())


@every_process
def test_alpha_and_sigma_preserve_variance_and_have_the_ratio_of_the_snr(name: str) -> None:
    process, t = PROCESSES[name], torch.linspace(0, 1, 11, dtype=F64)
    for alpha, sigma, log_snr in zip(
        process.alpha(t).tolist(), process.sigma(t).tolist(), process.log_snr(t).tolist(), strict=True
    ):
        assert alpha**2 + sigma**2 == pytest.approx(1.0, abs=1e-14)
        assert alpha**2 / sigma**2 == pytest.approx(math.exp(log_snr), rel=1e-12)


@every_process
def test_time_is_the_inverse_of_log_snr_and_stops_at_the_ends(name: str) -> None:
    process, t = PROCESSES[name], torch.linspace(0, 1, 77, dtype=F64)
    torch.testing.assert_close(process.time(process.log_snr(t)), t, rtol=0, atol=1e-9)
    assert process.time(times(-50.0, 50.0)).tolist() == pytest.approx([1.0, 0.0], abs=1e-12)


def test_shift_is_added_at_all_times() -> None:
    t = torch.linspace(0, 1, 9, dtype=F64)
    moved = make_gaussian("cosine", shift=1.5).log_snr(t) - PROCESSES["cosine"].log_snr(t)
    torch.testing.assert_close(moved, torch.full_like(t, 1.5), rtol=0, atol=1e-12)


def test_shift_of_a_size_gives_means_of_blocks_the_snr_of_the_reference() -> None:
    assert resolution_shift(64, 64) == 0 and resolution_shift(32, 128) == pytest.approx(0, abs=1e-12)
    assert resolution_shift(16, 16) == pytest.approx(2 * math.log(4))
    t = times(0.3)
    large = make_gaussian("cosine", shift=resolution_shift(128, 128))
    # the mean of 2 x 2 pixels keeps the image of a constant block and has a quarter of the noise's variance
    block = large.alpha(t) ** 2 / (large.sigma(t) ** 2 / 4)
    assert float(block.log()) == pytest.approx(float(PROCESSES["cosine"].log_snr(t)), abs=1e-12)
    assert resolution_shift(8, 8, reference=16) == pytest.approx(2 * math.log(2))


@every_process
def test_diffusion_is_its_formula_image_by_image(name: str) -> None:
    process, x, noise = PROCESSES[name], images(3), images(3, seed=1)
    t = times(0.0, 0.4, 1.0)
    z = process.diffuse(x, t, noise)
    for k in range(3):
        log_snr = float(process.log_snr(t)[k])
        alpha, sigma = math.sqrt(1 / (1 + math.exp(-log_snr))), math.sqrt(1 / (1 + math.exp(log_snr)))
        torch.testing.assert_close(z[k], alpha * x[k] + sigma * noise[k], rtol=0, atol=1e-14)
    assert process.diffuse(x.float(), t, noise.float()).dtype == torch.float32


PAIRS = [(0.0, 0.01), (0.0, 1.0), (0.3, 0.31), (0.2, 0.7), (0.5, 1.0), (0.99, 1.0)]


@every_process
@pytest.mark.parametrize(("s", "t"), PAIRS)
def test_transition_after_diffusion_is_diffusion(name: str, s: float, t: float) -> None:
    process = PROCESSES[name]
    scale, std = (float(part) for part in process.transition(times(s), times(t)))
    alpha_s, sigma_s, alpha_t, sigma_t = levels(process, s, t)
    assert scale * alpha_s == pytest.approx(alpha_t, rel=1e-12)
    assert scale**2 * sigma_s**2 + std**2 == pytest.approx(sigma_t**2, rel=1e-12)


def levels(process: GaussianProcess, s: float, t: float) -> tuple[float, float, float, float]:
    alpha, sigma = process.alpha(times(s, t)).tolist(), process.sigma(times(s, t)).tolist()
    return alpha[0], sigma[0], alpha[1], sigma[1]


@every_process
@pytest.mark.parametrize(("s", "t"), PAIRS)
def test_posterior_is_bayes_on_gaussians(name: str, s: float, t: float) -> None:
    """q(z_s | z_t, x) is the product of q(z_s | x) and of q(z_t | z_s), seen as a function of z_s: precisions add."""
    process, z, x = PROCESSES[name], images(1), images(1, seed=1)
    alpha_s, sigma_s, alpha_t, sigma_t = levels(process, s, t)
    forward = alpha_t / alpha_s
    spread = sigma_t**2 - forward**2 * sigma_s**2
    precision = 1 / sigma_s**2 + forward**2 / spread
    expected = (alpha_s * x / sigma_s**2 + forward * z / spread) / precision
    mean, std = process.posterior(z, x, times(t), times(s))
    # the reference subtracts variances that are nearly equal
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-9)
    assert float(std) == pytest.approx(precision**-0.5, rel=1e-9)


@every_process
def test_posterior_is_bayes_by_enumeration_of_a_grid(name: str) -> None:
    process, s, t, z, x = PROCESSES[name], 0.35, 0.6, 0.7, -0.4
    alpha_s, sigma_s, alpha_t, sigma_t = levels(process, s, t)
    forward = alpha_t / alpha_s
    spread = math.sqrt(sigma_t**2 - forward**2 * sigma_s**2)
    grid = torch.linspace(-6, 6, 20_001, dtype=F64)
    log_joint = -(((grid - alpha_s * x) / sigma_s) ** 2) / 2 - ((z - forward * grid) / spread) ** 2 / 2
    prob = log_joint.softmax(0)
    mean, std = process.posterior(*(torch.full((1, 1, 1, 1), value, dtype=F64) for value in (z, x)), times(t), times(s))
    assert float(mean) == pytest.approx(float(prob @ grid), abs=1e-9)
    assert float(std) == pytest.approx(math.sqrt(float(prob @ grid**2) - float(prob @ grid) ** 2), abs=1e-9)


@every_process
@pytest.mark.parametrize("interpolation", [0.0, 0.3, 1.0])
def test_interpolation_mixes_the_two_variances_by_exponents(name: str, interpolation: float) -> None:
    process, s, t, z = PROCESSES[name], 0.35, 0.6, images(1)
    narrow = float(process.posterior(z, z, times(t), times(s))[1])
    wide = float(process.transition(times(s), times(t))[1])
    mean, std = process.posterior(z, z, times(t), times(s), interpolation=interpolation)
    assert float(std) == pytest.approx(narrow ** (1 - interpolation) * wide**interpolation, rel=1e-12)
    assert torch.equal(mean, process.posterior(z, z, times(t), times(s))[0])


@every_process
def test_posterior_of_a_batch_takes_each_image_at_its_own_times_and_is_finite_from_the_ends_in_float32(
    name: str,
) -> None:
    process, z, x = PROCESSES[name], images(3, dtype=torch.float32), images(3, seed=1, dtype=torch.float32)
    t, s = torch.tensor([1.0, 1.0, 0.5]), torch.tensor([0.999, 0.0, 0.0])
    mean, std = process.posterior(z, x, t, s, interpolation=0.5)
    assert mean.dtype == std.dtype == torch.float32
    assert bool(mean.isfinite().all()) and bool((std > 0).all())
    exact = process.posterior(z.double(), x.double(), t.double(), s.double(), interpolation=0.5)
    torch.testing.assert_close((mean.double(), std.double()), exact, rtol=1e-5, atol=1e-6)
    for k in range(3):
        one = slice(k, k + 1)
        alone = process.posterior(z[one], x[one], t[one], s[one], interpolation=0.5)
        assert torch.equal(alone[0], mean[one]) and torch.equal(alone[1], std[one])


@every_process
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_output_gives_back_image_and_noise(name: str, prediction: Prediction) -> None:
    process, x, noise = PROCESSES[name], images(4), images(4, seed=1)
    t = times(0.0, 0.2, 0.8, 1.0)
    z = process.diffuse(x, t, noise)
    x0 = process.to_x0(process.target(x, noise, t, prediction), z, t, prediction)
    torch.testing.assert_close(x0, x, rtol=0, atol=1e-11)
    # at low noise a rounding error of z is that much larger in eps
    torch.testing.assert_close(process.to_eps(x0, z, t), noise, rtol=0, atol=1e-10)


@every_process
def test_any_output_means_the_same_in_all_three_predictions(name: str) -> None:
    """By hand: of an output v at z, x0 = alpha z - sigma v and eps = sigma z + alpha v."""
    process, z, v = PROCESSES[name], images(2), images(2, seed=1)
    t = times(0.3, 0.7)
    alpha, sigma = (of(t)[:, None, None, None] for of in (process.alpha, process.sigma))
    x0, eps = alpha * z - sigma * v, sigma * z + alpha * v
    for output, prediction in ((v, "v"), (eps, "eps"), (x0, "x0")):
        got = process.to_x0(output, z, t, prediction)  # type: ignore[arg-type]
        torch.testing.assert_close(got, x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(process.to_eps(x0, z, t), eps, rtol=0, atol=1e-12)
    torch.testing.assert_close(process.target(x0, eps, t, "v"), v, rtol=0, atol=1e-12)


@every_process
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_predictions_at_both_ends_are_finite_in_float32_and_in_its_precision(name: str, prediction: Prediction) -> None:
    process, z, output = PROCESSES[name], images(2, dtype=torch.float32), images(2, seed=1, dtype=torch.float32)
    t = torch.tensor([0.0, 1.0])
    x0 = process.to_x0(output, z, t, prediction)
    eps = process.to_eps(x0, z, t)
    assert x0.dtype == eps.dtype == torch.float32
    assert bool(x0.isfinite().all()) and bool(eps.isfinite().all())
    exact = process.to_x0(output.double(), z.double(), t.double(), prediction)
    largest = float(1 / process.alpha(t).min())  # how much eps prediction magnifies rounding at t = 1
    torch.testing.assert_close(x0.double(), exact, rtol=1e-5, atol=1e-6 * largest)
    assert process.to_x0(output.bfloat16(), z, t, prediction).dtype == torch.float32


def test_min_snr_weights_by_hand() -> None:
    process = PROCESSES["cosine"]
    t = process.time(times(math.log(2.0), math.log(20.0)))
    expected = {"eps": [1.0, 5 / 20], "x0": [2.0, 5.0], "v": [2 / 3, 5 / 21]}
    for prediction in PREDICTIONS:
        weight = process.weight(t, prediction, "min_snr")
        assert weight.tolist() == pytest.approx(expected[prediction], rel=1e-9)
        assert process.weight(t, prediction, "plain").tolist() == [1.0, 1.0]
        ends = process.weight(torch.tensor([0.0, 1.0]), prediction, "min_snr")
        assert ends.dtype == torch.float32 and bool(ends.isfinite().all()) and bool((ends > 0).all())


@every_process
def test_min_snr_is_the_same_loss_whatever_the_network_says(name: str) -> None:
    process, x, noise, wrong = PROCESSES[name], images(3), images(3, seed=1), images(3, seed=2)
    t = times(0.1, 0.5, 0.9)
    z = process.diffuse(x, t, noise)
    eps = process.to_eps(wrong, z, t)
    losses = []
    for prediction in PREDICTIONS:
        error = process.target(wrong, eps, t, prediction) - process.target(x, noise, t, prediction)
        losses.append(process.weight(t, prediction, "min_snr") * error.square().sum((1, 2, 3)))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=0)
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-9, atol=0)


def test_tensors_with_an_axis_off_are_refused() -> None:
    process, good, t = PROCESSES["cosine"], torch.zeros(2, 3, 4, 4), torch.tensor([0.5, 0.6])
    s = t / 2
    for bad in (good[0], good[:1], good[:, :1], good[..., :1], good[None]):
        shape = re.escape(str(list(bad.shape)))
        says = rf"{shape}.* do not fit\. Pass images \[B, C, H, W\] of one shape and t \[B\]"
        for call in (
            lambda bad=bad: process.diffuse(good, t, bad),
            lambda bad=bad: process.diffuse(bad, t, good),
            lambda bad=bad: process.posterior(bad, good, t, s),
            lambda bad=bad: process.posterior(good, bad, t, s),
            lambda bad=bad: process.target(bad, good, t, "v"),
            lambda bad=bad: process.target(good, bad, t, "x0"),
            lambda bad=bad: process.to_x0(bad, good, t, "x0"),
            lambda bad=bad: process.to_x0(good, bad, t, "eps"),
            lambda bad=bad: process.to_eps(bad, good, t),
            lambda bad=bad: process.to_eps(good, bad, t),
        ):
            with pytest.raises(ShapeError, match=says):
                call()
    for wrong in (t[:1], t[:, None], torch.tensor(0.5)):
        for call in (
            lambda wrong=wrong: process.diffuse(good, wrong, good),
            lambda wrong=wrong: process.posterior(good, good, wrong, s),
            lambda wrong=wrong: process.target(good, good, wrong, "v"),
            lambda wrong=wrong: process.to_x0(good, good, wrong, "v"),
            lambda wrong=wrong: process.to_eps(good, good, wrong),
        ):
            with pytest.raises(ShapeError, match=r"and t \[.*\] do not fit"):
                call()


@pytest.mark.parametrize("t", [-0.01, 1.01, 500.0, math.nan])
def test_times_out_of_range_are_refused(t: float) -> None:
    process, x, bad = PROCESSES["cosine"], torch.zeros(1, 1, 1, 1), times(t)
    for call in (
        lambda: process.log_snr(bad),
        lambda: process.alpha(bad),
        lambda: process.sigma(bad),
        lambda: process.diffuse(x, bad, x),
    ):
        with pytest.raises(ConfigError, match=r"t = \[.*\] leaves 0\.\.1\. Pass times: 0 is the image, 1 is noise"):
            call()
    with pytest.raises(ConfigError, match=r"are no times of a step\. Pass 0 <= s < t <= 1"):
        process.transition(times(0.0), bad)


def test_times_in_the_wrong_order_are_refused() -> None:
    process, x = PROCESSES["cosine"], torch.zeros(2, 1, 1, 1)
    with pytest.raises(ConfigError, match=r"s = \[0\.25, 0\.5\] and t = \[0\.5, 0\.5\] are no times of a step"):
        process.posterior(x, x, times(0.5, 0.5), times(0.25, 0.5))
    with pytest.raises(ConfigError, match=r"s = \[0\.75\] and t = \[0\.5\] are no times of a step"):
        process.transition(times(0.75), times(0.5))


def test_unknown_names_and_numbers_out_of_range_are_refused() -> None:
    process, x, t = PROCESSES["cosine"], torch.zeros(1, 1, 1, 1), times(0.5)
    for call in (
        lambda: process.target(x, x, t, "epsilon"),  # type: ignore[arg-type]
        lambda: process.to_x0(x, x, t, "epsilon"),  # type: ignore[arg-type]
        lambda: process.weight(t, "epsilon", "plain"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match=r"prediction = 'epsilon' is unknown\. .*Allowed: eps, v, x0"):
            call()
    with pytest.raises(ConfigError, match=r"weighting = 'min-snr' is unknown\. Did you mean 'min_snr'\?"):
        process.weight(t, "v", "min-snr")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"schedule = 'cosin' is unknown\. Did you mean 'cosine'\?"):
        make_gaussian("cosin")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="shift = inf must be a finite number"):
        make_gaussian("linear", shift=math.inf)
    for interpolation in (-0.1, 1.1):
        with pytest.raises(ConfigError, match=rf"interpolation = {interpolation} must lie in 0\.\.1"):
            process.posterior(x, x, t, t / 2, interpolation=interpolation)
    with pytest.raises(ConfigError, match="0x8 against 64 is no pair of sizes"):
        resolution_shift(0, 8)


def test_functions_that_are_no_schedule_are_refused() -> None:
    def unclamped(t: Tensor) -> Tensor:
        return torch.where(t < 1, -2 * (t.clamp(max=0.999) + 0.1).log(), -torch.inf)

    with pytest.raises(ConfigError, match=r"log_snr is -inf at t = 1\.000\. It must be finite in 0\.\.1"):
        GaussianProcess(unclamped, lambda log_snr: log_snr)
    with pytest.raises(ConfigError, match=r"log_snr is -5\.0 at t = 0\.501\. .* fall all the way"):
        GaussianProcess(lambda t: (-10 * t).clamp(min=-5), lambda log_snr: -log_snr / 10)
    with pytest.raises(ConfigError, match=r"time is 0\.01.* at the log SNR of t = 0\.001\. It must be the inverse"):
        GaussianProcess(lambda t: -10 * t, lambda log_snr: -log_snr)
