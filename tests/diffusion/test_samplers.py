"""Samplers on distributions whose denoiser and flow are known: Gaussians and a mixture of two, pixel by pixel."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor

from rasterformer.diffusion.edm import make_edm
from rasterformer.diffusion.gaussian import GaussianProcess, make_gaussian
from rasterformer.diffusion.samplers import PredictX0, Sampler, draw_images, normal, times_of
from rasterformer.errors import ConfigError, ShapeError

F64 = torch.float64
PROCESSES = {"cosine": make_gaussian("cosine"), "linear": make_gaussian("linear"), "edm": make_edm()}
SAMPLERS: tuple[Sampler, ...] = ("ancestral", "ddim", "dpmpp_2m", "heun")
SECOND_ORDER: tuple[Sampler, ...] = ("dpmpp_2m", "heun")
CENTRES, SPREAD = (-0.5, 0.3), 0.2  # of the mixture, each half of it


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + k) for k in range(count)]


def gaussian(process: GaussianProcess, mean: float, std: float) -> PredictX0:
    """E[x | z_t] of pixels N(mean, std^2)."""

    def predict(z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (of(t)[:, None, None, None] for of in (process.alpha, process.sigma))
        return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (z - alpha * mean)

    return predict


def mixture(process: GaussianProcess) -> PredictX0:
    """E[x | z_t] of pixels from either of two Gaussians."""

    def predict(z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (of(t)[:, None, None, None] for of in (process.alpha, process.sigma))
        variance = alpha**2 * SPREAD**2 + sigma**2
        prob = torch.stack([-((z - alpha * centre) ** 2) / (2 * variance) for centre in CENTRES]).softmax(0)
        means = [centre + alpha * SPREAD**2 / variance * (z - alpha * centre) for centre in CENTRES]
        return prob[0] * means[0] + prob[1] * means[1]

    return predict


def mixture_flow(process: GaussianProcess, z: Tensor) -> Tensor:
    """Where the flow takes z_1: of one pixel it keeps the order, so that x has the quantile that z has."""
    one = torch.ones(1, dtype=F64)
    alpha, sigma = float(process.alpha(one)), float(process.sigma(one))

    def quantile(value: float, alpha: float, sigma: float) -> float:
        std = math.hypot(alpha * SPREAD, sigma)
        return sum(norm.cdf(value, alpha * centre, std) for centre in CENTRES) / 2

    def image(value: float) -> float:
        wanted = quantile(value, alpha, sigma)
        return brentq(lambda x: quantile(x, 1.0, 0.0) - wanted, -4, 4, xtol=1e-12)

    return torch.tensor([image(value) for value in z.flatten().tolist()], dtype=F64).view_as(z)


def noise(*, count: int = 1, height: int = 3, width: int = 4, seed: int = 1000) -> Tensor:
    return torch.randn(count, 1, height, width, dtype=F64, generator=torch.Generator().manual_seed(seed))


def draw(
    predict: PredictX0, process: GaussianProcess, z: Tensor, steps: int, sampler: Sampler, **rest: object
) -> Tensor:
    rng = generators(len(z))
    return draw_images(predict, process, z, steps=steps, sampler=sampler, rng=rng, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize(("sampler", "ratio"), [("ddim", 2.0), ("dpmpp_2m", 4.0), ("heun", 4.0)])
def test_halving_the_step_divides_the_error_as_the_order_says(sampler: Sampler, ratio: float) -> None:
    """To the exact flow of a mixture, on the levels of EDM, whose steps do not grow long anywhere."""
    process, z = PROCESSES["edm"], torch.linspace(-2, 2, 9, dtype=F64)[None, None, None]
    truth = mixture_flow(process, z)
    errors = [float((draw(mixture(process), process, z, n, sampler) - truth).abs().mean()) for n in (32, 64, 128)]
    assert errors[2] < 0.02
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 0.8 * ratio < coarse / fine < 1.3 * ratio


@pytest.mark.parametrize("sampler", SECOND_ORDER)
@pytest.mark.parametrize("name", PROCESSES)
def test_second_order_is_nearer_to_the_truth_at_twenty_steps_on_every_schedule(name: str, sampler: Sampler) -> None:
    process, z, std = PROCESSES[name], noise(), 0.5
    one = torch.ones(1, dtype=F64)
    alpha, sigma = float(process.alpha(one)), float(process.sigma(one))
    truth = 0.3 + std * (z - alpha * 0.3) / math.hypot(alpha * std, sigma)
    predict = gaussian(process, 0.3, std)
    error = float((draw(predict, process, z, 20, sampler) - truth).abs().max())
    first_order = float((draw(predict, process, z, 20, "ddim") - truth).abs().max())
    assert 0.05 < first_order < 0.2
    assert error < first_order / 2.5


def test_heun_over_sigma_as_published_fails_on_the_cosine_schedule_where_ours_does_not() -> None:
    process, z, steps = PROCESSES["cosine"], noise(), 10
    predict = gaussian(process, 0.3, 0.5)
    y = z / process.alpha(torch.ones(1, dtype=F64))  # Karras et al. 2022, algorithm 1
    path = times_of(steps, 1.0)

    def slope(y: Tensor, t: float) -> tuple[Tensor, float]:
        time = torch.tensor([t], dtype=F64)
        alpha = float(process.alpha(time))
        level = float(process.sigma(time)) / alpha
        return (y - predict(alpha * y, time)) / level, level

    for now, after in zip(path, path[1:], strict=False):
        d, level = slope(y, now)
        _, below = slope(y, after)
        d_after, _ = slope(y + (below - level) * d, after)
        y = y + (below - level) * (d + d_after) / 2
    time = torch.tensor([path[-1]], dtype=F64)
    published = predict(process.alpha(time) * y, time)
    truth = 0.3 + 0.5 * z  # up to what is left of the image at t = 1
    ours = draw(predict, process, z, steps, "heun")
    assert float((published - truth).abs().max()) > 0.5
    assert float((ours - truth).abs().max()) < 0.1


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_of_one_image_only_every_level_visited_is_exact(name: str, sampler: Sampler) -> None:
    process, z, x = PROCESSES[name], noise(), noise(seed=1001)
    eps = process.to_eps(x, z, torch.ones(1, dtype=F64))
    seen = visited(lambda z, t: x, process, z, 6, sampler)
    assert len(seen) == 6
    for at, t in seen:
        torch.testing.assert_close(at, process.diffuse(x, t, eps), rtol=0, atol=1e-12)


def visited(
    predict: PredictX0, process: GaussianProcess, z: Tensor, steps: int, sampler: Sampler, **rest: object
) -> list[tuple[Tensor, Tensor]]:
    """z_t and t of every pass."""
    seen: list[tuple[Tensor, Tensor]] = []

    def record(z: Tensor, t: Tensor) -> Tensor:
        seen.append((z, t))
        return predict(z, t)

    draw(record, process, z, steps, sampler, **rest)
    return seen


SIDE = 96  # so many pixels on a side: the error of their variance is 1.5 % (one standard deviation)
TOLERANCE = 4.5 * math.sqrt(2 / SIDE**2)


@pytest.mark.parametrize("name", PROCESSES)
def test_ancestral_samples_of_one_image_have_the_variance_of_each_level(name: str) -> None:
    """With the posterior's own variance, which is right where x is certain."""
    process, z = PROCESSES[name], noise(height=SIDE, width=SIDE)
    for at, t in visited(lambda z, t: torch.full_like(z, 0.4), process, z, 6, "ancestral"):
        rest = at - process.alpha(t) * 0.4
        assert float(rest.square().mean()) == pytest.approx(float(process.sigma(t)) ** 2, rel=TOLERANCE)


