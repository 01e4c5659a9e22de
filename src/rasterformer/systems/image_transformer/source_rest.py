"""What a source pixel still leaves open: the mean of those pixels of its area that have not been drawn yet.

The source of super-resolution is the mean of an area, so the more of the area has been drawn, the better the rest of it is
known; its last pixel is known up to rounding. This is ours, not the paper's. With a factor of 1 it is the source's own value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.codecs.pixels import PixelCodec
from rasterformer.tasks import SourceShape

FEW = 1024  # positions of all images, below which scores are gathered one by one


class SourceRest(nn.Module):
    """The mean that is left, as a feature of the network and as a score of each value by its distance from it.

    Args:
        width: D.
        codec: with separate channels; gives grid and generation order.
        shape: of the sources, three channels.

    Attributes:
        score: [f^2, 3, 511], by the number of pixels left, channel and distance of a value from the mean left.
    """

    earlier: Tensor
    is_earlier: Tensor
    left: Tensor
    channels: Tensor
    cells: Tensor
    values: Tensor

    def __init__(self, width: int, codec: PixelCodec, shape: SourceShape) -> None:
        super().__init__()
        size = codec.image_shape[1]
        factor = size // shape.size
        self.area = factor * factor
        row, column = codec.order // codec.grid[1], codec.order % codec.grid[1] // 3
        channels = codec.order % 3
        cells = (channels * shape.size + row // factor) * shape.size + column // factor  # in [3, h, w]
        # positions of the same area and channel, in generation order: [3 h w, f^2]
        members = torch.argsort(cells, stable=True).view(-1, self.area)
        place = torch.empty_like(cells)
        place[members.flatten()] = torch.arange(self.area).repeat(len(members))
        self.register_buffer("earlier", members[cells], persistent=False)  # [L, f^2]
        self.register_buffer("is_earlier", torch.arange(self.area) < place[:, None], persistent=False)
        self.register_buffer("left", self.area - place, persistent=False)
        self.register_buffer("channels", channels, persistent=False)
        self.register_buffer("cells", cells, persistent=False)
        self.register_buffer("values", torch.arange(256), persistent=False)
        self.project = nn.Linear(2, width)
        distances = (torch.arange(511) - 255).abs() / (self.area / 2)
        left = torch.arange(1, self.area + 1)[:, None, None]
        self.score = nn.Parameter((-1.5 * torch.log1p(distances) / left).repeat(1, 3, 1))  # sharp where little is left

    def mean(self, x: Tensor, source: Tensor, positions: Tensor) -> Tensor:
        """What is left, as a mean, before each position.

        Args:
            x: int64 [B, L, 1], of which positions before each of `positions` are read.
            source: uint8 [B, 3, h, w], area means rounded down.
            positions: int64 [n].

        Returns:
            float32 [B, n], 0..255.
        """
        sums = (x[:, self.earlier[positions], 0] * self.is_earlier[positions]).sum(-1)  # [B, n]
        whole = self.area * source.flatten(1)[:, self.cells[positions]].float() + (self.area - 1) / 2
        return ((whole - sums) / self.left[positions]).clamp(0, 255)

    def features(self, mean: Tensor, positions: Tensor) -> Tensor:
        """mean [B, n] -> [B, n, D]."""
        left = (self.left[positions] / self.area).expand_as(mean)
        return self.project(torch.stack([mean / 127.5 - 1, left], -1).to(self.project.weight.dtype))

    def scores(self, mean: Tensor, positions: Tensor) -> Tensor:
        """mean [B, n] -> what is added to the logits, [B, n, 256]."""
        kind = (self.left[positions] - 1) * 3 + self.channels[positions]  # [n]
        start = 255 - mean.round().long()  # where the distance of value 0 stands in the table
        if mean.numel() <= FEW:
            return self.score.flatten(0, 1)[kind[:, None], start[..., None] + self.values]
        windows = self.score.unfold(-1, 256, 1).flatten(0, 2)  # [f^2 * 3 * 256, 256], by kind and start
        return F.embedding(kind * 256 + start, windows)
