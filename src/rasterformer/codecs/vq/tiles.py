"""Encoding and decoding large images in overlapping tiles, so that the networks' memory does not grow with the image."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rasterformer.codecs.vq.autoencoder import VQAutoencoder
from rasterformer.codecs.vq.codec import CodeCodec, Pictures, to_pictures
from rasterformer.errors import ConfigError

TILE, OVERLAP = 48, 16  # codes


@torch.no_grad()
def decode_in_tiles(
    autoencoder: VQAutoencoder,
    codes: Tensor,
    *,
    pictures: Pictures = "rgb",
    tile: int = TILE,
    overlap: int = OVERLAP,
) -> Tensor:
    """Decodes codes of any size; a grid that fits into one tile is decoded as a whole.

    Tiles are mixed across their overlap with weights that fall linearly. A decoder with group normalisation or attention sees
    all of its input, so that a tile differs a little from the same place of the whole; across an overlap that turns into a
    slow change.

    Args:
        autoencoder: its decoder and quantiser are used.
        codes: int64 [B, h, w].
        pictures: what the images are.
        tile: side of a tile, codes.
        overlap: of neighbouring tiles, codes.

    Returns:
        uint8 [B, 3, f h, f w], on the CPU.

    Raises:
        ConfigError: a tile below 1, or an overlap that is negative or more than half of it.
    """
    _check_tile(tile, overlap)
    factor, device = autoencoder.factor, autoencoder.last_layer.device
    height, width = codes.shape[1:]
    whole: Tensor | None = None
    weights = torch.zeros(1, 1, height * factor, width * factor)
    for rows, row_weight in _spans(height, tile, overlap, factor):
        for cols, col_weight in _spans(width, tile, overlap, factor):
            values = autoencoder.quantiser.lookup(codes[:, rows, cols].to(device))
            part = autoencoder.decode(values).float().cpu()
            if part.shape[2:] == (height * factor, width * factor):
                return to_pictures(part, pictures)
            if whole is None:
                whole = torch.zeros(*part.shape[:2], height * factor, width * factor)
            weight = row_weight[:, None] * col_weight
            place = (
                ...,
                slice(rows.start * factor, rows.stop * factor),
                slice(cols.start * factor, cols.stop * factor),
            )
            whole[place] += part * weight
            weights[place] += weight
    assert whole is not None, "a grid has at least one tile"
    return to_pictures(whole / weights, pictures)


@torch.no_grad()
def encode_in_tiles(codec: CodeCodec, images: Tensor, *, tile: int = TILE, overlap: int = OVERLAP) -> Tensor:
    """Encodes images of any size; one that fits into a tile is encoded as a whole.

    Of an overlap each tile gives the half that is nearer to its middle.

    Args:
        codec: its autoencoder is used.
        images: uint8 [B, 3, H, W], sides multiples of the factor.
        tile: side of a tile, codes.
        overlap: of neighbouring tiles, codes.

    Returns:
        int64 [B, h, w], on the CPU.

    Raises:
        ConfigError: tile is below 1, or overlap is negative or more than half of a tile.
        ShapeError: another shape or dtype, or sides that are no multiples of the factor.
    """
    _check_tile(tile, overlap)
    factor = codec.autoencoder.factor
    height, width = images.shape[2] // factor, images.shape[3] // factor
    if max(height, width) <= tile or images.shape[2] % factor or images.shape[3] % factor:
        return codec.codes(images).cpu()  # which refuses sides that are no multiples
    codes = torch.zeros(len(images), height, width, dtype=torch.int64)
    for rows, _ in _spans(height, tile, overlap, factor):
        for cols, _ in _spans(width, tile, overlap, factor):
            part = images[..., rows.start * factor : rows.stop * factor, cols.start * factor : cols.stop * factor]
            top, left = (
                overlap // 2 if span.start else 0 for span in (rows, cols)
            )  # the last tile to write a code keeps it
            found = codec.codes(part).cpu()[:, top:, left:]
            codes[:, rows.start + top : rows.stop, cols.start + left : cols.stop] = found
    return codes


def _check_tile(tile: int, overlap: int) -> None:
    if tile < 1 or not 0 <= overlap <= tile // 2:
        raise ConfigError(f"overlap = {overlap} must lie in 0..half of tile = {tile}, which must be at least 1.")


def _spans(length: int, tile: int, overlap: int, factor: int) -> Iterator[tuple[slice, Tensor]]:
    """The tiles along one side: which codes, and the weight of each of their pixels, which falls towards inner borders."""
    size = min(tile, length)
    starts = [*range(0, max(length - size, 0), tile - overlap), length - size]
    ramp = (torch.arange(overlap * factor) + 1.0) / (overlap * factor + 1)
    for start in starts:
        weight = torch.ones(size * factor)
        if start > 0 and overlap:
            weight[: len(ramp)] = ramp
        if start + size < length and overlap:
            weight[-len(ramp) :] = torch.minimum(weight[-len(ramp) :], ramp.flip(0))
        yield slice(start, start + size), weight
