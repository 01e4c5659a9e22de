"""Curves as inline SVG, for pages that work without scripts: training figures against minutes, beside fixed lines."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence

COLOURS = ("#2463b4", "#c8501e", "#2a7f4f", "#7a4aa8", "#8a6d1a")  # told apart also by most colour-blind readers
WIDTH, HEIGHT = 860, 360  # pixels
LEFT, RIGHT, TOP, BOTTOM = 62, 220, 16, 52  # margins; names stand in the right one
LABEL_DISTANCE = 16


def svg_curve(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    lines: Mapping[str, float] | None = None,
) -> str:
    """Returns an `<svg>` element with one curve per series, each named beside its last point.

    Args:
        series: name -> points (x, y) in drawing order. Points that are not finite are left out.
        x_label: with its unit.
        y_label: with its unit.
        lines: name -> y of horizontal dashed lines to compare with. None: none.

    Raises:
        ValueError: no point is finite, or a fixed line is not.
    """
    lines = lines or {}
    curves = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in series.items()
    }
    points = [point for curve in curves.values() for point in curve]
    if not points:
        raise ValueError(f"The curves {list(series)} have no finite point.")
    for name, y in lines.items():
        if not math.isfinite(y):
            raise ValueError(f"The line {name!r} lies at {y}.")

    x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points))
    y_values = [y for _, y in points] + list(lines.values())
    y_ticks = ticks(min(y_values), max(y_values))

    def across(x: float) -> float:
        return LEFT + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)

    parts = list(_axes(x_ticks, y_ticks, [across(x) for x in x_ticks], [down(y) for y in y_ticks], x_label, y_label))
    names: list[tuple[float, str, str]] = []  # (y on the page, text, colour)
    for name, y in lines.items():
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}" '
            'stroke="#777" stroke-dasharray="5 4"/>'
        )
        names.append((down(y), f"{name} {y:.2f}", "#666"))
    for index, (name, curve) in enumerate(curves.items()):
        if not curve:
            continue
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in curve)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = curve[-1]
        parts.append(f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="3.5" fill="{colour}"/>')
        names.append((down(y), f"{name} {y:.2f}", colour))
    for y, (_, name, colour) in zip(spread([y for y, _, _ in names]), names, strict=True):
        parts.append(f'<text x="{WIDTH - RIGHT + 10}" y="{y + 4:.1f}" fill="{colour}">{html.escape(name)}</text>')
    label = html.escape(f"{y_label} against {x_label}")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def ticks(low: float, high: float) -> list[float]:
    """Returns two to eight round numbers, equally spaced, that enclose low..high."""
    span, size = high - low, max(abs(low), abs(high))
    if span <= 1e-6 * size or span < 1e-12:  # a constant
        span = size if size >= 1e-12 else 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if span / (power * m) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if last == first:
        last += 1
    return [k * step for k in range(first, last + 1)]


def spread(positions: Sequence[float]) -> list[float]:
    """Moves the labels at these heights apart, downwards in their order, then back up into the picture."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    moved = list(positions)
    for above, index in zip(order, order[1:], strict=False):
        moved[index] = max(moved[index], moved[above] + LABEL_DISTANCE)
    limit = float(HEIGHT - BOTTOM)
    for index in reversed(order):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - LABEL_DISTANCE
    return moved


def _axes(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    columns: Sequence[float],
    rows: Sequence[float],
    x_label: str,
    y_label: str,
) -> Iterator[str]:
    for tick, row in zip(y_ticks, rows, strict=True):
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{row:.1f}" y2="{row:.1f}" stroke="#e4e2dc"/>'
        yield f'<text x="{LEFT - 8}" y="{row + 4:.1f}" text-anchor="end">{tick:.6g}</text>'
    foot = HEIGHT - BOTTOM
    for tick, column in zip(x_ticks, columns, strict=True):
        yield f'<line x1="{column:.1f}" x2="{column:.1f}" y1="{foot}" y2="{foot + 5}" stroke="#999"/>'
        yield f'<text x="{column:.1f}" y="{foot + 19}" text-anchor="middle">{tick:g}</text>'
    yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{foot}" y2="{foot}" stroke="#999"/>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle" class="axis">{html.escape(x_label)}</text>'
    middle = (TOP + HEIGHT - BOTTOM) / 2
    yield (
        f'<text x="14" y="{middle}" text-anchor="middle" class="axis" transform="rotate(-90 14 {middle})">'
        f"{html.escape(y_label)}</text>"
    )
