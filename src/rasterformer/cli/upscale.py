"""`rasterformer upscale`: larger pictures from small ones."""

from __future__ import annotations

from pathlib import Path

from rasterformer.cli.denoising import Denoising
from rasterformer.cli.from_images import Drawing, draw_from_images


def upscale(
    model: Path,
    *images: str,
    drawing: Drawing = Drawing(),  # noqa: B008  frozen
    denoising: Denoising = Denoising(),  # noqa: B008  frozen
) -> int:
    """Draw larger pictures from small ones, with a model of super-resolution or the upscalers of a cascade.

    Args:
        model: run, model folder or checkpoint, of the task super_resolution, or a cascade, whose upscalers then draw alone.
        images: files, folders or patterns; the small pictures, at least of the model's source size: of a cascade, of the size
            that its base model draws.
        drawing: how results are drawn and where they go.
        denoising: options of diffusion models.
    """
    return draw_from_images("upscale", "super_resolution", model, images, drawing, denoising=denoising)
