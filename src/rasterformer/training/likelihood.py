"""Training by maximum likelihood of pixels: the learner of systems that give every image its exact probability."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rasterformer.data.imageset import ImageSet
from rasterformer.data.order import training_batches
from rasterformer.data.png import image_grid
from rasterformer.drawing.canvas import source_sheet
from rasterformer.evaluation.likelihood import num_dims
from rasterformer.interfaces import Batch
from rasterformer.system import System
from rasterformer.tasks import Inpaint, task_name
from rasterformer.training.precision import autocast
from rasterformer.training.system_learner import SystemLearner


class LikelihoodLearner(SystemLearner):
    """A system whose negative log-likelihood is minimised.

    Args:
        system: its model is trained.
        train_set: images to learn from.
        held_out: images to measure on.
    """

    def __init__(self, system: System, train_set: ImageSet, held_out: ImageSet) -> None:
        self.system, self.train_set, self.held_out = system, train_set, held_out
        self.recipe = system.recipe
        self.networks = {"model": system.model}
        self.data_fingerprint = train_set.fingerprint

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Images with their classes and sources."""
        training, data = self.recipe.training, self.recipe.data
        batches = training_batches(
            self.train_set,
            batch_size=training.batch_size,
            seed=training.seed,
            start_step=start_step,
            flip_prob=data.flip_prob,
            use_labels=data.use_labels,
        )
        for step, batch in enumerate(batches, start=start_step):
            first = step * training.batch_size
            yield self.system.with_source(batch, first=first, purpose="training source", seed=training.seed)

    def accumulate_gradients(self, batch: Batch, step: int) -> dict[str, float]:
        """Adds the gradients of a batch, part by part; returns its bits/dim."""
        return {"bits_per_dim": accumulate_gradients(self.system, batch)}

    def measure(self, model: nn.Module, limit: int | None) -> dict[str, float]:
        """Exact bits/dim of held-out images."""
        return {"held_out_bits_per_dim": held_out_bits_per_dim(self.with_weights(model), self.held_out, limit)}

    def sheet(self, model: nn.Module) -> Tensor:
        """Sixteen samples, or samples beside their sources."""
        system, seed = self.with_weights(model), self.recipe.training.seed
        if self.recipe.task is None:
            return image_grid(system.sample(16, seed=seed, as_tensor=True), scale=3)
        index = torch.arange(min(8, len(self.held_out)))
        batch = self.held_out.batch(index, use_labels=self.recipe.data.use_labels)
        batch = system.with_source(batch, first=0, purpose="held-out source", seed=0)
        return source_sheet(batch, system.draw_from(batch.cond, n=3, seed=seed), scale=3)

    def headline(self, figures: Mapping[str, Any]) -> str:
        """Exact likelihood of held-out images."""
        recipe, data = self.recipe, self.recipe.data
        given = "" if recipe.task is None else f" of images given their sources ({task_name(recipe.task)})"
        dims = f"{self.system.num_dims:,} dimensions"
        dims = f"the unknown of {dims}" if isinstance(recipe.task, Inpaint) else dims
        return (
            f"Exact likelihood{given}: **{figures['held_out_bits_per_dim']:.4f} bits/dim** over {dims}, on the "
            f"first {figures['images']:,} of {len(self.held_out):,} held-out images ({self.held_out.split_origin}; "
            f"{self.held_out.preprocessing}). `rasterformer evaluate RUN --data {data.path}` measures all of them."
        )


def accumulate_gradients(system: System, batch: Batch) -> float:
    """Adds the gradients of a batch, part by part; returns its bits/dim."""
    training, device = system.recipe.training, system.device
    size = len(batch.images) // training.accumulation_steps
    all_dims, nats = int(num_dims(batch).sum()), 0.0
    for first in range(0, len(batch.images), size):
        rows = slice(first, first + size)
        x, cond = system.codec.encode(batch.images[rows]).to(device), batch.cond.rows(rows).to(device)
        with autocast(training, device):
            loss = system.model.loss(x, cond, rng=None)
        (loss.total * (loss.dims.sum() / all_dims)).backward()  # a part counts by its dimensions
        nats += float(loss.nats.sum())
    return nats / all_dims / math.log(2)


def held_out_bits_per_dim(system: System, images: ImageSet, limit: int | None, *, batch_size: int = 32) -> float:
    """Exact bits/dim of the first `limit` held-out images, in float32."""
    count = len(images) if limit is None else min(limit, len(images))
    nats, dims = [], []
    for index in torch.arange(count).split(batch_size):
        batch = images.batch(index, use_labels=system.recipe.data.use_labels)
        batch = system.with_source(batch, first=int(index[0]), purpose="held-out source", seed=0)
        nats.append(system.symbol_nats(batch.images, batch.cond).double().sum((1, 2, 3)))
        dims.append(num_dims(batch))
    return float(torch.cat(nats).sum() / torch.cat(dims).sum() / math.log(2))
