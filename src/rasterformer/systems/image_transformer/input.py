"""What a position sees of the image so far, as a vector: the shifted input of section 3.1, and a causal neighbourhood.

Every input has two forms that give the same numbers: `forward` over all positions of an image, and what `stepper` returns
for the next ones. It looks only at x[:, :i] for position i. The shift runs along the generation order, so that no cell is
lost at the ends of blocks. Position 0 has nothing before it and starts from a vector of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.nn.convolution import CausalConv2d, CausalConv2dStep

InputStep = Callable[[Tensor, int], Tensor]


class Start(nn.Module):
    """The vector of position 0: zeros (paper) or learned."""

    def __init__(self, width: int, *, is_learned: bool) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(width)) if is_learned else None

    def forward(self, like: Tensor) -> Tensor:
        """like [B, ..., D] gives dtype and device -> [B, 1, D]."""
        vector = like.new_zeros(like.shape[-1]) if self.vector is None else self.vector.to(like.dtype)
        return vector.expand(len(like), 1, -1)


class Input(nn.Module, ABC):
    """x -> the vectors that the layers begin with. `start` is that of position 0."""

    start: Start

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """x int64 [B, L, E] -> [B, L, D]."""

    @abstractmethod
    def stepper(self, batch_size: int, like: Tensor) -> InputStep:
        """Returns a function of the symbols of positions first-1.., int64 [B, n, E], and of first >= 1.

        It gives the vectors of positions first.., [B, n, D], and must be called for all positions in order.

        Args:
            batch_size: B.
            like: gives dtype and device of what it keeps of the past.
        """

    def stepper_bytes(self, batch_size: int, like: Tensor) -> int:
        """Returns the bytes that such a function keeps."""
        return 0


class TableInput(Input):
    """Embeddings of the previous cell's values, 256 rows for each channel, times sqrt(d) (paper, section 3.1).

    Args:
        channels: int64 [L, E], the channel of each symbol.
        width: D.
        learned_start: see `Start`.
    """

    first_row: Tensor

    def __init__(self, channels: Tensor, width: int, *, learned_start: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(3 * 256, width)
        nn.init.normal_(self.table.weight, std=width**-0.5)
        self.start = Start(width, is_learned=learned_start)
        self.scale = width**0.5
        self.register_buffer("first_row", 256 * channels, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x int64 [B, L, E] -> [B, L, D]."""
        h = self._embed(x[:, :-1], self.first_row[:-1], self.table.weight)
        return torch.cat([self.start(h), h], 1)

    def stepper(self, batch_size: int, like: Tensor) -> InputStep:
        """Keeps nothing."""
        first_row, table = self.first_row, self.table.weight
        return lambda previous, first: self._embed(
            previous, first_row[first - 1 : first - 1 + previous.shape[1]], table
        )

    def _embed(self, x: Tensor, first_row: Tensor, table: Tensor) -> Tensor:
        return F.embedding(x + first_row, table).sum(-2) * self.scale


class PixelInput(Input):
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

    def forward(self, x: Tensor) -> Tensor:
        """x int64 [B, L, 3] -> [B, L, D]."""
        h = self._embed(x[:, :-1])
        return torch.cat([self.start(h), h], 1)

    def stepper(self, batch_size: int, like: Tensor) -> InputStep:
        """Keeps nothing."""
        return lambda previous, first: self._embed(previous)

    def _embed(self, x: Tensor) -> Tensor:
        h = self.linear(x.to(self.linear.weight.dtype) / 127.5 - 1)
        return F.relu(h) if self.with_relu else h


class NeighbourhoodInput(Input):
    """A causal convolution over the values around the cell, which stands in place of the shift.

    Each value comes with a flag that tells it from the padding; with separate channels (E = 1) both are spread over
    three dimensions by channel, so that the weights of a tap depend on the channel it meets.

    Args:
        num_symbols: E.
        width: D.
        grid: rows and columns, cells.
        kernel: rows and columns of the neighbourhood, cells.
        order: raster index of the i-th generated cell, int64 [L]. None: raster order.
        learned_start: see `Start`.
    """

    is_channel: Tensor

    def __init__(
        self,
        num_symbols: int,
        width: int,
        grid: tuple[int, int],
        kernel: tuple[int, int],
        *,
        order: Tensor | None = None,
        learned_start: bool,
    ) -> None:
        super().__init__()
        self.by_channel = num_symbols == 1
        in_width = 6 if self.by_channel else 4
        self.convolution = CausalConv2d(in_width, width, grid, kernel, sees_itself=False, order=order)
        self.start = Start(width, is_learned=learned_start)
        channels = (torch.arange(grid[0] * grid[1]) if order is None else order) % grid[1] % 3
        self.register_buffer("is_channel", F.one_hot(channels, 3).float(), persistent=False)  # [L, 3]

    def forward(self, x: Tensor) -> Tensor:
        """x int64 [B, L, E] -> [B, L, D]."""
        h = self.convolution(self._features(x, 0))
        return torch.cat([self.start(h), h[:, 1:]], 1)

    def stepper(self, batch_size: int, like: Tensor) -> InputStep:
        """Keeps the newest values and flags."""
        convolution = CausalConv2dStep(self.convolution, batch_size, like)

        def step(previous: Tensor, first: int) -> Tensor:
            convolution.write_(self._features(previous, first - 1), first - 1)
            return convolution.read(first, previous.shape[1])

        return step

    def stepper_bytes(self, batch_size: int, like: Tensor) -> int:
        """Returns the bytes of the ring of values and flags."""
        return CausalConv2dStep(self.convolution, batch_size, like).nbytes

    def _features(self, x: Tensor, first: int) -> Tensor:
        """x int64 [B, n, E] at positions first.. -> values and flags [B, n, 4 or 6]."""
        values = x.to(self.convolution.weight.dtype) / 127.5 - 1
        if not self.by_channel:
            return F.pad(values, (0, 1), value=1.0)
        is_channel = self.is_channel[first : first + x.shape[1]].to(values.dtype)
        return torch.cat([values * is_channel, is_channel.expand(len(x), -1, -1)], -1)
