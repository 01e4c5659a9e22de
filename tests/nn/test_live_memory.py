"""Live memory against counting by hand, against the same on a processor, and what networks of images are expected to do."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.nn.dit import DiT
from rasterformer.nn.efficient_unet import EfficientUnet
from rasterformer.nn.image_encoder import ImageEncoder
from rasterformer.nn.live_memory import meta_copy, peak_bytes
from rasterformer.nn.unet import Unet

UNIT = 4 * 1000  # bytes of `some`
both_devices = pytest.mark.parametrize("device", ["meta", "cpu"])


def some(device: str) -> Tensor:
    return torch.zeros(1000, device=device)


# ---- counted by hand


@both_devices
def test_of_a_chain_of_additions_two_live_at_once_and_what_was_there_before_does_not_count(device: str) -> None:
    x = some(device)

    def chain(length: int) -> Tensor:
        h = x + 1
        for _ in range(length - 1):
            h = h + 1  # the old one ends when the new one has its name
        return h

    assert peak_bytes(lambda: chain(1)) == UNIT
    assert peak_bytes(lambda: chain(2)) == peak_bytes(lambda: chain(9)) == 2 * UNIT


@both_devices
@pytest.mark.parametrize("length", [1, 5])
def test_all_that_is_kept_lives(device: str, length: int) -> None:
    x = some(device)
    assert peak_bytes(lambda: [x + i for i in range(length)]) == length * UNIT


@both_devices
def test_the_most_at_once_counts_and_not_the_last_or_the_sum(device: str) -> None:
    x = some(device)

    def run() -> Tensor:
        wide = torch.cat([x, x, x])  # 3
        narrow = wide[:1000] + 1  # 4, the most
        del wide  # 1
        return narrow * 2  # 2

    assert peak_bytes(run) == 4 * UNIT


@both_devices
def test_a_view_takes_nothing_and_keeps_all_that_it_is_a_view_of(device: str) -> None:
    x = some(device)

    def run(is_view: bool) -> Tensor:
        wide = torch.cat([x, x, x]).view(3, 1000)  # 3
        row = wide[1] if is_view else wide[1].clone()  # 3 or 4
        del wide  # 3 or 1
        return torch.cat([row, row])  # 5 or 3

    assert peak_bytes(lambda: run(True)) == 5 * UNIT
    assert peak_bytes(lambda: run(False)) == 4 * UNIT
    assert peak_bytes(lambda: [x.view(10, 100), x[3:], x.expand(50, -1), x.detach()]) == 0


@both_devices
def test_an_operation_in_place_takes_nothing(device: str) -> None:
    x, other = some(device), some(device)
    assert peak_bytes(lambda: x.add_(1).mul_(2)) == 0
    assert peak_bytes(lambda: torch.mul(x, 2, out=other)) == 0
    assert peak_bytes(lambda: (x + 1).add_(1).mul_(2)) == UNIT


@both_devices
def test_parts_of_one_result_count_once_and_each_result_of_an_operation_counts(device: str) -> None:
    x = some(device)
    assert peak_bytes(lambda: (x + 1).chunk(4)) == UNIT
    assert peak_bytes(lambda: x.max(0)) == 4 + 8  # a float32, and where it is, int64
    assert peak_bytes(lambda: x.to(torch.float64)) == 2 * UNIT
    assert peak_bytes(lambda: x == 0) == UNIT // 4


@both_devices
def test_tensors_that_were_made_before_do_not_count_less_when_they_end(device: str) -> None:
    held = [some(device)]

    def run() -> Tensor:
        h = held[0] + 1
        held.clear()
        return h + 1

    assert peak_bytes(run) == 2 * UNIT


@both_devices
def test_autograd_keeps_what_the_backward_pass_needs_and_lets_go_of_it_there(device: str) -> None:
    """exp keeps its result: y1, y2, y3. Its gradient is one product, made while the one before it lives."""
    x = some(device).requires_grad_()

    def forward() -> Tensor:
        return x.exp().exp().exp()

    with torch.no_grad():
        assert peak_bytes(forward) == 2 * UNIT
    assert peak_bytes(forward) == 3 * UNIT
    # y1, y2, y3, the gradient of y2 = that of y3 (one number, repeated) times y3; the sum, and its gradient
    assert peak_bytes(lambda: forward().sum().backward()) == 4 * UNIT + 4 + 4
    assert x.grad is not None


@both_devices
def test_additions_keep_nothing_for_the_backward_pass(device: str) -> None:
    x = some(device).requires_grad_()
    assert peak_bytes(lambda: (((x + 1) + 1) + 1) + 1) == 2 * UNIT


@both_devices
def test_gradients_of_weights_stay_until_the_end(device: str) -> None:
    """y_i = w_i x: products keep w_i and x, which were there before. Each gradient is one product."""
    x, weights = some(device), [some(device).requires_grad_() for _ in range(5)]

    def run() -> None:
        for weight in weights:
            (weight * x).sum().backward()

    # four gradients; then the fifth, beside the loss and its gradient: the product itself ended with the sum
    assert peak_bytes(run) == 5 * UNIT + 4 + 4
    assert all(weight.grad is not None for weight in weights)


def test_what_outlives_one_count_does_not_disturb_the_next() -> None:
    x, kept = some("meta"), []
    assert peak_bytes(lambda: kept.append(x + 1)) == UNIT

    def run() -> Tensor:
        kept.clear()
        return x + 1

    assert peak_bytes(run) == UNIT


def test_an_error_in_what_runs_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        peak_bytes(lambda: 1 / 0)


# ---- copies without numbers


class Tied(nn.Module):
    """Two maps with one weight, a frozen parameter, and buffers that are saved and are not."""

    mean: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 3), nn.Linear(3, 3, dtype=torch.float64)
        self.again = self.up
        self.shared = nn.Linear(3, 3)
        self.shared.weight = self.up.weight
        self.scale = nn.Parameter(torch.ones(2, dtype=torch.bfloat16), requires_grad=False)
        self.register_buffer("mean", torch.ones(5))
        self.register_buffer("counts", torch.ones(7, dtype=torch.int64), persistent=False)


def test_meta_copy_has_all_but_the_numbers_and_leaves_the_original_as_it_is() -> None:
    network = Tied().eval()
    network.up.weight.grad = torch.ones(3, 3)
    before = {name: (value, value.clone()) for name, value in (*network.named_parameters(), *network.named_buffers())}
    made = meta_copy(network)
    assert isinstance(made, Tied) and not made.training and not made.up.training
    for of in ("named_parameters", "named_buffers"):
        for (name, old), (other, new) in zip(getattr(network, of)(), getattr(made, of)(), strict=True):
            assert name == other and type(new) is type(old)
            assert new.is_meta and new.grad is None
            assert (new.shape, new.dtype, new.requires_grad) == (old.shape, old.dtype, old.requires_grad)
            assert old is before[name][0] and torch.equal(old, before[name][1]) and not old.is_meta
    assert made.shared.weight is made.up.weight and made.again is made.up and made.up is not network.up
    assert made.state_dict().keys() == network.state_dict().keys()  # counts are not saved


def test_meta_copy_of_a_meta_copy_is_a_copy() -> None:
    first = meta_copy(Tied())
    second = meta_copy(first)
    assert second.up.weight.is_meta and second.up.weight is not first.up.weight


def test_meta_copy_keeps_the_layout_of_memory() -> None:
    network = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    assert meta_copy(network).weight.stride() == network.weight.stride()


def test_what_fits_in_no_memory_is_counted() -> None:
    made, x = nn.Linear(10**6, 10**6, device="meta"), torch.zeros(2, 10**6, device="meta")  # 4 TB
    assert peak_bytes(lambda: made(x)) == 2 * 4 * 10**6
    assert peak_bytes(lambda: made(x).sum().backward()) > 4 * 10**12


# ---- networks of images

TEXT, ENCODED = 6, 5


def unet(is_checkpointed: bool) -> nn.Module:
    return Unet(
        3,
        width=8,
        multipliers=(1, 2),
        res_blocks=1,
        attention_levels=(0, 1),
        head_dim=8,
        text_dim=TEXT,
        norm_groups=4,
        gradient_checkpointing=is_checkpointed,
    )


def efficient_unet(is_checkpointed: bool) -> nn.Module:
    return EfficientUnet(
        3,
        image_channels=3,
        noised_image=True,
        width=8,
        multipliers=(1, 2),
        res_blocks=(3, 3),
        num_heads=2,
        text_dim=TEXT,
        norm_groups=4,
        gradient_checkpointing=is_checkpointed,
    )


def dit(is_checkpointed: bool) -> nn.Module:
    return DiT(
        3,
        width=16,
        depth=3,
        num_heads=2,
        patch=2,
        mlp_width=32,
        text_dim=TEXT,
        encoded_channels=ENCODED,
        gradient_checkpointing=is_checkpointed,
    )


NETWORKS = {"unet": unet, "efficient_unet": efficient_unet, "dit": dit}


def arguments(name: str, batch_size: int, device: str = "meta", side: int = 16) -> dict[str, Tensor]:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(batch_size, *shape, device=device)

    known = torch.ones(batch_size, 4, dtype=torch.bool, device=device)
    given = {"z": zeros(3, side, side), "log_snr": zeros(), "text": zeros(4, TEXT), "text_known": known}
    if name == "efficient_unet":
        given |= {"image": zeros(3, side, side), "image_log_snr": zeros()}
    return given | ({"encoded": zeros(ENCODED, 3, 3), "encoded_known": known[:, 0]} if name == "dit" else {})


def forward_bytes(network: nn.Module, given: dict[str, Tensor]) -> int:
    with torch.no_grad():
        return peak_bytes(lambda: network(**given))


def training_bytes(network: nn.Module, given: dict[str, Tensor]) -> int:
    network.zero_grad(set_to_none=True)

    def step() -> None:
        F.mse_loss(network(**given), given["z"]).backward()

    return peak_bytes(step)


on_networks = pytest.mark.parametrize("name", NETWORKS)


@on_networks
def test_networks_run_without_numbers(name: str) -> None:
    network = meta_copy(NETWORKS[name](False))
    for batch_size, side in ((1, 4), (3, 8)):
        given = arguments(name, batch_size, side=side)
        found = network(**given)
        assert found.is_meta and found.shape == (batch_size, 3, side, side) and found.dtype == torch.float32
        bare = {key: value for key, value in given.items() if key in ("z", "log_snr", "image", "image_log_snr")}
        assert network(**bare).shape == found.shape


@on_networks
def test_a_forward_pass_is_counted_as_on_a_processor(name: str) -> None:
    """All but float32 numbers that the library's attention makes of a mask there, one for each key of an image."""
    network = NETWORKS[name](False)
    on_processor = forward_bytes(network, arguments(name, 2, "cpu"))
    found = forward_bytes(meta_copy(network), arguments(name, 2))
    most_keys = 16 * 16 + 5  # cells of the finest level, text and null token
    assert 0 <= on_processor - found <= 2 * 4 * most_keys + 8


