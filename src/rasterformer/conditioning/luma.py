"""Images in grey."""

from __future__ import annotations

import torch
from torch import Tensor

from rasterformer.conditioning.resize import check_images


def luma(images: Tensor) -> Tensor:
    """Returns the images in grey, uint8 [B, 1, H, W]: the luma of ITU-R BT.601, the same integers as Pillow's `L`.

    Args:
        images: uint8 [B, 3, H, W].

    Raises:
        ShapeError: images are of another shape or dtype.
    """
    check_images(images, channels=3)
    red, green, blue = images.int().unbind(1)
    grey = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16  # 0.299, 0.587 and 0.114 in 65536ths
    return grey.to(torch.uint8)[:, None]
