"""Training a tokenizer: the learner of stage 1, an autoencoder with a codebook and, for VQGAN, its discriminator."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rasterformer import registry
from rasterformer.autoregressive.noise import stream_seed
from rasterformer.codecs.vq.autoencoder import VQAutoencoder
from rasterformer.codecs.vq.codec import network_input, to_pictures
from rasterformer.codecs.vq.usage import CodeUsage
from rasterformer.data.imageset import ImageSet
from rasterformer.data.order import training_batches
from rasterformer.data.palette import label_colours
from rasterformer.data.png import image_grid
from rasterformer.evaluation.svg_curve import svg_curve
from rasterformer.interfaces import Batch
from rasterformer.tokenizer import IMAGES_AT_A_TIME, Tokenizer
from rasterformer.training.learner import Learner
from rasterformer.training.precision import autocast

SHOWN = 16  # images in a sheet


class TokenizerLearner(Learner):
    """A tokenizer that learns to reproduce images from few codes.

    Args:
        tokenizer: its autoencoder is trained.
        train_set: images to learn from.
        held_out: images to measure on.
    """

    def __init__(self, tokenizer: Tokenizer, train_set: ImageSet, held_out: ImageSet) -> None:
        self.tokenizer, self.train_set, self.held_out = tokenizer, train_set, held_out
        self.recipe = tokenizer.recipe
        self.data_fingerprint = train_set.fingerprint
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(self.recipe.training.seed, "discriminator", 0))
            self.loss = registry.model_module(self.recipe.system).TokenizerLoss(self.recipe.model)
        self.networks: dict[str, nn.Module] = {"model": tokenizer.autoencoder}
        if self.loss.discriminator is not None:
            self.networks["discriminator"] = self.loss.discriminator
        self.usage = CodeUsage(tokenizer.vocab_size)  # of the epoch that is going on
        self.last_epoch: dict[str, float] = {}
        self.epoch_counts: Tensor | None = None  # int64 [K], of the last whole epoch
        self.images_seen = 0
        self.learned_from: list[Any] = []  # what the codebook may learn from when the step is over

    def counts(self) -> dict[str, Tensor]:
        """How often codes were used in the epoch that is going on and in the last whole one, for checkpoints."""
        found = {"usage": self.usage.counts, "images_seen": torch.tensor(self.images_seen)}
        return found if self.epoch_counts is None else found | {"last_epoch": self.epoch_counts}

    def load_counts_(self, counts: Mapping[str, Tensor]) -> None:
        """Goes on counting where a checkpoint was written."""
        self.usage.counts, self.images_seen = counts["usage"].clone(), int(counts["images_seen"])
        if "last_epoch" in counts:
            whole = CodeUsage(self.tokenizer.vocab_size)
            whole.counts = counts["last_epoch"].clone()
            self.epoch_counts, self.last_epoch = whole.counts, whole.summary()

    def to(self, device: torch.device) -> TokenizerLearner:
        """Moves the networks."""
        self.tokenizer.autoencoder.to(device)
        self.loss.to(device)
        return self

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Images alone."""
        training = self.recipe.training
        batches = training_batches(
            self.train_set,
            batch_size=training.batch_size,
            seed=training.seed,
            start_step=start_step,
            flip_prob=self.recipe.data.flip_prob,
            use_labels=False,
        )
        return (Batch(self.tokenizer.seen(batch.images)) for batch in batches)

    @torch.no_grad()
    def prepare(self) -> None:
        """Gives the codebook its first values from data, where the recipe wants it."""
        quantiser = self.tokenizer.autoencoder.quantiser
        if not quantiser.needs_initialising:
            return
        self.tokenizer.autoencoder.eval()  # dropout here would be random without a seed
        count = min(len(self.train_set), max(64, 4 * self.tokenizer.vocab_size // self._codes_per_image))
        vectors = [
            self.tokenizer.autoencoder.encode(self._seen(self.tokenizer.seen(self.train_set.images(part))))
            for part in torch.arange(count).split(IMAGES_AT_A_TIME)
        ]
        quantiser.initialise_(torch.cat(vectors).float(), rng=self._rng("codebook", 0))

    def accumulate_gradients(self, batch: Batch, step: int) -> dict[str, float]:
        """Adds the gradients of a batch, part by part; returns the losses' parts."""
        training = self.recipe.training
        parts = batch.images.chunk(training.accumulation_steps)
        self.learned_from, sums = [], dict[str, float]()
        for images in parts:
            share = len(images) / len(batch.images)
            with autocast(training, self.device):
                figures, encoded = self.loss.accumulate_gradients(
                    self.tokenizer.autoencoder, images.to(self.device), batch=step, share=share
                )
            self.learned_from.append(encoded)
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + share * value
        return sums

    def finish_step(self, step: int) -> dict[str, float]:
        """Lets the codebook learn what it does not learn by gradients, and counts its codes."""
        z = torch.cat([encoded.z for encoded in self.learned_from])
        codes = torch.cat([encoded.codes for encoded in self.learned_from])
        restarted = self.tokenizer.autoencoder.quantiser.update_(z, codes, rng=self._rng("restart", step))
        self.usage.add(codes)
        self.images_seen += len(codes)
        if self.images_seen >= len(self.train_set):
            self.last_epoch = self.usage.summary()
            self.epoch_counts = self.usage.counts.clone()
            self.usage.reset()
            self.images_seen = 0
        return {"restarted_codes": float(restarted)} if self.recipe.model.restart_after is not None else {}

    @torch.no_grad()
    def measure(self, model: nn.Module, limit: int | None) -> dict[str, float]:
        """PSNR in dB (of labels: the share that is right), losses, and how many codes were used, also in the last epoch."""
        assert isinstance(model, VQAutoencoder)
        count = len(self.held_out) if limit is None else min(limit, len(self.held_out))
        usage, sums = CodeUsage(self.tokenizer.vocab_size), dict[str, float]()
        for index in torch.arange(count).split(IMAGES_AT_A_TIME):
            images = self.tokenizer.seen(self.held_out.images(index)).to(self.device)
            seen = self._seen(images)
            quantised = model.quantiser(model.encode(seen))
            output = model.decode(quantised.values).float()
            usage.add(quantised.codes)
            shown = to_pictures(output, self.recipe.model.pictures)
            if self.recipe.model.pictures == "labels":
                figures = {"label_accuracy": float((shown[:, 0] == images[:, 0]).float().mean())}
            else:
                errors = (shown.double() - images.double()).square().mean((1, 2, 3)).clamp(min=1e-12)
                figures = {"psnr_db": float((20 * math.log10(255) - 10 * errors.log10()).mean())}
            figures |= self.loss.reconstruction_loss(images, seen, output)[1]
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value * len(index) / count
        found = {f"held_out_{name}": value for name, value in sums.items()}
        found |= {f"held_out_{name}": value for name, value in usage.summary().items()}
        return found | {f"epoch_{name}": value for name, value in self.last_epoch.items()}

    @torch.no_grad()
    def sheet(self, model: nn.Module) -> Tensor:
        """Held-out images, each above what remained of it."""
        images = self.tokenizer.seen(self.held_out.images(torch.arange(min(SHOWN, len(self.held_out)))))
        remade = replace(self.tokenizer, autoencoder=model).reconstruct(images)  # type: ignore[arg-type]
        if self.recipe.model.pictures == "labels":
            images, remade = label_colours(images), label_colours(remade)
        return image_grid(torch.cat([images, remade], 2), scale=2)

    def config(self, steps: int) -> dict[str, Any]:
        """What config.json says of the model after so many steps."""
        return replace(self.tokenizer, steps=steps).config()

    def headline(self, figures: Mapping[str, Any]) -> str:
        """What remains of held-out images, and how much of the codebook is in use."""
        if self.recipe.model.pictures == "labels":
            quality = f"**{100 * figures['held_out_label_accuracy']:.2f} % of the labels right**"
        else:
            quality = f"PSNR **{figures['held_out_psnr_db']:.2f} dB**"
        perceptual = "none" if self.loss.perceptual is None else self.loss.perceptual.name
        epoch = (
            f"While it was learning, {100 * figures['epoch_share_used']:.1f} % of them were used in the last whole epoch "
            f"(restarts included), perplexity {figures['epoch_perplexity']:.1f}, {figures['epoch_num_dead']:.0f} never. "
            if "epoch_share_used" in figures
            else ""
        )
        used = (
            f"On these images {100 * figures['held_out_share_used']:.1f} % of the {self.tokenizer.vocab_size:,} codes are used, "
            f"perplexity {figures['held_out_perplexity']:.1f}. "
        )
        bits = math.log2(self.tokenizer.vocab_size)
        return (
            f"Reconstructions, each of {self._codes_per_image} codes ({self._codes_per_image * bits:.0f} bits before entropy "
            f"coding): {quality}, on the first {figures['images']:,} of {len(self.held_out):,} held-out images "
            f"({self.held_out.split_origin}; {self.held_out.preprocessing}). Perceptual distance in the loss: {perceptual}.\n\n"
            f"{used}{epoch}`rasterformer reconstruct RUN --data {self.recipe.data.path}` measures more."
        )

    def next_command(self, folder: Path) -> str:
        """Trains stage 2 on the codes; of a tokenizer of maps, on pictures drawn from them."""
        data, size = self.recipe.data.path, self.recipe.data.image_size
        if self.recipe.model.pictures != "rgb" or self.recipe.task is not None:
            return (
                f"rasterformer train vqgan-conditional --model.tokenizer TOKENIZER --model.condition_tokenizer {folder} "
                f"--data IMAGES --data.image_size {size}"
            )
        return f"rasterformer train vqgan-prior --model.tokenizer {folder} --data {data} --data.image_size {size}"

    def write_pictures(self, folder: Path) -> list[str]:
        """How often each code was used in the last epoch."""
        if self.epoch_counts is None:
            return []
        counts = self.epoch_counts.sort(descending=True).values.tolist()
        curve = svg_curve(
            {"codes": list(enumerate(counts))},
            x_label="code, the most frequent first",
            y_label="times in the last epoch",
        )
        namespace = 'xmlns="http://www.w3.org/2000/svg"'
        (folder / "codebook.svg").write_text(curve.replace("<svg ", f"<svg {namespace} ", 1), encoding="utf-8")
        return ["![how often each code was used](codebook.svg)"]

    def ship(self, folder: Path, steps: int) -> None:
        """Writes the model folder."""
        self.tokenizer.steps = steps
        self.tokenizer.save(folder)

    def _seen(self, images: Tensor) -> Tensor:
        model = self.recipe.model
        return network_input(images.to(self.device), model.pictures, model.num_labels)

    @property
    def _codes_per_image(self) -> int:
        return (self.tokenizer.image_size // self.tokenizer.factor) ** 2

    def _rng(self, purpose: str, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(stream_seed(self.recipe.training.seed, purpose, step))
