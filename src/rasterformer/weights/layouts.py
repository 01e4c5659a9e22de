"""Names of published weights and ours, both ways: taming-transformers (and latent-diffusion), diffusers, LlamaGen.

The three have the same network, that of Esser et al. 2021, under different names. How a network is built follows from names
and shapes alone (`infer_autoencoder`); nothing is guessed: a name that is missing or unknown is an error that lists it.
Transformers over codes are in `net2net.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rasterformer.codecs.vq.autoencoder import Decoder, Encoder
from rasterformer.errors import CheckpointError

_SHOWN = 10  # names in a message


@dataclass(frozen=True)
class AutoencoderShape:
    """How a VQ autoencoder is built.

    Args:
        in_channels: of the images, and of what the decoder makes.
        z_channels: of the encoder's result.
        dim: D, numbers of a code.
        vocab_size: K, codes.
        base_width: channels after the first convolution.
        multipliers: channels of each level over base_width, finest first; the factor f is 2^(levels - 1).
        res_blocks: of each encoder level; the decoder has one more.
        attention_levels: levels with attention, 0 the finest.
        middle_attention: whether the middle has attention.
        normalise: whether values and codes are brought to unit length before they are compared.
        norm_groups: of every GroupNorm. Weights do not tell.
    """

    in_channels: int
    z_channels: int
    dim: int
    vocab_size: int
    base_width: int
    multipliers: tuple[int, ...]
    res_blocks: int
    attention_levels: tuple[int, ...]
    middle_attention: bool
    normalise: bool = False
    norm_groups: int = 32


@dataclass(frozen=True)
class ImportedAutoencoder:
    """A published autoencoder under our names.

    Args:
        state: of a `VQAutoencoder`, float32.
        shape: how to build it.
        discriminator: of a `PatchDiscriminator`, empty where the file has none.
        lpips: weights of the perceptual loss, under the names that `load_lpips_vgg16` reads; empty where there are none.
        left_out: what was not taken -> number of tensors.
    """

    state: dict[str, Tensor]
    shape: AutoencoderShape
    discriminator: dict[str, Tensor] = field(default_factory=dict)
    lpips: dict[str, Tensor] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Names:
    """What a layout calls the parts; {i} is a level as it runs, {r} the same counted from the end, {j} a block."""

    encoder_level: str
    decoder_level: str
    block: str
    attention: str
    down: str
    up: str
    middle: tuple[str, str, str]
    shortcut: str
    attention_parts: tuple[str, str, str, str, str]
    norm_out: str


TAMING = Names(
    encoder_level="down.{i}",
    decoder_level="up.{r}",
    block="block.{j}",
    attention="attn.{j}",
    down="downsample.conv",
    up="upsample.conv",
    middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
    shortcut="nin_shortcut",
    attention_parts=("norm", "q", "k", "v", "proj_out"),
    norm_out="norm_out",
)
DIFFUSERS = Names(
    encoder_level="down_blocks.{i}",
    decoder_level="up_blocks.{i}",
    block="resnets.{j}",
    attention="attentions.{j}",
    down="downsamplers.0.conv",
    up="upsamplers.0.conv",
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    shortcut="conv_shortcut",
    attention_parts=("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
    norm_out="conv_norm_out",
)
LLAMAGEN = Names(
    encoder_level="conv_blocks.{i}",
    decoder_level="conv_blocks.{i}",
    block="res.{j}",
    attention="attn.{j}",
    down="downsample.conv",
    up="upsample.conv",
    middle=("mid.0", "mid.1", "mid.2"),
    shortcut="nin_shortcut",
    attention_parts=("norm", "q", "k", "v", "proj_out"),
    norm_out="norm_out",
)
OURS = Names(
    encoder_level="levels.{i}",
    decoder_level="levels.{i}",
    block="blocks.{j}",
    attention="attentions.{j}",
    down="resample",
    up="resample",
    middle=("middle_block1", "middle_attention", "middle_block2"),
    shortcut="shortcut",
    attention_parts=("norm", "query", "key", "value", "out"),
    norm_out="norm_out",
)
_CODEBOOK = "quantiser.codebook"
_THEIR_CODEBOOK = "quantize.embedding.weight"


def from_taming(state: Mapping[str, Tensor]) -> ImportedAutoencoder:
    """Takes a VQGAN of taming-transformers, or a VQ first stage of latent-diffusion, apart.

    Raises:
        CheckpointError: the quantiser is a Gumbel one or has a remapped vocabulary; names are missing or unknown; a tensor
            has another shape than the rest calls for, or is not of floating point.
    """
    if any(name.startswith(("quantize.embed.", "quantize.proj.")) for name in state):
        raise CheckpointError(
            "the checkpoint has quantize.embed and quantize.proj: a Gumbel quantiser, which is not read. "
            "VQGANs with a nearest-neighbour codebook (quantize.embedding) are."
        )
    if "quantize.used" in state:
        raise CheckpointError(
            "the checkpoint has quantize.used: a vocabulary that was remapped afterwards, which is not read."
        )
    state, averages = split(state, "model_ema.")
    state, discriminator = split(state, "loss.discriminator.main.")
    state, lpips = split(state, "loss.perceptual_loss.")
    left_out = {"model_ema (averages beside the weights)": len(averages)}
    if "colorize" in state:  # random colours to show segmentations in
        state, left_out["colorize (colours to show labels in)"] = _without(state, "colorize"), 1
    return _imported(
        state,
        TAMING,
        discriminator={f"layers.{name}": tensor for name, tensor in discriminator.items()},
        lpips=lpips,
        left_out={what: count for what, count in left_out.items() if count},
    )


def from_llamagen(state: Mapping[str, Tensor]) -> ImportedAutoencoder:
    """Takes a VQ tokenizer of LlamaGen, whose values and codes are brought to unit length at every look-up.

    Raises:
        CheckpointError: names are missing or unknown; a tensor has another shape than the rest calls for.
    """
    used = "quantize.codebook_used"
    left_out = {f"{used} (codes seen lately)": 1} if used in state else {}
    return _imported(_without(state, used), LLAMAGEN, normalise=True, left_out=left_out)


def from_diffusers(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> ImportedAutoencoder:
    """Takes a `VQModel` of diffusers.

    Args:
        state: the tensors of diffusion_pytorch_model.safetensors.
        config: config.json.

    Raises:
        CheckpointError: the config is not that of a VQModel with swish and group norm, or as `from_llamagen`.
    """
    needed = {"_class_name": "VQModel", "act_fn": "silu", "norm_type": "group"}
    wrong = [
        f"{key} = {config[key]!r}, {value!r} is read"
        for key, value in needed.items()
        if config.get(key, value) != value
    ]
    if wrong:
        raise CheckpointError(f"config.json: {'; '.join(wrong)}.")
    norm_groups = config.get("norm_num_groups", 32)
    if type(norm_groups) is not int or norm_groups < 1:
        raise CheckpointError(f"config.json: norm_num_groups = {norm_groups!r}; a number of at least 1 is needed.")
    is_map = re.compile(r".*\.(to_q|to_k|to_v|to_out\.0)\.weight")  # 1x1 convolutions, stored as matrices
    convolutions = {
        name: tensor[:, :, None, None] if tensor.ndim == 2 and is_map.fullmatch(name) else tensor
        for name, tensor in state.items()
    }
    return _imported(convolutions, DIFFUSERS, norm_groups=norm_groups)


def infer_autoencoder(
    state: Mapping[str, Tensor], *, normalise: bool = False, norm_groups: int = 32
) -> AutoencoderShape:
    """Returns how the autoencoder with these weights is built.

    Args:
        state: of a `VQAutoencoder`, our names.
        normalise, norm_groups: what weights do not tell.

    Raises:
        CheckpointError: a weight that this is read from is missing, or a level's width is no multiple of the first one.
    """

    def size(name: str, dim: int) -> int:
        if name not in state or state[name].ndim <= dim or state[name].shape[dim] < 1:
            raise CheckpointError(f"{name} is missing or has no numbers; it tells how the model is built.")
        return state[name].shape[dim]

    def numbers(pattern: str) -> list[int]:
        found = (re.match(pattern, name) for name in state)
        return sorted({int(match[1]) for match in found if match})

    base_width = size("encoder.conv_in.weight", 0)
    levels = numbers(r"encoder\.levels\.([0-9]{1,4})\.")
    widths = [size(f"encoder.levels.{i}.blocks.0.conv1.weight", 0) for i in levels]
    if not widths or base_width < 1 or any(width % base_width for width in widths):
        raise CheckpointError(f"the levels have {widths} channels; multiples of the first {base_width} are needed.")
    return AutoencoderShape(
        in_channels=size("encoder.conv_in.weight", 1),
        z_channels=size("encoder.conv_out.weight", 0),
        dim=size(_CODEBOOK, 1),
        vocab_size=size(_CODEBOOK, 0),
        base_width=base_width,
        multipliers=tuple(width // base_width for width in widths),
        res_blocks=len(numbers(r"encoder\.levels\.0\.blocks\.([0-9]{1,4})\.")),
        attention_levels=tuple(numbers(r"encoder\.levels\.([0-9]{1,4})\.attentions\.")),
        middle_attention="encoder.middle_attention.norm.weight" in state,
        normalise=normalise,
        norm_groups=norm_groups,
    )


def expected_shapes(shape: AutoencoderShape) -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of every tensor of such an autoencoder, the codebook included."""
    with torch.device("meta"):
        parts = {
            kind.__name__.lower(): kind(
                shape.in_channels,
                shape.z_channels,
                base_width=shape.base_width,
                multipliers=shape.multipliers,
                res_blocks=shape.res_blocks,
                attention_levels=shape.attention_levels,
                middle_attention=shape.middle_attention,
                norm_groups=1,  # which shapes do not depend on
            )
            for kind in (Encoder, Decoder)
        }
    expected = {
        f"{part}.{name}": tuple(tensor.shape)
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    return {
        **expected,
        "before.weight": (shape.dim, shape.z_channels, 1, 1),
        "before.bias": (shape.dim,),
        "after.weight": (shape.z_channels, shape.dim, 1, 1),
        "after.bias": (shape.z_channels,),
        _CODEBOOK: (shape.vocab_size, shape.dim),
    }


def rename(name: str, source: Names, target: Names, num_levels: int) -> str | None:
    """Returns what `target` calls a tensor of `source`; None where `source` has no such name.

    Args:
        name: full name of a tensor.
        source, target: layouts; one of them is `OURS`.
        num_levels: levels of the network, which {r} counts from.
    """
    fixed = dict(zip(_fixed_names(source), _fixed_names(target), strict=True))
    if name in fixed:
        return fixed[name]
    module, _, leaf = name.rpartition(".")
    for pattern, template in _patterns(source, target):
        match = pattern.fullmatch(module)
        if match and leaf in ("weight", "bias"):
            numbers = {key: int(value) for key, value in match.groupdict().items()}
            for one, other in (("i", "r"), ("r", "i")):
                if one in match.groupdict():
                    numbers[other] = num_levels - 1 - numbers[one]
            return f"{template.format(**numbers)}.{leaf}"
    return None


def refuse_names(problems: Mapping[str, list[str]]) -> None:
    """Lists names by what is wrong with them, the first ten of each kind and their count.

    Raises:
        CheckpointError: there is one.
    """
    lists = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for what, names in problems.items()
        if names
    ]
    if lists:
        raise CheckpointError(f"the weights do not fit the layout. {'. '.join(lists)}.")


