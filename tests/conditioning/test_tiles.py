"""Tiles cover the image; what one of them is given as context has been drawn before."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from rasterformer.conditioning.tiles import Tile, plan_tiles
from rasterformer.errors import ConfigError

SIZES = [
    (height, width, size, overlap)
    for size in (1, 2, 4, 5)
    for overlap in range(size)
    for height, width in [(size, size), (size, size + 3), (size + 1, 2 * size + 1), (3 * size, 2 * size + 3), (13, 11)]
]


def overlaps(one: Tile, other: Tile, size: int) -> bool:
    return abs(one.top - other.top) < size and abs(one.left - other.left) < size


def kept(tile: Tile, height: int, width: int) -> np.ndarray:
    pixels = np.zeros((height, width), bool)
    pixels[tile.top : tile.keep_bottom, tile.left : tile.keep_right] = True
    return pixels


@pytest.mark.parametrize(("height", "width", "size", "overlap"), SIZES)
def test_every_pixel_is_kept_by_a_tile_within_the_image(height: int, width: int, size: int, overlap: int) -> None:
    covered = np.zeros((height, width), bool)
    for tile in sum(plan_tiles(height, width, size=size, overlap=overlap), []):
        assert 0 <= tile.top <= height - size and 0 <= tile.left <= width - size
        assert tile.top < tile.keep_bottom <= tile.top + size and tile.left < tile.keep_right <= tile.left + size
        covered |= kept(tile, height, width)
    assert covered.all()


@pytest.mark.parametrize(("height", "width", "size", "overlap"), SIZES)
def test_tiles_that_overlap_are_drawn_in_raster_order(height: int, width: int, size: int, overlap: int) -> None:
    """None of them share a wave, and the upper or left one comes first."""
    waves = plan_tiles(height, width, size=size, overlap=overlap)
    drawn = [(wave, tile) for wave, tiles in enumerate(waves) for tile in tiles]
    for (wave, one), (other_wave, other) in combinations(drawn, 2):
        if overlaps(one, other, size):
            assert (wave < other_wave) == ((one.top, one.left) < (other.top, other.left)) and wave != other_wave


@pytest.mark.parametrize(("height", "width", "size", "overlap"), SIZES)
def test_every_tile_has_something_left_to_draw(height: int, width: int, size: int, overlap: int) -> None:
    known = np.zeros((height, width), bool)
    for tiles in plan_tiles(height, width, size=size, overlap=overlap):
        before = known.copy()
        for tile in tiles:
            assert not before[tile.top : tile.top + size, tile.left : tile.left + size].all()
            known |= kept(tile, height, width)


@pytest.mark.parametrize(("height", "width", "size", "overlap"), SIZES)
def test_neighbours_share_at_least_the_overlap(height: int, width: int, size: int, overlap: int) -> None:
    tiles = sum(plan_tiles(height, width, size=size, overlap=overlap), [])
    for starts in (sorted({tile.top for tile in tiles}), sorted({tile.left for tile in tiles})):
        steps = [later - first for first, later in zip(starts, starts[1:], strict=False)]
        assert all(step == size - overlap for step in steps[:-1]) and all(0 < s <= size - overlap for s in steps)


@pytest.mark.parametrize(("height", "width", "size", "overlap"), SIZES)
def test_a_tile_gives_up_half_the_overlap_but_not_at_the_border(
    height: int, width: int, size: int, overlap: int
) -> None:
    for tile in sum(plan_tiles(height, width, size=size, overlap=overlap), []):
        bottom, right = tile.top + size, tile.left + size
        assert tile.keep_bottom == (height if bottom == height else bottom - overlap // 2)
        assert tile.keep_right == (width if right == width else right - overlap // 2)


def test_an_image_of_the_size_of_a_tile_is_one_tile() -> None:
    assert plan_tiles(8, 8, size=8, overlap=3) == [[Tile(0, 0, 8, 8)]]


def test_a_row_by_hand() -> None:
    """8 columns, overlap 2: every 6th column, and the last moved back from 12 to 10."""
    assert plan_tiles(8, 18, size=8, overlap=2) == [
        [Tile(0, 0, 8, 7)],
        [Tile(0, 6, 8, 13)],
        [Tile(0, 10, 8, 18)],
    ]


def test_waves_run_diagonally() -> None:
    """Steps of 6 fit three times into 20: tile (row, column) is in wave 2 * row + column."""
    places = [[(tile.top // 6, tile.left // 6) for tile in tiles] for tiles in plan_tiles(20, 20, size=8, overlap=2)]
    assert places == [[(0, 0)], [(0, 1)], [(0, 2), (1, 0)], [(1, 1)], [(1, 2), (2, 0)], [(2, 1)], [(2, 2)]]


def test_a_last_tile_that_overlaps_two_others_waits_for_both() -> None:
    """Columns 0, 6 and 7: the tile at column 7 shares a column with that at 0, so 2 * row + column would be too early."""
    waves = plan_tiles(14, 15, size=8, overlap=2)
    wave = {(tile.top, tile.left): k for k, tiles in enumerate(waves) for tile in tiles}
    assert wave[6, 0] > wave[0, 7]


def test_tiles_that_do_not_overlap_are_one_wave() -> None:
    (wave,) = plan_tiles(8, 12, size=4, overlap=0)
    assert [(tile.top, tile.left) for tile in wave] == [(0, 0), (0, 4), (0, 8), (4, 0), (4, 4), (4, 8)]


@pytest.mark.parametrize(("height", "width"), [(7, 20), (20, 7)])
def test_an_image_smaller_than_a_tile_is_refused(height: int, width: int) -> None:
    with pytest.raises(ConfigError, match=f"{height}x{width} pixels is smaller than a tile of 8x8"):
        plan_tiles(height, width, size=8, overlap=2)


@pytest.mark.parametrize("overlap", [-1, 8])
def test_an_impossible_overlap_is_refused(overlap: int) -> None:
    with pytest.raises(ConfigError, match=rf"overlap = {overlap} must lie in 0\.\.7"):
        plan_tiles(20, 20, size=8, overlap=overlap)
