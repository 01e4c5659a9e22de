"""The base U-Net: its blocks against their definition, who skips to whom, where attention is, and the paper's size."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.errors import ConfigError
from rasterformer.nn.map_attention import MapAttention
from rasterformer.nn.unet import Stage, Unet
from rasterformer.nn.unet_blocks import ResBlock

F64 = torch.float64
PAPER = {"width": 512, "multipliers": (1, 2, 3, 4), "res_blocks": 3, "attention_levels": (1, 2, 3)}
SMALL = {
    "width": 4,
    "multipliers": (1, 2, 3),
    "res_blocks": 2,
    "attention_levels": (1,),
    "head_dim": 4,
    "norm_groups": 2,
}


def make(**changes: object) -> Unet:
    torch.manual_seed(0)
    network = Unet(3, **{**SMALL, **changes}).to(F64)  # type: ignore[arg-type]
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.3)
    return network


def random_maps(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(1))


def billions(network: nn.Module) -> float:
    return sum(weight.numel() for weight in network.parameters()) / 1e9


# ---- residual blocks


@torch.no_grad()
@pytest.mark.parametrize("resample", [None, "down", "up"])
@pytest.mark.parametrize("out_channels", [4, 6])
@pytest.mark.parametrize("skipping", [0, 2])
def test_block_is_two_convolutions_of_which_the_vector_scales_and_shifts_what_the_second_sees(
    resample: str | None, out_channels: int, skipping: int
) -> None:
    torch.manual_seed(0)
    block = ResBlock(4, out_channels, vector_width=3, norm_groups=2, dropout_prob=0.0, resample=resample).to(F64)  # type: ignore[arg-type]
    for weight in block.parameters():
        nn.init.normal_(weight)
    whole, vector = random_maps(2, 4, 4, 6), random_maps(2, 3)

    def resampled(x: Tensor) -> Tensor:
        """Means of 2x2, or 2x2 copies."""
        if resample == "down":
            return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3) if resample == "up" else x

    change = resampled(F.silu(F.group_norm(whole, 2, block.norm1.weight, block.norm1.bias, 1e-6)))
    change = F.conv2d(change, block.conv1.weight, block.conv1.bias, padding=1)
    change = F.group_norm(change, 2, block.norm2.weight, block.norm2.bias, 1e-6)
    for image in range(2):
        for channel in range(out_channels):
            scale = block.modulation.weight[channel] @ vector[image] + block.modulation.bias[channel]
            number = channel + out_channels
            shift = block.modulation.weight[number] @ vector[image] + block.modulation.bias[number]
            change[image, channel] = change[image, channel] * (1 + scale) + shift
    change = F.conv2d(F.silu(change), block.conv2.weight, block.conv2.bias, padding=1)
    expected = resampled(whole)
    if out_channels != 4:
        expected = F.conv2d(expected, block.shortcut.weight, block.shortcut.bias)
    if skipping:
        found = block(whole[:, :-skipping], vector, whole[:, -skipping:])
    else:
        found = block(whole, vector)
    torch.testing.assert_close(found, expected + change, rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_block_begins_as_the_identity() -> None:
    torch.manual_seed(0)
    block = ResBlock(4, 4, vector_width=3, norm_groups=2, dropout_prob=0.0)
    h = torch.randn(1, 4, 2, 2)
    assert torch.equal(block(h, torch.randn(1, 3)), h)


def test_dropout_is_there_in_training_only() -> None:
    torch.manual_seed(0)
    block = ResBlock(4, 4, vector_width=3, norm_groups=2, dropout_prob=0.5)
    nn.init.normal_(block.conv2.weight)
    h, vector = torch.randn(1, 4, 4, 4), torch.randn(1, 3)
    assert not torch.equal(block(h, vector), block(h, vector))
    assert torch.equal(block.eval()(h, vector), block(h, vector))


# ---- the network


def record(network: Unet, size: tuple[int, int]) -> tuple[list[Tensor], list[Tensor]]:
    """What the way down made, first of all the first convolution, and what skipped to the way up, in order."""
    made: list[Tensor] = []
    skipped: list[Tensor] = []
    network.conv_in.register_forward_hook(lambda _, __, out: made.append(out))
    for stage in network.down:
        stage.register_forward_hook(lambda _, __, out: made.append(out))
    for stage in network.up:
        stage.register_forward_pre_hook(lambda _, given: skipped.append(given[2]) if given[2] is not None else None)
    network(random_maps(1, 3, *size), random_maps(1))
    return made, skipped


@torch.no_grad()
def test_the_way_up_takes_all_that_the_way_down_made_last_first() -> None:
    made, skipped = record(make(), (8, 4))
    assert len(made) == 3 * 2 + 2 + 1  # blocks, ways to the next level, first convolution
    assert all(one is other for one, other in zip(reversed(made), skipped, strict=True))
    assert [tuple(m.shape[1:]) for m in made] == [
        *[(4, 8, 4)] * 3, (4, 4, 2), *[(8, 4, 2)] * 2, (8, 2, 1), *[(12, 2, 1)] * 2
    ]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize(
    ("levels", "expected"),
    [((), [(2, 4)]), ((1,), [(4, 8)] * 2 + [(2, 4)] + [(4, 8)] * 3), ((2,), [(2, 4)] * (2 + 1 + 3))],
    ids=str,
)
def test_attention_is_in_the_middle_and_after_the_blocks_of_its_levels(
    levels: tuple[int, ...], expected: list[tuple[int, int]]
) -> None:
    network = make(attention_levels=levels)
    sizes = []
    for module in network.modules():
        if isinstance(module, MapAttention):
            module.register_forward_pre_hook(lambda _, given: sizes.append(tuple(given[0].shape[2:])))
    network(random_maps(1, 3, 8, 16), random_maps(1))
    assert sizes == expected


@pytest.mark.parametrize("has_attention", [True, False])
def test_without_the_statistics_of_norms_a_corner_sees_the_opposite_one_by_attention_only(has_attention: bool) -> None:
    """One block a level sees 1 + 2 * 2 + 2 * (4 + 2) + ... pixels at most, far less than 96."""
    network = make(attention_levels=(), res_blocks=1, multipliers=(1, 1))
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    if not has_attention:
        assert isinstance(network.middle[0], Stage)
        network.middle[0].attention = None
    z = random_maps(1, 3, 4, 96).requires_grad_()
    (seen,) = torch.autograd.grad(network(z, random_maps(1))[0, 0, 0, 0], z)
    assert bool((seen[0, :, :, -8:].abs() > 0).all()) == has_attention
    assert seen[0, :, 0, 0].abs().min() > 0


@pytest.mark.parametrize(("text_dim", "expected"), [(None, 2.10), (512, 2.13), (4096, 2.45)])
def test_the_papers_base_model_has_about_two_billion_parameters(text_dim: int | None, expected: float) -> None:
    """Saharia et al. 2022: 2B. Within 10 % unless T5's 4096 dimensions reach attention as they are; exact ones are ours."""
    with torch.device("meta"):
        found = billions(Unet(3, **PAPER, text_dim=text_dim))  # type: ignore[arg-type]
    assert round(found, 2) == expected
    assert found == pytest.approx(2.0, rel=0.1 if text_dim != 4096 else 0.25)


