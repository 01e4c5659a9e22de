"""Where a position lies in the image, as vectors: sinusoids, learned coordinates, rotary angles."""

import torch
from torch import Tensor, nn


def sinusoidal_positions(rows: Tensor, cols: Tensor, width: int) -> Tensor:
    """Sines and cosines of the row in the first half of the width, of the column (and channel) in the second.

    Paper, section 3.1, with the timescales of its code: n = width // 4 of them, 10000^(-i / (n - 1)). Left-over
    dimensions are zero.

    Args:
        rows, cols: int64 or float32 [L]. With separate channels, cols counts sub-pixels: column and channel share one index.
        width: D.

    Returns:
        float32 [L, D].
    """
    num_scales = width // 4
    exponent = torch.arange(num_scales) / max(num_scales - 1, 1)
    frequency = 10000.0**-exponent
    parts = []
    for coordinate in (rows, cols):
        angle = coordinate[:, None] * frequency
        parts += [angle.sin(), angle.cos()]
    encoding = torch.cat(parts, -1)
    return nn.functional.pad(encoding, (0, width - encoding.shape[-1]))


class LearnedPositions(nn.Module):
    """One learned vector per row and one per column.

    Args:
        rows, cols: int64 or float32 [L], coordinates of each position.
        width: D.
        summed: False: width // 2 dimensions for the row and the rest for the column (paper, section 3.1). True: both at
            full width, each times sqrt(D), added (the paper's code).
    """

    rows: Tensor
    cols: Tensor

    def __init__(self, rows: Tensor, cols: Tensor, width: int, *, summed: bool) -> None:
        super().__init__()
        self.summed = summed
        self.width = width
        row_width = width if summed else width // 2
        self.row = nn.Embedding(int(rows.max()) + 1, row_width)
        self.col = nn.Embedding(int(cols.max()) + 1, width if summed else width - row_width)
        for table in (self.row, self.col):
            nn.init.normal_(table.weight, std=width**-1.0)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("cols", cols, persistent=False)

    def forward(self) -> Tensor:
        """Returns [L, D]."""
        row, col = self.row(self.rows), self.col(self.cols)
        return (row + col) * self.width**0.5 if self.summed else torch.cat([row, col], -1)


def rotary_angles(rows: Tensor, cols: Tensor, head_dim: int) -> Tensor:
    """Angles of a 2D rotary encoding (Su et al. 2021, RoFormer, equation 15, a quarter of the pairs' scales per axis).

    Args:
        rows, cols: int64 or float32 [L].
        head_dim: a multiple of 4: half of its pairs turn with the row and half with the column.

    Returns:
        float32 [L, head_dim / 2].
    """
    pairs = head_dim // 4
    frequency = 100.0 ** (-torch.arange(pairs) / pairs)  # images are short: 100, not 10000
    return torch.cat([rows[:, None] * frequency, cols[:, None] * frequency], -1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turns the pairs (i, i + head_dim / 2) of x [..., L, N, head_dim] by angles [L, head_dim / 2]."""
    cos, sin = angles.cos().to(x.dtype)[:, None], angles.sin().to(x.dtype)[:, None]
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)
