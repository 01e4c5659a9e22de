"""A path or the name of an embedded set -> what lies there. Nothing is ever looked for on a network."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from rasterformer.data.cifar10 import cifar10_source, is_cifar10
from rasterformer.data.compact import compact_source
from rasterformer.data.folder import folder_source
from rasterformer.data.source import Source
from rasterformer.errors import DataError, did_you_mean

EMBEDDED_SETS = ("emoji", "toonheads")
_EMBEDDED = Path(__file__).parent / "embedded"
_PREFIX = "embedded:"


def find_source(path: str) -> Source:
    """Finds what `path` holds: a folder, an `.npz`, a contact sheet, CIFAR-10's batches, or an embedded set.

    Args:
        path: a path; or `embedded:NAME`; or NAME alone, when nothing has that path.

    Raises:
        DataError: nothing is there, or it is not in a layout that can be read.
    """
    if path.startswith(_PREFIX) or (path in EMBEDDED_SETS and not os.path.lexists(path)):
        return _embedded(path.removeprefix(_PREFIX))
    place = Path(path).expanduser()
    if "\0" in path or not place.exists():
        raise DataError(
            f"data.path = {path!r}: no such file or folder. Give a folder of images, an .npz file or a contact sheet, "
            f"or the name of an embedded set: {', '.join(EMBEDDED_SETS)}."
        )
    try:
        found = compact_source(place)
        if found is None and place.is_dir():
            found = cifar10_source(place) if is_cifar10(place) else folder_source(place)
    except DataError as error:
        raise DataError(f"data.path = {path!r}: {error}") from error
    except PermissionError as error:
        raise DataError(
            f"data.path = {path!r}: may not be read ({error}). Give yourself the right to read it."
        ) from error
    if found is None:
        raise DataError(
            f"data.path = {path!r}: neither a folder nor an .npz file nor a contact sheet. For single images give the "
            "folder that holds them."
        )
    return found


def _embedded(name: str) -> Source:
    if name not in EMBEDDED_SETS:
        raise DataError(
            f"data.path = {_PREFIX + name!r}: no embedded set has that name.{did_you_mean(name, EMBEDDED_SETS)}"
        )
    source = compact_source(_EMBEDDED / name)
    assert source is not None, "the embedded sets are compact"
    return replace(source, name=f"{name} (embedded)", split_origin="the set's own split")
