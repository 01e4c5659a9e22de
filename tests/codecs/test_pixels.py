"""Pixels as symbols: round trips, orders by loops, and what is refused."""

import pytest
import torch
from torch import Tensor

from rasterformer.codecs.pixels import PixelCodec, block_raster_order, raster_order
from rasterformer.errors import ConfigError, ShapeError


def random_images(size: int = 4, batch: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=rng)


CODECS = {
    "sub-pixels": PixelCodec(4, is_joint=False),
    "pixels": PixelCodec(4, is_joint=True),
    "sub-pixels in blocks": PixelCodec(4, is_joint=False, order=block_raster_order((4, 12), (2, 6))),
    "blocks that cut pixels": PixelCodec(4, is_joint=False, order=block_raster_order((4, 12), (2, 4))),
    "pixels in blocks": PixelCodec(4, is_joint=True, order=block_raster_order((4, 4), (2, 2))),
}


@pytest.mark.parametrize("name", CODECS)
def test_decode_is_the_inverse_of_encode(name: str) -> None:
    codec, images = CODECS[name], random_images()
    x = codec.encode(images)
    assert x.dtype == torch.int64 and x.shape == (3, *codec.x_shape)
    assert torch.equal(codec.decode(x), images)
    assert codec.lossless and codec.vocab_size == 256


@pytest.mark.parametrize("name", CODECS)
def test_encode_is_the_inverse_of_decode(name: str) -> None:
    codec = CODECS[name]
    x = torch.randint(0, 256, (2, *codec.x_shape), generator=torch.Generator().manual_seed(1))
    assert torch.equal(codec.encode(codec.decode(x)), x)


def test_raster_order_of_sub_pixels_is_row_column_channel() -> None:
    images = random_images()
    x = PixelCodec(4, is_joint=False).encode(images)
    expected = [int(images[1, c, row, col]) for row in range(4) for col in range(4) for c in range(3)]
    assert x[1, :, 0].tolist() == expected


def test_a_joint_position_is_red_green_blue_of_one_pixel() -> None:
    images = random_images()
    x = PixelCodec(4, is_joint=True).encode(images)
    assert x[2].tolist() == [images[2, :, row, col].tolist() for row in range(4) for col in range(4)]


def test_raster_order_counts_cells() -> None:
    assert raster_order((2, 3)).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("grid", "block"), [((4, 6), (2, 3)), ((4, 6), (4, 1)), ((6, 4), (1, 4)), ((3, 3), (3, 3))])
def test_block_raster_order_walks_blocks_then_cells(grid: tuple[int, int], block: tuple[int, int]) -> None:
    expected = []
    for top in range(0, grid[0], block[0]):
        for left in range(0, grid[1], block[1]):
            for row in range(top, top + block[0]):
                for col in range(left, left + block[1]):
                    expected.append(row * grid[1] + col)
    assert block_raster_order(grid, block).tolist() == expected


@pytest.mark.parametrize("block", [(3, 3), (2, 4), (0, 3)])
def test_blocks_that_do_not_tile_are_refused(block: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=f"query_block = {block[0]}x{block[1]} cells does not tile the grid of 4x6"):
        block_raster_order((4, 6), block)


@pytest.mark.parametrize("name", CODECS)
def test_positions_of_a_mask_are_those_of_its_pixels_values(name: str) -> None:
    """Images whose values tell pixel and channel: what is selected are the marked pixels with all of their channels."""
    codec = CODECS[name]
    images = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4).expand(3, -1, -1, -1)
    mask = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(2)) < 0.4
    where = codec.positions_of(mask)
    assert where.shape == (3, codec.x_shape[0]) and where.dtype == torch.bool
    for k in range(3):
        marked = sorted(
            int(images[k, c, row, col]) for c in range(3) for row in range(4) for col in range(4) if mask[k, row, col]
        )
        assert sorted(codec.encode(images)[k, where[k]].flatten().tolist()) == marked


@pytest.mark.parametrize("name", CODECS)
def test_positions_of_any_property_of_pixels_keeps_its_values(name: str) -> None:
    codec, number = CODECS[name], torch.arange(16).view(1, 4, 4)
    grey = number[:, None].expand(-1, 3, -1, -1).to(torch.uint8)
    assert torch.equal(codec.positions_of(number), codec.encode(grey)[..., 0])


def test_image_of_lays_values_out_as_an_image() -> None:
    codec = CODECS["sub-pixels in blocks"]
    images = random_images()
    values = codec.encode(images).double() / 2
    assert torch.equal(codec.image_of(values), images.double() / 2)


@pytest.mark.parametrize(
    "images",
    [
        random_images().float(),
        random_images(5),
        random_images()[:, :2],
        random_images()[:, :, :3],
        random_images()[:, :, :, :3],
        random_images()[0],
        random_images().permute(0, 2, 3, 1),
    ],
    ids=lambda images: f"{images.dtype} {list(images.shape)}",
)
def test_encode_refuses_other_shapes_and_dtypes(images: Tensor) -> None:
    with pytest.raises(ShapeError) as caught:
        CODECS["pixels"].encode(images)
    assert str(list(images.shape)) in str(caught.value) and str(images.dtype) in str(caught.value)
    assert "[B, 3, 4, 4]" in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 16, 1), (2, 15, 3), (2, 48), (16, 3)])
def test_decode_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError) as caught:
        CODECS["pixels"].decode(torch.zeros(shape, dtype=torch.int64))
    assert str(list(shape)) in str(caught.value) and "[B, 16, 3]" in str(caught.value)
