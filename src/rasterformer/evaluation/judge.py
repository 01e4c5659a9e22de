"""From a trained image-to-image model and held-out images to its report: draw samples, then measure them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from rasterformer.data.imageset import ImageSet
from rasterformer.diffusion.image_denoiser import ImageDenoiser
from rasterformer.drawing.canvas import visible_source
from rasterformer.drawing.options import DrawingOptions, need_options
from rasterformer.errors import ConfigError
from rasterformer.evaluation.image_to_image import super_resolution_report
from rasterformer.evaluation.image_to_image_report import ImageToImageReport
from rasterformer.evaluation.likelihood import LikelihoodReport
from rasterformer.evaluation.restoration import restoration_report
from rasterformer.interfaces import Batch, OnStep
from rasterformer.system import System
from rasterformer.tasks import SuperResolution, task_name


def judge_samples(
    system: System,
    held_out: ImageSet,
    training: ImageSet,
    likelihood: LikelihoodReport,
    *,
    num_images: int,
    n: int,
    temperature: float = 1.0,
    steps: int | None = None,
    seed: int,
    with_frechet: bool,
    on_step: OnStep | None = None,
) -> ImageToImageReport:
    """Draws n samples from the sources of the first held-out images, and reports what they are worth.

    Each is drawn by the class and the caption of its image, too, where the model takes them.

    Args:
        system: has a task.
        held_out: the images, with captions where the model takes some; fewer than `num_images` are taken as they are.
        training: to look for the nearest training image in.
        likelihood: of the same system, for the head of the report.
        num_images: sources.
        n: samples of each.
        temperature, steps, seed: as in `System.sample`; a model refuses what is not for its kind.
        with_frechet: also FD-EffLite0.
        on_step: told (positions done, positions in all).

    Raises:
        ConfigError: the system has no task, or temperature or steps are not for it.
        DataError: fewer than 2 images, or no captions for a model that takes some.
        MissingExtraError: an optional package is missing.
    """
    task = system.recipe.task
    if task is None:
        raise ConfigError("this model has no task: there are no sources to draw samples from.")
    options = DrawingOptions(temperature=temperature, steps=steps)
    need_options(system, options)
    index = torch.arange(min(num_images, len(held_out)))
    batch = held_out.batch(index, use_labels=system.recipe.data.use_labels)
    batch = system.with_source(batch, first=0, purpose="held-out source", seed=0)
    cond = batch.cond
    if system.takes_text:
        cond = system.with_captions(cond.to(system.device), held_out.captions_of(index))
    samples = system.draw_from(cond, n=n, temperature=temperature, steps=steps, seed=seed, on_step=on_step)
    common: dict[str, Any] = {
        "originals": batch.images,
        "samples": samples,
        "bits_per_dim": likelihood.bits_per_dim,
        "interval": likelihood.interval,
        "model": likelihood.model,
        "dataset": f"{held_out.name}, {held_out.split}",
        "settings": _settings(system, options) | {"seed": seed},
        "with_frechet": with_frechet,
    }
    assert batch.cond.source is not None, "a task makes sources"
    if not isinstance(task, SuperResolution):
        shown = visible_source(batch.cond, (batch.images.shape[2], batch.images.shape[3]))
        report = restoration_report(task=task_name(task), shown=shown, known=batch.cond.known, **common)
        return replace(report, bound=likelihood.bound)
    everything = Batch(training.images(slice(None)))
    everything = system.with_source(everything, first=0, purpose="training source", seed=0)
    assert everything.cond.source is not None, "a task makes sources"
    report = super_resolution_report(
        sources=batch.cond.source,
        training_originals=everything.images,
        training_sources=everything.cond.source,
        factor=task.factor,
        **common,
    )
    return replace(report, bound=likelihood.bound)


def _settings(system: System, options: DrawingOptions) -> dict[str, Any]:
    if isinstance(system.model, ImageDenoiser):
        how = options.pixels
        return {"steps": how.num_steps, "sampler": how.sampler, "guidance_scale": how.guidance_scale}
    return {"temperature": options.temperature}
