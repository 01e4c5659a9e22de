"""How well a filled part agrees with its surroundings, seen at the seam between them; and the same for fills of other images.

A fill that knows nothing of its surroundings leaves a visible seam, so `seam_contrast` of `shuffled_fills` is what it is to be
compared with. It says nothing about what lies away from the seam.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rasterformer.errors import DataError, ShapeError

ONE_LEVEL = 1.0  # of 256; keeps flat pictures, whose neighbours do not differ at all, from dividing by nothing


def seam_contrast(images: Tensor, known: Tensor) -> Tensor:
    """How much more neighbours differ across the border of the known part than just inside it; 1 is as smooth as the picture.

    A crossing is a known pixel with an unknown neighbour in its row or column; it is compared with the pair that the known pixel
    makes with the one on its other side. The figure is (1 + mean difference of the crossings) / (1 + mean of those pairs), in
    levels of 0..255: on an even slope it is 1. Crossings whose known pixel has no known one on its other side are left out.

    Args:
        images: uint8 [B, 3, H, W], filled.
        known: bool [B, H, W], the pixels that were given.

    Returns:
        float64 [B], above 0.

    Raises:
        ShapeError: another shape or dtype.
        DataError: an image has no such crossing.
    """
    _check(images, known)
    across, inside, count = (torch.zeros(len(images), dtype=torch.float64, device=images.device) for _ in range(3))
    for turned, where in ((images, known), (images.transpose(2, 3), known.transpose(1, 2))):
        for row, given in ((turned, where), (turned.flip(3), where.flip(2))):  # [B, 3, H, W]: to the right, to the left
            levels = row.double()
            step = (levels[..., 1:] - levels[..., :-1]).abs().mean(1)  # [B, H, W - 1]
            crosses = given[..., :-2] & given[..., 1:-1] & ~given[..., 2:]  # [B, H, W - 2]
            inside += (step[..., :-1] * crosses).sum((1, 2))
            across += (step[..., 1:] * crosses).sum((1, 2))
            count += crosses.sum((1, 2))
    if not bool((count > 0).all()):
        raise DataError(
            f"image {int((count == 0).nonzero()[0])} has no border between two known pixels in a row and an unknown one beside "
            "them: there is no seam to measure. Give images of which a part is known and a part is not."
        )
    return (across / count + ONE_LEVEL) / (inside / count + ONE_LEVEL)


def shuffled_fills(images: Tensor, known: Tensor) -> Tensor:
    """Each image with what is unknown taken from another one of the batch, half of it away: never from itself.

    Args:
        images: uint8 [B, 3, H, W], filled.
        known: bool [B, H, W], the pixels that were given and stay.

    Returns:
        uint8 [B, 3, H, W].

    Raises:
        ShapeError: another shape or dtype.
        DataError: there is one image only, or none.
    """
    _check(images, known)
    if len(images) < 2:
        raise DataError(f"fills cannot be exchanged between {len(images)} images. Give at least 2.")
    return torch.where(known[:, None], images, images.roll(-(len(images) // 2), 0))


def _check(images: Tensor, known: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ShapeError(f"images are {images.dtype} {list(images.shape)}. They must be torch.uint8 [B, 3, H, W].")
    expected = [len(images), *images.shape[2:]]
    if known.dtype != torch.bool or list(known.shape) != expected:
        raise ShapeError(f"known is {known.dtype} {list(known.shape)}; it must be torch.bool {expected}.")
