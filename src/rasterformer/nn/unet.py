"""The U-Net of Imagen's base model (Saharia et al. 2022, appendix F.1), after that of Dhariwal & Nichol 2021 (ADM).

What it is told is in `denoiser_inputs`, its blocks are in `unet_blocks` and `map_attention`. Read `forward` first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.errors import ConfigError
from rasterformer.nn.denoiser_inputs import DenoiserInputs, TextEnters, Tokens
from rasterformer.nn.feature_maps import group_norm, laid_out
from rasterformer.nn.map_attention import MapAttention
from rasterformer.nn.unet_blocks import ResBlock, check_levels, run, zero_convolution


class Unet(nn.Module):
    """Noisy image, noise level and conditions -> as many channels: noise, image or v, as it is trained.

    Every level has `res_blocks` residual blocks on the way down and one more on the way up, each of which also takes what one
    on the way down made. Where the ways meet there are two blocks with attention between them, always, so that every output
    pixel sees all of the image and the text; `attention_levels` see them at finer resolutions, too. Every result is zero at
    first, for the last convolution is.

    The paper's base model: width 512, multipliers 1, 2, 3, 4, res_blocks 3, attention_levels 1, 2, 3 (sides of 32, 16 and 8 of
    64), head_dim 64. It has 2.10 billion parameters without texts, 2.13 with states of 512 dimensions, 2.45 with the 4096 of
    T5-XXL; the paper says 2B, and not how wide the states are that its attention sees.

    Args:
        channels: C of the image.
        width: channels of the finest level over its multiplier; the vector has four times as many dimensions. Even.
        multipliers: channels of each level over width, finest first.
        res_blocks: residual blocks of a level.
        attention_levels: levels whose residual blocks are followed by attention, 0 is the finest.
        head_dim: channels of an attention head; divides the channels of the coarsest level and of those with attention.
        text_dim: D of the text's states. None: there are no texts.
        text_enters: as `tokens` beside the keys and values of all attention, `pooled` into the vector that scales and shifts
            every block, or both (paper).
        image_channels: C' of an image to condition on, concatenated to the noisy one; 0 for none.
        noised_image: that image has noise of its own, and its log SNR is told.
        norm_groups: groups of every GroupNorm. Few are fast on processors.
        dropout_prob: inside the residual blocks.
        gradient_checkpointing: keep only what blocks take, and compute the rest again in the backward pass: less memory, a
            third more time, the same gradients.

    Raises:
        ConfigError: levels, heads or groups that do not fit; `noised_image` without image_channels.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int,
        multipliers: Sequence[int],
        res_blocks: int,
        attention_levels: Sequence[int],
        head_dim: int = 64,
        text_dim: int | None = None,
        text_enters: TextEnters = "both",
        image_channels: int = 0,
        noised_image: bool = False,
        norm_groups: int = 32,
        dropout_prob: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_levels(width, multipliers, [res_blocks] * len(multipliers))
        missing = [level for level in attention_levels if not 0 <= level < len(multipliers)]
        if missing:
            raise ConfigError(
                f"attention_levels = {list(attention_levels)}: there is no level {missing[0]}. {len(multipliers)} multipliers "
                f"make levels 0 (finest) to {len(multipliers) - 1}."
            )
        self.gradient_checkpointing = gradient_checkpointing
        widths = [width * multiplier for multiplier in multipliers]
        coarsest = len(widths) - 1
        self.inputs = DenoiserInputs(
            channels,
            image_channels=image_channels,
            noised_image=noised_image,
            num_sinusoids=width,
            vector_width=4 * width,
            text_dim=text_dim,
            text_enters=text_enters,
            multiple=1 << coarsest,
        )
        make = partial(
            Stage,
            head_dim=head_dim,
            text_dim=text_dim if self.inputs.shows_tokens else None,
            vector_width=4 * width,
            norm_groups=norm_groups,
            dropout_prob=dropout_prob,
        )
        self.conv_in = nn.Conv2d(channels + image_channels, widths[0], 3, padding=1)
        down: list[Stage] = []
        up: list[Stage] = []
        skips, now = [widths[0]], widths[0]  # channels of what the way down hands over, and of the result
        for level, wide in enumerate(widths):
            for _ in range(res_blocks):
                down.append(make(now, wide, has_attention=level in attention_levels))
                now = wide
                skips.append(now)
            if level < coarsest:
                down.append(make(now, now, resample="down"))
                skips.append(now)
        self.middle = nn.ModuleList([make(now, now, has_attention=True), make(now, now)])
        for level in reversed(range(len(widths))):
            for _ in range(res_blocks + 1):
                up.append(make(now + skips.pop(), widths[level], has_attention=level in attention_levels))
                now = widths[level]
            if level:
                up.append(make(now, now, resample="up"))
        self.down = nn.ModuleList(down)
        self.up: list[Stage] = nn.ModuleList(up)  # type: ignore[assignment]
        self.norm_out = group_norm(now, norm_groups)
        self.conv_out = zero_convolution(now, channels)
        self.group_width = min(widths) // norm_groups

    def forward(
        self,
        z: Tensor,
        log_snr: Tensor,
        *,
        text: Tensor | None = None,
        text_known: Tensor | None = None,
        image: Tensor | None = None,
        image_log_snr: Tensor | None = None,
    ) -> Tensor:
        """Returns what is predicted, float32 (float64 where the weights are) [B, C, H, W].

        Args:
            z: float [B, C, H, W], the noisy image; H and W multiples of 2^(levels - 1).
            log_snr: float [B], log of signal over noise, in powers.
            text: float [B, S, D], the text's states, normalised as `TextInput` does. None: no image has a text.
            text_known: bool [B, S], which of them there are. None: all. Where an image has none, that is as without a text.
            image: float [B, C', H, W], if and only if the network has image_channels.
            image_log_snr: float [B], that of the noise on it, if and only if the network has `noised_image`.

        Raises:
            ShapeError: a tensor has another shape or dtype; H or W is no such multiple.
            ConfigError: one is missing, or given to a network that does not take it.
        """
        maps, vector, tokens = self.inputs(
            z, log_snr, text=text, text_known=text_known, image=image, image_log_snr=image_log_snr
        )
        step = partial(run, is_checkpointed=self.gradient_checkpointing)
        h = self.conv_in(laid_out(maps, group_width=self.group_width))
        skips = [h]
        for stage in self.down:
            h = step(stage, h, vector, None, tokens)
            skips.append(h)
        for stage in self.middle:
            h = step(stage, h, vector, None, tokens)
        for stage in self.up:
            h = step(stage, h, vector, None if stage.block.resample else skips.pop(), tokens)
        out = self.conv_out(F.silu(self.norm_out(h)))
        return out.to(torch.promote_types(out.dtype, torch.float32))


