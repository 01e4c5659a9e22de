"""The encoder: a source image -> one vector for each of its cells, every one of which sees the whole source (section 5.3).

A cell is one channel of a source pixel (paper: 192 of them for 8x8 pixels) or a whole pixel. Where the source has missing
pixels, their values are replaced by a mark of their own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.codecs.pixels import block_raster_order, raster_order
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Cond
from rasterformer.nn.attention import Attention
from rasterformer.nn.blocks import FeedForward, TransformerLayer, make_norm
from rasterformer.nn.pattern import full_pattern, surrounding_2d_pattern
from rasterformer.nn.positions import LearnedPositions, rotary_angles, sinusoidal_positions
from rasterformer.systems.image_transformer.config import Config
from rasterformer.tasks import SourceShape


class Encoder(nn.Module):
    """Embedding of a source image's cells, positions, and layers of self-attention without a mask.

    Width, heads, norm, activation and kind of positions are the decoder's.

    Args:
        config: what the network is.
        shape: of the sources.

    Attributes:
        num_positions: S.

    Raises:
        ConfigError: the blocks of local attention do not tile the source.
    """

    order: Tensor
    sinusoids: Tensor | None

    def __init__(self, config: Config, shape: SourceShape) -> None:
        super().__init__()
        self.shape, self.width = shape, config.width
        self.by_channel = config.encoder_cell == "channel"
        cells = shape.channels if self.by_channel else 1  # of a pixel, side by side in the grid
        grid = (shape.size, shape.size * cells)
        self.cells_per_pixel = cells
        self.num_positions = grid[0] * grid[1]
        order = raster_order(grid)
        pattern = full_pattern(self.num_positions, is_causal=False)
        if config.encoder_attention == "local_2d":
            if any(shape.size % side for side in config.encoder_block):
                raise ConfigError(
                    f"model.encoder_block = {config.encoder_block} does not tile the sources of {shape.size}x{shape.size} "
                    "pixels. Use divisors of their side, or model.encoder_attention = full."
                )
            block = (config.encoder_block[0], config.encoder_block[1] * cells)
            order = block_raster_order(grid, block)
            flange = (config.encoder_flange[0], config.encoder_flange[1] * cells)
            pattern = surrounding_2d_pattern(order, grid, block, flange)
        self.register_buffer("order", order, persistent=False)
        rows, cols = order // grid[1], order % grid[1]

        if self.by_channel:  # one table of 256 values and, where pixels may be missing, a mark for each channel
            self.rows_per_channel = 256 + int(shape.has_mask)
            self.table = nn.Embedding(shape.channels * self.rows_per_channel, self.width)
            nn.init.normal_(self.table.weight, std=self.width**-0.5)
        else:
            self.linear = nn.Linear(shape.channels + int(shape.has_mask), self.width)
        sinusoids = sinusoidal_positions(rows, cols, self.width) if config.positions == "sinusoidal" else None
        self.register_buffer("sinusoids", sinusoids, persistent=False)
        is_learned = config.positions in ("learned", "learned_summed")
        summed = config.positions == "learned_summed"
        self.positions = LearnedPositions(rows, cols, self.width, summed=summed) if is_learned else None
        self.dropout = nn.Dropout(config.dropout_prob)

        head_dim = config.heads_width // config.num_heads
        angles = rotary_angles(rows, cols, head_dim) if config.rotary else None
        self.layers = nn.ModuleList(
            TransformerLayer(
                self.width,
                attention=Attention(
                    self.width,
                    num_heads=config.num_heads,
                    num_kv_heads=config.kv_heads,
                    head_dim=head_dim,
                    pattern=pattern,
                    qk_norm=config.qk_norm,
                    angles=angles,
                ),
                feed_forward=FeedForward(
                    self.width,
                    config.mlp_width,
                    activation=config.activation,
                    grid=grid,
                    kernel=config.encoder_kernel,
                    order=None if config.encoder_attention == "full" else order,
                    is_causal=False,
                ),
                norm=config.norm,
                is_post_norm=config.norm_position == "post",
                dropout_prob=config.dropout_prob,
            )
            for _ in range(config.encoder_depth or 0)
        )
        self.final_norm = make_norm(config.norm, self.width) if config.norm_position == "pre" else nn.Identity()

    def forward(self, source: Tensor, known: Tensor | None) -> Tensor:
        """source uint8 [B, c, h, w], known bool [B, h, w] where pixels may be missing -> [B, S, D]."""
        h = self._embed(source, known)
        if self.sinusoids is not None:
            h = h + self.sinusoids.to(h.dtype)
        if self.positions is not None:
            h = h + self.positions().to(h.dtype)
        h = self.dropout(h)
        for layer in self.layers:
            h = layer(h)
        return self.final_norm(h)

    def cells_at(self, rows: Tensor, cols: Tensor, channels: Tensor | None, image_size: int) -> Tensor:
        """Which of the encoder's positions lie where target pixels lie.

        Args:
            rows, cols: int64 [L], target pixels.
            channels: int64 [L], of each; the same channel's cell is chosen. None: the pixel's cells, all of them.
            image_size: side of the target, pixels.

        Returns:
            int64 [L, m], m being 1, or the number of a source pixel's cells.
        """
        row, col = rows * self.shape.size // image_size, cols * self.shape.size // image_size
        first = (row * self.shape.size + col) * self.cells_per_pixel
        if self.cells_per_pixel == 1:
            cells = first[:, None]
        elif channels is None:
            cells = first[:, None] + torch.arange(self.cells_per_pixel)
        else:
            cells = (first + channels)[:, None]
        return self.order.argsort()[cells]

    def check(self, cond: Cond, batch_size: int) -> None:
        """Refuses a condition without a fitting source.

        Raises:
            ConfigError: source or mask are missing, superfluous, or of another shape or dtype.
        """
        size, channels = self.shape.size, self.shape.channels
        if cond.source is None:
            raise ConfigError(
                f"source is missing: this model makes images from {size}x{size} sources and needs one for each image."
            )
        if cond.source.shape != (batch_size, channels, size, size) or cond.source.dtype != torch.uint8:
            raise ConfigError(
                f"source is {cond.source.dtype} {list(cond.source.shape)}; this model takes torch.uint8 "
                f"[{batch_size}, {channels}, {size}, {size}]."
            )
        if (cond.known is not None) != self.shape.has_mask:
            expected = "needs the mask of known pixels" if self.shape.has_mask else "has no use for a mask"
            raise ConfigError(
                f"known {'was' if cond.known is not None else 'was not'} given, but this model {expected}."
            )
        if cond.known is not None and (cond.known.shape != (batch_size, size, size) or cond.known.dtype != torch.bool):
            raise ConfigError(
                f"known is {cond.known.dtype} {list(cond.known.shape)}; this model takes torch.bool "
                f"[{batch_size}, {size}, {size}]."
            )

    def _embed(self, source: Tensor, known: Tensor | None) -> Tensor:
        pixels = source.permute(0, 2, 3, 1)  # [B, h, w, c]
        if self.by_channel:
            rows = pixels.long() + self.rows_per_channel * torch.arange(pixels.shape[-1], device=source.device)
            if known is not None:
                missing = 256 + self.rows_per_channel * torch.arange(pixels.shape[-1], device=source.device)
                rows = torch.where(known[..., None], rows, missing)
            return F.embedding(rows.flatten(1)[:, self.order], self.table.weight) * math.sqrt(self.width)
        values = pixels.to(self.linear.weight.dtype) / 127.5 - 1
        if known is not None:
            flag = known[..., None].to(values.dtype)
            values = torch.cat([values * flag, flag], -1)
        return self.linear(values.flatten(1, 2)[:, self.order])
