"""How long a diffusion model of pixels, or a cascade, takes to draw: one pass of each stage is timed, the others are counted.

How much memory it takes is in `diffusion_pictures.plan_pictures`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from rasterformer.autoregressive.memory import DrawingPlan
from rasterformer.drawing.conditions import Label, Text
from rasterformer.drawing.diffusion_pictures import plan_pictures, told_of
from rasterformer.drawing.options import DrawingOptions
from rasterformer.drawing.stages import draw_stage, factors_of, passes_of, stage_generators, stage_options
from rasterformer.system import System
from rasterformer.training.log import duration


@dataclass(frozen=True)
class DrawingTime:
    """What drawing will take.

    Args:
        seconds_per_pass: of a batch, for each stage.
        passes: of a batch, for each stage.
        batches: a fraction where the last one is smaller.
    """

    seconds_per_pass: tuple[float, ...]
    passes: tuple[int, ...]
    batches: float

    @property
    def seconds(self) -> float:
        """Of all of it."""
        of_batch = sum(each * count for each, count in zip(self.seconds_per_pass, self.passes, strict=True))
        return self.batches * of_batch

    def __str__(self) -> str:
        names = [" of the base model", *(f" of upscaler {k}" for k in range(1, len(self.passes)))]
        names = names if len(names) > 1 else [""]
        parts = [f"{_short(each)} a pass{name}" for each, name in zip(self.seconds_per_pass, names, strict=True)]
        return f"about {_short(self.seconds)} (measured: {', '.join(parts)})"


def time_drawing(
    system: System,
    n: int,
    how: DrawingOptions,
    *,
    label: Label = None,
    text: Text = None,
    num_pictures: int = 1,
    is_filling: bool = False,
) -> tuple[DrawingPlan, DrawingTime]:
    """Plans to draw n images, and draws two batches of one step by each stage; the second one is timed.

    Args:
        system: a diffusion model of pixels without a task, with its upscalers.
        n: number of images; of each picture, where there are some.
        how: see `DrawingOptions`.
        label, text: for all.
        num_pictures: that are completed one after the other.
        is_filling: known pixels are kept.

    Returns:
        The plan for n images, and the time for those of all pictures. Reading the text is not in it.

    Raises:
        ConfigError, ShapeError: as `plan_pictures` and `told_of`.
    """
    size = how.size or (system.image_size, system.image_size)
    models, plan = plan_pictures(system, n, how, size, is_filling=is_filling)
    told = told_of(system, label, text, plan.batch_size, how, draws_class=not is_filling)
    streams, factors, seconds = [(how.seed, k) for k in range(plan.batch_size)], factors_of(system), []
    for number, (model, here, factor) in enumerate(zip(models, told, factors, strict=True)):
        rows, cols = size[0] // factor, size[1] // factor
        if number:
            source = torch.zeros(
                plan.batch_size, 3, size[0] // factors[number - 1], size[1] // factors[number - 1], dtype=torch.uint8
            )
            here = replace(here, cond=replace(here.cond, source=source.to(system.device)))
        options = replace(stage_options(how.pixels, number), steps=1)
        for _ in range(2):
            rng = stage_generators(streams, number)
            began = time.perf_counter()
            draw_stage(
                model, here, size=(rows, cols), options=options, rng=rng
            )  # on the CPU in the end, so it has ended
            taken = time.perf_counter() - began
        seconds.append(taken)
    passes = passes_of(system, how.pixels, is_filling=is_filling)
    return plan, DrawingTime(tuple(seconds), tuple(passes), num_pictures * n / plan.batch_size)


def _short(seconds: float) -> str:
    """`2 min 10 s`, `12 s`, `1.3 s` or `0.031 s`."""
    return duration(seconds) if seconds >= 10 else f"{seconds:#.2g} s"
