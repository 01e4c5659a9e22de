"""A trained model with everything around it: recipe, codec, network, class names. What `rasterformer.load` returns.

The command line calls these same methods. How a folder becomes one is in `loading.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rasterformer import code_images, conditions, registry
from rasterformer.abilities import need_codes, need_no_source, need_source, need_task, need_window
from rasterformer.autoregressive.complete import parse_known
from rasterformer.autoregressive.memory import DrawingPlan
from rasterformer.autoregressive.score import symbol_nats
from rasterformer.batches import OnImages, batches_of, collected
from rasterformer.checkpoint import save_model_folder
from rasterformer.code_drawing import complete_codes, transform_codes
from rasterformer.code_filling import fill_pictures, vary_images
from rasterformer.code_images import CodeOptions
from rasterformer.codecs.pixels import PixelCodec
from rasterformer.codecs.vq.codec import CodeCodec
from rasterformer.conditioning.sources import make_source, source_generators
from rasterformer.conditioning.text_encoder import TextEncoder
from rasterformer.conditions import Label, Text, cond_of
from rasterformer.data.png import to_pil
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.diffusion.options import Order
from rasterformer.distributions.pmf import check_options
from rasterformer.drawing import Precision, check_counts, draw_batches, plan_drawing
from rasterformer.errors import ConfigError, did_you_mean
from rasterformer.evaluation.likelihood import bits_per_dim, num_dims
from rasterformer.given_images import Images, Mask, to_batch, to_mask, to_masks, to_pictures
from rasterformer.interfaces import Autoregressive, Batch, Cond, OnStep, SampleOptions
from rasterformer.model_card import model_card, one_line
from rasterformer.pixel_drawing import complete_pixels, transform_pixels
from rasterformer.recipe import Recipe
from rasterformer.recipe_file import recipe_to_dict
from rasterformer.tasks import (
    Colourise,
    Denoise,
    Inpaint,
    Paired,
    SourceShape,
    SuperResolution,
    Task,
    source_shape,
    task_name,
)
from rasterformer.tokenizer import Tokenizer, codecs_of, load_tokenizers

USED_CODES = "used_codes"  # group of a checkpoint: the tokenizer's numbers of the codes that the model knows
LEVELS = 20  # of noise, drawn for each image to estimate a bound


@dataclass(repr=False)
class System:
    """A generative model that can be used.

    Args:
        recipe: what it was trained by.
        codec: images <-> symbols: pixels, or the codes of a tokenizer.
        model: the network, in evaluation mode when loaded: autoregressive, or a diffusion model over codes.
        class_names: () for a model without classes.
        steps: optimiser steps behind the weights.
        origin: where it was loaded from, for people.
        tokenizers: of a model over codes: `tokenizer`, and `condition_tokenizer` where its task's sources have one.
        text_encoder: of a model with captions; loaded when it is first needed.
        trained_on_text: fingerprint of the text encoder (or of the form of bytes) that it was trained with. None: not trained
            yet, or no captions.
    """

    recipe: Recipe
    codec: PixelCodec | CodeCodec
    model: Autoregressive | CodeDenoiser
    class_names: tuple[str, ...] = ()
    steps: int = 0
    origin: str = "new"
    tokenizers: dict[str, Tokenizer] = field(default_factory=dict)
    text_encoder: TextEncoder | None = None
    trained_on_text: str | None = None

    def __repr__(self) -> str:
        return one_line("System", self.recipe.system, self.image_size, self.model, steps=self.steps, origin=self.origin)

    @classmethod
    def create(
        cls,
        recipe: Recipe,
        *,
        class_names: Sequence[str] = (),
        num_classes: int | None = None,
        tokenizers: Mapping[str, Tokenizer] | None = None,
        used_codes: Tensor | None = None,
    ) -> System:
        """Builds an untrained system; its weights are drawn by `training.seed` and nothing else.

        Args:
            recipe: names system and network.
            class_names: classes to condition on.
            num_classes: where the classes have no names. None: as many as class_names.
            tokenizers: of a model over codes. None: those that the recipe names are loaded.
            used_codes: int64 [K'], the codes that occur in the training images, for a model that drops the others. None: all.

        Raises:
            ConfigError: the recipe describes no network, or images and tokenizer do not fit.
            CheckpointError: a tokenizer that the recipe names cannot be loaded.
        """
        classes = len(class_names) if num_classes is None else num_classes
        loaded = dict(tokenizers) if tokenizers else load_tokenizers(recipe)
        parts: dict[str, Any] = {} if not loaded else {"tokenizers": codecs_of(recipe, loaded, used_codes)}
        if recipe.text is not None:
            parts["text"] = recipe.text
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.training.seed)
            codec, model = registry.model_module(recipe.system).build(
                recipe.model,
                image_size=recipe.data.image_size,
                num_classes=classes,
                source=None if recipe.task is None else source_shape(recipe.task, recipe.data.image_size),
                **parts,
            )
        return cls(recipe, codec, model, tuple(class_names), tokenizers=loaded)

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""
        return self.codec.image_shape[1]

    @property
    def num_dims(self) -> int:
        """Dimensions of an image, C H W: what bits/dim are counted over."""
        return math.prod(self.codec.image_shape)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What turns images into codes. None: the model works on pixels."""
        return self.tokenizers.get("tokenizer")

    def to(self, device: str | torch.device) -> System:
        """Moves all weights."""
        self.model.to(device)
        for tokenizer in self.tokenizers.values():
            tokenizer.autoencoder.to(device)
        return self

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
        size: tuple[int, int] | None = None,
        guidance_scale: float = 1.0,
        window_stride: int | None = None,
        steps: int | None = None,
        order: Order = "posterior",
        purity_weight: float = 0.0,
        text: Text | Sequence[Text] = None,
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
                for each image, uniformly, from the seed (one with captions too only where there is a text, or no learned null).
            temperature, top_k, top_p: see `SampleOptions`.
            seed: any integer.
            first: number of the first image: `first=64` goes on where `n=64` ended.
            batch_size: images drawn at a time. None: as many as half of the free memory holds, at most 64.
            precision: of layers and caches. `bfloat16` is faster with many images and draws from a rounded model.
            parallel: draw one image at a time, several positions per pass; the same images. Worth it for a few images of
                separate channels, which are well predictable.
            size: height and width, pixels, of images from a model over codes; larger ones than it was trained on are drawn by
                a sliding window. None: as trained.
            guidance_scale: above 1 the condition counts more than it did in training; models over codes that were trained with
                `drop_condition_prob`.
            window_stride: the sliding window moves on by so many codes; more is faster. None: 1, the paper's rule; of a diffusion
                model half a window.
            steps, order, purity_weight: of a diffusion model over codes, see `DiffusionOptions`.
            text: for all or one for each, for models that were trained with captions. None: the image's condition is hidden, as
                that of some images was in training, where the model has learned that (`has_null`) and is given nothing else, such
                as a class or a source; otherwise it is an empty text, as "" always is.
            as_tensor: return uint8 [n, 3, H, W] instead of Pillow images.
            on_step: told (positions done, positions in all) over all batches.
            on_images: given (index of the first, uint8 [B, 3, H, W]) of every batch when it is done.

        Raises:
            ConfigError: an unknown label, options that describe no distribution, guidance of an image without a condition, or a
                batch that does not fit into memory.
        """
        need_no_source(self, "sample")
        check_counts(n, batch_size)
        options = SampleOptions(temperature, top_k, top_p)
        more = CodeOptions(size, guidance_scale, window_stride, steps, order, purity_weight)
        cond = cond_of(self, label, n, seed, first=first, text=text, guidance_scale=guidance_scale, draws_class=True)
        model, plan = plan_drawing(self, n, batch_size=batch_size, precision=precision, parallel=parallel, more=more)
        batches = draw_batches(
            self, model, plan, cond, options, seed, first=first, parallel=parallel, more=more, on_step=on_step
        )
        images = collected(batches, on_images)
        return images if as_tensor else to_pil(images)

    def plan_sampling(
        self,
        n: int,
        *,
        batch_size: int | None = None,
        precision: Precision = "float32",
        parallel: bool = False,
        size: tuple[int, int] | None = None,
        guidance_scale: float = 1.0,
        window_stride: int | None = None,
        steps: int | None = None,
        order: Order = "posterior",
        purity_weight: float = 0.0,
    ) -> DrawingPlan:
        """Says how `sample` or `complete` would draw n images, and in how much memory. Arguments as there.

        Raises:
            ConfigError: a batch does not fit into memory, or options that describe no way to draw.
        """
        more = CodeOptions(size, guidance_scale, window_stride, steps, order, purity_weight)
        return plan_drawing(self, n, batch_size=batch_size, precision=precision, parallel=parallel, more=more)[1]

    def complete(
        self,
        images: Images,
        *,
        known: str | Mask = "top:0.5",
        n: int = 1,
        label: Label | Sequence[Label] = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        precision: Precision = "float32",
        parallel: bool = False,
        candidates: int = 1,
        guidance_scale: float = 1.0,
        steps: int | None = None,
        order: Order = "posterior",
        purity_weight: float = 0.0,
        text: Text | Sequence[Text] = None,
        as_tensor: bool = False,
        on_step: OnStep | None = None,
        on_images: OnImages | None = None,
    ) -> Any:
        """Draws the unknown part of images, n times each; known pixels stay as they are.

        Args:
            images: one Pillow image, several, or uint8 [B, 3, H, W] at the model's size.
            known: `top:0.5`, `rows:12`, or a mask bool [H, W], tensor or numpy array. For a model of pixels it must be a prefix
                of the generation order; a model over codes takes any mask, and keeps the codes all of whose pixels are known (see
                `restore`).
            n: completions of each image.
            label: class name or index, for all or one for each of the B images. None: hidden, as a text in `sample`, where the
                model has learned that; otherwise one at random.
            temperature, top_k, top_p, seed, batch_size, precision, parallel, as_tensor, on_step: as in `sample`.
            candidates: of a model over codes and a mask with known codes after unknown ones: so many fillings are drawn for each
                result, and one of them is chosen with the probability that it gives to the known codes after it (sampling,
                importance resampling; exact in the limit). 1: what comes after is not looked at. A diffusion model sees all
                that is known, and takes 1 only.
            guidance_scale, steps, order, purity_weight: as in `sample`.
            text: as in `sample`, for all or one for each of the B images.
            on_images: as in `sample`; the images are those of the first image, then those of the second, and so on.

        Returns:
            B lists of n Pillow images, or uint8 [B, n, 3, H, W].

        Raises:
            ConfigError: the mask is no prefix, an unknown label, options that describe no distribution, guidance of an image
                without a condition, or a batch that does not fit into memory.
            ShapeError: images or mask of another shape.
        """
        if n < 1:
            raise ConfigError(f"n = {n} must be at least 1.")
        need_no_source(self, "complete")
        pixels = self.to_tensor(images)
        _, height, width = self.codec.image_shape
        mask = parse_known(known, height, width) if isinstance(known, str) else to_mask(known)
        if isinstance(self.codec, CodeCodec):
            cond = cond_of(self, label, len(pixels), seed, text=text, guidance_scale=guidance_scale)
            result = complete_codes(
                self,
                pixels,
                mask,
                n,
                cond,
                SampleOptions(temperature, top_k, top_p),
                seed,
                CodeOptions(None, guidance_scale, None, steps, order, purity_weight),
                candidates=candidates,
                precision=precision,
                batch_size=batch_size,
                parallel=parallel,
                on_step=on_step,
                on_images=on_images,
            )
            return result if as_tensor else [to_pil(row) for row in result]
        need_codes(self, CodeOptions(None, guidance_scale, None, steps, order, purity_weight))
        if candidates != 1 or text is not None:
            raise ConfigError(
                "candidates and text are for models over codes, and this one draws pixels. Leave them out."
            )
        result = complete_pixels(
            self,
            pixels,
            mask,
            n,
            label,
            SampleOptions(temperature, top_k, top_p),
            seed,
            precision=precision,
            batch_size=batch_size,
            parallel=parallel,
            on_step=on_step,
            on_images=on_images,
        )
        return result if as_tensor else [to_pil(row) for row in result]

    def transform(
        self,
        images: Images,
        *,
        known: Mask | Sequence[Mask] | None = None,
        n: int = 1,
        label: Label | Sequence[Label] = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        tile: bool = True,
        overlap: int | None = None,
        batch_size: int | None = None,
        precision: Precision = "float32",
        guidance_scale: float = 1.0,
        window_stride: int | None = None,
        steps: int | None = None,
        order: Order = "posterior",
        purity_weight: float = 0.0,
        text: Text | Sequence[Text] = None,
        as_tensor: bool = False,
        on_step: OnStep | None = None,
        on_images: OnImages | None = None,
    ) -> list[Any]:
        """Draws images from source images, n from each: what the model's task makes of them.

        Sources larger than the model's are drawn in overlapping tiles, each of which sees what was drawn before it. A diffusion
        model over codes fills in any mask, and was trained for no task.

        Args:
            images: one Pillow image, or several, of any size from the model's up (`RGBA` goes on white), or uint8 [B, 3, h, w].
            known: for in-painting: bool [h, w] for each image, tensors or numpy arrays, True where it stays (see `restore`). None
                for other tasks.
            n: results of each image.
            label: class name or index, for all or one for each of the B images. None: as in `complete`.
            temperature, top_k, top_p, seed, batch_size, precision: as in `sample`.
            tile: draw sources that are larger than the model's in tiles. False: refuse them.
            overlap: of neighbouring tiles, source pixels. None: half of a tile's side.
            guidance_scale, window_stride, steps, order, purity_weight: as in `sample`; a model over codes draws larger sources by
                a sliding window, not in tiles.
            text: as in `sample`, for all or one for each of the B images.
            as_tensor: return tensors instead of Pillow images.
            on_step: told (positions done, positions in all) of all tiles.
            on_images: given (number of the image, uint8 [n, 3, H, W]) when all of its results are there.

        Returns:
            B lists of n Pillow images, or B tensors uint8 [n, 3, H, W].

        Raises:
            ConfigError: the model has no task, the mask is missing, superfluous or knows everything, larger sources without
                `tile`, options that describe no distribution, guidance of an image without a condition, or a batch that does not
                fit into memory.
            ShapeError: images that are smaller than the model's sources, or a mask of another size.
        """
        task, shape = need_source(self), self.source_shape
        assert shape is not None, "a task has sources"
        options = SampleOptions(temperature, top_k, top_p)
        check_options(options)
        pictures = to_pictures(images, labels=isinstance(task, Paired) and task.source_reduction == "nearest")
        if shape.has_mask and known is None:
            raise ConfigError("known is missing: say which pixels of each image stay as they are, bool [h, w].")
        if not shape.has_mask and known is not None:
            raise ConfigError(
                f"known was given, but a model of the task {task_name(task)} draws every pixel. Leave it out."
            )
        masks = None if known is None else to_masks(known, len(pictures))
        cond = cond_of(self, label, len(pictures), seed, text=text, guidance_scale=guidance_scale)
        more = CodeOptions(None, guidance_scale, window_stride, steps, order, purity_weight)
        need_codes(self, more)
        if self.tokenizer is not None:
            need_window(self, pictures, tile=tile, overlap=overlap)
        told: dict[str, Any] = {
            "precision": precision,
            "batch_size": batch_size,
            "on_step": on_step,
            "on_images": on_images,
        }
        if self.tokenizer is None:
            results = transform_pixels(
                self, pictures, masks, n, cond, options, seed, tile=tile, overlap=overlap, **told
            )
        elif isinstance(self.model, CodeDenoiser):
            assert masks is not None, "asked for above"
            results = fill_pictures(self, pictures, masks, n, cond, options, seed, more, **told)
        else:
            results = transform_codes(self, pictures, n, cond, options, seed, more, **told)
        return results if as_tensor else [to_pil(result) for result in results]

    def upscale(self, images: Images, *, n: int = 1, temperature: float = 1.0, seed: int = 0) -> list[Any]:
        """`transform` by a model of super-resolution: larger images, n of each. More options are there.

        Raises:
            ConfigError: the model has another task.
        """
        need_task(self, "upscale", SuperResolution)
        return self.transform(images, n=n, temperature=temperature, seed=seed)

    def restore(
        self,
        images: Images,
        *,
        known: Mask | Sequence[Mask],
        n: int = 1,
        label: Label | Sequence[Label] = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        tile: bool = True,
        overlap: int | None = None,
        batch_size: int | None = None,
        precision: Precision = "float32",
        guidance_scale: float = 1.0,
        window_stride: int | None = None,
        steps: int | None = None,
        order: Order = "posterior",
        purity_weight: float = 0.0,
        text: Text | Sequence[Text] = None,
        as_tensor: bool = False,
        on_step: OnStep | None = None,
        on_images: OnImages | None = None,
    ) -> list[Any]:
        """`transform` by a model of in-painting, or by a diffusion model over codes: what a mask says is missing is drawn.

        Args:
            images: as in `transform`.
            known: bool [h, w] for each image, True where it stays as it is. A model over codes sees of it the codes all of whose
                pixels stay, and warns where these are less than half of the pixels that do.
            n, label, temperature, top_k, top_p, seed, tile, overlap, batch_size, precision, guidance_scale, window_stride, steps,
                order, purity_weight, text, as_tensor, on_step, on_images: as in `transform`.

        Raises:
            ConfigError: the model has another task, or what `transform` refuses.
            ShapeError: as `transform`.
        """
        need_task(self, "restore", Inpaint)
        return self.transform(
            images,
            known=known,
            n=n,
            label=label,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            tile=tile,
            overlap=overlap,
            batch_size=batch_size,
            precision=precision,
            guidance_scale=guidance_scale,
            window_stride=window_stride,
            steps=steps,
            order=order,
            purity_weight=purity_weight,
            text=text,
            as_tensor=as_tensor,
            on_step=on_step,
            on_images=on_images,
        )

    def vary(
        self,
        images: Images,
        *,
        strength: float = 0.5,
        n: int = 1,
        label: Label | Sequence[Label] = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        precision: Precision = "float32",
        guidance_scale: float = 1.0,
        steps: int | None = None,
        order: Order = "posterior",
        purity_weight: float = 0.0,
        text: Text | Sequence[Text] = None,
        as_tensor: bool = False,
        on_step: OnStep | None = None,
        on_images: OnImages | None = None,
    ) -> Any:
        """Draws images that resemble given ones: noise is put on their codes, and undone by a diffusion model over codes.

        Args:
            images: as in `complete`.
            strength: share of the noise levels that are undone, above 0 and up to 1, where nothing of the image is left.
            n: variations of each image.
            label, text: as in `complete`, for all or one for each of the B images.
            temperature, top_k, top_p, seed, batch_size, precision, guidance_scale, steps, order, purity_weight: as in `sample`;
                steps divide all levels, and those above the strength are left out.
            as_tensor, on_step, on_images: as in `complete`.

        Returns:
            B lists of n Pillow images, or uint8 [B, n, 3, H, W].

        Raises:
            ConfigError: the model is no diffusion model over codes, an argument is out of range, or guidance of an image without
                a condition.
            ShapeError: images of another shape.
        """
        if not self.is_diffusion:
            raise ConfigError("vary undoes noise, which only a diffusion model does. Use complete, or another model.")
        if n < 1:
            raise ConfigError(f"n = {n} must be at least 1.")
        pixels = self.to_tensor(images)
        result = vary_images(
            self,
            pixels,
            n,
            cond_of(self, label, len(pixels), seed, text=text, guidance_scale=guidance_scale),
            SampleOptions(temperature, top_k, top_p),
            seed,
            CodeOptions(None, guidance_scale, None, steps, order, purity_weight),
            strength=strength,
            precision=precision,
            batch_size=batch_size,
            on_step=on_step,
            on_images=on_images,
        )
        return result if as_tensor else [to_pil(row) for row in result]

    def colourise(self, images: Images, *, n: int = 1, temperature: float = 1.0, seed: int = 0) -> list[Any]:
        """`transform` by a model of colourisation; of images in colour only the luma is used. More options are there.

        Raises:
            ConfigError: the model has another task.
        """
        need_task(self, "colourise", Colourise)
        return self.transform(images, n=n, temperature=temperature, seed=seed)

    def denoise(self, images: Images, *, n: int = 1, temperature: float = 1.0, seed: int = 0) -> list[Any]:
        """`transform` by a model of denoising. More options are there.

        Raises:
            ConfigError: the model has another task.
        """
        need_task(self, "denoise", Denoise)
        return self.transform(images, n=n, temperature=temperature, seed=seed)

    def with_source(self, batch: Batch, *, first: int, purpose: str, seed: int) -> Batch:
        """Adds the sources that the model's task makes from the images, where it makes any.

        Args:
            batch: images uint8 [B, 3, H, W].
            first: number of the first image, in training or in its split.
            purpose: names the random streams, of which each image has its own.
            seed: of the streams.
        """
        task = self.recipe.task
        if task is None or batch.cond.source is not None:
            return batch
        rng = source_generators(seed, range(first, first + len(batch.images)), purpose=purpose)
        made = make_source(task, batch.images, rng)
        return Batch(batch.images, replace(batch.cond, source=made.source, known=made.known))

    def symbol_nats(self, images: Tensor, cond: Cond | None = None) -> Tensor:
        """Negative log-likelihood of every sub-pixel given those before it in generation order.

        Args:
            images: uint8 [B, 3, H, W].
            cond: what the images are conditioned on. None: nothing.

        Returns:
            nats, float32 [B, 3, H, W], 0 at known pixels; the sum over an image is its exact negative log-likelihood.
        """
        if not isinstance(self.codec, PixelCodec):
            raise ConfigError(
                "the likelihood of pixels was asked for, but this model gives one of codes only, from which pixels do not follow "
                "exactly: bits/dim would be a lie. Use code_nats: nats per code."
            )
        assert isinstance(self.model, Autoregressive), "a model of pixels"
        x = self.codec.encode(images).to(self.device)
        return self.codec.image_of(symbol_nats(self.model, x, (cond or Cond()).to(self.device))).cpu()

    def draw_from(
        self, cond: Cond, *, n: int, temperature: float = 1.0, seed: int = 0, on_step: OnStep | None = None
    ) -> Tensor:
        """Draws n images from each source of the model's size.

        Args:
            cond: of B images, with sources.
            n: results of each.
            temperature, seed: as in `sample`.
            on_step: told (positions done, positions in all).

        Returns:
            uint8 [B, n, 3, H, W].
        """
        assert cond.source is not None, "there is something to draw from"
        if self.tokenizer is not None:
            options = SampleOptions(temperature)
            plain = replace(cond, source=None, known=None).to(self.device)
            drawn = transform_codes(
                self, list(cond.source.cpu()), n, plain, options, seed, CodeOptions(), on_step=on_step
            )
            return torch.stack(drawn)
        index = torch.arange(len(cond.source)).repeat_interleave(n)
        model, plan = plan_drawing(self, len(index), batch_size=None, precision="float32", parallel=False)
        each = cond.to(self.device).rows(index.to(self.device))
        options = SampleOptions(temperature)
        batches = draw_batches(self, model, plan, each, options, seed, parallel=False, on_step=on_step)
        return collected(batches, None).unflatten(0, (-1, n))

    def bits_per_dim(self, images: Images, *, label: Label | Sequence[Label] = None, batch_size: int = 32) -> Tensor:
        """Exact bits per dimension of each image, float64 [B]: of the pixels that are not known, given the source.

        The sources of a model with a task are made from the images, by the random streams of held-out images 0, 1, ...

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
        cond, bits = cond_of(self, label, len(pixels), 0), []
        for rows in batches_of(len(pixels), batch_size):
            batch = Batch(pixels[rows], cond.rows(rows))
            batch = self.with_source(batch, first=rows.start, purpose="held-out source", seed=0)
            nats = self.symbol_nats(batch.images, batch.cond).double().sum((1, 2, 3))
            bits.append(bits_per_dim(nats, num_dims(batch)))
        return torch.cat(bits)

    def to_tensor(self, images: Images) -> Tensor:
        """Pillow images -> uint8 [B, 3, H, W] at the model's size, fitted as in training; a tensor is checked only.

        Raises:
            ShapeError: a tensor of another shape or dtype, or an image smaller than the model's.
            ConfigError: no images, or something else.
        """
        return to_batch(images, self.codec.image_shape, self.recipe.data)

    def config(self) -> dict[str, Any]:
        """What config.json says."""
        return {
            "recipe": recipe_to_dict(self.recipe),
            "num_classes": self.model.num_classes,
            "class_names": list(self.class_names),
            "image_shape": list(self.codec.image_shape),
            "x_shape": list(self.codec.x_shape),
            "steps": self.steps,
            **({} if self.trained_on_text is None else {"text_encoder": self.trained_on_text}),
            **(
                {"tokenizers": {name: part.config() for name, part in self.tokenizers.items()}}
                if self.tokenizers
                else {}
            ),
        }

    def frozen_tensors(self) -> dict[str, dict[str, Tensor]]:
        """The weights of the tokenizers by name, and which of the codes occur where the others were dropped."""
        frozen = {name: dict(part.autoencoder.state_dict()) for name, part in self.tokenizers.items()}
        if isinstance(self.codec, CodeCodec) and self.codec.used is not None:
            frozen[USED_CODES] = {"used": self.codec.used.used}
        return frozen

    def save(self, folder: str | Path) -> None:
        """Writes a model folder: config.json, model.safetensors, README.md, manifest.json.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        save_model_folder(
            folder,
            config=self.config(),
            state=self.model.state_dict(),
            card=model_card(self),
            frozen=self.frozen_tensors(),
        )

    @property
    def source_shape(self) -> SourceShape | None:
        """What the model's sources look like. None: it has none."""
        return None if self.task is None else source_shape(self.task, self.image_size)

    @property
    def task(self) -> Task | None:
        """What `transform` does: the recipe's task; in-painting by a diffusion model over codes, without training for it."""
        return Inpaint() if self.is_diffusion else self.recipe.task

    def condition_of(self, cond: Cond) -> Tensor | None:
        """The codes of the sources of images at the model's size, int64 [B, hc, wc]. None: there are no sources."""
        if cond.source is None:
            return None
        return code_images.condition_codes(self, cond.source, (self.image_size, self.image_size))

    @property
    def is_diffusion(self) -> bool:
        """Whether the model is a diffusion model over codes."""
        return isinstance(self.model, CodeDenoiser)

    @property
    def has_null(self) -> bool:
        """Whether the model has learned to draw without its condition, which `drop_condition_prob` hid in training."""
        hides = getattr(self.recipe.model, "drop_condition_prob", 0.0) > 0
        return hides and (self.takes_text or self.model.num_classes > 0)

    @property
    def likelihood_bound(self) -> Literal["exact", "upper"]:
        """Whether `code_nats` or `symbol_nats` are the negative log-likelihood, or an upper bound of it."""
        return "upper" if self.is_diffusion else "exact"

    def levels(self, asked: int | None = None) -> int | None:
        """Returns how many levels of noise `code_nats` draws for each image; None: the likelihood is exact.

        Raises:
            ConfigError: levels are asked of a model whose likelihood is exact.
        """
        if isinstance(self.model, CodeDenoiser):
            return min(LEVELS, self.model.process.num_steps) if asked is None else asked
        if asked is not None:
            raise ConfigError(
                f"levels = {asked}, but this model's likelihood is exact and draws no noise. Leave it out."
            )
        return None

    def code_nats(self, images: Tensor, cond: Cond | None = None, *, levels: int | None = None) -> Tensor:
        """Negative log-likelihood of every code of images, given those before it and the condition; none of pixels.

        Of a diffusion model it is an unbiased estimate of an upper bound, of which each code has its share. The noise is a
        function of the image's codes alone: another condition, or another batch, meets the same noise.

        Args:
            images: uint8 [B, 3, H, W] at the model's size.
            cond: what the images are conditioned on, sources as images. None: nothing.
            levels: of a diffusion model, levels of noise that are drawn for each image; all of them are the bound itself, but for
                the noise of one draw each. None: 20, or all where there are fewer.

        Returns:
            nats, float32 [B, h, w].

        Raises:
            ConfigError: the model works on pixels, levels are out of range, or given for a model whose likelihood is exact.
            ShapeError: images of another size.
        """
        if self.tokenizer is None:
            raise ConfigError("this model works on pixels and has no codes. Use bits_per_dim, or symbol_nats.")
        levels = self.levels(levels)
        given = cond or Cond()
        condition = self.condition_of(given)
        plain = replace(given, source=None, known=None).to(self.device)
        return code_images.code_nats(self, self.to_tensor(images), plain, condition, levels=levels).cpu()

    def with_text(self, cond: Cond, text: Text | Sequence[Text], count: int) -> Cond:
        """Adds texts to a condition, as the model reads them: states of a frozen encoder, or bytes.

        Args:
            cond: of `count` images.
            text: for all, or one for each. None: the image's condition is hidden, where the model has learned that
                (`has_null`) and is given nothing else, such as a class; otherwise it is an empty text, as "" always is.
            count: number of images.

        Raises:
            ConfigError: the model was trained without captions, a text is no string, or another number of texts.
            MissingExtraError: the text encoder is not installed.
            DataError: its folder cannot be read, or a text has characters that are none.
            CheckpointError: it is another one than the model was trained with.
        """
        return conditions.with_text(self, cond, text, count)

    def with_captions(self, cond: Cond, captions: Sequence[str]) -> Cond:
        """Adds the captions of images to their condition, in training and where it is measured; "" is none (None of `with_text`).

        Args:
            cond: of as many images.
            captions: one for each.

        Raises:
            ConfigError, MissingExtraError, DataError, CheckpointError: as `with_text`.
        """
        return self.with_text(cond, [caption or None for caption in captions], len(captions))

    @property
    def takes_text(self) -> bool:
        """Whether the model was trained with captions."""
        return self.recipe.text is not None
