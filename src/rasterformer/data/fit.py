"""An RGB image of any size -> the square of training size, and the word for how that was done."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from rasterformer.errors import DataError

Fit = Literal["crop", "stretch"]
Reduction = Literal["auto", "area", "nearest"]
Method = Literal["none", "box", "lanczos", "area", "nearest"]


def fit_square(
    image: Image.Image,
    size: int,
    *,
    fit: Fit = "crop",
    trim: tuple[int, int] = (0, 0),
    reduction: Reduction = "auto",
) -> tuple[npt.NDArray[np.uint8], Method]:
    """Reduces an image to size x size pixels.

    Args:
        image: mode RGB, both sides at least `size` when it has been trimmed.
        size: side of the result, pixels.
        fit: `crop` takes the largest centred square; `stretch` reduces both sides separately.
        trim: rows cut off above and below, and columns cut off on either side, before anything else.
        reduction: `auto`: box or Lanczos, see below; `area`: mean over areas, rounded down, as the paper's data were made;
            `nearest`: the pixel at the centre of each area, for label maps, whose values must not be mixed.

    Returns:
        uint8 [3, size, size], and how pixels were reduced: `none` (not at all), `box` (mean over whole blocks, where
        the factor is a whole number on both sides), `lanczos` (any other factor), `area`, `nearest`.

    Raises:
        DataError: a side is below `size`.
    """
    if trim != (0, 0):
        rows, cols = trim
        if image.width <= 2 * cols or image.height <= 2 * rows:
            raise DataError(
                f"{image.width}x{image.height} pixels leave nothing when {rows} rows and {cols} columns are cut off"
            )
        image = image.crop((cols, rows, image.width - cols, image.height - rows))
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
    elif reduction == "area":
        method = "area"
        pixels = _area_means(pixels, size)
    elif reduction == "nearest":
        method = "nearest"
        pixels = pixels[_centres(image.height, size)][:, _centres(image.width, size)]
    elif image.width % size == 0 and image.height % size == 0:
        method = "box"
        pixels = _block_means(pixels, size)
    else:
        method = "lanczos"
        pixels = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), method  # [3, S, S]


def _area_means(pixels: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    # a pixel that lies in two areas counts in both by its share; a mean that is whole must not be rounded to one less
    over_rows, over_cols = _area_weights(pixels.shape[0], size), _area_weights(pixels.shape[1], size)
    means = np.einsum("ih,hwc,jw->ijc", over_rows, pixels.astype(np.float64), over_cols, optimize=True)
    return np.floor(means + 1e-6).astype(np.uint8)


def _area_weights(length: int, size: int) -> npt.NDArray[np.float64]:
    """[size, length]: how much of each old pixel lies in each new one, as a share of the new one."""
    edges = np.arange(size + 1) * (length / size)
    old = np.arange(length)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return np.clip(overlap, 0, None) * (size / length)


def _centres(length: int, size: int) -> npt.NDArray[np.int64]:
    """[size]: the old pixel in which the middle of each new one lies; between two, the later one."""
    return (2 * np.arange(size) + 1) * length // (2 * size)


def _block_means(pixels: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    # rounded once; Pillow's BOX rounds after each direction and is up to a whole level away
    height, width = pixels.shape[0] // size, pixels.shape[1] // size
    sums = pixels.reshape(size, height, size, width, 3).sum((1, 3), dtype=np.uint32)  # [S, S, 3]
    means: npt.NDArray[np.uint8] = ((sums + height * width // 2) // (height * width)).astype(np.uint8)
    return means
