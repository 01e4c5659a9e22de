"""`rasterformer scan`: what a folder of images holds, and what training would make of it."""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from rasterformer.data import ScanReport

_ROWS = 12  # of a table, before it says how many more there are


def scan(path: str, *, json: Path | None = None) -> None:
    """Read every image once and report what training would see.

    Args:
        path: a folder of images, an .npz file, a contact sheet, or the name of an embedded set.
        json: write the whole report, every file name included, into this file.

    Raises:
        DataError: nothing is at `path`, it is in no layout that can be read, no image can be used, or the JSON file cannot be
            written.
    """
    from rich.console import Console
    from rich.progress import Progress

    from rasterformer.data.scan import scan as read
    from rasterformer.errors import DataError

    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading images", total=None)
        report = read(path, on_progress=lambda done, total: progress.update(task, completed=done, total=total))
    _print(report, console)
    if json is not None:
        try:
            json.write_text(json_format.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(
                f"--json {json}: cannot be written ({error.strerror}). Give a file in a folder that exists."
            ) from error
        print(f"{printable(str(json))} written.")
    if report.smallest_side is None:
        first = f" (the first: {printable(': '.join(report.skipped[0]))})" if report.skipped else ""
        raise DataError(f"{printable(path)}: no image can be used{first}. Give a folder that holds some.")


def _print(report: ScanReport, console: Console) -> None:
    console.print(
        f"{printable(report.name)}: {report.ok + report.repaired} usable images", markup=False, highlight=False
    )
    verdicts = {"ok": report.ok, "repaired": report.repaired, "skipped": len(report.skipped)}
    _table(console, "verdict", verdicts)
    _table(console, "repaired by", report.repairs)
    _table(console, "skipped because", report.reasons)
    _table(console, "size in pixels", report.sizes)
    _table(console, "format", report.formats)
    _table(console, "stored as", report.modes)
    _table(console, "class", report.classes)
    _table(console, "split", report.splits)
    others = {
        "images with a caption": report.captions,
        "captions (.txt) that are empty": report.empty_captions,
        "groups of equal images": len(report.duplicates),
        "empty files": len(report.zero_bytes),
        "files that are no images": len(report.other_files),
    }
    _table(console, "also there", {name: count for name, count in others.items() if count})
    for name, reason in report.skipped[:_ROWS]:
        console.print(f"skipped {printable(name)}: {printable(reason)}", markup=False, highlight=False)
    if len(report.skipped) > _ROWS:
        console.print(
            f"... and {len(report.skipped) - _ROWS} more; --json FILE lists all.", markup=False, highlight=False
        )
    console.print("What will be done:", markup=False)
    for action in report.actions:
        console.print(f"- {printable(action)}", markup=False, highlight=False)


def _table(console: Console, title: str, counts: Mapping[str, int]) -> None:
    from rich.table import Table
    from rich.text import Text

    if not counts:
        return
    table = Table(title, "images")
    for name, count in list(counts.items())[:_ROWS]:
        table.add_row(Text(printable(name)), str(count))
    if len(counts) > _ROWS:
        table.add_row(f"{len(counts) - _ROWS} more", str(sum(list(counts.values())[_ROWS:])))
    console.print(table)


def printable(text: str) -> str:
    """Returns the text with control characters, and bytes that are no text, written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
