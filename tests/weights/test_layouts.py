import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rasterformer.codecs.perceptual import load_lpips_vgg16
from rasterformer.codecs.vq.autoencoder import Decoder, Encoder, VQAutoencoder
from rasterformer.codecs.vq.discriminator import PatchDiscriminator
from rasterformer.codecs.vq.quantise import VectorQuantiser
from rasterformer.errors import CheckpointError
from rasterformer.weights.layouts import (
    DIFFUSERS,
    LLAMAGEN,
    OURS,
    TAMING,
    AutoencoderShape,
    Names,
    from_diffusers,
    from_llamagen,
    from_taming,
    infer_autoencoder,
    rename,
)

Shapes = dict[str, tuple[int, ...]]

# Three levels; ours | taming | diffusers | LlamaGen. From the description of the three programs, written by hand.
TABLE = """
encoder.conv_in                       encoder.conv_in                  encoder.conv_in                                encoder.conv_in
encoder.levels.0.blocks.1.norm1       encoder.down.0.block.1.norm1     encoder.down_blocks.0.resnets.1.norm1          encoder.conv_blocks.0.res.1.norm1
encoder.levels.1.blocks.0.conv2       encoder.down.1.block.0.conv2     encoder.down_blocks.1.resnets.0.conv2          encoder.conv_blocks.1.res.0.conv2
encoder.levels.2.blocks.0.shortcut    encoder.down.2.block.0.nin_shortcut  encoder.down_blocks.2.resnets.0.conv_shortcut  encoder.conv_blocks.2.res.0.nin_shortcut
encoder.levels.2.attentions.1.norm    encoder.down.2.attn.1.norm       encoder.down_blocks.2.attentions.1.group_norm  encoder.conv_blocks.2.attn.1.norm
encoder.levels.2.attentions.1.query   encoder.down.2.attn.1.q          encoder.down_blocks.2.attentions.1.to_q        encoder.conv_blocks.2.attn.1.q
encoder.levels.2.attentions.1.key     encoder.down.2.attn.1.k          encoder.down_blocks.2.attentions.1.to_k        encoder.conv_blocks.2.attn.1.k
encoder.levels.2.attentions.1.value   encoder.down.2.attn.1.v          encoder.down_blocks.2.attentions.1.to_v        encoder.conv_blocks.2.attn.1.v
encoder.levels.2.attentions.1.out     encoder.down.2.attn.1.proj_out   encoder.down_blocks.2.attentions.1.to_out.0    encoder.conv_blocks.2.attn.1.proj_out
encoder.levels.0.resample             encoder.down.0.downsample.conv   encoder.down_blocks.0.downsamplers.0.conv      encoder.conv_blocks.0.downsample.conv
encoder.middle_block1.conv1           encoder.mid.block_1.conv1        encoder.mid_block.resnets.0.conv1              encoder.mid.0.conv1
encoder.middle_attention.value        encoder.mid.attn_1.v             encoder.mid_block.attentions.0.to_v            encoder.mid.1.v
encoder.middle_block2.norm2           encoder.mid.block_2.norm2        encoder.mid_block.resnets.1.norm2              encoder.mid.2.norm2
encoder.norm_out                      encoder.norm_out                 encoder.conv_norm_out                          encoder.norm_out
encoder.conv_out                      encoder.conv_out                 encoder.conv_out                               encoder.conv_out
before                                quant_conv                       quant_conv                                     quant_conv
after                                 post_quant_conv                  post_quant_conv                                post_quant_conv
decoder.conv_in                       decoder.conv_in                  decoder.conv_in                                decoder.conv_in
decoder.middle_block2.conv2           decoder.mid.block_2.conv2        decoder.mid_block.resnets.1.conv2              decoder.mid.2.conv2
decoder.levels.0.blocks.2.conv1       decoder.up.2.block.2.conv1       decoder.up_blocks.0.resnets.2.conv1            decoder.conv_blocks.0.res.2.conv1
decoder.levels.0.attentions.0.out     decoder.up.2.attn.0.proj_out     decoder.up_blocks.0.attentions.0.to_out.0      decoder.conv_blocks.0.attn.0.proj_out
decoder.levels.0.resample             decoder.up.2.upsample.conv       decoder.up_blocks.0.upsamplers.0.conv          decoder.conv_blocks.0.upsample.conv
decoder.levels.1.resample             decoder.up.1.upsample.conv       decoder.up_blocks.1.upsamplers.0.conv          decoder.conv_blocks.1.upsample.conv
decoder.levels.2.blocks.0.shortcut    decoder.up.0.block.0.nin_shortcut  decoder.up_blocks.2.resnets.0.conv_shortcut  decoder.conv_blocks.2.res.0.nin_shortcut
decoder.norm_out                      decoder.norm_out                 decoder.conv_norm_out                          decoder.norm_out
decoder.conv_out                      decoder.conv_out                 decoder.conv_out                               decoder.conv_out
"""  # noqa: E501  a table


