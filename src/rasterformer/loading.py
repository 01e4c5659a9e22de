"""From a folder to a model that can be used: a model folder, a run, or a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rasterformer import registry
from rasterformer.checkpoint import Stored, check_weights, latest_checkpoint, load_checkpoint, read_model
from rasterformer.errors import ConfigError
from rasterformer.recipe_file import recipe_from_dict
from rasterformer.system import USED_CODES, System
from rasterformer.tokenizer import Tokenizer


def load(
    path: str | Path, *, device: str | torch.device | None = None, text_folder: str | Path | None = None
) -> System:
    """Loads a model folder, a run folder or a checkpoint, in evaluation mode.

    Of a run its finished model is taken, or else its newest checkpoint that verifies; of a checkpoint the averaged
    weights, where it has them. Nothing is looked up on a network.

    Args:
        path: the folder.
        device: where the weights go. None: a CUDA device where there is one, else the processor.
        text_folder: where the text encoder that the model was trained with lies now (`text.encoder: folder`). None: where it
            lay then.

    Raises:
        CheckpointError: there is no such folder, a file is damaged, or the weights do not fit the recipe.
        ConfigError: it is a tokenizer, which is loaded by `load_tokenizer`; or text_folder is given and it reads none.
    """
    stored = read_model(path)
    config, where = stored.config, f"{stored.folder}/config.json"
    if config["recipe"].get("system") in registry.TOKENIZERS:
        raise ConfigError(
            f"{str(path)!r} is a tokenizer, which turns images into codes and back but draws none. Use reconstruct, tokenize or "
            "load_tokenizer, or train a prior on it: rasterformer train vqgan-prior --model.tokenizer ..."
        )
    recipe = recipe_from_dict(config["recipe"], where=where)
    if text_folder is not None:
        if recipe.text is None or recipe.text.encoder != "folder":
            raise ConfigError(f"text_folder = {str(text_folder)!r}: {path} reads texts by no folder. Leave it out.")
        recipe = replace(recipe, text=replace(recipe.text, folder=str(text_folder)))
    tokenizers = _tokenizers(stored)
    system = System.create(
        recipe,
        class_names=config.get("class_names", ()),
        num_classes=config["num_classes"],
        tokenizers=tokenizers,
        used_codes=stored.tensors.get(USED_CODES, {}).get("used"),
    )
    system.trained_on_text = config.get("text_encoder")
    check_weights(system.model, stored.tensors["model"], str(stored.folder))
    system.model.load_state_dict(stored.tensors["model"])
    system.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    system.model.eval()
    system.steps, system.origin = config.get("steps", 0), str(path)
    return system


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


def _tokenizers(stored: Stored) -> dict[str, Tokenizer]:
    where = f"{stored.folder}/config.json"
    return {
        name: Tokenizer.from_parts(part, stored.tensors.get(name, {}), where=f"{where}, {name}")
        for name, part in stored.config.get("tokenizers", {}).items()
    }
