"""A pipeline as a YAML file: the recipes of all its stages, from a folder of images to pictures. No torch here.

pipeline:
  tokenizer: {recipe: vqgan, set: {training.minutes: 30}}
  prior: {recipe: vqgan-prior}
samples: 16

These are the stages of a model over codes. Those of a cascade are base, upscaler and upscaler_2.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rasterformer import registry
from rasterformer.errors import ConfigError, did_you_mean
from rasterformer.recipe import Recipe
from rasterformer.recipe_file import load_recipe, read_yaml, recipe_from_dict, recipe_to_dict
from rasterformer.tasks import Paired, SuperResolution, source_shape, task_name

OF_CODES = ("tokenizer", "condition_tokenizer", "prior")
OF_CASCADE = ("base", "upscaler", "upscaler_2")
STAGES = OF_CODES + OF_CASCADE
# fields of `data` that the stages of a cascade share: what a stage draws is what the next one enlarges, of the same images
ALIKE = ("fit", "trim", "reduction", "holdout_fraction")


@dataclass(frozen=True)
class Pipeline:
    """Stages in their order, and what to draw at the end.

    Args:
        stages: name -> recipe; `tokenizer`, `condition_tokenizer` where the prior has a task that needs one, `prior`; or of a
            cascade `base`, `upscaler`, and `upscaler_2` where there is one.
        samples: images drawn at the end, unless the prior has a task.
    """

    stages: dict[str, Recipe]
    samples: int = 16

    @property
    def is_cascade(self) -> bool:
        """Whether its stages are of a cascade, and not of a model over codes."""
        return "base" in self.stages


def load_pipeline(source: str | Path, overrides: Sequence[tuple[str, str]] = ()) -> Pipeline | None:
    """Returns the pipeline of a file or shipped name; None where it is a recipe.

    Args:
        source: as for `load_recipe`.
        overrides: pairs such as `("tokenizer.training.minutes", "5")`: stage, section and field.

    Raises:
        ConfigError: as `load_recipe`; a stage is unknown, missing or of another kind of pipeline; a recipe is not of the kind
            that its stage needs; or stages do not fit one another.
    """
    content = read_yaml(source)
    if "pipeline" not in content:
        return None
    stages = content["pipeline"]
    unknown = [key for key in content if key not in ("pipeline", "samples")]
    if unknown or not isinstance(stages, dict):
        raise ConfigError(
            f"{source}: a pipeline has the sections pipeline and samples, but there is {', '.join(unknown) or stages}."
        )
    wrong = [name for name in stages if name not in STAGES]
    if wrong:
        raise ConfigError(f"{source}: pipeline.{wrong[0]} is no stage.{did_you_mean(wrong[0], STAGES)}")
    is_cascade = any(name in stages for name in OF_CASCADE)
    kind, needed = (OF_CASCADE, ("base", "upscaler")) if is_cascade else (OF_CODES, ("tokenizer", "prior"))
    if others := [name for name in stages if name not in kind]:
        raise ConfigError(
            f"{source}: pipeline.{others[0]} is no stage of a cascade, which has {', '.join(OF_CASCADE)}. A pipeline of codes "
            f"has {', '.join(OF_CODES)}."
        )
    missing = [name for name in needed if name not in stages]
    if missing:
        raise ConfigError(f"{source}: pipeline.{missing[0]} is missing.")
    samples = content.get("samples", 16)
    if type(samples) is not int or samples < 1:
        raise ConfigError(f"{source}: samples = {samples!r} must be a whole number of at least 1.")
    by_stage: dict[str, list[tuple[str, str]]] = {name: [] for name in stages}
    for name, text in overrides:
        stage, dot, field = name.partition(".")
        if stage not in by_stage or not dot:
            example = "base.training.minutes" if is_cascade else "prior.model.depth"
            raise ConfigError(
                f"override {name!r} names no stage of this pipeline.{did_you_mean(stage, by_stage)} Example: {example}."
            )
        by_stage[stage].append((field, text))
    recipes = {name: _stage(str(source), name, stages[name], by_stage[name]) for name in STAGES if name in stages}
    if is_cascade:
        _check_cascade(str(source), recipes)
        return Pipeline(recipes, samples)
    task = recipes["prior"].task
    needs = task is not None and not isinstance(task, SuperResolution)
    if needs != ("condition_tokenizer" in recipes):
        raise ConfigError(
            f"{source}: the prior's task {'needs' if needs else 'has no use for'} a stage condition_tokenizer."
        )
    return Pipeline(recipes, samples)


def with_data(pipeline: Pipeline, data: str | None, folder: Path) -> Pipeline:
    """Returns the pipeline with images and the places of its tokenizers filled in.

    Args:
        pipeline: as loaded.
        data: images of all stages. None: those of the recipes.
        folder: of the pipeline's runs, one folder for each stage.

    Raises:
        ConfigError: a stage does not fit the others.
    """
    if pipeline.is_cascade:
        filled = {name: _with_path(recipe, data) for name, recipe in pipeline.stages.items()}
        return dataclasses.replace(pipeline, stages=filled)
    stages = {}
    task = pipeline.stages["prior"].task
    for name, recipe in pipeline.stages.items():
        path, prior = data, pipeline.stages["prior"].data
        if name == "condition_tokenizer" and task is not None:
            if recipe.task is not None:
                raise ConfigError("condition_tokenizer.task is that of the prior: leave it out there.")
            size = source_shape(task, prior.image_size).size
            settings = dataclasses.replace(recipe.data, image_size=size, fit=prior.fit, trim=prior.trim)
            if isinstance(task, Paired):  # it is trained on the sources themselves
                path = task.source_path
                settings = dataclasses.replace(settings, reduction=task.source_reduction)
            recipe = dataclasses.replace(recipe, data=settings, task=None if isinstance(task, Paired) else task)
        recipe = _with_path(recipe, path)
        if name == "prior":
            places = {part: str(folder / part) for part in pipeline.stages if part != "prior"}
            recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **places))
        stages[name] = recipe_from_dict(
            recipe_to_dict(recipe), where=f"stage {name}"
        )  # what was filled in must fit, too
    return dataclasses.replace(pipeline, stages=stages)


def _with_path(recipe: Recipe, path: str | None) -> Recipe:
    """The recipe with other images; with its own where none are given."""
    if path is None:
        return recipe
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, path=path))


def _stage(source: str, name: str, content: Any, overrides: Sequence[tuple[str, str]]) -> Recipe:
    if not isinstance(content, dict) or "recipe" not in content or set(content) - {"recipe", "set"}:
        raise ConfigError(f"{source}: pipeline.{name} = {content!r} must have a recipe, and may have fields to set.")
    fields = content.get("set", {})
    if not isinstance(fields, dict):
        raise ConfigError(f"{source}: pipeline.{name}.set = {fields!r} must be fields, such as training.minutes: 5.")
    own = [(str(field), json.dumps(value)) for field, value in fields.items()]
    recipe = load_recipe(content["recipe"], [*own, *overrides])
    if name in OF_CASCADE:
        fits, needed = hasattr(recipe.model, "source_noise"), "a diffusion model of pixels, such as imagen-unet"
    elif name == "prior":
        fits, needed = hasattr(recipe.model, "tokenizer"), "a model over codes, such as vqgan-prior"
    else:
        fits, needed = recipe.system in registry.TOKENIZERS, "a tokenizer, such as vqgan"
    if not fits:
        raise ConfigError(f"{source}: pipeline.{name} has a recipe of system {recipe.system}; it needs {needed}.")
    return recipe


def _check_cascade(source: str, stages: dict[str, Recipe]) -> None:
    """Refuses stages of which one cannot enlarge what the one before draws; says all that is wrong."""
    base, found = stages["base"], []
    if base.task is not None:
        found.append(f"base.task is {task_name(base.task)}, but the base draws from nothing: leave it out there.")
    before, size = "base", base.data.image_size
    for name, recipe in list(stages.items())[1:]:
        if not isinstance(recipe.task, SuperResolution):
            kind = "missing" if recipe.task is None else task_name(recipe.task)
            found.append(f"{name}.task is {kind}; an upscaler needs super_resolution.")
        elif (side := source_shape(recipe.task, recipe.data.image_size).size) != size:
            found.append(
                f"{name}.data.image_size = {recipe.data.image_size} and {name}.task.factor = {recipe.task.factor} make images "
                f"from those of {side}x{side} pixels, but {before} draws {size}x{size} ({before}.data.image_size)."
            )
        if recipe.data.use_labels and not base.data.use_labels:
            found.append(
                f"{name}.data.use_labels = true, but base.data.use_labels = false: set both, or this to false."
            )
        for field in ALIKE:
            one, other = getattr(recipe.data, field), getattr(base.data, field)
            if one != other:
                found.append(
                    f"{name}.data.{field} = {one!r}, but base.data.{field} = {other!r}: they must be the same."
                )
        before, size = name, recipe.data.image_size
    if found:
        raise ConfigError("\n  ".join([f"{source}: the stages do not fit:", *found]))
