"""From features to the parameters of the distribution: the paper's linear map, and outputs relative to a prediction.

Neighbouring pixels resemble each other. The residual heads start from that: they predict each value from its west, north
and north-west neighbours by the median edge detector (Weinberger et al. 2000, LOCO-I, section III.A) and let the network
say how far from the prediction the value lies. Every head takes h [B, n, D], x [B, L, E] and the positions [n] of h.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Head(nn.Module, ABC):
    """h -> params. `linear` is the map that all of them begin with."""

    linear: nn.Linear
    sees_neighbours: bool  # whether x is looked at

    @abstractmethod
    def forward(self, h: Tensor, x: Tensor | None, positions: Tensor) -> Tensor:
        """h [B, n, D], x int64 [B, L, E] of which only the past of each position is read -> params [B, n, P].

        x may be None where the head does not look at it.
        """


class PlainHead(Head):
    """One linear map, shared by all positions and channels (paper, section 3.1).

    Args:
        width: D.
        num_params: P.
        has_bias: the paper's code has one for `categorical` and none for `dmol`.
    """

    sees_neighbours = False

    def __init__(self, width: int, num_params: int, *, has_bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, num_params, bias=has_bias)

    def forward(self, h: Tensor, x: Tensor | None, positions: Tensor) -> Tensor:
        """h [B, n, D] -> params [B, n, P]."""
        params: Tensor = self.linear(h)
        return params


class ResidualMixtureHead(Head):
    """Parameters of a logistic mixture whose means are relative to the prediction of each channel.

    The coupling between channels is relative too: green moves with how far red lay from its prediction. The map starts
    near zero and its bias spreads the components over scales from a quarter of the range to a single grey level.

    Args:
        width: D.
        grid: rows and columns, pixels.
        order: int64 [L], raster index of the i-th generated pixel.
        num_mixtures: M.
    """

    neighbours: Tensor
    sees_neighbours = True

    def __init__(self, width: int, grid: tuple[int, int], order: Tensor, num_mixtures: int) -> None:
        super().__init__()
        self.num_mixtures = num_mixtures
        self.linear = nn.Linear(width, 10 * num_mixtures)
        self.register_buffer("neighbours", neighbour_positions(grid, order, 1), persistent=False)

    def reset(self) -> None:
        """Puts the map at its start."""
        nn.init.normal_(self.linear.weight, std=1e-3)
        with torch.no_grad():
            self.linear.bias.zero_()
            of_channels = self.linear.bias[self.num_mixtures :].view(3, 3, self.num_mixtures)
            of_channels[1] = torch.linspace(-1.5, -5.5, self.num_mixtures)
            of_channels[2] = 0.5

    def forward(self, h: Tensor, x: Tensor | None, positions: Tensor) -> Tensor:
        """h [B, n, D], x int64 [B, L, 3] -> params [B, n, 10 M], float32 or better."""
        assert x is not None, "neighbours are predicted from"
        params: Tensor = self.linear(h)
        params = params if params.dtype == torch.float64 else params.float()
        past = x[:, self.neighbours[positions]].to(params.dtype) / 127.5 - 1  # [B, n, 3 neighbours, 3 channels]
        predicted = torch.where((positions == 0)[:, None], 0, median_edge(past))  # [B, n, 3]
        logits, rest = params.split([self.num_mixtures, 9 * self.num_mixtures], -1)
        means, log_scales, raw = rest.unflatten(-1, (3, 3, self.num_mixtures)).unbind(-3)  # each [B, n, 3, M]
        c0, c1, c2 = torch.tanh(raw).unbind(-2)
        red, green, blue = predicted[..., None].unbind(-2)
        offset = torch.stack([red.expand_as(c0), green - c0 * red, blue - c1 * red - c2 * green], -2)
        return torch.cat([logits, (means + offset).flatten(-2), log_scales.flatten(-2), raw.flatten(-2)], -1)


class ResidualCategoricalHead(Head):
    """Logits of 256 values, plus a learned score of each value's distance from its prediction, one table per channel.

    Green and blue are predicted by their neighbours plus what the channel before them missed by.

    Args:
        width: D.
        grid: rows and columns, sub-pixels.
        order: int64 [L], raster index of the i-th generated sub-pixel.
    """

    neighbours: Tensor
    channels: Tensor
    previous: Tensor
    is_first: Tensor
    distance: Tensor
    sees_neighbours = True

    def __init__(self, width: int, grid: tuple[int, int], order: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 256)
        self.score = nn.Parameter(torch.empty(3, 511))
        self.register_buffer("neighbours", neighbour_positions(grid, order, 3), persistent=False)
        self.register_buffer("channels", order % grid[1] % 3, persistent=False)
        before = order.argsort()[(order - 1).clamp(min=0)]  # position of the sub-pixel to the left: the channel before
        self.register_buffer("previous", before, persistent=False)
        self.register_buffer("is_first", order < 3, persistent=False)  # of the first pixel
        values = torch.arange(256)
        self.register_buffer("distance", values - values[:, None] + 255, persistent=False)  # [predicted, value]

    def reset(self) -> None:
        """Puts the map at its start: a heavy-tailed peak at the prediction."""
        nn.init.normal_(self.linear.weight, std=1e-3)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            self.score.copy_(-1.5 * torch.log1p((torch.arange(511) - 255).abs() / 4))

    def forward(self, h: Tensor, x: Tensor | None, positions: Tensor) -> Tensor:
        """h [B, n, D], x int64 [B, L, 1] -> logits [B, n, 256]."""
        assert x is not None, "neighbours are predicted from"
        logits: Tensor = self.linear(h)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        channel = self.channels[positions]
        predicted = self._predict(x[..., 0], positions)
        previous = self.previous[positions]
        missed = x[:, previous, 0] - self._predict(x[..., 0], previous)
        predicted = (predicted + torch.where(channel > 0, missed, 0)).clamp(0, 255)
        table = self.score[:, self.distance].flatten(0, 1)  # [3 * 256, 256]
        return logits + F.embedding(predicted + 256 * channel, table)

    def _predict(self, x: Tensor, positions: Tensor) -> Tensor:
        """x int64 [B, L] -> prediction from the same channel of the neighbours, int64 [B, n]."""
        predicted = median_edge(x[:, self.neighbours[positions]][..., None])[..., 0]
        return torch.where(self.is_first[positions], 128, predicted)


def neighbour_positions(grid: tuple[int, int], order: Tensor, stride: int) -> Tensor:
    """Positions of the west, north and north-west neighbours of each position: int64 [L, 3].

    They come earlier in raster order and in block raster order alike. Beyond the border the nearest known one stands in; the
    first pixel has none and points at position 0.

    Args:
        grid: rows and columns, cells.
        order: int64 [L], raster index of the i-th generated cell.
        stride: cells per pixel.
    """
    cell = torch.arange(grid[0] * grid[1])
    has_north, has_west = cell >= grid[1], cell % grid[1] >= stride
    west, north = cell - stride, cell - grid[1]
    of_west = torch.where(has_west, west, torch.where(has_north, north, 0))
    of_north = torch.where(has_north, north, of_west)
    of_corner = torch.where(has_north & has_west, north - stride, torch.where(has_north, north, of_west))
    return order.argsort()[torch.stack([of_west, of_north, of_corner], -1)[order]]


def median_edge(neighbours: Tensor) -> Tensor:
    """Median of west, north and west + north - north-west: [..., 3, E] -> [..., E]."""
    west, north, corner = neighbours.unbind(-2)
    low, high = torch.minimum(west, north), torch.maximum(west, north)
    return torch.maximum(torch.minimum(west + north - corner, high), low)
