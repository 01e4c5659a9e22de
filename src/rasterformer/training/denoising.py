"""Training a diffusion model of pixels: the learner of `ImageDenoiser`s. Captions are read once, before the first step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rasterformer.autoregressive.noise import stream_seed
from rasterformer.data.imageset import ImageSet
from rasterformer.data.order import training_batches
from rasterformer.data.png import image_grid
from rasterformer.diffusion.image_denoiser import ImageDenoiser
from rasterformer.drawing.canvas import source_sheet
from rasterformer.drawing.stages import image_nats
from rasterformer.evaluation.likelihood import num_dims
from rasterformer.interfaces import Batch
from rasterformer.system import System
from rasterformer.tasks import task_name
from rasterformer.training.captions import TEXTS_FOLDER, Captions
from rasterformer.training.precision import autocast
from rasterformer.training.system_learner import SystemLearner

LEVELS = 10  # of noise, drawn for each held-out image when the bound is measured during training
STEPS = 25  # of samples drawn during training
IMAGES_AT_A_TIME = 32


class DenoisingLearner(SystemLearner):
    """A system of pixels whose network learns what is under noise.

    Args:
        system: its model is trained.
        train_set: images to learn from.
        held_out: images to measure on.
        folder: of the run, where the states of captions are kept. None: in memory only.
        say: where sentences for people go.

    Raises:
        DataError: the model is conditioned on captions, and there are none.
        MissingExtraError: it is, and the text encoder is not installed.
    """

    def __init__(
        self,
        system: System,
        train_set: ImageSet,
        held_out: ImageSet,
        *,
        folder: Path | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.system, self.train_set, self.held_out = system, train_set, held_out
        self.recipe, self.say = system.recipe, say
        self.networks = {"model": system.model}
        self.data_fingerprint = train_set.fingerprint
        self.captions: Captions | None = None
        if system.takes_text:
            texts = None if folder is None else folder / TEXTS_FOLDER
            self.captions = Captions(system, train_set, held_out, folder=texts)
            self.data_fingerprint = self.captions.fingerprint_with(self.data_fingerprint)

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Images with their classes, sources and captions."""
        if self.captions is not None:
            self.captions.read(device=self.device, say=self.say)
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
            batch = self.system.with_source(batch, first=first, purpose="training source", seed=training.seed)
            yield batch if self.captions is None else replace(batch, cond=self.captions.added(batch.cond, step))

    def accumulate_gradients(self, batch: Batch, step: int) -> dict[str, float]:
        """Adds the gradients of a batch, part by part; returns its weighted squared error."""
        training, images = self.recipe.training, batch.images
        rng = torch.Generator().manual_seed(stream_seed(training.seed, "noise", step))
        size, total = len(images) // training.accumulation_steps, 0.0
        for first in range(0, len(images), size):
            rows = slice(first, first + size)
            x = self.system.codec.encode(images[rows]).to(self.device)
            with autocast(training, self.device):
                loss = self.system.model.loss(x, batch.cond.rows(rows).to(self.device), rng=rng)
            (loss.total * (size / len(images))).backward()
            total += float(loss.total.detach()) * size
        return {"loss": total / len(images)}

    def cost(self) -> str:
        """Memory of a training step, counted, and its time, measured on held-out images."""
        training, count = self.recipe.training, self.recipe.training.batch_size
        assert isinstance(self.system.model, ImageDenoiser), "what this learner trains"
        bytes_of_step = self.system.model.step_bytes(count // training.accumulation_steps)
        weights = sum(weight.numel() * weight.element_size() for weight in self.system.model.parameters())
        batch = self._held_out(torch.arange(count) % len(self.held_out))
        for _ in range(2):  # the first one sets things up
            start = time.perf_counter()
            self.accumulate_gradients(batch, 0)
            seconds = time.perf_counter() - start
        self.system.model.zero_grad()
        return (
            f"a step of {count} images: about {bytes_of_step / 2**20:,.0f} MiB, and {5 * weights / 2**20:,.0f} MiB of weights, "
            f"their gradients, averages and the optimiser; about {seconds:.2f} s of gradients (measured), {3600 / seconds:,.0f} "
            "steps an hour"
        )

    def measure(self, model: nn.Module, limit: int | None) -> dict[str, float]:
        """An upper bound of the bits/dim of held-out images, given their sources, classes and captions."""
        count = len(self.held_out) if limit is None else min(limit, len(self.held_out))
        system, nats, dims = self.with_weights(model), 0.0, 0
        for index in torch.arange(count).split(IMAGES_AT_A_TIME):
            batch = self._held_out(index)
            nats += float(image_nats(system, batch.images, [batch.cond], levels=LEVELS).sum())
            dims += int(num_dims(batch).sum())
        return {"held_out_bits_per_dim_upper_bound": nats / dims / math.log(2)}

    def sheet(self, model: nn.Module) -> Tensor:
        """Sixteen samples, by the captions of held-out images where there are some, or samples beside their sources."""
        system, seed = self.with_weights(model), self.recipe.training.seed
        if self.recipe.task is None:
            shown = torch.arange(16) % len(self.held_out)
            text = [caption or None for caption in self.held_out.captions_of(shown)] if system.takes_text else None
            return image_grid(system.sample(16, seed=seed, text=text, steps=STEPS, as_tensor=True), scale=3)
        batch = self._held_out(torch.arange(min(8, len(self.held_out))))
        return source_sheet(batch, system.draw_from(batch.cond, n=3, seed=seed, steps=STEPS), scale=2)

    def headline(self, figures: Mapping[str, Any]) -> str:
        """The bound on the likelihood of held-out images."""
        task = self.recipe.task
        given = "" if task is None else f" of images given their sources ({task_name(task)})"
        return (
            f"Upper bound on the negative log-likelihood{given}, estimated from {LEVELS} levels of noise for each image: "
            f"**{figures['held_out_bits_per_dim_upper_bound']:.4f} bits/dim** over {self.system.num_dims:,} dimensions, on the "
            f"first {figures['images']:,} of {len(self.held_out):,} held-out images ({self.held_out.split_origin}; "
            f"{self.held_out.preprocessing}). What is trained is a squared error, which has other weights: a better bound is not "
            f"always a better picture. `rasterformer evaluate RUN --data {self.recipe.data.path}` measures all of them."
        )

    def _held_out(self, index: Tensor) -> Batch:
        """Held-out images with all that they are drawn by."""
        batch = self.held_out.batch(index, use_labels=self.recipe.data.use_labels)
        batch = self.system.with_source(batch, first=int(index[0]), purpose="held-out source", seed=0)
        if not self.system.takes_text:
            return batch
        cond = self.system.with_captions(batch.cond.to(self.device), self.held_out.captions_of(index))
        return replace(batch, cond=cond)
