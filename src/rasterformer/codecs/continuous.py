"""Pixels as numbers from -1 to 1: what diffusion models of pixels work on."""

from __future__ import annotations

import torch
from torch import Tensor

from rasterformer.conditioning.resize import check_images
from rasterformer.errors import ShapeError
from rasterformer.interfaces import Codec


def to_numbers(images: Tensor) -> Tensor:
    """uint8 [B, C, H, W] -> float32 [B, C, H, W] in -1..1, for images of any size.

    Raises:
        ShapeError: images of another rank or dtype.
    """
    check_images(images)
    return images.float() / 127.5 - 1


def to_images(x: Tensor) -> Tensor:
    """float [B, C, H, W] -> uint8 [B, C, H, W], the nearest of 256 levels; what lies beyond -1..1 becomes an end.

    Raises:
        ShapeError: x is no float [B, C, H, W].
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ShapeError(f"x is {x.dtype} {list(x.shape)}; expected floats [B, C, H, W].")
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class ContinuousCodec(Codec):
    """uint8 images <-> numbers in -1..1. Its x is float32 [B, C, H, W] and not [B, L, E]: it has no order.

    Args:
        image_size: side of the square images, pixels.
    """

    vocab_size = None
    lossless = True

    def __init__(self, image_size: int) -> None:
        self.image_shape = (3, image_size, image_size)
        self.x_shape = (image_size**2, 3)

    def encode(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] at the codec's size -> float32 [B, 3, H, W]. Raises ShapeError on any other shape or dtype."""
        if images.shape[1:] != self.image_shape:
            raise ShapeError(f"images are {list(images.shape)}; expected [B, {', '.join(map(str, self.image_shape))}].")
        return to_numbers(images)

    def decode(self, x: Tensor) -> Tensor:
        """float [B, 3, H, W] at the codec's size -> uint8 [B, 3, H, W]. Raises ShapeError on any other shape."""
        if x.shape[1:] != self.image_shape:
            raise ShapeError(f"x is {list(x.shape)}; expected [B, {', '.join(map(str, self.image_shape))}].")
        return to_images(x)
