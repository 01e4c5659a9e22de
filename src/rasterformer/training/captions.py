"""Captions of training and held-out images: read once by the text encoder, kept, and added to batches by their number."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from rasterformer.conditioning.text_cache import CachedTextEncoder
from rasterformer.data.imageset import ImageSet
from rasterformer.data.order import sample_index
from rasterformer.interfaces import Cond
from rasterformer.system import System

TEXTS_FOLDER = "texts"


class Captions:
    """The captions of a model that takes some. The system's text encoder becomes one that keeps what it has read.

    Args:
        system: it is told which text encoder it is trained with.
        train_set, held_out: their captions.
        folder: for the states of captions. None: they are kept in memory only.

    Raises:
        DataError: there are no captions.
        MissingExtraError: the text encoder is not installed.
    """

    def __init__(self, system: System, train_set: ImageSet, held_out: ImageSet, *, folder: Path | None) -> None:
        self.system, self.train_set, self.held_out = system, train_set, held_out
        for images in (train_set, held_out):
            images.captions_of(torch.arange(0))
        system.with_text(Cond(), "", 1)  # loads the encoder: what is missing is to be said now, not after an hour
        assert system.text_encoder is not None, "loaded above"
        self.encoder = CachedTextEncoder(system.text_encoder, folder)
        system.text_encoder = self.encoder

    def fingerprint_with(self, images: str) -> str:
        """Returns that of training images together with their captions and what reads them."""
        captions = self.train_set.captions_of(torch.arange(len(self.train_set)))
        return hashlib.sha256("\0".join([images, self.encoder.fingerprint, *captions]).encode()).hexdigest()

    def read(self, *, device: torch.device, say: Callable[[str], None]) -> None:
        """Reads every caption once: no step waits for the text encoder."""
        config = self.system.recipe.text
        assert config is not None, "the model takes captions"
        sets = (self.train_set, self.held_out)
        captions = [text for images in sets for text in images.captions_of(torch.arange(len(images)))]
        self.encoder.prepare(["", *captions], length=config.length, device=device, say=say)

    def added(self, cond: Cond, step: int) -> Cond:
        """The condition of a training step's images, with their captions."""
        training = self.system.recipe.training
        first = step * training.batch_size
        index = sample_index(first, training.batch_size, num_images=len(self.train_set), seed=training.seed)
        return self.system.with_captions(cond, self.train_set.captions_of(index))
