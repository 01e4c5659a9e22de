"""Colours for label maps, so that people can look at them."""

from __future__ import annotations

import colorsys

import torch
from torch import Tensor

GOLDEN_ANGLE = 0.6180339887498949  # share of a turn: hues of successive labels lie far apart


def label_colours(labels: Tensor) -> Tensor:
    """Label maps, uint8 [B, 3, H, W] with the label in every channel -> a colour for each label, uint8 [B, 3, H, W]."""
    colours = [
        colorsys.hsv_to_rgb(label * GOLDEN_ANGLE % 1.0, 0.75 if label % 2 else 0.55, 0.95 - 0.2 * (label % 3))
        for label in range(256)
    ]
    table = (torch.tensor(colours) * 255).round().to(torch.uint8)
    return table[labels[:, 0].long()].permute(0, 3, 1, 2).contiguous()
