"""The Efficient U-Net: what runs at which resolution, what skips and how much of it, how far it sees, the paper's size."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.errors import ConfigError
from rasterformer.nn.efficient_unet import CoarseLayer, EfficientUnet
from rasterformer.nn.unet_blocks import ResBlock

F64 = torch.float64
PAPER = {
    "width": 128,
    "multipliers": (1, 2, 4, 8),
    "res_blocks": (2, 4, 8, 8),
    "image_channels": 3,
    "noised_image": True,
}
SMALL = {
    "width": 4,
    "multipliers": (1, 2),
    "res_blocks": (1, 2),
    "num_heads": 2,
    "norm_groups": 2,
    "image_channels": 0,
    "noised_image": False,
}


def make(**changes: object) -> EfficientUnet:
    torch.manual_seed(0)
    network = EfficientUnet(3, **{**SMALL, **changes}).to(F64)  # type: ignore[arg-type]
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.3)
    return network


def random_maps(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_sides_are_halved_before_blocks_and_doubled_after_them() -> None:
    network = make()
    order: list[tuple[str, int]] = []  # what ran, and the height of what it gave
    for name, module in network.named_modules():
        if isinstance(module, ResBlock | CoarseLayer) or name.startswith(("halving.", "doubling.")):
            kind = name.split(".")[0]
            module.register_forward_hook(lambda _, __, out, kind=kind: order.append((kind, out.shape[2])))
    network(random_maps(1, 3, 8, 12), random_maps(1))
    assert order == [
        ("halving", 4), ("down", 4),
        ("halving", 2), ("down", 2), ("down", 2), ("attention_down", 2),
        ("up", 2), ("up", 2), ("attention_up", 2), ("doubling", 4),
        ("up", 4), ("doubling", 8),
    ]  # fmt: skip


@torch.no_grad()
def test_every_block_on_the_way_up_takes_what_one_on_the_way_down_made_over_the_root_of_two() -> None:
    network = make()
    made: list[Tensor] = []
    skipped: list[Tensor] = []
    for level in network.down:
        for block in level:
            block.register_forward_hook(lambda _, __, out: made.append(out))
    for level in network.up:
        for block in level:
            block.register_forward_pre_hook(lambda _, given: skipped.append(given[2]))
    first: list[Tensor] = []
    network.conv_in.register_forward_hook(lambda _, __, out: first.append(out))
    last: list[Tensor] = []
    network.norm_out.register_forward_pre_hook(lambda _, given: last.append(given[0][:, 4:]))
    network(random_maps(1, 3, 8, 12), random_maps(1))
    assert len(made) == 3
    for one, other in zip(reversed([*first, *made]), [*skipped, *last], strict=True):
        torch.testing.assert_close(other.square() * 2, one.square(), rtol=1e-12, atol=1e-12)
        assert bool((one * other >= 0).all())


@torch.no_grad()
def test_a_way_down_is_a_strided_convolution_and_a_way_up_ends_with_copies_and_one() -> None:
    network = make(res_blocks=(1, 1))
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name in ("halving.0", "doubling.0"):
        module = network.get_submodule(name)
        module.register_forward_hook(lambda _, given, out, name=name: seen.__setitem__(name, (given[0], out)))
    after: list[Tensor] = []
    network.up[0][0].register_forward_hook(lambda _, __, out: after.append(out))
    network(random_maps(1, 3, 8, 4), random_maps(1))
    given, found = seen["halving.0"]
    weight, bias = network.halving[0].weight, network.halving[0].bias
    padded = F.pad(given, (1, 1, 1, 1))
    for row in range(4):
        for col in range(2):
            window = padded[0, :, 2 * row : 2 * row + 3, 2 * col : 2 * col + 3]
            expected = (weight * window).sum((1, 2, 3)) + bias
            torch.testing.assert_close(found[0, :, row, col], expected, rtol=1e-11, atol=1e-11)
    copies = after[0].repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(seen["doubling.0"][0], copies)
    assert seen["doubling.0"][1].shape == (1, 4, 8, 4)


def widest(place: int, blocks: tuple[int, ...]) -> tuple[int, int]:
    """First and last column that the pixel in column `place` can depend on, from the outside in, one layer after the other."""
    first, last = place - 1, place + 1  # last convolution
    for count in blocks:  # up, finest first: a 3x3 convolution, copies, two convolutions a block
        first, last = (first - 1) // 2, (last + 1) // 2
        first, last = first - 2 * count, last + 2 * count
    for count in reversed(blocks):  # down, coarsest first
        first, last = first - 2 * count, last + 2 * count
        first, last = 2 * first - 1, 2 * last + 1
    return first - 1, last + 1  # first convolution


@pytest.mark.parametrize("blocks", [(1, 1), (2, 1)])
@pytest.mark.parametrize("self_attention", [False, True])
def test_without_self_attention_and_the_statistics_of_norms_it_sees_as_far_as_its_convolutions(
    blocks: tuple[int, ...], self_attention: bool
) -> None:
    """Weights are positive, so that nothing cancels."""
    network = make(multipliers=(1, 1), res_blocks=blocks, self_attention=self_attention)
    for weight in network.parameters():
        nn.init.uniform_(weight, 0.01, 0.1)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    bound = 1 + 2**2 + sum(2 ** (i + 1) + 4 * n * 2 ** (i + 1) for i, n in enumerate(blocks))  # as the docstring says
    width = 2 * bound + 14  # more on both sides
    width += -width % 4
    for place in (bound + 4, bound + 7):
        z = torch.zeros(1, 3, 4, width, dtype=F64, requires_grad=True)
        (seen,) = torch.autograd.grad(network(z, torch.zeros(1, dtype=F64))[0, 0, 0, place], z)
        columns = seen.abs().sum((0, 1, 2)).nonzero()[:, 0]
        if self_attention:
            assert len(columns) == width
        else:
            assert (int(columns[0]), int(columns[-1])) == widest(place, blocks)
            assert max(place - int(columns[0]), int(columns[-1]) - place) <= bound


@torch.no_grad()
def test_the_coarse_layer_begins_as_the_identity() -> None:
    torch.manual_seed(0)
    layer, h = CoarseLayer(4, num_heads=2, text_dim=None, self_attention=True, norm_groups=2), torch.randn(1, 4, 2, 2)
    assert torch.equal(layer(h, None), h)


def test_there_is_no_attention_where_there_is_nothing_to_attend_to() -> None:
    assert make(self_attention=False).attention_down is None
    assert make(self_attention=False, text_dim=3, text_enters="pooled").attention_up is None
    assert make(self_attention=False, text_dim=3).attention_up is not None


@pytest.mark.parametrize(
    ("text_dim", "self_attention", "expected"), [(512, True, 0.57), (4096, True, 0.65), (512, False, 0.56)]
)
def test_the_papers_model_for_64_to_256_has_about_600_million_parameters(
    text_dim: int, self_attention: bool, expected: float
) -> None:
    """Saharia et al. 2022: 600M with self-attention. Within 10 %; exact ones are ours."""
    with torch.device("meta"):
        network = EfficientUnet(3, **PAPER, text_dim=text_dim, self_attention=self_attention)  # type: ignore[arg-type]
    found = sum(weight.numel() for weight in network.parameters()) / 1e9
    assert round(found, 2) == expected
    assert found == pytest.approx(0.6, rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width = 0 must be even"),
        ({"multipliers": ()}, r"multipliers = \[\]"),
        ({"res_blocks": (1,)}, r"res_blocks = \[1\] for 2 levels"),
        ({"res_blocks": (1, 0)}, r"res_blocks = \[1, 0\] for 2 levels"),
        ({"num_heads": 3}, "num_heads = 3 does not divide 8 channels"),
        ({"norm_groups": 3}, "norm_groups = 3 does not divide 4 channels"),
        ({"noised_image": True}, "image_channels = 0"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**change)
