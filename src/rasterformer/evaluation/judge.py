"""From a trained image-to-image model and held-out images to its report: draw samples, then measure them."""

from __future__ import annotations

from typing import Any

import torch

from rasterformer.data.imageset import ImageSet
from rasterformer.errors import ConfigError
from rasterformer.evaluation.image_to_image import super_resolution_report
from rasterformer.evaluation.image_to_image_report import ImageToImageReport
from rasterformer.evaluation.likelihood import LikelihoodReport
from rasterformer.evaluation.restoration import restoration_report
from rasterformer.image_to_image import visible_source
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
    temperature: float,
    seed: int,
    with_frechet: bool,
    on_step: OnStep | None = None,
) -> ImageToImageReport:
    """Draws n samples from the sources of the first held-out images, and reports what they are worth.

    Args:
        system: has a task.
        held_out: the images; fewer than `num_images` are taken as they are.
        training: to look for the nearest training image in.
        likelihood: of the same system, for the head of the report.
        num_images: sources.
        n: samples of each.
        temperature, seed: as in `System.sample`.
        with_frechet: also FD-EffLite0.
        on_step: told (positions done, positions in all).

    Raises:
        ConfigError: the system has no task.
        DataError: fewer than 2 images.
        MissingExtraError: an optional package is missing.
    """
    task = system.recipe.task
    if task is None:
        raise ConfigError("this model has no task: there are no sources to draw samples from.")
    count = min(num_images, len(held_out))
    batch = held_out.batch(torch.arange(count), use_labels=system.recipe.data.use_labels)
    batch = system.with_source(batch, first=0, purpose="held-out source", seed=0)
    samples = system.draw_from(batch.cond, n=n, temperature=temperature, seed=seed, on_step=on_step)
    common: dict[str, Any] = {
        "originals": batch.images,
        "samples": samples,
        "bits_per_dim": likelihood.bits_per_dim,
        "interval": likelihood.interval,
        "model": likelihood.model,
        "dataset": f"{held_out.name}, {held_out.split}",
        "settings": {"temperature": temperature, "seed": seed},
        "with_frechet": with_frechet,
    }
    assert batch.cond.source is not None, "a task makes sources"
    if not isinstance(task, SuperResolution):
        shown = visible_source(batch.cond, (batch.images.shape[2], batch.images.shape[3]))
        return restoration_report(task=task_name(task), shown=shown, known=batch.cond.known, **common)
    everything = Batch(training.images(slice(None)))
    everything = system.with_source(everything, first=0, purpose="training source", seed=0)
    assert everything.cond.source is not None, "a task makes sources"
    return super_resolution_report(
        sources=batch.cond.source,
        training_originals=everything.images,
        training_sources=everything.cond.source,
        factor=task.factor,
        **common,
    )
