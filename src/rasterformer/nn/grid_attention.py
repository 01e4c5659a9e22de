"""What transformers over patches of images of any size share: self-attention, where patches lie, how weights begin.

Used by `dit` and `image_encoder`. Attention itself is in `full_attention`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rasterformer.errors import ConfigError
from rasterformer.nn.full_attention import attend
from rasterformer.nn.positions import rotate


class GridAttention(nn.Module):
    """Self-attention of a grid of any size, with queries and keys turned by where they lie.

    Args:
        width: D.
        num_heads: N; divides it.
        qk_norm: normalise each query and key head, with a learned scale.
    """

    def __init__(self, width: int, *, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.head_dim = width // num_heads
        self.project = nn.Linear(width, 3 * width)
        self.query_norm = nn.LayerNorm(self.head_dim, bias=False) if qk_norm else nn.Identity()
        self.key_norm = nn.LayerNorm(self.head_dim, bias=False) if qk_norm else nn.Identity()
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor, angles: Tensor) -> Tensor:
        """h [B, L, D], angles [L, head_dim / 2] -> [B, L, D]."""
        q, k, v = self.project(h).unflatten(-1, (-1, self.head_dim)).chunk(3, 2)  # each [B, L, N, head_dim]
        q, k = rotate(self.query_norm(q), angles).to(v.dtype), rotate(self.key_norm(k), angles).to(v.dtype)
        return self.out(attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), None))


def cell_places(shape: Sequence[int], over: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rows and columns of cells, each float32 [h w], counted in the cells of another grid over the same image.

    Both grids lie over all of the image, so a place is the middle of a cell, and two equal grids have the same places.

    Args:
        shape: h and w, of the cells.
        over: rows and columns of the other grid.
    """
    sides = ((torch.arange(count) + 0.5) * (others / count) - 0.5 for count, others in zip(shape, over, strict=True))
    rows, cols = torch.meshgrid(*sides, indexing="ij")
    return rows.flatten(), cols.flatten()


def check_patches(width: int, *, num_heads: int, patch: int) -> None:
    """Checks what a transformer over patches is made from.

    Raises:
        ConfigError: width is no multiple of four times the heads; patch is below 1.
    """
    if num_heads < 1 or width < 4 or width % (4 * num_heads):
        raise ConfigError(
            f"width = {width} is no multiple of 4 num_heads = {4 * num_heads}: rows and columns turn pairs of dimensions of "
            "each head. Use another width or other num_heads."
        )
    if patch < 1:
        raise ConfigError(f"patch = {patch}. A patch has at least 1 pixel along each side.")


def begin_linear_maps(network: nn.Module) -> None:
    """Draws the weights of all linear maps from Xavier's uniform distribution, and zeroes their biases (Peebles & Xie 2023)."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
