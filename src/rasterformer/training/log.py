"""What a run tells: one JSON object a line in `metrics.jsonl`, and a line of progress on the terminal."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rasterformer.errors import DataError


class MetricsLog:
    """Appends to `metrics.jsonl`; on resuming, lines of steps that will be done again are dropped.

    Attributes:
        measured_at: the last step before this session whose figures on held-out images are there; -1: none.

    Args:
        path: the file.
        after_step: keep the lines up to this step.
    """

    def __init__(self, path: Path, *, after_step: int) -> None:
        self.path = path
        kept = [line for line in read_metrics(path) if line["step"] <= after_step] if path.exists() else []
        self.measured_at = max((line["step"] for line in kept if "images" in line), default=-1)
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def write(self, **values: Any) -> None:
        """Adds one line, at once on the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a `metrics.jsonl`; a last line cut off by a kill is left out.

    Raises:
        DataError: another line is no JSON.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise DataError(f"{path}, line {number}: is no JSON. Move the file away to go on without it.") from None
    return found


class ProgressLine:
    """One line that is rewritten on a terminal; elsewhere a plain line every ten seconds."""

    def __init__(self) -> None:
        self.is_terminal = sys.stderr.isatty()
        self.shown = 0.0

    def show(self, text: str) -> None:
        """Shows `text` if it is time to."""
        now = time.monotonic()
        if now - self.shown < (0.2 if self.is_terminal else 10.0):
            return
        self.shown = now
        print(
            f"\r\x1b[2K{text}" if self.is_terminal else text,
            end="" if self.is_terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        """Leaves the line."""
        if self.is_terminal and self.shown:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`2 h 05 min`, `3 min 20 s` or `12 s`."""
    total = round(seconds)
    if total >= 3600:
        return f"{total // 3600} h {total % 3600 // 60:02d} min"
    return f"{total // 60} min {total % 60:02d} s" if total >= 60 else f"{total} s"