def split(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns (the others, those whose names begin with `prefix`, without it)."""
    others = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    return others, {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}


def _imported(
    state: Mapping[str, Tensor],
    layout: Names,
    *,
    normalise: bool = False,
    norm_groups: int = 32,
    discriminator: Mapping[str, Tensor] | None = None,
    lpips: Mapping[str, Tensor] | None = None,
    left_out: Mapping[str, int] | None = None,
) -> ImportedAutoencoder:
    level = re.compile(re.escape("encoder." + layout.encoder_level.removesuffix("{i}")) + r"([0-9]{1,4})\.")
    levels = {match[1] for name in state if (match := level.match(name))}
    theirs = {name: rename(name, layout, OURS, len(levels)) for name in state}
    renamed = {ours: state[name] for name, ours in theirs.items() if ours is not None}
    try:
        shape = infer_autoencoder(renamed, normalise=normalise, norm_groups=norm_groups)
    except CheckpointError as error:
        known = sum(ours is not None for ours in theirs.values())
        raise CheckpointError(f"{known} of {len(theirs)} names are those of the layout, and {error}") from error
    expected = expected_shapes(shape)
    refuse_names(
        {
            "missing": [str(rename(name, OURS, layout, len(levels))) for name in expected if name not in renamed],
            "unknown": [repr(name) for name, ours in theirs.items() if ours not in expected],
            "of another shape": [
                f"{name} {list(renamed[ours].shape)} for {list(expected[ours])}"
                for name, ours in theirs.items()
                if ours in expected and tuple(renamed[ours].shape) != expected[ours]
            ],
            "not of floating point": [
                f"{name} {renamed[ours].dtype}"
                for name, ours in theirs.items()
                if ours in expected and not renamed[ours].is_floating_point()
            ],
        }
    )
    return ImportedAutoencoder(
        {name: renamed[name].float() for name in expected},
        shape,
        dict(discriminator or {}),
        dict(lpips or {}),
        dict(left_out or {}),
    )


def _without(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}


def _fixed_names(names: Names) -> list[str]:
    before, after, codebook = (
        ("before", "after", _CODEBOOK) if names is OURS else ("quant_conv", "post_quant_conv", _THEIR_CODEBOOK)
    )
    return [f"{before}.weight", f"{before}.bias", f"{after}.weight", f"{after}.bias", codebook]


@cache
def _patterns(source: Names, target: Names) -> list[tuple[re.Pattern[str], str]]:
    """(what a module's name looks like in `source`, its name in `target`)."""

    def pattern(template: str) -> re.Pattern[str]:
        return re.compile(re.sub(r"\\{([irj])\\}", r"(?P<\1>0|[1-9][0-9]{0,3})", re.escape(template)))

    return [(pattern(theirs), ours) for theirs, ours in zip(_modules(source), _modules(target), strict=True)]


def _modules(names: Names) -> list[str]:
    """Every module with weights, in the same order for each layout."""
    block = ["norm1", "conv1", "norm2", "conv2", names.shortcut]
    found = []
    for side, level, resample in (
        ("encoder", names.encoder_level, names.down),
        ("decoder", names.decoder_level, names.up),
    ):
        places = [
            (f"{level}.{names.block}", block),
            (f"{level}.{names.attention}", names.attention_parts),
            (names.middle[0], block),
            (names.middle[1], names.attention_parts),
            (names.middle[2], block),
        ]
        found += [f"{side}.conv_in", f"{side}.conv_out", f"{side}.{names.norm_out}", f"{side}.{level}.{resample}"]
        found += [f"{side}.{place}.{part}" for place, parts in places for part in parts]
    return found
