"""Imagen's Efficient U-Net for super-resolution (Saharia et al. 2022, section 2.5, appendices B.1 and F.2, F.3).

What it is told is in `denoiser_inputs`, its blocks are in `unet_blocks` and `map_attention`. Read `forward` first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.nn.blocks import FeedForward
from rasterformer.nn.denoiser_inputs import DenoiserInputs, TextEnters, Tokens
from rasterformer.nn.feature_maps import group_norm, laid_out
from rasterformer.nn.map_attention import MapAttention
from rasterformer.nn.unet_blocks import ResBlock, check_levels, run, zero_convolution

SKIP_SCALE = 2**-0.5  # of what skips from the way down to the way up (section 2.5)
FEED_FORWARD_RATIO = 2  # inner width over channels, of the feed-forward after attention (figure A.28)


class EfficientUnet(nn.Module):
    """A U-Net that does its work at low resolution: a level first makes sides half as long and last twice as long.

    Every level is a convolution of stride 2 and then residual blocks on the way down; as many of these, each of which also
    takes 1/sqrt(2) of what one on the way down made, and then copies and a convolution on the way up. Attention stands once
    on each way, after the blocks of the coarsest level. Every result is zero at first, for the last convolution is.

    The paper's model for 64 -> 256: width 128, multipliers 1, 2, 4, 8, res_blocks 2, 4, 8, 8, num_heads 8. It has 0.57
    billion parameters with text states of 512 dimensions, 0.65 with the 4096 of T5-XXL; the paper says 600M. Its model for
    256 -> 1024 is the same without self_attention; the paper says 400M, which that alone does not explain.

    The paper leaves open what skips where: here every block on the way up takes what one on the way down made, and the last
    convolution takes what the first one made, for these are the only features at full resolution. "Skip connections" scaled by
    1/sqrt(2) may also mean the sums of residual blocks, as in the works it cites; they are not scaled here, since blocks that
    begin as the identity would then begin with much smaller gradients, the coarsest ones 100 times.

    Without self_attention, an output pixel depends on pixels near it only, but for the statistics of the norms: that is what
    lets a network that was trained on crops make whole images. With n_i residual blocks on level i = 1..m, they are at most
    1 + 2^m + the sum of 2^i + 4 n_i 2^i away along a side.

    Args:
        channels: C of the image.
        image_channels: C' of the image to condition on, as large as the noisy one: the small image, enlarged. 0 for none.
        noised_image: that image has noise of its own, and its log SNR is told (paper: noise conditioning augmentation).
        width: channels at full resolution, and of each level over its multiplier; the vector has four times as many
            dimensions. Even.
        multipliers: channels of each level over width. The finest level's sides are half as long as the image's.
        res_blocks: residual blocks of each level on each way.
        num_heads: of attention; divides the channels of the coarsest level.
        self_attention: whether the coarsest cells see each other. Without it they see the text, where there is one.
        text_dim: D of the text's states. None: there are no texts.
        text_enters: as `tokens` that attention sees, `pooled` into the vector that scales and shifts every block, or both
            (paper).
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
        image_channels: int,
        noised_image: bool,
        width: int,
        multipliers: Sequence[int],
        res_blocks: Sequence[int],
        num_heads: int = 8,
        self_attention: bool = True,
        text_dim: int | None = None,
        text_enters: TextEnters = "both",
        norm_groups: int = 32,
        dropout_prob: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_levels(width, multipliers, res_blocks)
        self.gradient_checkpointing = gradient_checkpointing
        widths = [width, *(width * multiplier for multiplier in multipliers)]
        self.inputs = DenoiserInputs(
            channels,
            image_channels=image_channels,
            noised_image=noised_image,
            num_sinusoids=width,
            vector_width=4 * width,
            text_dim=text_dim,
            text_enters=text_enters,
            multiple=1 << len(multipliers),
        )
        attended = text_dim if self.inputs.shows_tokens else None

        def block(in_channels: int, out_channels: int) -> ResBlock:
            return ResBlock(
                in_channels, out_channels, vector_width=4 * width, norm_groups=norm_groups, dropout_prob=dropout_prob
            )

        def attention() -> CoarseLayer | None:
            if not self_attention and attended is None:
                return None
            return CoarseLayer(
                widths[-1],
                num_heads=num_heads,
                text_dim=attended,
                self_attention=self_attention,
                norm_groups=norm_groups,
            )

        self.conv_in = nn.Conv2d(channels + image_channels, width, 3, padding=1)
        self.halving, self.doubling = (
            nn.ModuleList(),
            nn.ModuleList(),
        )  # convolutions of the levels, finest first, as all here
        self.down: list[nn.ModuleList] = nn.ModuleList()  # type: ignore[assignment]
        self.up: list[nn.ModuleList] = nn.ModuleList()  # type: ignore[assignment]
        for finer, here, count in zip(widths, widths[1:], res_blocks, strict=False):
            self.halving.append(nn.Conv2d(finer, here, 3, stride=2, padding=1))
            self.down.append(nn.ModuleList(block(here, here) for _ in range(count)))
            self.up.append(nn.ModuleList(block(2 * here, here) for _ in range(count)))
            self.doubling.append(nn.Conv2d(here, finer, 3, padding=1))
        self.attention_down, self.attention_up = attention(), attention()
        self.norm_out = group_norm(2 * width, norm_groups)
        self.conv_out = zero_convolution(2 * width, channels)
        self.group_width = width // norm_groups

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
            z: float [B, C, H, W], the noisy image; H and W multiples of 2^levels.
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
        first = h = self.conv_in(laid_out(maps, group_width=self.group_width))
        skips = []
        for convolution, blocks in zip(self.halving, self.down, strict=True):
            h = convolution(h)
            for block in blocks:
                h = step(block, h, vector)
                skips.append(h)
        if self.attention_down is not None:
            h = step(self.attention_down, h, tokens)
        for level in reversed(range(len(self.up))):
            for block in self.up[level]:
                h = step(block, h, vector, skips.pop() * SKIP_SCALE)
            if self.attention_up is not None and level == len(self.up) - 1:
                h = step(self.attention_up, h, tokens)
            h = self.doubling[level](F.interpolate(h, scale_factor=2.0))
        h = torch.cat([h, first * SKIP_SCALE], 1)
        out = self.conv_out(F.silu(self.norm_out(h)))
        return out.to(torch.promote_types(out.dtype, torch.float32))


class CoarseLayer(nn.Module):
    """Attention, then a feed-forward, each added to its input. Begins as the identity.

    Args:
        channels: C.

    The others are those of `MapAttention`.
    """

    def __init__(
        self, channels: int, *, num_heads: int, text_dim: int | None, self_attention: bool, norm_groups: int
    ) -> None:
        super().__init__()
        self.attention = MapAttention(
            channels, num_heads=num_heads, text_dim=text_dim, self_attention=self_attention, norm_groups=norm_groups
        )
        self.norm = group_norm(channels, norm_groups)
        self.feed_forward = FeedForward(
            channels,
            FEED_FORWARD_RATIO * channels,
            activation="gelu",
            grid=(1, 1),  # cells are seen one by one, wherever they lie
            kernel=(1, 1),
            is_causal=False,
        )
        for weight in self.feed_forward.down.parameters():
            nn.init.zeros_(weight)

    def forward(self, h: Tensor, tokens: Tokens | None) -> Tensor:
        """h [B, C, H, W] -> [B, C, H, W]."""
        h = self.attention(h, tokens)
        change = self.feed_forward(self.norm(h).flatten(2).mT)  # [B, HW, C]
        return h + change.mT.unflatten(2, h.shape[2:])
