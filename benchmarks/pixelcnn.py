"""The opponent: a small PixelCNN++ (Salimans et al. 2017, arXiv 1701.05517), by convolutions alone.

Two stacks of gated residual layers keep the future out by shifts instead of masks: the vertical stack sees the rows above,
the horizontal stack also what lies to the left and takes the vertical one in by a 1x1 convolution. One resolution, no
strides; otherwise the paper's layers: concatenated ELU, weight normalisation, gates, a mixture of logistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.autoregressive.sample import draw
from rasterformer.codecs.pixels import PixelCodec
from rasterformer.distributions import DiscretizedLogisticMixture
from rasterformer.interfaces import Autoregressive, Cond, Known, Loss, OnStep, SampleOptions


@dataclass(frozen=True)
class PixelCNNConfig:
    """The `model` section of the opponent's recipe.

    Args:
        num_filters: width of both stacks.
        depth: gated residual layers of each stack.
        num_mixtures: logistics of the mixture.
        distribution: what the likelihood is, for the model card.
    """

    num_filters: int = 64
    depth: int = 5
    num_mixtures: int = 10
    distribution: str = "dmol"


class PixelCNN(Autoregressive):
    """Causal convolutions over whole pixels in raster order.

    Args:
        config: sizes.
        codec: whole pixels (E = 3) in raster order.
    """

    def __init__(self, config: PixelCNNConfig, codec: PixelCodec) -> None:
        super().__init__()
        width = config.num_filters
        self.num_classes = 0
        self.x_shape, self.grid = codec.x_shape, codec.grid
        self.distribution = DiscretizedLogisticMixture(config.num_mixtures)
        self.above = NormedConv(4, width, (2, 3))
        self.above_row = NormedConv(4, width, (1, 3))
        self.left_column = NormedConv(4, width, (2, 1))
        self.layers = nn.ModuleList(Layer(width) for _ in range(config.depth))
        self.head = NormedConv(width, self.distribution.params_per_position, (1, 1))
        # rows above a pixel that its params depend on: 2 a layer, 2 of the first convolutions, 1 of the last layer's second
        self.reach = 2 * config.depth + 3

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        """x int64 [B, L, 3] -> params [B, L, P]; params[:, i] depends only on x[:, :i]."""
        return self._decode(x.unflatten(1, self.grid)).flatten(1, 2)

    def loss(self, x: Tensor, cond: Cond, *, rng: torch.Generator | None) -> Loss:
        """Mean negative log-likelihood per dimension, in nats; exact."""
        nats = -self.distribution.log_prob(self(x, cond), x).sum(1)
        dims = math.prod(self.x_shape)
        return Loss(total=nats.mean() / dims, nats=nats.detach(), dims=x.new_full((len(x),), dims), bound="exact")

    def sample(
        self,
        cond: Cond,
        batch_size: int,
        *,
        options: SampleOptions,
        rng: Sequence[torch.Generator],
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Draws x int64 [B, L, 3]; each pixel costs a pass over the rows that it depends on."""
        return draw(self, cond, batch_size, options=options, rng=rng, on_step=on_step)

    def begin(self, cond: Cond, batch_size: int) -> tuple[Tensor, tuple[Tensor, int]]:
        """Returns params [B, 1, P] of position 0, and the state: the pixels so far [B, L, 3] and their number."""
        x = torch.zeros(batch_size, *self.x_shape, dtype=torch.int64, device=self.head.bias.device)
        return self._rows(x, 0, 1), (x, 0)

    def step(self, x: Tensor, state: tuple[Tensor, int]) -> tuple[Tensor, tuple[Tensor, int]]:
        """x int64 [B, n, 3], the next positions -> params [B, n, P] of those after them, n - 1 at the end of the image."""
        known, done = state
        known[:, done : done + x.shape[1]] = x
        end = done + x.shape[1]
        return self._rows(known, done + 1, min(end + 1, self.x_shape[0])), (known, end)

    def known(self, cond: Cond) -> Known | None:
        """It takes no sources."""
        return None

    def state_bytes(self, batch_size: int) -> int:
        """The pixels so far are all that is kept."""
        return 8 * batch_size * self.x_shape[0] * self.x_shape[1]

    def to_bfloat16(self) -> PixelCNN:
        """Not needed for the comparison."""
        raise NotImplementedError("the opponent is scored in float32")

    def lookahead(self, state: tuple[Tensor, int]) -> int:
        """Everything that is left: nothing is kept but the pixels."""
        return self.x_shape[0] - state[1]

    def rewind(self, state: tuple[Tensor, int], done: int) -> tuple[Tensor, int]:
        """Forgets the pixels after the first `done`."""
        return state[0], done

    def _rows(self, x: Tensor, first: int, last: int) -> Tensor:
        """Params of positions first..last-1 from the rows within reach, none where first == last."""
        if first == last:
            return self.head.bias.new_zeros(len(x), 0, self.distribution.params_per_position)
        cols = self.grid[1]
        top, bottom = max(0, first // cols - self.reach), (last - 1) // cols + 1
        params = self._decode(x.unflatten(1, self.grid)[:, top:bottom]).flatten(1, 2)
        return params[:, first - top * cols : last - top * cols]

    def _decode(self, x: Tensor) -> Tensor:
        """x int64 [B, h, W, 3] -> params [B, h, W, P]."""
        values = x.to(self.head.bias.dtype) / 127.5 - 1
        image = torch.cat([values, torch.ones_like(values[..., :1])], -1).permute(0, 3, 1, 2)  # channels last in memory
        vertical = down(self.above(F.pad(image, (1, 1, 1, 0))))
        horizontal = down(self.above_row(F.pad(image, (1, 1, 0, 0)))) + right(
            self.left_column(F.pad(image, (0, 0, 1, 0)))
        )
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal)
        params: Tensor = self.head(F.elu(horizontal))
        return params.permute(0, 2, 3, 1)


