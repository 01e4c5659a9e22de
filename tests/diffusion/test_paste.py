"""In-painting: marginals of re-noised images by their variance, conditionals of correlated pixels by their formula."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rasterformer.diffusion.edm import make_edm
from rasterformer.diffusion.gaussian import GaussianProcess, make_gaussian
from rasterformer.diffusion.paste import fill_images, renoise
from rasterformer.errors import ConfigError, ShapeError

F64 = torch.float64
PROCESSES = {"cosine": make_gaussian("cosine"), "linear": make_gaussian("linear"), "edm": make_edm()}
SIDE = 128
TOLERANCE = 4.5 * math.sqrt(2 / SIDE**2)  # of the variance of as many normal numbers
STD, CORRELATION = 0.5, 0.9  # of pixel pairs


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + k) for k in range(count)]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(1000 + seed))


def times(t: float) -> Tensor:
    return torch.tensor([t], dtype=F64)


def as_published(process: GaussianProcess, z: Tensor, s: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """What lucidrains/imagen-pytorch does: it subtracts deviations."""
    scale = process.alpha(t) / process.alpha(s)
    return scale * z + (process.sigma(t) - scale * process.sigma(s)) * noise


def has_the_marginal(
    back: Callable[[GaussianProcess, Tensor, Tensor, Tensor, Tensor], Tensor], name: str, s: float, t: float
) -> bool:
    """Whether z_s ~ q(z_s | x) that is taken forward is q(z_t | x), by mean and variance."""
    process, x = PROCESSES[name], torch.full((1, 1, SIDE, SIDE), 0.6, dtype=F64)
    z_s = process.diffuse(x, times(s), randn(*x.shape, seed=0))
    rest = back(process, z_s, times(s), times(t), randn(*x.shape, seed=1)) - process.alpha(times(t)) * x
    sigma = float(process.sigma(times(t)))
    unbiased = abs(float(rest.mean())) < 4.5 * sigma / SIDE
    return unbiased and abs(float(rest.square().mean()) / sigma**2 - 1) < TOLERANCE


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("s", "t"), [(0.3, 0.35), (0.5, 0.75), (0.0, 0.2), (0.9, 1.0)])
def test_renoised_images_have_the_right_variance_and_the_popular_formula_fails_the_same_test(
    name: str, s: float, t: float
) -> None:
    assert has_the_marginal(renoise, name, s, t)
    if 0 < s and t < 1:  # from next to no noise and to nothing else, both are right
        assert not has_the_marginal(as_published, name, s, t)


def test_the_popular_formula_adds_a_fraction_of_the_noise() -> None:
    process = PROCESSES["cosine"]
    for s in (0.2, 0.5, 0.9):
        zero, one = torch.zeros(1, 1, 1, 1, dtype=F64), torch.ones(1, 1, 1, 1, dtype=F64)
        wrong, right = (float(back(process, zero, times(s), times(s + 0.01), one)) for back in (as_published, renoise))
        assert 0.1 < wrong / right < 0.35


def pairs(process: GaussianProcess) -> Callable[[Tensor, Tensor], Tensor]:
    """E[x | z_t] of images whose left and right halves are made of correlated Gaussian pairs, by 2 x 2 algebra."""
    turned = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=F64) / math.sqrt(2)
    variances = STD**2 * torch.tensor([1 + CORRELATION, 1 - CORRELATION], dtype=F64)

    def predict(z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = float(process.alpha(t[:1])), float(process.sigma(t[:1]))
        gain = turned @ torch.diag(alpha * variances / (alpha**2 * variances + sigma**2)) @ turned
        both = torch.stack(z.chunk(2, -1), -1) @ gain.to(z)
        return torch.cat(both.unbind(-1), -1)

    return predict


def fill_pairs(name: str, resamplings: int, steps: int = 20) -> tuple[float, float]:
    """Slope of the drawn half over the known one, and the variance about it."""
    process = PROCESSES[name]
    x = STD * randn(1, 1, 32, 64, seed=2)
    known = torch.zeros(1, 32, 64, dtype=torch.bool)
    known[..., :32] = True
    x[..., 32:] = math.nan
    filled = fill_images(
        pairs(process),
        process,
        randn(1, 1, 32, 64, seed=3),
        x,
        known,
        steps=steps,
        rng=generators(1),
        resamplings=resamplings,
    )
    given, drawn = filled.chunk(2, -1)
    assert torch.equal(given, x[..., :32])
    slope = float((given * drawn).sum() / given.square().sum())
    return slope, float((drawn - slope * given).square().mean())


@pytest.mark.parametrize("name", PROCESSES)
def test_resampling_brings_the_drawn_pixels_nearer_to_their_conditional_distribution(name: str) -> None:
    slope, _ = fill_pairs(name, 1)
    nearer, _ = fill_pairs(name, 3)
    nearest, variance = fill_pairs(name, 8)
    assert slope < nearer < nearest < CORRELATION
    assert CORRELATION - nearest < 0.7 * (CORRELATION - slope)
    # twenty steps are too few for all of it
    assert 0.5 < variance / (STD**2 * (1 - CORRELATION**2)) < 1.5


def test_known_pixels_come_back_exactly_and_nothing_else_of_the_image_matters() -> None:
    process, noise = PROCESSES["cosine"], randn(2, 3, 4, 4, seed=4).float()
    x = randn(2, 3, 4, 4, seed=5).float()
    known = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    run = [
        fill_images(lambda z, t: 0.5 * z, process, noise, filler, known, steps=3, rng=generators(2), resamplings=2)
        for filler in (x, torch.where(known[:, None], x, math.inf))
    ]
    where = known[:, None].expand_as(x)
    assert torch.equal(run[0], run[1]) and torch.equal(run[0][where], x[where])
    assert run[0].dtype == torch.float32 and bool((run[0] != x)[~where].all())
    all_known = torch.ones_like(known)
    got = fill_images(lambda z, t: 0.5 * z, process, noise, x, all_known, steps=3, rng=generators(2))
    assert torch.equal(got, x)


def test_the_network_sees_known_pixels_with_the_noise_of_its_time() -> None:
    # of a process that leaves something of the image at t = 1, so that the first pass is seen too
    process, x = make_edm(sigma_max=2.0), torch.full((1, 1, SIDE, SIDE), 0.6, dtype=F64)
    known = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    seen: list[tuple[Tensor, Tensor]] = []

    def record(z: Tensor, t: Tensor) -> Tensor:
        seen.append((z, t))
        return torch.zeros_like(z)  # a prediction that knows nothing of the image

    fill_images(record, process, randn(1, 1, SIDE, SIDE, seed=6), x, known, steps=3, rng=generators(1), resamplings=2)
    assert [float(t) for _, t in seen] == pytest.approx([1, 1, 2 / 3, 2 / 3, 1 / 3], abs=1e-12)
    for z, t in seen:
        rest, sigma = z - process.alpha(t) * x, float(process.sigma(t))
        assert abs(float(rest.mean())) < 4.5 * sigma / SIDE
        assert float(rest.square().mean()) == pytest.approx(sigma**2, rel=TOLERANCE)


def test_an_image_does_not_depend_on_its_batch() -> None:
    process, noise, x = PROCESSES["cosine"], randn(3, 1, 4, 4, seed=7).float(), randn(3, 1, 4, 4, seed=8).float()
    known = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.5

    def run(rows: slice, first: int) -> Tensor:
        count = len(noise[rows])
        return fill_images(
            lambda z, t: 0.5 * z,
            process,
            noise[rows],
            x[rows],
            known[rows],
            steps=3,
            rng=generators(count, first),
            resamplings=2,
            interpolation=0.4,
        )

    together = run(slice(None), 0)
    assert all(torch.equal(run(slice(k, k + 1), k), together[k : k + 1]) for k in range(3))


def test_passes_are_told() -> None:
    told: list[tuple[int, int]] = []
    noise = torch.zeros(1, 1, 2, 2)
    known = torch.zeros(1, 2, 2, dtype=torch.bool)
    fill_images(
        lambda z, t: z,
        PROCESSES["linear"],
        noise,
        noise,
        known,
        steps=3,
        rng=generators(1),
        resamplings=2,
        on_step=lambda *step: told.append(step),
    )
    assert told == [(k, 5) for k in range(1, 6)]


def test_arguments_out_of_range_and_tensors_that_do_not_fit_are_refused() -> None:
    process, good = PROCESSES["cosine"], torch.zeros(2, 3, 4, 5)
    mask = torch.zeros(2, 4, 5, dtype=torch.bool)

    def call(
        noise: Tensor = good,
        x: Tensor = good,
        known: Tensor = mask,
        count: int = 2,
        predict: Callable[[Tensor, Tensor], Tensor] = lambda z, t: z,
        **options: float,
    ) -> Tensor:
        arguments: dict[str, Any] = {"steps": 1, **options}
        return fill_images(predict, process, noise, x, known, rng=generators(count), **arguments)

    for wrong in (good[:1], good[0], good[..., :4]):
        with pytest.raises(
            ShapeError, match=r"x \[.*\] and known torch\.bool \[2, 4, 5\] do not fit noise \[2, 3, 4, 5\]"
        ):
            call(x=wrong)
    for wrong in (mask[:1], mask[0], mask[:, None], mask.float()):
        with pytest.raises(ShapeError, match=r"do not fit noise \[2, 3, 4, 5\]; expected .* torch\.bool \[2, 4, 5\]"):
            call(known=wrong)
    with pytest.raises(ShapeError, match=r"z is torch\.float32 \[3, 4, 5\]; expected floats \[B, C, H, W\]"):
        call(noise=good[0])
    with pytest.raises(ShapeError, match="rng has 3 generators for 2 images"):
        call(count=3)
    with pytest.raises(ShapeError, match=r"predict_x0 returned \[2, 1, 4, 5\]; expected \[2, 3, 4, 5\]"):
        call(predict=lambda z, t: z[:, :1])
    with pytest.raises(ConfigError, match="steps = 0 is too few"):
        call(steps=0)
    with pytest.raises(ConfigError, match="resamplings = 0 is too few"):
        call(resamplings=0)
    with pytest.raises(ConfigError, match=r"interpolation = -1 must lie in 0\.\.1"):
        call(interpolation=-1)
    t = torch.tensor([0.5, 0.6])
    for wrong in (good[:1], good[0]):
        with pytest.raises(ShapeError, match=r"do not fit\. Pass images \[B, C, H, W\] of one shape"):
            renoise(process, good, t / 2, t, wrong)
        with pytest.raises(ShapeError, match=r"do not fit\. Pass images \[B, C, H, W\] of one shape"):
            renoise(process, wrong, t / 2, t, good)
    with pytest.raises(ConfigError, match=r"are no times of a step\. Pass 0 <= s < t <= 1"):
        renoise(process, good, t, t, good)
