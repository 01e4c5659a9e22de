"""A trained model with everything around it: recipe, codec, network, class names. What `rasterformer.load` returns.

The command line calls these same methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rasterformer import registry
from rasterformer.autoregressive.complete import known_prefix, parse_known
from rasterformer.autoregressive.memory import DrawingPlan, available_bytes, plan_drawing
from rasterformer.autoregressive.noise import image_generators, stream_seed
from rasterformer.autoregressive.parallel import draw_in_parallel
from rasterformer.autoregressive.sample import draw
from rasterformer.autoregressive.score import symbol_nats
from rasterformer.checkpoint import latest_checkpoint, load_checkpoint, load_model_folder, save_model_folder
from rasterformer.codecs.pixels import PixelCodec
from rasterformer.data.fit import fit_square
from rasterformer.data.png import to_pil
from rasterformer.errors import CheckpointError, ConfigError, ShapeError, did_you_mean
from rasterformer.evaluation.likelihood import bits_per_dim
from rasterformer.interfaces import Autoregressive, Cond, OnStep, SampleOptions
from rasterformer.recipe import Recipe
from rasterformer.recipe_file import recipe_from_dict, recipe_hash, recipe_to_dict

MOST_AT_A_TIME = 64  # images; more of them make a step longer by as much

Images = Tensor | Sequence[Image.Image]
OnImages = Callable[[int, Tensor], None]
Precision = Literal["float32", "bfloat16"]
Label = str | int | None


@dataclass
class System:
    """A generative model that can be used.

    Args:
        recipe: what it was trained by.
        codec: images <-> symbols.
        model: the network, in evaluation mode when loaded.
        class_names: () for a model without classes.
        steps: optimiser steps behind the weights.
        origin: where it was loaded from, for people.
    """

    recipe: Recipe
    codec: PixelCodec
    model: Autoregressive
    class_names: tuple[str, ...] = ()
    steps: int = 0
    origin: str = "new"

    @classmethod
    def create(cls, recipe: Recipe, *, class_names: Sequence[str] = (), num_classes: int | None = None) -> System:
        """Builds an untrained system; its weights are drawn by `training.seed` and nothing else.

        Args:
            recipe: names system and network.
            class_names: classes to condition on.
            num_classes: where the classes have no names. None: as many as class_names.

        Raises:
            ConfigError: the recipe describes no network.
        """
        classes = len(class_names) if num_classes is None else num_classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.training.seed)
            codec, model = registry.model_module(recipe.system).build(
                recipe.model, image_size=recipe.data.image_size, num_classes=classes
            )
        return cls(recipe, codec, model, tuple(class_names))

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""
        return self.codec.image_shape[1]

    @property
    def num_dims(self) -> int:
        """Dimensions of an image, C H W: what bits/dim are counted over."""
        return math.prod(self.codec.image_shape)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def sample(
        self,
        n: int = 1,
        *,
        label: Label | Sequence[Label] = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        first: int = 0,
        batch_size: int | None = None,
        precision: Precision = "float32",
        parallel: bool = False,
        as_tensor: bool = False,
        on_step: OnStep | None = None,
        on_images: OnImages | None = None,
    ) -> Any:
        """Draws n images. Image k depends on seed and k only, not on n, first or batch_size.

        That holds up to rounding: sums of another size may round differently, which in float32 rarely changes a value, while in
        bfloat16 or on a GPU some images of another batch_size, or of `parallel`, may differ.

        Args:
            n: number of images.
            label: class name or index, for all or one for each. None: no class; a model with classes then draws a class
                for each image, uniformly, from the seed.
            temperature, top_k, top_p: see `SampleOptions`.
            seed: any integer.
            first: number of the first image: `first=64` goes on where `n=64` ended.
            batch_size: images drawn at a time. None: as many as half of the free memory holds, at most 64.
            precision: of layers and caches. `bfloat16` is faster with many images and draws from a rounded model.
            parallel: draw one image at a time, several positions per pass; the same images. Worth it for a few images of
                separate channels, which are well predictable.
            as_tensor: return uint8 [n, 3, H, W] instead of Pillow images.
            on_step: told (positions done, positions in all) over all batches.
            on_images: given (index of the first, uint8 [B, 3, H, W]) of every batch when it is done.

        Raises:
            ConfigError: an unknown label, options that describe no distribution, or a batch that does not fit into memory.
        """
        options = SampleOptions(temperature, top_k, top_p)
        cond = self._cond(label, n, seed, first=first)
        model, plan = self._drawing(n, batch_size=batch_size, precision=precision, parallel=parallel)
        batches = self._draw(model, plan, cond, options, seed, first=first, parallel=parallel, on_step=on_step)
        images = _collected(batches, on_images)
        return images if as_tensor else to_pil(images)

    def plan_sampling(
        self,
        n: int,
        *,
        batch_size: int | None = None,
        precision: Precision = "float32",
        parallel: bool = False,
    ) -> DrawingPlan:
        """Says how `sample` or `complete` would draw n images, and in how much memory. Arguments as there.

        Raises:
            ConfigError: a batch does not fit into memory.
        """
        return self._drawing(n, batch_size=batch_size, precision=precision, parallel=parallel)[1]

    def complete(
        self,
        images: Images,
        *,
        known: str | Tensor = "top:0.5",
        n: int = 1,
        label: Label | Sequence[Label] = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        precision: Precision = "float32",
        parallel: bool = False,
        as_tensor: bool = False,
        on_step: OnStep | None = None,
        on_images: OnImages | None = None,
    ) -> Any:
        """Draws the unknown part of images, n times each; known pixels stay as they are.

        Args:
            images: Pillow images, or uint8 [B, 3, H, W] at the model's size.
            known: `top:0.5`, `rows:12`, or a mask bool [H, W]; must be a prefix of the generation order.
            n: completions of each image.
            label: class name or index, for all or one for each of the B images. None: as in `sample`.
            temperature, top_k, top_p, seed, batch_size, precision, parallel, as_tensor, on_step: as in `sample`.
            on_images: as in `sample`; the images are those of the first image, then those of the second, and so on.

        Returns:
            B lists of n Pillow images, or uint8 [B, n, 3, H, W].

        Raises:
            ConfigError: the mask is no prefix, an unknown label, options that describe no distribution, or a batch that does
                not fit into memory.
            ShapeError: images or mask of another shape.
        """
        if n < 1:
            raise ConfigError(f"n = {n} must be at least 1.")
        pixels = self.to_tensor(images)
        _, height, width = self.codec.image_shape
        mask = parse_known(known, height, width) if isinstance(known, str) else known
        count_known = known_prefix(self.codec, mask)
        x = self.codec.encode(pixels).repeat_interleave(n, 0)
        total = len(x)
        if label is not None and not isinstance(label, str | int):
            label = [entry for entry in label for _ in range(n)]
        cond = self._cond(label, total, seed)
        options = SampleOptions(temperature, top_k, top_p)
        model, plan = self._drawing(total, batch_size=batch_size, precision=precision, parallel=parallel)
        prefix = x[:, :count_known]
        batches = self._draw(model, plan, cond, options, seed, parallel=parallel, prefix=prefix, on_step=on_step)
        result = _collected(batches, on_images).unflatten(0, (len(pixels), n))
        return result if as_tensor else [to_pil(row) for row in result]

    def symbol_nats(self, images: Tensor, cond: Cond | None = None) -> Tensor:
        """Negative log-likelihood of every sub-pixel given those before it in generation order.

        Args:
            images: uint8 [B, 3, H, W].
            cond: what the images are conditioned on. None: nothing.

        Returns:
            nats, float32 [B, 3, H, W]; the sum over an image is its exact negative log-likelihood.
        """
        x = self.codec.encode(images).to(self.device)
        return self.codec.image_of(symbol_nats(self.model, x, (cond or Cond()).to(self.device))).cpu()

    def bits_per_dim(self, images: Images, *, label: Label | Sequence[Label] = None, batch_size: int = 32) -> Tensor:
        """Exact bits per dimension of each image: float64 [B].

        Args:
            images: Pillow images, or uint8 [B, 3, H, W] at the model's size.
            label: as in `sample`, but a model with classes needs it.
            batch_size: images scored at a time.

        Raises:
            ConfigError: an unknown or missing label.
            ShapeError: images of another shape.
        """
        pixels = self.to_tensor(images)
        if self.model.num_classes and label is None:
            known = did_you_mean("", self.class_names)
            raise ConfigError(f"label is missing: the likelihood of this model depends on it.{known}")
        cond = self._cond(label, len(pixels), 0)
        nats = [
            self.symbol_nats(pixels[rows], cond.rows(rows)).double().sum((1, 2, 3))
            for rows in _batches(len(pixels), batch_size)
        ]
        return bits_per_dim(torch.cat(nats), self.num_dims)

    def to_tensor(self, images: Images) -> Tensor:
        """Pillow images -> uint8 [B, 3, H, W] at the model's size, fitted as in training; a tensor is checked only.

        Raises:
            ShapeError: a tensor of another shape or dtype, or an image smaller than the model's.
            ConfigError: no images.
        """
        if isinstance(images, Tensor):
            if images.dtype != torch.uint8 or images.shape[1:] != self.codec.image_shape:
                raise ShapeError(
                    f"images are {images.dtype} {list(images.shape)}; this model takes torch.uint8 "
                    f"[B, {', '.join(map(str, self.codec.image_shape))}]."
                )
            if not len(images):
                raise ConfigError("no images were given. Give at least one.")
            return images
        if not images:
            raise ConfigError("no images were given. Give at least one.")
        size = self.image_size
        for k, image in enumerate(images):
            if min(image.size) < size:
                raise ShapeError(f"image {k} is {image.width}x{image.height}; this model needs at least {size}x{size}.")
        fitted = [fit_square(image.convert("RGB"), size, fit=self.recipe.data.fit)[0] for image in images]
        return torch.from_numpy(np.stack(fitted))

    def config(self) -> dict[str, Any]:
        """What config.json says."""
        return {
            "recipe": recipe_to_dict(self.recipe),
            "num_classes": self.model.num_classes,
            "class_names": list(self.class_names),
            "image_shape": list(self.codec.image_shape),
            "x_shape": list(self.codec.x_shape),
            "steps": self.steps,
        }

    def save(self, folder: str | Path) -> None:
        """Writes a model folder: config.json, model.safetensors, README.md, manifest.json.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        save_model_folder(folder, config=self.config(), state=self.model.state_dict(), card=self._card())

    def _drawing(
        self, n: int, *, batch_size: int | None, precision: Precision, parallel: bool
    ) -> tuple[Autoregressive, DrawingPlan]:
        """The model in the precision to draw in, and how many images at a time."""
        if n < 1 or (batch_size is not None and batch_size < 1):
            raise ConfigError(f"n = {n} and batch_size = {batch_size} must be at least 1.")
        if parallel and batch_size is not None and batch_size > 1:
            raise ConfigError(
                f"batch_size = {batch_size}, but parallel draws one image at a time. Leave one of them out."
            )
        if precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision = {precision!r} is not known. Use float32 or bfloat16.")
        model = self.model.to_bfloat16() if precision == "bfloat16" else self.model
        size = 1 if parallel else batch_size
        available = available_bytes(self.device)
        return model, plan_drawing(model, n, batch_size=size, most=MOST_AT_A_TIME, available=available)

    def _draw(
        self,
        model: Autoregressive,
        plan: DrawingPlan,
        cond: Cond,
        options: SampleOptions,
        seed: int,
        *,
        first: int = 0,
        parallel: bool,
        prefix: Tensor | None = None,
        on_step: OnStep | None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yields the index of the first image of each batch and its images, uint8 [B, 3, H, W]."""
        for rows in _batches(plan.num_images, plan.batch_size):
            rng = image_generators(seed, rows.stop - rows.start, first=first + rows.start)
            told = _in_parts(on_step, rows, plan.num_images, plan.positions)
            part, known = cond.rows(rows), None if prefix is None else prefix[rows]
            if parallel:
                x = draw_in_parallel(model, part, options=options, rng=rng, prefix=known, on_step=told).x
            elif known is None:
                x = model.sample(part, len(rng), options=options, rng=rng, on_step=told)
            else:
                x = draw(model, part, len(rng), options=options, rng=rng, prefix=known, on_step=told)
            yield rows.start, self.codec.decode(x).cpu()

    def _cond(self, label: Label | Sequence[Label], count: int, seed: int, *, first: int = 0) -> Cond:
        if not self.model.num_classes:
            if label is not None:
                raise ConfigError(f"label = {label!r} was given, but this model has no classes. Leave it out.")
            return Cond()
        if label is None:  # one stream per image, apart from the images' own streams
            streams = (torch.Generator().manual_seed(stream_seed(seed, "label", first + k)) for k in range(count))
            classes = [int(torch.randint(self.model.num_classes, (), generator=g)) for g in streams]
        else:
            labels = [label] * count if isinstance(label, str | int) else list(label)
            if len(labels) != count:
                raise ConfigError(f"label has {len(labels)} entries for {count} images. Give one, or one for each.")
            classes = [self._class_index(entry) for entry in labels]
        return Cond(label=torch.tensor(classes, device=self.device))

    def _class_index(self, label: Label) -> int:
        if isinstance(label, str) and label in self.class_names:
            return self.class_names.index(label)
        index = int(label) if label is not None and str(label).isdigit() else -1
        if 0 <= index < self.model.num_classes:
            return index
        hint = did_you_mean(str(label), self.class_names)
        raise ConfigError(
            f"label = {label!r} is not known to this model.{hint} An index in 0..{self.model.num_classes - 1} works too."
        )

    def _card(self) -> str:
        weights = sum(p.numel() for p in self.model.parameters())
        classes = f"- classes: {', '.join(self.class_names)}\n" if self.class_names else ""
        return (
            f"# {self.recipe.system}, {self.image_size}x{self.image_size}\n\n"
            f"- {weights:,} parameters, {self.steps:,} optimiser steps, recipe {recipe_hash(self.recipe)}\n"
            f"- likelihood: exact, {self.recipe.model.distribution}, over {self.num_dims:,} dimensions\n"
            f"- trained on: {self.recipe.data.path}\n{classes}\n"
            "```python\nimport rasterformer\n\n"
            'model = rasterformer.load("this folder")\nmodel.sample(16, seed=0)\n```\n'
        )


def load(path: str | Path, *, device: str | torch.device | None = None) -> System:
    """Loads a model folder, a run folder or a checkpoint, in evaluation mode.

    Of a run its finished model is taken, or else its newest checkpoint that verifies; of a checkpoint the averaged
    weights, where it has them. Nothing is looked up on a network.

    Args:
        path: the folder.
        device: where the weights go. None: a CUDA device where there is one, else the processor.

    Raises:
        CheckpointError: there is no such folder, a file is damaged, or the weights do not fit the recipe.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{str(path)!r}: there is no such folder. Give a run, a model folder or a checkpoint.")
    origin = folder
    if not (folder / "config.json").is_file():
        if (folder / "model" / "config.json").is_file():
            origin = folder / "model"
        else:
            newest = latest_checkpoint(folder / "checkpoints") if (folder / "checkpoints").is_dir() else None
            if newest is None:
                raise CheckpointError(
                    f"{str(path)!r}: holds no model: neither config.json, nor model/, nor a finished checkpoint."
                )
            origin = newest
    if (origin / "state.json").is_file():
        checkpoint = load_checkpoint(origin)
        config, state = checkpoint.config, checkpoint.tensors.get("ema", checkpoint.tensors["model"])
    else:
        config, state = load_model_folder(origin)
    recipe = recipe_from_dict(config["recipe"], where=f"{origin}/config.json")
    system = System.create(recipe, class_names=config.get("class_names", ()), num_classes=config["num_classes"])
    check_weights(system.model, state, str(origin))
    system.model.load_state_dict(state)
    system.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    system.steps, system.origin = config.get("steps", 0), str(path)
    return system


def check_weights(model: torch.nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Compares names and shapes before anything is copied.

    Raises:
        CheckpointError: a weight is missing, unknown or of another shape.
    """
    expected = model.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in state]
    wrong += [f"{name} is unknown" for name in state if name not in expected]
    wrong += [
        f"{name} is {list(state[name].shape)}, the recipe makes it {list(weight.shape)}"
        for name, weight in expected.items()
        if name in state and state[name].shape != weight.shape
    ]
    if wrong:
        raise CheckpointError(f"{where}: the weights do not fit the recipe: {'; '.join(wrong[:5])}.")


def _batches(total: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, total)) for first in range(0, total, size))


def _collected(batches: Iterator[tuple[int, Tensor]], on_images: OnImages | None) -> Tensor:
    """All images of the batches, each batch told as soon as it is there."""
    pictures = []
    for start, images in batches:
        pictures.append(images)
        if on_images is not None:
            on_images(start, images)
    return torch.cat(pictures)


def _in_parts(on_step: OnStep | None, rows: slice, total: int, length: int) -> OnStep | None:
    """Progress of one batch, `rows` of `total` images, as progress of all."""
    if on_step is None:
        return None
    return lambda done, _: on_step(rows.start * length + done * (rows.stop - rows.start), total * length)
