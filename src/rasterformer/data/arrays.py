"""Images in NumPy's `.npz`: plain arrays, or JPEG files one after the other. Nothing is ever unpickled.

The compact layout that spreads over several files (contact sheets, train and test parts) is in `compact.py`.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from rasterformer.data.decode import Decoded, Reading, decode_image, to_labels
from rasterformer.data.source import Item, Source, name_classes
from rasterformer.errors import DataError

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Annotations:
    """What a part of a set says about its images, one entry an image; () where it says nothing.

    Args:
        labels: class names.
        class_names: all classes in the set's own order; () where only the labels are known.
        captions: "" where an image has none.
        notes: (name, reason) of arrays that were left out.
    """

    labels: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()


def read_npz(path: Path) -> Arrays:
    """Returns all arrays of an `.npz`.

    Raises:
        DataError: not an `.npz`, damaged, or with Python objects inside.
    """
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(f"{path.name} is a single .npy array. Save it with numpy.savez(..., images=array).")
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path.name} is not an .npz that can be read without unpickling ({type(error).__name__}: {error}). "
            "Write it with numpy.savez and plain number or text arrays."
        ) from error


def npz_source(path: Path) -> Source:
    """Reads an `.npz`: `images` (or the only image array), or `train_images` and `test_images`, or `jpeg` + `offsets`.

    Optional beside them: `labels` (or `train_labels`, `test_labels`), `class_names` (or `classes`), `captions`.

    Raises:
        DataError: the file is damaged, has no images, or an array has the wrong shape or dtype.
    """
    arrays = read_npz(path)
    if "train_images" in arrays and "test_images" in arrays:
        common = {name: array for name, array in arrays.items() if name in ("class_names", "classes")}
        parts: list[tuple[Literal["train", "test"], Arrays]] = [
            ("train", {n.removeprefix("train_"): a for n, a in arrays.items() if n.startswith("train_")} | common),
            ("test", {n.removeprefix("test_"): a for n, a in arrays.items() if n.startswith("test_")} | common),
        ]
        items, annotations = [], []
        for split, part in parts:
            found = array_items(part, where=f"{path.name}, {split}_")
            items.append([replace(item, name=f"{split}/{item.name}", split=split) for item in found])
            annotations.append(annotations_of(part, len(found), where=f"{path.name}, {split}_"))
        return assemble(path.name, items, annotations, split_origin=f"train_images and test_images of {path.name}")
    found = array_items(arrays, where=f"{path.name}, ")
    return assemble(path.name, [found], [annotations_of(arrays, len(found), where=f"{path.name}, ")])


def array_items(arrays: Arrays, *, where: str) -> list[Item]:
    """Returns one item an image of `images`, of `jpeg` + `offsets`, or of the only array that can be images.

    Raises:
        DataError: none or several arrays could be images, or theirs is the wrong shape or dtype.
    """
    if "jpeg" in arrays and "offsets" in arrays:
        return _jpeg_items(arrays["jpeg"], arrays["offsets"], where=where)
    name = "images"
    if name not in arrays:
        candidates = [name for name, array in arrays.items() if array.ndim in (3, 4)]
        if len(candidates) != 1:
            raise DataError(
                f"{where}images: not there; the arrays are {', '.join(sorted(arrays)) or 'none'}. "
                "Call the uint8 array of images `images`."
            )
        name = candidates[0]
    images = _channels_last(arrays[name], where=f"{where}{name}")
    return [
        Item(str(k), partial(_load_row, images, k), hashlib.sha256(images[k].tobytes()).hexdigest(), lossless=True)
        for k in range(len(images))
    ]


def _channels_last(images: npt.NDArray[Any], *, where: str) -> npt.NDArray[np.uint8]:
    if images.dtype != np.uint8:
        raise DataError(f"{where}: dtype {images.dtype}. Images must be uint8, 0..255; convert them before saving.")
    if images.ndim == 4 and images.shape[3] == 3 or images.ndim == 3:
        return images
    if images.ndim == 4 and images.shape[1] == 3:
        return images.transpose(0, 2, 3, 1)
    raise DataError(f"{where}: shape {images.shape}. Images must be [N, H, W, 3], [N, 3, H, W] or [N, H, W].")


def _load_row(images: npt.NDArray[np.uint8], k: int, reading: Reading) -> Decoded:
    stored = Image.fromarray(np.ascontiguousarray(images[k]))
    return Decoded(to_labels(stored) if reading == "labels" else stored.convert("RGB"), "array", stored.mode)


def _jpeg_items(jpeg: npt.NDArray[Any], offsets: npt.NDArray[Any], *, where: str) -> list[Item]:
    if jpeg.dtype != np.uint8 or jpeg.ndim != 1:
        raise DataError(f"{where}jpeg: {jpeg.dtype} {jpeg.shape}. It must be uint8 [bytes].")
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 1:
        raise DataError(f"{where}offsets: {offsets.dtype} {offsets.shape}. It must be whole numbers [N + 1].")
    bounds = [int(offset) for offset in offsets]
    if bounds[0] < 0 or bounds[-1] > len(jpeg) or any(a > b for a, b in zip(bounds, bounds[1:], strict=False)):
        raise DataError(f"{where}offsets: they must rise from 0 to at most {len(jpeg)}, the length of jpeg.")
    return [
        Item(
            str(k),
            partial(_load_jpeg, jpeg[start:end]),
            hashlib.sha256(jpeg[start:end].tobytes()).hexdigest(),
            lossless=False,
        )
        for k, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False))
    ]


def _load_jpeg(content: npt.NDArray[np.uint8], reading: Reading) -> Decoded:
    return decode_image(content.tobytes(), reading)


def annotations_of(arrays: Arrays, count: int, *, where: str) -> Annotations:
    """Reads `labels`, `class_names` or `classes`, and `captions`, for `count` images.

    Raises:
        DataError: labels or captions are not one an image, or a label has no class name.
    """
    class_names = tuple(str(name) for name in arrays.get("class_names", arrays.get("classes", np.array([]))).flat)
    labels: tuple[str, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    values = arrays.get("labels")
    if values is not None and values.ndim > 1:
        notes = ((f"{where}labels", f"shape {values.shape} is not one class an image: left out"),)
        class_names = ()
    elif values is not None:
        _check_count(values, count, where=f"{where}labels")
        if values.dtype.kind not in "iuU":
            raise DataError(f"{where}labels: dtype {values.dtype}. Labels must be whole numbers or texts.")
        if values.dtype.kind != "U" and class_names:
            if count and (values.min() < 0 or values.max() >= len(class_names)):
                raise DataError(
                    f"{where}labels: {values.min()}..{values.max()}, but there are {len(class_names)} class names."
                )
            labels = tuple(class_names[int(value)] for value in values)
        else:
            labels = tuple(str(value) for value in values)
    captions: tuple[str, ...] = ()
    if "captions" in arrays:
        _check_count(arrays["captions"], count, where=f"{where}captions")
        captions = tuple(str(caption) for caption in arrays["captions"])
    return Annotations(labels, class_names, captions, notes)


def _check_count(values: npt.NDArray[Any], count: int, *, where: str) -> None:
    if values.shape != (count,):
        raise DataError(
            f"{where}: shape {values.shape}, but there are {count} images. It must have one entry an image."
        )


def assemble(
    name: str,
    parts: Sequence[Sequence[Item]],
    annotations: Sequence[Annotations],
    *,
    split_origin: str | None = None,
) -> Source:
    """Joins the parts of a set and numbers its classes, which are those of all parts together.

    Args:
        parts: the items of each part.
        annotations: what is known about each part.

    Raises:
        DataError: a label is not among the class names.
    """
    labels = {label for part in annotations for label in part.labels}
    named = max((part.class_names for part in annotations), key=len)
    found, index_of = name_classes(labels)
    if labels and named:
        found = named
        index_of = {label: index for index, label in enumerate(found)}
        if unknown := sorted(labels - set(found)):
            raise DataError(f"{name}, labels: {unknown[0]!r} is not among the class names {', '.join(found)}.")
    has_labels = all(part.labels for part, items in zip(annotations, parts, strict=True) if items)
    items = [
        replace(
            item,
            label=index_of[part.labels[k]] if has_labels and part.labels else None,
            caption=(part.captions[k] or None) if part.captions else None,
        )
        for part, part_items in zip(annotations, parts, strict=True)
        for k, item in enumerate(part_items)
    ]
    notes = [note for part in annotations for note in part.notes]
    if labels and not has_labels:
        notes.append((f"{name}, labels", "only a part of the set has them: left out"))
    return Source(name, tuple(items), found if labels and has_labels else (), split_origin, tuple(notes))
