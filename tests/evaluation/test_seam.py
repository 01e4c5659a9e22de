"""Seams of hand-made pictures: slopes, steps and flat ones; and fills that are exchanged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rasterformer.errors import DataError, ShapeError
from rasterformer.evaluation.seam import seam_contrast, shuffled_fills


def hole(side: int = 8, batch: int = 1) -> Tensor:
    """Everything is known but a square in the middle."""
    known = torch.ones(batch, side, side, dtype=torch.bool)
    known[:, side // 4 : -(side // 4), side // 4 : -(side // 4)] = False
    return known


def picture(rows: int, cols: int, row_slope: int, col_slope: int, first: int = 0) -> Tensor:
    """uint8 [3, rows, cols]: an even slope, the same in each channel."""
    levels = first + row_slope * torch.arange(rows)[:, None] + col_slope * torch.arange(cols)
    return levels.to(torch.uint8).expand(3, -1, -1)


def noise(batch: int, rows: int, cols: int) -> Tensor:
    return torch.randint(0, 256, (batch, 3, rows, cols), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def contrast_by_definition(image: Tensor, known: Tensor) -> float:
    """Pixel by pixel, in all four directions."""
    rows, cols = known.shape
    across: list[float] = []
    inside: list[float] = []
    for row in range(rows):
        for col in range(cols):
            for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                beyond, behind = (row + down, col + right), (row - down, col - right)
                if not all(0 <= r < rows and 0 <= c < cols for r, c in (beyond, behind)):
                    continue
                if known[row, col] and known[behind] and not known[beyond]:
                    here, other, back = (image[:, r, c].tolist() for r, c in ((row, col), beyond, behind))
                    across.append(sum(abs(a - b) for a, b in zip(here, other, strict=True)) / 3)
                    inside.append(sum(abs(a - b) for a, b in zip(here, back, strict=True)) / 3)
    return (1 + sum(across) / len(across)) / (1 + sum(inside) / len(inside))


@pytest.mark.parametrize("slopes", [(0, 9), (5, 0), (3, 7), (0, 0)])
def test_an_even_slope_has_no_seam(slopes: tuple[int, int]) -> None:
    image = picture(16, 16, *slopes)[None]
    masks = [hole(16), ~hole(16), torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.7]
    for known in masks:
        assert seam_contrast(image, known).tolist() == pytest.approx([1.0], abs=1e-12)


def test_a_step_at_the_border_is_measured_in_steps_of_the_picture() -> None:
    """Left of the border a slope of 4, then a step of 30: (1 + 30) / (1 + 4)."""
    image = picture(6, 8, 0, 4)[None].clone()
    image[..., 4:] = 4 * 3 + 30
    known = torch.zeros(1, 6, 8, dtype=torch.bool)
    known[..., :4] = True
    assert seam_contrast(image, known).tolist() == pytest.approx([31 / 5], abs=1e-12)


def test_a_fill_smoother_than_the_picture_is_below_one() -> None:
    """Stripes of 0 and 100 that end at the border: (1 + 0) / (1 + 100)."""
    image = (100 * (torch.arange(8) % 2)).to(torch.uint8).expand(1, 3, 6, -1).clone()
    image[..., 4:] = 100
    known = torch.zeros(1, 6, 8, dtype=torch.bool)
    known[..., :4] = True
    assert seam_contrast(image, known).tolist() == pytest.approx([1 / 101], abs=1e-12)


def test_contrast_is_that_of_its_definition() -> None:
    images = noise(5, 7, 9)
    known = torch.rand(5, 7, 9, generator=torch.Generator().manual_seed(1)) < 0.6
    expected = [contrast_by_definition(image, where) for image, where in zip(images, known, strict=True)]
    assert seam_contrast(images, known).tolist() == pytest.approx(expected, abs=1e-12)


def test_what_lies_away_from_the_border_does_not_count() -> None:
    images, known = noise(2, 12, 12), hole(12, batch=2)  # the hole is rows and columns 3..8
    other = images.clone()
    other[:, :, 4:8, 4:8] = 255 - other[:, :, 4:8, 4:8]  # within the hole, not beside its border
    other[:, :, 0, :] = 255 - other[:, :, 0, :]  # three pixels outside of it
    assert torch.equal(seam_contrast(images, known), seam_contrast(other, known))
    other[:, :, 3, 3:9] = 255 - other[:, :, 3, 3:9]
    assert not torch.equal(seam_contrast(images, known), seam_contrast(other, known))


def test_fills_of_other_images_leave_seams() -> None:
    """Slopes at levels far apart: each fits its own surroundings only."""
    images = torch.stack([picture(16, 16, 1, 2, first=50 * k) for k in range(4)])
    known = hole(16, batch=4)
    assert seam_contrast(images, known).tolist() == pytest.approx([1.0] * 4)
    assert bool((seam_contrast(shuffled_fills(images, known), known) > 10).all())


@pytest.mark.parametrize("batch", [2, 3, 6, 7])
def test_shuffled_fills_come_from_another_image_and_what_is_known_stays(batch: int) -> None:
    images = torch.arange(batch, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    known = hole(batch=batch)
    shuffled = shuffled_fills(images, known)
    fills = [int(image[0, 4, 4]) for image in shuffled]
    assert sorted(fills) == list(range(batch)) and all(fill != k for k, fill in enumerate(fills))
    assert fills == [(k + batch // 2) % batch for k in range(batch)]
    for image, where, fill, k in zip(shuffled, known, fills, range(batch), strict=True):
        assert bool((image[:, where] == k).all()) and bool((image[:, ~where] == fill).all())


@pytest.mark.parametrize("known", [torch.ones(2, 8, 8).bool(), torch.zeros(2, 8, 8).bool(), torch.eye(8).bool()[None]])
def test_images_without_a_seam_are_refused(known: Tensor) -> None:
    known = torch.cat([hole(), known[:1]])
    with pytest.raises(DataError, match="image 1 has no border between two known pixels"):
        seam_contrast(noise(2, 8, 8), known)


def test_a_single_image_has_no_other_to_take_a_fill_from() -> None:
    with pytest.raises(DataError, match="between 1 images"):
        shuffled_fills(noise(1, 8, 8), hole())


@pytest.mark.parametrize(
    ("images", "known", "named"),
    [
        (noise(2, 8, 8).float(), hole(batch=2), "images are torch.float32"),
        (noise(2, 8, 8)[:, :1], hole(batch=2), r"images are torch.uint8 \[2, 1, 8, 8\]"),
        (noise(2, 8, 8)[0], hole(), r"images are torch.uint8 \[3, 8, 8\]"),
        (noise(2, 8, 8), hole(), r"known is torch.bool \[1, 8, 8\]; it must be torch.bool \[2, 8, 8\]"),
        (noise(2, 8, 6), hole(batch=2), r"known is torch.bool \[2, 8, 8\]; it must be torch.bool \[2, 8, 6\]"),
        (noise(2, 8, 8), hole(batch=2).long(), "known is torch.int64"),
    ],
)
def test_other_shapes_and_dtypes_are_refused(images: Tensor, known: Tensor, named: str) -> None:
    for function in (seam_contrast, shuffled_fills):
        with pytest.raises(ShapeError, match=named):
            function(images, known)
