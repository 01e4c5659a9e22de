"""From a folder to a model that can be used: a model folder, a run, or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rasterformer import registry
from rasterformer.checkpoint import Stored, check_weights, latest_checkpoint, load_checkpoint, read_model
from rasterformer.errors import ConfigError
from rasterformer.recipe import Recipe
from rasterformer.recipe_file import recipe_from_dict
from rasterformer.system import USED_CODES, System, upscaler_group
from rasterformer.tokenizer import Tokenizer


def load(
    path: str | Path, *, device: str | torch.device | None = None, text_folder: str | Path | None = None
) -> System:
    """Loads a model folder, a run folder or a checkpoint, in evaluation mode.

    Of a run its finished model is taken, or else its newest checkpoint that verifies; of a checkpoint the averaged
    weights, where it has them. A cascade comes with its upscalers. Nothing is looked up on a network.

    Args:
        path: the folder.
        device: where the weights go. None: a CUDA device where there is one, else the processor.
        text_folder: where the text encoder that the model was trained with lies now (`text.encoder: folder`); of a cascade, that
            of all stages. None: where it lay then.

    Raises:
        CheckpointError: there is no such folder, a file is damaged, or the weights do not fit the recipe.
        ConfigError: it is a tokenizer, which is loaded by `load_tokenizer`; or text_folder is given and it reads none.
    """
    stored = read_model(path)
    config = stored.config
    if config["recipe"].get("system") in registry.TOKENIZERS:
        raise ConfigError(
            f"{str(path)!r} is a tokenizer, which turns images into codes and back but draws none. Use reconstruct, tokenize or "
            "load_tokenizer, or train a prior on it: rasterformer train vqgan-prior --model.tokenizer ..."
        )
    stages = [
        _stage(stored, part, number, text_folder=text_folder)
        for number, part in enumerate([config, *config.get("upscalers", ())])
    ]
    if text_folder is not None and not any(_reads_by_folder(stage.recipe) for stage in stages):
        raise ConfigError(f"text_folder = {str(text_folder)!r}: {path} reads texts by no folder. Leave it out.")
    for stage in stages:
        stage.origin = str(path)
    system = replace(stages[0], upscalers=tuple(stages[1:]))
    return system.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def stored_tokenizers(folder: Path) -> dict[str, Tokenizer]:
    """The tokenizers inside a run's newest checkpoint, or inside a model; {} where there is neither.

    Raises:
        CheckpointError: a file is damaged.
    """
    if not any((folder / name).exists() for name in ("checkpoints", "model", "config.json")):
        return {}
    return _tokenizers(read_model(folder))


def stored_used_codes(run: Path) -> Tensor | None:
    """The codes that the model of a run's newest checkpoint numbers, int64 [K']; None: it has no checkpoint, or numbers all.

    Raises:
        CheckpointError: its checkpoints are damaged.
    """
    newest = latest_checkpoint(run / "checkpoints")
    return None if newest is None else load_checkpoint(newest).tensors.get(USED_CODES, {}).get("used")


def _stage(stored: Stored, config: Mapping[str, Any], number: int, *, text_folder: str | Path | None) -> System:
    """The model itself (number 0) or one of its upscalers, by its part of config.json and its group of weights."""
    group = upscaler_group(number) if number else "model"
    where = f"{stored.folder}/config.json" + (f", {group}" if number else "")
    recipe = recipe_from_dict(config["recipe"], where=where)
    if text_folder is not None and recipe.text is not None and _reads_by_folder(recipe):
        recipe = replace(recipe, text=replace(recipe.text, folder=str(text_folder)))
    system = System.create(
        recipe,
        class_names=config.get("class_names", ()),
        num_classes=config["num_classes"],
        tokenizers=None if number else _tokenizers(stored),
        used_codes=None if number else stored.tensors.get(USED_CODES, {}).get("used"),
    )
    weights = stored.tensors.get(group, {})
    check_weights(system.model, weights, f"{stored.folder}, {group}" if number else str(stored.folder))
    system.model.load_state_dict(weights)
    system.model.eval()
    system.trained_on_text, system.steps = config.get("text_encoder"), config.get("steps", 0)
    return system


def _reads_by_folder(recipe: Recipe) -> bool:
    return recipe.text is not None and recipe.text.encoder == "folder"


def _tokenizers(stored: Stored) -> dict[str, Tokenizer]:
    where = f"{stored.folder}/config.json"
    return {
        name: Tokenizer.from_parts(part, stored.tensors.get(name, {}), where=f"{where}, {name}")
        for name, part in stored.config.get("tokenizers", {}).items()
    }
