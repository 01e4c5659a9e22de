"""Running a pipeline: tokenizers first, then the prior over their codes, then pictures. Each stage is a run of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from rasterformer.data.png import image_grid, write_png
from rasterformer.errors import ConfigError
from rasterformer.loading import load
from rasterformer.pipeline_file import Pipeline
from rasterformer.recipe import Recipe
from rasterformer.recipe_file import recipe_hash
from rasterformer.recipe_images import open_recipe_images
from rasterformer.training.run import check_same, read_text_encoder, train_recipe


def train_pipeline(
    pipeline: Pipeline, folder: Path, *, resume: bool = False, say: Callable[[str], None] = print
) -> bool:
    """Trains every stage into a folder of its own and draws samples at the end.

    Args:
        pipeline: with images and places filled in.
        folder: holds the stages' run folders; must be new unless `resume`.
        resume: stages that have ended are left as they are, one that was stopped goes on.
        say: where sentences for people go.

    Returns:
        True when all is done, False when it was stopped and can be resumed.

    Raises:
        ConfigError: the folder holds runs already, or a recipe does not fit.
        DataError, CheckpointError: images or weights cannot be used.
    """
    begun = [stage for stage in pipeline.stages if (folder / stage / "recipe.yaml").is_file()]
    if begun and not resume:
        raise ConfigError(f"{folder} already holds runs. Go on with them by --resume, or give another --out.")
    if resume and not begun:
        raise ConfigError(f"{folder} holds no run to resume. Start without --resume.")
    for stage in begun:
        check_same(pipeline.stages[stage], folder / stage / "recipe.yaml")
    for recipe in pipeline.stages.values():  # what is missing is to be said now, not after an hour
        for split in ("train", "test"):
            images = open_recipe_images(recipe, split)
            if recipe.data.use_labels:
                images.require_labels()
            if recipe.text is not None:
                images.captions_of(torch.arange(0))
        if recipe.text is not None:
            read_text_encoder(recipe.text)
    for number, (stage, recipe) in enumerate(pipeline.stages.items(), start=1):
        place = folder / stage
        say(f"\nstage {number} of {len(pipeline.stages)}: {stage}, in {place}")
        if (place / "model").is_dir():
            say("it has ended before")
            continue
        started = (place / "recipe.yaml").is_file()
        if not train_recipe(recipe, place, resume=started, is_last=number == len(pipeline.stages), say=say):
            say(f"go on with all of it by the same command with --resume; the stages so far are in {folder}")
            return False
    prior = pipeline.stages["prior"]
    if prior.task is None:
        texts = _held_out_captions(prior, pipeline.samples)
        by = None if texts is None else [text or None for text in texts]
        images = load(folder / "prior").sample(pipeline.samples, text=by, seed=0, as_tensor=True)
        about = {"kind": "sample", "recipe": recipe_hash(prior), "seed": 0}
        for k, image in enumerate(images):
            caption = {} if texts is None else {"text": texts[k]}
            write_png(folder / "samples" / f"{k:04d}.png", image, metadata={**about, **caption, "image": k})
            if texts is not None:
                (folder / "samples" / f"{k:04d}.txt").write_text(f"{texts[k]}\n", encoding="utf-8")
        write_png(folder / "samples" / "grid.png", image_grid(images, scale=2), metadata=about)
        of = "" if texts is None else ", by captions of held-out images"
        say(f"\n{pipeline.samples} samples{of}: {folder / 'samples'}")
    else:
        say(f"\nsource | samples | original: {max((folder / 'prior' / 'samples').glob('*.png'))}")
    return True


def _held_out_captions(recipe: Recipe, count: int) -> list[str] | None:
    """Captions to draw by, from the first held-out image on; None where the model takes none."""
    if recipe.text is None:
        return None
    images = open_recipe_images(recipe, "test")
    return images.captions_of(torch.arange(count) % len(images))
