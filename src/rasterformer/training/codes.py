"""Training a model over codes: the learner of stage 2. Images are tokenized once, and the codes kept in the run folder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rasterformer.autoregressive.noise import stream_seed
from rasterformer.code_sets import MakeCondition, compacted, count_codes, make_code_set
from rasterformer.codecs.vq.codec import CodeCodec
from rasterformer.codecs.vq.used import used_codes
from rasterformer.conditioning.coordinates import coordinate_codes
from rasterformer.data.codes import CodeBatch, CodeSet, code_batches, load_codes, save_codes
from rasterformer.data.imageset import ImageSet
from rasterformer.data.palette import label_colours
from rasterformer.data.png import image_grid
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.diffusion.image_denoiser import ImageDenoiser
from rasterformer.drawing import code_images
from rasterformer.drawing.canvas import source_sheet
from rasterformer.errors import DataError
from rasterformer.evaluation.code_likelihood import SAYS_NOTHING, says_nothing
from rasterformer.interfaces import Batch, Cond
from rasterformer.recipe import Recipe
from rasterformer.system import System
from rasterformer.tasks import Paired, task_name
from rasterformer.tokenizer import IMAGES_AT_A_TIME, Tokenizer
from rasterformer.training.captions import TEXTS_FOLDER, Captions
from rasterformer.training.precision import autocast
from rasterformer.training.system_learner import SystemLearner

STEPS = 25  # of samples drawn during training
LEVELS = 10  # of noise, drawn at most for each held-out image when a bound is measured during training


@dataclass(frozen=True)
class HeldOut:
    """What a model over codes is measured on.

    Args:
        codes: int64 [N, h, w], by the model's numbers.
        cond: classes.
        condition: int64 [N, hc, wc], codes of the sources. None: there are none.
        replaced_share: of the tokenizer's codes that the model does not number.
    """

    codes: Tensor
    cond: Cond
    condition: Tensor | None
    replaced_share: float


class CodesLearner(SystemLearner):
    """A system over codes, whose negative log-likelihood of codes, or an upper bound of it, is minimised.

    Args:
        system: its model is trained, its tokenizers are not.
        train_set: images to learn from.
        held_out: images to measure on.
        cache: file for the codes of train_set; the states of captions lie beside it. None: both are made anew.
        code_set: the codes of train_set, where they are there already. None: they are made, or read from the cache.
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
        cache: Path | None = None,
        code_set: CodeSet | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.system, self.train_set, self.held_out = system, train_set, held_out
        self.recipe = system.recipe
        self.networks = {"model": system.model}
        self.data_fingerprint = _fingerprint(train_set, system.tokenizers)
        self.cache, self.code_set, self.say = cache, code_set, say
        self.measured_on: HeldOut | None = None
        assert isinstance(system.codec, CodeCodec), "a system over codes"
        self.codec = system.codec
        self.captions: Captions | None = None
        if system.takes_text:
            texts = None if cache is None else cache.with_name(TEXTS_FOLDER)
            self.captions = Captions(system, train_set, held_out, folder=texts)
            self.data_fingerprint = self.captions.fingerprint_with(self.data_fingerprint)

    def batches(self, start_step: int) -> Iterator[tuple[Tensor, Cond]]:
        """Codes with their conditions, or windows of them; images and captions become numbers here, before the first step."""
        training, data = self.recipe.training, self.recipe.data
        if self.captions is not None:
            self.captions.read(device=self.device, say=self.say)
        window = code_images.window_of(self.system)
        batches = code_batches(
            self._code_set(),
            batch_size=training.batch_size,
            seed=training.seed,
            start_step=start_step,
            flip_prob=data.flip_prob,
            use_labels=data.use_labels,
            window=None if window == self.codec.grid else window,
        )
        return (self._with_cond(batch, step) for step, batch in enumerate(batches, start=start_step))

    def accumulate_gradients(self, batch: tuple[Tensor, Cond], step: int) -> dict[str, float]:
        """Adds the gradients of a batch, part by part; returns its nats per code."""
        training = self.recipe.training
        codes, cond = batch
        rng = torch.Generator().manual_seed(stream_seed(training.seed, "hidden codes", step))
        order, model = code_images.order_of(self.system), self.system.model
        x = codes.to(self.device).flatten(1)[:, order, None]
        cond = cond.to(self.device)
        size, nats = len(x) // training.accumulation_steps, 0.0
        for first in range(0, len(x), size):
            rows = slice(first, first + size)
            with autocast(training, self.device):
                loss = model.loss(x[rows], cond.rows(rows), rng=rng)
            (loss.total * (len(x[rows]) / len(x))).backward()
            nats += float(loss.nats.sum())
        return {self._figure: nats / x.numel()}

    def measure(self, model: nn.Module, limit: int | None) -> dict[str, float]:
        """Nats per code of held-out images, given their conditions: exact, or an upper bound."""
        count = len(self.held_out) if limit is None else min(limit, len(self.held_out))
        seen = self._held_out_codes(count)
        codes, cond, condition = seen.codes, seen.cond, seen.condition
        system, total = self.with_weights(model), 0.0
        for index in torch.arange(count).split(IMAGES_AT_A_TIME):
            part = None if condition is None else condition[index]
            here = cond.rows(index).to(self.device)
            if self.system.takes_text:
                here = system.with_captions(here, self.held_out.captions_of(index))
            assert not isinstance(system.model, ImageDenoiser), "a model over codes"
            nats = code_images.grid_nats(system, system.model, codes[index], here, part, levels=self._levels)
            total += float(nats.double().sum())
        return {f"held_out_{self._figure}": total / codes.numel()}

    def sheet(self, model: nn.Module) -> Tensor:
        """Sixteen samples, or samples between their conditions and the originals."""
        system, seed = self.with_weights(model), self.recipe.training.seed
        if self.recipe.task is None:
            shown = torch.arange(16) % len(self.held_out)
            text = [caption or None for caption in self.held_out.captions_of(shown)] if system.takes_text else None
            steps = min(STEPS, system.model.process.num_steps) if isinstance(system.model, CodeDenoiser) else None
            return image_grid(system.sample(16, seed=seed, text=text, steps=steps, as_tensor=True), scale=2)
        index = torch.arange(min(8, len(self.held_out)))
        batch = self._with_source(self.held_out.batch(index, use_labels=self.recipe.data.use_labels), 0)
        cond = batch.cond
        if system.takes_text:
            cond = system.with_captions(cond, self.held_out.captions_of(index))
        samples = system.draw_from(cond, n=3, seed=seed)
        if isinstance(self.recipe.task, Paired) and self.recipe.task.source_reduction == "nearest":
            assert batch.cond.source is not None, "a paired task has sources"
            batch = Batch(batch.images, replace(batch.cond, source=label_colours(batch.cond.source)))
        return source_sheet(batch, samples, scale=2)

    def counts(self) -> dict[str, Tensor]:
        """Of a diffusion model, the losses by level of noise, which decide what is drawn."""
        model = self.system.model
        return model.step_sampler.state() if isinstance(model, CodeDenoiser) else {}

    def load_counts_(self, counts: Mapping[str, Tensor]) -> None:
        """Goes on where a checkpoint was written."""
        model = self.system.model
        if isinstance(model, CodeDenoiser):
            model.step_sampler.load_state_(counts)

    def frozen_tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tokenizers' weights, so that a checkpoint needs nothing else."""
        return self.system.frozen_tensors()

    def headline(self, figures: Mapping[str, Any]) -> str:
        """Likelihood of the codes of held-out images."""
        task, length = self.recipe.task, math.prod(self.codec.x_shape)
        nats = figures[f"held_out_{self._figure}"]
        given = "" if task is None else f" given their conditions ({task_name(task)})"
        side = self.system.image_size
        vocab_size = self.codec.vocab_size
        verdict = f" That is {SAYS_NOTHING}." if says_nothing(nats, math.log(vocab_size)) else ""
        bits = nats * length / math.log(2) / side**2
        measured = "codes"
        if self.codec.used is not None:
            share = self._held_out_codes(figures["images"]).replaced_share
            measured = f"codes after replacement of {share:.2%} of them, which never occur in the training images"
        of_codes = (
            f"Exact likelihood of {measured}{given}: **{nats:.4f} nats per code**"
            if self.system.likelihood_bound == "exact"
            else f"Upper bound of the negative log-likelihood of {measured}, estimated from "
            f"{self._levels} levels of noise for each image: **{nats:.4f} nats per code**"
        )
        return (
            f"{of_codes} ({vocab_size:,} codes; knowing nothing would cost {math.log(vocab_size):.4f}), "
            f"{bits:.4f} bits per pixel for the codes of an image, on the "
            f"first {figures['images']:,} of {len(self.held_out):,} held-out images ({self.held_out.split_origin}; "
            f"{self.held_out.preprocessing}). It is no likelihood of pixels.{verdict} `rasterformer evaluate RUN --data "
            f"{self.recipe.data.path}` measures all of them."
        )

    @property
    def _levels(self) -> int | None:
        """Levels of noise that a bound is measured from; None: the likelihood is exact."""
        model = self.system.model
        return min(LEVELS, model.process.num_steps) if isinstance(model, CodeDenoiser) else None

    @property
    def _figure(self) -> str:
        """What the log calls nats per code."""
        return "nats_per_code" if self.system.likelihood_bound == "exact" else "nats_per_code_upper_bound"

    def _code_set(self) -> CodeSet:
        """The codes of the training images, by the model's numbers; they are kept for the next time."""
        tokenizers, kept = self.system.tokenizers, None
        if self.code_set is None and self.cache is not None:
            kept = read_codes(self.cache, self.train_set, tokenizers, self.say)
        made = self.code_set if kept is None else kept
        if made is None:
            condition = None if self.recipe.task is None else self._condition
            made = make_codes(self.recipe, self.train_set, tokenizers, condition=condition, say=self.say)
        if kept is None and self.cache is not None:
            save_codes(self.cache, made)
        return made if self.codec.used is None else compacted(made, self.codec.used)

    def _condition(self, batch: Batch, index: Tensor, mirrored: bool) -> Tensor:
        """The codes of the sources of some training images, which may be mirrored already."""
        with_source = self._with_source(batch, int(index[0]) + (len(self.train_set) if mirrored else 0))
        condition = self.system.condition_of(with_source.cond)
        assert condition is not None, "a task has sources"
        return condition

    def _with_source(self, batch: Batch, first: int) -> Batch:
        return self.system.with_source(batch, first=first, purpose="source of codes", seed=self.recipe.training.seed)

    def _held_out_codes(self, count: int) -> HeldOut:
        """Of the first so many held-out images, made once."""
        if self.measured_on is not None and len(self.measured_on.codes) == count:
            return self.measured_on
        codes, conditions, labels = [], [], []
        for index in torch.arange(count).split(IMAGES_AT_A_TIME):
            batch = self.held_out.batch(index, use_labels=self.recipe.data.use_labels)
            batch = self.system.with_source(batch, first=int(index[0]), purpose="held-out source", seed=0)
            codes.append(self.system.tokenizers["tokenizer"].encode(batch.images))
            condition = self.system.condition_of(batch.cond)
            if condition is not None:
                conditions.append(condition)
            if batch.cond.label is not None:
                labels.append(batch.cond.label)
        cond, own, used = Cond(label=torch.cat(labels) if labels else None), torch.cat(codes), self.codec.used
        self.measured_on = HeldOut(
            codes=self.codec.from_tokenizer(own),
            cond=cond,
            condition=torch.cat(conditions) if conditions else None,
            replaced_share=0.0 if used is None else used.share_replaced(own),
        )
        return self.measured_on

    def _with_cond(self, batch: CodeBatch, step: int) -> tuple[Tensor, Cond]:
        """A batch of codes with its condition, as the model takes them."""
        codes, condition, labels, corner = batch
        if code_images.is_told_places(self.system):
            condition = self._places(corner, codes.shape[1:])
        cond = Cond(label=labels, codes=None if condition is None else condition.flatten(1))
        return codes, cond if self.captions is None else self.captions.added(cond, step)

    def _places(self, corner: Tensor, size: torch.Size) -> Tensor:
        """Coordinates of the cells of windows that begin at corners [B, 2]: int64 [B, h, w]."""
        model = self.recipe.model
        places = coordinate_codes(self.codec.grid, self.system.tokenizers["tokenizer"].factor, model.num_coordinates)
        return torch.stack([places[r : r + size[0], c : c + size[1]] for r, c in corner.tolist()])


