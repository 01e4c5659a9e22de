"""Models and training checkpoints on the disk: safetensors and JSON, nothing pickled, nothing fetched from a network.

A model folder (the Hugging Face layout) has `config.json`, `model.safetensors`, `README.md`, `manifest.json`, and one more
.safetensors file for each frozen network that belongs to the model, such as its tokenizer; a checkpoint `step-N` has
`config.json`, `state.json`, one .safetensors file for each group of tensors, `manifest.json`.
How a folder is written in one step and verified: `manifest.py`.
"""

import json
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rasterformer import __version__
from rasterformer.errors import CheckpointError, did_you_mean
from rasterformer.manifest import FORMAT_VERSION, check_sizes, publish, read_json, standing, verify

# The closed schema of config.json: field -> type. The first two are filled in here, the others by the caller.
CONFIG_FIELDS: dict[str, type] = {
    "format_version": int,
    "rasterformer_version": str,
    "recipe": dict,
    "num_classes": int,
    "class_names": list,
    "image_shape": list,
    "x_shape": list,
    "steps": int,
    "tokenizers": dict,  # name of a frozen network -> its recipe, steps and the like
    "upscalers": list,  # of a cascade: these fields for each, whose weights are the groups upscaler_1, upscaler_2, ...
    "text_encoder": str,  # fingerprint of the frozen network that captions were read by
}
REQUIRED_FIELDS = ("recipe", "num_classes")
_STEP_NAME = re.compile(r"step-(\d+)(?:\.old)?")


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a training run needs to go on.

    Args:
        config: as in a model folder.
        tensors: group ("model", "ema", "optimizer") -> name -> tensor, on the CPU.
        state: plain JSON values: step, seeds, and the like.
    """

    config: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


@dataclass(frozen=True)
class Stored:
    """A model as it was found on the disk.

    Args:
        folder: the model folder or checkpoint that was taken.
        config: its config.json.
        tensors: group -> name -> tensor, on the CPU; "model" holds the weights to use.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def read_model(path: str | Path) -> Stored:
    """Finds and reads the model of a model folder, a run folder or a checkpoint, after verifying every file.

    Of a run its finished model is taken, or else its newest checkpoint that verifies; of a checkpoint the averaged weights,
    where it has them. Nothing is looked up on a network.

    Raises:
        CheckpointError: there is no such folder, it holds no model, or a file is damaged.
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
                if (folder / "base").is_dir():
                    raise CheckpointError(
                        f"{str(path)!r} is a pipeline's folder whose cascade is not finished. Go on with it by --resume; its "
                        f"first stage is {folder / 'base'}."
                    )
                if (folder / "prior").is_dir():
                    raise CheckpointError(f"{str(path)!r} is a pipeline's folder. Its model is {folder / 'prior'}.")
                raise CheckpointError(
                    f"{str(path)!r}: holds no model: neither config.json, nor model/, nor a finished checkpoint."
                )
            origin = newest
    if (origin / "state.json").is_file():
        checkpoint = load_checkpoint(origin)
        tensors = dict(checkpoint.tensors)
        tensors["model"] = tensors.get("ema", tensors["model"])
        return Stored(origin, checkpoint.config, tensors)
    return Stored(origin, *_read_model_folder(origin))


def check_weights(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
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


def save_model_folder(
    folder: str | Path,
    *,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    card: str,
    frozen: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Writes a model folder, or replaces one, in one step.

    Args:
        folder: its place; missing parents are made.
        config: plain JSON values with the fields of `CONFIG_FIELDS`; "recipe" and "num_classes" are required.
        state: the model's `state_dict()`.
        card: the text of README.md.
        frozen: weights of other networks that belong to the model, by name. None: there are none.

    Raises:
        CheckpointError: the config has an unknown, missing or wrongly typed field; the folder holds other files; or
            the disk refuses.
    """
    content = _config_to_write(config)

    def write_files(place: Path) -> None:
        _write_json(place / "config.json", content)
        _write_tensors(place / "model.safetensors", state)
        for group, named in (frozen or {}).items():
            _write_tensors(place / f"{group}.safetensors", named)
        (place / "README.md").write_text(card, encoding="utf-8")

    publish(Path(folder), write_files)


