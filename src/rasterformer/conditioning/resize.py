"""Images smaller and larger: by whole areas in exact integers, or by Pillow's filters.

Every channel is resized by itself, so images may have any number of them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rasterformer.errors import ConfigError, ShapeError, did_you_mean

Enlargement = Literal["nearest", "bilinear", "bicubic", "lanczos"]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def reduce_area(images: Tensor, factor: int) -> Tensor:
    """Returns the mean of each area of factor x factor pixels, rounded down.

    Source: paper, section 5.3; its code truncates the mean to an integer, and so do we.

    Args:
        images: uint8 [B, C, H, W].
        factor: pixels of an area along each side; divides H and W.

    Returns:
        uint8 [B, C, H / factor, W / factor].

    Raises:
        ShapeError: images are no uint8 [B, C, H, W], or factor does not divide H and W.
    """
    height, width = _reduced_size(images, factor)
    areas = images.reshape(*images.shape[:2], height, factor, width, factor)
    means = areas.sum((3, 5), dtype=torch.int64) // factor**2  # [B, C, H / factor, W / factor]
    return means.to(torch.uint8)


def reduce_bicubic(images: Tensor, factor: int) -> Tensor:
    """Returns the images reduced by Pillow's bicubic filter, which widens with the factor and so lets no detail fold over.

    Source: paper, section 5.3, measures with it how far a sample is from its source.

    Args:
        images: uint8 [B, C, H, W], on the CPU.
        factor: divides H and W.

    Returns:
        uint8 [B, C, H / factor, W / factor].

    Raises:
        ShapeError: images are no uint8 [B, C, H, W], or factor does not divide H and W.
    """
    return _resize(images, _reduced_size(images, factor), Image.Resampling.BICUBIC)


def enlarge(images: Tensor, size_or_factor: int | tuple[int, int], method: Enlargement) -> Tensor:
    """Returns the images enlarged by one of Pillow's filters.

    Args:
        images: uint8 [B, C, H, W], on the CPU.
        size_or_factor: (height, width) of the result, pixels; or a whole number by which both sides grow.
        method: the filter.

    Raises:
        ShapeError: images are no uint8 [B, C, H, W].
        ConfigError: the result would be smaller than the images, or method is not known.
    """
    check_images(images)
    if method not in _FILTERS:
        raise ConfigError(f"method = {method!r} is no way to enlarge.{did_you_mean(method, _FILTERS)}")
    height, width = images.shape[2:]
    size = (height * size_or_factor, width * size_or_factor) if isinstance(size_or_factor, int) else size_or_factor
    if size[0] < height or size[1] < width:
        raise ConfigError(
            f"size_or_factor = {size_or_factor} would make {size[0]}x{size[1]} of {height}x{width} pixels. "
            "Both sides must stay or grow; to reduce images use reduce_area or reduce_bicubic."
        )
    return _resize(images, size, _FILTERS[method])


def check_images(images: Tensor, *, channels: int | None = None) -> None:
    """Does nothing to images uint8 [B, C, H, W].

    Args:
        images: what a caller gave.
        channels: C. None: any number.

    Raises:
        ShapeError: another rank, dtype or number of channels.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or channels not in (None, images.shape[1]):
        raise ShapeError(
            f"images are {images.dtype} {list(images.shape)}. They must be torch.uint8 [B, {channels or 'C'}, H, W]."
        )


def _reduced_size(images: Tensor, factor: int) -> tuple[int, int]:
    check_images(images)
    height, width = images.shape[2:]
    if factor < 1 or height % factor or width % factor:
        allowed = [str(d) for d in range(1, min(height, width) + 1) if height % d == 0 and width % d == 0]
        raise ShapeError(
            f"factor = {factor} does not divide images of {height}x{width} pixels. Use one of {', '.join(allowed)}, "
            "or crop the images."
        )
    return height // factor, width // factor


def _resize(images: Tensor, size: tuple[int, int], method: Image.Resampling) -> Tensor:
    height, width = size
    resized = np.empty((images.shape[0] * images.shape[1], height, width), np.uint8)
    for k, plane in enumerate(images.flatten(0, 1).numpy()):
        resized[k] = np.asarray(Image.fromarray(plane).resize((width, height), method))
    return torch.from_numpy(resized).view(*images.shape[:2], height, width)
