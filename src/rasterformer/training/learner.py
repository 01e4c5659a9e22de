"""Learner: what the loop trains. There is one for each kind of model; the loop knows none of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rasterformer.data.imageset import ImageSet
from rasterformer.recipe import Recipe
from rasterformer.training.optim import make_optimizers


class Learner(ABC):
    """What a training step is, and what is worth knowing between steps.

    Attributes:
        recipe: of the run.
        networks: what is trained, by name. `model` is averaged, measured and shipped. Each network has optimisers of its own, and
            its gradients are clipped by themselves.
        data_fingerprint: of the training images.
        train_set, held_out: images to learn from, and to measure on.
    """

    recipe: Recipe
    networks: dict[str, nn.Module]
    data_fingerprint: str
    train_set: ImageSet
    held_out: ImageSet

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.networks["model"].parameters()).device

    def optimizers(self) -> dict[str, list[torch.optim.Optimizer]]:
        """New optimisers for each network."""
        return {name: make_optimizers(network, self.recipe.training) for name, network in self.networks.items()}

    def cost(self) -> str | None:
        """A sentence on what a training step takes, for a dry run; it may run one. None: not known."""
        return None

    def prepare(self) -> None:  # noqa: B027 (most have nothing to do)
        """What is done once, before step 0 of a new run."""

    @abstractmethod
    def batches(self, start_step: int) -> Iterator[Any]:
        """The batches of steps start_step, start_step + 1, ...: a function of recipe and step."""

    @abstractmethod
    def accumulate_gradients(self, batch: Any, step: int) -> dict[str, float]:
        """Adds the gradients of a batch to the networks.

        What is random in it comes from the recipe's seed and `step`. Weights and codebooks stay as they are: the step may yet
        be given up. (A discriminator's running means and spectral norms do move; they are not shipped.)

        Returns:
            figures for the log; the first is shown as progress.
        """

    def finish_step(self, step: int) -> dict[str, float]:
        """What follows a step that was finite, before the next; returns figures for the log."""
        return {}

    @abstractmethod
    def measure(self, model: nn.Module, limit: int | None) -> dict[str, float]:
        """Figures on the first `limit` held-out images, all with None; names begin with `held_out_`, the first counts most.

        Args:
            model: the weights to measure, in evaluation mode.
            limit: as above.
        """

    @abstractmethod
    def sheet(self, model: nn.Module) -> Tensor:
        """A picture that shows what the model can do, uint8 [3, H, W]."""

    @abstractmethod
    def config(self, steps: int) -> dict[str, Any]:
        """What config.json says of the model after so many steps."""

    def counts(self) -> dict[str, Tensor]:
        """What is counted while training, for checkpoints."""
        return {}

    def load_counts_(self, counts: Mapping[str, Tensor]) -> None:  # noqa: B027 (most count nothing)
        """Goes on counting where a checkpoint was written."""

    def frozen_tensors(self) -> dict[str, dict[str, Tensor]]:
        """Groups of weights that are not trained but belong to the model, for checkpoints."""
        return {}

    @abstractmethod
    def headline(self, figures: Mapping[str, Any]) -> str:
        """The first paragraph of report.md: what the last figures measured say, and of which images."""

    @abstractmethod
    def next_command(self, folder: Path) -> str:
        """What to do with the run's model."""

    def write_pictures(self, folder: Path) -> list[str]:
        """Writes more pictures for report.md into the run folder; returns their Markdown."""
        return []

    @abstractmethod
    def ship(self, folder: Path, steps: int) -> None:
        """Writes the model folder from `networks["model"]`."""
