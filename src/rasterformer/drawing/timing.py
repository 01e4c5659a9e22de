"""How long a diffusion model of pixels, or a cascade, takes to draw: one pass of each stage is timed, the others are counted.

How much memory it takes is in `diffusion_pictures.plan_pictures`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rasterformer.autoregressive.memory import DrawingPlan
from rasterformer.diffusion.image_denoiser import ImageDenoiser
from rasterformer.drawing.abilities import need_whole
from rasterformer.drawing.conditions import Label, Text
from rasterformer.drawing.diffusion_pictures import (
    networks_of,
    pieces_of_task,
    pieces_to_enlarge,
    pieces_to_vary,
    plan_pictures,
    plan_pieces,
    told_of,
    told_of_pieces,
)
from rasterformer.drawing.options import DrawingOptions
from rasterformer.drawing.stages import Told, draw_stage, factors_of, passes_of, stage_generators, stage_options
from rasterformer.system import System
from rasterformer.training.log import duration


@dataclass(frozen=True)
class DrawingTime:
    """What drawing will take.

    Args:
        seconds_per_pass: of a batch, for each stage that draws.
        passes: of a batch, for each stage that draws.
        batches: a fraction where the last one is smaller.
        first_stage: the first stage that draws: 0 is the base model.
    """

    seconds_per_pass: tuple[float, ...]
    passes: tuple[int, ...]
    batches: float
    first_stage: int = 0

    @property
    def seconds(self) -> float:
        """Of all of it."""
        of_batch = sum(each * count for each, count in zip(self.seconds_per_pass, self.passes, strict=True))
        return self.batches * of_batch

    def __str__(self) -> str:
        stages = range(self.first_stage, self.first_stage + len(self.passes))
        names = [f" of upscaler {k}" if k else " of the base model" for k in stages]
        names = names if len(names) > 1 or self.first_stage else [""]
        parts = [f"{_short(each)} a pass{name}" for each, name in zip(self.seconds_per_pass, names, strict=True)]
        return f"about {_short(self.seconds)} (measured: {', '.join(parts)})"


def time_drawing(
    system: System,
    n: int,
    how: DrawingOptions,
    *,
    label: Label = None,
    text: Text = None,
    is_filling: bool = False,
) -> tuple[DrawingPlan, DrawingTime]:
    """Plans to draw n images, and draws two batches of one step by each stage; the second one is timed.

    Args:
        system: a diffusion model of pixels without a task, with its upscalers.
        n: number of images; of completions, those of all pictures.
        how: see `DrawingOptions`.
        label, text: for all.
        is_filling: known pixels are kept.

    Returns:
        The plan and the time. Reading the text is not in it.

    Raises:
        ConfigError, ShapeError: as `networks_of`, `plan_pictures` and `told_of`.
    """
    size = how.size or (system.image_size, system.image_size)
    networks = networks_of(system, how)
    plan = plan_pictures(system, networks, n, how, size, is_filling=is_filling)
    told = told_of(system, label, text, plan.batch_size, how, draws_class=not is_filling)
    seconds = _seconds_per_pass(system, networks, told, how, size, plan.batch_size)
    passes = passes_of(system, how.pixels, is_filling=is_filling)
    return plan, DrawingTime(seconds, tuple(passes), n / plan.batch_size)


def time_from_pictures(
    system: System,
    pictures: Sequence[Tensor],
    n: int,
    how: DrawingOptions,
    *,
    known: Sequence[Tensor] | None = None,
    strength: float | None = None,
    upscalers_alone: bool = False,
    label: Label = None,
    text: Text = None,
    tile: bool = True,
    overlap: int | None = None,
) -> list[tuple[DrawingPlan, DrawingTime]]:
    """Plans to draw from pictures, and times a pass of each stage as `time_drawing` does.

    Args:
        system: a diffusion model of pixels, with its upscalers.
        pictures: uint8 [c, h, w], as `System.transform`, `upscale` or `vary` would be given them.
        n: results of each.
        how: see `DrawingOptions`.
        known: masks, as for `System.transform`.
        strength: of `System.vary`. None: for the others.
        upscalers_alone: of a cascade they draw, as in `System.upscale`.
        label, text: for all.
        tile, overlap: as in `System.transform`.

    Returns:
        A plan and a time for each group of neighbours that are drawn together: pictures of one size.

    Raises:
        ConfigError, ShapeError: as the methods.
    """
    networks = networks_of(system, how)
    if strength is not None:
        pieces = pieces_to_vary(system, torch.stack(list(pictures)), strength)
    else:
        assert system.source_shape is not None, "it draws from pictures"
        side = system.recipe.data.image_size if upscalers_alone else system.source_shape.size
        need_whole(system, pictures, side, tile=tile, overlap=overlap)
        if upscalers_alone:
            pieces = pieces_to_enlarge(system, pictures, how)
        else:
            pieces = pieces_of_task(system, pictures, known)
    groups = plan_pieces(system, networks, pieces, n, how)
    told, timed = told_of(system, label, text, len(pieces), how), []
    for group, plan in groups:
        size, is_filling, first = pieces[group[0]].kind
        rows = [group[row // n] for row in range(plan.batch_size)]
        each, _ = told_of_pieces(system, pieces, told, rows)
        seconds = _seconds_per_pass(system, networks, each, how, size, plan.batch_size, first_stage=first)
        passes = passes_of(system, how.pixels, is_filling=is_filling, first_stage=first)
        timed.append((plan, DrawingTime(seconds, tuple(passes), plan.num_images / plan.batch_size, first)))
    return timed


def _seconds_per_pass(
    system: System,
    networks: Sequence[ImageDenoiser],
    told: Sequence[Told],
    how: DrawingOptions,
    size: tuple[int, int],
    batch_size: int,
    *,
    first_stage: int = 0,
) -> tuple[float, ...]:
    """Of each stage that draws. Sources of upscalers are black; a step at known pixels takes as long as one without."""
    streams, factors, seconds = [(how.seed, k) for k in range(batch_size)], factors_of(system), []
    for number in range(first_stage, len(networks)):
        here, factor = told[number], factors[number]
        if number:
            before = factors[number - 1]
            source = torch.zeros(batch_size, 3, size[0] // before, size[1] // before, dtype=torch.uint8)
            here = replace(here, cond=replace(here.cond, source=source.to(system.device)))
        options = replace(stage_options(how.pixels, number), steps=1)
        stage_size = (size[0] // factor, size[1] // factor)
        for _ in range(2):
            rng = stage_generators(streams, number)
            began = time.perf_counter()  # images come back on the CPU, so what a GPU does has ended
            draw_stage(networks[number], here, size=stage_size, options=options, rng=rng)
            taken = time.perf_counter() - began
        seconds.append(taken)
    return tuple(seconds)


def _short(seconds: float) -> str:
    """`2 min 10 s`, `12 s`, `1.3 s` or `0.031 s`."""
    return duration(seconds) if seconds >= 10 else f"{seconds:#.2g} s"
