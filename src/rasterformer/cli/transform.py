"""`rasterformer transform`: whatever the model's task makes of pictures."""

from __future__ import annotations

from pathlib import Path

from rasterformer.cli.denoising import Denoising
from rasterformer.cli.from_images import Drawing, draw_from_images


def transform(
    model: Path,
    *images: str,
    drawing: Drawing = Drawing(),  # noqa: B008  frozen
    denoising: Denoising = Denoising(),  # noqa: B008  frozen
) -> int:
    """Draw what the model's task makes of pictures; for models of paired folders this is the only way.

    Args:
        model: run, model folder or checkpoint, of any task without a mask.
        images: files, folders or patterns; the source pictures, at least of the model's source size.
        drawing: how results are drawn and where they go.
        denoising: options of diffusion models.
    """
    return draw_from_images("transform", None, model, images, drawing, denoising=denoising)
