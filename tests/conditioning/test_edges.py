"""Edges lie where an image steps, one pixel wide, and are those of Canny's algorithm done pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from rasterformer.conditioning.edges import canny_edges
from rasterformer.errors import ConfigError, ShapeError


def grey_image(values: np.ndarray | Tensor) -> Tensor:
    """[H, W] of 0..255 -> uint8 [1, 3, H, W]."""
    return torch.as_tensor(values).to(torch.uint8).expand(1, 3, -1, -1).contiguous()


def random_images(batch: int = 1, side: tuple[int, int] = (24, 20), seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (batch, 3, *side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def flood(strong: np.ndarray, weak: np.ndarray) -> np.ndarray:
    """All weak pixels that a chain of eight-neighbours within them joins to a strong one."""
    found, pending = np.zeros_like(weak), [tuple(place) for place in np.argwhere(strong)]
    while pending:
        i, j = pending.pop()
        if 0 <= i < weak.shape[0] and 0 <= j < weak.shape[1] and weak[i, j] and not found[i, j]:
            found[i, j] = True
            pending += [(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    return found


def canny_by_loops(image: Tensor, sigma: float, low: float, high: float) -> np.ndarray:
    """uint8 [3, H, W] -> bool [H, W]: filters by scipy, the rest a pixel at a time."""
    red, green, blue = image.numpy().astype(np.int64)
    grey = ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16) / 255  # Pillow's "L"
    smooth = ndimage.gaussian_filter(grey, sigma, mode="nearest", radius=math.ceil(4 * sigma))
    down, right = (ndimage.sobel(smooth, axis=axis, mode="nearest") for axis in (0, 1))
    size = np.hypot(down, right)
    height, width = size.shape

    def at(i: float, j: float) -> float:
        """On a line of the grid, between two pixels; 0 outside."""
        rows, columns = {math.floor(i), math.ceil(i)}, {math.floor(j), math.ceil(j)}
        total = 0.0
        for row in rows:
            for column in columns:
                if 0 <= row < height and 0 <= column < width:
                    total += size[row, column] * (1 - abs(i - row)) * (1 - abs(j - column))
        return total

    is_thin = np.zeros(size.shape, bool)
    for i in range(height):
        for j in range(width):
            longer = max(abs(down[i, j]), abs(right[i, j]))
            if longer > 1e-9:
                a, b = down[i, j] / longer, right[i, j] / longer  # to the square of neighbours around the pixel
                is_thin[i, j] = size[i, j] > max(at(i + a, j + b), at(i - a, j - b))
    return flood(is_thin & (size >= high), is_thin & (size >= low))


@pytest.mark.parametrize(("sigma", "low", "high"), [(0.7, 0.5, 1.0), (1.0, 0.2, 0.5), (2.0, 0.1, 0.2)])
def test_edges_are_those_of_the_algorithm_by_loops(sigma: float, low: float, high: float) -> None:
    images = random_images(2)
    edges = canny_edges(images, sigma=sigma, low=low, high=high)
    assert edges.dtype == torch.uint8 and edges.shape == (2, 1, 24, 20)
    assert set(edges.unique().tolist()) == {0, 255}
    for image, edge in zip(images, edges, strict=True):
        expected = canny_by_loops(image, sigma, low, high)
        assert np.array_equal(edge[0].numpy() == 255, expected) and expected.sum() > 20


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("sigma", [0.7, 2.0])
def test_a_step_is_a_line_of_one_pixel_on_its_brighter_side(turns: int, sigma: float) -> None:
    step, line = torch.zeros(2, 20, 20)
    step[:, 9:] = 200
    line[:, 9] = 255
    image, expected = grey_image(step.rot90(turns)), line.rot90(turns)
    assert torch.equal(canny_edges(image, sigma=sigma)[0, 0].float(), expected)


@pytest.mark.parametrize("turns", range(4))
def test_a_slanted_step_is_found_within_a_pixel(turns: int) -> None:
    rows, columns = torch.arange(24)[:, None], torch.arange(24)
    image = grey_image(((rows + columns >= 24) * 255).rot90(turns))
    edges = canny_edges(image)[0, 0].rot90(-turns) > 0
    distance = (rows + columns - 23.5).abs() / math.sqrt(2)
    assert distance[edges].max() < 1
    assert all(edges[i].any() for i in range(2, 22))


def test_the_outline_of_a_square_is_closed_and_thin() -> None:
    """It parts the image into an inside and an outside, which do not touch by their sides."""
    square = torch.zeros(40, 40)
    square[10:30, 10:30] = 255
    edges = canny_edges(grey_image(square), sigma=1.0)[0, 0].numpy() > 0
    _, num_parts = ndimage.label(~edges)
    assert num_parts == 2
    rows, columns = np.nonzero(edges)
    assert {rows.min(), rows.max(), columns.min(), columns.max()} == {10, 29}
    assert edges.sum() < 1.1 * 4 * 20


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_a_constant_image_has_no_edges(value: int) -> None:
    assert not canny_edges(grey_image(torch.full((16, 16), value)), low=1e-6, high=1e-6).any()


def test_edges_see_luma_only() -> None:
    """(255, 0, 0) and (0, 130, 0) both have the luma 76; (0, 0, 255) has 29."""
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    image[:, 0, :, :8], image[:, 1, :, 8:] = 255, 130
    assert not canny_edges(image).any()
    image[:, 1, :, 8:], image[:, 2, :, 8:] = 0, 255
    assert canny_edges(image).any()


def test_a_step_just_above_the_threshold_is_found() -> None:
    """Sobel's gradient of a step of height h, not smoothed, is 4 h; sigma 0.2 leaves it so."""
    step = torch.zeros(8, 8)
    step[:, 4:] = 51  # h = 0.2
    assert canny_edges(grey_image(step), sigma=0.2, low=0.79, high=0.79).any()
    assert not canny_edges(grey_image(step), sigma=0.2, low=0.81, high=0.81).any()


