"""Images as PNG files: contact sheets, lossless writing, and a record of how a picture was made inside the file.

The record is JSON in an iTXt chunk with the keyword `rasterformer`; `rasterformer inspect FILE` prints it back.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from rasterformer.errors import ConfigError, DataError, ShapeError

KEYWORD = "rasterformer"
GAP_VALUE = 244


def image_grid(images: Tensor, *, columns: int | None = None, scale: int = 1, gap: int = 1) -> Tensor:
    """Returns a contact sheet of the images, row by row, on a near-white ground.

    Args:
        images: uint8 [N, 3, H, W], N >= 1.
        columns: images in a row. None: as many as make the sheet nearly square.
        scale: each pixel becomes a square of scale x scale pixels (nearest neighbour).
        gap: pixels of the sheet between neighbouring images; none around them.

    Returns:
        uint8 [3, rows * H * scale + (rows - 1) * gap, columns * W * scale + (columns - 1) * gap].

    Raises:
        ShapeError: images are not uint8 [N, 3, H, W], or there are none.
        ConfigError: columns or scale is below 1, or gap is negative.
    """
    _check_images(images)
    if columns is not None and columns < 1:
        raise ConfigError(f"columns = {columns} must be at least 1, or None for a nearly square sheet.")
    if scale < 1:
        raise ConfigError(f"scale = {scale} must be at least 1.")
    if gap < 0:
        raise ConfigError(f"gap = {gap} must not be negative.")
    num_images, _, height, width = images.shape
    if columns is None:
        columns = min(num_images, math.ceil(math.sqrt(num_images * height / width)))
    rows = math.ceil(num_images / columns)
    tiles = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)  # [N, 3, H * scale, W * scale]
    height, width = height * scale, width * scale
    sheet = torch.full((3, rows * (height + gap) - gap, columns * (width + gap) - gap), GAP_VALUE, dtype=torch.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = tile
    return sheet


def to_pil(images: Tensor) -> list[Image.Image]:
    """Returns uint8 [N, 3, H, W] as N Pillow images, mode RGB.

    Raises:
        ShapeError: images are not uint8 [N, 3, H, W], or there are none.
    """
    _check_images(images)
    return [Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()) for image in images]


def png_bytes(image: Tensor, *, metadata: Mapping[str, Any] | None = None) -> bytes:
    """Returns the bytes of a PNG file of uint8 [3, H, W].

    Args:
        image: uint8 [3, H, W].
        metadata: JSON values, stored with the picture. None: nothing is stored.

    Raises:
        ShapeError: image is not uint8 [3, H, W].
        TypeError, ValueError: metadata is not JSON (NaN and infinity are not).
    """
    if image.ndim != 3:
        raise ShapeError(f"image has {_received(image)}; uint8 [3, H, W] is needed.")
    record = PngImagePlugin.PngInfo()
    if metadata is not None:
        record.add_itxt(KEYWORD, json.dumps(metadata, ensure_ascii=False, allow_nan=False))
    stream = io.BytesIO()
    to_pil(image[None])[0].save(stream, format="PNG", optimize=True, pnginfo=record)
    return stream.getvalue()


def write_png(path: str | Path, image: Tensor, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes uint8 [3, H, W] losslessly; missing folders are made, and the file is there whole or not at all.

    Args:
        path: the file to write or replace.
        image: uint8 [3, H, W].
        metadata: JSON values, stored with the picture. None: nothing is stored.

    Raises:
        ShapeError: image is not uint8 [3, H, W].
        TypeError, ValueError: metadata is not JSON (NaN and infinity are not).
        DataError: the file cannot be written there.
    """
    path = Path(path)
    payload = png_bytes(image, metadata=metadata)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(payload)
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)


def read_png_metadata(path: str | Path) -> dict[str, Any] | None:
    """Returns the record that `write_png` stored in the file, or None where there is none.

    Raises:
        DataError: the file is missing, is no PNG, or its record is not a JSON object.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            text = image.info.get(KEYWORD)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as a PNG file: {error}") from error
    if text is None:
        return None
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: its {KEYWORD} record is not JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise DataError(f"{path}: its {KEYWORD} record is a JSON {type(metadata).__name__}; an object is needed.")
    return metadata


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise ShapeError(f"images have {_received(images)}; uint8 [N, 3, H, W] with N >= 1 is needed.")


def _received(images: Tensor) -> str:
    return f"dtype {str(images.dtype).removeprefix('torch.')} and shape {list(images.shape)}"
