"""Numbers as colours: dark for little, bright for much, in an order that the eye sees without a legend."""

from __future__ import annotations

import torch
from torch import Tensor

# lightness rises evenly from near-black to near-white, so that the order survives grey print and colour blindness
ANCHORS = ((6, 6, 20), (52, 22, 96), (146, 34, 104), (218, 82, 56), (246, 168, 56), (255, 247, 208))  # sRGB


def heat_map(values: Tensor, *, top: float) -> Tensor:
    """Returns uint8 [..., 3, H, W]: colours of 0..top, the ends standing for all that lies beyond.

    Args:
        values: float [..., H, W].
        top: value of the brightest colour, above 0.
    """
    anchors = torch.tensor(ANCHORS, dtype=torch.float64)
    place = (values.double() / top).clamp(0, 1) * (len(ANCHORS) - 1)
    below = place.floor().long().clamp(max=len(ANCHORS) - 2)
    share = (place - below)[..., None]
    colours = anchors[below] * (1 - share) + anchors[below + 1] * share  # [..., H, W, 3]
    return colours.round().to(torch.uint8).movedim(-1, -3)


def legend(*, width: int = 360, height: int = 18) -> Tensor:
    """Returns the colours from 0 at the left to `top` at the right: uint8 [3, height, width]."""
    return heat_map(torch.linspace(0, 1, width).expand(height, width), top=1.0)
