"""Figures of an image-to-image model beside those of simpler means, as a table, JSON and sections of a page.

`drawing/canvas.py` computes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.box import SIMPLE
from rich.table import Table

from rasterformer.evaluation.report import Card, Cards, Heading, Picture, Section, TableSection, Text

MODEL = "model"  # the row of the model's own samples
OTHER = "another image's sample"  # what a figure is without any relation to the source
# (heading, figures of a row); arrows: the direction that is better
COLUMNS = (
    ("consistency, area ↓", "{consistency_area:.5f}"),
    ("  in grey levels ↓", "{consistency_area_grey_levels:.1f}"),
    ("consistency, bicubic ↓", "{consistency_bicubic:.5f}"),
    ("  in grey levels ↓", "{consistency_bicubic_grey_levels:.1f}"),
    ("known pixels changed ↓", "{known_pixels_changed:.0f}"),
    ("PSNR, dB*", "{psnr_db:.2f}"),
    ("PSNR of unknown pixels, dB*", "{psnr_unknown_db:.2f}"),
    ("SSIM*", "{ssim:.3f}"),
    ("MS-SSIM*", "{ms_ssim:.3f}"),
    ("FD-EffLite0 ↓", "{fd_efflite0:.1f}"),
    ("MS-SSIM to nearest training image, 0..100", "{memorisation_ms_ssim:.1f}"),
    ("diversity, grey levels", "{diversity_grey_levels:.1f}"),
    ("MS-SSIM between samples", "{diversity_ms_ssim:.3f}"),
)
NOTE = (
    "The paper (section 5.3) finds that these do not track how good samples look: a blurred image gets the best ones."
)


@dataclass(frozen=True)
class ImageToImageReport:
    """What samples of p(target | source) are worth, together with all that must be known to compare the figures.

    Args:
        task: such as `super_resolution`.
        model: its name or folder.
        dataset: name and split of the originals.
        settings: of sampling, such as temperature and seed; JSON values.
        num_images: N, sources.
        samples_per_image: n.
        bits_per_dim: of the originals given their sources. None: not measured.
        interval: 95 % interval of `bits_per_dim`. None: not measured.
        rows: `model`, the simpler means and the reference levels -> name of a figure -> figure. A row has the figures
            that mean something for it. PSNR is infinite where images are equal.
        protocol: how the figures were made, one sentence or two each.
        pictures: sheets of samples.
        bound: whether `bits_per_dim` is exact or an estimate of an upper bound.
    """

    task: str
    model: str
    dataset: str
    settings: Mapping[str, Any]
    num_images: int
    samples_per_image: int
    bits_per_dim: float | None
    interval: tuple[float, float] | None
    rows: Mapping[str, Mapping[str, float]]
    protocol: tuple[str, ...]
    pictures: tuple[Picture, ...] = field(repr=False, compare=False)
    bound: Literal["exact", "upper"] = "exact"

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values: all but the pictures. An infinite figure is None."""
        return {
            "task": self.task,
            "model": self.model,
            "dataset": self.dataset,
            "settings": dict(self.settings),
            "num_images": self.num_images,
            "samples_per_image": self.samples_per_image,
            "bits_per_dim": self.bits_per_dim,
            "bound": None if self.bits_per_dim is None else self.bound,
            "interval": None if self.interval is None else list(self.interval),
            "interval_level": 0.95,
            "rows": {name: {key: _finite(value) for key, value in row.items()} for name, row in self.rows.items()},
            "protocol": list(self.protocol),
        }

    def table(self) -> Table:
        """Returns the report for a terminal: a line for each figure, a column for each row of the report."""
        title = f"{self._title()}\n{self._likelihood()}"
        table = Table(title=title, title_justify="left", caption_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
        table.caption = "\n".join(self.protocol)
        table.add_column("", style="bold", min_width=14, overflow="fold")
        for name in self.rows:
            table.add_column(name, justify="right", style="cyan" if name == MODEL else None)
        for heading, cells in self._lines():
            table.add_row(heading, *cells)
        return table

    def html_sections(self) -> list[Section]:
        """Returns the report as sections for `report.page`."""
        lines = [(heading, *cells) for heading, cells in self._lines()]
        return [
            Heading(self._title()),
            Cards(list(self._cards())),
            TableSection(("", *self.rows), lines, caption=f"* {NOTE}"),
            *self.pictures,
            Heading("How the figures were made"),
            *map(Text, self.protocol),
        ]

    def _title(self) -> str:
        return f"{self.model}: {self.task.replace('_', ' ')} on {self.dataset}"

    def _likelihood(self) -> str:
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        sampled = f"{self.num_images:,} images, {self.samples_per_image} samples of each"
        return f"{self._bits()}; {sampled}" + (f", {settings}" if settings else "")

    def _bits(self) -> str:
        if self.bits_per_dim is None:
            return "bits/dim not measured"
        interval = "" if self.interval is None else f" (95 %: {self.interval[0]:.4f} .. {self.interval[1]:.4f})"
        return f"{self.bits_per_dim:.4f} bits/dim{self._meaning()}{interval}"

    def _meaning(self) -> str:
        return ", upper bound" if self.bound == "upper" else ""

    def _cards(self) -> Iterator[Card]:
        if self.bits_per_dim is not None:
            interval = "" if self.interval is None else f"95 %: {self.interval[0]:.3f} .. {self.interval[1]:.3f}"
            yield Card(f"bits/dim given the source{self._meaning()}", f"{self.bits_per_dim:.3f}", interval)
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        yield Card("sources", f"{self.num_images:,}", f"{self.samples_per_image} samples of each; {settings}")
        model = self.rows[MODEL]
        if "consistency_area_grey_levels" in model:
            other = self.rows[OTHER]["consistency_area_grey_levels"]
            value = f"{model['consistency_area_grey_levels']:.1f}"
            yield Card("from the source, grey levels", value, f"area-reduced; {OTHER}: {other:.1f}")
        if "known_pixels_changed" in model:
            yield Card("known pixels changed", f"{model['known_pixels_changed']:,.0f}", "of all samples")
        if "fd_efflite0" in model:
            yield Card("FD-EffLite0", f"{model['fd_efflite0']:.1f}", "to the originals; no FID")

    def _lines(self) -> Iterator[tuple[str, list[str]]]:
        """Each figure that some row has: heading and its value in each row."""
        for heading, template in COLUMNS:
            cells = [_cell(template, row) for row in self.rows.values()]
            if any(cells):
                yield heading, cells


def _cell(template: str, row: Mapping[str, float]) -> str:
    try:
        return template.format_map(row)
    except KeyError:
        return ""


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
