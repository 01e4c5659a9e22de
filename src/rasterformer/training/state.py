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
from rasterformer.system import USED_CODES
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
        CheckpointError: all checkpoints are damaged, the weights do not fit, the images have changed, or the model numbers other
            codes.
    """
    newest = latest_checkpoint(folder / "checkpoints") if (folder / "checkpoints").is_dir() else None
    if newest is None:
        return Progress()
    checkpoint = load_checkpoint(newest)
    state = checkpoint.state
    if state["data_fingerprint"] != learner.data_fingerprint:
        more = ", or captions do" if learner.recipe.text is not None else ""
        if learner.frozen_tensors():
            more = ", or the tokenizer or captions do"
        raise CheckpointError(
            f"{newest}: was trained on other images than {learner.train_set.name!r} holds now (names, sizes or pixels differ"
            f"{more}). Bring the old ones back, or start a new run from these weights: --init {folder}."
        )
    _check_codes(learner.frozen_tensors().get(USED_CODES), checkpoint.tensors.get(USED_CODES), str(newest))
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


def _check_codes(now: dict[str, Tensor] | None, before: dict[str, Tensor] | None, where: str) -> None:
    """Compares which codes of the tokenizer the model numbers."""
    if now is None and before is None:
        return
    if now is None or before is None or not torch.equal(now["used"], before["used"]):
        counts = ["all codes" if each is None else f"{len(each['used']):,} codes" for each in (before, now)]
        raise CheckpointError(
            f"{where}: its model numbers {counts[0]} of its tokenizer, and this one {counts[1]}, which are not the same. Build "
            "it with those of the checkpoint."
        )


def _all(optimizers: Optimizers) -> list[torch.optim.Optimizer]:
    return [optimizer for each in optimizers.values() for optimizer in each]
