"""`rasterformer vary`: pictures that resemble given ones."""

from __future__ import annotations

from pathlib import Path

from rasterformer.cli.denoising import Denoising
from rasterformer.cli.from_images import Drawing, draw_from_images
from rasterformer.errors import ConfigError


def vary(
    model: Path,
    *images: str,
    strength: float = 0.5,
    drawing: Drawing = Drawing(),  # noqa: B008  frozen
    denoising: Denoising = Denoising(),  # noqa: B008  frozen
) -> int:
    """Draw pictures that resemble given ones: noise is put on them, or on their codes, and undone by a diffusion model.

    Args:
        model: run, model folder or checkpoint of a diffusion model.
        images: files, folders or patterns; the pictures, fitted to the model's size as in training.
        strength: share of the noise levels that are undone: 0.2 changes little, of 1 nothing of the picture is left.
        drawing: how results are drawn and where they go. (--original, --tile, --overlap, --window-stride and --crop are for
            other commands.)
        denoising: options of diffusion models.
    """
    if not 0.0 < strength <= 1.0:
        raise ConfigError(f"--strength {strength} must lie above 0 and not above 1.")
    return draw_from_images("vary", None, model, images, drawing, denoising=denoising, strength=strength)
