"""`rasterformer restore`: missing parts of pictures, drawn by a model of in-painting."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rasterformer.cli.denoising import Denoising
from rasterformer.cli.from_images import Drawing, draw_from_images
from rasterformer.cli.missing import Missing
from rasterformer.errors import ConfigError


def restore(
    model: Path,
    *images: str,
    mask: Path | None = None,
    rectangle: Annotated[tuple[int, int, int, int] | None, Parameter(negative="")] = None,
    extend: Annotated[tuple[int, int, int, int] | None, Parameter(negative="")] = None,
    drawing: Drawing = Drawing(),  # noqa: B008  frozen
    denoising: Denoising = Denoising(),  # noqa: B008  frozen
) -> int:
    """Draw missing parts of pictures; all other pixels stay exactly as they are.

    Say what is missing by --mask, --rectangle or --extend, the same for all pictures; with --original none is needed by a model
    of the task inpaint.

    Args:
        model: run, model folder or checkpoint, of the task inpaint, or of a diffusion model, which needs no training for it.
        images: files, folders or patterns; the pictures, at least of the model's size.
        mask: a picture of the same size: white where something is to be drawn, black where it stays; grey from 128 up counts as
            white. A model over codes sees of the picture only the codes (such as 4x4 pixels) that are black as a whole.
        rectangle: top, left, height and width of what is to be drawn, pixels of the picture before --crop.
        extend: top, right, bottom and left: the picture goes on by so many pixels on each side (out-painting).
        drawing: how results are drawn and where they go.
        denoising: options of diffusion models.
    """
    if sum(given is not None for given in (mask, rectangle, extend)) > 1:
        raise ConfigError("--mask, --rectangle and --extend all say what is missing: give one of them.")
    if extend is not None:
        if drawing.original:
            raise ConfigError("--extend makes pictures larger, --original reduces them: give one of them.")
        if min(extend) < 0 or not any(extend):
            raise ConfigError(f"--extend {' '.join(map(str, extend))} must be pixels, 0 or more and not all 0.")
    elif mask is None and rectangle is None:
        if not drawing.original:
            raise ConfigError(
                "what is missing? Give --mask FILE, --rectangle TOP LEFT HEIGHT WIDTH, or --extend TOP RIGHT BOTTOM LEFT."
            )
        return draw_from_images("restore", "inpaint", model, images, drawing, denoising=denoising)
    missing = Missing(mask, rectangle, extend)
    return draw_from_images("restore", "inpaint", model, images, drawing, denoising=denoising, missing=missing)
