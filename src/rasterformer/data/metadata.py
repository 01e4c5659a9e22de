"""What lies beside images and says something about them: `metadata.jsonl`, `metadata.csv`, and `.txt` captions."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rasterformer.errors import DataError, nearest

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
COLUMNS = ("file_name", "label", "text", "caption")
CAPTION_COLUMNS = ("text", "caption")
MAX_CAPTION_BYTES = 4096


@dataclass(frozen=True)
class Note:
    """What a metadata file says about one image. `columns` are the names of all that is said, also of what nothing reads."""

    label: str | int | None = None
    caption: str | None = None
    columns: tuple[str, ...] = field(default=(), compare=False)


def read_metadata(path: Path) -> dict[str, Note]:
    """Reads `metadata.jsonl` or `metadata.csv`: `file_name` and optionally `label`, and `text` or `caption`.

    Returns:
        From file name, relative to the metadata file's folder with `/` between parts, to what is said about it.

    Raises:
        DataError: not UTF-8, not JSON lines or CSV, a row without `file_name`, or a label that is neither text nor a
            whole number.
    """
    rows = _json_rows(path) if path.suffix == ".jsonl" else _csv_rows(path)
    notes = {}
    for line, row in rows:
        where = f"{path.name}, line {line}"
        file_name = row.get("file_name")
        if not isinstance(file_name, str) or not file_name:
            raise DataError(
                f"{where}: file_name is {file_name!r}. It must be the image's path from the folder of {path.name}."
            )
        label = row.get("label")
        if isinstance(label, bool) or not isinstance(label, str | int | None):
            raise DataError(f"{where}: label is {label!r}. A class is a text or a whole number.")
        caption = row.get("text") or row.get("caption") or None
        if caption is not None and not isinstance(caption, str):
            raise DataError(f"{where}: the caption is {caption!r}. It must be a text.")
        columns = tuple(name for name in row if isinstance(name, str))
        notes[file_name.replace("\\", "/").removeprefix("./")] = Note(None if label == "" else label, caption, columns)
    return notes


def unread_columns(notes: Iterable[Note], where: str) -> str:
    """Returns which columns there are, and which are read as captions; "" where every column is read.

    Args:
        notes: of all images.
        where: name of the metadata file.
    """
    columns = list(dict.fromkeys(name for note in notes for name in note.columns))
    unread = [name for name in columns if name not in COLUMNS]
    if not unread:
        return ""
    guess = next((hint for name in unread if (hint := nearest(name, CAPTION_COLUMNS))), "")
    return (
        f"{where} has the columns {', '.join(columns)}; captions are read from {' or '.join(CAPTION_COLUMNS)}.{guess}"
    )


def json_lines(path: Path) -> list[Any]:
    """Returns the value of every line that is not blank.

    Raises:
        DataError: not UTF-8, or a line is not JSON.
    """
    return [value for _, value in _json_values(path)]


def _json_values(path: Path) -> list[tuple[int, Any]]:
    values = []
    for line, text in enumerate(_text(path).split("\n"), start=1):
        if text.strip():
            try:
                values.append((line, json.loads(text)))
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path.name}, line {line}: not JSON ({error}). Each line must be one object."
                ) from error
    return values


def _json_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = _json_values(path)
    for line, value in rows:
        if not isinstance(value, dict):
            raise DataError(f"{path.name}, line {line}: {value!r} is not an object with file_name.")
    return rows


def _csv_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    try:
        return [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"{path.name}, line {reader.line_num}: not CSV ({error}).") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror}).") from error


def read_caption(path: Path) -> str:
    """Returns the text of a `.txt` caption, without blanks around it.

    Raises:
        DataError: longer than 4096 bytes, not UTF-8, or with a NUL character.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CAPTION_BYTES + 1)
    except OSError as error:
        raise DataError(f"caption cannot be read ({error.strerror})") from error
    if len(content) > MAX_CAPTION_BYTES:
        raise DataError(f"caption longer than {MAX_CAPTION_BYTES} bytes")
    try:
        caption = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"caption is not UTF-8 at byte {error.start}") from error
    if "\0" in caption:
        raise DataError("caption has a NUL character")
    return caption