class Layer(nn.Module):
    """One gated residual layer of each stack. Every tensor is [B, width, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vertical = Gated(width, (2, 3), (1, 1, 1, 0))
        self.horizontal = Gated(width, (2, 2), (1, 0, 1, 0))
        self.across = NormedConv(2 * width, width, (1, 1))

    def forward(self, vertical: Tensor, horizontal: Tensor) -> tuple[Tensor, Tensor]:
        """Returns both stacks' new features."""
        vertical = self.vertical(vertical, None)
        return vertical, self.horizontal(horizontal, self.across(concat_elu(vertical)))


class Gated(nn.Module):
    """x + a sigmoid(b), where a and b come from two convolutions (paper, section 2.5).

    Args:
        width: channels.
        kernel: rows and columns of both convolutions.
        padding: left, right, top, bottom; puts the kernel's end at the pixel or, in the vertical stack, beside it.
    """

    def __init__(self, width: int, kernel: tuple[int, int], padding: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.first = NormedConv(2 * width, width, kernel)
        self.second = NormedConv(2 * width, 2 * width, kernel)
        self.padding = padding

    def forward(self, x: Tensor, beside: Tensor | None) -> Tensor:
        """x and beside [B, width, H, W] -> [B, width, H, W]."""
        inner = self.first(F.pad(concat_elu(x), self.padding))
        if beside is not None:
            inner = inner + beside
        both: Tensor = self.second(F.pad(concat_elu(inner), self.padding))
        value, gate = both.chunk(2, 1)
        return x + value * torch.sigmoid(gate)


class NormedConv(nn.Module):
    """Convolution with weight normalisation: each output's weight is gain v / |v| (Salimans and Kingma 2016).

    Args:
        in_width, out_width: channels.
        kernel: rows and columns. Nothing is padded.
    """

    def __init__(self, in_width: int, out_width: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        fan_in = in_width * math.prod(kernel)
        self.shape = (out_width, *kernel, in_width)
        self.direction = nn.Parameter(torch.empty(out_width, fan_in).uniform_(-(fan_in**-0.5), fan_in**-0.5))
        self.gain = nn.Parameter(self.direction.detach().norm(dim=1, keepdim=True))
        self.bias = nn.Parameter(torch.empty(out_width).uniform_(-(fan_in**-0.5), fan_in**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_width, H, W] -> [B, out_width, H - rows + 1, W - columns + 1]."""
        weight = torch._weight_norm(self.direction, self.gain, 0)
        return F.conv2d(x, weight.view(self.shape).permute(0, 3, 1, 2), self.bias)


def concat_elu(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, 2 C, H, W]."""
    return F.elu(torch.cat([x, -x], 1))


def down(x: Tensor) -> Tensor:
    """Moves the rows of [B, C, H, W] down by one."""
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


def right(x: Tensor) -> Tensor:
    """Moves the columns of [B, C, H, W] right by one."""
    return F.pad(x, (1, 0, 0, 0))[:, :, :, :-1]
