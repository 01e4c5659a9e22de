"""Who may see whom, against the rules of the paper's section 3.3 written as loops over single positions."""

import pytest
import torch

from rasterformer.codecs.pixels import block_raster_order
from rasterformer.errors import ConfigError
from rasterformer.nn.pattern import (
    AttentionPattern,
    full_pattern,
    local_1d_pattern,
    local_2d_pattern,
    surrounding_2d_pattern,
)


def seen_sets(pattern: AttentionPattern) -> list[set[int]]:
    """What a pattern's memory and mask say, position by position."""
    seen = []
    visible = pattern.visible()
    for query in range(pattern.seq_len):
        block, offset = divmod(query, pattern.block_size)
        window = pattern.memory[block].tolist() + [block * pattern.block_size + k for k in range(pattern.block_size)]
        seen.append({key for key, is_seen in zip(window, visible[block, offset].tolist(), strict=True) if is_seen})
    return seen


@pytest.mark.parametrize("length", [1, 7, 8, 16, 19])
@pytest.mark.parametrize("block", [1, 4, 8, 30])
@pytest.mark.parametrize("memory", [0, 3, 4, 8, 50])
def test_1d_query_sees_its_block_so_far_and_the_memory_before_it(length: int, block: int, memory: int) -> None:
    rule = [{j for j in range(i + 1) if j >= i // block * block - memory} for i in range(length)]
    assert seen_sets(local_1d_pattern(length, block, memory)) == rule


def test_full_pattern_sees_everything_before() -> None:
    assert seen_sets(full_pattern(9)) == [set(range(i + 1)) for i in range(9)]


GRIDS = [  # grid, block, flange
    ((4, 6), (2, 3), (1, 1)),
    ((4, 6), (2, 3), (2, 6)),
    ((6, 6), (2, 2), (3, 1)),
    ((4, 12), (2, 4), (0, 3)),
    ((4, 4), (2, 2), (1, 0)),
    ((4, 4), (1, 1), (1, 1)),
    ((4, 4), (4, 4), (2, 2)),
    ((3, 8), (3, 2), (5, 3)),
]


@pytest.mark.parametrize(("grid", "block", "flange"), GRIDS)
def test_2d_query_sees_its_block_so_far_and_the_bands_above_and_to_the_left(
    grid: tuple[int, int], block: tuple[int, int], flange: tuple[int, int]
) -> None:
    (rows, cols), (block_rows, block_cols), (above, aside) = grid, block, flange
    order = block_raster_order(grid, block)
    rank = {cell: position for position, cell in enumerate(order.tolist())}
    rule = []
    for position, cell in enumerate(order.tolist()):
        row, col = divmod(cell, cols)
        top, left = row // block_rows * block_rows, col // block_cols * block_cols
        seen = set()
        for other in range(rows * cols):
            r, c = divmod(other, cols)
            in_block = top <= r < top + block_rows and left <= c < left + block_cols
            in_band_above = top - above <= r < top and left - aside <= c < left + block_cols + aside
            in_band_left = top <= r < top + block_rows and left - aside <= c < left
            if in_band_above or in_band_left or (in_block and rank[other] <= position):
                seen.add(rank[other])
        rule.append(seen)
    pattern = local_2d_pattern(order, grid, block, flange)
    assert seen_sets(pattern) == rule
    assert all(max(seen) == position for position, seen in enumerate(rule)), "memory lies before its block"


@pytest.mark.parametrize(("grid", "block", "flange"), GRIDS)
def test_surrounding_2d_query_sees_its_block_and_the_frame_around_it(
    grid: tuple[int, int], block: tuple[int, int], flange: tuple[int, int]
) -> None:
    (_, cols), (block_rows, block_cols), (above, aside) = grid, block, flange
    order = block_raster_order(grid, block)
    cells = order.tolist()
    rule = []
    for cell in cells:
        row, col = divmod(cell, cols)
        top, left = row // block_rows * block_rows, col // block_cols * block_cols
        seen = set()
        for position, other in enumerate(cells):
            r, c = divmod(other, cols)
            if top - above <= r < top + block_rows + above and left - aside <= c < left + block_cols + aside:
                seen.add(position)
        rule.append(seen)
    pattern = surrounding_2d_pattern(order, grid, block, flange)
    assert seen_sets(pattern) == rule
    assert not pattern.is_causal


def test_a_full_pattern_that_is_not_causal_sees_everything() -> None:
    assert seen_sets(full_pattern(5, is_causal=False)) == [set(range(5))] * 5


def test_2d_memory_has_the_papers_size() -> None:
    grid, block, flange = (8, 8), (2, 2), (2, 3)
    pattern = local_2d_pattern(block_raster_order(grid, block), grid, block, flange)
    above, left = 2 * (2 + 2 * 3), 2 * 3  # rows above, to both sides of the block; columns left of it
    assert pattern.memory.shape == (16, above + left)


@pytest.mark.parametrize(("block", "memory", "previous"), [(4, 8, 2), (4, 0, 0), (4, 6, None), (4, 3, None)])
def test_a_memory_of_whole_blocks_is_known_as_such(block: int, memory: int, previous: int | None) -> None:
    assert local_1d_pattern(20, block, memory).previous_blocks == previous


@pytest.mark.parametrize(
    "pattern",
    [full_pattern(9), local_1d_pattern(20, 4, 4), local_1d_pattern(19, 4, 7), local_1d_pattern(20, 4, 0)]
    + [local_2d_pattern(block_raster_order(g, b), g, b, f) for g, b, f in GRIDS],
    ids=lambda pattern: f"{pattern.seq_len}-{pattern.block_size}-{pattern.memory.shape[1]}",
)
def test_sizes_of_memory_and_history(pattern: AttentionPattern) -> None:
    """What a block sees before itself, and how far back the oldest of it lies."""
    sizes, stretches, recent = [], [], []
    for block in range(pattern.num_blocks):
        first = block * pattern.block_size
        memory = [key for key in pattern.memory[block].tolist() if key >= 0]
        sizes.append(len(memory))
        stretches.append(first - min([first, *memory]))
        most = max(len([key for key in row if key >= 0]) for row in pattern.memory.tolist())
        recent.append(set(memory) == set(range(max(0, first - most), first)))
    assert (pattern.memory_size, pattern.history_size) == (max(sizes), max(stretches))
    assert pattern.memory_is_recent == all(recent)


def test_what_1d_attention_keeps_does_not_grow_with_the_image() -> None:
    for length in (3072, 12288):
        pattern = local_1d_pattern(length, 256, 256)
        assert pattern.memory_is_recent and pattern.memory_size == pattern.history_size == 256


def test_the_memory_of_2d_attention_is_not_the_positions_just_before() -> None:
    grid, block = (4, 4), (2, 2)
    assert not local_2d_pattern(block_raster_order(grid, block), grid, block, (1, 1)).memory_is_recent


@pytest.mark.parametrize(("block", "memory"), [(0, 4), (4, -1)])
def test_1d_sizes_out_of_range_are_refused(block: int, memory: int) -> None:
    with pytest.raises(ConfigError, match=f"block_length = {block} must be at least 1 and memory_length = {memory}"):
        local_1d_pattern(20, block, memory)


@pytest.mark.parametrize(("block", "received"), [((4, 3), "4x3"), ((2, 4), "2x4"), ((0, 3), "0x3")])
def test_2d_blocks_that_do_not_tile_the_grid_are_refused(block: tuple[int, int], received: str) -> None:
    for make in (local_2d_pattern, surrounding_2d_pattern):
        with pytest.raises(ConfigError, match=f"query_block = {received} cells does not tile the grid of 6x6"):
            make(torch.arange(36), (6, 6), block, (1, 1))


def test_a_negative_flange_is_refused() -> None:
    for make in (local_2d_pattern, surrounding_2d_pattern):
        with pytest.raises(ConfigError, match="flange = -1x2 cells must not be negative"):
            make(torch.arange(36), (6, 6), (2, 3), (-1, 2))
