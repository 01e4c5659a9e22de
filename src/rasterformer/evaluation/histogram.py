"""Two histograms over one logarithmic axis, as inline SVG: what is usual, and what a folder holds."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 860, 300  # pixels
LEFT, RIGHT, TOP, BOTTOM = 20, 20, 34, 52
NUM_BINS = 48
REFERENCE, FOLDER = "#c9c4b8", "#2463b4"


@dataclass(frozen=True)
class Histograms:
    """A section of a page: the reference as a grey area, the folder as a line, both as shares of their images.

    Args:
        reference: values above 0.
        folder: values above 0.
        label: of the axis, with its unit.
        caption: below.
    """

    reference: Sequence[float]
    folder: Sequence[float]
    label: str
    caption: str

    def element(self) -> str:
        lowest, highest = (function([*self.reference, *self.folder]) for function in (min, max))
        low, high = math.log10(lowest) - 0.02, math.log10(highest) + 0.02
        shares = [_shares(values, low, high) for values in (self.reference, self.folder)]
        top, foot = max(map(max, shares)), HEIGHT - BOTTOM

        def across(power: float) -> float:
            return LEFT + (power - low) / (high - low) * (WIDTH - LEFT - RIGHT)

        def outline(bins: Sequence[float]) -> str:
            edges = [across(low + (high - low) * k / NUM_BINS) for k in range(NUM_BINS + 1)]
            heights = [foot - share / top * (foot - TOP) for share in bins]
            corners = [(x, y) for k, y in enumerate(heights) for x in edges[k : k + 2]]
            return " ".join(f"{x:.1f},{y:.1f}" for x, y in [(edges[0], foot), *corners, (edges[-1], foot)])

        parts = [
            f'<polygon points="{outline(shares[0])}" fill="{REFERENCE}"/>',
            f'<polyline points="{outline(shares[1])}" fill="none" stroke="{FOLDER}" stroke-width="2"/>',
            f'<rect x="{LEFT}" y="6" width="14" height="12" fill="{REFERENCE}"/>',
            f'<text x="{LEFT + 20}" y="17">reference, {len(self.reference):,} images</text>',
            f'<line x1="{LEFT + 230}" x2="{LEFT + 250}" y1="12" y2="12" stroke="{FOLDER}" stroke-width="2"/>',
            f'<text x="{LEFT + 256}" y="17">this folder, {len(self.folder):,} images</text>',
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{foot}" y2="{foot}" stroke="#999"/>',
        ]
        for tick in _ticks(low, high):
            x = across(math.log10(tick))
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{foot}" y2="{foot + 5}" stroke="#999"/>')
            parts.append(f'<text x="{x:.1f}" y="{foot + 19}" text-anchor="middle">{tick:g}</text>')
        label, caption = html.escape(self.label), html.escape(self.caption)
        parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle" class="axis">{label}</text>')
        drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
        return f'<figure class="curve">{drawing}<figcaption>{caption}</figcaption></figure>'


def _shares(values: Sequence[float], low: float, high: float) -> list[float]:
    counts = [0] * NUM_BINS
    for value in values:
        counts[int((math.log10(value) - low) / (high - low) * NUM_BINS)] += 1
    return [count / len(values) for count in counts]


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, those between the ends."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    return [m * 10.0**power for power in powers for m in (1, 2, 5) if low <= math.log10(m * 10.0**power) <= high]
