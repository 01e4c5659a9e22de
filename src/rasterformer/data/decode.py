"""One untrusted image file -> one upright RGB image, or a `DataError` that says why not.

Every odd image has one documented result, see `decode_image`; a label map (an image whose values are class indices) is
read by `to_labels`. Reduction to the training size is in `fit.py`.
"""

from __future__ import annotations

import io
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from rasterformer.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")
MAX_FILE_BYTES = 64_000_000
MAX_PIXELS = 64_000_000
MAX_SIDE = 32_768
MAX_ASPECT = 64

Reading = Literal["colours", "labels"]  # by `to_rgb` or by `to_labels`


@dataclass(frozen=True)
class Decoded:
    """An image as it will be used, and what it was.

    Args:
        image: mode RGB, upright.
        format: Pillow's name of the file format, or "array".
        mode: Pillow's name of the stored pixel layout.
        repairs: what had to be changed beyond unpacking, one phrase each.
    """

    image: Image.Image
    format: str
    mode: str
    repairs: tuple[str, ...] = ()


def decode_file(path: Path, reading: Reading = "colours") -> Decoded:
    """Reads and decodes one image file.

    Raises:
        DataError: not a regular file, empty, larger than 64 MB, or anything that `decode_image` refuses.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError("not a regular file")
        if status.st_size == 0:
            raise DataError("empty file (0 bytes)")
        if status.st_size > MAX_FILE_BYTES:
            raise DataError(f"file of {status.st_size} bytes, at most {MAX_FILE_BYTES} are read")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error
    return decode_image(content, reading)


def decode_image(content: bytes, reading: Reading = "colours") -> Decoded:
    """Decodes the bytes of a PNG, JPEG, WebP, TIFF, BMP or GIF.

    EXIF orientation is applied; 16-bit grey is divided by 257 and rounded (16-bit colour keeps its high byte); alpha
    and transparent palette entries are composited on white; CMYK is converted without its profile; grey becomes RGB;
    of an animation the first frame is taken; floating-point and 32-bit integer samples are refused, having no stated
    white. Label maps keep their values instead, see `to_labels`.

    Raises:
        DataError: another format, damaged, a side above 32768, more than 64 Mpx (checked before decoding), an aspect
            ratio above 64:1, or samples without a stated white; a label map in JPEG, WebP or GIF, or one that `to_labels`
            refuses.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            _check_size(*opened.size)
            stored_format, stored_mode = opened.format or "?", opened.mode
            if reading == "labels" and stored_format not in ("PNG", "TIFF", "BMP"):  # writers of GIF renumber palettes
                raise DataError(f"a label map in {stored_format}, which may have changed its values. Save it as PNG")
            repairs = []
            if opened.mode in ("RGB", "RGBA") and any("16" in str(tile[3]) for tile in opened.tile):
                repairs.append("high byte of 16-bit samples")  # Pillow's PNG reader gives no more
            if getattr(opened, "is_animated", False):
                opened.seek(0)
                repairs.append("first frame of several")
            if opened.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1):
                repairs.append("turned upright by its EXIF orientation")
            upright = ImageOps.exif_transpose(opened)
            upright = to_labels(upright) if reading == "labels" else _rgb(upright, repairs)
            return Decoded(upright, stored_format, stored_mode, tuple(repairs))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"not a {'/'.join(FORMATS)} image") from error
    except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
        raise DataError(f"damaged image ({type(error).__name__}: {error})") from error


def to_rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Returns a decoded image in mode RGB by the rules of `decode_image`, and what had to be changed, one phrase each.

    Raises:
        DataError: samples without a stated white.
    """
    repairs: list[str] = []
    return _rgb(image, repairs), tuple(repairs)


def to_labels(image: Image.Image) -> Image.Image:
    """Returns a label map in mode RGB, the class index of each pixel in all three channels: it passes for an image.

    The index is the value of a grey image, 0 or 1 in a bilevel one, and the number of the entry in a palette, whose
    colours do not matter.

    Raises:
        DataError: transparency, several channels that are not equal, values that are no whole numbers, or one above 255.
    """
    if image.has_transparency_data:
        raise DataError(f"mode {image.mode} with transparency: a label map needs one channel without it")
    values = np.asarray(image)  # of a palette image: the numbers of its entries
    if values.ndim == 3 and (values != values[..., :1]).any():
        raise DataError(
            f"mode {image.mode} with channels that differ: a label map needs one channel, of class indices, or palette "
            "indices. Colours that stand for classes must be converted first"
        )
    values = values[..., 0] if values.ndim == 3 else values
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 255:
        raise DataError(f"values {values.min()}..{values.max()}: a label map needs whole numbers 0..255")
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _check_size(width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE:
        raise DataError(f"{width}x{height} pixels, a side may have at most {MAX_SIDE}")
    if width * height > MAX_PIXELS:
        raise DataError(f"{width}x{height} pixels are more than {MAX_PIXELS}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(f"{width}x{height} pixels are longer than {MAX_ASPECT}:1")


def _rgb(image: Image.Image, repairs: list[str]) -> Image.Image:
    if image.mode in ("F", "I"):
        raise DataError(f"{'floating-point' if image.mode == 'F' else '32-bit integer'} samples have no stated white")
    if image.mode.startswith("I;16"):
        repairs.append("16-bit grey divided by 257")
        samples = np.asarray(image).astype(np.uint32)
        grey = (samples + 128) // 257
        if "transparency" in image.info:
            repairs.append("transparency composited on white")
            grey[samples == image.info["transparency"]] = 255
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "CMYK":
        repairs.append("CMYK converted without its profile")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    alpha = layered.getchannel("A").getextrema()
    if alpha != (255, 255):
        repairs.append("transparency composited on white")
    white = Image.new("RGBA", layered.size, "white")
    white.alpha_composite(layered)
    return white.convert("RGB")
