"""Masks for in-painting: bool [H, W], True where the pixel is known, False where it is to be drawn."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rasterformer.errors import ConfigError, did_you_mean

MaskKind = Literal["rectangles", "strokes", "border", "half"]

SMALLEST = 4  # pixels, side of the smallest image that random masks are made for
MOST_SEGMENTS = 5  # of a stroke
THINNEST = 0.75  # radius, pixels: more than half the diagonal of a pixel, so that a brush covers a pixel wherever it is


def random_mask(kind: MaskKind, size: int, rng: torch.Generator, *, most_rectangles: int, most_strokes: int) -> Tensor:
    """Draws a mask in which at least one pixel is known and at least one is not. `rng` alone decides it.

    Args:
        kind: what is unknown. `rectangles`: one or more of them, each side a quarter to a half of the image's. `strokes`:
            one or more of a brush that wanders straight ahead with a turn now and then; its radius is a sixteenth to an
            eighth of the image's side (and never too thin to cover a pixel). `border`: everything outside one rectangle,
            whose sides are a half to seven eighths of the image's. `half`: the left, right, upper or lower half.
        size: side of the image, at least 4 pixels.
        rng: on the CPU.
        most_rectangles: at least 1.
        most_strokes: at least 1.

    Returns:
        bool [size, size], True = known. A rectangle or stroke that would leave nothing known is left out.

    Raises:
        ConfigError: kind is not known, or size, most_rectangles or most_strokes is too small.
    """
    if size < SMALLEST:
        raise ConfigError(f"size = {size} is too small for a random mask. It must be at least {SMALLEST} pixels.")
    if most_rectangles < 1 or most_strokes < 1:
        raise ConfigError(
            f"most_rectangles = {most_rectangles} and most_strokes = {most_strokes} must both be at least 1."
        )
    match kind:
        case "rectangles":
            return _holes(
                [_rectangle(size, -(-size // 4), size // 2, rng) for _ in range(_whole(1, most_rectangles, rng))]
            )
        case "strokes":
            return _holes([_stroke(size, rng) for _ in range(_whole(1, most_strokes, rng))])
        case "border":
            return _rectangle(size, -(-size // 2), size * 7 // 8, rng)
        case "half":
            return _half(size, rng)
        case _:
            raise ConfigError(
                f"kind = {kind!r} is no kind of mask.{did_you_mean(kind, ('rectangles', 'strokes', 'border', 'half'))}"
            )


def rectangle_mask(height: int, width: int, top: int, left: int, rows: int, cols: int) -> Tensor:
    """Returns the mask of an image in which one rectangle is unknown: bool [height, width], True = known.

    Args:
        height, width: of the image, pixels.
        top, left: first row and column of the rectangle.
        rows, cols: of the rectangle.

    Raises:
        ConfigError: the rectangle is empty or reaches out of the image.
    """
    received = f"The rectangle of {rows}x{cols} pixels at row {top}, column {left}"
    if rows < 1 or cols < 1:
        raise ConfigError(f"{received} is empty. Give at least one row and one column.")
    if top < 0 or left < 0 or top + rows > height or left + cols > width:
        raise ConfigError(
            f"{received} reaches out of the image of {height}x{width}. Rows 0..{height - 1} and columns 0..{width - 1} exist."
        )
    known = torch.ones(height, width, dtype=torch.bool)
    known[top : top + rows, left : left + cols] = False
    return known


def _holes(parts: list[Tensor]) -> Tensor:
    known = torch.ones_like(parts[0])
    for part in parts:
        smaller = known & ~part
        if smaller.any():
            known = smaller
    return known


def _rectangle(size: int, shortest: int, longest: int, rng: torch.Generator) -> Tensor:
    rows, cols = _whole(shortest, longest, rng), _whole(shortest, longest, rng)
    top, left = _whole(0, size - rows, rng), _whole(0, size - cols, rng)
    return ~rectangle_mask(size, size, top, left, rows, cols)


def _half(size: int, rng: torch.Generator) -> Tensor:
    across, second = _whole(0, 1, rng), _whole(0, 1, rng)
    known = (torch.arange(size) < size // 2) == bool(second)
    return (known[None, :] if across else known[:, None]).repeat(size if across else 1, 1 if across else size)


def _stroke(size: int, rng: torch.Generator) -> Tensor:
    radius = max(THINNEST, _real(size / 16, size / 8, rng))
    row, col, angle = _real(0, size, rng), _real(0, size, rng), _real(0, 2 * math.pi, rng)
    covered = torch.zeros(size, size, dtype=torch.bool)
    for _ in range(_whole(1, MOST_SEGMENTS, rng)):
        length = _real(size / 8, size / 3, rng)
        angle += _real(-math.pi / 3, math.pi / 3, rng)
        end_row = min(max(row + length * math.sin(angle), 0.0), float(size))
        end_col = min(max(col + length * math.cos(angle), 0.0), float(size))
        covered |= _distance_to_segment(size, (row, col), (end_row, end_col)) <= radius
        row, col = end_row, end_col
    return covered


def _distance_to_segment(size: int, start: tuple[float, float], end: tuple[float, float]) -> Tensor:
    """From the centre of each pixel, in pixels: float64 [size, size]."""
    centres = torch.arange(size, dtype=torch.float64) + 0.5
    rows, cols = centres[:, None] - start[0], centres[None, :] - start[1]
    down, right = end[0] - start[0], end[1] - start[1]
    squared_length = max(down**2 + right**2, 1e-12)  # a segment cut off at the border may be a point
    place = ((rows * down + cols * right) / squared_length).clamp(0, 1)  # of the nearest point, 0 = start, 1 = end
    return torch.hypot(rows - place * down, cols - place * right)


def _whole(low: int, high: int, rng: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=rng))


def _real(low: float, high: float, rng: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), dtype=torch.float64, generator=rng))
