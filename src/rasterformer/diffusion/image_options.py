"""How to draw from a diffusion model of pixels: steps, sampler, guidance, thresholding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from rasterformer.diffusion.samplers import Sampler
from rasterformer.diffusion.thresholding import PERCENTILE
from rasterformer.errors import ConfigError, did_you_mean

Threshold = Literal["dynamic", "static", "none"]
STEPS = 50


@dataclass(frozen=True)
class ImageOptions:
    """What can be said about drawing pixels by diffusion.

    Args:
        steps: from noise to image. None: 50.
        sampler: see `samplers.draw_images`.
        guidance_scale: w: null + w (given - null) of the network's outputs; 1 is no guidance and half the work.
        guidance_rescale: 0..1: how far guidance's contrast is taken back (`thresholding.guided`).
        threshold: what keeps predicted images in -1..1: `dynamic` (Saharia et al. 2022, section 2.3), `static`: clipped, or
            `none`.
        percentile: of dynamic thresholding.
        threshold_cap: the largest threshold of dynamic thresholding, at least 1. None: no limit.
        variance: 0..1: of a step of the ancestral sampler: 0 the posterior's, 1 the upper end (`GaussianProcess.posterior`).
        source_noise: t of the noise put on the small image that a super-resolution model sees, 0..1, for models that were
            trained with `source_noise`. None: 0.1.
        upscaler_steps: of the upscalers of a cascade. None: as `steps`.
        upscaler_guidance_scale: of the upscalers; 1 is no guidance.
        resamplings: how often each step of in-painting is drawn (`paste.fill_images`).
    """

    steps: int | None = None
    sampler: Sampler = "ancestral"
    guidance_scale: float = 1.0
    guidance_rescale: float = 0.0
    threshold: Threshold = "dynamic"
    percentile: float = PERCENTILE
    threshold_cap: float | None = None
    variance: float = 0.0
    source_noise: float | None = None
    upscaler_steps: int | None = None
    upscaler_guidance_scale: float = 1.0
    resamplings: int = 1

    @property
    def num_steps(self) -> int:
        """Steps, with the default where none were asked for."""
        return STEPS if self.steps is None else self.steps


def check_image_options(options: ImageOptions) -> None:
    """Refuses options that describe no way to draw.

    Raises:
        ConfigError: one is unknown or out of range, or has no effect beside another.
    """
    for name, kind in (("sampler", Sampler), ("threshold", Threshold)):
        if getattr(options, name) not in get_args(kind):
            found = getattr(options, name)
            raise ConfigError(f"{name} = {found!r} is unknown.{did_you_mean(found, get_args(kind))}")
    for name in ("steps", "upscaler_steps"):
        if (steps := getattr(options, name)) is not None and steps < 1:
            raise ConfigError(f"{name} = {steps} is too few. Use at least 1.")
    if not 0 <= options.variance <= 1:
        raise ConfigError(f"variance = {options.variance} must lie in 0..1; 0 is the posterior's own.")
    plain = ImageOptions()
    if options.sampler != "ancestral" and options.variance != plain.variance:
        raise ConfigError(
            f"variance = {options.variance} is read by the ancestral sampler only, not by {options.sampler}."
        )
    for name in ("guidance_scale", "upscaler_guidance_scale"):
        if not math.isfinite(getattr(options, name)):
            raise ConfigError(f"{name} = {getattr(options, name)} must be a finite number; 1 is no guidance.")
    if not 0 <= options.guidance_rescale <= 1:
        raise ConfigError(f"guidance_rescale = {options.guidance_rescale} must lie in 0..1; 0 is off.")
    if options.guidance_rescale and (options.guidance_scale, options.upscaler_guidance_scale) == (1, 1):
        raise ConfigError("guidance_rescale takes back what guidance adds, and a guidance scale of 1 adds nothing.")
    if options.threshold != "dynamic" and (options.percentile, options.threshold_cap) != (PERCENTILE, None):
        raise ConfigError(f"percentile and threshold_cap are of threshold = 'dynamic', not of {options.threshold!r}.")
    if not 0 < options.percentile <= 100:
        raise ConfigError(f"percentile = {options.percentile} must lie in (0, 100]; the paper's is {PERCENTILE}.")
    if options.threshold_cap is not None and not options.threshold_cap >= 1:
        raise ConfigError(f"threshold_cap = {options.threshold_cap} must be at least 1, the largest value of an image.")
    if options.source_noise is not None and not 0 <= options.source_noise <= 1:
        raise ConfigError(f"source_noise = {options.source_noise} must lie in 0..1; 0 shows the small image as it is.")
    if options.resamplings < 1:
        raise ConfigError(f"resamplings = {options.resamplings} must be at least 1, which takes no step back.")
