"""Residual blocks of U-Nets that are told a vector, and how blocks are run. The U-Nets are `unet` and `efficient_unet`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rasterformer.errors import ConfigError
from rasterformer.nn.feature_maps import group_norm


def zero_convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3x3 convolution that begins at zero."""
    made = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.zeros_(made.weight)
    assert made.bias is not None, "it has one"
    nn.init.zeros_(made.bias)
    return made


class ResBlock(nn.Module):
    """h + f(h), f twice GroupNorm, swish and a 3x3 convolution; the vector scales and shifts what the second norm makes.

    The block of Dhariwal & Nichol 2021 ("scale-shift norm", section 3, and BigGAN's up and down). Begins as the identity where
    neither channels nor size change: the second convolution is zero.

    Args:
        in_channels, out_channels: channels; where they differ, h goes through a 1x1 convolution.
        vector_width: E.
        norm_groups: groups of GroupNorm.
        dropout_prob: before the second convolution.
        resample: `down` halves the sides by averages, `up` doubles them by copies: of h, and inside f before its first
            convolution. None: the size stays.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        vector_width: int,
        norm_groups: int,
        dropout_prob: float,
        resample: Literal["down", "up"] | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, norm_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(vector_width, 2 * out_channels)
        self.norm2 = group_norm(out_channels, norm_groups)
        self.conv2 = zero_convolution(out_channels, out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.dropout_prob, self.resample = dropout_prob, resample

    def forward(self, h: Tensor, vector: Tensor, skip: Tensor | None = None) -> Tensor:
        """h, and on its last channels the skip, [B, in_channels, H, W], vector [B, E] -> [B, out_channels, H', W']."""
        h = h if skip is None else torch.cat([h, skip], 1)
        change = self.conv1(self._resampled(F.silu(self.norm1(h))))
        scale, shift = self.modulation(vector)[..., None, None].chunk(2, 1)  # each [B, out_channels, 1, 1]
        change = F.silu(torch.addcmul(shift, self.norm2(change), 1 + scale))
        change = self.conv2(F.dropout(change, self.dropout_prob, self.training))
        h = self._resampled(h)
        return (h if self.shortcut is None else self.shortcut(h)) + change

    def _resampled(self, h: Tensor) -> Tensor:
        if self.resample is None:
            return h
        return F.avg_pool2d(h, 2) if self.resample == "down" else F.interpolate(h, scale_factor=2.0)


def run(block: nn.Module, *arguments: object, is_checkpointed: bool) -> Tensor:
    """block(*arguments); where `is_checkpointed`, what is inside is not kept for the backward pass but computed again there."""
    if is_checkpointed and torch.is_grad_enabled():
        return checkpoint(block, *arguments, use_reentrant=False)
    return block(*arguments)


def check_levels(width: int, multipliers: Sequence[int], res_blocks: Sequence[int]) -> None:
    """Checks what U-Nets are made from: channels of each level over `width`, and its residual blocks.

    Raises:
        ConfigError: width is odd; no multipliers, or one below 1; not one number of res_blocks for each, or one below 1.
    """
    if width < 2 or width % 2:
        raise ConfigError(f"width = {width} must be even: half of the sinusoids of a noise level are sines.")
    if not multipliers or min(multipliers) < 1:
        raise ConfigError(f"multipliers = {list(multipliers)}. Give one whole number of at least 1 for each level.")
    if len(res_blocks) != len(multipliers) or min(res_blocks) < 1:
        raise ConfigError(
            f"res_blocks = {list(res_blocks)} for {len(multipliers)} levels (multipliers). Give at least 1 for each level."
        )
