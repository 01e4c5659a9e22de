"""What learners of systems share: what is written to disk, and what can be done with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from rasterformer.recipe import Recipe
from rasterformer.system import System
from rasterformer.tasks import Colourise, Denoise, Inpaint, SuperResolution
from rasterformer.training.learner import Learner


class SystemLearner(Learner):
    """A learner that trains the model of a `System`.

    Attributes:
        system: its model is `networks["model"]`.
    """

    system: System

    def config(self, steps: int) -> dict[str, Any]:
        """What config.json says of the model after so many steps."""
        return replace(self.system, steps=steps).config()

    def next_command(self, folder: Path) -> str:
        """Draws images."""
        return draw_more(self.recipe, folder)

    def ship(self, folder: Path, steps: int) -> None:
        """Writes the model folder."""
        self.system.steps = steps
        self.system.save(folder)

    def with_weights(self, model: nn.Module) -> System:
        """Returns the system with other weights, such as averaged ones."""
        return replace(self.system, model=model)  # type: ignore[arg-type]


def draw_more(recipe: Recipe, folder: Path) -> str:
    """Returns the command that uses the run's model."""
    if recipe.task is None:
        text = "" if recipe.text is None else " --text 'WORDS'"
        return f"rasterformer sample {folder} -n 16{text} --seed 1"
    command = {SuperResolution: "upscale", Inpaint: "restore", Colourise: "colourise", Denoise: "denoise"}
    mask = " --mask MASK.png" if isinstance(recipe.task, Inpaint) else ""
    return f"rasterformer {command.get(type(recipe.task), 'transform')} {folder} IMAGE.png{mask} -n 4"
