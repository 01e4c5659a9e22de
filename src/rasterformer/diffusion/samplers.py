"""Drawing images from a denoiser: from noise to an image without noise, in any number of steps.

All samplers have one signature and visit the same evenly spaced times. The last step goes to exactly no noise: it
returns the prediction of the image at the last time visited. Guidance and thresholding (`thresholding.py`) belong to
the prediction that is passed in; in-painting is in `paste.py`. Image k does not depend on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from rasterformer.diffusion.gaussian import GaussianProcess, check_interpolation, per_image
from rasterformer.errors import ConfigError, ShapeError, did_you_mean
from rasterformer.interfaces import OnStep

Sampler = Literal["ancestral", "ddim", "dpmpp_2m", "heun"]
PredictX0 = Callable[[Tensor, Tensor], Tensor]  # z_t [B, C, H, W] and t [B], in the dtype of z -> x0 [B, C, H, W]


def times_of(steps: int, start: float) -> list[float]:
    """Returns the times at which a network is asked: start (1 - k / steps), k = 0..steps - 1.

    Raises:
        ConfigError: steps below 1, or start not above 0 and up to 1.
    """
    if steps < 1:
        raise ConfigError(f"steps = {steps} is too few. Use at least 1.")
    if not 0 < start <= 1:
        raise ConfigError(f"start = {start} leaves (0, 1]. 1 starts from noise, less from an image with noise.")
    return [start * (steps - k) / steps for k in range(steps)]


def normal(rng: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Returns standard normal numbers like the images `like`, from one generator per image, on the CPU."""
    drawn = [torch.randn(like.shape[1:], dtype=like.dtype, generator=one) for one in rng]
    return torch.stack(drawn).to(like.device)


