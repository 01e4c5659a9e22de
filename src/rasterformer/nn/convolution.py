"""Causal convolution over a raster grid: each position sees the cells above it and to its left, and perhaps itself.

Like attention it comes in two forms that give the same numbers: `CausalConv2d` over whole grids (a dense convolution, which
is what processors run fastest) and `CausalConv2dStep` over the next positions, from a ring of the newest inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_STEP = 64  # most positions that a step may take, and that may be taken back afterwards


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

    slots: Tensor

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
        # where the cells of each position's window lie in a ring of the newest inputs: [L, taps]
        self.ring_size = (rows - 1) * grid[1] + cols // 2 + MAX_STEP
        source, is_inside = self.window()
        self.register_buffer("slots", torch.where(is_inside, source % self.ring_size, self.ring_size), persistent=False)

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

    def window(self) -> tuple[Tensor, Tensor]:
        """Returns the cells in the window of each position, int64 [L, taps], and which of them lie inside the grid."""
        position, tap = torch.arange(self.grid[0] * self.grid[1])[:, None], torch.arange(self.num_taps)
        down, right = tap // self.kernel[1] - self.kernel[0] + 1, tap % self.kernel[1] - self.kernel[1] // 2
        source, column = position + down * self.grid[1] + right, position % self.grid[1] + right
        return source, (source >= 0) & (column >= 0) & (column < self.grid[1])


class CausalConv2dStep:
    """The next positions of a causal convolution, with a ring of the newest inputs: position p in slot p mod C.

    The ring holds MAX_STEP positions more than the window reaches back, so the last step may be given again.

    Args:
        convolution: its weights are used, not copied.
        batch_size: B.
        like: gives dtype and device of the ring.
    """

    def __init__(self, convolution: CausalConv2d, batch_size: int, like: Tensor) -> None:
        self.weight, self.bias = convolution.weight, convolution.bias
        (rows, cols), in_width = convolution.kernel, convolution.in_width
        self.is_pointwise = rows == cols == convolution.num_taps == 1
        self.nbytes = 0
        if self.is_pointwise:
            return
        self.slots, self.ring_size = convolution.slots, convolution.ring_size
        self.ring = like.new_zeros(batch_size, self.ring_size + 1, in_width)  # the slot after the last holds zeros
        self.nbytes = self.ring.nbytes

    def __call__(self, x: Tensor, first: int) -> Tensor:
        """x [B, n, in_width] at positions first.., n <= MAX_STEP -> [B, n, out_width]."""
        if self.is_pointwise:
            return F.linear(x, self.weight, self.bias)
        self.write_(x, first)
        return self.read(first, x.shape[1])

    def write_(self, x: Tensor, first: int) -> None:
        """Puts x [B, n, in_width] at positions first.., n <= MAX_STEP, into the ring."""
        count, start = x.shape[1], first % self.ring_size
        assert count <= MAX_STEP, f"a step takes at most {MAX_STEP} positions, not {count}"
        head = min(count, self.ring_size - start)
        self.ring[:, start : start + head] = x[:, :head]
        if head < count:
            self.ring[:, : count - head] = x[:, head:]

    def read(self, first: int, count: int) -> Tensor:
        """Returns the output at positions first..first+count-1, [B, count, out_width], whose windows are in the ring."""
        taps = self.ring.index_select(1, self.slots[first : first + count].flatten())
        return F.linear(taps.view(len(taps), count, -1), self.weight, self.bias)
