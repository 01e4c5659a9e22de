"""Where the cells of an image lie, as tokens: the condition of a model that draws larger images without any other."""

from __future__ import annotations

import torch
from torch import Tensor


def coordinate_codes(grid: tuple[int, int], factor: int, num_coordinates: int) -> Tensor:
    """Returns the place of each cell of an image in raster order, as one of `num_coordinates` steps: int64 [h, w].

    The place of a pixel is its raster index divided by the number of pixels, that of a cell the mean over its pixels; it is
    multiplied by the number of steps and rounded. The paper's code reaches one step too many at the end; here it does not.

    Args:
        grid: h, w, cells.
        factor: pixels of a cell along each side.
        num_coordinates: K.

    Source: Esser et al. 2021, section 3.3, "coordinates", as in their code for faces.
    """
    height, width = grid[0] * factor, grid[1] * factor
    middle = (factor - 1) / 2
    rows = torch.arange(grid[0], dtype=torch.float64)[:, None] * factor + middle
    cols = torch.arange(grid[1], dtype=torch.float64)[None, :] * factor + middle
    place = (rows * width + cols) / (height * width)
    return (place * num_coordinates).round().long().clamp(max=num_coordinates - 1)
