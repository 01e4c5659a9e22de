"""What all denoisers of images promise: sizes, what every pixel depends on and what never matters, gradients, refusals."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rasterformer.errors import ConfigError, ShapeError
from rasterformer.nn.dit import DiT
from rasterformer.nn.efficient_unet import EfficientUnet
from rasterformer.nn.unet import Unet

F64 = torch.float64
TEXT, TOKENS, CELLS = 6, 3, 5  # dimensions of a text's states, tokens, and channels of an encoded image
SHARED = {"text_dim": TEXT, "image_channels": 2, "noised_image": True}


def unet(**changes: object) -> nn.Module:
    fixed = {
        "width": 8,
        "multipliers": (1, 2),
        "res_blocks": 1,
        "attention_levels": (1,),
        "head_dim": 8,
        "norm_groups": 2,
    }
    return Unet(3, **{**fixed, **SHARED, **changes})  # type: ignore[arg-type]


def efficient_unet(**changes: object) -> nn.Module:
    fixed = {"width": 8, "multipliers": (1, 2), "res_blocks": (1, 2), "num_heads": 2, "norm_groups": 2}
    return EfficientUnet(3, **{**fixed, **SHARED, **changes})  # type: ignore[arg-type]


def text_only(**changes: object) -> nn.Module:
    return efficient_unet(self_attention=False, **changes)


def dit(**changes: object) -> nn.Module:
    fixed = {"width": 16, "depth": 2, "num_heads": 2, "patch": 2, "mlp_width": 24}
    return DiT(3, **{**fixed, **SHARED, **changes})  # type: ignore[arg-type]


def fused(**changes: object) -> nn.Module:
    """A transformer that is also shown an encoded image."""
    return dit(encoded_channels=CELLS, qk_norm=True, **changes)


NETWORKS: dict[str, tuple[Callable[..., nn.Module], int]] = {  # and what sides are multiples of
    "unet": (unet, 2),
    "efficient_unet": (efficient_unet, 4),
    "efficient_unet without self-attention": (text_only, 4),
    "dit": (dit, 2),
    "dit with an encoded image": (fused, 2),
}
pytestmark = pytest.mark.parametrize("name", NETWORKS)


def make(name: str, **changes: object) -> nn.Module:
    """A network whose weights are all random, float64."""
    torch.manual_seed(0)
    network = NETWORKS[name][0](**changes).to(F64)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.3)
    return network.eval()


def arguments(name: str, size: tuple[int, int] = (8, 12)) -> dict[str, Tensor]:
    """Two images and all that can be said of them."""
    rng = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=F64, generator=rng)

    given = {
        "z": normal(2, 3, *size),
        "log_snr": normal(2),
        "text": normal(2, TOKENS, TEXT),
        "image": normal(2, 2, *size),
        "image_log_snr": normal(2),
    }
    return given | ({"encoded": normal(2, CELLS, 2, 3)} if name == "dit with an encoded image" else {})


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (4, 12), (12, 4)], ids=str)
def test_output_has_the_images_shape_and_what_the_first_image_gets_does_not_depend_on_the_second(
    name: str, size: tuple[int, int]
) -> None:
    network, given = make(name), arguments(name, size)
    found = network(**given)
    assert found.shape == (2, 3, *size)
    alone = network(**{key: value[:1] for key, value in given.items()})
    torch.testing.assert_close(found[:1], alone, rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_every_pixel_of_an_image_depends_on_each_number_it_is_told_and_on_no_other_images(name: str) -> None:
    network, given = make(name), arguments(name)
    before = network(**given)
    for key, value in given.items():
        moved = value.clone()
        moved[(0, *(-1 for _ in range(value.ndim - 1)))] += (
            0.5  # one number of the first image: of its last pixel, token, cell
        )
        after = network(**{**given, key: moved})
        assert ((after - before)[0].abs() > 1e-13).all(), key
        torch.testing.assert_close(after[1], before[1], rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("enters", ["tokens", "pooled", "both"])
def test_every_pixel_depends_on_a_token_that_is_known_and_none_on_one_that_is_not(name: str, enters: str) -> None:
    network, given = make(name, text_enters=enters), arguments(name)
    known = torch.tensor([[True, False, True], [True, True, False]])
    before = network(**given, text_known=known)
    for token in range(TOKENS):
        text = given["text"].clone()
        text[:, token] += 1.0
        change = (network(**{**given, "text": text}, text_known=known) - before).abs()
        for image in range(2):
            if known[image, token]:
                assert (change[image] > 1e-13).all()
            else:
                assert not change[image].any()


@torch.no_grad()
@pytest.mark.parametrize("enters", ["tokens", "pooled", "both"])
def test_a_text_of_which_nothing_is_known_is_as_no_text_and_padding_as_a_shorter_text(name: str, enters: str) -> None:
    network, given = make(name, text_enters=enters), arguments(name)
    text = given.pop("text")
    none = network(**given)
    known = torch.tensor([[False] * 3, [True, True, False]])
    mixed = network(**given, text=text, text_known=known)
    torch.testing.assert_close(mixed[0], none[0], rtol=1e-11, atol=1e-11)
    shorter = network(**given, text=text[:, :2])
    torch.testing.assert_close(mixed[1], shorter[1], rtol=1e-11, atol=1e-11)
    assert ((mixed[1] - none[1]).abs() > 1e-13).all()


def test_every_result_is_zero_at_first_and_the_last_map_learns_at_once(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name][0]().to(F64)
    found = network(**arguments(name))
    assert not found.any()
    (found - 1).square().mean().backward()
    last = network.patch_out if isinstance(network, DiT) else network.conv_out
    assert last.weight.grad.abs().min() > 0


def gradients(name: str, *, gradient_checkpointing: bool) -> tuple[list[Tensor], int]:
    """Of a step in training with dropout, and how often blocks ran."""
    network = make(name, gradient_checkpointing=gradient_checkpointing, dropout_prob=0.3).train()
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    blocks = network.layers if isinstance(network, DiT) else network.down
    last = blocks[-1] if not isinstance(network, EfficientUnet) else network.down[-1][-1]
    last.register_forward_pre_hook(count)
    torch.manual_seed(2)  # of dropout
    network(**arguments(name)).square().mean().backward()
    found = []
    for key, weight in network.named_parameters():
        assert weight.grad is not None, f"{key} is used by nothing"
        found.append(weight.grad)
    return found, runs


def test_checkpointing_computes_blocks_twice_and_gives_the_same_gradients_bit_for_bit(name: str) -> None:
    (plain, once), (checkpointed, twice) = (gradients(name, gradient_checkpointing=on) for on in (False, True))
    assert (once, twice) == (1, 2)
    for one, other in zip(plain, checkpointed, strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_bfloat16_weights_and_autocast_give_float32_near_the_exact_result(name: str) -> None:
    network, given = make(name), arguments(name)
    exact = network(**given)
    given = {key: value.float() for key, value in given.items()}
    with torch.autocast("cpu", torch.bfloat16):
        cast = network.float()(**given)
    rounded = network.to(torch.bfloat16)(**given)
    for found in (cast, rounded):
        assert found.dtype == torch.float32
        assert (found - exact).std() < 0.05 * exact.std()  # bfloat16 has 8 bits: 0.4 % a rounding


@torch.no_grad()
@pytest.mark.parametrize("side", [2, 3])
def test_sides_that_are_no_multiple_are_refused_with_the_multiple(name: str, side: int) -> None:
    network, multiple = make(name), NETWORKS[name][1]
    given = arguments(name, (3 * multiple, 2 * multiple))
    for key in ("z", "image"):
        given[key] = given[key].narrow(side, 0, given[key].shape[side] - 1)
    received = "x".join(str(n) for n in given["z"].shape[2:])
    with pytest.raises(ShapeError, match=f"z has {received} pixels.*multiples of {multiple}\\."):
        network(**given)


def test_a_network_of_neither_text_nor_image_takes_none(name: str) -> None:
    network = make(name, text_dim=None, image_channels=0, noised_image=False)
    given = arguments(name)
    plain = {key: given[key] for key in given if key not in ("text", "image", "image_log_snr")}
    assert network(**plain).std() > 0
    for key in ("text", "image", "image_log_snr"):
        with pytest.raises(ConfigError, match=f"^{key} was given.*Leave it out"):
            network(**plain, **{key: given[key]})
