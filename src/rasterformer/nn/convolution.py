"""Convolutions over a grid of cells in generation order. Causal: a position sees cells above it and to its left.

Like attention the causal one comes in two forms that give the same numbers: `CausalConv2d` over whole grids (a dense
convolution, which is what processors run fastest) and `CausalConv2dStep` over the next positions, from a ring of the newest
inputs. An encoder, which has no order to keep, has `Conv2d`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_STEP = 64  # most positions that a step may take, and that may be taken back afterwards


class CausalConv2d(nn.Module):
    """Linear map of the cells in a window that ends at the current cell.

    The window has `kernel[0]` rows, the last of them the current one, and `kernel[1]` columns, centred. Cells to the right
    of the current one in its row are left out, so the parameters hold exactly the cells that are seen: weight
    [out_width, taps * in_width], taps in raster order. Cells beyond the border count as zero. In block raster order the cells
    to the right in the rows above may come later, so there the window has no columns to the right of the current one.

    Args:
        in_width, out_width: dimensions per cell.
        grid: rows and columns.
        kernel: rows and columns of the window, the columns odd.
        sees_itself: whether the current cell belongs to the window.
        order: int64 [L], raster index of the i-th generated cell, blocks in raster order. None: raster order.
    """

    slots: Tensor
    order: Tensor | None
    rank: Tensor | None

    def __init__(
        self,
        in_width: int,
        out_width: int,
        grid: tuple[int, int],
        kernel: tuple[int, int],
        *,
        sees_itself: bool,
        order: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.in_width, self.out_width, self.grid, self.kernel = in_width, out_width, grid, kernel
        rows, cols = kernel
        self.cols_right = cols // 2 if order is None else 0
        self.row_taps = cols // 2 + 1 + self.cols_right  # of a row above
        self.num_taps = (rows - 1) * self.row_taps + cols // 2 + int(sees_itself)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("rank", None if order is None else order.argsort(), persistent=False)
        self.weight = nn.Parameter(
            torch.randn(out_width, self.num_taps * in_width) * (self.num_taps * in_width) ** -0.5
        )
        self.bias = nn.Parameter(torch.zeros(out_width))
        # where the cells of each position's window lie in a ring of the newest inputs: [L, taps]
        source, is_inside = self.window()
        reach = torch.where(is_inside, torch.arange(len(source))[:, None] - source, 0).max()
        self.ring_size = int(reach) + MAX_STEP
        self.register_buffer("slots", torch.where(is_inside, source % self.ring_size, self.ring_size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, in_width] in generation order -> [B, L, out_width]."""
        rows, cols = self.kernel
        if self.num_taps == rows * cols == 1:
            return F.linear(x, self.weight, self.bias)
        missing = rows * self.row_taps - self.num_taps
        weight = F.pad(self.weight, (0, missing * self.in_width))
        weight = weight.view(self.out_width, rows, self.row_taps, self.in_width)
        x = x if self.rank is None else x[:, self.rank]
        image = x.unflatten(1, self.grid).permute(0, 3, 1, 2)  # [B, in_width, H, W], channels last in memory
        image = F.pad(image, (cols // 2, self.cols_right, rows - 1, 0))
        out = F.conv2d(image, weight.permute(0, 3, 1, 2), self.bias)
        out = out.permute(0, 2, 3, 1).flatten(1, 2)
        return out if self.order is None else out[:, self.order]

    def window(self) -> tuple[Tensor, Tensor]:
        """Returns the positions in the window of each position, int64 [L, taps], and which of them lie inside the grid."""
        tap = torch.arange(self.num_taps)
        cell = torch.arange(self.grid[0] * self.grid[1])[:, None] if self.order is None else self.order[:, None]
        down, right = tap // self.row_taps - self.kernel[0] + 1, tap % self.row_taps - self.kernel[1] // 2
        source, column = cell + down * self.grid[1] + right, cell % self.grid[1] + right
        is_inside = (source >= 0) & (column >= 0) & (column < self.grid[1])
        return source if self.rank is None else self.rank[source.clamp(min=0)], is_inside


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


class Conv2d(nn.Module):
    """Linear map of the cells in a window centred on the current one, zero beyond the border: for encoders.

    Args:
        in_width, out_width: dimensions per cell.
        grid: rows and columns.
        kernel: rows and columns of the window, both odd.
        order: int64 [L], raster index of the i-th cell. None: raster order.
    """

    order: Tensor | None
    rank: Tensor | None

    def __init__(
        self,
        in_width: int,
        out_width: int,
        grid: tuple[int, int],
        kernel: tuple[int, int],
        *,
        order: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.in_width, self.out_width, self.grid, self.kernel = in_width, out_width, grid, kernel
        taps = kernel[0] * kernel[1]
        self.weight = nn.Parameter(torch.randn(out_width, taps * in_width) * (taps * in_width) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(out_width))
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("rank", None if order is None else order.argsort(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, in_width] -> [B, L, out_width]."""
        if self.kernel == (1, 1):
            return F.linear(x, self.weight, self.bias)
        x = x if self.rank is None else x[:, self.rank]
        image = x.unflatten(1, self.grid).permute(0, 3, 1, 2)
        weight = self.weight.view(self.out_width, *self.kernel, self.in_width).permute(0, 3, 1, 2)
        out = F.conv2d(image, weight, self.bias, padding=(self.kernel[0] // 2, self.kernel[1] // 2))
        out = out.permute(0, 2, 3, 1).flatten(1, 2)
        return out if self.order is None else out[:, self.order]