@on_networks
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_a_training_step_is_counted_nearly_as_on_a_processor(name: str, is_checkpointed: bool) -> None:
    """Not exactly: backward passes of convolutions and norms may lay their results out otherwise, which copies then follow."""
    network = NETWORKS[name](is_checkpointed)
    on_processor = training_bytes(network, arguments(name, 2, "cpu"))
    assert training_bytes(meta_copy(network), arguments(name, 2)) == pytest.approx(on_processor, rel=0.04)


@on_networks
def test_memory_of_a_forward_pass_is_a_multiple_of_the_images(name: str) -> None:
    network = meta_copy(NETWORKS[name](False))
    two, four, eight = (forward_bytes(network, arguments(name, count)) for count in (2, 4, 8))
    assert four == pytest.approx(2 * two, rel=0.02)  # places and angles are there once
    assert eight - four == 2 * (four - two)
    assert eight >= 8 * 4 * 8 * 8 * 16  # what is widest, of one layer: 16 channels at half the size


def test_memory_of_a_unets_training_grows_by_the_same_for_every_image_and_checkpointing_lowers_it() -> None:
    network, checkpointed = meta_copy(unet(False)), meta_copy(unet(True))
    two, four, eight = (training_bytes(network, arguments("unet", count)) for count in (2, 4, 8))
    assert eight - four == pytest.approx(2 * (four - two), rel=0.01)
    assert training_bytes(checkpointed, arguments("unet", 8)) < 0.7 * eight


def test_an_image_encoder_runs_without_numbers() -> None:
    encoder = meta_copy(ImageEncoder(3, patch=2, width=8, depth=2, num_heads=2))
    found = encoder(torch.zeros(2, 3, 4, 6, device="meta"))
    assert found.is_meta and found.shape == (2, 8, 2, 3)


def test_the_same_is_counted_every_time() -> None:
    network: nn.Module = meta_copy(unet(True))
    run: Callable[[], int] = lambda: training_bytes(network, arguments("unet", 2))  # noqa: E731
    assert len({run() for _ in range(2)}) == 1
