"""A guess at missing pixels, for networks that have to look at whole images: what is known is carried on outwards."""

from __future__ import annotations

import torch
from torch import Tensor

from rasterformer.errors import ShapeError

NOTHING_KNOWN = 128  # grey, of an image without a known pixel


def carry_on(images: Tensor, known: Tensor) -> Tensor:
    """Fills each missing pixel with the nearest known one, ring by ring, each ring from the one before.

    An encoder sees all of an image at once, through its norms alone. A flat hole changes what it says of known pixels far away,
    while a hole that goes on like its border hardly does.

    Args:
        images: uint8 [B, C, H, W]; what it holds where it is not known does not matter.
        known: bool [B, H, W].

    Returns:
        uint8 [B, C, H, W], known pixels as they are.

    Raises:
        ShapeError: images or known of another shape or dtype.
    """
    if (
        images.dtype != torch.uint8
        or images.ndim != 4
        or known.dtype != torch.bool
        or known.shape != images[:, 0].shape
    ):
        raise ShapeError(
            f"images are {images.dtype} {list(images.shape)} and known {known.dtype} {list(known.shape)}; expected torch.uint8 "
            "[B, C, H, W] and torch.bool [B, H, W]."
        )
    there = known[:, None].clone()  # bool [B, 1, H, W]
    filled = torch.where(there, images, NOTHING_KNOWN)
    while bool((~there.flatten(1).all(1) & there.flatten(1).any(1)).any()):
        before, seen = filled, there
        for axis, step in ((2, 1), (2, -1), (3, 1), (3, -1)):
            neighbour, is_there = (_shifted(part, axis, step) for part in (before, seen))
            is_new = is_there & ~there
            filled, there = torch.where(is_new, neighbour, filled), there | is_new
    return filled


def _shifted(part: Tensor, axis: int, step: int) -> Tensor:
    """Each place has what its neighbour one step back along the axis had; at the border it is 0."""
    moved = part.roll(step, axis)
    moved.narrow(axis, 0 if step > 0 else part.shape[axis] - 1, 1).zero_()
    return moved
