"""Transformers over codes of taming-transformers (`Net2NetTransformer`): both autoencoders and the prior in one file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rasterformer.errors import CheckpointError
from rasterformer.weights.layouts import ImportedAutoencoder, from_taming, refuse_names, split

# theirs -> ours, below `transformer.` and `layers.{i}.`; query, key and value are stacked besides
_TOP = {
    "tok_emb.weight": "token_embedding.weight",
    "pos_emb": "position_embedding",
    "ln_f.weight": "final_norm.weight",
    "ln_f.bias": "final_norm.bias",
    "head.weight": "head.weight",
}
_LAYER = {
    "ln1": "attention_norm",
    "ln2": "feed_forward_norm",
    "attn.proj": "attention.out",
    "mlp.0": "feed_forward.up",
    "mlp.2": "feed_forward.down",
}
_STACKED = ("attn.query", "attn.key", "attn.value")


@dataclass(frozen=True)
class PriorShape:
    """How the transformer is built; the number of heads is not among its weights.

    Args:
        vocab_size: K, codes and condition tokens.
        width: D.
        depth: layers.
        hidden: inner width of the feed-forward.
        seq_len: positions that it has embeddings for, condition included.
    """

    vocab_size: int
    width: int
    depth: int
    hidden: int
    seq_len: int


@dataclass(frozen=True)
class ImportedNet2Net:
    """A published transformer over codes under our names.

    Args:
        first_stage: the autoencoder whose codes it models.
        cond_stage: that of the condition. None: a class, a coordinate or nothing, which have no weights.
        prior: weights of the transformer, float32.
        shape: how to build it.
    """

    first_stage: ImportedAutoencoder
    cond_stage: ImportedAutoencoder | None
    prior: dict[str, Tensor]
    shape: PriorShape


def is_net2net(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of a transformer over codes, not of an autoencoder."""
    return any(name.startswith("transformer.") for name in state)


def from_net2net(state: Mapping[str, Tensor]) -> ImportedNet2Net:
    """Takes a Net2NetTransformer apart.

    Raises:
        CheckpointError: codes are permuted, or a layer sees later tokens than its own (`n_unmasked`); names are missing or
            unknown; a tensor has another shape than the rest calls for; or as `from_taming` for the autoencoders.
    """
    rest, first = split(state, "first_stage_model.")
    rest, cond = split(rest, "cond_stage_model.")
    rest, transformer = split(rest, "transformer.")
    rest, permuter = split(rest, "permuter.")
    refuse_names({"unknown": [repr(name) for name in rest]})
    _check_permuter(permuter)
    prior, shape = _prior(transformer)
    return ImportedNet2Net(
        _stage("first_stage_model", first), _stage("cond_stage_model", cond) if cond else None, prior, shape
    )


def _stage(where: str, state: Mapping[str, Tensor]) -> ImportedAutoencoder:
    try:
        return from_taming(state)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _check_permuter(permuter: Mapping[str, Tensor]) -> None:
    for name, index in permuter.items():
        if index.ndim != 1 or not torch.equal(index, torch.arange(len(index))):
            raise CheckpointError(
                f"permuter.{name} is not 0, 1, 2, ...: this transformer draws codes in another order than row by row, "
                "which is not read."
            )


def _prior(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], PriorShape]:
    shape = _infer(state)
    names = dict(_TOP)  # theirs -> ours
    stacked: dict[str, list[str]] = {}  # ours -> theirs, one under the other
    masks = []
    for i in range(shape.depth):
        for leaf in ("weight", "bias"):
            names |= {f"blocks.{i}.{theirs}.{leaf}": f"layers.{i}.{ours}.{leaf}" for theirs, ours in _LAYER.items()}
            stacked[f"layers.{i}.attention.project.{leaf}"] = [f"blocks.{i}.{part}.{leaf}" for part in _STACKED]
        masks.append(f"blocks.{i}.attn.mask")
    for name in masks:
        if name in state:
            _check_mask(name, state[name])
    known = {*names, *masks, *(name for parts in stacked.values() for name in parts)}
    sizes = _sizes(shape)
    refuse_names(
        {
            "missing": [f"transformer.{name}" for name in sorted(known - {*masks, *state})],
            "unknown": [repr(f"transformer.{name}") for name in state if name not in known],
            "of another shape": [
                f"transformer.{name} {list(state[name].shape)} for {list(size)}"
                for name in state
                if name in known
                and name not in masks
                and (size := sizes[re.sub(r"^blocks\.[0-9]+\.", "", name)]) != tuple(state[name].shape)
            ],
        }
    )
    prior = {ours: state[theirs].float() for theirs, ours in names.items()}
    return prior | {ours: torch.cat([state[part].float() for part in parts]) for ours, parts in stacked.items()}, shape


def _infer(state: Mapping[str, Tensor]) -> PriorShape:
    needed = {"tok_emb.weight": 2, "pos_emb": 3, "blocks.0.mlp.0.weight": 2}
    refuse_names(
        {
            "missing": [
                f"transformer.{name}" for name, ndim in needed.items() if getattr(state.get(name), "ndim", 0) != ndim
            ]
        }
    )
    layers = {match[1] for name in state if (match := re.match(r"blocks\.([0-9]{1,4})\.", name))}
    vocab_size, width = state["tok_emb.weight"].shape
    return PriorShape(
        vocab_size, width, len(layers), state["blocks.0.mlp.0.weight"].shape[0], state["pos_emb"].shape[1]
    )


def _sizes(shape: PriorShape) -> dict[str, tuple[int, ...]]:
    """Name without `blocks.{i}.` -> shape."""
    vocab_size, width, hidden = shape.vocab_size, shape.width, shape.hidden
    sizes: dict[str, tuple[int, ...]] = {
        "tok_emb.weight": (vocab_size, width),
        "pos_emb": (1, shape.seq_len, width),
        "head.weight": (vocab_size, width),
        "mlp.0.weight": (hidden, width),
        "mlp.0.bias": (hidden,),
        "mlp.2.weight": (width, hidden),
        "mlp.2.bias": (width,),
    }
    for part in ("attn.query", "attn.key", "attn.value", "attn.proj"):
        sizes |= {f"{part}.weight": (width, width), f"{part}.bias": (width,)}
    for part in ("ln1", "ln2", "ln_f"):
        sizes |= {f"{part}.weight": (width,), f"{part}.bias": (width,)}
    return sizes


def _check_mask(name: str, mask: Tensor) -> None:
    side = mask.shape[-1] if mask.ndim else 0
    if mask.shape != (1, 1, side, side) or not torch.equal(mask[0, 0].bool(), torch.ones(side, side).tril().bool()):
        raise CheckpointError(
            f"transformer.{name} is not lower triangular: the first tokens see later ones (n_unmasked), which is not read."
        )
