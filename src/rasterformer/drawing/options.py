"""All that can be said about how images are drawn, of whichever kind of model, and which kind takes what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

from rasterformer.batches import OnImages
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.diffusion.image_denoiser import ImageDenoiser
from rasterformer.diffusion.image_options import ImageOptions, Threshold
from rasterformer.diffusion.options import Order
from rasterformer.diffusion.samplers import Sampler
from rasterformer.diffusion.thresholding import PERCENTILE
from rasterformer.drawing.code_images import CodeOptions
from rasterformer.drawing.conditions import Label, Text
from rasterformer.errors import ConfigError
from rasterformer.interfaces import OnStep, SampleOptions

if TYPE_CHECKING:
    from rasterformer.system import System

Precision = Literal["float32", "bfloat16"]
Part = TypeVar("Part", SampleOptions, CodeOptions, ImageOptions)


@dataclass(frozen=True)
class DrawingOptions:
    """How images are drawn. A model refuses what is not for its kind.

    Args:
        seed: any integer.
        batch_size: images drawn at a time. None: as many as half of the free memory holds, at most 64.
        precision: of layers and caches. `bfloat16` is faster with many images and draws from a rounded model.
        parallel: draw one image at a time, several positions per pass; the same images. Worth it for a few images of separate
            channels, which are well predictable. Of models that draw one symbol after another.
        temperature, top_k, top_p: see `SampleOptions`. Of models that draw symbols.
        guidance_scale: above 1 the condition counts more than it did in training, by `drop_condition_prob`. Of models over codes
            and diffusion models.
        size: height and width, pixels, of images that need not be as in training. Of models over codes, which draw larger ones by
            a sliding window, and of diffusion models of pixels, which draw any size at once.
        window_stride: the sliding window moves on by so many codes; more is faster. None: 1, the paper's rule; of a diffusion
            model half a window. Of models over codes.
        steps: of diffusion models, see `DiffusionOptions` and `ImageOptions`.
        order, purity_weight: of diffusion models over codes, see `DiffusionOptions`.
        sampler, guidance_rescale, threshold, percentile, threshold_cap, variance, source_noise, upscaler_steps,
            upscaler_guidance_scale, resamplings: of diffusion models of pixels, see `ImageOptions`.
        negative: a text that guidance leads away from, in place of nothing. Of diffusion models of pixels with texts.
        on_step: told (positions or steps done, all of them) over all batches.
        on_images: given (index of the first, uint8 [B, 3, H, W]) of every batch when it is done.
    """

    seed: int = 0
    batch_size: int | None = None
    precision: Precision = "float32"
    parallel: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance_scale: float = 1.0
    size: tuple[int, int] | None = None
    window_stride: int | None = None
    steps: int | None = None
    order: Order = "posterior"
    purity_weight: float = 0.0
    sampler: Sampler = "ancestral"
    guidance_rescale: float = 0.0
    threshold: Threshold = "dynamic"
    percentile: float = PERCENTILE
    threshold_cap: float | None = None
    variance: float = 0.0
    source_noise: float | None = None
    upscaler_steps: int | None = None
    upscaler_guidance_scale: float = 1.0
    resamplings: int = 1
    negative: str | None = None
    on_step: OnStep | None = None
    on_images: OnImages | None = None

    @property
    def symbols(self) -> SampleOptions:
        """What is for all models that draw symbols."""
        return self._part(SampleOptions)

    @property
    def codes(self) -> CodeOptions:
        """What is for models over codes besides."""
        return self._part(CodeOptions)

    @property
    def pixels(self) -> ImageOptions:
        """What is for diffusion models of pixels."""
        return self._part(ImageOptions)

    def _part(self, kind: type[Part]) -> Part:
        return kind(**{field.name: getattr(self, field.name) for field in fields(kind)})


class DrawingArguments(TypedDict, total=False):
    """The arguments that the methods of `System` share; `DrawingOptions` says what they mean and what they are if left out."""

    seed: int
    batch_size: int | None
    precision: Precision
    parallel: bool
    temperature: float
    top_k: int | None
    top_p: float | None
    guidance_scale: float
    size: tuple[int, int] | None
    window_stride: int | None
    steps: int | None
    order: Order
    purity_weight: float
    sampler: Sampler
    guidance_rescale: float
    threshold: Threshold
    percentile: float
    threshold_cap: float | None
    variance: float
    source_noise: float | None
    upscaler_steps: int | None
    upscaler_guidance_scale: float
    resamplings: int
    negative: str | None
    on_step: OnStep | None
    on_images: OnImages | None


class TransformArguments(DrawingArguments, total=False):
    """The arguments of `System.transform` that the methods which are one of its tasks take, too."""

    n: int
    label: Label | Sequence[Label]
    text: Text | Sequence[Text]
    tile: bool
    overlap: int | None
    as_tensor: bool


SYMBOLS = ("temperature", "top_k", "top_p")
OF_PIXELS = ("parallel", *SYMBOLS)
OF_CODES = ("guidance_scale", "size", "window_stride")
OF_CODE_DIFFUSION = ("steps", "order", "purity_weight")
OF_PIXEL_DIFFUSION = ("negative", *(field.name for field in fields(ImageOptions)))


def need_options(system: System, how: DrawingOptions) -> None:
    """Refuses what is not for the model's kind, and guidance that it has not learned.

    Raises:
        ConfigError: `how` says such a thing.
    """
    if isinstance(system.model, ImageDenoiser):
        taken, kind = ("size", *OF_PIXEL_DIFFUSION), "a diffusion model of pixels"
    elif isinstance(system.model, CodeDenoiser):
        taken, kind = (*SYMBOLS, *OF_CODES, *OF_CODE_DIFFUSION), "a diffusion model over codes"
    elif system.tokenizer is not None:
        taken, kind = (*OF_PIXELS, *OF_CODES), "a model that draws code by code"
    else:
        taken, kind = OF_PIXELS, "a model that draws pixel by pixel"
    plain, general = DrawingOptions(), ("seed", "batch_size", "precision", "on_step", "on_images")
    foreign = [
        field.name
        for field in fields(how)
        if field.name not in (*general, *taken) and getattr(how, field.name) != getattr(plain, field.name)
    ]
    if foreign:
        raise ConfigError(
            f"{foreign[0]} = {getattr(how, foreign[0])!r} has no meaning here: this is {kind}. "
            f"It takes {', '.join(taken)}; leave {foreign[0]} out."
        )
    if how.guidance_scale != 1.0 and system.recipe.model.drop_condition_prob == 0.0:
        raise ConfigError(
            f"guidance_scale = {how.guidance_scale} needs a model that has seen images without their condition. Train it "
            "with model.drop_condition_prob = 0.1, or leave the option out."
        )
    _need_upscalers(system, how)
    if how.negative is not None and not system.takes_text:
        raise ConfigError(
            f"negative = {how.negative!r} is a text, and this model was trained without captions. Leave it out."
        )
    if how.negative is not None and (how.guidance_scale, how.upscaler_guidance_scale) == (1.0, 1.0):
        raise ConfigError(
            "negative is what guidance leads away from, and guidance_scale = 1 is no guidance. Use 3, for example."
        )


def _need_upscalers(system: System, how: DrawingOptions) -> None:
    """Refuses what is said about upscalers and noise on sources where there are none."""
    if not isinstance(system.model, ImageDenoiser):
        return
    asked: dict[str, Any] = {"upscaler_steps": None, "upscaler_guidance_scale": 1.0}
    for name, default in asked.items():
        if getattr(how, name) != default and not system.upscalers:
            raise ConfigError(
                f"{name} = {getattr(how, name)} is for a cascade, and this model has no upscalers. Leave it out."
            )
    if how.upscaler_guidance_scale != 1.0:
        for upscaler in system.upscalers:
            if not upscaler.has_null:
                raise ConfigError(
                    f"upscaler_guidance_scale = {how.upscaler_guidance_scale} needs upscalers that were trained with captions or "
                    "classes and model.drop_condition_prob. Leave it out."
                )
    models = [system.model, *(upscaler.model for upscaler in system.upscalers)]
    if how.source_noise is not None:
        learned = [model.most_source_noise for model in models if isinstance(model, ImageDenoiser)]
        most = min((noise for noise in learned if noise > 0), default=0.0)
        if most < how.source_noise <= 1:  # what is no time at all is refused by check_image_options
            raise ConfigError(
                f"source_noise = {how.source_noise} is more noise than the upscaler has learned to see through: "
                f"at most {most} (model.source_noise). Use less, or leave it out."
                if most
                else f"source_noise = {how.source_noise} is for models of super-resolution that were trained with "
                "model.source_noise, and this one was not. Leave it out."
            )
