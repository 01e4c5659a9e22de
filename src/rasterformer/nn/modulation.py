"""AdaLN: layer norms whose scale and shift are functions of a number, the step of a diffusion process or a class.

One `Modulation` makes those of all layers at once; `adaptive_norm` applies one of them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Modulation(nn.Module):
    """Number -> embedding -> SiLU -> linear map, for each of several norms with weights of its own.

    The linear maps begin at zero, so that every norm begins as a plain LayerNorm. (Gu et al. 2022 draw them and the table from
    N(0, 0.02): near it.)

    Args:
        num_norms: n, norms to be adapted.
        width: D.
        num_values: the number is an index below it, into a table of [num_values, n * D]. None: any number, whose embedding
            is sines and cosines, the same for every norm.
    """

    def __init__(self, num_norms: int, width: int, *, num_values: int | None) -> None:
        super().__init__()
        self.num_norms, self.width = num_norms, width
        self.table = None if num_values is None else nn.Embedding(num_values, num_norms * width)
        self.weight = nn.Parameter(torch.zeros(num_norms, width, 2 * width))
        self.bias = nn.Parameter(torch.zeros(num_norms, 1, 2 * width))

    def forward(self, value: Tensor) -> Tensor:
        """value [B], int64 where there is a table -> [n, B, 2, D]: scale - 1 and shift of each norm."""
        if self.table is None:
            embedding = sinusoids(value, self.width).expand(self.num_norms, -1, -1)
        else:
            embedding = self.table(value).unflatten(-1, (self.num_norms, -1)).transpose(0, 1)  # [n, B, D]
        out = torch.baddbmm(self.bias, F.silu(embedding).to(self.weight.dtype), self.weight)
        return out.unflatten(-1, (2, -1))


def adaptive_norm(h: Tensor, modulation: Tensor) -> Tensor:
    """LayerNorm without weights of its own, times 1 + modulation[:, 0], plus modulation[:, 1].

    Args:
        h: [B, L, D].
        modulation: [B, 2, D].

    Returns:
        [B, L, D].
    """
    scale, shift = modulation[:, :, None].unbind(1)  # each [B, 1, D]
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:]), 1 + scale)


def sinusoids(value: Tensor, width: int) -> Tensor:
    """Sines and cosines of numbers at width // 2 scales from 1 to 1/10000 (Vaswani et al. 2017, with ends as in their code).

    Args:
        value: [B].
        width: D, even.

    Returns:
        float32 [B, D].
    """
    count = width // 2
    scales = torch.exp(torch.arange(count, device=value.device) * (-math.log(10000.0) / max(count - 1, 1)))
    angles = value.float()[:, None] * scales
    return torch.cat([angles.sin(), angles.cos()], -1)
