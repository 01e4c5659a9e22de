"""Images and masks as a user gives them (Pillow, numpy, one or many) as tensors, or a message that says what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rasterformer.data.decode import to_labels, to_rgb
from rasterformer.data.fit import fit_square
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.recipe import DataConfig

Images = Tensor | Image.Image | Sequence[Image.Image]
Mask = Tensor | np.ndarray[Any, Any]


def to_batch(images: Images, image_shape: tuple[int, int, int], data: DataConfig) -> Tensor:
    """Pillow images -> uint8 [B, 3, H, W] of one size, fitted as in training; a tensor is checked only.

    Args:
        images: one Pillow image, several, or uint8 [B, *image_shape].
        image_shape: (3, H, W) that the model takes.
        data: how the training images were fitted.

    Raises:
        ShapeError: a tensor of another shape or dtype, or an image smaller than the model's.
        ConfigError: no images, or something else.
    """
    if isinstance(images, Tensor):
        if images.dtype != torch.uint8 or images.shape[1:] != image_shape:
            raise ShapeError(
                f"images are {images.dtype} {list(images.shape)}; this model takes torch.uint8 "
                f"[B, {', '.join(map(str, image_shape))}]."
            )
        if not len(images):
            raise ConfigError("no images were given. Give at least one.")
        return images
    given, size = _listed(images), image_shape[1]
    for k, image in enumerate(given):
        if min(image.width - 2 * data.trim[1], image.height - 2 * data.trim[0]) < size:
            cut = (
                f", and {data.trim[0]} rows and {data.trim[1]} columns are cut off on each side"
                if any(data.trim)
                else ""
            )
            raise ShapeError(
                f"image {k} is {image.width}x{image.height}; this model needs at least {size}x{size}{cut}."
            )
    upright = [to_labels(image) if data.reduction == "nearest" else to_rgb(image)[0] for image in given]
    fitted = [fit_square(image, size, fit=data.fit, trim=data.trim, reduction=data.reduction)[0] for image in upright]
    return torch.from_numpy(np.stack(fitted))


def to_pictures(images: Images, *, labels: bool = False) -> list[Tensor]:
    """Returns each image as uint8 [3, h, w], at its own size.

    Args:
        images: one Pillow image, or several of any sizes (`RGBA` goes on white), or uint8 [B, 3, h, w].
        labels: they are label maps, whose values are class indices.

    Raises:
        ShapeError: a tensor of another shape or dtype.
        ConfigError: no images, or something else.
    """
    if not isinstance(images, Tensor):
        return [
            torch.from_numpy(np.array(to_labels(image) if labels else to_rgb(image)[0])).permute(2, 0, 1)
            for image in _listed(images)
        ]
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ShapeError(f"images are {images.dtype} {list(images.shape)}; torch.uint8 [B, 3, h, w] is needed.")
    if not len(images):
        raise ConfigError("no images were given. Give at least one.")
    return list(images.cpu())


def to_mask(known: Mask) -> Tensor:
    """A mask, a tensor or a numpy array, as a tensor of the same shape and dtype.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(known, Tensor):
        return known
    if not isinstance(known, np.ndarray):
        raise ConfigError(f"known has a {type(known).__name__}; a mask is a tensor or a numpy array, bool [h, w].")
    return torch.as_tensor(known.copy())  # Pillow's arrays are read-only, which torch warns of


def to_masks(known: Mask | Sequence[Mask], count: int) -> list[Tensor]:
    """The masks of `count` images; [h, w] is that of a single image.

    Raises:
        ShapeError: another number of masks.
        ConfigError: one is neither a tensor nor a numpy array.
    """
    if isinstance(known, Tensor | np.ndarray) and known.ndim == 2:
        known = [known]
    masks = [to_mask(mask) for mask in known]
    if len(masks) != count:
        raise ShapeError(f"known has {len(masks)} masks for {count} images. Give one for each.")
    return masks


def _listed(images: Image.Image | Sequence[Image.Image]) -> list[Image.Image]:
    given = list(images) if isinstance(images, Sequence) else [images]
    for image in given:
        if not isinstance(image, Image.Image):
            raise ConfigError(
                f"images has a {type(image).__name__}. Give Pillow images, such as Image.open(path), or a tensor uint8 "
                "[B, 3, h, w]."
            )
    if not given:
        raise ConfigError("no images were given. Give at least one.")
    return given
