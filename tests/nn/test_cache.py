"""What the cache shows a position is its block's memory and its block so far, for every small pattern."""

import itertools

import pytest
import torch

from rasterformer.codecs.pixels import block_raster_order
from rasterformer.nn.cache import KeyValueCache
from rasterformer.nn.pattern import AttentionPattern, full_pattern, local_1d_pattern, local_2d_pattern

GRIDS = [(4, 6), (6, 3), (3, 4)]


def patterns_1d() -> list[AttentionPattern]:
    return [full_pattern(11)] + [
        local_1d_pattern(length, block, memory)
        for length, block, memory in itertools.product((7, 12, 19), (1, 3, 4, 8), (0, 1, 4, 7, 8, 30))
    ]


def patterns_2d(grid: tuple[int, int]) -> list[AttentionPattern]:
    blocks = [(r, c) for r in (1, 2, 3) for c in (1, 2, 3) if grid[0] % r == 0 and grid[1] % c == 0]
    return [
        local_2d_pattern(block_raster_order(grid, block), grid, block, flange)
        for block in blocks
        for flange in itertools.product((0, 1, 2), (0, 1, 2, 5))
    ]


@pytest.mark.parametrize(
    "patterns", [patterns_1d(), *map(patterns_2d, GRIDS)], ids=["1d", *(f"2d {rows}x{cols}" for rows, cols in GRIDS)]
)
def test_the_cache_shows_memory_and_block_so_far(patterns: list[AttentionPattern]) -> None:
    """Positions are stored under their own numbers, one by one."""
    for pattern in patterns:
        cache = KeyValueCache(pattern, 1, num_heads=1, head_dim=1, like=torch.empty(0, dtype=torch.float64))
        for position in range(pattern.seq_len):
            own = torch.full((1, 2, 1, 1), float(position), dtype=torch.float64)
            shown = cache.store_(position, own)[0, :, :, 0].long()
            first = position // pattern.block_size * pattern.block_size
            memory = [key for key in pattern.memory[position // pattern.block_size].tolist() if key >= 0]
            wanted = sorted(memory) + list(range(first, position + 1))
            assert sorted(shown[0].tolist()) == sorted(shown[1].tolist()) == wanted, (pattern, position)
