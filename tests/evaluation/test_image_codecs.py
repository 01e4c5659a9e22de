"""File sizes against files written here, and what the sheets share."""

import io
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rasterformer.errors import DataError, ShapeError
from rasterformer.evaluation.image_codecs import file_bits_per_dim, lossless_formats


def smooth_images(num_images: int, size: int = 8) -> Tensor:
    ramp = torch.arange(size)
    planes = [ramp[:, None] * 3 + ramp * 2 + 10 * k for k in range(num_images)]
    return torch.stack([torch.stack([plane, plane + 5, plane // 2]) for plane in planes]).to(torch.uint8)


def as_file(image: Tensor, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, **options)
    return stream.getvalue()


def test_png_and_webp_figures_are_the_sizes_of_whole_files():
    images = smooth_images(3)
    figures = file_bits_per_dim([images[:2], images[2:]])
    png = sum(len(as_file(image, format="PNG", optimize=True)) for image in images)
    webp = sum(len(as_file(image, format="WEBP", lossless=True, method=6, exact=True)) for image in images)
    assert figures["PNG"] == png * 8 / images.numel()
    assert figures["WebP lossless"] == webp * 8 / images.numel()


@pytest.mark.parametrize("name", list(lossless_formats()))
def test_every_format_gives_the_pixels_back(name):
    rng = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=rng)
    read = np.array(Image.open(io.BytesIO(as_file(image, **lossless_formats()[name]))).convert("RGB"))
    assert torch.equal(torch.from_numpy(read).permute(2, 0, 1), image)


def test_jpeg_xl_is_listed_only_where_it_can_be_written():
    assert ("JPEG XL lossless" in lossless_formats()) == (find_spec("pillow_jxl") is not None)


def test_one_sheet_shares_the_header():
    images = smooth_images(4)
    figures = file_bits_per_dim([images])
    sheet = torch.cat([torch.cat([images[0], images[1]], dim=2), torch.cat([images[2], images[3]], dim=2)], dim=1)
    assert figures["PNG, one sheet"] == len(as_file(sheet, format="PNG", optimize=True)) * 8 / images.numel()
    assert figures["PNG, one sheet"] < figures["PNG"]


def test_more_images_than_a_sheet_holds_fill_several():
    images = smooth_images(5)
    figures = file_bits_per_dim([images[:3], images[3:]], sheet_images=2)
    assert "PNG, one sheet" not in figures
    pairs = [torch.cat([images[0], images[1]], dim=2), torch.cat([images[2], images[3]], dim=2), images[4]]
    num_bytes = sum(len(as_file(sheet, format="PNG", optimize=True)) for sheet in pairs)
    assert figures["PNG, sheets of 2"] == num_bytes * 8 / images.numel()


def test_large_images_have_no_sheet():
    assert set(file_bits_per_dim([smooth_images(2, size=33)])) == set(lossless_formats())


def test_no_images_and_mixed_sizes_are_refused():
    with pytest.raises(DataError, match="no images"):
        file_bits_per_dim([])
    with pytest.raises(DataError, match=r"shape \[3, 9, 9\] follow \[3, 8, 8\]"):
        file_bits_per_dim([smooth_images(1), smooth_images(1, size=9)])


def test_other_than_uint8_batches_are_refused():
    with pytest.raises(ShapeError, match="float32"):
        file_bits_per_dim([smooth_images(1).float()])
