"""A folder of images: classes and splits from its subfolders, labels and captions from files beside the images."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

from rasterformer.data.decode import SUFFIXES, decode_file
from rasterformer.data.metadata import METADATA_NAMES, Note, read_caption, read_metadata, unread_columns
from rasterformer.data.source import TEST_NAMES, Item, Source, name_classes
from rasterformer.errors import DataError

LOSSLESS = {".png": True, ".bmp": True, ".gif": True, ".jpg": False, ".jpeg": False}  # WebP and TIFF can be either


@dataclass
class _Found:
    images: list[str]
    metadata: list[str]
    captions: set[str]
    other: list[str]
    skipped: list[tuple[str, str]]


def folder_source(root: Path) -> Source:
    """Finds every image below `root`, in the order of their names.

    - `train/` beside `test/` (or `val/`, `valid/`, `validation/`) is the set's own split.
    - Images that all lie in subfolders, at least two of them: the first folder's name is the class.
    - `metadata.jsonl` or `metadata.csv`: names the images to use, their `label` and `text` or `caption`.
    - `NAME.txt` beside `NAME.png` is its caption.

    Hidden files and folders are passed over, and so are symbolic links that leave the folder.

    Raises:
        DataError: a metadata file is damaged, or all of them are empty.
    """
    found = _walk(root)
    notes, listed_in = _notes(root, found)
    if listed_in and not notes:
        raise DataError(f"{listed_in} lists no image. Give each image a line with its file_name, or remove the file.")
    names = sorted(found.images)
    if listed_in:
        for name in names:
            if name not in notes:
                found.skipped.append((name, f"not listed in {listed_in}"))
        present = set(names)
        found.skipped += [(name, f"listed in {listed_in}, but missing") for name in notes if name not in present]
        names = [name for name in names if name in notes]

    splits = _own_split(names)
    labels: dict[str, str] = {}
    if any(notes[name].label is not None for name in names if name in notes):
        for name in names:
            label = notes[name].label
            if label is None:
                found.skipped.append((name, f"no label in {listed_in}"))
            else:
                labels[name] = str(label)
        names = [name for name in names if name in labels]
    elif not listed_in:
        labels = _folder_classes(names, below_split=splits is not None)
    class_names, index_of = name_classes(labels.values())

    items = []
    for name in names:
        path = root / name
        caption = notes[name].caption if name in notes else None
        caption_name = str(PurePosixPath(name).with_suffix(".txt"))
        if caption is None and caption_name in found.captions:
            found.captions.discard(caption_name)
            try:
                caption = read_caption(root / caption_name)
            except DataError as error:
                found.skipped.append((caption_name, str(error)))
        items.append(
            Item(
                name=name,
                load=partial(decode_file, path),
                identity=f"{name}\0{path.stat().st_size}",
                label=index_of[labels[name]] if name in labels else None,
                caption=caption,
                split=splits[1].get(name) if splits else None,
                lossless=LOSSLESS.get(path.suffix.lower()),
            )
        )
    return Source(
        name=root.name or str(root),
        items=tuple(items),
        class_names=class_names,
        split_origin=splits[0] if splits else None,
        skipped=tuple(found.skipped),
        other_files=tuple(found.other) + tuple(sorted(found.captions)),
        caption_hint="" if any(item.caption for item in items) else unread_columns(notes.values(), listed_in),
    )


def _walk(root: Path) -> _Found:
    found = _Found([], [], set(), [], [])
    inside = root.resolve()
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        for name in [name for name in folders if (here / name).is_symlink()]:
            found.skipped.append(((here / name).relative_to(root).as_posix(), "link to a folder: not followed"))
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for file in sorted(files):
            path = here / file
            name = path.relative_to(root).as_posix()
            if file.startswith("."):
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                found.skipped.append((name, "link that leaves the folder"))
            elif not path.is_file():
                found.skipped.append((name, "not a regular file, or a link to nothing"))
            elif path.suffix.lower() in SUFFIXES:
                found.images.append(name)
            elif file in METADATA_NAMES:
                found.metadata.append(name)
            elif path.suffix == ".txt":
                found.captions.add(name)
            else:
                found.other.append(name)
    return found


def _notes(root: Path, found: _Found) -> tuple[dict[str, Note], str]:
    notes: dict[str, Note] = {}
    for name in found.metadata:
        folder = PurePosixPath(name).parent
        for file_name, note in read_metadata(root / name).items():
            notes[str(folder / file_name)] = note
    return notes, " and ".join(found.metadata)


def _own_split(names: list[str]) -> tuple[str, dict[str, Literal["train", "test"]]] | None:
    tops = {PurePosixPath(name).parts[0] for name in names if len(PurePosixPath(name).parts) > 1}
    test = next((name for name in TEST_NAMES if name in tops), None)
    if "train" not in tops or test is None:
        return None
    splits: dict[str, Literal["train", "test"]] = {}
    for name in names:
        parts = PurePosixPath(name).parts
        if len(parts) > 1 and parts[0] in ("train", test):
            splits[name] = "train" if parts[0] == "train" else "test"
    return f"the set's own folders train/ and {test}/", splits


def _folder_classes(names: list[str], *, below_split: bool) -> dict[str, str]:
    parts = {name: PurePosixPath(name).parts for name in names}
    if below_split:
        parts = {name: path[1:] if path[0] in ("train", *TEST_NAMES) else path for name, path in parts.items()}
    if any(len(path) < 2 for path in parts.values()) or len({path[0] for path in parts.values()}) < 2:
        return {}
    return {name: path[0] for name, path in parts.items()}