class Stage(nn.Module):
    """A residual block, and attention after it where it has that.

    Args:
        in_channels: of what it takes, with what skips to it.
        has_attention: whether there is attention, with heads of head_dim channels.

    The others are those of `ResBlock` and `MapAttention`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        has_attention: bool = False,
        head_dim: int,
        text_dim: int | None,
        vector_width: int,
        norm_groups: int,
        dropout_prob: float,
        resample: Literal["down", "up"] | None = None,
    ) -> None:
        super().__init__()
        self.block = ResBlock(
            in_channels,
            out_channels,
            vector_width=vector_width,
            norm_groups=norm_groups,
            dropout_prob=dropout_prob,
            resample=resample,
        )
        self.attention = None
        if has_attention:
            if head_dim < 1 or out_channels % head_dim:
                raise ConfigError(
                    f"head_dim = {head_dim} does not divide a level of {out_channels} channels (width times a multiplier) with "
                    "attention. Use one that does; the coarsest level always has it."
                )
            heads = out_channels // head_dim
            self.attention = MapAttention(out_channels, num_heads=heads, text_dim=text_dim, norm_groups=norm_groups)

    def forward(self, h: Tensor, vector: Tensor, skip: Tensor | None, tokens: Tokens | None) -> Tensor:
        """h and skip [B, in_channels, H, W] together, vector [B, E] -> [B, out_channels, H', W']."""
        h = self.block(h, vector, skip)
        return h if self.attention is None else self.attention(h, tokens)
