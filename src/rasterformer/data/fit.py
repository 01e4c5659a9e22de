"""An RGB image of any size -> the square of training size, and the word for how that was done."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from rasterformer.errors import DataError

Fit = Literal["crop", "stretch"]
Method = Literal["none", "box", "lanczos"]


def fit_square(image: Image.Image, size: int, *, fit: Fit = "crop") -> tuple[npt.NDArray[np.uint8], Method]:
    """Reduces an image to size x size pixels.

    Args:
        image: mode RGB, both sides at least `size`.
        size: side of the result, pixels.
        fit: `crop` takes the largest centred square; `stretch` reduces both sides separately.

    Returns:
        uint8 [3, size, size], and how pixels were reduced: `none` (not at all), `box` (mean over whole blocks, where
        the factor is a whole number on both sides), `lanczos` (any other factor).

    Raises:
        DataError: a side is below `size`.
    """
    if min(image.size) < size:
        raise DataError(f"{image.width}x{image.height} pixels are fewer than {size}x{size}")
    if fit == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    pixels = np.asarray(image)  # [h, w, 3]
    method: Method
    if image.size == (size, size):
        method = "none"
    elif image.width % size == 0 and image.height % size == 0:
        method = "box"
        pixels = _block_means(pixels, size)
    else:
        method = "lanczos"
        pixels = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), method  # [3, S, S]


def _block_means(pixels: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    # rounded once; Pillow's BOX rounds after each direction and is up to a whole level away
    height, width = pixels.shape[0] // size, pixels.shape[1] // size
    sums = pixels.reshape(size, height, size, width, 3).sum((1, 3), dtype=np.uint32)  # [S, S, 3]
    means: npt.NDArray[np.uint8] = ((sums + height * width // 2) // (height * width)).astype(np.uint8)
    return means
