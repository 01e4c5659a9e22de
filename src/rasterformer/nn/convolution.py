"""Causal convolution over a raster grid: each position sees the cells above it and to its left, and perhaps itself.

Like `Attention` it comes in two forms that give the same numbers: `forward` over whole grids (a dense convolution, which
is what processors run fastest) and `step` over the next positions, from a ring of the newest inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class InputRing:
    """Ring of the newest inputs: position p lies in slot p mod C. rows [B, C, D] is written in place."""

    rows: Tensor

    def write_(self, first: int, inputs: Tensor) -> None:
        """Stores positions first.. of inputs [B, n, D]."""
        slots = torch.arange(first, first + inputs.shape[1], device=inputs.device) % self.rows.shape[1]
        self.rows[:, slots] = inputs


class CausalConv2d(nn.Module):
    """Linear map of the cells in a window that ends at the current cell, in raster order.

    The window has `kernel[0]` rows, the last of them the current one, and `kernel[1]` columns, centred. Cells to the right
    of the current one in its row are left out, so the parameters hold exactly the cells that are seen: weight
    [out_width, taps * in_width], taps in raster order. Cells beyond the border count as zero.

    Args:
        in_width, out_width: dimensions per cell.
        grid: rows and columns.
        kernel: rows and columns of the window, the columns odd.
        sees_itself: whether the current cell belongs to the window.
    """

    offsets: Tensor
    columns: Tensor

    def __init__(
        self, in_width: int, out_width: int, grid: tuple[int, int], kernel: tuple[int, int], *, sees_itself: bool
    ) -> None:
        super().__init__()
        self.in_width, self.out_width, self.grid, self.kernel = in_width, out_width, grid, kernel
        rows, cols = kernel
        self.num_taps = (rows - 1) * cols + cols // 2 + int(sees_itself)
        self.weight = nn.Parameter(
            torch.randn(out_width, self.num_taps * in_width) * (self.num_taps * in_width) ** -0.5
        )
        self.bias = nn.Parameter(torch.zeros(out_width))
        tap = torch.arange(self.num_taps)
        self.register_buffer("offsets", (tap // cols - rows + 1) * grid[1] + tap % cols - cols // 2, persistent=False)
        self.register_buffer("columns", tap % cols - cols // 2, persistent=False)

    @property
    def reach(self) -> int:
        """How many positions back the window begins."""
        return -int(self.offsets.min()) if self.num_taps else 0

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, in_width] in raster order -> [B, L, out_width]."""
        rows, cols = self.kernel
        if self.num_taps == rows * cols == 1:
            return F.linear(x, self.weight, self.bias)
        missing = rows * cols - self.num_taps
        weight = F.pad(self.weight, (0, missing * self.in_width)).view(self.out_width, rows, cols, self.in_width)
        image = x.unflatten(1, self.grid).permute(0, 3, 1, 2)  # [B, in_width, H, W], channels last in memory
        image = F.pad(image, (cols // 2, cols // 2, rows - 1, 0))
        out = F.conv2d(image, weight.permute(0, 3, 1, 2), self.bias)
        return out.permute(0, 2, 3, 1).flatten(1, 2)

    def new_ring(self, batch_size: int, chunk: int, like: Tensor) -> InputRing:
        """Returns an empty ring for steps of at most `chunk` positions."""
        return InputRing(
            like.new_zeros(batch_size, min(self.grid[0] * self.grid[1], self.reach + chunk), self.in_width)
        )

    def step(self, x: Tensor, ring: InputRing, first: int) -> Tensor:
        """x [B, n, in_width] at positions first.. -> [B, n, out_width]. The ring is updated in place."""
        ring.write_(first, x)
        source, is_inside = self.window(torch.arange(first, first + x.shape[1], device=x.device))
        return self.from_taps(ring.rows[:, source % ring.rows.shape[1]], is_inside)

    def window(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions int64 [n] -> the cells of their windows, int64 [n, taps], and which of them lie inside the grid."""
        source = positions[:, None] + self.offsets
        column = positions[:, None] % self.grid[1] + self.columns
        return source, (source >= 0) & (column >= 0) & (column < self.grid[1])

    def from_taps(self, taps: Tensor, is_inside: Tensor) -> Tensor:
        """taps [B, n, taps, in_width], is_inside bool [n, taps] -> [B, n, out_width]."""
        return F.linear((taps * is_inside[..., None].to(taps.dtype)).flatten(2), self.weight, self.bias)
