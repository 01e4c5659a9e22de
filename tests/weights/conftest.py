"""Names and shapes of the published networks, written from the description of the architecture and not from our code."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def taming_shapes(
    *,
    ch: int,
    mult: Sequence[int],
    attention: Sequence[int],
    z: int,
    dim: int,
    codes: int,
    channels: int = 3,
    blocks: int = 2,
) -> Shapes:
    """Of a VQModel of taming-transformers; `attention` counts levels from the finest."""
    shapes: Shapes = {}

    def conv(name: str, out: int, into: int, kernel: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into, kernel, kernel), (out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def block(name: str, into: int, out: int) -> None:
        norm(f"{name}.norm1", into)
        conv(f"{name}.conv1", out, into, 3)
        norm(f"{name}.norm2", out)
        conv(f"{name}.conv2", out, out, 3)
        if into != out:
            conv(f"{name}.nin_shortcut", out, into, 1)

    def attend(name: str, width: int) -> None:
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", width, width, 1)

    def middle(side: str, width: int) -> None:
        block(f"{side}.mid.block_1", width, width)
        attend(f"{side}.mid.attn_1", width)
        block(f"{side}.mid.block_2", width, width)

    conv("encoder.conv_in", ch, channels, 3)
    width = ch
    for level, factor in enumerate(mult):
        for b in range(blocks):
            block(f"encoder.down.{level}.block.{b}", width, ch * factor)
            width = ch * factor
            if level in attention:
                attend(f"encoder.down.{level}.attn.{b}", width)
        if level < len(mult) - 1:
            conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
    middle("encoder", width)
    norm("encoder.norm_out", width)
    conv("encoder.conv_out", z, width, 3)
    conv("quant_conv", dim, z, 1)
    shapes["quantize.embedding.weight"] = (codes, dim)
    conv("post_quant_conv", z, dim, 1)
    conv("decoder.conv_in", width, z, 3)
    middle("decoder", width)
    for level in reversed(range(len(mult))):
        for b in range(blocks + 1):
            block(f"decoder.up.{level}.block.{b}", width, ch * mult[level])
            width = ch * mult[level]
            if level in attention:
                attend(f"decoder.up.{level}.attn.{b}", width)
        if level > 0:
            conv(f"decoder.up.{level}.upsample.conv", width, width, 3)
    norm("decoder.norm_out", width)
    conv("decoder.conv_out", channels, width, 3)
    return shapes


@pytest.fixture(name="taming_shapes")
def _taming_shapes() -> Callable[..., Shapes]:
    return taming_shapes


@pytest.fixture
def small_taming() -> dict[str, Tensor]:
    """A small network, random: 8, 8 and 16 channels, attention at the coarsest level, 5 codes of 3 numbers."""
    shapes = taming_shapes(ch=8, mult=(1, 1, 2), attention=(2,), z=6, dim=3, codes=5, blocks=1)
    rng = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=rng) for name, shape in shapes.items()}
