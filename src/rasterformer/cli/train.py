"""`rasterformer train`: from a recipe and a folder of images to a run."""

import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rasterformer.cli.overrides import parse_overrides
from rasterformer.errors import ConfigError
from rasterformer.pipeline_file import load_pipeline, with_data
from rasterformer.recipe_file import load_recipe


def train(
    recipe: str,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)],
    data: str | None = None,
    out: Path | None = None,
    resume: bool = False,
    init: Path | None = None,
    dry_run: bool = False,
) -> int:
    """Train a model by a recipe on your images.

    Any field of the recipe can be overridden: `--model.depth 8 --training.steps=2000`. `rasterformer recipes` lists the
    shipped recipes and `rasterformer recipes copy NAME` gives you one to edit. A pipeline trains several models one after the
    other, such as a tokenizer and the prior over its codes, or the stages of a cascade; its overrides begin with the stage:
    `--prior.model.depth 8`.

    Args:
        recipe: a YAML file or the name of a shipped recipe.
        data: folder of images, .npz file or embedded set; overrides data.path.
        out: run folder to make. Default: runs/RECIPE.
        resume: go on with the run in `out`.
        init: start from the weights of a trained model (fine-tuning): a run, model folder or checkpoint.
        dry_run: check everything, say what would be done, and stop; of a pipeline, stage by stage.
    """
    from rasterformer.training.interrupt import saying_what_is_kept
    from rasterformer.training.pipeline import train_pipeline
    from rasterformer.training.run import train_recipe

    folder = Path("runs") / Path(recipe).stem if out is None else out
    pipeline = load_pipeline(recipe, parse_overrides(overrides))
    if pipeline is not None:
        if init is not None:
            raise ConfigError(f"{recipe} is a pipeline: --init is for the recipes of its stages.")
        filled_in = with_data(pipeline, data, folder)
        with saying_what_is_kept(folder):
            return 0 if train_pipeline(filled_in, folder, resume=resume, dry_run=dry_run) else 130
    filled = load_recipe(recipe, parse_overrides(overrides))
    if data is not None:
        filled = dataclasses.replace(filled, data=dataclasses.replace(filled.data, path=data))
    if resume and init is not None:
        raise ConfigError("--resume goes on with a run's own weights; --init starts from others. Give one of them.")
    with saying_what_is_kept(folder):
        return 0 if train_recipe(filled, folder, resume=resume, init=init, dry_run=dry_run) else 130
