"""What a position sees of the image so far, as a vector: the shifted input of section 3.1, and a causal neighbourhood.

Every input takes x int64 [B, L, E] in generation order and the positions [n] to make inputs for, and looks only at
x[:, :i] for position i. The shift runs along the generation order, so that no cell is lost at the ends of blocks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.nn.convolution import CausalConv2d


class Start(nn.Module):
    """Replaces the vector of position 0, which has nothing before it: by zeros (paper) or by a learned vector."""

    def __init__(self, width: int, *, is_learned: bool) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(width)) if is_learned else None

    def forward(self, h: Tensor, positions: Tensor) -> Tensor:
        """h [B, n, D], positions int64 [n] -> [B, n, D]."""
        start = torch.zeros((), dtype=h.dtype, device=h.device) if self.vector is None else self.vector.to(h.dtype)
        return torch.where((positions == 0)[:, None], start, h)


class TableInput(nn.Module):
    """Embeddings of the previous cell's values, 256 rows for each channel, times sqrt(d) (paper, section 3.1).

    Args:
        channels: int64 [L, E], the channel of each symbol.
        width: D.
        learned_start: see `Start`.
    """

    channels: Tensor

    def __init__(self, channels: Tensor, width: int, *, learned_start: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(3 * 256, width)
        nn.init.normal_(self.table.weight, std=width**-0.5)
        self.start = Start(width, is_learned=learned_start)
        self.width = width
        self.register_buffer("channels", channels, persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x int64 [B, L, E], positions [n] -> [B, n, D]."""
        previous = (positions - 1).clamp(min=0)
        row = x[:, previous] + 256 * self.channels[previous]  # [B, n, E]
        return self.start(self.table(row).sum(-2) * self.width**0.5, positions)


class PixelInput(nn.Module):
    """A linear map of the previous pixel's three values: the 1x3 convolution with stride 3 of section 3.1.

    Args:
        width: D.
        with_relu: follow it by a ReLU, as the paper's code does.
        learned_start: see `Start`.
    """

    def __init__(self, width: int, *, with_relu: bool, learned_start: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(3, width)
        self.with_relu = with_relu
        self.start = Start(width, is_learned=learned_start)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x int64 [B, L, 3], positions [n] -> [B, n, D]."""
        previous = (positions - 1).clamp(min=0)
        h = self.linear(x[:, previous].to(self.linear.weight.dtype) / 127.5 - 1)
        return self.start(F.relu(h) if self.with_relu else h, positions)


class NeighbourhoodInput(nn.Module):
    """A causal convolution over the values around the cell, which stands in place of the shift. Raster order only.

    Each value comes with a flag that tells it from the padding; with separate channels (E = 1) both are spread over
    three dimensions by channel, so that the weights of a tap depend on the channel it meets.

    Args:
        num_symbols: E.
        width: D.
        grid: rows and columns, cells.
        kernel: rows and columns of the neighbourhood, cells.
        learned_start: see `Start`.
    """

    def __init__(
        self, num_symbols: int, width: int, grid: tuple[int, int], kernel: tuple[int, int], *, learned_start: bool
    ) -> None:
        super().__init__()
        self.by_channel = num_symbols == 1
        self.grid = grid
        self.convolution = CausalConv2d(6 if self.by_channel else 4, width, grid, kernel, sees_itself=False)
        self.start = Start(width, is_learned=learned_start)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x int64 [B, L, E], positions [n] -> [B, n, D]."""
        length = x.shape[1]
        if len(positions) == length:
            h = self.convolution(self._features(x, positions))
        else:
            source, is_inside = self.convolution.window(positions)  # [n, taps]
            taps = self._features(x[:, source.flatten() % length], source.flatten() % length)
            h = self.convolution.from_taps(taps.unflatten(1, source.shape), is_inside)
        return self.start(h, positions)

    def _features(self, x: Tensor, positions: Tensor) -> Tensor:
        """x int64 [B, n, E] at positions [n] -> values and flags [B, n, 4 or 6]."""
        values = x.to(self.convolution.weight.dtype) / 127.5 - 1
        if not self.by_channel:
            return torch.cat([values, torch.ones_like(values[..., :1])], -1)
        is_channel = F.one_hot(positions % self.grid[1] % 3, 3).to(values.dtype)
        return torch.cat([values * is_channel, is_channel.expand(len(x), -1, -1)], -1)
