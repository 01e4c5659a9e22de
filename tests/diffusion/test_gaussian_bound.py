"""The bound beside the exact likelihood of linear denoisers, whose pixels are independent and Gaussian at all times."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import norm
from torch import Tensor

from rasterformer.diffusion.edm import make_edm
from rasterformer.diffusion.gaussian import GaussianProcess, make_gaussian
from rasterformer.diffusion.gaussian_bound import SCALES, ImageBound, _log_mass, image_bound
from rasterformer.errors import ConfigError, ShapeError

F64 = torch.float64
Numbers = NDArray[np.float64]
PROCESSES = {
    "cosine": make_gaussian("cosine"),
    "linear": make_gaussian("linear"),
    "cosine, shifted": make_gaussian("cosine", shift=-2.5),  # 5.6 levels of noise at t = 0
    "edm": make_edm(),
}
every_process = pytest.mark.parametrize("name", PROCESSES)


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + k) for k in range(count)]


class Linear(NamedTuple):
    """The denoiser of pixels N(mean, std^2). A factor other than 1 makes it wrong about any images."""

    process: GaussianProcess
    mean: float
    std: float
    factor: float = 1.0

    def gain(self, log_snr: Numbers) -> Numbers:
        """g of x0 = mean + g (z - alpha mean)."""
        alpha, variance = np.sqrt(1 / (1 + np.exp(-log_snr))), 1 / (1 + np.exp(log_snr))
        return self.factor * alpha * self.std**2 / (alpha**2 * self.std**2 + variance)

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        gain = torch.from_numpy(self.gain(self.process.log_snr(t.double()).numpy()))[:, None, None, None]
        alpha = self.process.alpha(t.double())[:, None, None, None]
        return (self.mean + gain * (z - alpha * self.mean)).to(z.dtype)


def ends(process: GaussianProcess) -> tuple[float, float]:
    clean, noisy = process.log_snr(torch.tensor([0.0, 1.0], dtype=F64)).tolist()
    return clean, noisy


def levels(log_snr: float) -> tuple[float, float]:
    return math.sqrt(1 / (1 + math.exp(-log_snr))), math.sqrt(1 / (1 + math.exp(log_snr)))


def last_marginal(model: Linear, steps: int = 20_000) -> tuple[float, float]:
    """Mean and variance of z_0 of the model, from N(0, 1) by many steps of the posterior, evenly spaced in log SNR."""
    clean, noisy = ends(model.process)
    path = np.linspace(noisy, clean, steps + 1)
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-path))), np.sqrt(1 / (1 + np.exp(path)))
    gain, c = model.gain(path[:-1]), -np.expm1(path[:-1] - path[1:])
    of_z = alpha[1:] * ((1 - c) / alpha[:-1] + c * gain)
    added = alpha[1:] * c * model.mean * (1 - gain * alpha[:-1])
    later = np.append(np.cumprod(of_z[::-1])[::-1], 1.0)  # of all steps from here on
    return float(later[1:] @ added), float(later[0] ** 2 + later[1:] ** 2 @ (sigma[1:] ** 2 * c))


def masses(level: Numbers, mean: Numbers, std: float) -> Numbers:
    """What N(mean, std^2) has between the borders of levels 0..255, with all that lies beyond at the outermost."""
    low = np.where(level == 0, -np.inf, (level - 0.5) / 127.5 - 1)
    high = np.where(level == 255, np.inf, (level + 0.5) / 127.5 - 1)
    return norm.cdf((high - mean) / std) - norm.cdf((low - mean) / std)


def decoders(model: Linear) -> list[tuple[float, float, float]]:
    """Of each part of p(x | z_0): offset and slope of its centre over z_0, and its deviation."""
    clean, _ = ends(model.process)
    alpha, sigma = levels(clean)
    gain = float(model.gain(np.array(clean)))
    offset = model.mean * (1 - gain * alpha)
    return [(0.0, 1 / alpha, sigma / alpha)] + [(offset, gain, scale * sigma / alpha) for scale in SCALES]


def exact_nats(model: Linear, images: Tensor) -> Numbers:
    """-log p(x) = -log mean over decoders of prod over pixels of int p(z_0) p_k(x_i | z_0) dz_0.

    The integral is the mass of a sum of two Gaussians between the borders of the level.
    """
    mean, variance = last_marginal(model)
    level = images.flatten(1).double().numpy()
    logs = [
        np.log(masses(level, offset + slope * mean, math.hypot(slope * math.sqrt(variance), std))).sum(1)
        for offset, slope, std in decoders(model)
    ]
    return math.log(len(logs)) - logsumexp(logs, axis=0)


def expected_nats_before_decoding(model: Linear, x: float) -> tuple[float, float]:
    """Prior and diffusion term of a pixel of value x: at every level the mean of (eps - eps_hat)^2 is known."""
    clean, noisy = ends(model.process)
    alpha, sigma = levels(noisy)
    prior = 0.5 * (alpha**2 * x**2 + sigma**2 - 1 - 2 * math.log(sigma))
    path = np.linspace(noisy, clean, 20_001)
    a, s = np.sqrt(1 / (1 + np.exp(-path))), np.sqrt(1 / (1 + np.exp(path)))
    gain = model.gain(path)
    missed = (model.mean - x) ** 2 * (1 - gain * a) ** 2 + gain**2 * s**2  # E |x0 - x|^2
    return prior, 0.5 * float(np.trapezoid(np.exp(path) * missed, path))


MODELS: dict[str, Callable[[GaussianProcess], Linear]] = {
    "perfect": lambda process: Linear(process, 0.1, 0.3),
    "of other images": lambda process: Linear(process, -0.1, 0.25),
    "weak": lambda process: Linear(process, 0.1, 0.3, factor=0.9),
}


def images_of(mean: float, std: float, count: int, side: int = 12) -> Tensor:
    x = mean + std * torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(99))
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@every_process
@pytest.mark.parametrize("model", MODELS)
def test_bound_is_not_below_the_exact_likelihood_and_near_it_for_a_perfect_denoiser(name: str, model: str) -> None:
    denoiser, copies = MODELS[model](PROCESSES[name]), 16
    images = images_of(0.1, 0.3, 2)
    many = images.repeat_interleave(copies, 0)
    draws = image_bound(denoiser, denoiser.process, many, rng=generators(len(many)), strata=16).nats.view(2, copies)
    error = draws.std(1).numpy() / math.sqrt(copies)
    above = draws.mean(1).numpy() - exact_nats(denoiser, images)
    assert (above > -4 * error).all()
    if model == "weak":
        assert (above > 2 * error).all()
    else:  # of EDM, z_0 has less noise than half a level: of a Gaussian's denoiser, it then seems to come from nowhere
        assert (above < (0.2 if name == "edm" else 0.03) * images[0].numel() + 4 * error).all()


@every_process
@pytest.mark.parametrize("model", MODELS)
def test_prior_and_diffusion_are_their_integrals(name: str, model: str) -> None:
    denoiser, copies, side = MODELS[model](PROCESSES[name]), 16, 8
    for level in (40, 200):
        images = torch.full((copies, 1, side, side), level, dtype=torch.uint8)
        got = image_bound(denoiser, denoiser.process, images, rng=generators(copies), strata=24)
        prior, diffusion = (nats * side**2 for nats in expected_nats_before_decoding(denoiser, level / 127.5 - 1))
        assert got.prior.tolist() == pytest.approx([prior] * copies, rel=1e-5, abs=1e-9)
        error = float(got.diffusion.std()) / math.sqrt(copies)
        assert error < 0.05 * diffusion
        assert float(got.diffusion.mean()) == pytest.approx(diffusion, abs=4.5 * error)
        assert torch.equal(got.nats, got.prior + got.diffusion + got.reconstruction)


def test_strata_take_away_variance_and_no_more() -> None:
    denoiser, copies, side = MODELS["perfect"](PROCESSES["cosine"]), 400, 4
    images = torch.full((copies, 1, side, side), 150, dtype=torch.uint8)
    _, diffusion = expected_nats_before_decoding(denoiser, 150 / 127.5 - 1)
    deviations = []
    for strata in (1, 4):
        draws = image_bound(denoiser, denoiser.process, images, rng=generators(copies), strata=strata).diffusion
        deviations.append(float(draws.std()))
        assert float(draws.mean()) == pytest.approx(diffusion * side**2, abs=4.5 * deviations[-1] / math.sqrt(copies))
    assert deviations[1] < deviations[0] / 2


@every_process
@pytest.mark.parametrize("denoiser", ["perfect", "nonsense"])
def test_reconstruction_is_its_mean_over_z_0(name: str, denoiser: str) -> None:
    """By the trapezoidal rule over z_0 of a single pixel; the outermost levels reach to infinity."""
    model = Linear(PROCESSES[name], 0.1, 0.3) if denoiser == "perfect" else Linear(PROCESSES[name], 5.0, 1e-9)
    copies = 300
    clean, _ = ends(model.process)
    alpha, sigma = levels(clean)
    for level in (0, 130, 255):
        images = torch.full((copies, 1, 1, 1), level, dtype=torch.uint8)
        got = image_bound(model, model.process, images, rng=generators(copies), strata=1).reconstruction
        z = alpha * (level / 127.5 - 1) + sigma * np.linspace(-6, 6, 20_001)
        prob = norm.pdf(np.linspace(-6, 6, 20_001)) * 12 / 20_000
        parts = [masses(np.array(level), offset + slope * z, std) for offset, slope, std in decoders(model)]
        expected = float(prob @ -np.log(np.mean(parts, axis=0)))
        assert float(got.mean()) == pytest.approx(expected, abs=4.5 * float(got.std()) / math.sqrt(copies) + 1e-6)


@pytest.mark.parametrize("std", [1e-4, 0.01, 1.0])
@pytest.mark.parametrize("mean", [-3.0, -1.0, 0.123, 1.0])
def test_masses_of_all_levels_sum_to_one(mean: float, std: float) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    logs = _log_mass(images, torch.full((256, 1, 1, 1), mean, dtype=F64), std, torch.ones(256, 1, 1, 1))
    assert float(logs.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    assert not bool(logs.isnan().any()) and float(logs[100]) < 0  # far away it is small, and not 0


@every_process
def test_a_denoiser_that_knows_the_image_pays_next_to_nothing(name: str) -> None:
    process, images = PROCESSES[name], images_of(0.1, 0.3, 2)
    x = images.float() / 127.5 - 1
    got = image_bound(lambda z, t: x, process, images, rng=generators(2), strata=4)
    assert float(got.diffusion.max()) < 1e-3
    # it does not know what it knows: one of six decoders is as sure, but where much noise is left
    assert -1e-12 <= float(got.reconstruction.min())
    assert float(got.reconstruction.max()) <= math.log(6) + (0.5 * x[0].numel() if "shifted" in name else 0.1)


def test_each_image_visits_every_stratum_once_and_then_the_clean_end() -> None:
    process, seen = PROCESSES["cosine"], []

    def record(z: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return z

    image_bound(record, process, images_of(0.0, 0.3, 5), rng=generators(5), strata=6)
    clean, noisy = ends(process)
    assert len(seen) == 7 and torch.equal(seen[-1], torch.zeros(5))
    for k, t in enumerate(seen[:-1]):
        place = (clean - process.log_snr(t.double())) / (clean - noisy) * 6
        assert bool((place > k - 1e-4).all()) and bool((place < k + 1 + 1e-4).all())
        assert len(set(t.tolist())) == 5  # of its own


def test_an_image_does_not_depend_on_its_batch() -> None:
    denoiser, images = MODELS["perfect"](PROCESSES["linear"]), images_of(0.1, 0.3, 3, side=4)
    together = image_bound(denoiser, denoiser.process, images, rng=generators(3), strata=3).nats
    for k in range(3):
        alone = image_bound(denoiser, denoiser.process, images[k : k + 1], rng=generators(1, k), strata=3).nats
        torch.testing.assert_close(
            alone, together[k : k + 1], rtol=1e-6, atol=0
        )  # sums are rounded as they are laid out
    others = image_bound(denoiser, denoiser.process, images, rng=generators(3, 7), strata=3).nats
    assert not bool(torch.isclose(together, others, rtol=1e-3).any())


def bound_by_loops(model: Linear, image: Tensor, known: Tensor, seed: int, strata: int) -> tuple[float, float, float]:
    """Prior, diffusion and reconstruction term of the unknown values of one image, value by value.

    The stream is drawn as `image_bound` says: a place and noise in each stratum, then the noise of z_0.
    """
    rng = torch.Generator().manual_seed(seed)
    clean, noisy = ends(model.process)
    places = []
    for stratum in range(strata):
        place = float(torch.rand((), dtype=F64, generator=rng))
        places.append((clean + (noisy - clean) * (stratum + place) / strata, torch.randn(image.shape, generator=rng)))
    noise_0 = torch.randn(image.shape, generator=rng)
    prior, diffusion = 0.0, 0.0
    logs = [0.0] * len(decoders(model))
    for c, row, col in np.ndindex(*image.shape):
        if known[row, col]:
            continue
        level = float(image[c, row, col])
        x = level / 127.5 - 1
        alpha, sigma = levels(noisy)
        prior += 0.5 * (alpha**2 * x**2 + sigma**2 - 1 - math.log(sigma**2))
        for log_snr, noise in places:
            alpha, sigma = levels(log_snr)
            eps = float(noise[c, row, col])
            z, gain = alpha * x + sigma * eps, float(model.gain(np.array(log_snr)))
            x0 = model.mean + gain * (z - alpha * model.mean)
            diffusion += 0.5 * (clean - noisy) / strata * ((z - alpha * x0) / sigma - eps) ** 2
        alpha, sigma = levels(clean)
        z = alpha * x + sigma * float(noise_0[c, row, col])
        for k, (offset, slope, std) in enumerate(decoders(model)):
            with np.errstate(divide="ignore"):  # a decoder far away has a mass of 0 here: the others decide
                logs[k] += float(np.log(masses(np.array(level), np.array(offset + slope * z), std)))
    return prior, diffusion, math.log(len(logs)) - float(logsumexp(logs))


@every_process
def test_known_pixels_do_not_count(name: str) -> None:
    denoiser, images = MODELS["weak"](PROCESSES[name]), images_of(0.1, 0.3, 2, side=4).expand(-1, 3, -1, -1)
    known = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(5)) < 0.5
    got = image_bound(denoiser, denoiser.process, images, rng=generators(2), strata=3, known=known)
    for k in range(2):
        expected = bound_by_loops(denoiser, images[k], known[k], k, 3)
        found = (float(got.prior[k]), float(got.diffusion[k]), float(got.reconstruction[k]))
        # the bound draws in float32: at high SNR what is left of eps after subtraction has few digits
        assert found == pytest.approx(expected, rel=2e-3)


def test_what_is_known_and_what_is_not_add_up_and_nothing_costs_nothing() -> None:
    denoiser, images = MODELS["perfect"](PROCESSES["cosine"]), images_of(0.1, 0.3, 2, side=4)
    known = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(5)) < 0.5

    def bound(mask: Tensor | None) -> ImageBound:
        return image_bound(denoiser, denoiser.process, images, rng=generators(2), strata=3, known=mask)

    whole, parts = bound(None), (bound(known), bound(~known))
    for term in ("prior", "diffusion"):
        torch.testing.assert_close(getattr(parts[0], term) + getattr(parts[1], term), getattr(whole, term))
    torch.testing.assert_close(bound(torch.zeros_like(known)).nats, whole.nats, rtol=0, atol=0)
    nothing = bound(torch.ones_like(known))
    torch.testing.assert_close(nothing.nats, torch.zeros(2, dtype=F64), rtol=0, atol=1e-12)


def test_a_known_pixel_changes_the_bound_only_by_what_the_denoiser_makes_of_it() -> None:
    """A denoiser of single pixels makes nothing of it; one that looks at the mean of the image does."""
    process, images = PROCESSES["cosine"], images_of(0.1, 0.3, 1, side=4)
    known = torch.zeros(1, 4, 4, dtype=torch.bool)
    known[0, 1, 2] = True
    changed = images.clone()
    changed[0, 0, 1, 2] = 255 - changed[0, 0, 1, 2]
    single = MODELS["perfect"](process)

    def whole(z: Tensor, t: Tensor) -> Tensor:
        return single(z, t) + 0.1 * z.mean((1, 2, 3), keepdim=True)

    for denoiser, is_same in ((single, True), (whole, False)):
        before, after = (
            image_bound(denoiser, process, one, rng=generators(1), strata=2, known=known).nats
            for one in (images, changed)
        )
        assert torch.equal(before, after) is is_same


def test_a_mask_that_does_not_fit_is_refused() -> None:
    process, images = PROCESSES["cosine"], torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    for shape, dtype in (
        ((2, 5, 4), torch.bool),
        ((1, 4, 5), torch.bool),
        ((2, 3, 4, 5), torch.bool),
        ((2, 4, 5), F64),
    ):
        with pytest.raises(
            ShapeError, match=rf"known is {dtype} \[{', '.join(map(str, shape))}\]; it must be torch.bool"
        ):
            image_bound(
                lambda z, t: z, process, images, rng=generators(2), strata=2, known=torch.zeros(shape, dtype=dtype)
            )


def test_tensors_that_do_not_fit_and_strata_out_of_range_are_refused() -> None:
    process, images = PROCESSES["cosine"], torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    for wrong in (images[0], images[None], images.float()):
        with pytest.raises(ShapeError, match=r"images is torch\.\w+ \[.*\]; expected torch\.uint8 \[B, C, H, W\]"):
            image_bound(lambda z, t: z, process, wrong, rng=generators(2), strata=2)
    with pytest.raises(ShapeError, match="rng has 1 generators for 2 images"):
        image_bound(lambda z, t: z, process, images, rng=generators(1), strata=2)
    with pytest.raises(ShapeError, match=r"predict_x0 returned \[2, 1, 4, 5\]; expected \[2, 3, 4, 5\]"):
        image_bound(lambda z, t: z[:, :1], process, images, rng=generators(2), strata=2)
    with pytest.raises(ConfigError, match="strata = 0 is too few"):
        image_bound(lambda z, t: z, process, images, rng=generators(2), strata=0)
