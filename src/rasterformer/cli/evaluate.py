"""`rasterformer evaluate`: bits/dim of held-out images, with all that must be known to compare it."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Literal


def evaluate(
    model: Path,
    *,
    data: str | None = None,
    split: Literal["test", "train", "all"] = "test",
    limit: int | None = None,
    batch_size: int = 16,
    json: Path | None = None,
) -> None:
    """Measure a model on held-out images: bits/dim with an interval.

    The likelihood is computed in float32. PNG and WebP sizes of the same images stand beside it, and images that are
    also in the training split are counted.

    Args:
        model: run, model folder or checkpoint.
        data: images to measure on. Default: the data of the model's recipe.
        split: the data's own test split, or the share held out from training.
        limit: only the first so many images.
        batch_size: images scored at a time.
        json: write the report into this file.
    """
    from rich.console import Console

    from rasterformer import load
    from rasterformer.cli.progress import step_progress
    from rasterformer.data import open_images
    from rasterformer.evaluation.likelihood import evaluate_likelihood

    system = load(model)
    settings = system.recipe.data
    path = data if data is not None else str(settings.path)

    def images(part: Literal["test", "train", "all"]):  # type: ignore[no-untyped-def]
        return open_images(
            path,
            image_size=settings.image_size,
            fit=settings.fit,
            split=part,
            holdout_fraction=settings.holdout_fraction,
        )

    with step_progress("scoring") as on_progress:
        report = evaluate_likelihood(
            system,
            images(split),
            model=str(model),
            dtype="float32",
            use_labels=settings.use_labels,
            training_set=images("train") if split == "test" else None,
            limit=limit,
            batch_size=batch_size,
            on_progress=on_progress,
        )
    Console().print(report.table())
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(json_format.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
        print(f"{json} written")
