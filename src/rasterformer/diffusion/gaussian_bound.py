"""The variational bound of a denoiser on uint8 images, in continuous time (Kingma et al. 2021, VDM, sections 4 and 5).

-log p(x) <= KL(q(z_1 | x) || N(0, 1)) + 1/2 int |eps - eps_hat(z, t)|^2 dlogSNR + E[-log p(x | z_0)], the integral over
the log SNR from time 1 to 0. The model it is about draws with infinitely many steps of the posterior's variance,
without guidance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.special import log_ndtr

from rasterformer.diffusion.gaussian import GaussianProcess
from rasterformer.diffusion.samplers import PredictX0, checked, normal
from rasterformer.errors import ConfigError, ShapeError

SCALES = (1.0, 0.5, 0.25, 0.125, 0.0625)  # of the noise that is left at t = 0


@dataclass(frozen=True)
class ImageBound:
    """An estimate of the bound, in nats of each image, float64 [B]; its expectation is at least -log p(x).

    Args:
        prior: what z_1 still knows of the image.
        diffusion: what the denoiser misses on the way.
        reconstruction: -log p(x | z_0), of 256 levels a pixel and channel.
    """

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor

    @property
    def nats(self) -> Tensor:
        """The sum, float64 [B]."""
        return self.prior + self.diffusion + self.reconstruction


@torch.no_grad()
def image_bound(
    predict_x0: PredictX0,
    process: GaussianProcess,
    images: Tensor,
    *,
    rng: Sequence[torch.Generator],
    strata: int,
    known: Tensor | None = None,
) -> ImageBound:
    """An unbiased estimate of the bound on -log p(x), all its terms included.

    The range of the log SNR is cut in `strata` of equal length; each image visits one point of each, uniformly drawn,
    and a draw of z_0. The integral over the log SNR is the paper's over time, whatever the schedule between the ends
    (section 5.1). An image's estimate depends on its own generator and not on the batch.

    Args:
        predict_x0: the denoiser, strata + 1 passes; it may be clipped to -1..1, but not guided.
        process: its log SNR at both ends is the model's.
        images: x, uint8 [B, C, H, W].
        rng: B generators, on the CPU.
        strata: at least 1; more of them, less noise.
        known: bool [B, H, W], pixels that the denoiser is told besides: the bound is then that of the others given these, which
            stand in z with noise that is drawn for them. None: none.

    Raises:
        ShapeError: images or known of another shape or dtype; not one generator per image; a prediction of another shape.
        ConfigError: strata below 1.
    """
    if images.dim() != 4 or images.dtype != torch.uint8:
        raise ShapeError(f"images is {images.dtype} {list(images.shape)}; expected torch.uint8 [B, C, H, W].")
    if strata < 1:
        raise ConfigError(f"strata = {strata} is too few. Use at least 1.")
    if known is not None and (known.dtype != torch.bool or known.shape != (len(images), *images.shape[2:])):
        raise ShapeError(
            f"known is {known.dtype} {list(known.shape)}; it must be torch.bool, one value for each pixel of images."
        )
    counted = torch.ones_like(images[:, :1], dtype=torch.bool) if known is None else ~known[:, None]  # [B, 1, H, W]
    x = images.float() / 127.5 - 1
    denoise = checked(predict_x0, x, rng)
    clean, noisy = process.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    diffusion = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for stratum in range(strata):
        place = torch.stack([torch.rand((), dtype=torch.float64, generator=one) for one in rng])
        t = process.time(clean + (noisy - clean) * (stratum + place) / strata).float().to(x.device)
        noise = normal(rng, x)
        z = process.diffuse(x, t, noise)
        error = (process.to_eps(denoise(z, t), z, t) - noise).double().square()
        diffusion += 0.5 * (clean - noisy) / strata * (error * counted).flatten(1).sum(1)
    reconstruction = _reconstruction_nats(denoise, process, images, x, rng, counted)
    return ImageBound(_prior_nats(x, noisy, counted), diffusion, reconstruction)


def _prior_nats(x: Tensor, log_snr: float, counted: Tensor) -> Tensor:
    """KL(N(alpha x, sigma^2) || N(0, 1)) at t = 1, [B]."""
    alpha_squared = 1 / (1 + math.exp(-log_snr))
    per_value = alpha_squared * x.double().square() - alpha_squared - math.log1p(-alpha_squared)
    return 0.5 * (per_value * counted).flatten(1).sum(1)


def _reconstruction_nats(
    predict_x0: PredictX0,
    process: GaussianProcess,
    images: Tensor,
    x: Tensor,
    rng: Sequence[torch.Generator],
    counted: Tensor,
) -> Tensor:
    """-log p(x | z_0) of one draw of z_0, [B].

    p(x | z_0) is the mean of six distributions of an image: pixels and channels independent, each the mass of a normal
    distribution between the levels' borders, the outermost levels reaching to infinity. One is centred at z_0 / alpha_0
    with the deviation sigma_0 / alpha_0, the others at the denoiser's x0 with `SCALES` of it. The first is VDM's
    decoder (section 3.3, there q(z_0 | x) over its sum of all levels), which asks no network. What a network knows
    besides costs log 6 = 1.8 nats of an image at most, with no deviation to be fitted.
    """
    t = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    z = process.diffuse(x, t, normal(rng, x))
    end = torch.zeros(1, dtype=torch.float64)
    alpha, sigma = float(process.alpha(end)), float(process.sigma(end))
    x0 = predict_x0(z, t).double()
    nets = [_log_mass(images, x0, scale * sigma / alpha, counted) for scale in SCALES]
    mixed = torch.stack([_log_mass(images, z.double() / alpha, sigma / alpha, counted), *nets])  # [6, B]
    return math.log(len(mixed)) - mixed.logsumexp(0)


def _log_mass(images: Tensor, mean: Tensor, std: float, counted: Tensor) -> Tensor:
    """log of the mass of N(mean, std^2) between the borders of the images' levels, summed over each image, [B]."""
    level = images.double()
    low = torch.where(images == 0, -torch.inf, (level - 0.5) / 127.5 - 1 - mean) / std
    high = torch.where(images == 255, torch.inf, (level + 0.5) / 127.5 - 1 - mean) / std
    flipped = low > 0  # the mass above 0 is that below it, where small numbers have all their digits
    low, high = torch.where(flipped, -high, low), torch.where(flipped, -low, high)
    log_low: Tensor = log_ndtr(low)
    log_high: Tensor = log_ndtr(high)
    return ((log_high + torch.log1p(-(log_low - log_high).exp())) * counted).flatten(1).sum(1)
