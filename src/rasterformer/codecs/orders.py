"""Orders in which the cells of a code grid are generated (Esser et al. 2021, appendix on the ordering of codes)."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from rasterformer.codecs.pixels import raster_order
from rasterformer.errors import ConfigError, did_you_mean

GenerationOrder = Literal["raster", "subsample", "morton", "spiral_in", "spiral_out", "boustrophedon", "random"]


def code_order(name: GenerationOrder, grid: tuple[int, int], *, seed: int = 1) -> Tensor:
    """Returns the raster index of the i-th generated cell, int64 [L].

    - `raster`: row by row, each from the left. The paper's best.
    - `subsample`: of every 2x2 cells first all upper left ones, then upper right, lower left, lower right; the cells of one
      phase, a grid of half the size, in the same way again.
    - `morton`: along the Z curve: 2x2 cells, 2x2 of those, and so on. Grids that are no square of a power of two are cut out
      of the next larger one that is; the same goes for `subsample`.
    - `spiral_in`: from the lower right corner up, and around against the clock to the middle; `spiral_out` is the reverse.
    - `boustrophedon`: row by row, every second one from the right.
    - `random`: a fixed permutation.

    Args:
        name: which.
        grid: rows and columns, cells.
        seed: of the random permutation, 0..2^32-1; 1 is the paper's. The other orders have none.

    Raises:
        ConfigError: no such order, or a grid without cells.
    """
    if name not in get_args(GenerationOrder):
        raise ConfigError(f"order = {name!r} is no generation order.{did_you_mean(name, get_args(GenerationOrder))}")
    if min(grid) < 1:
        raise ConfigError(f"grid = {grid[0]}x{grid[1]} has no cells. Both sides must be at least 1.")
    raster = raster_order(grid)
    rows, columns = raster // grid[1], raster % grid[1]
    if name == "raster":
        return raster
    if name == "boustrophedon":
        return torch.where(rows % 2 == 1, rows * grid[1] + grid[1] - 1 - columns, raster)
    if name == "random":
        return torch.from_numpy(
            np.random.RandomState(seed).permutation(len(raster))
        )  # numpy keeps this stream for good
    if name in ("morton", "subsample"):
        return _interleaved(rows, columns, lowest_first=name == "subsample").argsort()
    inward = _spiral(grid)
    return inward if name == "spiral_in" else inward.flip(0)


def _interleaved(rows: Tensor, columns: Tensor, *, lowest_first: bool) -> Tensor:
    """The bits of row and column taken in turns, from the highest pair or from the lowest: int64 [L], all different."""
    num_bits = int(max(rows.max(), columns.max())).bit_length()
    key = torch.zeros_like(rows)
    for bit in range(num_bits) if lowest_first else reversed(range(num_bits)):
        key = 4 * key + 2 * (rows >> bit & 1) + (columns >> bit & 1)
    return key


def _spiral(grid: tuple[int, int]) -> Tensor:
    """Takes off the right column, upwards, and turns what is left by a quarter, until nothing is left."""
    left, parts = raster_order(grid).view(grid), []
    while left.numel():
        parts.append(left[:, -1].flip(0))
        left = left[:, :-1].rot90(-1)  # the top row, from the right, is the right column now, from below
    return torch.cat(parts)
