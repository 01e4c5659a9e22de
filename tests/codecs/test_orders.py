"""Generation orders: small grids written out by hand, and what holds on every grid."""

from typing import get_args

import pytest
import torch

from rasterformer.codecs.orders import GenerationOrder, code_order
from rasterformer.errors import ConfigError

NAMES = get_args(GenerationOrder)
GRIDS = [(1, 1), (1, 5), (5, 1), (2, 3), (4, 4), (6, 4), (5, 7), (16, 16)]

# The i-th generated cell of a 4x4 grid, whose cells are counted row by row.
FOUR_BY_FOUR = {
    "raster": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    "subsample": [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15],
    "morton": [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15],
    "spiral_in": [15, 11, 7, 3, 2, 1, 0, 4, 8, 12, 13, 14, 10, 6, 5, 9],
    "spiral_out": [9, 5, 6, 10, 14, 13, 12, 8, 4, 0, 1, 2, 3, 7, 11, 15],
    "boustrophedon": [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11, 15, 14, 13, 12],
}
# 0 1 2 / 3 4 5
TWO_BY_THREE = {
    "raster": [0, 1, 2, 3, 4, 5],
    "subsample": [0, 2, 1, 3, 5, 4],
    "morton": [0, 1, 3, 4, 2, 5],
    "spiral_in": [5, 2, 1, 0, 3, 4],
    "spiral_out": [4, 3, 0, 1, 2, 5],
    "boustrophedon": [0, 1, 2, 5, 4, 3],
}


@pytest.mark.parametrize("name", FOUR_BY_FOUR)
def test_small_grids_are_walked_as_written_here(name: GenerationOrder) -> None:
    assert code_order(name, (4, 4)).tolist() == FOUR_BY_FOUR[name]
    assert code_order(name, (2, 3)).tolist() == TWO_BY_THREE[name]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_order_is_a_permutation(name: GenerationOrder, grid: tuple[int, int]) -> None:
    order = code_order(name, grid)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(grid[0] * grid[1]))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", ["spiral_in", "spiral_out", "boustrophedon"])
def test_cells_that_follow_each_other_touch(name: GenerationOrder, grid: tuple[int, int]) -> None:
    cells = [divmod(cell, grid[1]) for cell in code_order(name, grid).tolist()]
    assert all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in zip(cells, cells[1:], strict=False))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_spiral_goes_around_ring_after_ring(grid: tuple[int, int]) -> None:
    rows, columns = grid
    rings = [
        min(row, column, rows - 1 - row, columns - 1 - column)
        for row, column in (divmod(cell, columns) for cell in code_order("spiral_in", grid).tolist())
    ]
    assert rings == sorted(rings)
    assert code_order("spiral_out", grid).tolist() == code_order("spiral_in", grid).tolist()[::-1]


@pytest.mark.parametrize("grid", [(8, 8), (6, 4), (5, 7)], ids=str)
def test_subsampling_takes_phase_after_phase_and_each_in_the_same_way(grid: tuple[int, int]) -> None:
    def walk(rows: list[int], columns: list[int]) -> list[int]:
        if len(rows) <= 1 and len(columns) <= 1:
            return [row * grid[1] + column for row in rows for column in columns]
        return [cell for r in (0, 1) for c in (0, 1) for cell in walk(rows[r::2], columns[c::2])]

    assert code_order("subsample", grid).tolist() == walk(list(range(grid[0])), list(range(grid[1])))


@pytest.mark.parametrize("grid", [(8, 8), (6, 4), (5, 7)], ids=str)
def test_morton_takes_quarter_after_quarter_and_each_in_the_same_way(grid: tuple[int, int]) -> None:
    def walk(top: int, left: int, side: int) -> list[int]:
        if side == 1:
            return [top * grid[1] + left] if top < grid[0] and left < grid[1] else []
        half = side // 2
        return [cell for r in (0, half) for c in (0, half) for cell in walk(top + r, left + c, half)]

    assert code_order("morton", grid).tolist() == walk(0, 0, 8)


def test_the_random_order_belongs_to_its_seed() -> None:
    first, again, other = (code_order("random", (8, 8), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(code_order("random", (8, 8)), code_order("random", (8, 8), seed=1))


def test_an_unknown_order_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="order = 'spiral_inn' is no generation order. Did you mean 'spiral_in'"):
        code_order("spiral_inn", (4, 4))  # type: ignore[arg-type]


@pytest.mark.parametrize("grid", [(0, 4), (4, 0)])
def test_a_grid_without_cells_is_refused(grid: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=f"grid = {grid[0]}x{grid[1]} has no cells"):
        code_order("raster", grid)
