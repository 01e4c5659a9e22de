"""A page to look at: one HTML file with its pictures inside, no scripts, nothing loaded from anywhere.

Build it from the sections below; every text is escaped. Curves are drawn by `svg_curve.py`.
"""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Protocol

from torch import Tensor

from rasterformer.data.png import png_bytes
from rasterformer.errors import DataError
from rasterformer.evaluation.svg_curve import svg_curve

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # the browser is to load nothing either
CSS = """
:root { color-scheme: light; --ink: #23211d; --soft: #6b675f; --rule: #e4e0d6; --paper: #fbfaf7; --accent: #2463b4 }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", "DejaVu Sans", sans-serif }
main { max-width: 1000px; margin: 0 auto; padding: 56px 24px 80px }
h1 { font-size: 2.1rem; line-height: 1.2; letter-spacing: -.02em; margin: 0 0 .4rem }
.summary { font-size: 1.15rem; color: var(--soft); max-width: 46rem; margin: 0 0 2rem }
h2 { font-size: 1.3rem; letter-spacing: -.01em; margin: 3rem 0 .6rem; padding-top: 1.2rem;
  border-top: 1px solid var(--rule) }
p { max-width: 46rem; margin: .6rem 0 1rem }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 14px; margin: 1.5rem 0 }
.card { background: #fff; border: 1px solid var(--rule); border-radius: 10px; padding: 16px 18px }
.card .label { color: var(--soft); font-size: .85rem }
.card .value { font-size: 1.75rem; font-weight: 650; letter-spacing: -.02em; line-height: 1.3;
  font-variant-numeric: tabular-nums }
.card .note { color: var(--soft); font-size: .85rem }
.pictures { display: flex; flex-wrap: wrap; gap: 28px; align-items: flex-start; margin: 1.2rem 0 }
figure { margin: 0; max-width: 100% }
figure img { display: block; max-width: 100%; height: auto; image-rendering: pixelated; border-radius: 4px }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .5rem; max-width: 46rem }
.curve { margin: 1.2rem 0 }
.curve, .table { background: #fff; border: 1px solid var(--rule); border-radius: 10px; padding: 14px 18px }
svg { display: block; width: 100%; height: auto; font: 12.5px system-ui, "DejaVu Sans", sans-serif; fill: #555 }
svg .axis { fill: #23211d }
.table { overflow-x: auto; margin: 1.2rem 0; padding: 6px 18px 10px }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
caption { caption-side: bottom; text-align: left; color: var(--soft); font-size: .9rem; padding-top: .6rem }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: .85rem }
th, td { padding: .5rem 1.2rem .5rem 0; border-bottom: 1px solid var(--rule); vertical-align: top }
tr:last-child td { border-bottom: 0 }
th:last-child, td:last-child { padding-right: 0 }
.number { text-align: right; width: 1%; white-space: nowrap; padding-right: 3rem }
tr.marked td { font-weight: 650; color: var(--accent) }
pre { background: #23211d; color: #f6f3ec; border-radius: 8px; padding: 12px 16px; overflow-x: auto;
  font: .88rem/1.5 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; margin: .3rem 0 1.1rem }
dt { margin-top: .4rem }
dd { margin: 0 }
@media (max-width: 560px) { main { padding: 28px 16px 48px } h1 { font-size: 1.6rem } }
@media print { body { background: #fff } .card, figure, .curve, .table { break-inside: avoid } }
"""


class Section(Protocol):
    """A part of a page."""

    def element(self) -> str:
        """Returns an HTML element, all texts escaped."""


@dataclass(frozen=True)
class Heading:
    """Opens a part of the page."""

    text: str

    def element(self) -> str:
        return f"<h2>{html.escape(self.text)}</h2>"


@dataclass(frozen=True)
class Text:
    """One paragraph."""

    text: str

    def element(self) -> str:
        return f"<p>{html.escape(self.text)}</p>"


