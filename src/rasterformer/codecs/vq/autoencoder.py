"""The convolutional encoder and decoder of VQGAN (Esser et al. 2021), and the two of them around a quantiser.

Fully convolutional: any height and width that are multiples of the factor f = 2^(levels - 1). Quantisers are in
`quantise`, losses in `adversarial` and `perceptual`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.codecs.vq.quantise import Quantised, Quantiser
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.nn.feature_maps import group_norm, laid_out


class ResBlock(nn.Module):
    """h + f(h), f twice GroupNorm, swish and a 3x3 convolution; where channels change, h goes through a 1x1 convolution.

    Args:
        in_channels, out_channels: channels.
        norm_groups: groups of GroupNorm.
        dropout_prob: before the second convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm_groups: int, dropout_prob: float) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, norm_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, norm_groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.dropout_prob = dropout_prob

    def forward(self, h: Tensor) -> Tensor:
        """h [B, in_channels, H, W] -> [B, out_channels, H, W]."""
        change = self.conv1(F.silu(self.norm1(h)))
        change = self.conv2(F.dropout(F.silu(self.norm2(change)), self.dropout_prob, self.training))
        return (h if self.shortcut is None else self.shortcut(h)) + change


class AttentionBlock(nn.Module):
    """h + attention of every cell to all cells, with one head as wide as the channels.

    Args:
        channels: C.
        norm_groups: groups of GroupNorm.
    """

    def __init__(self, channels: int, *, norm_groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, norm_groups)
        self.query, self.key, self.value, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, h: Tensor) -> Tensor:
        """h [B, C, H, W] -> [B, C, H, W]."""
        x = self.norm(h)
        q, k, v = (
            conv(x).flatten(2).mT.contiguous()[:, None] for conv in (self.query, self.key, self.value)
        )  # [B, 1, HW, C]
        attended = F.scaled_dot_product_attention(q, k, v)  # scale C^-0.5
        return h + self.out(attended[:, 0].mT.unflatten(2, h.shape[2:]))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where the level has it, then the way to the next one.

    `down` halves: zeros on the right and at the bottom only, then a 3x3 convolution of stride 2. `up` doubles: nearest
    neighbour, then a 3x3 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        *,
        has_attention: bool,
        resample: Literal["down", "up"] | None,
        norm_groups: int,
        dropout_prob: float,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResBlock(
                out_channels if j else in_channels, out_channels, norm_groups=norm_groups, dropout_prob=dropout_prob
            )
            for j in range(num_blocks)
        )
        self.attentions = nn.ModuleList(
            AttentionBlock(out_channels, norm_groups=norm_groups) for _ in range(num_blocks if has_attention else 0)
        )
        self.is_down = resample == "down"
        self.resample = (
            nn.Conv2d(out_channels, out_channels, 3, stride=2)
            if resample == "down"
            else nn.Conv2d(out_channels, out_channels, 3, padding=1)
            if resample == "up"
            else None
        )

    def forward(self, h: Tensor) -> Tensor:
        """h [B, in_channels, H, W] -> [B, out_channels, H', W']."""
        for j, block in enumerate(self.blocks):
            h = block(h)
            if self.attentions:
                h = self.attentions[j](h)
        if self.resample is None:
            return h
        return self.resample(F.pad(h, (0, 1, 0, 1)) if self.is_down else F.interpolate(h, scale_factor=2.0))


