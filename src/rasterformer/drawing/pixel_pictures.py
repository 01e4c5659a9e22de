"""Pictures from a model of pixels: what its task makes of sources, and the unknown part of images.

`System.transform` and `System.complete` come here; how tiles of a larger picture are drawn is in `canvas.py`. Models over
codes have `code_pictures.py` and `code_filling.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rasterformer.autoregressive.complete import known_prefix
from rasterformer.autoregressive.sample import draw
from rasterformer.batches import collected
from rasterformer.codecs.pixels import PixelCodec
from rasterformer.conditioning.sources import masked_source, source_of_picture
from rasterformer.drawing.canvas import draw_canvases, plan_canvas
from rasterformer.drawing.conditions import Label, cond_of
from rasterformer.drawing.options import DrawingOptions
from rasterformer.drawing.symbols import draw_batches, plan_drawing
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Autoregressive, Cond, Known

if TYPE_CHECKING:
    from rasterformer.system import System


def complete_pixels(
    system: System, images: Tensor, mask: Tensor, n: int, label: Label | Sequence[Label], how: DrawingOptions
) -> Tensor:
    """`complete` of a model of pixels: uint8 [B, 3, H, W] and bool [H, W] -> uint8 [B, n, 3, H, W]."""
    assert isinstance(system.codec, PixelCodec), "System.complete tells them apart"
    known_prefix(system.codec, mask)
    x = system.codec.encode(images).repeat_interleave(n, 0)
    total = len(x)
    if label is not None and not isinstance(label, str | int):
        label = [entry for entry in label for _ in range(n)]
    cond = cond_of(system, label, total, how.seed)
    model, plan = plan_drawing(system, total, how)
    given = Known(x, system.codec.positions_of(mask[None]).expand(total, -1))
    batches = draw_batches(system, model, plan, cond, how, known=given)
    return collected(batches, how.on_images).unflatten(0, (len(images), n))


def transform_pixels(
    system: System,
    pictures: Sequence[Tensor],
    masks: Sequence[Tensor] | None,
    n: int,
    cond: Cond,
    how: DrawingOptions,
    *,
    tile: bool,
    overlap: int | None,
) -> list[Tensor]:
    """`transform` of a model of pixels: pictures uint8 [3, h, w], of any sizes -> uint8 [n, 3, H, W] for each."""
    task, shape = system.recipe.task, system.source_shape
    assert task is not None and shape is not None, "System.transform refuses models without a task"
    assert isinstance(system.codec, PixelCodec), "a model without a tokenizer works on pixels"
    canvases = []
    for k, picture in enumerate(pictures):
        source = source_of_picture(task, picture[None])
        known = None
        if masks is not None:
            if bool(masks[k].all()):
                raise ConfigError(f"the mask of image {k} says that every pixel is known. Mark one or more as unknown.")
            known = masked_source(picture[None], masks[k][None]).known
        canvases.append(plan_canvas(source, known, shape, image_size=system.image_size, overlap=overlap, tile=tile))
    largest = max(len(wave) * n for canvas in canvases for wave in canvas.waves)
    pieces = sum(canvas.num_tiles for canvas in canvases) * n
    model, plan = plan_drawing(system, min(pieces, largest * len(pictures)), how)
    assert isinstance(model, Autoregressive), "a model of pixels"
    of_pixels, on_step, done = model, how.on_step, 0

    def draw_pieces(part: Cond, before: Known | None, rng: Sequence[torch.Generator]) -> Tensor:
        nonlocal done
        start, length, count = done, plan.positions, len(rng)
        told = None if on_step is None else lambda d, _: on_step(start * length + d * count, pieces * length)
        x = draw(of_pixels, part.to(system.device), count, options=how.symbols, rng=rng, known=before, on_step=told)
        done += count
        return x

    results = []
    drawn = draw_canvases(
        canvases, system.codec, draw_pieces, cond=cond, n=n, seed=how.seed, pieces_at_a_time=plan.batch_size
    )
    for k, result in drawn:
        results.append(result)
        if how.on_images is not None:
            how.on_images(k, result)
    return results