@dataclass(frozen=True)
class Card:
    """A key figure: what it is, its value, and what to know about it in a few words."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Cards:
    """Key figures side by side."""

    cards: Sequence[Card]

    def element(self) -> str:
        return f'<div class="cards">{"".join(map(self._card, self.cards))}</div>'

    @staticmethod
    def _card(card: Card) -> str:
        label, value, note = (html.escape(text) for text in (card.label, card.value, card.note))
        return (
            f'<div class="card"><div class="label">{label}</div><div class="value">{value}</div>'
            f'<div class="note">{note}</div></div>'
        )


@dataclass(frozen=True)
class TableSection:
    """A table; figures that are given as numbers stand at the right.

    Args:
        header: names of the columns.
        rows: one cell for each column. A float is written with three decimals; give text for anything else.
        caption: below the table.
        marked: index of the row that the eye should find first. None: none.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]
    caption: str = ""
    marked: int | None = None

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise ValueError(f"Row {number} has {len(row)} cells, the header {len(self.header)}: {list(row)}.")

    def element(self) -> str:
        numeric = [all(not isinstance(row[k], str) for row in self.rows) for k in range(len(self.header))]
        head = "".join(self._cell("th", name, number) for name, number in zip(self.header, numeric, strict=True))
        body = "".join(
            f"<tr{' class=marked' if k == self.marked else ''}>"
            + "".join(self._cell("td", cell, number) for cell, number in zip(row, numeric, strict=True))
            + "</tr>"
            for k, row in enumerate(self.rows)
        )
        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        return f'<div class="table"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

    @staticmethod
    def _cell(tag: str, cell: str | int | float, number: bool) -> str:
        text = cell if isinstance(cell, str) else f"{cell:.3f}" if isinstance(cell, float) else f"{cell:,}"
        return f"<{tag}{' class=number' if number else ''}>{html.escape(text)}</{tag}>"


@dataclass(frozen=True)
class Picture:
    """An image in the page. Pictures that follow each other stand side by side where there is room.

    Args:
        image: uint8 [3, H, W]; `image_grid` makes one of many.
        caption: below the picture; also its text for those who cannot see it.
        scale: pixels of the page for a pixel of the image, shown as sharp squares.
    """

    image: Tensor
    caption: str
    scale: int = 1

    def element(self) -> str:
        source = base64.b64encode(png_bytes(self.image)).decode()
        height, width = (side * self.scale for side in self.image.shape[1:])
        caption = html.escape(self.caption)
        return (
            f'<figure style="width: {width}px"><img src="data:image/png;base64,{source}" alt="{caption}" '
            f'width="{width}" height="{height}"><figcaption>{caption}</figcaption></figure>'
        )


@dataclass(frozen=True)
class Curve:
    """Curves over one axis, such as bits/dim against minutes.

    Args:
        series: name -> points (x, y).
        x_label: with its unit.
        y_label: with its unit.
        lines: name -> y of fixed lines to compare with.
        caption: below the curves.
    """

    series: Mapping[str, Sequence[tuple[float, float]]]
    x_label: str
    y_label: str
    lines: Mapping[str, float] = field(default_factory=dict)
    caption: str = ""

    def element(self) -> str:
        drawing = svg_curve(self.series, x_label=self.x_label, y_label=self.y_label, lines=self.lines)
        caption = f"<figcaption>{html.escape(self.caption)}</figcaption>" if self.caption else ""
        return f'<figure class="curve">{drawing}{caption}</figure>'


@dataclass(frozen=True)
class Commands:
    """What to do next: (what it does, command to type) each."""

    commands: Sequence[tuple[str, str]]

    def element(self) -> str:
        return (
            "<dl>"
            + "".join(
                f"<dt>{html.escape(purpose)}</dt><dd><pre>{html.escape(command)}</pre></dd>"
                for purpose, command in self.commands
            )
            + "</dl>"
        )


def page(title: str, sections: Sequence[Section], *, summary: str = "") -> str:
    """Returns the HTML document.

    Args:
        title: heads the page and names the window.
        sections: from top to bottom.
        summary: one sentence below the title.

    Raises:
        ShapeError: a picture is not uint8 [3, H, W].
        ValueError: a curve has no finite point.
    """
    lead = f'<p class="summary">{html.escape(summary)}</p>' if summary else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{html.escape(title)}</h1>\n{lead}\n" + "\n".join(_blocks(sections)) + "\n</main>\n</body>\n</html>\n"
    )


def write_page(path: str | Path, title: str, sections: Sequence[Section], *, summary: str = "") -> None:
    """Writes `page(...)` to a file; missing folders are made, and the file is there whole or not at all.

    Raises:
        ShapeError: a picture is not uint8 [3, H, W].
        ValueError: a curve has no finite point.
        DataError: the file cannot be written there.
    """
    path = Path(path)
    document = page(title, sections, summary=summary)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(document, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)


def _blocks(sections: Sequence[Section]) -> Iterator[str]:
    for are_pictures, neighbours in groupby(sections, key=lambda section: isinstance(section, Picture)):
        blocks = [section.element() for section in neighbours]
        yield f'<div class="pictures">{"".join(blocks)}</div>' if are_pictures else "\n".join(blocks)