def test_weak_edges_stay_where_they_are_joined_to_strong_ones() -> None:
    """A line along column 12 gets fainter from top to bottom; another one along column 36 is faint everywhere."""
    heights = torch.zeros(32, 48)
    heights[:, 12:24] = torch.linspace(120, 12, 32)[:, None]
    heights[:, 36:] = 20
    image = grey_image(heights)
    strong, weak = (canny_edges(image, low=t, high=t)[0, 0].numpy() > 0 for t in (0.4, 0.1))
    both = canny_edges(image, low=0.1, high=0.4)[0, 0].numpy() > 0
    assert np.array_equal(both, flood(strong, weak))
    assert both.sum() > strong.sum() > 0
    assert weak[:, 34:38].any() and not both[:, 34:38].any()


def test_pieces_may_be_joined_by_corners() -> None:
    """Of images of noise, every piece of edges has a strong pixel, and no weak pixel touches one from outside."""
    image = random_images(1, (40, 40), seed=3)
    strong, weak = (canny_edges(image, sigma=1.0, low=t, high=t)[0, 0].numpy() > 0 for t in (0.6, 0.3))
    both = canny_edges(image, sigma=1.0, low=0.3, high=0.6)[0, 0].numpy() > 0
    pieces, num_pieces = ndimage.label(both, structure=np.ones((3, 3)))
    assert num_pieces > 1 and all(strong[pieces == k].any() for k in range(1, num_pieces + 1))
    around = ndimage.binary_dilation(both, structure=np.ones((3, 3)))
    assert not (around & weak & ~both).any() and (weak & ~both).any()


def test_more_smoothing_leaves_less_noise() -> None:
    image = random_images(1, (48, 48))
    counts = [int((canny_edges(image, sigma=sigma) > 0).sum()) for sigma in (0.5, 1.0, 2.0, 4.0)]
    assert counts == sorted(counts, reverse=True) and counts[0] > 4 * counts[-1]


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_edges_turn_and_mirror_with_the_image(turns: int) -> None:
    images = random_images(2)
    edges = canny_edges(images, sigma=1.0, low=0.2, high=0.5)
    assert torch.equal(
        canny_edges(images.rot90(turns, (2, 3)), sigma=1.0, low=0.2, high=0.5), edges.rot90(turns, (2, 3))
    )
    assert torch.equal(canny_edges(images.flip(3), sigma=1.0, low=0.2, high=0.5), edges.flip(3))


def test_the_edges_of_an_image_do_not_depend_on_the_batch() -> None:
    images = random_images(3)
    assert torch.equal(canny_edges(images), torch.cat([canny_edges(image[None]) for image in images]))
    assert canny_edges(images[:0]).shape == (0, 1, 24, 20)


def test_an_image_smaller_than_the_gaussian_is_no_problem() -> None:
    assert not canny_edges(random_images(1, (1, 1)), sigma=3.0).any()
    assert canny_edges(random_images(1, (3, 5)), sigma=3.0).shape == (1, 1, 3, 5)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)])
def test_wrong_images_are_refused(wrong: Tensor) -> None:
    with pytest.raises(ShapeError, match=str(list(wrong.shape)).replace("[", r"\[")):
        canny_edges(wrong)


def test_wrong_options_are_refused() -> None:
    images = random_images()
    for sigma in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match=f"sigma = {sigma} must be above 0"):
            canny_edges(images, sigma=sigma)
    with pytest.raises(ConfigError, match=r"low = 0\.0 must be above 0"):
        canny_edges(images, low=0.0)
    with pytest.raises(ConfigError, match=r"low = 0\.3 must be above 0 and not above high = 0\.2"):
        canny_edges(images, low=0.3)
