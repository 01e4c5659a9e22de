"""`rasterformer colourise`: colours for grey pictures."""

from __future__ import annotations

from pathlib import Path

from rasterformer.cli.denoising import Denoising
from rasterformer.cli.from_images import Drawing, draw_from_images


def colourise(
    model: Path,
    *images: str,
    drawing: Drawing = Drawing(),  # noqa: B008  frozen
    denoising: Denoising = Denoising(),  # noqa: B008  frozen
) -> int:
    """Draw colours for grey pictures; of pictures in colour only the luma is used.

    Args:
        model: run, model folder or checkpoint, of the task colourise.
        images: files, folders or patterns; the grey pictures, at least of the model's size.
        drawing: how results are drawn and where they go.
        denoising: options of diffusion models.
    """
    return draw_from_images("colourise", "colourise", model, images, drawing, denoising=denoising)