def load_model_folder(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns (config, state) of a model folder after verifying every file. Tensors are on the CPU.

    Raises:
        CheckpointError: the folder does not exist, a file is missing or damaged, or the config does not fit.
    """
    config, tensors = _read_model_folder(Path(folder))
    return config, tensors["model"]


def _read_model_folder(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    folder = standing(folder)
    sizes = verify(folder)
    _need(folder, sizes, "config.json", "model.safetensors")
    return read_config(folder), _read_groups(folder, sizes)


def save_checkpoint(
    folder: str | Path,
    *,
    config: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> None:
    """Writes the training checkpoint `folder` (named `step-N`) in one step; see `Checkpoint` for the parts.

    Raises:
        CheckpointError: as `save_model_folder`.
    """
    content = _config_to_write(config)

    def write_files(place: Path) -> None:
        _write_json(place / "config.json", content)
        _write_json(place / "state.json", state)
        for group, named in tensors.items():
            _write_tensors(place / f"{group}.safetensors", named)

    publish(Path(folder), write_files)


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Returns a training checkpoint after verifying every file.

    Raises:
        CheckpointError: the folder does not exist, a file is missing or damaged, or the config does not fit.
    """
    folder = standing(Path(folder))
    sizes = verify(folder)
    _need(folder, sizes, "config.json", "state.json")
    return Checkpoint(read_config(folder), _read_groups(folder, sizes), read_json(folder / "state.json"))


def latest_checkpoint(folder: str | Path) -> Path | None:
    """Returns the newest `step-N` in the folder `checkpoints` of a run whose files verify; None where there is none.

    A damaged one is skipped with a warning that names it.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged; the message lists them.
    """
    damaged = []
    for path in _by_step(Path(folder)):
        try:
            verify(standing(path))
        except CheckpointError as error:
            damaged.append(str(error))
            warnings.warn(f"checkpoint {path.name} is skipped: {error}", stacklevel=2)
        else:
            return path
    if damaged:
        raise CheckpointError("\n  ".join([f"no checkpoint in {folder} is intact:", *damaged]))
    return None


def prune_checkpoints(folder: str | Path, keep: int) -> None:
    """Deletes all but the newest `keep` (at least 1) complete checkpoints, and what broken-off writing left behind.

    A checkpoint with missing or cut-off files does not count as one that is kept.
    """
    assert keep >= 1, f"keep = {keep} would delete every checkpoint"
    kept = 0
    for path in _by_step(Path(folder)):
        if kept >= keep:
            _delete(standing(path))
            continue
        try:
            check_sizes(standing(path))
            kept += 1
        except CheckpointError as error:
            warnings.warn(f"checkpoint {path.name} does not count: {error}", stacklevel=2)
    for path in Path(folder).glob("step-*.tmp"):
        _delete(path)


def read_config(folder: Path) -> dict[str, Any]:
    """Returns config.json, whose fields are those of `CONFIG_FIELDS` and no others.

    Raises:
        CheckpointError: it was written by an unknown format version, or a field is unknown, missing or wrongly typed.
    """
    path = folder / "config.json"
    config = read_json(path)
    if config.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version = {config.get('format_version')!r} is not known; rasterformer {__version__} "
            f"reads {FORMAT_VERSION}. A newer rasterformer may read it."
        )
    _check_config(config, str(path))
    return config


def flatten_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any]:
    """Splits an optimizer's `state_dict()` into named tensors and a JSON value, from which it can be put together.

    Returns:
        (tensors, layout): `unflatten_optimizer(tensors, layout) == state`, int keys and tuples included.
    """
    tensors: dict[str, Tensor] = {}

    def layout_of(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            assert name not in tensors, f"two tensors are named {name}"
            tensors[name] = value
            return {"tensor": name}
        if isinstance(value, Mapping):
            return {"dict": [[key, layout_of(entry, f"{name}.{key}".lstrip("."))] for key, entry in value.items()]}
        if isinstance(value, list | tuple):
            entries = [layout_of(entry, f"{name}.{index}") for index, entry in enumerate(value)]
            return {"tuple" if isinstance(value, tuple) else "list": entries}
        assert value is None or isinstance(value, bool | int | float | str), f"{name} is a {type(value).__name__}"
        return value

    return tensors, layout_of(state, "")


def unflatten_optimizer(tensors: Mapping[str, Tensor], layout: Any) -> Any:
    """Returns the `state_dict()` that `flatten_optimizer` split.

    Raises:
        CheckpointError: the layout names a tensor that is not there, or is no layout.
    """
    if not isinstance(layout, dict):
        return layout
    match list(layout.items()):
        case [("tensor", str(name))] if name in tensors:
            return tensors[name]
        case [("dict", list(entries))]:
            return {key: unflatten_optimizer(tensors, value) for key, value in entries}
        case [("list", list(entries))]:
            return [unflatten_optimizer(tensors, value) for value in entries]
        case [("tuple", list(entries))]:
            return tuple(unflatten_optimizer(tensors, value) for value in entries)
    raise CheckpointError(f"the optimizer state does not fit its tensors at {str(layout)[:100]}.")


def _config_to_write(config: Mapping[str, Any]) -> dict[str, Any]:
    content = {**config, "format_version": FORMAT_VERSION, "rasterformer_version": __version__}
    _check_config(content, "config")
    return content


def _check_config(config: Mapping[str, Any], where: str) -> None:
    found = [
        f"{name} = {config[name]!r} is not known.{did_you_mean(name, CONFIG_FIELDS)}"
        for name in config
        if name not in CONFIG_FIELDS
    ]
    found += [f"{name} is missing." for name in REQUIRED_FIELDS if name not in config]
    for name, kind in CONFIG_FIELDS.items():
        if name in config and type(config[name]) is not kind:
            found.append(f"{name} = {config[name]!r} must be of the type {kind.__name__}.")
    if found:
        raise CheckpointError(f"{where}: {' '.join(found)}")


def _by_step(folder: Path) -> list[Path]:
    """The checkpoints' places, newest first; one that was being replaced is listed under its own name."""
    if not folder.is_dir():
        return []
    steps = {
        path.name.removesuffix(".old"): int(match[1])
        for path in folder.iterdir()
        if (match := _STEP_NAME.fullmatch(path.name))
    }
    return [folder / name for name in sorted(steps, key=lambda name: steps[name], reverse=True)]


def _need(folder: Path, listed: Mapping[str, int], *names: str) -> None:
    for name in names:
        if name not in listed:
            raise CheckpointError(f"{folder / 'manifest.json'} does not list {name}; listed: {', '.join(listed)}.")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_tensors(path: Path, named: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in named.items()}, path)


def _read_groups(folder: Path, listed: Mapping[str, int]) -> dict[str, dict[str, Tensor]]:
    groups = [name.removesuffix(".safetensors") for name in listed if name.endswith(".safetensors")]
    return {group: _read_tensors(folder / f"{group}.safetensors") for group in groups}


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error


def _delete(folder: Path) -> None:
    doomed = folder.with_name(folder.name.removesuffix(".tmp") + ".tmp")
    if doomed != folder and doomed.exists():
        shutil.rmtree(doomed)
    folder.rename(doomed)  # a half-deleted folder must not look like a damaged checkpoint
    shutil.rmtree(doomed)
