"""open_images: a path or a name -> the images of one split, at one size."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from rasterformer.data.decode import Reading
from rasterformer.data.fit import Fit, Method, Reduction, fit_square
from rasterformer.data.imageset import ImageSet
from rasterformer.data.locate import find_source
from rasterformer.data.prepare import OnProgress, map_in_order
from rasterformer.data.source import Item, Source, passed_over
from rasterformer.errors import ConfigError, DataError, did_you_mean

FitImage = Callable[[Image.Image], tuple[npt.NDArray[np.uint8], Method]]
Split = Literal["train", "test", "all"]


def open_images(
    path: str,
    *,
    image_size: int,
    fit: Fit = "crop",
    trim: tuple[int, int] = (0, 0),
    reduction: Reduction = "auto",
    split: Split = "all",
    holdout_fraction: float = 0.1,
    max_memory_bytes: int = 2 << 30,
    on_progress: OnProgress | None = None,
) -> ImageSet:
    """Finds, decodes and reduces the images of one split. No image is enlarged; none that is broken stops the others.

    Every image is decoded once here, so that training never meets a broken one.

    Args:
        path: a folder of images, class folders, an `.npz`, a contact sheet, CIFAR-10's batches, or the name of an
            embedded set (`toonheads`, `emoji`).
        image_size: side of the result, pixels.
        fit, trim, reduction: as in `fit_square`. With `nearest` the images are label maps, read by `decode.to_labels`.
        split: which part. `all` takes every image.
        holdout_fraction: share of `test` where the set has no split of its own, 0..1 exclusive. An image's name decides
            where it goes, so that new images move no old one.
        max_memory_bytes: images that need more are decoded anew each time they are asked for.
        on_progress: called now and then with (images done, images in all).

    Raises:
        ConfigError: image_size is below 1, split is not known, or holdout_fraction is not between 0 and 1.
        DataError: nothing is at `path`; it holds no image; none can be used; all are smaller than `image_size`; or the
            split has no image.
    """
    _check_options(image_size, split, holdout_fraction)
    source = find_source(path)
    if not source.items:
        raise DataError(
            f"data.path = {path!r}: no image in it"
            + (f" that can be used: {passed_over(source.skipped)}" if source.skipped else "")
            + ". Allowed are PNG, JPEG, WebP, TIFF, BMP and GIF, in folders as deep as you like. Give another folder."
        )
    items, origin = _choose(source, split, holdout_fraction, path)
    fit_image = partial(fit_square, size=image_size, fit=fit, trim=trim, reduction=reduction)
    load = partial(
        _load,
        reading="labels" if reduction == "nearest" else "colours",
        size=image_size,
        trim=trim,
        fit_image=fit_image,
    )
    prepared = _prepare(items, image_size, load, max_memory_bytes, on_progress)
    if not prepared.kept:
        raise _nothing_left(path, prepared, image_size, trim)
    kept = [items[k] for k in prepared.kept]
    captions = tuple(item.caption or "" for item in kept)
    known = {item.lossless for item in kept}
    return ImageSet(
        name=source.name,
        split=split,
        split_origin=origin,
        preprocessing=_preprocessing(prepared.methods, prepared.cropped, image_size, fit, trim)
        + ("; values are class indices" if reduction == "nearest" else ""),
        image_size=image_size,
        class_names=source.class_names,
        labels=torch.tensor([item.label for item in kept]) if source.class_names else None,
        captions=captions if any(captions) else None,
        fingerprint=_fingerprint(kept),
        lossless=known.pop() if len(known) == 1 else None,
        skipped=source.skipped + tuple(prepared.skipped),
        num_images=len(kept),
        pixels=torch.from_numpy(prepared.pixels) if prepared.pixels is not None else _decoder(kept, load),
        names=tuple(item.name for item in kept),
        empty_captions=sum(item.caption == "" for item in kept),
        caption_hint=source.caption_hint,
    )


def _check_options(image_size: int, split: str, holdout_fraction: float) -> None:
    if image_size < 1:
        raise ConfigError(f"data.image_size = {image_size} must be at least 1 pixel.")
    if split not in get_args(Split):
        raise ConfigError(f"split = {split!r} is not known.{did_you_mean(split, get_args(Split))}")
    if not 0.0 < holdout_fraction < 1.0:
        raise ConfigError(f"data.holdout_fraction = {holdout_fraction} must lie between 0 and 1.")


def _choose(source: Source, split: Split, holdout_fraction: float, path: str) -> tuple[Sequence[Item], str]:
    if split == "all":
        return source.items, "every image of the set"
    if source.split_origin is not None:
        chosen = [item for item in source.items if item.split == split]
        unassigned = sum(item.split is None for item in source.items)
        return chosen, source.split_origin + (
            f" ({unassigned} image{'s' if unassigned > 1 else ''} in neither)" if unassigned else ""
        )
    if len(source.items) < 2:
        raise DataError(
            f"data.path = {path!r}: one image cannot be divided into train and test. "
            + (
                f"Of {len(source.skipped) + 1:,} only 1 is used: {passed_over(source.skipped)}."
                if source.skipped
                else "Add images to the folder."
            )
        )
    places = [_place(item.name) for item in source.items]
    in_test = [place < holdout_fraction for place in places]
    if not any(in_test):  # so few images that none fell below: the lowest is held out
        in_test[int(np.argmin(places))] = True
    if all(in_test):
        in_test[int(np.argmax(places))] = False
    chosen = [item for item, held_out in zip(source.items, in_test, strict=True) if held_out == (split == "test")]
    return (
        chosen,
        f"a hash of each image's name (holdout_fraction {holdout_fraction:g}); the set has no split of its own",
    )


def _place(name: str) -> float:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@dataclass(frozen=True)
class _Ready:
    pixels: npt.NDArray[np.uint8]
    method: Method
    is_square: bool


@dataclass(frozen=True)
class _Failed:
    reason: str
    size: tuple[int, int] | None  # None: broken; otherwise smaller than asked for


Load = Callable[[Item], _Ready | _Failed]


@dataclass(frozen=True)
class _Prepared:
    pixels: npt.NDArray[np.uint8] | None  # None: they do not fit into memory
    kept: list[int]
    skipped: list[tuple[str, str]]
    small: list[tuple[int, int]]
    methods: Counter[Method]
    cropped: bool


def _prepare(
    items: Sequence[Item],
    size: int,
    load: Load,
    max_memory_bytes: int,
    on_progress: OnProgress | None,
) -> _Prepared:
    pixels = None
    if len(items) * 3 * size * size <= max_memory_bytes:
        pixels = np.empty((len(items), 3, size, size), np.uint8)
    kept: list[int] = []
    skipped: list[tuple[str, str]] = []
    small: list[tuple[int, int]] = []
    methods: Counter[Method] = Counter()
    cropped = False
    results = map_in_order(load, items, on_progress=on_progress)
    for k, result in enumerate(results):
        if isinstance(result, _Failed):
            skipped.append((items[k].name, result.reason))
            if result.size is not None:
                small.append(result.size)
            continue
        if pixels is not None:
            pixels[len(kept)] = result.pixels
        kept.append(k)
        methods[result.method] += 1
        cropped |= not result.is_square
    return _Prepared(None if pixels is None else pixels[: len(kept)], kept, skipped, small, methods, cropped)


def _load(item: Item, *, reading: Reading, size: int, trim: tuple[int, int], fit_image: FitImage) -> _Ready | _Failed:
    try:
        image = item.load(reading).image
    except DataError as error:
        return _Failed(str(error), None)
    width, height = image.width - 2 * trim[1], image.height - 2 * trim[0]
    if min(width, height) < size:
        cut = "" if trim == (0, 0) else " when trimmed"
        return _Failed(f"{width}x{height} pixels{cut}, smaller than {size}x{size}", (width, height))
    pixels, method = fit_image(image)
    return _Ready(pixels, method, width == height)


def _decoder(items: Sequence[Item], load: Load) -> Callable[[int], Tensor]:
    def decode(k: int) -> Tensor:
        result = load(items[k])
        if isinstance(result, _Failed):
            raise DataError(
                f"{items[k].name!r} was readable when the set was opened and is so no longer: {result.reason}. "
                "Put the file back, or open the set again."
            )
        return torch.from_numpy(result.pixels)

    return decode


def _nothing_left(path: str, prepared: _Prepared, size: int, trim: tuple[int, int]) -> DataError:
    count = len(prepared.skipped)
    if not count:
        return DataError(f"data.path = {path!r}: this part of its own split is empty. Put images into it.")
    if len(prepared.small) == count:
        smallest = min(prepared.small, key=min)
        largest = max(prepared.small, key=min)
        if min(largest) < 1:
            return DataError(
                f"data.path = {path!r}: data.trim = {trim} leaves nothing of any of its {count} images. Cut off less."
            )
        trimmed = "" if trim == (0, 0) else f" when data.trim = {trim} is cut off"
        return DataError(
            f"data.path = {path!r}: all {count} images are smaller than data.image_size = {size}{trimmed} "
            f"(from {smallest[0]}x{smallest[1]} to {largest[0]}x{largest[1]} pixels). Images are never enlarged. "
            f"Set data.image_size to {max(1, min(smallest))} to use all of them, and to at most {min(largest)} to use any."
        )
    return DataError(
        f"data.path = {path!r}: none of its {count} images can be used; the first is {_named(prepared.skipped[0])}. "
        "At least one must be readable. `rasterformer scan` lists what is wrong with each."
    )


def _named(skipped: tuple[str, str]) -> str:
    return f"{skipped[0]!r}: {skipped[1]}"


def _preprocessing(methods: Counter[Method], cropped: bool, size: int, fit: Fit, trim: tuple[int, int]) -> str:
    words: dict[Method, str] = {
        "none": "as stored",
        "box": "by box averaging",
        "lanczos": "by Lanczos",
        "area": "by area averaging, rounded down",
        "nearest": "by the pixel at the centre of each area",
    }
    if trim != (0, 0):
        rest = _preprocessing(methods, cropped, size, fit, (0, 0))
        return f"{trim[0]} rows above and below and {trim[1]} columns on either side cut off, then {rest}"
    shape = "" if not cropped else "centre crop to a square, " if fit == "crop" else "both sides separately, "
    if set(methods) == {"none"}:
        return f"centre crop to {size}x{size}" if cropped else f"none (stored at {size}x{size})"
    if len(methods) == 1:
        return f"{shape}reduced to {size}x{size} {words[next(iter(methods))]}"
    parts = ", ".join(f"{methods[method]} {words[method]}" for method in words if method in methods)
    return f"{shape}reduced to {size}x{size} ({parts})"


def _fingerprint(items: Sequence[Item]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(item.identity.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()
