"""Running a pipeline: tokenizers and then the prior over their codes, or the stages of a cascade; then pictures.

Each stage is a run of its own, in a folder of its own. A cascade is joined at the end and lies beside them, in `model`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from rasterformer.cascade import join
from rasterformer.data.png import image_grid, write_png
from rasterformer.errors import ConfigError
from rasterformer.loading import load
from rasterformer.pipeline_file import Pipeline
from rasterformer.recipe import Recipe
from rasterformer.recipe_file import recipe_hash
from rasterformer.recipe_images import open_recipe_images
from rasterformer.training.captions import TEXTS_FOLDER
from rasterformer.training.run import check_same, read_text_encoder, train_recipe
from rasterformer.training.system_learner import draw_more


def train_pipeline(
    pipeline: Pipeline,
    folder: Path,
    *,
    resume: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> bool:
    """Trains every stage into a folder of its own, joins a cascade, and draws samples at the end.

    Args:
        pipeline: with images and places filled in.
        folder: holds the stages' run folders; must be new unless `resume`.
        resume: stages that have ended are left as they are, one that was stopped goes on.
        dry_run: only check and report, stage by stage; a prior is not built before there are its tokenizers.
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
        if dry_run:
            _dry_run(pipeline, folder, stage, resume=started, say=say)
            continue
        is_last = number == len(pipeline.stages) and not pipeline.is_cascade
        if pipeline.is_cascade:
            _share_texts(pipeline, folder, stage)
        if not train_recipe(recipe, place, resume=started, is_last=is_last, say=say):
            say(f"go on with all of it by the same command with --resume; the stages so far are in {folder}")
            return False
    if dry_run:
        return True
    if pipeline.is_cascade:
        if not (folder / "model").is_dir():
            base, *upscalers = (load(folder / stage) for stage in pipeline.stages)
            join(base, upscalers).save(folder / "model")
        _draw_samples(folder, pipeline.stages["base"], pipeline.samples, folder / "samples", say)
        say(f"model: {folder / 'model'}\nnow:  {draw_more(pipeline.stages['base'], folder)}")
    elif (prior := pipeline.stages["prior"]).task is None:
        _draw_samples(folder / "prior", prior, pipeline.samples, folder / "samples", say)
    else:
        say(f"\nsource | samples | original: {max((folder / 'prior' / 'samples').glob('*.png'))}")
    return True


def _dry_run(pipeline: Pipeline, folder: Path, stage: str, *, resume: bool, say: Callable[[str], None]) -> None:
    """Checks one stage and says what it takes, as far as that is known before the stages that it is built on."""
    missing = [part for part in pipeline.stages if part != stage and not (folder / part / "model").is_dir()]
    if stage == "prior" and missing:
        say(
            f"its images fit; its network is built on the codes of {' and '.join(missing)}, so that what it takes is known once "
            "that is trained"
        )
    else:
        train_recipe(pipeline.stages[stage], folder / stage, resume=resume, dry_run=True, say=say)


def _draw_samples(model: Path, recipe: Recipe, count: int, folder: Path, say: Callable[[str], None]) -> None:
    """Writes samples of a trained model one by one and in a grid; beside each the caption that it was drawn by."""
    texts = _held_out_captions(recipe, count)
    by = None if texts is None else [text or None for text in texts]
    images = load(model).sample(count, text=by, seed=0, as_tensor=True)
    about = {"kind": "sample", "recipe": recipe_hash(recipe), "seed": 0}
    for k, image in enumerate(images):
        caption = {} if texts is None else {"text": texts[k]}
        write_png(folder / f"{k:04d}.png", image, metadata={**about, **caption, "image": k})
        if texts is not None:
            (folder / f"{k:04d}.txt").write_text(f"{texts[k]}\n", encoding="utf-8")
    write_png(folder / "grid.png", image_grid(images, scale=2), metadata=about)
    of = "" if texts is None else ", by captions of held-out images"
    say(f"\n{count} samples{of}: {folder}")


def _share_texts(pipeline: Pipeline, folder: Path, stage: str) -> None:
    """Copies what the first stage has read of captions to a new one with the same text encoder and the same images."""
    base, recipe = pipeline.stages["base"], pipeline.stages[stage]
    source, place = folder / "base" / TEXTS_FOLDER, folder / stage / TEXTS_FOLDER
    if source.is_dir() and not place.exists() and (base.text, base.data.path) == (recipe.text, recipe.data.path):
        shutil.copytree(source, place)


def _held_out_captions(recipe: Recipe, count: int) -> list[str] | None:
    """Captions to draw by, from the first held-out image on; None where the model takes none."""
    if recipe.text is None:
        return None
    images = open_recipe_images(recipe, "test")
    return images.captions_of(torch.arange(count) % len(images))
