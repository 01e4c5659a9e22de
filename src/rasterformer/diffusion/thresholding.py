"""What is done to a prediction before a sampler follows it: guidance, and keeping images in -1..1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rasterformer.conditioning.guidance import combine
from rasterformer.errors import ConfigError, ShapeError

PERCENTILE = 99.5  # Saharia et al. 2022, figure A.10


def clip_static(x0: Tensor) -> Tensor:
    """Returns x0 clipped to -1..1 (static thresholding, Saharia et al. 2022, section 2.3). x0: float, any shape."""
    return x0.clamp(-1, 1)


def clip_dynamic(x0: Tensor, *, percentile: float = PERCENTILE, cap: float | None = None) -> Tensor:
    """Dynamic thresholding: x0 clipped to -s..s and divided by s, a percentile of |x0| or 1 if that is larger.

    Saharia et al. 2022, section 2.3. Between two values a percentile is interpolated. It is made for pixels: codes of
    an autoencoder do not end at 1.

    Args:
        x0: float [B, C, H, W], images in -1..1 but for what guidance adds; each has its own s.
        percentile: above 0, up to 100; all channels and pixels of an image are counted.
        cap: the largest s, at least 1 (DeepFloyd IF; 1 is `clip_static`). None: no limit.

    Returns:
        [B, C, H, W] in -1..1.

    Raises:
        ShapeError: x0 is no batch of images.
        ConfigError: percentile or cap out of range.
    """
    _check_images("x0", x0)
    if not 0 < percentile <= 100:
        raise ConfigError(f"percentile = {percentile} must lie in (0, 100]; the paper's is {PERCENTILE}.")
    if cap is not None and not cap >= 1:
        raise ConfigError(f"cap = {cap} must be at least 1, the largest value of an image, or None for no limit.")
    values = x0.flatten(1).abs()
    rank = percentile / 100 * (values.shape[1] - 1)
    below, above = (values.kthvalue(at + 1, dim=1).values for at in (math.floor(rank), math.ceil(rank)))
    s = torch.lerp(below, above, rank % 1).clamp(1, cap).to(x0.dtype)[:, None, None, None]
    return x0.clamp(-s, s) / s


def guided(both: Tensor, scale: float, *, rescale: float = 0.0) -> Tensor:
    """Classifier-free guidance null + scale (given - null) of a network's outputs (Ho & Salimans 2022).

    As Imagen has it (Saharia et al. 2022, section 2.2), where 1 is no guidance. It is the same for eps, v and x0, which
    depend on each other linearly, as long as `rescale` is 0. A negative text takes the place of no text in the second
    half.

    Args:
        both: float [2 B, C, H, W], the rows of `conditioning.guidance.with_and_without`: with the condition, then
            without.
        scale: 1 is `given`, bit for bit.
        rescale: phi, 0..1: how far the standard deviation of each image is brought back to that of `given` (Lin et al.
            2023, section 3.4).

    Returns:
        [B, C, H, W].

    Raises:
        ShapeError: both is no batch of an even number of images.
        ConfigError: a scale that is not finite; rescale out of range.
    """
    _check_images("both", both)
    if len(both) % 2:
        raise ShapeError(f"both has {len(both)} rows. Pass B rows with the condition, then the same B without it.")
    if not math.isfinite(scale):
        raise ConfigError(f"scale = {scale} must be a finite number; 1 is no guidance.")
    if not 0 <= rescale <= 1:
        raise ConfigError(f"rescale = {rescale} must lie in 0..1; 0 is off.")
    result = combine(both, scale)
    if rescale == 0:
        return result
    given = both[: len(result)]
    wanted, has = (part.float().flatten(1).std(1) for part in (given, result))
    factor = torch.where(has > 0, wanted / has, 1.0)  # an image of one colour has nothing to rescale
    return result * torch.lerp(torch.ones_like(factor), factor, rescale).to(result.dtype)[:, None, None, None]


def _check_images(name: str, images: Tensor) -> None:
    if images.dim() != 4 or not images.is_floating_point():
        raise ShapeError(f"{name} is {images.dtype} {list(images.shape)}; expected floats [B, C, H, W].")
