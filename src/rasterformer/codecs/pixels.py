"""Pixels as symbols, in raster or block raster order: nothing is lost, only reordered."""

from __future__ import annotations

import torch
from torch import Tensor

from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Codec


def raster_order(grid: tuple[int, int]) -> Tensor:
    """Row by row, column by column: int64 [L]."""
    return torch.arange(grid[0] * grid[1])


def block_raster_order(grid: tuple[int, int], block: tuple[int, int]) -> Tensor:
    """Blocks in raster order, cells in raster order inside a block (paper, section 3.3).

    Args:
        grid: rows and columns, cells.
        block: rows and columns of a block, cells; must divide the grid.

    Returns:
        int64 [L], raster index of the i-th generated cell.

    Raises:
        ConfigError: the blocks do not tile the grid.
    """
    (rows, cols), (block_rows, block_cols) = grid, block
    if block_rows < 1 or block_cols < 1 or rows % block_rows or cols % block_cols:
        raise ConfigError(
            f"query_block = {block_rows}x{block_cols} cells does not tile the grid of {rows}x{cols} cells."
        )
    cells = torch.arange(rows * cols).view(rows // block_rows, block_rows, cols // block_cols, block_cols)
    return cells.transpose(1, 2).flatten()


class PixelCodec(Codec):
    """uint8 images <-> symbols 0..255 in generation order.

    A cell of the grid is a whole pixel (E = 3, for joint likelihoods) or one channel of a pixel (E = 1; the grid is then
    [H, 3W], red, green and blue side by side).

    Args:
        image_size: side of the square image, pixels.
        is_joint: a cell is a whole pixel.
        order: int64 [L], raster index of the i-th generated cell. None: raster order.
    """

    vocab_size = 256
    lossless = True

    def __init__(self, image_size: int, *, is_joint: bool, order: Tensor | None = None) -> None:
        self.image_shape = (3, image_size, image_size)
        self.grid = (image_size, image_size if is_joint else 3 * image_size)
        self.symbols_per_position = 3 if is_joint else 1
        self.x_shape = (self.grid[0] * self.grid[1], self.symbols_per_position)
        self.order = raster_order(self.grid) if order is None else order
        self.rank = torch.empty_like(self.order)  # generation index of each raster cell
        self.rank[self.order] = torch.arange(len(self.order))

    def encode(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> int64 [B, L, E].

        Raises:
            ShapeError: another shape or dtype.
        """
        if images.dtype != torch.uint8 or images.shape[1:] != self.image_shape:
            raise ShapeError(
                f"images are {images.dtype} {list(images.shape)}; this model takes torch.uint8 "
                f"[B, {', '.join(map(str, self.image_shape))}]."
            )
        cells = images.permute(0, 2, 3, 1).reshape(len(images), -1, self.symbols_per_position)
        return cells[:, self.order.to(images.device)].long()

    def decode(self, x: Tensor) -> Tensor:
        """int64 [B, L, E] -> uint8 [B, 3, H, W].

        Raises:
            ShapeError: another shape.
        """
        if x.shape[1:] != self.x_shape:
            raise ShapeError(f"x is {list(x.shape)}; this codec takes [B, {self.x_shape[0]}, {self.x_shape[1]}].")
        return self.image_of(x.to(torch.uint8))

    def positions_of(self, mask: Tensor) -> Tensor:
        """A property of pixels, [B, H, W], as one of positions, [B, L]."""
        cells = mask[..., None].expand(*mask.shape, 3).reshape(len(mask), -1, self.symbols_per_position)[..., 0]
        return cells[:, self.order.to(mask.device)]

    def image_of(self, values: Tensor) -> Tensor:
        """Lays any per-symbol values [B, L, E] out as [B, 3, H, W]: for masks, likelihood maps and the like."""
        _, height, width = self.image_shape
        return values[:, self.rank.to(values.device)].reshape(len(values), height, width, 3).permute(0, 3, 1, 2)
