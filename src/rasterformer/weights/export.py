"""Our autoencoders as a folder that `diffusers.VQModel.from_pretrained` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rasterformer import __version__
from rasterformer.codecs.vq.autoencoder import VQAutoencoder
from rasterformer.codecs.vq.quantise import FiniteScalarQuantiser, Quantiser
from rasterformer.errors import CheckpointError
from rasterformer.manifest import publish
from rasterformer.weights.layouts import DIFFUSERS, OURS, AutoencoderShape, infer_autoencoder, rename

WEIGHTS = "diffusion_pytorch_model.safetensors"


def export_diffusers(folder: str | Path, model: VQAutoencoder, *, image_size: int) -> list[str]:
    """Writes config.json and diffusion_pytorch_model.safetensors.

    The codebook is written as it is looked up, codes of length 1 where they are normalised: the nearest code is then the same
    whatever the length of the vector, so that diffusers, which knows no normalisation, finds the same codes.

    Args:
        folder: its place.
        model: the autoencoder.
        image_size: side of the images that it was trained on, pixels.

    Returns:
        the names of our tensors that have no place there: averages that the codebook is learned by, and the like.

    Raises:
        CheckpointError: the model rounds instead of looking up a codebook (FSQ), which diffusers does not know; or the folder
            cannot be written.
    """
    quantiser = model.quantiser
    assert isinstance(quantiser, Quantiser), "an autoencoder quantises"
    if isinstance(quantiser, FiniteScalarQuantiser):
        raise CheckpointError(
            f"the model rounds to fsq_levels = {quantiser.levels}; diffusers' VQModel has nothing but a codebook. "
            "Models with quantiser nearest, ema or sim can be exported."
        )
    own = model.state_dict()
    state = {name: tensor for name, tensor in own.items() if not name.startswith("quantiser.")}
    state["quantiser.codebook"] = _entries(quantiser)
    shape = infer_autoencoder(state, norm_groups=_norm_groups(model))
    num_levels = len(shape.multipliers)
    tensors = {str(rename(name, OURS, DIFFUSERS, num_levels)): tensor for name, tensor in state.items()}

    def write_files(place: Path) -> None:
        text = json.dumps(_config(shape, image_size), indent=2)
        (place / "config.json").write_text(text + "\n", encoding="utf-8")
        stored = {
            name: _as_stored(name, tensor).detach().cpu().contiguous().clone() for name, tensor in tensors.items()
        }
        save_file(stored, place / WEIGHTS, metadata={"format": "pt"})

    publish(Path(folder), write_files)
    return [name for name in own if name not in state]


def _entries(quantiser: Quantiser) -> Tensor:
    """The codebook that vectors are compared with and replaced from, [K, D]."""
    with torch.no_grad():
        device = next((tensor.device for tensor in quantiser.state_dict().values()), None)
        codes = torch.arange(quantiser.vocab_size, device=device)
        return quantiser.lookup(codes[None, None])[0, :, 0].T  # [1, D, 1, K] before


def _norm_groups(model: VQAutoencoder) -> int:
    groups = {module.num_groups for module in model.modules() if isinstance(module, nn.GroupNorm)}
    assert len(groups) == 1, f"norms of {groups} groups"
    return groups.pop()


def _as_stored(name: str, tensor: Tensor) -> Tensor:
    """Attention's 1x1 convolutions are matrices there."""
    is_map = ".attentions." in name and tensor.ndim == 4
    return tensor[:, :, 0, 0] if is_map else tensor


def _config(shape: AutoencoderShape, image_size: int) -> dict[str, Any]:
    attends = [level in shape.attention_levels for level in range(len(shape.multipliers))]
    return {
        "_class_name": "VQModel",
        "_rasterformer_version": __version__,
        "act_fn": "silu",
        "block_out_channels": [shape.base_width * multiplier for multiplier in shape.multipliers],
        "down_block_types": ["AttnDownEncoderBlock2D" if here else "DownEncoderBlock2D" for here in attends],
        "in_channels": shape.in_channels,
        "latent_channels": shape.z_channels,
        "layers_per_block": shape.res_blocks,
        "lookup_from_codebook": False,
        "mid_block_add_attention": shape.middle_attention,
        "norm_num_groups": shape.norm_groups,
        "norm_type": "group",
        "num_vq_embeddings": shape.vocab_size,
        "out_channels": shape.in_channels,
        "sample_size": image_size,
        "up_block_types": ["AttnUpDecoderBlock2D" if here else "UpDecoderBlock2D" for here in reversed(attends)],
        "vq_embed_dim": shape.dim,
    }