class Encoder(nn.Module):
    """Images -> features of cells of f x f pixels (paper, table 7, left).

    Args:
        in_channels: C of the images.
        z_channels: channels of the result.
        base_width: channels after the first convolution.
        multipliers: channels of each level over base_width, finest first; f = 2^(len - 1).
        res_blocks: residual blocks of a level.
        attention_levels: levels whose blocks are followed by attention, 0 is the finest.
        middle_attention: whether there is attention between the two last residual blocks.
        norm_groups: groups of every GroupNorm.
        dropout_prob: inside the residual blocks.

    Raises:
        ConfigError: norm_groups does not divide the channels of a level; no multipliers; res_blocks below 1; an attention
            level that does not exist.
    """

    def __init__(
        self,
        in_channels: int,
        z_channels: int,
        *,
        base_width: int,
        multipliers: Sequence[int],
        res_blocks: int,
        attention_levels: Sequence[int],
        middle_attention: bool = True,
        norm_groups: int = 32,
        dropout_prob: float = 0.0,
    ) -> None:
        super().__init__()
        _check_levels(multipliers, res_blocks, attention_levels)
        widths = [base_width * multiplier for multiplier in multipliers]
        self.factor = 1 << (len(widths) - 1)
        self.conv_in = nn.Conv2d(in_channels, base_width, 3, padding=1)
        self.levels = nn.ModuleList(
            Level(
                widths[i - 1] if i else base_width,
                width,
                res_blocks,
                has_attention=i in attention_levels,
                resample="down" if i < len(widths) - 1 else None,
                norm_groups=norm_groups,
                dropout_prob=dropout_prob,
            )
            for i, width in enumerate(widths)
        )
        width = widths[-1]
        self.middle_block1 = ResBlock(width, width, norm_groups=norm_groups, dropout_prob=dropout_prob)
        self.middle_attention = AttentionBlock(width, norm_groups=norm_groups) if middle_attention else None
        self.middle_block2 = ResBlock(width, width, norm_groups=norm_groups, dropout_prob=dropout_prob)
        self.norm_out = group_norm(width, norm_groups)
        self.conv_out = nn.Conv2d(width, z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Float [B, C, H, W] in -1..1 -> [B, z_channels, H / f, W / f]."""
        h = self.conv_in(images)
        for level in self.levels:
            h = level(h)
        h = self.middle_block1(h)
        if self.middle_attention is not None:
            h = self.middle_attention(h)
        h = self.middle_block2(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Features of cells of f x f pixels -> images (paper, table 7, right), with one residual block more on each level.

    Args:
        out_channels: C of the images.
        z_channels: channels of the features.

    The others and Raises are those of `Encoder`, with levels counted in the same way, 0 the finest. The parameters
    `levels.{i}` are in the order in which they run: coarsest first.
    """

    def __init__(
        self,
        out_channels: int,
        z_channels: int,
        *,
        base_width: int,
        multipliers: Sequence[int],
        res_blocks: int,
        attention_levels: Sequence[int],
        middle_attention: bool = True,
        norm_groups: int = 32,
        dropout_prob: float = 0.0,
    ) -> None:
        super().__init__()
        _check_levels(multipliers, res_blocks, attention_levels)
        widths = [base_width * multiplier for multiplier in multipliers]
        coarsest = len(widths) - 1
        self.factor = 1 << coarsest
        width = widths[coarsest]
        self.conv_in = nn.Conv2d(z_channels, width, 3, padding=1)
        self.middle_block1 = ResBlock(width, width, norm_groups=norm_groups, dropout_prob=dropout_prob)
        self.middle_attention = AttentionBlock(width, norm_groups=norm_groups) if middle_attention else None
        self.middle_block2 = ResBlock(width, width, norm_groups=norm_groups, dropout_prob=dropout_prob)
        self.levels = nn.ModuleList(
            Level(
                widths[min(i + 1, coarsest)],
                widths[i],
                res_blocks + 1,
                has_attention=i in attention_levels,
                resample="up" if i else None,
                norm_groups=norm_groups,
                dropout_prob=dropout_prob,
            )
            for i in reversed(range(len(widths)))
        )
        self.norm_out = group_norm(widths[0], norm_groups)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Float [B, z_channels, h, w] -> [B, C, f h, f w], not clamped."""
        h = self.middle_block1(self.conv_in(features))
        if self.middle_attention is not None:
            h = self.middle_attention(h)
        h = self.middle_block2(h)
        for level in self.levels:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class VQAutoencoder(nn.Module):
    """Encoder, quantiser and decoder, with a 1x1 convolution on either side of the quantiser.

    Args:
        encoder, decoder: of one factor f.
        quantiser: float [B, D, h, w] -> `Quantised`.
        z_channels: channels between encoder or decoder and the 1x1 convolutions.
        dim: D, dimensions of a code.

    Raises:
        ConfigError: encoder or decoder has other z_channels, or their factors differ.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, quantiser: Quantiser, *, z_channels: int, dim: int) -> None:
        super().__init__()
        given = (encoder.conv_out.out_channels, decoder.conv_in.in_channels)
        if given != (z_channels, z_channels):
            raise ConfigError(
                f"z_channels = {z_channels}, but the encoder gives {given[0]} and the decoder takes {given[1]} channels. "
                "All three must be equal."
            )
        if encoder.factor != decoder.factor:
            raise ConfigError(
                f"The encoder makes sides {encoder.factor} times smaller, the decoder {decoder.factor} times larger. "
                "Give both the same number of multipliers."
            )
        self.encoder = encoder
        self.before = nn.Conv2d(z_channels, dim, 1)
        self.quantiser = quantiser
        self.after = nn.Conv2d(dim, z_channels, 1)
        self.decoder = decoder

    @property
    def factor(self) -> int:
        """f, pixels along each side of a code."""
        return self.encoder.factor

    @property
    def last_layer(self) -> Tensor:
        """The weight [C, base width, 3, 3] whose gradients set the adaptive weight (paper, equation 7)."""
        return self.decoder.conv_out.weight

    def encode(self, images: Tensor) -> Tensor:
        """Returns what the quantiser takes.

        Args:
            images: float [B, C, H, W] in -1..1; H and W multiples of f.

        Returns:
            float [B, D, H / f, W / f].

        Raises:
            ShapeError: images have another rank, dtype or number of channels, or sides that are no multiples of f.
        """
        channels, f = self.encoder.conv_in.in_channels, self.factor
        _check_maps("images", images, channels)
        height, width = images.shape[2:]
        if height % f or width % f or not height or not width:
            raise ShapeError(
                f"images are {height}x{width} pixels; this model takes heights and widths that are multiples of {f}. "
                "Crop or resize them."
            )
        return self.before(self.encoder(self._laid_out(images)))

    def decode(self, values: Tensor) -> Tensor:
        """Returns the images of quantised values.

        Args:
            values: float [B, D, h, w].

        Returns:
            float [B, C, f h, f w], about -1..1, not clamped.

        Raises:
            ShapeError: values have another rank, dtype or number of dimensions.
        """
        _check_maps("values", values, self.after.in_channels)
        return self.decoder(self.after(self._laid_out(values)))

    def forward(self, images: Tensor) -> tuple[Tensor, Quantised]:
        """images float [B, C, H, W] in -1..1 -> reconstruction [B, C, H, W], and what the quantiser gave."""
        quantised: Quantised = self.quantiser(self.encode(images))
        return self.decode(quantised.values), quantised

    def _laid_out(self, maps: Tensor) -> Tensor:
        group_width = self.encoder.conv_in.out_channels // self.encoder.norm_out.num_groups
        return laid_out(maps, group_width=group_width)


def _check_levels(multipliers: Sequence[int], res_blocks: int, attention_levels: Sequence[int]) -> None:
    if not multipliers or min(multipliers) < 1:
        raise ConfigError(f"multipliers = {list(multipliers)}. Give one whole number of at least 1 for each level.")
    if res_blocks < 1:
        raise ConfigError(f"res_blocks = {res_blocks}. A level has at least 1.")
    missing = [level for level in attention_levels if not 0 <= level < len(multipliers)]
    if missing:
        raise ConfigError(
            f"attention_levels = {list(attention_levels)}: there is no level {missing[0]}. "
            f"{len(multipliers)} multipliers make levels 0 (finest) to {len(multipliers) - 1}."
        )


def _check_maps(name: str, maps: Tensor, channels: int) -> None:
    if maps.ndim != 4 or maps.shape[1] != channels or not maps.is_floating_point():
        raise ShapeError(
            f"{name} are {maps.dtype} {list(maps.shape)}; this model takes float [B, {channels}, height, width]."
        )
