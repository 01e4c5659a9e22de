from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from rasterformer.data import fit_square
from rasterformer.errors import DataError


def test_image_of_the_right_size_is_untouched(noise) -> None:
    pixels = noise(7, 7)
    square, method = fit_square(Image.fromarray(pixels), 7)
    assert method == "none"
    assert np.array_equal(square, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_whole_factor_is_the_mean_of_each_block(noise, factor: int) -> None:
    pixels = noise(5 * factor, 5 * factor)
    square, method = fit_square(Image.fromarray(pixels), 5)
    mean = pixels.reshape(5, factor, 5, factor, 3).mean((1, 3)).transpose(2, 0, 1)
    assert method == "box"
    assert np.abs(square - mean).max() <= 0.5 + 1e-9


def test_crop_takes_the_middle(noise) -> None:
    wide = noise(4, 10)
    assert np.array_equal(fit_square(Image.fromarray(wide), 4)[0], wide[:, 3:7].transpose(2, 0, 1))
    tall = noise(10, 4)
    assert np.array_equal(fit_square(Image.fromarray(tall), 4)[0], tall[3:7].transpose(2, 0, 1))


def test_stretch_reduces_both_sides_separately(noise) -> None:
    pixels = noise(4, 12)
    square, method = fit_square(Image.fromarray(pixels), 4, fit="stretch")
    mean = pixels.reshape(4, 1, 4, 3, 3).mean((1, 3)).transpose(2, 0, 1)
    assert method == "box"
    assert np.abs(square - mean).max() <= 0.5 + 1e-9


def test_other_factors_use_lanczos_and_keep_a_flat_colour() -> None:
    square, method = fit_square(Image.new("RGB", (11, 11), (10, 200, 30)), 4)
    assert method == "lanczos"
    assert square.shape == (3, 4, 4)
    assert (square == np.array([10, 200, 30])[:, None, None]).all()


def test_image_is_never_enlarged() -> None:
    with pytest.raises(DataError, match="9x3 pixels are fewer than 4x4"):
        fit_square(Image.new("RGB", (9, 3)), 4)


def area_means(pixels: np.ndarray, size: int) -> np.ndarray:
    """Mean over areas, rounded down, in whole numbers: side L is cut into size parts of L, a pixel is `size` long."""
    height, width, channels = pixels.shape

    def overlaps(length: int, k: int) -> list[tuple[int, int]]:
        start, end = k * length, (k + 1) * length
        shared = [(old, min(end, (old + 1) * size) - max(start, old * size)) for old in range(length)]
        return [(old, share) for old, share in shared if share > 0]

    means = np.empty((size, size, channels), np.uint8)
    for row in range(size):
        for col in range(size):
            total = np.zeros(channels, np.int64)
            for y, part_y in overlaps(height, row):
                for x, part_x in overlaps(width, col):
                    total += pixels[y, x].astype(np.int64) * (part_y * part_x)
            means[row, col] = total // (height * width)
    return means.transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(138, 138, 32), (11, 11, 4), (7, 7, 6), (12, 12, 5), (9, 14, 4), (5, 5, 1)]
)
def test_area_is_the_mean_over_shared_areas_rounded_down(noise, height: int, width: int, size: int) -> None:
    pixels = noise(height, width)
    square, method = fit_square(Image.fromarray(pixels), size, fit="stretch", reduction="area")
    assert method == "area"
    assert np.array_equal(square, area_means(pixels, size))


