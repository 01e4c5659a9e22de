"""Sizes as people type them, and what `sample --size` makes of them."""

import pytest

from rasterformer.cli.sizes import parse_size
from rasterformer.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"), [("512x1024", (512, 1024)), ("64", (64, 64)), (" 8x6 ", (8, 6)), ("1", (1, 1)), ("08x9", (8, 9))]
)
def test_height_comes_first_and_one_number_is_a_square(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "x", "8x", "x8", "0", "8x0", "0x8", "-8", "8x-8", "8x8x8", "8.5", "8*8", "wide", "8 x 8"]
)
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(
        ConfigError, match="is no size. Give HEIGHTxWIDTH in pixels, the height first, such as 512x1024, or one number"
    ) as error:
        parse_size(text)
    assert f"--size {text} is" in str(error.value)