def read_codes(
    cache: Path, train_set: ImageSet, tokenizers: Mapping[str, Tokenizer], say: Callable[[str], None] = print
) -> CodeSet | None:
    """Returns the codes of the training images that are kept in a file; None where there is none, or it does not fit.

    Args:
        cache: a codes file; it stays as it is.
        train_set: the images.
        tokenizers: as `make_codes`.
        say: told why a file does not fit.
    """
    if not cache.is_file():
        return None
    try:
        found = load_codes(cache, tokenizer=tokenizers["tokenizer"].fingerprint)
    except DataError as error:
        say(f"the codes in {cache} are made again: {error}")
        return None
    if found.images == _fingerprint(train_set, tokenizers):
        return found
    say(f"the codes in {cache} are made again: they are of other images or of another condition")
    return None


def make_codes(
    recipe: Recipe,
    train_set: ImageSet,
    tokenizers: Mapping[str, Tokenizer],
    *,
    condition: MakeCondition | None = None,
    say: Callable[[str], None] = print,
) -> CodeSet:
    """Returns the codes of the training images, by the tokenizer's numbers.

    Args:
        recipe: says whether images are mirrored and classes kept.
        train_set: the images.
        tokenizers: `tokenizer`, and `condition_tokenizer` where sources have their own.
        condition: makes the codes of the sources. None: there are no sources.
        say: where sentences for people go.
    """
    used = tokenizers.get("condition_tokenizer", tokenizers["tokenizer"])
    say(f"tokenizing {len(train_set):,} images once")
    made = make_code_set(
        tokenizers["tokenizer"],
        train_set,
        mirror=recipe.data.flip_prob > 0,
        condition=condition,
        condition_vocab_size=None if condition is None else used.vocab_size,
        condition_tokenizer=None if condition is None else used.fingerprint,
        use_labels=recipe.data.use_labels,
    )
    return replace(made, images=_fingerprint(train_set, tokenizers))


def codes_that_occur(code_set: CodeSet, say: Callable[[str], None]) -> Tensor:
    """Returns the tokenizer's numbers of the codes in the set, int64 [K'], and says how many are dropped."""
    used = used_codes(count_codes(code_set))
    say(f"{len(used):,} of {code_set.vocab_size:,} codes occur in the training images; the others are dropped")
    return used


def _fingerprint(train_set: ImageSet, tokenizers: Mapping[str, Tokenizer]) -> str:
    prints = [train_set.fingerprint, *(part.fingerprint for part in tokenizers.values())]
    return hashlib.sha256(" ".join(prints).encode()).hexdigest()
