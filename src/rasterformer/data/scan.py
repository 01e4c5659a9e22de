"""Reads a set of images once, completely, and reports what is there and what will be done about it."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from rasterformer.data.locate import find_source
from rasterformer.data.prepare import OnProgress, map_in_order
from rasterformer.data.source import Item
from rasterformer.errors import DataError


@dataclass(frozen=True)
class ScanReport:
    """What a set of images holds.

    Args:
        path, name: what was scanned, and what it was taken for.
        ok: images used as they are.
        repaired: images used after a change; `repairs` counts the changes.
        skipped: (name, reason) of everything that will not be used.
        reasons: how many were skipped for each reason.
        smallest_side: of all usable images, pixels: the largest data.image_size that loses none. None: no usable image.
        sizes: how many images of each "WIDTHxHEIGHT", most frequent first.
        formats, modes: how many images of each file format and pixel layout.
        classes: how many images of each class; empty where there are none.
        splits: how many images in `train`, `test` and in neither.
        split_origin: where the set's own split comes from. None: it has none.
        duplicates: groups of names whose decoded pixels are equal.
        zero_bytes: names of empty files.
        captions: number of images that have one.
        empty_captions: number of images whose caption should be in a .txt that is empty.
        other_files: names of files that are no images.
        actions: what will be done, one sentence each.
    """

    path: str
    name: str
    ok: int
    repaired: int
    repairs: dict[str, int]
    skipped: tuple[tuple[str, str], ...]
    reasons: dict[str, int]
    smallest_side: int | None
    sizes: dict[str, int]
    formats: dict[str, int]
    modes: dict[str, int]
    classes: dict[str, int]
    splits: dict[str, int]
    split_origin: str | None
    duplicates: tuple[tuple[str, ...], ...]
    zero_bytes: tuple[str, ...]
    captions: int
    empty_captions: int
    other_files: tuple[str, ...]
    actions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain values that JSON can hold."""
        return asdict(self)


@dataclass(frozen=True)
class _Seen:
    size: tuple[int, int]
    format: str
    mode: str
    repairs: tuple[str, ...]
    digest: bytes


def scan(path: str, *, on_progress: OnProgress | None = None) -> ScanReport:
    """Decodes every image at `path` once.

    Args:
        path: whatever `open_images` accepts.
        on_progress: called now and then with (images done, images in all).

    Raises:
        DataError: nothing is at `path`, or it is in no layout that can be read.
    """
    source = find_source(path)
    usable: list[tuple[Item, _Seen]] = []
    skipped = list(source.skipped)
    for item, result in zip(source.items, map_in_order(_look, source.items, on_progress=on_progress), strict=True):
        if isinstance(result, _Seen):
            usable.append((item, result))
        else:
            skipped.append((item.name, result))

    by_content: dict[bytes, list[str]] = {}
    for item, seen in usable:
        by_content.setdefault(seen.digest, []).append(item.name)
    duplicates = tuple(tuple(names) for names in by_content.values() if len(names) > 1)
    split_of = {item.name: item.split for item, _ in usable}
    leaked = sum({"train", "test"} <= {split_of[name] for name in names} for names in duplicates)
    repairs = Counter(repair for _, seen in usable for repair in seen.repairs)
    repaired = sum(bool(seen.repairs) for _, seen in usable)
    smallest = min((min(seen.size) for _, seen in usable), default=None)
    captions, empty = (sum(bool(item.caption) for item, _ in usable), sum(item.caption == "" for item, _ in usable))
    labels = Counter(item.label for item, _ in usable if item.label is not None)
    splits = Counter[str](item.split or "neither" for item, _ in usable) if source.split_origin else {}
    return ScanReport(
        path=path,
        name=source.name,
        ok=len(usable) - repaired,
        repaired=repaired,
        repairs=dict(repairs.most_common()),
        skipped=tuple(skipped),
        reasons=dict(Counter(reason for _, reason in skipped).most_common()),
        smallest_side=smallest,
        sizes=dict(Counter(f"{seen.size[0]}x{seen.size[1]}" for _, seen in usable).most_common()),
        formats=dict(Counter(seen.format for _, seen in usable).most_common()),
        modes=dict(Counter(seen.mode for _, seen in usable).most_common()),
        classes={name: labels[index] for index, name in enumerate(source.class_names)},
        splits=dict(splits),
        split_origin=source.split_origin,
        duplicates=duplicates,
        zero_bytes=tuple(name for name, reason in skipped if "(0 bytes)" in reason),
        captions=captions,
        empty_captions=empty,
        other_files=source.other_files,
        actions=tuple(
            _actions(
                len(usable),
                len(source.items),
                repairs,
                smallest,
                num_copies=len(usable) - len(by_content),
                num_leaked=leaked,
                num_classes=len(source.class_names),
                num_captions=captions,
                num_empty=empty,
                split_origin=source.split_origin,
                caption_hint=source.caption_hint,
            )
        ),
    )


def _look(item: Item) -> _Seen | str:
    try:
        decoded = item.load("colours")
    except DataError as error:
        return str(error)
    digest = hashlib.sha256(repr(decoded.image.size).encode() + decoded.image.tobytes()).digest()
    return _Seen(decoded.image.size, decoded.format, decoded.mode, decoded.repairs, digest)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _actions(
    usable: int,
    total: int,
    repairs: Counter[str],
    smallest: int | None,
    *,
    num_copies: int,
    num_leaked: int,
    num_classes: int,
    num_captions: int,
    num_empty: int,
    split_origin: str | None,
    caption_hint: str,
) -> list[str]:
    if smallest is None:
        return ["There is nothing to train on: no image can be used."]
    actions = [
        f"{usable} of {total} images will be used" + ("." if usable == total else "; the others are passed over.")
    ]
    actions += [f"{_images(count)}: {repair}." for repair, count in repairs.most_common()]
    actions.append(
        f"With data.image_size up to {smallest} all of them are used; beyond that the smaller ones are passed over."
    )
    if num_copies:
        verb = "is a copy of another one and is" if num_copies == 1 else "are copies of another one and are"
        copies = f"{_images(num_copies)} {verb} used all the same"
        if split_origin is None:
            actions.append(f"{copies}. Remove them: held out, they make the figures too good.")
        elif num_leaked:
            actions.append(
                f"{copies}. {num_leaked} pictures lie in train and in test: remove them from one of the two."
            )
        else:
            actions.append(f"{copies}; none lies in train and in test.")
    if num_classes:
        actions.append(f"{num_classes} classes are there: data.use_labels = true conditions on them.")
    if caption_hint:
        actions.append(caption_hint)
    if 0 < num_captions < usable:
        actions.append(
            f"{usable - num_captions} of {usable} pictures have no caption: they are trained as pictures whose caption is hidden."
        )
    if num_empty:
        actions.append(
            f"{num_empty} .txt files are empty"
            + ("." if num_captions else ", and there is no other caption: text to image cannot be trained.")
        )
    actions.append(
        f"Held-out images come from {split_origin}."
        if split_origin
        else "The set has no split of its own: a share of the images, chosen by a hash of their names, is held out."
    )
    return actions
