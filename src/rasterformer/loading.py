"""From a folder to a model that can be used: a model folder, a run, or a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rasterformer.checkpoint import latest_checkpoint, load_checkpoint, load_model_folder
from rasterformer.errors import CheckpointError
from rasterformer.recipe_file import recipe_from_dict
from rasterformer.system import System


def load(path: str | Path, *, device: str | torch.device | None = None) -> System:
    """Loads a model folder, a run folder or a checkpoint, in evaluation mode.

    Of a run its finished model is taken, or else its newest checkpoint that verifies; of a checkpoint the averaged
    weights, where it has them. Nothing is looked up on a network.

    Args:
        path: the folder.
        device: where the weights go. None: a CUDA device where there is one, else the processor.

    Raises:
        CheckpointError: there is no such folder, a file is damaged, or the weights do not fit the recipe.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{str(path)!r}: there is no such folder. Give a run, a model folder or a checkpoint.")
    origin = folder
    if not (folder / "config.json").is_file():
        if (folder / "model" / "config.json").is_file():
            origin = folder / "model"
        else:
            newest = latest_checkpoint(folder / "checkpoints") if (folder / "checkpoints").is_dir() else None
            if newest is None:
                raise CheckpointError(
                    f"{str(path)!r}: holds no model: neither config.json, nor model/, nor a finished checkpoint."
                )
            origin = newest
    if (origin / "state.json").is_file():
        checkpoint = load_checkpoint(origin)
        config, state = checkpoint.config, checkpoint.tensors.get("ema", checkpoint.tensors["model"])
    else:
        config, state = load_model_folder(origin)
    recipe = recipe_from_dict(config["recipe"], where=f"{origin}/config.json")
    system = System.create(recipe, class_names=config.get("class_names", ()), num_classes=config["num_classes"])
    check_weights(system.model, state, str(origin))
    system.model.load_state_dict(state)
    system.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    system.steps, system.origin = config.get("steps", 0), str(path)
    return system


def check_weights(model: torch.nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Compares names and shapes before anything is copied.

    Raises:
        CheckpointError: a weight is missing, unknown or of another shape.
    """
    expected = model.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in state]
    wrong += [f"{name} is unknown" for name in state if name not in expected]
    wrong += [
        f"{name} is {list(state[name].shape)}, the recipe makes it {list(weight.shape)}"
        for name, weight in expected.items()
        if name in state and state[name].shape != weight.shape
    ]
    if wrong:
        raise CheckpointError(f"{where}: the weights do not fit the recipe: {'; '.join(wrong[:5])}.")
