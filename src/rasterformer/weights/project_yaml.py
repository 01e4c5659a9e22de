"""What the configuration file of taming-transformers, which lies beside a checkpoint, says about its weights. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from rasterformer.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from rasterformer.weights.layouts import AutoencoderShape
    from rasterformer.weights.net2net import PriorShape

MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class PriorSettings:
    """What a transformer's weights do not tell.

    Args:
        num_heads: N.
        condition: what comes before the codes.
        size: number of classes or of coordinates; 0 for the others.
    """

    num_heads: int
    condition: Literal["none", "class", "coordinates", "codes"]
    size: int = 0


# the program's class, or word, for a condition -> (our condition, the parameter with its size)
_CONDITIONS: dict[str, tuple[Literal["none", "class", "coordinates", "codes"], str | None]] = {
    "__is_unconditional__": ("none", None),
    "SOSProvider": ("none", None),
    "Labelator": ("class", "n_classes"),
    "CoordStage": ("coordinates", "n_embed"),
    "__is_first_stage__": ("codes", None),
    "VQModel": ("codes", None),
    "VQSegmentationModel": ("codes", None),
}


def first_stage_image_size(path: Path, shape: AutoencoderShape) -> int:
    """Returns the side of the images that an autoencoder was trained on, pixels, after comparing the file with its weights.

    Args:
        path: the YAML file of the autoencoder (`model.params`) or of a transformer over its codes
            (`model.params.first_stage_config.params`).
        shape: what the weights say.

    Raises:
        ConfigError: the file cannot be read, has no such section, or says something else than the weights.
    """
    params = _params(path)
    params = _section(params.get("first_stage_config"), "params") or params
    network = _section(params, "ddconfig")
    if type(network.get("resolution")) is not int:
        raise ConfigError(
            f"--config {path} has no model.params.ddconfig.resolution. Give the project.yaml of the checkpoint."
        )
    resolution: int = network["resolution"]
    weights_say = {
        "ch": shape.base_width,
        "ch_mult": list(shape.multipliers),
        "num_res_blocks": shape.res_blocks,
        "attn_resolutions": [resolution >> level for level in shape.attention_levels],
        "z_channels": shape.z_channels,
        "in_channels": shape.in_channels,
        "double_z": False,
        "n_embed": shape.vocab_size,
        "embed_dim": shape.dim,
    }
    said = {**params, **network}
    sides = [resolution >> level for level in range(len(shape.multipliers))]
    if isinstance(said.get("attn_resolutions"), list):  # some list sides that no level has
        said["attn_resolutions"] = [side for side in sides if side in said["attn_resolutions"]]
    _compare(path, said, weights_say)
    return resolution


def prior_settings(path: Path, shape: PriorShape) -> PriorSettings:
    """Returns heads and condition of a transformer over codes, after comparing the file with its weights.

    Args:
        path: the YAML file of the transformer.
        shape: what the weights say.

    Raises:
        ConfigError: the file cannot be read, has no such section, names a condition that is not known, or says something else
            than the weights.
    """
    params = _params(path)
    network = _section(params.get("transformer_config"), "params")
    num_heads = network.get("n_head")
    if type(num_heads) is not int or num_heads < 1 or shape.width % num_heads:
        raise ConfigError(
            f"--config {path}: model.params.transformer_config.params.n_head = {num_heads!r}; a divisor of the width "
            f"{shape.width} is needed."
        )
    weights_say = {
        "vocab_size": shape.vocab_size,
        "block_size": shape.seq_len,
        "n_layer": shape.depth,
        "n_embd": shape.width,
    }
    _compare(path, network, weights_say)
    stage = params.get("cond_stage_config")
    target = stage if isinstance(stage, str) else str(_section(params, "cond_stage_config").get("target"))
    name = target.rpartition(".")[2]
    if name not in _CONDITIONS:
        raise ConfigError(
            f"--config {path}: model.params.cond_stage_config is {target!r}.{did_you_mean(name, _CONDITIONS)}"
        )
    condition, parameter = _CONDITIONS[name]
    size = 0 if parameter is None else _section(stage, "params").get(parameter)
    if type(size) is not int or (parameter is not None and size < 1):
        raise ConfigError(
            f"--config {path}: model.params.cond_stage_config.params.{parameter} = {size!r} is no number."
        )
    return PriorSettings(num_heads, condition, size)


def _section(content: object, name: str) -> dict[str, Any]:
    found = content.get(name) if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


def _compare(path: Path, said: dict[str, Any], weights_say: dict[str, Any]) -> None:
    wrong = [
        f"{name} = {said[name]!r}, the weights say {value!r}"
        for name, value in weights_say.items()
        if name in said and said[name] != value
    ]
    if wrong:
        raise ConfigError(f"--config {path} belongs to other weights: {'; '.join(wrong)}.")


def _params(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"--config {path} is larger than {MAX_BYTES} bytes.")
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"--config {path} is no YAML: {str(error)[:300]}.") from error
    params = _section(_section(content, "model"), "params")
    if not params:
        raise ConfigError(f"--config {path} has no section model.params. Give the project.yaml of the checkpoint.")
    return params