@pytest.mark.parametrize("row", [line.split() for line in TABLE.strip().splitlines()], ids=lambda row: row[0])
def test_names_of_the_three_programs_are_ours(row: list[str]) -> None:
    ours = row[0]
    for layout, theirs in zip((TAMING, DIFFUSERS, LLAMAGEN), row[1:], strict=True):
        for leaf in ("weight", "bias"):
            assert rename(f"{theirs}.{leaf}", layout, OURS, 3) == f"{ours}.{leaf}"
            assert rename(f"{ours}.{leaf}", OURS, layout, 3) == f"{theirs}.{leaf}"


@pytest.mark.parametrize("layout", [TAMING, DIFFUSERS, LLAMAGEN])
def test_codebook_and_foreign_names(layout: Names) -> None:
    assert rename("quantize.embedding.weight", layout, OURS, 3) == "quantiser.codebook"
    for foreign in (
        "encoder.conv_in.scale",
        "encoder",
        "encoder.down.01.block.0.conv1.weight",
        "x.encoder.conv_in.weight",
    ):
        assert rename(foreign, layout, OURS, 3) is None


def autoencoder(shape: AutoencoderShape) -> VQAutoencoder:
    sizes = {
        "base_width": shape.base_width,
        "multipliers": shape.multipliers,
        "res_blocks": shape.res_blocks,
        "attention_levels": shape.attention_levels,
        "middle_attention": shape.middle_attention,
        "norm_groups": min(shape.norm_groups, shape.base_width),
    }
    encoder, decoder = (kind(shape.in_channels, shape.z_channels, **sizes) for kind in (Encoder, Decoder))
    quantiser = VectorQuantiser(shape.vocab_size, shape.dim, normalise=shape.normalise)
    return VQAutoencoder(encoder, decoder, quantiser, z_channels=shape.z_channels, dim=shape.dim)


SMALL = AutoencoderShape(
    in_channels=3,
    z_channels=6,
    dim=3,
    vocab_size=5,
    base_width=8,
    multipliers=(1, 1, 2),
    res_blocks=1,
    attention_levels=(2,),
    middle_attention=True,
)


def test_taming_weights_fill_our_autoencoder(small_taming: dict[str, Tensor]) -> None:
    imported = from_taming(small_taming)
    assert imported.shape == SMALL
    model = autoencoder(imported.shape)
    model.load_state_dict(imported.state)  # strict
    assert torch.equal(model.quantiser.codebook, small_taming["quantize.embedding.weight"])
    coarsest, finest = model.decoder.levels[0], model.decoder.levels[2]
    assert torch.equal(coarsest.blocks[1].conv1.weight, small_taming["decoder.up.2.block.1.conv1.weight"])
    assert torch.equal(finest.blocks[1].conv2.bias, small_taming["decoder.up.0.block.1.conv2.bias"])
    assert imported.left_out == {} and imported.discriminator == {} and imported.lpips == {}


@pytest.mark.parametrize("layout", [TAMING, LLAMAGEN])
def test_ours_to_theirs_and_back_is_identity(layout: Names) -> None:
    model = autoencoder(SMALL)
    own = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    theirs = {str(rename(name, OURS, layout, 3)): tensor for name, tensor in own.items()}
    assert len(theirs) == len(own) and theirs.keys().isdisjoint(
        own.keys() - {n for n in own if "conv_" in n or "norm_out" in n}
    )
    back = (from_taming if layout is TAMING else from_llamagen)(theirs).state
    assert back.keys() == own.keys() and all(torch.equal(back[name], own[name]) for name in own)


