"""How diffusion models draw: options that several commands share, and what a result's file says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from rasterformer.drawing.options import DrawingOptions
    from rasterformer.system import System

GuidanceScale = Annotated[float, Parameter(name=["--guidance-scale", "--guidance"])]
UpscalerGuidanceScale = Annotated[float, Parameter(name=["--upscaler-guidance-scale", "--upscaler-guidance"])]


@Parameter(name="*")
@dataclass(frozen=True)
class Denoising:
    """Options of diffusion models, over codes or of pixels. `DrawingOptions` has the same, with the same defaults.

    Args:
        steps: of a diffusion model: from noise to image; fewer are faster. Default: over codes one for each level of noise of its
            training, which is the most; of pixels 50.
        order: of a diffusion model over codes: which codes a step decides: each by itself (posterior), or a planned number of
            them, anywhere (random), where the network is sure (purity), or those it is surest of (confidence).
        purity_weight: of a diffusion model over codes: sharpen what the network is sure of, 0 is off.
        sampler: of a diffusion model of pixels: how a step is made. ancestral adds noise of its own; ddim, dpmpp_2m and heun add
            none, and heun asks the network twice. Missing parts are drawn by ancestral, always.
        guidance_rescale: of a diffusion model of pixels: how far the contrast that guidance adds is taken back, 0 to 1.
        threshold: of a diffusion model of pixels: how predicted images are kept in range: scaled by their brightest pixels
            (dynamic), cut off (static), or not at all (none).
        percentile: of dynamic thresholding: share of the pixels that are not cut off, percent.
        threshold_cap: of dynamic thresholding: the most by which it scales down, at least 1. Default: no limit.
        variance: of the ancestral sampler: 0 is the least noise in a step, 1 the most.
        source_noise: of models of super-resolution trained with model.source_noise, and cascades of them: noise on the small
            picture, 0 to 1: more invents more. Default: 0.1.
        upscaler_steps: of the upscalers of a cascade. Default: as --steps.
        upscaler_guidance_scale: of the upscalers of a cascade; 1 is no guidance.
        resamplings: of a diffusion model of pixels that draws missing parts: how often each step is drawn; more fit better.
        negative: of a diffusion model of pixels with captions: a text that guidance leads away from.
    """

    steps: int | None = None
    order: Literal["posterior", "random", "purity", "confidence"] = "posterior"
    purity_weight: float = 0.0
    sampler: Literal["ancestral", "ddim", "dpmpp_2m", "heun"] = "ancestral"
    guidance_rescale: float = 0.0
    threshold: Literal["dynamic", "static", "none"] = "dynamic"
    percentile: float = 99.5
    threshold_cap: float | None = None
    variance: float = 0.0
    source_noise: float | None = None
    upscaler_steps: int | None = None
    upscaler_guidance_scale: UpscalerGuidanceScale = 1.0
    resamplings: int = 1
    negative: str | None = None


def record(
    system: System,
    how: DrawingOptions,
    *,
    label: str | None,
    text: str | None,
    is_filling: bool = False,
    upscalers_alone: bool = False,
) -> dict[str, Any]:
    """What a result's file says of how it was drawn: the options that its kind of model reads, as they were used.

    Args:
        system: the model.
        how: the options.
        label, text: as typed.
        is_filling: missing parts of pictures were drawn.
        upscalers_alone: of a cascade they drew, and the base model did not.
    """
    from rasterformer.diffusion.image_denoiser import ImageDenoiser
    from rasterformer.drawing.options import OF_CODE_DIFFUSION, SYMBOLS

    said: dict[str, Any] = {"label": label, "seed": how.seed, "precision": how.precision}
    if isinstance(system.model, ImageDenoiser):
        used: dict[str, Any] = {} if upscalers_alone else {"steps": how.pixels.num_steps}
        used |= _of_upscalers(how) if system.upscalers else {}
        used |= _of_all_stages(system, how, is_filling=is_filling)
        told = {"text": text} if upscalers_alone else {"text": text, "guidance_scale": how.guidance_scale}
        return said | told | {f"denoising_{name}": value for name, value in used.items()}
    said |= {name: getattr(how, name) for name in SYMBOLS}
    if system.tokenizer is not None:
        said |= {"guidance_scale": how.guidance_scale, "window_stride": how.window_stride, "text": text}
    if system.is_diffusion:
        said |= {f"denoising_{name}": getattr(how, name) for name in OF_CODE_DIFFUSION}
    return said


def _of_upscalers(how: DrawingOptions) -> dict[str, Any]:
    from rasterformer.drawing.stages import stage_options

    steps = stage_options(how.pixels, 1).num_steps
    return {"upscaler_steps": steps, "upscaler_guidance_scale": how.upscaler_guidance_scale}


def _of_all_stages(system: System, how: DrawingOptions, *, is_filling: bool) -> dict[str, Any]:
    """What had an effect, with numbers in place of None."""
    from rasterformer.diffusion.image_denoiser import ImageDenoiser
    from rasterformer.drawing.stages import SOURCE_NOISE, stages_of

    sampler = "ancestral" if is_filling else how.sampler
    used: dict[str, Any] = {"sampler": sampler, "threshold": how.threshold}
    if how.threshold == "dynamic":
        used |= {"percentile": how.percentile, "threshold_cap": how.threshold_cap}
    if sampler == "ancestral":
        used["variance"] = how.variance
    if is_filling:
        used["resamplings"] = how.resamplings
    if how.guidance_scale != 1.0 or how.upscaler_guidance_scale != 1.0:
        used |= {"guidance_rescale": how.guidance_rescale, "negative": how.negative}
    models = [stage.model for stage in stages_of(system)]
    if any(isinstance(model, ImageDenoiser) and model.source_process is not None for model in models):
        used["source_noise"] = SOURCE_NOISE if how.source_noise is None else how.source_noise
    return used