@pytest.mark.parametrize("name", PROCESSES)
def test_ancestral_samples_of_unit_variance_keep_it_with_the_wide_variance(name: str) -> None:
    """z_t is N(0, 1) at all levels where x is; then q(z_t | z_s) reversed has the variance of the forward step."""
    process, z = PROCESSES[name], noise(height=SIDE, width=SIDE)
    predict = gaussian(process, 0.0, 1.0)
    for at, _ in visited(predict, process, z, 6, "ancestral", interpolation=1.0):
        assert float(at.square().mean()) == pytest.approx(1.0, rel=TOLERANCE)
    last, _ = visited(predict, process, z, 6, "ancestral", interpolation=0.0)[-1]
    assert float(last.square().mean()) < 1 - 2 * TOLERANCE  # the narrow one loses variance over such long steps


def chain_variance(process: GaussianProcess, std: float, steps: int) -> float:
    """Variance of the last prediction, followed step by step: the denoiser of a Gaussian is linear."""
    variance = 1.0
    levels = []
    for t in times_of(steps, 1.0):
        log_snr = float(process.log_snr(torch.tensor([t], dtype=F64)))
        levels.append((math.sqrt(1 / (1 + math.exp(-log_snr))), math.sqrt(1 / (1 + math.exp(log_snr)))))
    for (a_t, s_t), (a_s, s_s) in zip(levels, levels[1:], strict=False):
        gain = a_t * std**2 / (a_t**2 * std**2 + s_t**2)
        c = 1 - (a_t * s_s / (a_s * s_t)) ** 2
        variance *= (a_s * (1 - c) / a_t + a_s * c * gain) ** 2
        variance += s_s**2 * c
    a_t, s_t = levels[-1]
    return variance * (a_t * std**2 / (a_t**2 * std**2 + s_t**2)) ** 2


@pytest.mark.parametrize("name", PROCESSES)
def test_ancestral_variance_is_that_of_the_chain_and_goes_to_the_truth(name: str) -> None:
    process, std = PROCESSES[name], 0.5
    x = draw(gaussian(process, 0.0, std), process, noise(height=SIDE, width=SIDE), 8, "ancestral")
    assert float(x.square().mean()) == pytest.approx(chain_variance(process, std, 8), rel=TOLERANCE)
    missing = [std**2 - chain_variance(process, std, steps) for steps in (8, 64, 512)]
    assert missing[0] > 0.1 and 0 < missing[2] < missing[1] / 5 < missing[0] / 15