@torch.no_grad()
def draw_images(
    predict_x0: PredictX0,
    process: GaussianProcess,
    z: Tensor,
    *,
    steps: int,
    sampler: Sampler,
    rng: Sequence[torch.Generator],
    interpolation: float = 0.0,
    start: float = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draws images by following a denoiser down from the time `start`.

    - `ancestral`: a random draw of the reverse step at each time (Ho et al. 2020, algorithm 2; Saharia et al. 2022).
    - `ddim`: keeps the image and the noise that are predicted (Song et al. 2021, equation 12 with eta 0). First order.
    - `dpmpp_2m`: extrapolates the image that is predicted from the last two (Lu et al. 2022, DPM-Solver++, algorithm
      2). Second order at the cost of the first.
    - `heun`: takes the mean of the slopes at both ends of a step, the second one where `ddim` would go (Karras et al.
      2022, algorithm 1). Second order, 2 steps - 1 passes. The slope is v = dz / d phi over the angle phi = atan(sigma
      / alpha) (Salimans & Ho 2022, appendix D), where the paper has that over sigma / alpha. The latter is 1808 at the
      noisy end of the cosine schedule, and 13 one step of 20 later: over so long a step it multiplies changes of the
      prediction by 70.

    Args:
        predict_x0: the denoiser, once per step; `heun` twice but for the last.
        process: turns times into noise levels.
        z: z_start, float [B, C, H, W]: standard normal noise for start 1, else an image with noise
            (`GaussianProcess.diffuse`).
        steps: of time, at least 1; each of start / steps.
        sampler: one of the four.
        rng: B generators, on the CPU. Only `ancestral` takes something from them.
        interpolation: of `ancestral`, the variance of a step (`GaussianProcess.posterior`); 0..1.
        start: above 0, up to 1.
        on_step: told (steps done, steps) after each step.

    Returns:
        x, [B, C, H, W] of the dtype of z; not clipped.

    Raises:
        ShapeError: z is no batch of images; not one generator per image; a prediction of another shape than z.
        ConfigError: an unknown sampler; steps, start or interpolation out of range.
    """
    if sampler not in get_args(Sampler):
        raise ConfigError(f"sampler = {sampler!r} is unknown.{did_you_mean(sampler, get_args(Sampler))}")
    check_interpolation(interpolation)
    path = [_level(process, t) for t in times_of(steps, start)]
    denoise = checked(predict_x0, z, rng)

    def predict(z: Tensor, level: _Level) -> Tensor:
        return denoise(z, z.new_full((len(z),), level.t))

    if sampler == "ancestral":
        chain = _ancestral(predict, z, path, process, interpolation, rng)
    else:
        chain = {"ddim": _ddim, "dpmpp_2m": _dpmpp_2m, "heun": _heun}[sampler](predict, z, path)
    for done, reached in enumerate(chain, 1):
        z = reached
        if on_step is not None:
            on_step(done, steps)
    x = predict(z, path[-1])
    if on_step is not None:
        on_step(steps, steps)
    return x


def checked(predict_x0: PredictX0, z: Tensor, rng: Sequence[torch.Generator]) -> PredictX0:
    """Returns the denoiser of batches like z, with its answers checked and in the dtype of z.

    Raises:
        ShapeError: z is no batch of images; not one generator per image. When called: a prediction of another shape.
    """
    if z.dim() != 4 or not z.is_floating_point():
        raise ShapeError(f"z is {z.dtype} {list(z.shape)}; expected floats [B, C, H, W].")
    if len(rng) != len(z):
        raise ShapeError(f"rng has {len(rng)} generators for {len(z)} images. Pass one per image.")

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        x0 = predict_x0(z, t)
        if x0.shape != z.shape:
            raise ShapeError(f"predict_x0 returned {list(x0.shape)}; expected {list(z.shape)}, the shape of z.")
        return x0.to(z.dtype)

    return denoise


class _Level(NamedTuple):
    """A time and what it means, the same for all images."""

    t: float
    log_snr: float
    alpha: float
    sigma: float


def _level(process: GaussianProcess, t: float) -> _Level:
    time = torch.tensor([t], dtype=torch.float64)
    return _Level(t, float(process.log_snr(time)), float(process.alpha(time)), float(process.sigma(time)))


_Predict = Callable[[Tensor, _Level], Tensor]


def _ancestral(
    predict: _Predict,
    z: Tensor,
    path: list[_Level],
    process: GaussianProcess,
    interpolation: float,
    rng: Sequence[torch.Generator],
) -> Iterator[Tensor]:
    for now, after in pairwise(path):
        t, s = (torch.full((len(z),), level.t, dtype=torch.float64) for level in (now, after))
        mean, std = process.posterior(z, predict(z, now), t, s, interpolation=interpolation)
        z = mean + per_image(std, z) * normal(rng, z)
        yield z


def _ddim(predict: _Predict, z: Tensor, path: list[_Level]) -> Iterator[Tensor]:
    for now, after in pairwise(path):
        z = _toward(z, predict(z, now), now, after)
        yield z


def _toward(z: Tensor, x0: Tensor, now: _Level, after: _Level) -> Tensor:
    """alpha_s x0 + sigma_s eps, with the eps that leads from x0 to z."""
    ratio = after.sigma / now.sigma
    return ratio * z + (after.alpha - ratio * now.alpha) * x0


def _dpmpp_2m(predict: _Predict, z: Tensor, path: list[_Level]) -> Iterator[Tensor]:
    before: tuple[Tensor, float] | None = None
    for now, after in pairwise(path):
        x0 = predict(z, now)
        length = after.log_snr - now.log_snr
        ahead = x0 if before is None else x0 + (x0 - before[0]) * (length / (2 * before[1]))
        before = x0, length
        z = _toward(z, ahead, now, after)
        yield z


def _heun(predict: _Predict, z: Tensor, path: list[_Level]) -> Iterator[Tensor]:
    def slope(z: Tensor, level: _Level) -> Tensor:  # v = alpha eps - sigma x0, where eps = (z - alpha x0) / sigma
        return (level.alpha * z - predict(z, level)) / level.sigma

    for now, after in pairwise(path):
        turn = math.atan2(after.sigma, after.alpha) - math.atan2(now.sigma, now.alpha)
        v = slope(z, now)
        there = math.cos(turn) * z + math.sin(turn) * v  # as `_toward` goes
        z = z + turn / 2 * (v + slope(there, after))
        yield z
