"""Drawing images in batches: the model in its precision, how many images fit at a time, and the batches themselves.

For models that draw symbols. `System` and what draws from pictures (`code_pictures.py`, `code_filling.py`, `pixel_pictures.py`)
meet here; diffusion models of pixels have `diffusion_pictures.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from rasterformer.autoregressive import memory
from rasterformer.autoregressive.memory import DrawingPlan, available_bytes
from rasterformer.autoregressive.noise import image_generators
from rasterformer.autoregressive.parallel import draw_in_parallel
from rasterformer.autoregressive.sample import draw
from rasterformer.autoregressive.window import AT_ONCE
from rasterformer.batches import batches_of, in_parts
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.diffusion.image_denoiser import ImageDenoiser
from rasterformer.diffusion.options import check_diffusion_options
from rasterformer.distributions.pmf import check_options
from rasterformer.drawing import code_images
from rasterformer.drawing.options import DrawingOptions, Precision, need_options
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Autoregressive, Cond, Known

if TYPE_CHECKING:
    from rasterformer.system import System

MOST_AT_A_TIME = 64  # images; more of them make a step longer by as much


def plan_drawing(system: System, n: int, how: DrawingOptions) -> tuple[Autoregressive | CodeDenoiser, DrawingPlan]:
    """The model in the precision to draw in, and how many images at a time.

    Args:
        system: the model with everything around it; it draws symbols.
        n: number of images.
        how: see `DrawingOptions`.

    Raises:
        ConfigError: an argument is out of range, the model cannot do it, or a batch does not fit into memory.
    """
    assert not isinstance(system.model, ImageDenoiser), "diffusion_pictures.py plans for it"
    need_options(system, how)
    more = how.codes
    if isinstance(system.model, CodeDenoiser):
        check_diffusion_options(more.of_diffusion(how.symbols), system.model.process)
    else:
        check_options(how.symbols)
    check_counts(n, how.batch_size)
    if how.parallel and how.batch_size is not None and how.batch_size > 1:
        raise ConfigError(
            f"batch_size = {how.batch_size}, but parallel draws one image at a time. Leave one of them out."
        )
    check_precision(how.precision)
    model = system.model.to_bfloat16() if how.precision == "bfloat16" else system.model
    assert not isinstance(model, ImageDenoiser), "a copy is of the same kind"
    plan = memory.plan_drawing(
        model,
        n,
        batch_size=1 if how.parallel else how.batch_size,
        most=MOST_AT_A_TIME,
        available=available_bytes(system.device),
        rows_per_image=2 if more.guidance_scale != 1.0 else 1,  # guidance holds each image twice
    )
    if system.tokenizer is not None:  # a window may be smaller than the image
        rows, cols = code_images.grid_of(system, more.size)
        if more.window_stride is not None:
            code_images.check_stride(system, more.window_stride)
        at_once = 1 if isinstance(model, CodeDenoiser) else AT_ONCE
        windows = 0 if (rows, cols) == code_images.window_of(system) else max(0, at_once - plan.batch_size)
        more_bytes = windows * plan.bytes_per_image  # rows of a large image are drawn side by side
        plan = replace(plan, positions=rows * cols, shared_bytes=plan.shared_bytes + more_bytes)
    return model, plan


def check_precision(precision: str) -> None:
    """Refuses precisions that nothing draws in.

    Raises:
        ConfigError: it is such a one.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"precision = {precision!r} is not known. Use float32 or bfloat16.")


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
    how: DrawingOptions,
    *,
    first: int = 0,
    streams: Sequence[torch.Generator] | None = None,
    known: Known | None = None,
    start: tuple[Tensor, int] | None = None,
    condition: Tensor | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yields the index of the first image of each batch and its images, uint8 [B, 3, H, W].

    The randomness of an image comes from its own of `streams`. None: they are those of the seed, from number `first` on.
    """
    options = how.symbols
    for rows in batches_of(plan.num_images, plan.batch_size):
        if streams is None:
            rng = image_generators(how.seed, rows.stop - rows.start, first=first + rows.start)
        else:
            rng = list(streams[rows])
        told = in_parts(how.on_step, rows, plan.num_images, plan.positions)
        part, given = cond.rows(rows), None if known is None else Known(known.x[rows], known.where[rows])
        if system.tokenizer is not None:
            codes = code_images.draw_codes(
                system,
                model,
                part,
                None if condition is None else condition[rows],
                code_images.grid_of(system, how.size),
                options=options,
                more=how.codes,
                rng=rng,
                known=given,
                start=None if start is None else (start[0][rows], start[1]),
                parallel=how.parallel,
                on_step=told,
            )
            yield rows.start, code_images.decode(system, codes)
            continue
        assert isinstance(model, Autoregressive), "a model of pixels"
        if how.parallel:
            x = draw_in_parallel(model, part, options=options, rng=rng, known=given, on_step=told).x
        elif given is None:
            x = model.sample(part, len(rng), options=options, rng=rng, on_step=told)
        else:
            x = draw(model, part, len(rng), options=options, rng=rng, known=given, on_step=told)
        yield rows.start, system.codec.decode(x).cpu()