@pytest.mark.parametrize("factor", [2, 3, 4, 7])
def test_area_of_a_whole_factor_is_the_block_mean_rounded_down(noise, factor: int) -> None:
    pixels = noise(5 * factor, 5 * factor)
    square, method = fit_square(Image.fromarray(pixels), 5, reduction="area")
    sums = pixels.reshape(5, factor, 5, factor, 3).sum((1, 3), dtype=np.int64)
    assert method == "area"
    assert np.array_equal(square, (sums // factor**2).transpose(2, 0, 1))


@pytest.mark.parametrize("side", [33, 47, 138, 139])
@pytest.mark.parametrize("value", [1, 85, 254, 255])
def test_area_keeps_a_flat_colour(side: int, value: int) -> None:
    """A mean that is whole is not rounded to one less, whatever the fractions add up to."""
    square, _ = fit_square(Image.new("RGB", (side, side), (value, 0, value)), 32, reduction="area")
    assert (square == np.array([value, 0, value])[:, None, None]).all()


def test_area_of_an_image_of_the_right_size_is_the_image(noise) -> None:
    pixels = noise(6, 6)
    square, method = fit_square(Image.fromarray(pixels), 6, reduction="area")
    assert method == "none" and np.array_equal(square, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("height", "width", "size"), [(138, 138, 32), (11, 11, 4), (12, 12, 3), (9, 14, 4), (5, 5, 1), (8, 6, 6)]
)
def test_nearest_takes_the_pixel_that_holds_the_centre_of_each_area(noise, height: int, width: int, size: int) -> None:
    pixels = noise(height, width)
    square, method = fit_square(Image.fromarray(pixels), size, fit="stretch", reduction="nearest")
    assert method == "nearest"
    for row, col in np.ndindex(size, size):
        y, x = Fraction(2 * row + 1, 2 * size) * height, Fraction(2 * col + 1, 2 * size) * width
        assert square[:, row, col].tolist() == pixels[int(y), int(x)].tolist()


@pytest.mark.parametrize("side", [8, 11, 16, 37])
def test_nearest_makes_no_new_labels(side: int) -> None:
    """Labels 0, 100 and 200 would be averaged to others at every border."""
    labels = np.random.default_rng(side).choice(np.array([0, 100, 200], np.uint8), (side, side))
    square, _ = fit_square(Image.fromarray(labels).convert("RGB"), 7, reduction="nearest")
    assert set(np.unique(square).tolist()) <= {0, 100, 200}
    assert not set(np.unique(fit_square(Image.fromarray(labels).convert("RGB"), 7)[0]).tolist()) <= {0, 100, 200}


def test_nearest_leaves_a_label_map_of_the_right_size_as_it_is(noise) -> None:
    square, method = fit_square(Image.fromarray(noise(6, 6)), 6, reduction="nearest")
    assert method == "none" and np.array_equal(square, noise(6, 6).transpose(2, 0, 1))


def test_trim_cuts_rows_above_and_below_and_columns_on_either_side(noise) -> None:
    pixels = noise(10, 8)
    square, method = fit_square(Image.fromarray(pixels), 4, trim=(3, 2))
    assert method == "none"
    assert np.array_equal(square, pixels[3:7, 2:6].transpose(2, 0, 1))


def test_trimming_comes_before_the_crop(noise) -> None:
    """9x12 without one row and three columns on each side is 7x6, of which the middle 6x6 is reduced by blocks."""
    pixels = noise(9, 12)
    square, _ = fit_square(Image.fromarray(pixels), 3, trim=(1, 3), reduction="area")
    sums = pixels[1:7, 3:9].reshape(3, 2, 3, 2, 3).sum((1, 3), dtype=np.int64)
    assert np.array_equal(square, (sums // 4).transpose(2, 0, 1))


@pytest.mark.parametrize("reduction", ["auto", "area"])
def test_nothing_of_a_border_that_is_cut_off_bleeds_into_a_face(noise, reduction: str) -> None:
    """178x218 pixels, 40 rows and 20 columns cut off: 138x138, as in the paper's CelebA."""
    pixels = np.zeros((218, 178, 3), np.uint8)
    pixels[:] = (255, 0, 255)
    face = pixels[40:178, 20:158]
    assert face.shape == (138, 138, 3)
    face[:] = noise(138, 138) // 2
    square, method = fit_square(Image.fromarray(pixels), 32, trim=(40, 20), reduction=reduction)
    alone, _ = fit_square(Image.fromarray(np.ascontiguousarray(face)), 32, reduction=reduction)
    assert np.array_equal(square, alone) and method == {"auto": "lanczos", "area": "area"}[reduction]
    if reduction == "area":
        assert np.array_equal(square, area_means(face, 32)) and square.max() < 128


def test_trimming_that_leaves_nothing_or_too_little_is_refused() -> None:
    with pytest.raises(DataError, match="9x6 pixels leave nothing when 3 rows and 1 columns are cut off"):
        fit_square(Image.new("RGB", (9, 6)), 2, trim=(3, 1))
    with pytest.raises(DataError, match="8x9 pixels leave nothing when 0 rows and 4 columns are cut off"):
        fit_square(Image.new("RGB", (8, 9)), 2, trim=(0, 4))
    with pytest.raises(DataError, match="7x3 pixels are fewer than 4x4"):
        fit_square(Image.new("RGB", (9, 5)), 4, trim=(1, 1))
