"""Coordinates of cells against a loop over pixels (Esser et al. 2021, section 3.3, and their code for faces)."""

from fractions import Fraction

import pytest
import torch

from rasterformer.conditioning.coordinates import coordinate_codes


@pytest.mark.parametrize("grid", [(4, 4), (2, 7), (5, 3), (1, 1)])
@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("count", [2, 10, 1024])
def test_a_cell_has_the_mean_place_of_its_pixels(grid: tuple[int, int], factor: int, count: int) -> None:
    height, width = grid[0] * factor, grid[1] * factor
    found = coordinate_codes(grid, factor, count)
    assert found.shape == grid and found.dtype == torch.int64
    for row in range(grid[0]):
        for col in range(grid[1]):
            total = Fraction(0)
            for y in range(row * factor, (row + 1) * factor):
                for x in range(col * factor, (col + 1) * factor):
                    total += Fraction(y * width + x, height * width)
            exact = total / factor**2 * count
            value = int(found[row, col])
            assert abs(value - exact) <= Fraction(1, 2) or value == count - 1 < exact
            assert 0 <= value < count


def test_known_values() -> None:
    """A picture of 2x2 pixels, each a cell: places 0, 1/4, 1/2, 3/4."""
    assert coordinate_codes((2, 2), 1, 100).tolist() == [[0, 25], [50, 75]]


def test_coordinates_grow_in_raster_order_and_use_all_steps() -> None:
    flat = coordinate_codes((16, 16), 1, 64).flatten()
    assert bool((flat.diff() >= 0).all())
    assert sorted(set(flat.tolist())) == list(range(64))


def test_the_last_step_is_not_exceeded() -> None:
    """The paper's code reaches num_coordinates itself where the last mean is nearer to 1 than half a step."""
    assert int(coordinate_codes((64, 64), 1, 16)[-1, -1]) == 15
