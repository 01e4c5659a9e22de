"""What ordinary lossless image files need for the same images: orientation beside a model's bits per dimension.

The sizes are those of whole files. A header of some 60 bytes is 0.16 bits/dim of a 32x32 image, so small images are
also packed into contact sheets, where a file's fixed costs are shared and the format learns from many images at once.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rasterformer.data.png import image_grid, to_pil
from rasterformer.errors import DataError

SMALL_SIDE = 32  # pixels; images up to this size are measured in sheets too
SHEET_IMAGES = 4096  # at most; keeps a sheet of the smallest images below WebP's 16,383 pixels a side


def lossless_formats() -> dict[str, dict[str, Any]]:
    """Returns name -> Pillow's options for `save`: PNG, WebP and, only where `pillow_jxl` is installed, JPEG XL.

    WebP runs at method 6 with Pillow's default effort; effort 100 takes seven times as long for 0.2 % smaller files.
    """
    formats: dict[str, dict[str, Any]] = {
        "PNG": {"format": "PNG", "optimize": True},
        "WebP lossless": {"format": "WEBP", "lossless": True, "method": 6, "exact": True},
    }
    if importlib.util.find_spec("pillow_jxl") is not None:
        importlib.import_module("pillow_jxl")
        formats["JPEG XL lossless"] = {"format": "JXL", "lossless": True}
    return formats


def file_bits_per_dim(batches: Iterable[Tensor], *, sheet_images: int = SHEET_IMAGES) -> dict[str, float]:
    """Returns the size of the images as lossless files, headers included, in bits per dimension.

    Args:
        batches: uint8 [B, 3, H, W] each, all of one size, B >= 1.
        sheet_images: images on a sheet, at most.

    Returns:
        For each format the figure of one file per image, as in `{"PNG": 5.87, "WebP lossless": 4.67}`. For images of
        at most 32 pixels a side also of contact sheets, `"PNG, one sheet"`, or `"PNG, sheets of 4,096"` where there
        are more images than one sheet holds.

    Raises:
        DataError: there are no images, or they differ in size.
        ShapeError: a batch is not uint8 [B, 3, H, W].
    """
    formats = lossless_formats()
    num_bytes = dict.fromkeys(formats, 0)
    num_sheet_bytes = dict.fromkeys(formats, 0)
    num_images = 0
    shape: torch.Size | None = None
    waiting: list[Tensor] = []  # images that fill no sheet yet

    def write_sheet(images: Tensor) -> None:
        [sheet] = to_pil(image_grid(images, gap=0)[None])
        for name, options in formats.items():
            num_sheet_bytes[name] += _num_bytes(sheet, options)

    for images in batches:
        if shape is not None and images.shape[1:] != shape:
            raise DataError(f"Images of shape {list(images.shape[1:])} follow {list(shape)}; one size is needed.")
        shape = images.shape[1:]
        num_images += len(images)
        for picture in to_pil(images):
            for name, options in formats.items():
                num_bytes[name] += _num_bytes(picture, options)
        if max(shape[1:]) <= SMALL_SIDE:
            waiting.extend(images)
            while len(waiting) >= sheet_images:
                write_sheet(torch.stack(waiting[:sheet_images]))
                del waiting[:sheet_images]
    if shape is None:
        raise DataError("There are no images to measure; at least one is needed.")
    if waiting:
        write_sheet(torch.stack(waiting))

    num_dims = num_images * shape.numel()
    bits_per_dim = {name: count * 8 / num_dims for name, count in num_bytes.items()}
    if max(shape[1:]) <= SMALL_SIDE:
        sheets = "one sheet" if num_images <= sheet_images else f"sheets of {sheet_images:,}"
        bits_per_dim |= {f"{name}, {sheets}": count * 8 / num_dims for name, count in num_sheet_bytes.items()}
    return bits_per_dim


def _num_bytes(picture: Image.Image, options: dict[str, Any]) -> int:
    stream = io.BytesIO()
    picture.save(stream, **options)
    return stream.getbuffer().nbytes
