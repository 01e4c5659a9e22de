"""Drawing images from source images: one model-sized piece at a time, or overlapping tiles of a larger image.

`System.transform` is the way in; here are the pieces between a picture and the model's condition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rasterformer.autoregressive.noise import stream_seed
from rasterformer.codecs.pixels import PixelCodec
from rasterformer.conditioning.resize import enlarge
from rasterformer.conditioning.tiles import Tile, plan_tiles
from rasterformer.data.png import image_grid
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Batch, Cond, Known
from rasterformer.tasks import SourceShape

DrawPieces = Callable[[Cond, Known | None, Sequence[torch.Generator]], Tensor]
MISSING_GREY = 128


@dataclass(frozen=True)
class Canvas:
    """Pictures of one size that are drawn together, and how.

    Args:
        source: uint8 [B, c, h, w].
        known: bool [B, h, w], pixels of the result that the source shows. None: the model has no use for it.
        waves: tiles, those of a wave at once; one wave of one tile where the source has the model's size.
        factor: pixels of the result per pixel of the source.
    """

    source: Tensor
    known: Tensor | None
    waves: list[list[Tile]]
    factor: int

    @property
    def num_tiles(self) -> int:
        return sum(map(len, self.waves))


def plan_canvas(
    source: Tensor, known: Tensor | None, shape: SourceShape, *, image_size: int, overlap: int | None, tile: bool
) -> Canvas:
    """Checks sources against what a model takes, and cuts them into tiles where they are larger.

    Args:
        source: uint8 [B, c, h, w].
        known: bool [B, h, w], for a model whose sources have a mask.
        shape: what the model takes.
        image_size: side of the model's images, pixels.
        overlap: of neighbouring tiles, source pixels. None: half of a tile's side.
        tile: whether larger sources are allowed.

    Raises:
        ShapeError: sources of other channels or dtype, smaller than the model's, or a mask of another size.
        ConfigError: larger sources without `tile`, or an overlap out of range.
    """
    size = shape.size
    if source.ndim != 4 or source.dtype != torch.uint8 or source.shape[1] != shape.channels:
        raise ShapeError(
            f"source is {source.dtype} {list(source.shape)}; this model takes torch.uint8 [B, {shape.channels}, h, w]."
        )
    height, width = source.shape[2:]
    if min(height, width) < size:
        raise ShapeError(f"source is {width}x{height} pixels; this model needs at least {size}x{size}.")
    if known is not None and (known.shape != (len(source), height, width) or known.dtype != torch.bool):
        raise ShapeError(
            f"the mask is {known.dtype} {list(known.shape)}; torch.bool {[len(source), height, width]} is needed, "
            "one value for each pixel of its image."
        )
    if (height, width) != (size, size) and not tile:
        raise ConfigError(
            f"source is {width}x{height} pixels, this model takes {size}x{size}. Allow overlapping tiles (--tile, "
            "tile=True), or reduce the picture first."
        )
    waves = plan_tiles(height, width, size=size, overlap=size // 2 if overlap is None else overlap)
    return Canvas(source, known, waves, image_size // size)


def draw_canvas(
    canvas: Canvas,
    codec: PixelCodec,
    draw: DrawPieces,
    *,
    cond: Cond,
    n: int,
    seed: int,
    first: int,
    pieces_at_a_time: int,
) -> Tensor:
    """Draws every picture n times. What earlier tiles kept is known to later ones, and stays as it is.

    Args:
        canvas: the pictures.
        codec: of the model.
        draw: from the condition of pieces, what is known of them, and a stream of random numbers each, to x [b, L, E].
        cond: labels, or nothing, of the B pictures.
        n: results of each picture.
        seed: any integer. The first tile of result k of picture i takes the stream of image i * n + k.
        first: number of the first picture.
        pieces_at_a_time: most that are drawn together.

    Returns:
        uint8 [B, n, 3, H, W].
    """
    source = canvas.source.repeat_interleave(n, 0)  # [R, c, h, w], R results
    known = None if canvas.known is None else canvas.known.repeat_interleave(n, 0)
    factor, size = canvas.factor, codec.image_shape[1]
    results, (height, width) = len(source), source.shape[2:]
    result = torch.zeros(results, 3, factor * height, factor * width, dtype=torch.uint8)
    drawn = torch.zeros(results, factor * height, factor * width, dtype=torch.bool)
    if known is not None:
        result, drawn = torch.where(known[:, None], source, 0), known.clone()
    number = 0
    for wave in canvas.waves:
        pieces = [(row, tile, number + k) for k, tile in enumerate(wave) for row in range(results)]
        number += len(wave)
        for part in _parts(pieces, pieces_at_a_time):
            rows = torch.tensor([row for row, _, _ in part])
            of_result = [_window(tile, factor, size) for _, tile, _ in part]
            seen = torch.stack([result[row][:, y, x] for row, (y, x) in zip(rows.tolist(), of_result, strict=True)])
            given = torch.stack([drawn[row][y, x] for row, (y, x) in zip(rows.tolist(), of_result, strict=True)])
            if bool(given.all()):
                continue
            labels = None if cond.label is None else cond.label[rows // n]
            rng = [_stream(seed, tile_number, first * n + row) for row, _, tile_number in part]
            if known is None:
                own = [source[row][:, y, x] for row, (y, x) in _source_windows(part, size // factor)]
                condition = Cond(label=labels, source=torch.stack(own))
            else:  # what has been drawn is known, to the encoder too
                condition = Cond(label=labels, source=seen * given[:, None], known=given)
            before = Known(codec.encode(seen), codec.positions_of(given)) if bool(given.any()) else None
            pixels = codec.decode(draw(condition, before, rng)).cpu()
            for image, (row, tile, _), (y, x) in zip(pixels, part, of_result, strict=True):
                keep_y, keep_x = tile.keep_bottom * factor - y.start, tile.keep_right * factor - x.start
                here = (slice(y.start, y.start + keep_y), slice(x.start, x.start + keep_x))
                result[row][:, here[0], here[1]] = image[:, :keep_y, :keep_x]
                drawn[row][here] = True
    return result.unflatten(0, (-1, n))


def draw_canvases(
    canvases: Sequence[Canvas],
    codec: PixelCodec,
    draw: DrawPieces,
    *,
    cond: Cond,
    n: int,
    seed: int,
    pieces_at_a_time: int,
) -> Iterator[tuple[int, Tensor]]:
    """Draws every picture n times, neighbours of one size together; yields its number and uint8 [n, 3, H, W].

    Args:
        canvases: one picture each.
        codec, draw, n, seed, pieces_at_a_time: as in `draw_canvas`.
        cond: labels, or nothing, of all pictures.
    """
    for group in _same_size(canvases, max(1, pieces_at_a_time // n)):
        together = _joined([canvases[k] for k in group])
        drawn = draw_canvas(
            together,
            codec,
            draw,
            cond=cond.rows(slice(group[0], group[-1] + 1)),
            n=n,
            seed=seed,
            first=group[0],
            pieces_at_a_time=pieces_at_a_time,
        )
        yield from zip(group, drawn, strict=True)


def visible_source(cond: Cond, size: tuple[int, int]) -> Tensor:
    """The source as a picture of the result's size, by repeating pixels; missing ones are grey.

    Args:
        cond: with source uint8 [B, c, h, w] and, where there is one, the mask.
        size: rows and columns.

    Returns:
        uint8 [B, 3, *size].
    """
    assert cond.source is not None, "there is a source to show"
    source = cond.source.cpu().expand(-1, 3, -1, -1)
    if cond.known is not None:
        source = torch.where(cond.known.cpu()[:, None], source, MISSING_GREY)
    return enlarge(source, size, "nearest")


def source_sheet(batch: Batch, samples: Tensor, *, scale: int) -> Tensor:
    """A picture with a row for each image: source | samples | original.

    Args:
        batch: images uint8 [B, 3, H, W], with their sources.
        samples: uint8 [B, n, 3, H, W].
        scale: magnification.

    Returns:
        uint8 [3, *, *].
    """
    shown = visible_source(batch.cond, (batch.images.shape[2], batch.images.shape[3]))
    rows = torch.cat([shown[:, None], samples, batch.images[:, None]], 1)
    return image_grid(rows.flatten(0, 1), columns=rows.shape[1], scale=scale)


def _parts(pieces: list[tuple[int, Tile, int]], size: int) -> Iterator[list[tuple[int, Tile, int]]]:
    return (pieces[start : start + size] for start in range(0, len(pieces), size))


def _window(tile: Tile, factor: int, size: int) -> tuple[slice, slice]:
    """Where the tile lies in the result."""
    top, left = tile.top * factor, tile.left * factor
    return slice(top, top + size), slice(left, left + size)


def _source_windows(part: list[tuple[int, Tile, int]], size: int) -> Iterator[tuple[int, tuple[slice, slice]]]:
    return ((row, _window(tile, 1, size)) for row, tile, _ in part)


def _stream(seed: int, tile: int, number: int) -> torch.Generator:
    """The random numbers of a tile of a result; those of the first tile are the ones of an image of that number."""
    purpose = "image" if tile == 0 else f"image, tile {tile}"
    return torch.Generator().manual_seed(stream_seed(seed, purpose, number))


def _same_size(canvases: Sequence[Canvas], most: int) -> Iterator[list[int]]:
    """Numbers of consecutive canvases of one size, at most so many."""
    group: list[int] = []
    for k, canvas in enumerate(canvases):
        if group and (len(group) == most or canvases[group[0]].source.shape != canvas.source.shape):
            yield group
            group = []
        group.append(k)
    yield group


def _joined(canvases: Sequence[Canvas]) -> Canvas:
    """Canvases of one size as one."""
    first = canvases[0]
    known = None if first.known is None else torch.cat([c.known for c in canvases if c.known is not None])
    return Canvas(torch.cat([c.source for c in canvases]), known, first.waves, first.factor)
