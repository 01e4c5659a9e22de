"""Sets in a few compact files: contact sheets and packed JPEGs, `train` and `test` beside each other.

`NAME.webp` is a contact sheet of equal square tiles, row by row; `NAME.npz` (labels, classes, captions) or `NAME.jsonl`
(one object a line, `caption` and `label`) says how many tiles there are and what they show.
"""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from rasterformer.data.arrays import Annotations, Arrays, annotations_of, array_items, assemble, npz_source, read_npz
from rasterformer.data.decode import SUFFIXES, Decoded, Reading, decode_file
from rasterformer.data.metadata import json_lines
from rasterformer.data.source import TEST_NAMES, Item, Source
from rasterformer.errors import DataError

WEBP_LOSSLESS = {b"VP8L": True, b"VP8 ": False}  # the first chunk of the file
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class _Sheet:
    """A contact sheet that is decoded when its first tile is asked for."""

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        self._lock = threading.Lock()
        self._tiles: npt.NDArray[np.uint8] | None = None

    def load(self, k: int, reading: Reading) -> Decoded:
        with self._lock:
            if self._tiles is None or reading == "labels":  # which a WebP is refused as
                sheet = decode_file(self.path, reading).image
                size = tile_size(*sheet.size, self.count, where=self.path.name)
                columns, rows = sheet.width // size, sheet.height // size
                pixels = np.asarray(sheet).reshape(rows, size, columns, size, 3)
                self._tiles = pixels.swapaxes(1, 2).reshape(rows * columns, size, size, 3)
        return Decoded(Image.fromarray(self._tiles[k]), "contact sheet", "RGB")


def tile_size(width: int, height: int, count: int, *, where: str) -> int:
    """Returns the side of the square tiles, pixels. At most one side puts `count` tiles exactly into the sheet's rows.

    Raises:
        DataError: no side does.
    """
    for size in range(1, min(width, height) + 1):
        if width % size == 0 and height % size == 0 and -(-count // (width // size)) == height // size:
            return size
    raise DataError(
        f"{where}: {width}x{height} pixels are no contact sheet of {count} square tiles. "
        "The tiles must fill the rows from the left, with at most the last row left open."
    )


def compact_source(path: Path) -> Source | None:
    """Reads a folder of compact files, or one of them (then without a split of its own). None: `path` is neither.

    Of several sets in a folder the lossless one with both `train` and `test` is taken.

    Raises:
        DataError: a file is damaged, or it is not clear which set of the folder is meant.
    """
    found = _file_source(path) if path.is_file() else _folder_source(path)
    if found is None or found.class_names != tuple("0123456789"):
        return found
    folder = path.parent if path.is_file() else path
    is_cifar10 = re.match("cifar-?10(?!0)", folder.resolve().name, re.IGNORECASE)
    return replace(found, class_names=CIFAR10_CLASSES) if is_cifar10 else found


def _file_source(path: Path) -> Source | None:
    if path.suffix == ".npz" and not path.with_suffix(".webp").exists():
        return npz_source(path)
    if path.suffix not in (".webp", ".npz", ".jsonl"):
        return None
    if not _is_sheet(path.with_suffix(".webp")):
        raise DataError(
            f"a contact sheet needs {path.stem}.npz or {path.stem}.jsonl beside it, which says how many "
            "tiles it has. For single images give their folder."
        )
    return _join(path.name, [_part(path.parent, path.stem)])


def _is_sheet(webp: Path) -> bool:
    return webp.is_file() and any(webp.with_suffix(suffix).is_file() for suffix in (".npz", ".jsonl"))


def _folder_source(folder: Path) -> Source | None:
    stems = sorted({f.stem for f in folder.glob("*.npz")} | {f.stem for f in folder.glob("*.webp") if _is_sheet(f)})
    images = [f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.stem not in stems]
    if not stems or images or any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir()):
        return None
    if len(stems) == 1:
        found = compact_source(
            next(folder / f"{stems[0]}{s}" for s in (".npz", ".webp") if (folder / f"{stems[0]}{s}").is_file())
        )
        assert found is not None, "a stem comes from a file that can be read"
        return replace(found, name=folder.name)
    sets: dict[str, dict[str, str]] = {}
    for stem in stems:
        match = re.fullmatch(rf"(train|{'|'.join(TEST_NAMES)})(?:[_-](.+))?", stem)
        if match:
            sets.setdefault(match[2] or "", {})[match[1]] = stem
    complete = {suffix: parts for suffix, parts in sets.items() if "train" in parts and len(parts) > 1}
    lossless = {suffix: parts for suffix, parts in complete.items() if _is_sheet(folder / f"{parts['train']}.webp")}
    choice = lossless or complete
    if len(choice) != 1:
        raise DataError(
            f"it holds {', '.join(stems)}, and it is not clear which is meant. "
            "Name two of them train and test, or give the path of one file."
        )
    ((suffix, parts),) = choice.items()
    test = next(name for name in TEST_NAMES if name in parts)
    return _join(
        f"{folder.name} (compact, {suffix})" if suffix else f"{folder.name} (compact)",
        [_part(folder, parts["train"]), _part(folder, parts[test])],
        split_origin=f"the set's own files {parts['train']} and {parts[test]}",
    )


def _part(folder: Path, stem: str) -> tuple[list[Item], Annotations]:
    arrays: Arrays = read_npz(folder / f"{stem}.npz") if (folder / f"{stem}.npz").is_file() else {}
    lines: list[Any] = json_lines(folder / f"{stem}.jsonl") if (folder / f"{stem}.jsonl").is_file() else []
    where = f"{stem}.npz, "
    webp = folder / f"{stem}.webp"
    if webp.is_file():
        counted = (
            [len(lines)] if lines else [len(arrays[n]) for n in ("labels", "names", "index", "captions") if n in arrays]
        )
        if not counted:
            raise DataError(
                f"{where}neither labels, names, index nor captions are there, so the tiles cannot be counted."
            )
        sheet = _Sheet(webp, counted[0])
        content = webp.read_bytes()
        digest, lossless = hashlib.sha256(content).hexdigest(), WEBP_LOSSLESS.get(content[12:16])
        items = [Item(str(k), partial(sheet.load, k), f"{digest}/{k}", lossless=lossless) for k in range(sheet.count)]
    else:
        items = array_items(arrays, where=where)
    annotations = annotations_of(arrays, len(items), where=where)
    if lines:
        annotations = _with_lines(annotations, lines, len(items), where=f"{stem}.jsonl")
    return [replace(item, name=f"{stem}/{item.name}") for item in items], annotations


def _with_lines(annotations: Annotations, lines: list[Any], count: int, *, where: str) -> Annotations:
    if len(lines) != count or not all(isinstance(line, dict) for line in lines):
        raise DataError(
            f"{where}: {len(lines)} lines for {count} images. It must have one object a line, one line an image."
        )
    captions = tuple(str(line.get("caption") or "") for line in lines)
    labels = tuple(str(line["label"]) for line in lines) if all("label" in line for line in lines) else ()
    return replace(
        annotations, captions=captions if any(captions) else annotations.captions, labels=labels or annotations.labels
    )


def _join(
    name: str,
    parts: list[tuple[list[Item], Annotations]],
    *,
    split_origin: str | None = None,
) -> Source:
    items = [part[0] for part in parts]
    if split_origin is not None:
        items = [
            [replace(item, split="train") for item in items[0]],
            [replace(item, split="test") for item in items[1]],
        ]
    return assemble(name, items, [part[1] for part in parts], split_origin=split_origin)
