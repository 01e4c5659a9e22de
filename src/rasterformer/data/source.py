"""What the readers of folders, arrays and contact sheets have in common: a list of items that can be loaded.

A reader finds the items and what is known about them; it decodes nothing. `opening.py` chooses and prepares them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rasterformer.data.decode import Decoded, Reading

TEST_NAMES = ("test", "val", "valid", "validation")  # the first that exists is the test split


@dataclass(frozen=True)
class Item:
    """One image that has not been decoded yet.

    Args:
        name: relative to what was opened; decides the holdout where the set has no split of its own.
        load: decodes it, in colours or as a label map; raises DataError where it is broken.
        identity: name and size of a file, or a digest of the pixels; goes into the fingerprint.
        label: index into `Source.class_names`. None: no classes.
        caption: "" where there is a .txt for it that is empty. None: none.
        split: the set's own. None: the set has none, or the image is in neither part.
        lossless: False where the file is JPEG. None: not known before decoding.
    """

    name: str
    load: Callable[[Reading], Decoded]
    identity: str
    label: int | None = None
    caption: str | None = None
    split: Literal["train", "test"] | None = None
    lossless: bool | None = None


@dataclass(frozen=True)
class Source:
    """What a path holds.

    Args:
        name: for people.
        items: in the order that decides image numbers.
        class_names: () where there are no classes.
        split_origin: where the set's own split comes from, one phrase. None: it has no split of its own.
        skipped: (name, reason) of what was passed over before decoding.
        other_files: names of files that are no images and carry nothing about images.
        caption_hint: why there are no captions though a metadata file is there, one sentence. "": nothing is known.
    """

    name: str
    items: tuple[Item, ...]
    class_names: tuple[str, ...] = ()
    split_origin: str | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    other_files: tuple[str, ...] = ()
    caption_hint: str = ""


def passed_over(skipped: Sequence[tuple[str, str]]) -> str:
    """Returns how many were skipped for each reason and the first of them: `39 not listed in metadata.jsonl (first b.png)`.

    The three most frequent reasons are named.

    Args:
        skipped: (name, reason), at least one.
    """
    first_of: dict[str, str] = {}
    for name, reason in skipped:
        first_of.setdefault(reason, name)
    counts = Counter(reason for _, reason in skipped).most_common()
    parts = [f"{count:,} {reason} (first {first_of[reason]})" for reason, count in counts[:3]]
    rest = sum(count for _, count in counts[3:])
    return "; ".join([*parts, *([f"{rest:,} for other reasons"] if rest else [])])


def name_classes(labels: Iterable[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Returns the class names in order, and the index of each. Whole numbers are ordered as numbers."""
    distinct = sorted(set(labels))
    if all(label.isascii() and label.isdigit() for label in distinct):
        distinct.sort(key=int)
    return tuple(distinct), {label: index for index, label in enumerate(distinct)}