def test_parameters_are_those_of_a_count_by_hand() -> None:
    """Convolutions 9 i o + o, norms 2 c, maps i o + o, of each block as the paper's table and ADM have it."""
    wide, vector = (4, 8, 12), 16

    def block(i: int, o: int) -> int:
        return (
            2 * i
            + (9 * i * o + o)
            + (vector * 2 * o + 2 * o)
            + 2 * o
            + (9 * o * o + o)
            + ((i * o + o) if i != o else 0)
        )

    def attention(c: int) -> int:
        return 2 * c + 4 * (c * c + c)

    down = [block(4, 4), block(4, 4), block(4, 4), block(4, 8), block(8, 8), block(8, 8), block(8, 12), block(12, 12)]
    middle = [block(12, 12), attention(12), block(12, 12)]
    up = [
        block(24, 12),
        block(24, 12),
        block(20, 12),
        block(12, 12),
    ]  # of 12 and 8 from the way down, then twice as large
    up += [block(20, 8), block(16, 8), block(12, 8), block(8, 8)]
    up += [block(12, 4), block(8, 4), block(8, 4)]
    ends = (9 * 3 * 4 + 4) + (2 * 4) + (9 * 4 * 3 + 3)
    numbers = (4 * vector + vector) + (vector * vector + vector)
    total = sum(down) + sum(middle) + sum(up) + 5 * attention(wide[1]) + ends + numbers
    assert sum(weight.numel() for weight in make().parameters()) == total


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 5}, "width = 5 must be even"),
        ({"multipliers": ()}, r"multipliers = \[\]"),
        ({"multipliers": (1, 0, 1)}, r"multipliers = \[1, 0, 1\]"),
        ({"res_blocks": 0}, r"res_blocks = \[0, 0, 0\] for 3 levels"),
        (
            {"attention_levels": (0, 3)},
            r"attention_levels = \[0, 3\]: there is no level 3. 3 multipliers make levels 0",
        ),
        ({"attention_levels": (-1,)}, "there is no level -1"),
        ({"head_dim": 5}, "head_dim = 5 does not divide a level of 8 channels"),
        ({"head_dim": 0}, "head_dim = 0 does not divide"),
        ({"attention_levels": (), "head_dim": 8}, "head_dim = 8 does not divide a level of 12 channels.*coarsest"),
        ({"norm_groups": 3}, "norm_groups = 3 does not divide 4 channels"),
        ({"norm_groups": 0}, "norm_groups = 0 does not divide 4 channels"),
        ({"noised_image": True}, "image_channels = 0"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**change)
