"""Areas are averaged exactly and rounded down; filters are Pillow's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rasterformer.conditioning.resize import enlarge, reduce_area, reduce_bicubic
from rasterformer.errors import ConfigError, ShapeError


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("factor", [1, 2, 3, 6])
def test_an_area_becomes_its_mean_rounded_down(factor: int) -> None:
    images = random_images(2, 3, 12, 6)
    reduced = reduce_area(images, factor)
    assert reduced.dtype == torch.uint8 and reduced.shape == (2, 3, 12 // factor, 6 // factor)
    for b, c, row, col in np.ndindex(*reduced.shape):
        values = [int(images[b, c, row * factor + i, col * factor + j]) for i in range(factor) for j in range(factor)]
        assert int(reduced[b, c, row, col]) == sum(values) // factor**2


def test_the_mean_is_exact_for_the_largest_areas() -> None:
    """255 everywhere but for one value of 254: the mean is below 255 by 2^-16, which 16 bits of fraction would lose."""
    images = torch.full((1, 1, 512, 512), 255, dtype=torch.uint8)
    assert reduce_area(images, 512).item() == 255
    images[0, 0, 3, 5] = 254
    assert reduce_area(images, 512).item() == 254


def test_images_need_not_lie_in_one_piece() -> None:
    images = random_images(2, 8, 8, 3)
    assert torch.equal(
        reduce_area(images.permute(0, 3, 1, 2), 2), reduce_area(images.permute(0, 3, 1, 2).contiguous(), 2)
    )


def pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def test_bicubic_reduction_is_pillows() -> None:
    images = random_images(2, 3, 16, 24)
    for image, reduced in zip(images, reduce_bicubic(images, 4), strict=True):
        expected = np.asarray(pil(image).resize((6, 4), Image.Resampling.BICUBIC))
        assert np.array_equal(reduced.permute(1, 2, 0).numpy(), expected)


def test_bicubic_reduction_averages_fine_detail() -> None:
    """A chess board of single pixels is grey from afar; four taps without a wider filter would see black or white."""
    board = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 255).to(torch.uint8)[None, None]
    assert ((reduce_bicubic(board, 8)[:, :, 1:-1, 1:-1].float() - 127.5).abs() < 4).all()


@pytest.mark.parametrize(
    ("method", "pillows"),
    [
        ("nearest", Image.Resampling.NEAREST),
        ("bilinear", Image.Resampling.BILINEAR),
        ("bicubic", Image.Resampling.BICUBIC),
        ("lanczos", Image.Resampling.LANCZOS),
    ],
)
def test_enlarging_is_pillows(method, pillows) -> None:
    images = random_images(2, 3, 5, 4)
    for image, enlarged in zip(images, enlarge(images, (11, 12), method), strict=True):
        assert np.array_equal(enlarged.permute(1, 2, 0).numpy(), np.asarray(pil(image).resize((12, 11), pillows)))


def test_a_factor_is_the_size_it_makes() -> None:
    images = random_images(1, 1, 5, 4)
    assert torch.equal(enlarge(images, 3, "lanczos"), enlarge(images, (15, 12), "lanczos"))


def test_nearest_repeats_pixels_and_area_takes_them_back() -> None:
    images = random_images(3, 3, 4, 6)
    enlarged = enlarge(images, 4, "nearest")
    assert torch.equal(enlarged, images.repeat_interleave(4, 2).repeat_interleave(4, 3))
    assert torch.equal(reduce_area(enlarged, 4), images)


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)])
@pytest.mark.parametrize(
    "resize", [lambda x: reduce_area(x, 2), lambda x: reduce_bicubic(x, 2), lambda x: enlarge(x, 2, "nearest")]
)
def test_another_dtype_or_rank_is_refused(resize, images: Tensor) -> None:
    with pytest.raises(ShapeError, match=rf"images are {images.dtype} \[.*4, 4\]\. They must be torch.uint8 \[B, C, H"):
        resize(images)


@pytest.mark.parametrize("reduce", [reduce_area, reduce_bicubic])
@pytest.mark.parametrize("factor", [0, -2, 3, 12])
def test_a_factor_that_does_not_divide_is_refused(reduce, factor: int) -> None:
    with pytest.raises(
        ShapeError, match=rf"factor = {factor} does not divide images of 8x12 pixels. Use one of 1, 2, 4,"
    ):
        reduce(random_images(1, 3, 8, 12), factor)


@pytest.mark.parametrize(("size", "made"), [((3, 9), "3x9"), ((9, 3), "9x3"), (0, "0x0")])
def test_enlarging_to_less_is_refused(size, made: str) -> None:
    with pytest.raises(ConfigError, match=rf"would make {made} of 4x4 pixels"):
        enlarge(random_images(1, 3, 4, 4), size, "nearest")


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method = 'bicubik' is no way to enlarge\. Did you mean 'bicubic'\?"):
        enlarge(random_images(1, 3, 4, 4), 2, "bicubik")  # type: ignore[arg-type]
