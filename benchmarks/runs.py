"""Trained runs that benchmarks share: found in a folder, or trained there; their likelihood, and what is said of them."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from rasterformer.data.imageset import ImageSet
from rasterformer.evaluation.likelihood import LikelihoodReport, evaluate_likelihood
from rasterformer.loading import load
from rasterformer.recipe import Recipe
from rasterformer.recipe_file import recipe_to_dict
from rasterformer.system import System
from rasterformer.tasks import task_name
from rasterformer.training.run import train_recipe


def load_or_train(recipe: Recipe, folder: Path, *, minutes: float) -> System:
    """Loads the run of a folder; one that is not there, or not finished, is trained first."""
    if not (folder / "model").is_dir():
        recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, minutes=minutes))
        if not train_recipe(recipe, folder, resume=(folder / "recipe.yaml").exists()):
            sys.exit("stopped. The same command goes on.")
    return load(folder)


def likelihood(name: str, system: System, held_out: ImageSet) -> LikelihoodReport:
    """Bits/dim of all held-out images."""
    return evaluate_likelihood(
        system,
        held_out,
        model=name,
        dtype="float32",
        task=None if system.recipe.task is None else task_name(system.recipe.task),
        with_source=lambda batch, first: system.with_source(batch, first=first, purpose="held-out source", seed=0),
    )


def run_record(system: System) -> dict[str, Any]:
    """What was trained."""
    return {
        "parameters": sum(weight.numel() for weight in system.model.parameters()),
        "steps": system.steps,
        "minutes": system.recipe.training.minutes,
        "recipe": recipe_to_dict(system.recipe),
    }
