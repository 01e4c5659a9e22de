"""What the sections of `docs/results.md` have in common: tables, circumstances, curves that stand alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SVG_STYLE = "font:12.5px system-ui,'DejaVu Sans',sans-serif;fill:#555;background:#fff"


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def circumstances(record: dict[str, Any]) -> str:
    """Machine, versions and commit in one line."""
    machine = record["machine"]
    units = "with" if machine["bfloat16_matrix_units"] else "without"
    return (
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, {units} bfloat16 matrix "
        f"units; torch {record['torch']}, Python {record['python']}; commit {record['commit']}."
    )


def write_drawing(path: Path, drawing: str) -> None:
    """Writes an `<svg>` element as a file that pages can refer to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    alone = drawing.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" style="{SVG_STYLE}" ', 1)
    path.write_text(alone + "\n", encoding="utf-8")