@pytest.mark.parametrize("start", [1.0, 0.4])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_last_step_goes_to_no_noise_whatever_the_steps(sampler: Sampler, start: float) -> None:
    process, z = PROCESSES["cosine"], noise()
    predict = mixture(process)
    for steps in (1, 2, 7):
        seen = visited(predict, process, z, steps, sampler, start=start)
        assert torch.equal(draw(predict, process, z, steps, sampler, start=start), predict(*seen[-1]))
        times = [float(t) for _, t in seen]
        even = [start * (1 - k / steps) for k in range(steps)]
        if sampler == "heun":  # each but the first is where one step ends and the next begins
            even = even[:1] + [t for t in even[1:] for _ in range(2)]
        assert times == pytest.approx(even, abs=1e-12)
        assert torch.equal(seen[0][0], z)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_without_noise_in_its_prediction_has_none_in_the_result(sampler: Sampler) -> None:
    x = noise(seed=1001)
    assert torch.equal(draw(lambda z, t: x, PROCESSES["linear"], noise(), 5, sampler, interpolation=0.5), x)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(sampler: Sampler) -> None:
    process, z = PROCESSES["cosine"], noise(count=3).float()

    def predict(z: Tensor, t: Tensor) -> Tensor:  # of products and sums alone, which are rounded alike in all batches
        return 0.5 * z - t[:, None, None, None]

    def run(z: Tensor, rng: Sequence[torch.Generator]) -> Tensor:
        return draw_images(predict, process, z, steps=4, sampler=sampler, rng=rng, interpolation=0.3)

    together = run(z, generators(3))
    assert together.dtype == torch.float32
    for k in range(3):
        assert torch.equal(run(z[k : k + 1], generators(1, first=k)), together[k : k + 1])
    others = run(z, generators(3, first=5))
    assert torch.equal(others, together) == (sampler != "ancestral")


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_network_that_is_wrong_everywhere_gives_finite_images_in_float32(sampler: Sampler, prediction: str) -> None:
    for process in PROCESSES.values():

        def predict(z: Tensor, t: Tensor, process: GaussianProcess = process) -> Tensor:
            return process.to_x0(torch.full_like(z, 0.7), z, t, prediction)  # type: ignore[arg-type]

        for steps in (1, 3, 50):
            assert bool(draw(predict, process, noise().float(), steps, sampler).isfinite().all())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_are_told(sampler: Sampler) -> None:
    told: list[tuple[int, int]] = []
    draw(lambda z, t: z, PROCESSES["linear"], noise(), 3, sampler, on_step=lambda *step: told.append(step))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_noise_is_standard_normal_and_belongs_to_the_image() -> None:
    like = torch.zeros(2, 3, 64, 64)
    drawn = normal(generators(2), like)
    assert drawn.dtype == torch.float32 and not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[1:], normal(generators(1, first=1), like[:1]))
    count = drawn.numel()
    assert abs(float(drawn.mean())) < 4.5 / math.sqrt(count)
    assert float(drawn.var()) == pytest.approx(1.0, abs=4.5 * math.sqrt(2 / count))


def test_arguments_out_of_range_and_tensors_that_do_not_fit_are_refused() -> None:
    process, z = PROCESSES["cosine"], noise(count=2)

    def call(**change: object) -> Callable[[], Tensor]:
        arguments: dict[str, object] = {"steps": 2, "sampler": "ddim", "rng": generators(2), **change}
        of = arguments.pop("z", z)
        predict = arguments.pop("predict", lambda z, t: z)
        return lambda: draw_images(predict, process, of, **arguments)  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match=r"sampler = 'dpmpp2m' is unknown\. Did you mean 'dpmpp_2m'\?"):
        call(sampler="dpmpp2m")()
    with pytest.raises(ConfigError, match="steps = 0 is too few"):
        call(steps=0)()
    for start in (0.0, 1.5):
        with pytest.raises(ConfigError, match=rf"start = {start} leaves \(0, 1\]"):
            call(start=start)()
    with pytest.raises(ConfigError, match=r"interpolation = 2\.0 must lie in 0\.\.1"):
        call(interpolation=2.0)()
    for bad in (z[0], z[None], z.long()):
        with pytest.raises(ShapeError, match=r"z is torch\.\w+ \[.*\]; expected floats \[B, C, H, W\]"):
            call(z=bad)()
    with pytest.raises(ShapeError, match="rng has 1 generators for 2 images"):
        call(rng=generators(1))()
    with pytest.raises(ShapeError, match=r"predict_x0 returned \[2, 1, 3, 1\]; expected \[2, 1, 3, 4\]"):
        call(predict=lambda z, t: z[..., :1])()
