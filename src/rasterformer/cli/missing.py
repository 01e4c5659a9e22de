"""What is missing of pictures, as `rasterformer restore` is told: a mask, a rectangle, or a border around them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rasterformer.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Missing:
    """One of three.

    Args:
        mask: a picture, white where something is to be drawn.
        rectangle: top, left, height and width, pixels.
        extend: top, right, bottom and left: pixels by which pictures go on. Of the pictures themselves nothing is missing.
    """

    mask: Path | None = None
    rectangle: tuple[int, int, int, int] | None = None
    extend: tuple[int, int, int, int] | None = None

    def record(self) -> dict[str, str | tuple[int, int, int, int] | None]:
        """What a result's file says of it."""
        return {
            "mask": None if self.mask is None else str(self.mask),
            "rectangle": self.rectangle,
            "extend": self.extend,
        }

    def known(self, height: int, width: int) -> Tensor:
        """bool [height, width], True where a picture of that size, before it goes on, stays as it is.

        Raises:
            ConfigError: the mask has another size or no white pixel, or the rectangle reaches out of the picture.
            DataError: the mask cannot be read.
        """
        import torch

        from rasterformer.conditioning.masks import rectangle_mask
        from rasterformer.data.decode import decode_file

        if self.rectangle is not None:
            return rectangle_mask(height, width, *self.rectangle)
        if self.mask is None:
            return torch.ones(height, width, dtype=torch.bool)
        try:
            image = decode_file(self.mask).image.convert("L")
        except DataError as error:
            raise DataError(f"--mask {self.mask}: {error}") from error
        if image.size != (width, height):
            raise ConfigError(
                f"--mask {self.mask} is {image.width}x{image.height} pixels, but a picture is {width}x{height}. Make them of one "
                "size."
            )
        values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width)
        known: Tensor = values < 128
        if bool(known.all()):
            raise ConfigError(
                f"--mask {self.mask} has no white pixel: nothing is to be drawn. White marks what is missing."
            )
        return known
