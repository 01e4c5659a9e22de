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

from rasterformer.autoregressive.memory import SHARE, available_bytes, choose_batch
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
        """Images with their classes, sources and captions, which are read here, before the first step."""
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
        return (self._with_cond(batch, step) for step, batch in enumerate(batches, start=start_step))

    def accumulate_gradients(self, batch: Batch, step: int) -> dict[str, float]:
        """Adds the gradients of a batch, part by part; returns its weighted squared error."""
        rng, parts = self._noise(step), self.recipe.training.accumulation_steps
        size, total = len(batch.images) // parts, 0.0
        for first in range(0, len(batch.images), size):
            rows = slice(first, first + size)
            total += self._add_part(Batch(batch.images[rows], batch.cond.rows(rows)), 1 / parts, rng)
        return {"loss": total}

    def cost(self) -> str:
        """Memory of a training step, counted, and its time, measured on one part of a batch, of held-out images.

        What cannot fit into the free memory is not run.
        """
        parts, model = self.recipe.training.accumulation_steps, self._model
        size = self.recipe.training.batch_size // parts
        of_part, weights = model.step_bytes(size), sum(one.numel() * one.element_size() for one in model.parameters())
        others, free = 4 * weights, available_bytes(self.device)  # the weights are there already
        at_once = "" if parts == 1 else f", {size} at a time"
        memory = (
            f"a step of {size * parts} images{at_once}: about {_mebibytes(of_part)} (counted in float32), and "
            f"{_mebibytes(weights + others)} of weights, their gradients, averages and the optimiser"
        )
        if of_part + others > free:
            return (
                f"{memory}. That does not fit into the {_mebibytes(free)} that are free, and was not timed. Raise "
                "training.accumulation_steps, or make the model smaller."
            )
        batch = self._held_out(torch.arange(size) % len(self.held_out))
        for _ in range(2):  # the first one sets things up
            start = time.perf_counter()
            self._add_part(batch, 1 / parts, self._noise(0))
            seconds = parts * (time.perf_counter() - start)
        model.zero_grad()
        of_parts = "measured" if parts == 1 else f"one of {parts} parts was measured"
        return (
            f"{memory}; about {seconds:.2f} s of gradients ({of_parts}): at most {3600 / seconds:,.0f} steps an hour, for the "
            "optimiser, averages, captions and reading images are not in it"
        )

    def measure(self, model: nn.Module, limit: int | None) -> dict[str, float]:
        """An upper bound of the bits/dim of held-out images, given their sources, classes and captions."""
        count = len(self.held_out) if limit is None else min(limit, len(self.held_out))
        one, free = self._model.state_bytes(1), available_bytes(self.device)
        wished = 1 if one > SHARE * free else None  # no run is given up because memory is short for a while
        at_once = choose_batch(count, one, batch_size=wished, most=IMAGES_AT_A_TIME, available=free)
        system, nats, dims = self.with_weights(model), 0.0, 0
        for index in torch.arange(count).split(at_once):
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

    @property
    def _model(self) -> ImageDenoiser:
        assert isinstance(self.system.model, ImageDenoiser), "what this learner trains"
        return self.system.model

    def _noise(self, step: int) -> torch.Generator:
        """Of all that is random in a step but for dropout."""
        return torch.Generator().manual_seed(stream_seed(self.recipe.training.seed, "noise", step))

    def _add_part(self, part: Batch, share: float, rng: torch.Generator) -> float:
        """Adds the gradients of a part of a batch, of which it is such a share; returns its share of the loss."""
        x = self.system.codec.encode(part.images).to(self.device)
        with autocast(self.recipe.training, self.device):
            loss = self.system.model.loss(x, part.cond.to(self.device), rng=rng).total * share
        loss.backward()
        return float(loss.detach())

    def _with_cond(self, batch: Batch, step: int) -> Batch:
        """A batch of a step with sources and captions."""
        training = self.recipe.training
        first = step * training.batch_size
        batch = self.system.with_source(batch, first=first, purpose="training source", seed=training.seed)
        return batch if self.captions is None else replace(batch, cond=self.captions.added(batch.cond, step))

    def _held_out(self, index: Tensor) -> Batch:
        """Held-out images with all that they are drawn by."""
        batch = self.held_out.batch(index, use_labels=self.recipe.data.use_labels)
        batch = self.system.with_source(batch, first=int(index[0]), purpose="held-out source", seed=0)
        if not self.system.takes_text:
            return batch
        cond = self.system.with_captions(batch.cond.to(self.device), self.held_out.captions_of(index))
        return replace(batch, cond=cond)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
