"""`rasterformer denoise`: clean pictures from noisy ones."""

from __future__ import annotations

from pathlib import Path

from rasterformer.cli.denoising import Denoising
from rasterformer.cli.from_images import Drawing, draw_from_images


def denoise(
    model: Path,
    *images: str,
    drawing: Drawing = Drawing(),  # noqa: B008  frozen
    denoising: Denoising = Denoising(),  # noqa: B008  frozen
) -> int:
    """Draw clean pictures from noisy ones.

    Args:
        model: run, model folder or checkpoint, of the task denoise.
        images: files, folders or patterns; the noisy pictures, at least of the model's size.
        drawing: how results are drawn and where they go.
        denoising: options of diffusion models.
    """
    return draw_from_images("denoise", "denoise", model, images, drawing, denoising=denoising)
