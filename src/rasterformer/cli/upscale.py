"""`rasterformer upscale`: larger pictures from small ones."""

from __future__ import annotations

from pathlib import Path

from rasterformer.cli.from_images import Drawing, draw_from_images


def upscale(model: Path, *images: str, drawing: Drawing = Drawing()) -> int:  # noqa: B008  frozen
    """Draw larger pictures from small ones, with a model of super-resolution.

    Args:
        model: run, model folder or checkpoint, of the task super_resolution.
        images: files, folders or patterns; the small pictures, at least of the model's source size.
        drawing: how results are drawn and where they go.
    """
    return draw_from_images("upscale", "super_resolution", model, images, drawing)
