"""What a training run keeps on the disk so that it can go on: weights, averages, optimiser states, its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rasterformer.checkpoint import (
    check_weights,
    flatten_optimizer,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    unflatten_optimizer,
)
from rasterformer.errors import CheckpointError
from rasterformer.training.averages import ExponentialMovingAverage, mean_of_weights
from rasterformer.training.learner import Learner


@dataclass
class Progress:
    """Optimiser steps and seconds of training behind the run; the data order follows from the step."""

    step: int = 0
    seconds: float = 0.0


Optimizers = dict[str, list[torch.optim.Optimizer]]  # by network


def save(
    folder: Path, learner: Learner, optimizers: Optimizers, ema: ExponentialMovingAverage | None, progress: Progress
) -> None:
    """Writes `checkpoints/step-N` and removes the oldest beyond `keep_checkpoints`."""
    tensors = {name: dict(network.state_dict()) for name, network in learner.networks.items()}
    tensors |= learner.frozen_tensors()
    if counts := learner.counts():
        tensors["counts"] = counts
    if ema is not None:
        tensors["ema"] = dict(ema.model.state_dict())
    layouts = []
    for number, optimizer in enumerate(_all(optimizers)):
        tensors[f"optimizer-{number}"], layout = flatten_optimizer(optimizer.state_dict())
        layouts.append(layout)
    state = {
        "step": progress.step,
        "seconds": progress.seconds,
        "data_fingerprint": learner.data_fingerprint,
        "optimizers": layouts,
    }
    checkpoints, config = folder / "checkpoints", learner.config(progress.step)
    save_checkpoint(checkpoints / f"step-{progress.step}", config=config, tensors=tensors, state=state)
    prune_checkpoints(checkpoints, learner.recipe.training.keep_checkpoints)


def restore(folder: Path, learner: Learner, optimizers: Optimizers, ema: ExponentialMovingAverage | None) -> Progress:
    """Loads the newest checkpoint that verifies into the given parts; a run without one starts at step 0.

    Raises:
        CheckpointError: all checkpoints are damaged, the weights do not fit, or the images have changed.
    """
    newest = latest_checkpoint(folder / "checkpoints") if (folder / "checkpoints").is_dir() else None
    if newest is None:
        return Progress()
    checkpoint = load_checkpoint(newest)
    state = checkpoint.state
    if state["data_fingerprint"] != learner.data_fingerprint:
        raise CheckpointError(
            f"{newest}: was trained on other images than {learner.train_set.name!r} holds now (names, sizes or pixels differ"
            f"{', or the tokenizer or captions do' if learner.frozen_tensors() else ''}). Bring the old ones back, or start a new run from "
            f"these weights: --init {folder}."
        )
    for name, network in learner.networks.items():
        check_weights(network, checkpoint.tensors.get(name, {}), f"{newest}/{name}")
        network.load_state_dict(checkpoint.tensors[name])
    if "counts" in checkpoint.tensors:
        learner.load_counts_(checkpoint.tensors["counts"])
    if ema is not None:
        ema.model.load_state_dict(checkpoint.tensors["ema"])
    for number, optimizer in enumerate(_all(optimizers)):
        optimizer.load_state_dict(
            unflatten_optimizer(checkpoint.tensors.get(f"optimizer-{number}", {}), state["optimizers"][number])
        )
    return Progress(step=state["step"], seconds=state["seconds"])


def shipped_weights(folder: Path, learner: Learner, ema: ExponentialMovingAverage | None) -> dict[str, Tensor]:
    """The weights that become the run's model: moving average, mean of the last checkpoints, or the last ones."""
    if ema is not None:
        return dict(ema.model.state_dict())
    count = learner.recipe.training.average_checkpoints
    if not count:
        return dict(learner.networks["model"].state_dict())
    finished = [path for path in (folder / "checkpoints").glob("step-*") if path.name.removeprefix("step-").isdigit()]
    newest = sorted(finished, key=lambda path: int(path.name.removeprefix("step-")))[-count:]
    return mean_of_weights([load_checkpoint(path).tensors["model"] for path in newest])


def _all(optimizers: Optimizers) -> list[torch.optim.Optimizer]:
    return [optimizer for each in optimizers.values() for optimizer in each]
