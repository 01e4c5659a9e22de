"""Drawing images in batches: the model in its precision, how many images fit at a time, and the batches themselves.

`System` and what draws from pictures (`code_drawing.py`, `code_filling.py`, `pixel_drawing.py`) meet here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from rasterformer import code_images
from rasterformer.abilities import need_codes
from rasterformer.autoregressive import memory
from rasterformer.autoregressive.memory import DrawingPlan, available_bytes
from rasterformer.autoregressive.noise import image_generators
from rasterformer.autoregressive.parallel import draw_in_parallel
from rasterformer.autoregressive.sample import draw
from rasterformer.autoregressive.window import AT_ONCE
from rasterformer.batches import batches_of, in_parts
from rasterformer.code_images import CodeOptions
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.diffusion.options import check_diffusion_options
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Autoregressive, Cond, Known, OnStep, SampleOptions

if TYPE_CHECKING:
    from rasterformer.system import System

MOST_AT_A_TIME = 64  # images; more of them make a step longer by as much

Precision = Literal["float32", "bfloat16"]


def plan_drawing(
    system: System,
    n: int,
    *,
    batch_size: int | None,
    precision: Precision,
    parallel: bool,
    more: CodeOptions | None = None,
) -> tuple[Autoregressive | CodeDenoiser, DrawingPlan]:
    """The model in the precision to draw in, and how many images at a time.

    Args:
        system: the model with everything around it.
        n, batch_size, precision, parallel: as in `System.sample`.
        more: what is said about drawing codes. None: nothing.

    Raises:
        ConfigError: an argument is out of range, the model cannot do it, or a batch does not fit into memory.
    """
    if more is not None:
        need_codes(system, more)
        if isinstance(system.model, CodeDenoiser):
            check_diffusion_options(more.of_diffusion(SampleOptions()), system.model.process)
    if parallel and isinstance(system.model, CodeDenoiser):
        raise ConfigError("parallel is for models that draw code by code; a diffusion model takes steps. Leave it out.")
    check_counts(n, batch_size)
    if parallel and batch_size is not None and batch_size > 1:
        raise ConfigError(f"batch_size = {batch_size}, but parallel draws one image at a time. Leave one of them out.")
    if precision not in ("float32", "bfloat16"):
        raise ConfigError(f"precision = {precision!r} is not known. Use float32 or bfloat16.")
    model = system.model.to_bfloat16() if precision == "bfloat16" else system.model
    size = 1 if parallel else batch_size
    available = available_bytes(system.device)
    is_guided = more is not None and more.guidance_scale != 1.0  # which holds each image twice
    plan = memory.plan_drawing(
        model, n, batch_size=size, most=MOST_AT_A_TIME, available=available, rows_per_image=2 if is_guided else 1
    )
    if system.tokenizer is not None:  # a window may be smaller than the image
        rows, cols = code_images.grid_of(system, None if more is None else more.size)
        if more is not None and more.window_stride is not None:
            code_images.check_stride(system, more.window_stride)
        at_once = 1 if isinstance(model, CodeDenoiser) else AT_ONCE
        windows = 0 if (rows, cols) == code_images.window_of(system) else max(0, at_once - plan.batch_size)
        more_bytes = windows * plan.bytes_per_image  # rows of a large image are drawn side by side
        plan = replace(plan, positions=rows * cols, shared_bytes=plan.shared_bytes + more_bytes)
    return model, plan


def check_counts(n: int, batch_size: int | None) -> None:
    """Refuses numbers of images below 1.

    Raises:
        ConfigError: one of them is.
    """
    if n < 1 or (batch_size is not None and batch_size < 1):
        raise ConfigError(f"n = {n} and batch_size = {batch_size} must be at least 1.")


def draw_batches(
    system: System,
    model: Autoregressive | CodeDenoiser,
    plan: DrawingPlan,
    cond: Cond,
    options: SampleOptions,
    seed: int,
    *,
    first: int = 0,
    streams: Sequence[torch.Generator] | None = None,
    parallel: bool,
    known: Known | None = None,
    start: tuple[Tensor, int] | None = None,
    condition: Tensor | None = None,
    more: CodeOptions | None = None,
    on_step: OnStep | None,
) -> Iterator[tuple[int, Tensor]]:
    """Yields the index of the first image of each batch and its images, uint8 [B, 3, H, W].

    The randomness of an image comes from its own of `streams`. None: they are those of the seed, from number `first` on.
    """
    for rows in batches_of(plan.num_images, plan.batch_size):
        if streams is None:
            rng = image_generators(seed, rows.stop - rows.start, first=first + rows.start)
        else:
            rng = list(streams[rows])
        told = in_parts(on_step, rows, plan.num_images, plan.positions)
        part, given = cond.rows(rows), None if known is None else Known(known.x[rows], known.where[rows])
        if system.tokenizer is not None:
            more = more or CodeOptions()
            codes = code_images.draw_codes(
                system,
                model,
                part,
                None if condition is None else condition[rows],
                code_images.grid_of(system, more.size),
                options=options,
                more=more,
                rng=rng,
                known=given,
                start=None if start is None else (start[0][rows], start[1]),
                parallel=parallel,
                on_step=told,
            )
            yield rows.start, code_images.decode(system, codes)
            continue
        assert isinstance(model, Autoregressive), "a model of pixels"
        if parallel:
            x = draw_in_parallel(model, part, options=options, rng=rng, known=given, on_step=told).x
        elif given is None:
            x = model.sample(part, len(rng), options=options, rng=rng, on_step=told)
        else:
            x = draw(model, part, len(rng), options=options, rng=rng, known=given, on_step=told)
        yield rows.start, system.codec.decode(x).cpu()
