"""Pixels as numbers: round trips, the nearest level, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rasterformer.codecs.continuous import ContinuousCodec, to_images, to_numbers
from rasterformer.errors import ShapeError

LEVELS = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)


def test_every_level_comes_back_and_levels_are_evenly_spaced_from_minus_one_to_one() -> None:
    numbers = to_numbers(LEVELS)
    assert numbers.dtype == torch.float32 and float(numbers.min()) == -1 and float(numbers.max()) == 1
    torch.testing.assert_close(numbers.flatten(), torch.linspace(-1, 1, 256), rtol=0, atol=1e-6)
    assert torch.equal(to_images(numbers), LEVELS)


def test_a_number_becomes_the_nearest_level_and_one_beyond_the_ends_an_end() -> None:
    numbers = to_numbers(LEVELS)
    for shift in (-0.49, 0.49):
        assert torch.equal(to_images(numbers + shift / 127.5), LEVELS)
    up = to_images(numbers + 0.51 / 127.5)
    assert torch.equal(up.flatten()[:-1], LEVELS.flatten()[1:]) and int(up.flatten()[-1]) == 255
    assert to_images(torch.tensor([-7.0, 1.5]).view(1, 1, 1, 2)).flatten().tolist() == [0, 255]


def test_the_codec_is_lossless_at_its_size() -> None:
    codec = ContinuousCodec(4)
    images = torch.randint(0, 256, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    x = codec.encode(images)
    assert torch.equal(x, images.float() / 127.5 - 1) and torch.equal(codec.decode(x), images)
    assert codec.lossless and codec.vocab_size is None and codec.image_shape == (3, 4, 4) and codec.x_shape == (16, 3)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 4, 5, dtype=torch.uint8), torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
        torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(2, 3, 4, 4),
    ],
    ids=lambda images: f"{images.dtype} {list(images.shape)}",
)  # fmt: skip
def test_encode_refuses_other_shapes_and_dtypes(images: Tensor) -> None:
    with pytest.raises(ShapeError, match="images are "):
        ContinuousCodec(4).encode(images)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(2, 3, 5, 4), torch.zeros(2, 4, 4, 4), torch.zeros(3, 4, 4), torch.zeros(2, 3, 4, 4).long()],
    ids=lambda x: f"{x.dtype} {list(x.shape)}",
)
def test_decode_refuses_other_shapes_and_dtypes(x: Tensor) -> None:
    with pytest.raises(ShapeError, match="x is "):
        ContinuousCodec(4).decode(x)


def test_the_functions_take_any_size_and_refuse_other_ranks_and_dtypes() -> None:
    assert to_numbers(torch.zeros(2, 1, 3, 7, dtype=torch.uint8)).shape == (2, 1, 3, 7)
    for wrong in (torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(1, 3, 4, 4)):
        with pytest.raises(ShapeError, match=r"must be torch\.uint8"):
            to_numbers(wrong)
    for wrong in (torch.zeros(3, 4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)):
        with pytest.raises(ShapeError, match="expected floats"):
            to_images(wrong)
