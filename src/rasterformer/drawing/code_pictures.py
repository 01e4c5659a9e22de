"""Pictures from a model over codes: what its task makes of sources, and the unknown part of images.

For models with a tokenizer `System.complete` comes here, and `System.transform` where the model was trained for a task. A
diffusion model fills any mask without: `code_filling.py`. How codes are drawn is in `code_images.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rasterformer.autoregressive.noise import image_generators, stream_seed
from rasterformer.batches import batches_of, collected, in_parts, one_of
from rasterformer.codecs.vq.codec import CodeCodec
from rasterformer.conditioning.sources import source_of_picture
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.drawing.code_images import (
    condition_codes,
    decode,
    draw_codes,
    grid_nats,
    grid_of,
    known_codes,
    window_of,
)
from rasterformer.drawing.options import DrawingOptions
from rasterformer.drawing.symbols import draw_batches, plan_drawing
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Autoregressive, Cond, Known
from rasterformer.tokenizer import IMAGES_AT_A_TIME

if TYPE_CHECKING:
    from rasterformer.system import System


def transform_codes(system: System, sources: Sequence[Tensor], n: int, cond: Cond, how: DrawingOptions) -> list[Tensor]:
    """`transform` of a model over codes: sources uint8 [c, h, w], of any sizes -> uint8 [n, 3, H, W] for each."""
    task, shape = system.recipe.task, system.source_shape
    assert task is not None and shape is not None, "System.transform refuses models without a task"
    scale = system.image_size // shape.size
    results: list[Tensor] = []
    for k, picture in enumerate(sources):
        source = picture[None] if picture.shape[0] == 1 else source_of_picture(task, picture[None])
        size = (scale * source.shape[2], scale * source.shape[3])
        told = None if how.on_step is None else one_of(how.on_step, k, len(sources))
        here = replace(how, size=size, seed=stream_seed(how.seed, "picture", k), on_step=told)
        grid_of(system, size)  # refuses sizes before anything is tokenized
        codes = condition_codes(system, source, size).expand(n, -1, -1)
        model, plan = plan_drawing(system, n, here)
        each = cond.rows(torch.full((n,), k, device=system.device))
        batches = draw_batches(system, model, plan, each, here, condition=codes)
        results.append(collected(batches, None))
        if how.on_images is not None:
            how.on_images(k, results[-1])
    return results


def complete_codes(
    system: System, images: Tensor, mask: Tensor, n: int, cond: Cond, how: DrawingOptions, *, candidates: int
) -> Tensor:
    """`complete` of a model over codes: uint8 [B, 3, H, W] and bool [H, W] -> uint8 [B, n, 3, H, W]."""
    assert isinstance(system.codec, CodeCodec), "only models over codes come here"
    if mask.shape != images.shape[2:] or mask.dtype != torch.bool:
        raise ShapeError(f"known is {mask.dtype} {list(mask.shape)}; it must be torch.bool {list(images.shape[2:])}.")
    if candidates < 1:
        raise ConfigError(f"candidates = {candidates} must be at least 1.")
    if candidates > 1 and isinstance(system.model, CodeDenoiser):
        raise ConfigError(
            f"candidates = {candidates}, but a diffusion model sees all that is known already. Leave it out."
        )
    if candidates > 1 and window_of(system) != system.codec.grid:
        raise ConfigError(
            f"candidates = {candidates} needs a model that sees the whole image at once; this one slides a window over it."
        )
    masks = mask.expand(len(images), -1, -1)
    codes, where = known_codes(system, images, masks)
    if bool(where.all()):
        raise ConfigError("every code of the image is known: nothing is left to draw. Mark more pixels as unknown.")
    total, each = len(images) * n, n * candidates
    image_of = torch.arange(len(images)).repeat_interleave(each)  # of every filling
    x, given = system.codec.to_x(codes)[image_of], system.codec.to_x(where)[..., 0][image_of]
    parts, fixed = cond.rows(image_of.to(system.device)), where[image_of]
    model, plan = plan_drawing(system, total * candidates, how)
    results: list[Tensor] = []
    for some in batches_of(total, max(1, plan.batch_size // candidates)):  # of results, each with its candidates
        filled = []
        for piece in batches_of((some.stop - some.start) * candidates, plan.batch_size):
            rows = slice(some.start * candidates + piece.start, some.start * candidates + piece.stop)
            filled.append(
                draw_codes(
                    system,
                    model,
                    parts.rows(rows),
                    None,
                    system.codec.grid,
                    options=how.symbols,
                    more=how.codes,
                    rng=image_generators(how.seed, rows.stop - rows.start, first=rows.start),
                    known=Known(x[rows], given[rows]),
                    parallel=how.parallel,
                    on_step=in_parts(how.on_step, rows, plan.num_images, plan.positions),
                )
            )
        of_results = torch.cat(filled)
        if candidates > 1:
            rows = slice(some.start * candidates, some.stop * candidates)
            of_results = _chosen(
                system, model, of_results, parts.rows(rows), fixed[rows], candidates, how.seed, some.start
            )
        pictures = decode(system, of_results)
        originals = images[torch.arange(some.start, some.stop) // n]
        results.append(torch.where(mask, originals, pictures))  # known pixels stay as they are
        if how.on_images is not None:
            how.on_images(some.start, results[-1])
    return torch.cat(results).unflatten(0, (len(images), n))


def _chosen(
    system: System,
    model: Autoregressive | CodeDenoiser,
    filled: Tensor,
    cond: Cond,
    fixed: Tensor,
    candidates: int,
    seed: int,
    first: int,
) -> Tensor:
    """One of every `candidates` fillings int64 [R c, h, w], with the probability that it gives to the fixed codes: [R, h, w]."""
    nats = torch.cat(
        [
            grid_nats(system, model, filled[rows], cond.rows(rows), None)
            for rows in batches_of(len(filled), IMAGES_AT_A_TIME)
        ]
    )
    log_weight = -(nats * fixed.to(nats.device)).sum((1, 2)).double().unflatten(0, (-1, candidates))
    chosen = []
    for k, weights in enumerate(torch.softmax(log_weight, 1).cpu()):
        choice = torch.Generator().manual_seed(stream_seed(seed, "candidate", first + k))
        chosen.append(k * candidates + int(torch.multinomial(weights, 1, generator=choice)))
    return filled[torch.tensor(chosen, device=filled.device)]
