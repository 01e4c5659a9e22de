"""Where to put overlapping tiles on an image that is larger than a model's, and in which order to draw them.

Pure arithmetic in pixels of the source; a caller whose targets are larger multiplies by its factor.

A tile is drawn with the pixels that earlier tiles kept as its context. The last columns and rows of a tile are drawn
without a view of the source beyond them. A tile that is not at the border of the image therefore does not keep them: of
every overlap the half next to the earlier tile's edge is drawn anew by the later tile, which sees what lies around it.
"""

from __future__ import annotations

from dataclasses import dataclass

from rasterformer.errors import ConfigError


@dataclass(frozen=True)
class Tile:
    """A square of the image, and what is kept of it when it has been drawn.

    Args:
        top, left: its first row and column, in pixels of the source.
        keep_bottom, keep_right: the row and the column, counted from the image's own, before which its pixels are kept:
            rows top..keep_bottom-1 and columns left..keep_right-1. Its pixels beyond them are forgotten. Of the pixels
            before them, those that an earlier tile kept are known and stay as they are.
    """

    top: int
    left: int
    keep_bottom: int
    keep_right: int


def plan_tiles(height: int, width: int, *, size: int, overlap: int) -> list[list[Tile]]:
    """Covers an image with tiles, in waves that are drawn one after the other.

    Tiles lie `size - overlap` pixels apart; the last of a row or column is moved back to end at the border. The tiles of a
    wave do not overlap one another, so that they can be drawn in one batch. Tiles that overlap are in waves in raster order:
    what the earlier one keeps is known to the later one. Every pixel is kept by at least one tile, and every tile has
    at least one pixel that is not known before it.

    Args:
        height, width: of the image, pixels.
        size: side of a tile, pixels.
        overlap: of neighbouring tiles, pixels, 0..size-1. A tile keeps all but `overlap // 2` of its last columns
            and rows, and all of them at the border of the image.

    Returns:
        Waves in the order of drawing, each with its tiles in raster order.

    Raises:
        ConfigError: the image is smaller than a tile, or overlap is not in 0..size-1.
    """
    if not 0 <= overlap < size:
        raise ConfigError(f"overlap = {overlap} must lie in 0..{size - 1} for tiles of {size}x{size} pixels.")
    if height < size or width < size:
        raise ConfigError(
            f"An image of {height}x{width} pixels is smaller than a tile of {size}x{size}. Give a larger image."
        )
    tops, lefts = _starts(height, size, overlap), _starts(width, size, overlap)
    row_reach, col_reach = _reach(tops, size), _reach(lefts, size)
    row_delay = col_reach + 1 if row_reach else 0  # a row waits until the last tile above that it overlaps is drawn
    col_delay = 1 if col_reach else 0
    waves: dict[int, list[Tile]] = {}
    for row, top in enumerate(tops):
        for col, left in enumerate(lefts):
            tile = Tile(top, left, _keep_end(top, height, size, overlap), _keep_end(left, width, size, overlap))
            waves.setdefault(row_delay * row + col_delay * col, []).append(tile)
    return [waves[wave] for wave in sorted(waves)]


def _starts(length: int, size: int, overlap: int) -> list[int]:
    return [*range(0, length - size, size - overlap), length - size]


def _reach(starts: list[int], size: int) -> int:
    """How many places further on the last tile is that one of the tiles still overlaps.

    It is 1 for a small overlap; the tile that was moved back to the border can overlap more than its neighbour.
    """
    return max(sum(start < later < start + size for later in starts) for start in starts)


def _keep_end(start: int, length: int, size: int, overlap: int) -> int:
    end = start + size
    return end if end == length else end - overlap // 2
