"""Work on many images in batches: which rows, results as they come, progress of parts as progress of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from rasterformer.interfaces import OnStep

OnImages = Callable[[int, Tensor], None]  # (index of the first, images uint8 [B, 3, H, W])


def batches_of(total: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, total)) for first in range(0, total, size))


def collected(batches: Iterator[tuple[int, Tensor]], on_images: OnImages | None) -> Tensor:
    """All images of the batches, each batch told as soon as it is there."""
    pictures = []
    for start, images in batches:
        pictures.append(images)
        if on_images is not None:
            on_images(start, images)
    return torch.cat(pictures)


def in_parts(on_step: OnStep | None, rows: slice, total: int, length: int) -> OnStep | None:
    """Progress of one batch, `rows` of `total` images, as progress of all."""
    if on_step is None:
        return None
    return lambda done, _: on_step(rows.start * length + done * (rows.stop - rows.start), total * length)


def one_of(on_step: OnStep, k: int, count: int) -> OnStep:
    """Progress of picture k as progress of all, which are taken to be alike."""
    return lambda done, every: on_step(k * every + done, count * every)


def in_rows(on_images: OnImages | None, n: int) -> OnImages | None:
    """Takes (number of a picture, its n results), and hands on (index of the first among all results, these)."""
    return None if on_images is None else lambda k, results: on_images(k * n, results)
