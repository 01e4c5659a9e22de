"""A trained tokenizer: images to codes and back. What `rasterformer.load_tokenizer` returns; stage 2 is trained on its codes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rasterformer import registry
from rasterformer.checkpoint import check_weights, read_model, save_model_folder
from rasterformer.codecs.vq.autoencoder import VQAutoencoder
from rasterformer.codecs.vq.codec import CodeCodec
from rasterformer.conditioning.sources import source_of_picture
from rasterformer.errors import ConfigError, DataError, did_you_mean
from rasterformer.model_card import one_line
from rasterformer.recipe import Recipe
from rasterformer.recipe_file import recipe_from_dict, recipe_hash, recipe_to_dict
from rasterformer.tasks import SuperResolution, source_shape, task_name

IMAGES_AT_A_TIME = 32
# What the recipe says of a tokenizer's network that its weights do not
NETWORK_FIELDS = ("pictures", "num_labels", "quantiser", "normalise", "fsq_levels", "attention_levels", "norm_groups")


@dataclass(repr=False)
class Tokenizer:
    """An autoencoder with a codebook, ready to be used.

    Args:
        recipe: what it was trained by; `system` is one of `registry.TOKENIZERS`.
        autoencoder: in evaluation mode when loaded.
        steps: optimiser steps behind the weights.
        origin: where it was loaded from, for people.
    """

    recipe: Recipe
    autoencoder: VQAutoencoder
    steps: int = 0
    origin: str = "new"

    def __repr__(self) -> str:
        network = self.autoencoder
        return one_line("Tokenizer", self.recipe.system, self.image_size, network, steps=self.steps, origin=self.origin)

    @classmethod
    def create(cls, recipe: Recipe) -> Tokenizer:
        """Builds an untrained tokenizer; its weights are drawn by `training.seed` and nothing else.

        Raises:
            ConfigError: the recipe describes none, or its images do not fit the network.
        """
        if recipe.system not in registry.TOKENIZERS:
            raise ConfigError(
                f"system = {recipe.system!r} is no tokenizer.{did_you_mean(recipe.system, registry.TOKENIZERS)}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.training.seed)
            return cls(recipe, registry.model_module(recipe.system).build(recipe.model))

    @classmethod
    def from_parts(cls, config: Mapping[str, Any], state: Mapping[str, Tensor], *, where: str) -> Tokenizer:
        """Puts a tokenizer together from its recipe and weights, in evaluation mode.

        Args:
            config: with "recipe" and, if known, "steps".
            state: the weights.
            where: they come from, for messages.

        Raises:
            ConfigError, CheckpointError: the recipe is no tokenizer's, or the weights do not fit it.
        """
        tokenizer = cls.create(recipe_from_dict(config["recipe"], where=where))
        check_weights(tokenizer.autoencoder, state, where)
        tokenizer.autoencoder.load_state_dict(dict(state))
        tokenizer.autoencoder.eval().requires_grad_(False)
        tokenizer.steps, tokenizer.origin = config.get("steps", 0), where
        return tokenizer

    @property
    def image_size(self) -> int:
        """Side of the images that it was trained on, pixels; it takes other sizes too."""
        return self.recipe.data.image_size

    @property
    def factor(self) -> int:
        """f, pixels per code along each side."""
        return self.autoencoder.factor

    @property
    def vocab_size(self) -> int:
        """Number of codes."""
        size: int = self.autoencoder.quantiser.vocab_size
        return size

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that every change of a weight, or of what the network is, changes; the loss does not."""
        model = recipe_to_dict(self.recipe)["model"]
        digest = hashlib.sha256(json.dumps([model[name] for name in NETWORK_FIELDS]).encode())
        for name, tensor in sorted(self.autoencoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def codec(
        self, image_size: int | None = None, *, order: Tensor | None = None, used: Tensor | None = None
    ) -> CodeCodec:
        """Returns the codec for images of one size.

        Args:
            image_size: side, pixels. None: that of its training.
            order: int64 [L], generation order of the codes. None: raster order.
            used: int64 [K'], codes that occur, see `CodeCodec`. None: all.

        Raises:
            ShapeError: image_size is no multiple of the factor.
        """
        model = self.recipe.model
        size = image_size or self.image_size
        return CodeCodec(
            self.autoencoder, size, pictures=model.pictures, num_labels=model.num_labels, order=order, used=used
        )

    def seen(self, images: Tensor) -> Tensor:
        """What the tokenizer is for: the images uint8 [B, 3, H, W] as they are, or what its recipe's task makes of them.

        A tokenizer of edges, for example, is trained on photographs and learns to reproduce their edges.
        """
        if self.recipe.task is None:
            return images
        source = source_of_picture(self.recipe.task, images)
        return source.expand(-1, 3, -1, -1)

    def encode(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W], any size that is a multiple of the factor -> codes int64 [B, h, w] on the CPU.

        Raises:
            ShapeError: another shape, dtype or size.
        """
        codec = self.codec()
        return torch.cat([codec.codes(part).cpu() for part in images.split(IMAGES_AT_A_TIME)])

    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 [B, h, w] -> uint8 [B, 3, H, W] on the CPU.

        Raises:
            ShapeError: another shape or dtype.
            DataError: a code is not in 0..vocab_size - 1.
        """
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.vocab_size):
            raise DataError(
                f"codes go from {int(codes.min())} to {int(codes.max())}; this tokenizer has 0 to {self.vocab_size - 1}."
            )
        codec = self.codec()
        return torch.cat([codec.images(part).cpu() for part in codes.split(IMAGES_AT_A_TIME)])

    def reconstruct(self, images: Tensor) -> Tensor:
        """What remains of images when they have been codes: uint8 [B, 3, H, W] -> the same."""
        return self.decode(self.encode(images))

    def config(self) -> dict[str, Any]:
        """What config.json says."""
        size = self.image_size
        grid = size // self.factor
        return {
            "recipe": recipe_to_dict(self.recipe),
            "num_classes": 0,
            "class_names": [],
            "image_shape": [3, size, size],
            "x_shape": [grid * grid, 1],
            "steps": self.steps,
        }

    def save(self, folder: str | Path) -> None:
        """Writes a model folder: config.json, model.safetensors, README.md, manifest.json.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        save_model_folder(folder, config=self.config(), state=self.autoencoder.state_dict(), card=self._card())

    def _card(self) -> str:
        weights = sum(p.numel() for p in self.autoencoder.parameters())
        return (
            f"# {self.recipe.system} tokenizer, {self.image_size}x{self.image_size}\n\n"
            f"- {weights:,} parameters, {self.steps:,} optimiser steps, recipe {recipe_hash(self.recipe)}\n"
            f"- {self.vocab_size:,} codes, one for {self.factor}x{self.factor} pixels; fingerprint {self.fingerprint}\n"
            f"- trained on: {self.recipe.data.path}\n\n"
            "```python\nimport rasterformer\n\n"
            'tokenizer = rasterformer.load_tokenizer("this folder")\ncodes = tokenizer.encode(images)\n```\n'
        )


def load_tokenizer(path: str | Path, *, device: str | torch.device | None = None) -> Tokenizer:
    """Loads a tokenizer from a model folder, a run folder or a checkpoint, in evaluation mode.

    Args:
        path: the folder; of a run, its finished model or else its newest checkpoint is taken.
        device: where the weights go. None: a CUDA device where there is one, else the processor.

    Raises:
        CheckpointError: there is no such folder, a file is damaged, or the weights do not fit the recipe.
        ConfigError: it is a generative model, which is loaded by `load`.
    """
    stored = read_model(path)
    system = stored.config["recipe"].get("system")
    if system in registry.SYSTEMS:
        raise ConfigError(f"{str(path)!r} is a generative model ({system}), no tokenizer. Give a run of system vqgan.")
    tokenizer = Tokenizer.from_parts(stored.config, stored.tensors["model"], where=f"{stored.folder}/config.json")
    tokenizer.autoencoder.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    tokenizer.origin = str(path)
    return tokenizer


def load_tokenizers(recipe: Recipe) -> dict[str, Tokenizer]:
    """The tokenizers that a recipe names, by field.

    Raises:
        CheckpointError, ConfigError: as `load_tokenizer`.
    """
    paths = {name: getattr(recipe.model, name, None) for name in ("tokenizer", "condition_tokenizer")}
    return {name: load_tokenizer(path) for name, path in paths.items() if path is not None}


def codecs_of(recipe: Recipe, tokenizers: Mapping[str, Tokenizer], used: Tensor | None) -> dict[str, CodeCodec]:
    """What a network must know of its tokenizers: images and sources at the size at which they are tokenized.

    Args:
        recipe: gives the sizes.
        tokenizers: by field of the recipe's model.
        used: int64 [K'], codes that occur in the images. None: all.

    Raises:
        ConfigError: the task's sources have no tokenizer.
        ShapeError: a size is no multiple of a tokenizer's factor.
    """
    size = recipe.data.image_size
    sizes = {"tokenizer": size, "condition_tokenizer": size}
    if recipe.task is not None and not isinstance(recipe.task, SuperResolution):
        if "condition_tokenizer" not in tokenizers:
            raise ConfigError(
                f"model.condition_tokenizer is missing: the tokenizer of the sources of task {task_name(recipe.task)}. Train one "
                "on them with system vqgan, by the recipe vqgan-map for example."
            )
        sizes["condition_tokenizer"] = source_shape(recipe.task, size).size
    return {
        name: tokenizer.codec(sizes[name], used=used if name == "tokenizer" else None)
        for name, tokenizer in tokenizers.items()
    }