# name: (levels counted from the finest, f, and the numbers of parameters that were counted in the published program)
PUBLISHED = {
    "imagenet f16": (dict(ch=128, mult=(1, 1, 2, 2, 4), attention=(4,), z=256, dim=256, codes=1024), 29.3e6, 42.4e6),
    "f8, attention at 32": (dict(ch=128, mult=(1, 1, 2, 4), attention=(3,), z=256, dim=256, codes=8192), 26.3e6, 38.3e6),
    "depth": (dict(ch=128, mult=(1, 1, 2, 2, 4), attention=(4,), z=256, dim=256, codes=1024, channels=1), 29.3e6, 42.4e6),
    "ldm vq-f4": (dict(ch=128, mult=(1, 2, 4), attention=(), z=3, dim=3, codes=8192), None, None),
    "ldm vq-f8": (dict(ch=128, mult=(1, 2, 2, 4), attention=(2,), z=4, dim=4, codes=16384), None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_are_recognised(name: str, taming_shapes: Callable[..., Shapes]) -> None:
    sizes, encoder_params, decoder_params = PUBLISHED[name]
    shapes = taming_shapes(**sizes)
    for side, expected in (("encoder", encoder_params), ("decoder", decoder_params)):
        count = sum(math.prod(shape) for key, shape in shapes.items() if key.startswith(side))
        assert expected is None or count == pytest.approx(expected, rel=2e-3)  # published to three digits
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert from_taming(state).shape == AutoencoderShape(
        in_channels=sizes.get("channels", 3),
        z_channels=sizes["z"],
        dim=sizes["dim"],
        vocab_size=sizes["codes"],
        base_width=128,
        multipliers=sizes["mult"],
        res_blocks=2,
        attention_levels=sizes["attention"],
        middle_attention=True,
        normalise=False,
        norm_groups=32,
    )


def test_llamagen_codes_are_normalised_and_its_usage_buffer_is_left_out(small_taming: dict[str, Tensor]) -> None:
    def renamed(name: str) -> str:
        for side, level in (("down", "encoder"), ("up", "decoder")):
            for i in range(3):
                run = i if side == "down" else 2 - i
                name = name.replace(f"{level}.{side}.{i}.", f"{level}.conv_blocks.{run}.")
        name = name.replace(".block.", ".res.").replace("mid.block_1", "mid.0")
        return name.replace("mid.attn_1", "mid.1").replace("mid.block_2", "mid.2")

    state = {renamed(name): tensor for name, tensor in small_taming.items()}
    imported = from_llamagen({**state, "quantize.codebook_used": torch.zeros(65536)})
    assert imported.shape.normalise and imported.left_out == {"quantize.codebook_used (codes seen lately)": 1}
    expected = from_taming(small_taming).state
    assert imported.state.keys() == expected.keys()
    assert all(torch.equal(imported.state[name], expected[name]) for name in expected)


def test_parts_beside_the_autoencoder_are_told_apart(small_taming: dict[str, Tensor]) -> None:
    discriminator = PatchDiscriminator(3, base_width=4)
    network = {f"loss.discriminator.main.{name.removeprefix('layers.')}": tensor
               for name, tensor in discriminator.state_dict().items()}  # fmt: skip
    assert {int(name.split(".")[3]) for name in network} == {0, 2, 3, 5, 6, 8, 9, 11}  # published numbers of the layers
    extras = {
        "loss.perceptual_loss.lin0.model.1.weight": torch.ones(1, 64, 1, 1),
        "model_ema.decay": torch.tensor(0.9),
        "model_ema.encoderconv_inweight": torch.zeros(1),
        "colorize": torch.zeros(3, 4, 1, 1),
    }
    imported = from_taming({**small_taming, **network, **extras})
    discriminator.load_state_dict(imported.discriminator)  # strict
    assert list(imported.lpips) == ["lin0.model.1.weight"]
    assert imported.left_out == {
        "model_ema (averages beside the weights)": 2,
        "colorize (colours to show labels in)": 1,
    }
    assert imported.state.keys() == from_taming(small_taming).state.keys()


def test_half_precision_becomes_float32(small_taming: dict[str, Tensor]) -> None:
    half = {name: tensor.bfloat16() for name, tensor in small_taming.items()}
    imported = from_taming(half)
    assert {tensor.dtype for tensor in imported.state.values()} == {torch.float32}
    assert torch.equal(imported.state["before.weight"], half["quant_conv.weight"].float())


def test_missing_unknown_and_misshapen_names_are_listed_together(small_taming: dict[str, Tensor]) -> None:
    state = dict(small_taming)
    del state["decoder.up.2.block.1.conv1.bias"]
    state["encoder.down.0.block.0.conv9.weight"] = torch.zeros(1)
    state["loss.logvar"] = torch.zeros(1)
    state["post_quant_conv.bias"] = torch.zeros(7)
    state["quant_conv.bias"] = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(CheckpointError) as caught:
        from_taming(state)
    message = str(caught.value)
    assert "1 missing: decoder.up.2.block.1.conv1.bias" in message
    assert "2 unknown: 'encoder.down.0.block.0.conv9.weight', 'loss.logvar'" in message
    assert "1 of another shape: post_quant_conv.bias [7] for [6]" in message
    assert "1 not of floating point: quant_conv.bias torch.int64" in message


def test_long_lists_are_cut_after_ten_names(small_taming: dict[str, Tensor]) -> None:
    foreign = {f"foreign.{i}": torch.zeros(1) for i in range(25)}
    with pytest.raises(CheckpointError, match="25 unknown: ('foreign.[0-9]', ){9}'foreign.9', \\.\\.\\.\\.$"):
        from_taming({**small_taming, **foreign})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantize.embed.weight": torch.zeros(5, 3)}, "quantize.embed and quantize.proj: a Gumbel quantiser"),
        ({"quantize.used": torch.arange(3)}, "quantize.used: a vocabulary that was remapped"),
        ({"encoder.down.2.block.0.conv1.weight": torch.zeros(12, 8, 3, 3)},
         "the levels have \\[8, 8, 12\\] channels; multiples of the first 8 are needed"),
        ({"quantize.embedding.weight": torch.zeros(0, 3)}, "quantiser.codebook is missing or has no numbers"),
    ],
)  # fmt: skip
def test_networks_that_are_not_read_are_refused(
    change: dict[str, Tensor], message: str, small_taming: dict[str, Tensor]
) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_taming({**small_taming, **change})


