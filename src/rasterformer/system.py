"""A trained model with everything around it: recipe, codec, network, class names. What `rasterformer.load` returns.

The command line calls these same methods. How a folder becomes one is in `loading.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from rasterformer import registry
from rasterformer.autoregressive.complete import parse_known
from rasterformer.autoregressive.memory import DrawingPlan
from rasterformer.autoregressive.score import symbol_nats
from rasterformer.batches import batches_of, collected, in_rows
from rasterformer.checkpoint import save_model_folder
from rasterformer.codecs.continuous import ContinuousCodec
from rasterformer.codecs.pixels import PixelCodec
from rasterformer.codecs.vq.codec import CodeCodec
from rasterformer.conditioning.sources import make_source, source_generators
from rasterformer.conditioning.text_encoder import TextEncoder
from rasterformer.data.png import to_pil
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.diffusion.image_denoiser import ImageDenoiser
from rasterformer.distributions.pmf import check_options
from rasterformer.drawing import code_images, conditions
from rasterformer.drawing.abilities import need_no_source, need_source, need_task, need_whole
from rasterformer.drawing.code_filling import fill_pictures, vary_images
from rasterformer.drawing.code_pictures import complete_codes, transform_codes
from rasterformer.drawing.conditions import Label, Text, cond_of
from rasterformer.drawing.diffusion_pictures import (
    draw_from_sources,
    networks_of,
    plan_pictures,
    sample_pictures,
    told_of,
    transform_pictures,
    upscale_pictures,
    vary_pictures,
)
from rasterformer.drawing.options import DrawingArguments, DrawingOptions, TransformArguments, need_options
from rasterformer.drawing.pixel_pictures import complete_pixels, transform_pixels
from rasterformer.drawing.stages import conds_of_stages, image_nats, need_no_first_source, stages_of
from rasterformer.drawing.symbols import check_counts, draw_batches, plan_drawing
from rasterformer.errors import ConfigError, did_you_mean
from rasterformer.evaluation.likelihood import bits_per_dim, num_dims
from rasterformer.given_images import Images, Mask, to_batch, to_mask, to_masks, to_pictures
from rasterformer.interfaces import Autoregressive, Batch, Cond
from rasterformer.model_card import model_card, one_line
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


def upscaler_group(number: int) -> str:
    """Group of a model folder with the weights of upscaler 1, 2, ..."""
    return f"upscaler_{number}"


@dataclass(repr=False)
class System:
    """A generative model that can be used.

    Args:
        recipe: what it was trained by.
        codec: images <-> what the model works on: pixels as symbols or as numbers, or the codes of a tokenizer.
        model: the network, in evaluation mode when loaded: autoregressive, or a diffusion model over codes or of pixels.
        class_names: () for a model without classes.
        steps: optimiser steps behind the weights.
        origin: where it was loaded from, for people.
        tokenizers: of a model over codes: `tokenizer`, and `condition_tokenizer` where its task's sources have one.
        upscalers: of a cascade: diffusion models of super-resolution, each of which enlarges what the one before has drawn.
        text_encoder: of a model with captions; loaded when it is first needed.
        trained_on_text: fingerprint of the text encoder (or of the form of bytes) that it was trained with. None: not trained
            yet, or no captions.
    """

    recipe: Recipe
    codec: PixelCodec | ContinuousCodec | CodeCodec
    model: Autoregressive | CodeDenoiser | ImageDenoiser
    class_names: tuple[str, ...] = ()
    steps: int = 0
    origin: str = "new"
    tokenizers: dict[str, Tokenizer] = field(default_factory=dict)
    upscalers: tuple[System, ...] = ()
    text_encoder: TextEncoder | None = None
    trained_on_text: str | None = None

    def __repr__(self) -> str:
        networks = torch.nn.ModuleList(stage.model for stage in stages_of(self))
        return one_line("System", self.recipe.system, self.image_size, networks, steps=self.steps, origin=self.origin)

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
        """Side of the images, pixels; of a cascade, of the last ones."""
        return self.image_shape[1]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images; of a cascade, of the last ones."""
        return (self.upscalers[-1] if self.upscalers else self).codec.image_shape

    @property
    def num_dims(self) -> int:
        """Dimensions of an image, C H W: what bits/dim are counted over."""
        return math.prod(self.image_shape)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What turns images into codes. None: the model works on pixels."""
        return self.tokenizers.get("tokenizer")

    def to(self, device: str | torch.device) -> System:
        """Moves all weights."""
        self.model.to(device)
        for tokenizer in self.tokenizers.values():
            tokenizer.autoencoder.to(device)
        for upscaler in self.upscalers:
            upscaler.to(device)
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
        text: Text | Sequence[Text] = None,
        first: int = 0,
        as_tensor: bool = False,
        **how: Unpack[DrawingArguments],
    ) -> Any:
        """Draws n images. Image k depends on seed and k only, not on n, first or batch_size.

        That holds up to rounding: sums of another size may round differently, which in float32 rarely changes a value, while in
        bfloat16 or on a GPU some images of another batch_size, or of `parallel`, may differ.

        Args:
            n: number of images.
            label: class name or index, for all or one for each. None: no class; a model with classes then draws a class
                for each image, uniformly, from the seed (one with captions too only where there is a text, or no learned null).
            text: for all or one for each, for models that were trained with captions. None: the image's condition is hidden, as
                that of some images was in training, where the model has learned that (`has_null`) and is given nothing else, such
                as a class, or over codes a source; otherwise it is an empty text, as "" always is.
            first: number of the first image: `first=64` goes on where `n=64` ended.
            as_tensor: return uint8 [n, 3, H, W] instead of Pillow images.
            how: see `DrawingOptions`.

        Raises:
            ConfigError: an unknown label, options that describe no distribution or are for another kind of model, guidance of an
                image without a condition, or a batch that does not fit into memory.
        """
        need_no_source(self, "sample")
        options = DrawingOptions(**how)
        check_counts(n, options.batch_size)
        if isinstance(self.model, ImageDenoiser):
            images = sample_pictures(self, n, label, text, options, first=first)
        else:
            scale = options.guidance_scale
            need_options(self, options)
            cond = cond_of(self, label, n, options.seed, first=first, text=text, guidance_scale=scale, draws_class=True)
            model, plan = plan_drawing(self, n, options)
            batches = draw_batches(self, model, plan, cond, options, first=first)
            images = collected(batches, options.on_images)
        return images if as_tensor else to_pil(images)

    def plan_sampling(self, n: int, *, is_filling: bool = False, **how: Unpack[DrawingArguments]) -> DrawingPlan:
        """Says how `sample` or `complete` would draw n images, and in how much memory. Nothing is copied or drawn.

        Args:
            n: number of images; of completions, those of all images together.
            is_filling: as `complete` draws, whose passes a diffusion model of pixels counts otherwise (`resamplings`). Other
                models take as long for both.
            how: see `DrawingOptions`.

        Raises:
            ConfigError: a batch does not fit into memory, or options that describe no way to draw.
            ShapeError: a size that a diffusion model of pixels cannot draw.
        """
        options = DrawingOptions(**how)
        if isinstance(self.model, ImageDenoiser):
            size, networks = (
                options.size or (self.image_size, self.image_size),
                networks_of(self, options, is_plan=True),
            )
            return plan_pictures(self, networks, n, options, size, is_filling=is_filling)
        return plan_drawing(self, n, options)[1]

    def complete(
        self,
        images: Images,
        *,
        known: str | Mask = "top:0.5",
        n: int = 1,
        label: Label | Sequence[Label] = None,
        text: Text | Sequence[Text] = None,
        candidates: int = 1,
        as_tensor: bool = False,
        **how: Unpack[DrawingArguments],
    ) -> Any:
        """Draws the unknown part of images, n times each; known pixels stay as they are.

        Args:
            images: one Pillow image, several, or uint8 [B, 3, H, W] at the model's size.
            known: `top:0.5`, `rows:12`, or a mask bool [H, W], tensor or numpy array. For one that draws pixel by pixel it must
                be a prefix of the generation order; the others take any mask, and a model over codes keeps the codes all of whose
                pixels are known (see `restore`).
            n: completions of each image.
            label: class name or index, for all or one for each of the B images. None: hidden, as a text in `sample`, where the
                model has learned that; otherwise one at random.
            text: as in `sample`, for all or one for each of the B images.
            candidates: of a model over codes and a mask with known codes after unknown ones: so many fillings are drawn for each
                result, and one of them is chosen with the probability that it gives to the known codes after it (sampling,
                importance resampling; exact in the limit). 1: what comes after is not looked at. A diffusion model sees all
                that is known, and takes 1 only.
            as_tensor: return tensors instead of Pillow images.
            how: see `DrawingOptions`, but for `size`; `on_images` is given the images of the first image, then of the second, ...

        Returns:
            B lists of n Pillow images, or uint8 [B, n, 3, H, W].

        Raises:
            ConfigError: the mask is no prefix, an unknown label, options that describe no distribution or are for another kind of
                model, guidance of an image without a condition, or a batch that does not fit into memory.
            ShapeError: images or mask of another shape.
        """
        need_no_source(self, "complete")
        options = self._options_of_pictures(n, how)
        pixels = self.to_tensor(images).cpu()  # as masks and results are
        _, height, width = self.image_shape
        mask = parse_known(known, height, width) if isinstance(known, str) else to_mask(known).cpu()
        if isinstance(self.codec, CodeCodec):
            scale = options.guidance_scale
            need_options(self, options)
            cond = cond_of(self, label, len(pixels), options.seed, text=text, guidance_scale=scale)
            result = complete_codes(self, pixels, mask, n, cond, options, candidates=candidates)
            return result if as_tensor else [to_pil(row) for row in result]
        if candidates != 1:
            raise ConfigError(f"candidates = {candidates} is for models over codes, and this one draws pixels.")
        if isinstance(self.model, ImageDenoiser):
            one_by_one = replace(options, on_images=in_rows(options.on_images, n))
            result = torch.stack(
                transform_pictures(self, list(pixels), [mask] * len(pixels), n, label, text, one_by_one)
            )
        else:
            if text is not None:
                raise ConfigError(
                    "text is for models that were trained with captions, and this one was not. Leave it out."
                )
            result = complete_pixels(self, pixels, mask, n, label, options)
        return result if as_tensor else [to_pil(row) for row in result]

    def transform(
        self,
        images: Images,
        *,
        known: Mask | Sequence[Mask] | None = None,
        n: int = 1,
        label: Label | Sequence[Label] = None,
        text: Text | Sequence[Text] = None,
        tile: bool = True,
        overlap: int | None = None,
        as_tensor: bool = False,
        **how: Unpack[DrawingArguments],
    ) -> list[Any]:
        """Draws images from source images, n from each: what the model's task makes of them.

        Sources larger than the model's are drawn in overlapping tiles, each of which sees what was drawn before it; by a sliding
        window over codes; or, by a diffusion model of pixels, at once. Diffusion models fill in any mask, without a task.

        Args:
            images: one Pillow image, or several, of any size from the model's up (`RGBA` goes on white), or uint8 [B, 3, h, w].
            known: for in-painting: bool [h, w] for each image, tensors or numpy arrays, True where it stays (see `restore`). None
                for other tasks.
            n: results of each image.
            label: class name or index, for all or one for each of the B images. None: as in `complete`.
            text: as in `sample`, for all or one for each of the B images.
            tile: draw sources that are larger than the model's. False: refuse them.
            overlap: of neighbouring tiles, source pixels. None: half of a tile's side. Not of diffusion models.
            as_tensor: return tensors instead of Pillow images.
            how: see `DrawingOptions`, but for `size`; `on_images` is given (number of the image, uint8 [n, 3, H, W]) when all of
                its results are there.

        Returns:
            B lists of n Pillow images, or B tensors uint8 [n, 3, H, W].

        Raises:
            ConfigError: the model has no task, the mask is missing, superfluous or knows everything, larger sources without
                `tile`, options that describe no distribution or are for another kind of model, guidance of an image without a
                condition, or a batch that does not fit into memory.
            ShapeError: images that are smaller than the model's sources, or a mask of another size.
        """
        task, shape = need_source(self), self.source_shape
        assert shape is not None, "a task has sources"
        options = self._options_of_pictures(n, how)
        if options.parallel:
            raise ConfigError("parallel is for sample and complete. Leave it out.")
        check_options(options.symbols)
        pictures = to_pictures(images, labels=isinstance(task, Paired) and task.source_reduction == "nearest")
        if shape.has_mask and known is None:
            raise ConfigError("known is missing: say which pixels of each image stay as they are, bool [h, w].")
        if not shape.has_mask and known is not None:
            raise ConfigError(
                f"known was given, but a model of the task {task_name(task)} draws every pixel. Leave it out."
            )
        masks = None if known is None else to_masks(known, len(pictures))
        need_options(self, options)
        if not isinstance(self.codec, PixelCodec):
            need_whole(self, pictures, shape.size, tile=tile, overlap=overlap)
        if isinstance(self.model, ImageDenoiser):
            results = transform_pictures(self, pictures, masks, n, label, text, options)
            return results if as_tensor else [to_pil(result) for result in results]
        scale = options.guidance_scale
        cond = cond_of(self, label, len(pictures), options.seed, text=text, guidance_scale=scale)
        if self.tokenizer is None:
            results = transform_pixels(self, pictures, masks, n, cond, options, tile=tile, overlap=overlap)
        elif isinstance(self.model, CodeDenoiser):
            assert masks is not None, "asked for above"
            results = fill_pictures(self, pictures, masks, n, cond, options)
        else:
            results = transform_codes(self, pictures, n, cond, options)
        return results if as_tensor else [to_pil(result) for result in results]

    def upscale(self, images: Images, **how: Unpack[TransformArguments]) -> list[Any]:
        """`transform` by a model of super-resolution, or by the upscalers of a cascade alone: larger images.

        Raises:
            ConfigError: the model has another task and no upscalers.
        """
        if not self.upscalers or self.recipe.task is not None:
            need_task(self, "upscale", SuperResolution)
            return self.transform(images, **how)
        return self._upscale_alone(images, **how)

    def _upscale_alone(
        self,
        images: Images,
        *,
        n: int = 1,
        label: Label | Sequence[Label] = None,
        text: Text | Sequence[Text] = None,
        tile: bool = True,
        overlap: int | None = None,
        as_tensor: bool = False,
        **how: Unpack[DrawingArguments],
    ) -> list[Any]:
        """`upscale` by the upscalers of a cascade. Arguments as in `transform`."""
        options = self._options_of_pictures(n, how)
        pictures = to_pictures(images)
        need_whole(self, pictures, self.recipe.data.image_size, tile=tile, overlap=overlap)
        results = upscale_pictures(self, pictures, n, label, text, options)
        return results if as_tensor else [to_pil(result) for result in results]

    def restore(self, images: Images, *, known: Mask | Sequence[Mask], **how: Unpack[TransformArguments]) -> list[Any]:
        """`transform` by a model of in-painting, or by a diffusion model: what a mask says is missing is drawn.

        Args:
            images: as in `transform`.
            known: bool [h, w] for each image, True where it stays as it is. A model over codes sees of it the codes all of whose
                pixels stay, and warns where these are less than half of the pixels that do.
            how: the other arguments of `transform`.

        Raises:
            ConfigError: the model has another task, or what `transform` refuses.
            ShapeError: as `transform`.
        """
        need_task(self, "restore", Inpaint)
        return self.transform(images, known=known, **how)

    def vary(
        self,
        images: Images,
        *,
        strength: float = 0.5,
        n: int = 1,
        label: Label | Sequence[Label] = None,
        text: Text | Sequence[Text] = None,
        as_tensor: bool = False,
        **how: Unpack[DrawingArguments],
    ) -> Any:
        """Draws images that resemble given ones: noise is put on them, or on their codes, and undone by a diffusion model.

        Args:
            images: as in `complete`.
            strength: share of the noise levels that are undone, above 0 and up to 1, where nothing of the image is left.
            n: variations of each image.
            label, text: as in `complete`, for all or one for each of the B images.
            as_tensor: return tensors instead of Pillow images.
            how: see `DrawingOptions`, but for `size`; `on_images` as in `complete`. Over codes, `steps` divide all levels, and
                those above the strength are left out; of pixels they divide those below it.

        Returns:
            B lists of n Pillow images, or uint8 [B, n, 3, H, W].

        Raises:
            ConfigError: the model is no diffusion model, an argument is out of range, or guidance of an image without a
                condition.
            ShapeError: images of another shape.
        """
        if not self.is_diffusion:
            raise ConfigError("vary undoes noise, which only a diffusion model does. Use complete, or another model.")
        options = self._options_of_pictures(n, how)
        pixels = self.to_tensor(images).cpu()  # as results are
        if isinstance(self.model, ImageDenoiser):
            one_by_one = replace(options, on_images=in_rows(options.on_images, n))
            result = vary_pictures(self, pixels, n, label, text, one_by_one, strength=strength)
        else:
            scale = options.guidance_scale
            need_options(self, options)
            cond = cond_of(self, label, len(pixels), options.seed, text=text, guidance_scale=scale)
            result = vary_images(self, pixels, n, cond, options, strength=strength)
        return result if as_tensor else [to_pil(row) for row in result]

    def _options_of_pictures(self, n: int, how: Mapping[str, Any]) -> DrawingOptions:
        """What is said about drawing from pictures, which have a size already."""
        if n < 1:
            raise ConfigError(f"n = {n} must be at least 1.")
        options = DrawingOptions(**how)
        if options.size is not None:
            raise ConfigError(f"size = {options.size} is for sample; here the pictures say it. Leave it out.")
        return options

    def colourise(self, images: Images, **how: Unpack[TransformArguments]) -> list[Any]:
        """`transform` by a model of colourisation; of images in colour only the luma is used.

        Raises:
            ConfigError: the model has another task.
        """
        need_task(self, "colourise", Colourise)
        return self.transform(images, **how)

    def denoise(self, images: Images, **how: Unpack[TransformArguments]) -> list[Any]:
        """`transform` by a model of denoising.

        Raises:
            ConfigError: the model has another task.
        """
        need_task(self, "denoise", Denoise)
        return self.transform(images, **how)

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
        if isinstance(self.codec, ContinuousCodec):
            raise ConfigError(
                "a diffusion model of pixels has a bound for whole images, and none for each sub-pixel. Use image_nats."
            )
        if not isinstance(self.codec, PixelCodec):
            raise ConfigError(
                "the likelihood of pixels was asked for, but this model gives one of codes only, from which pixels do not follow "
                "exactly: bits/dim would be a lie. Use code_nats: nats per code."
            )
        assert isinstance(self.model, Autoregressive), "a model of pixels"
        x = self.codec.encode(images).to(self.device)
        return self.codec.image_of(symbol_nats(self.model, x, (cond or Cond()).to(self.device))).cpu()

    def draw_from(self, cond: Cond, *, n: int, **how: Unpack[DrawingArguments]) -> Tensor:
        """Draws n images from each source of the model's size.

        Args:
            cond: of B images, with sources; classes and texts as `with_text` adds them.
            n: results of each.
            how: see `DrawingOptions`, but for `size`; `on_images` is given (number of the source, its n results).

        Returns:
            uint8 [B, n, 3, H, W].

        Raises:
            ConfigError: there are no sources, the model is a cascade, or what `transform` refuses.
        """
        if cond.source is None:
            raise ConfigError("cond has no source: there is nothing to draw from. Give sources, or use sample.")
        if self.upscalers:
            raise ConfigError(
                "draw_from draws from sources of one model's size, and this is a cascade. Use upscale, restore or transform."
            )
        options = self._options_of_pictures(n, how)
        if isinstance(self.model, ImageDenoiser):
            return draw_from_sources(self, cond, n, options)
        if self.tokenizer is not None:
            plain = replace(cond, source=None, known=None).to(self.device)
            return torch.stack(transform_codes(self, list(cond.source.cpu()), n, plain, options))
        index = torch.arange(len(cond.source)).repeat_interleave(n)
        model, plan = plan_drawing(self, len(index), options)
        each = cond.to(self.device).rows(index.to(self.device))
        drawn = collected(draw_batches(self, model, plan, each, options), None).unflatten(0, (-1, n))
        if options.on_images is not None:
            for k, results in enumerate(drawn):
                options.on_images(k, results)
        return drawn

    def image_nats(
        self,
        images: Tensor,
        cond: Cond | None = None,
        *,
        captions: Sequence[str] | None = None,
        levels: int | None = None,
    ) -> Tensor:
        """Negative log-likelihood of images, or of a diffusion model an estimate of an upper bound (`likelihood_bound`).

        Args:
            images: uint8 [B, 3, H, W] at the model's size.
            cond: classes and sources. None: none.
            captions: one for each, "" for none, for a model that takes some. None: they are in `cond` already, if there are any.
            levels: of a diffusion model, levels of noise that are drawn for each image and stage. None: 20.

        Returns:
            nats, float64 [B], over the pixels that are not known.

        Raises:
            ConfigError: the model works on codes; levels are given for a model whose likelihood is exact.
            ShapeError: images of another size.
        """
        levels = self.levels(levels)
        given = cond or Cond()
        if not isinstance(self.model, ImageDenoiser):
            return self.symbol_nats(images, given).double().sum((1, 2, 3))
        assert levels is not None, "a diffusion model draws some"
        conds = conds_of_stages(self, given, captions, len(images))
        return image_nats(self, self.to_tensor(images), conds, levels=levels)

    def bits_per_dim(
        self,
        images: Images,
        *,
        label: Label | Sequence[Label] = None,
        text: Text | Sequence[Text] = None,
        batch_size: int = 32,
    ) -> Tensor:
        """Bits per dimension of each image, float64 [B]: of the pixels that are not known, given the source.

        They are exact, or of a diffusion model an estimate of an upper bound. The sources of a model with a task are made from
        the images, by the random streams of held-out images 0, 1, ...

        Args:
            images: Pillow images, or uint8 [B, 3, H, W] at the model's size.
            label: as in `sample`, but a model with classes needs it.
            text: captions of the images, for all or one for each; None as in `sample`: the learned null, where there is one.
            batch_size: images scored at a time.

        Raises:
            ConfigError: an unknown or missing label, a text for a model without captions, a model over codes, or a cascade that
                begins from source images.
            ShapeError: images of another shape.
        """
        pixels = self.to_tensor(images)
        if self.model.num_classes and label is None:
            known = did_you_mean("", self.class_names)
            raise ConfigError(f"label is missing: the likelihood of this model depends on it.{known}")
        if isinstance(self.model, ImageDenoiser):
            need_no_first_source(self)
            conds = [each.cond for each in told_of(self, label, text, len(pixels), DrawingOptions())]
        else:
            conds = [cond_of(self, label, len(pixels), 0, text=text)]
        bits = []
        for rows in batches_of(len(pixels), batch_size):
            first, *others = (cond.rows(rows) for cond in conds)
            batch = self.with_source(Batch(pixels[rows], first), first=rows.start, purpose="held-out source", seed=0)
            if isinstance(self.model, ImageDenoiser):
                nats = image_nats(self, batch.images, [batch.cond, *others], levels=LEVELS)
            else:
                nats = self.image_nats(batch.images, batch.cond)
            bits.append(bits_per_dim(nats, num_dims(batch)))
        return torch.cat(bits)

    def to_tensor(self, images: Images) -> Tensor:
        """Pillow images -> uint8 [B, 3, H, W] at the model's size, fitted as in training; a tensor is checked only.

        Raises:
            ShapeError: a tensor of another shape or dtype, or an image smaller than the model's.
            ConfigError: no images, or something else.
        """
        return to_batch(images, self.image_shape, self.recipe.data)

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
            **({"upscalers": [upscaler.config() for upscaler in self.upscalers]} if self.upscalers else {}),
            **(
                {"tokenizers": {name: part.config() for name, part in self.tokenizers.items()}}
                if self.tokenizers
                else {}
            ),
        }

    def frozen_tensors(self) -> dict[str, dict[str, Tensor]]:
        """The weights of tokenizers and upscalers by name, and which of the codes occur where the others were dropped."""
        frozen = {name: dict(part.autoencoder.state_dict()) for name, part in self.tokenizers.items()}
        if isinstance(self.codec, CodeCodec) and self.codec.used is not None:
            frozen[USED_CODES] = {"used": self.codec.used.used}
        for number, upscaler in enumerate(self.upscalers, start=1):
            frozen[upscaler_group(number)] = dict(upscaler.model.state_dict())
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
        if self.recipe.task is not None:  # of a cascade, its first stage's
            return source_shape(self.recipe.task, self.recipe.data.image_size)
        return None if self.task is None else source_shape(self.task, self.image_size)

    @property
    def task(self) -> Task | None:
        """What `transform` does: the recipe's task; in-painting by a diffusion model, without training for it."""
        return Inpaint() if self.is_diffusion and self.recipe.task is None else self.recipe.task

    def condition_of(self, cond: Cond) -> Tensor | None:
        """The codes of the sources of images at the model's size, int64 [B, hc, wc]. None: there are no sources."""
        if cond.source is None:
            return None
        return code_images.condition_codes(self, cond.source, (self.image_size, self.image_size))

    @property
    def is_diffusion(self) -> bool:
        """Whether the model is a diffusion model, over codes or of pixels."""
        return isinstance(self.model, CodeDenoiser | ImageDenoiser)

    @property
    def has_null(self) -> bool:
        """Whether the model has learned to draw without its condition, which `drop_condition_prob` hid in training."""
        hides = getattr(self.recipe.model, "drop_condition_prob", 0.0) > 0
        return hides and (self.takes_text or self.model.num_classes > 0)

    @property
    def likelihood_bound(self) -> Literal["exact", "upper"]:
        """Whether `code_nats` or `image_nats` are the negative log-likelihood, or an upper bound of it."""
        return "upper" if self.is_diffusion else "exact"

    def levels(self, asked: int | None = None) -> int | None:
        """Returns how many levels of noise `code_nats` or `image_nats` draw for each image; None: the likelihood is exact.

        Raises:
            ConfigError: levels are below 1, or asked of a model whose likelihood is exact.
        """
        if isinstance(self.model, CodeDenoiser):
            return min(LEVELS, self.model.process.num_steps) if asked is None else asked
        if isinstance(self.model, ImageDenoiser):
            if asked is not None and asked < 1:
                raise ConfigError(f"levels = {asked} must be at least 1.")
            return LEVELS if asked is None else asked
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
                (`has_null`) and is given nothing else, such as a class, or over codes a source; otherwise it is an empty
                text, as "" always is.
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
