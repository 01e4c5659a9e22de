from __future__ import annotations

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