def test_weights_of_something_else_are_refused() -> None:
    with pytest.raises(
        CheckpointError, match="0 of 1 names are those of the layout, and encoder.conv_in.weight is missing"
    ):
        from_taming({"layer1.weight": torch.zeros(2, 2)})


def test_shape_without_attention_is_inferred_from_ours() -> None:
    shape = AutoencoderShape(3, 4, 2, 7, 4, (1, 3), 2, (), False, normalise=True, norm_groups=2)
    assert infer_autoencoder(autoencoder(shape).state_dict(), normalise=True, norm_groups=2) == shape


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, "_class_name = 'AutoencoderKL', 'VQModel' is read"),
        ({"act_fn": "relu", "norm_type": "spatial"}, "act_fn = 'relu', 'silu' is read; norm_type = 'spatial', 'group' is read"),
        ({"norm_num_groups": 0}, "norm_num_groups = 0; a number of at least 1 is needed"),
    ],
)  # fmt: skip
def test_other_models_of_diffusers_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_diffusers({}, config)


def test_lpips_weights_are_read_by_the_perceptual_loss(small_taming: dict[str, Tensor], tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    """The names of VGG16's convolutions in torchvision's numbering, cut into five slices."""
    slices = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}
    widths = {1: 64, 2: 128, 3: 256, 4: 512, 5: 512}
    state = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.ones(1, 3, 1, 1)}
    into = 3
    for number, places in slices.items():
        for place in places:
            state[f"net.slice{number}.{place}.weight"] = torch.zeros(widths[number], into, 3, 3)
            state[f"net.slice{number}.{place}.bias"] = torch.zeros(widths[number])
            into = widths[number]
        state[f"lin{number - 1}.model.1.weight"] = torch.full((1, widths[number], 1, 1), 0.5)
    imported = from_taming(
        {**small_taming, **{f"loss.perceptual_loss.{name}": tensor for name, tensor in state.items()}}
    )
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    save_file(imported.lpips, path)
    distance = load_lpips_vgg16(path)
    assert all(bool((weight == 0.5).all()) for weight in distance.channel_weights)
