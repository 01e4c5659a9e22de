"""The transformer denoiser: patches and places, adaLN-Zero, what an encoded image does, its size, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.errors import ConfigError, ShapeError
from rasterformer.nn.denoiser_inputs import Tokens
from rasterformer.nn.dit import DiT, DiTLayer
from rasterformer.nn.positions import rotary_angles

F64 = torch.float64
WIDTH, HEADS, CELLS = 8, 2, 3


def randomised(module: nn.Module) -> nn.Module:
    for weight in module.to(F64).parameters():
        nn.init.normal_(weight, std=0.3)
    return module


def make(**changes: object) -> DiT:
    torch.manual_seed(0)
    fixed = {"width": WIDTH, "depth": 1, "num_heads": HEADS, "patch": 2, "mlp_width": 12}
    network = randomised(DiT(3, **{**fixed, **changes}))  # type: ignore[arg-type]
    assert isinstance(network, DiT)
    return network


def random_maps(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(1))


# ---- patches and places


@torch.no_grad()
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_without_layers_a_pixel_reaches_its_own_patch_and_all_of_that(patch: int) -> None:
    network, z = make(depth=0, patch=patch), random_maps(1, 3, 2 * patch, 3 * patch)
    before = network(z, random_maps(1))
    for row in range(2 * patch):
        for col in range(3 * patch):
            moved = z.clone()
            moved[0, 1, row, col] += 1
            changed = network(moved, random_maps(1)) != before
            own = torch.zeros_like(changed)
            top, left = row - row % patch, col - col % patch
            own[:, :, top : top + patch, left : left + patch] = True
            assert torch.equal(changed, own)


@torch.no_grad()
def test_patches_are_maps_of_all_their_pixels_in_raster_order() -> None:
    """Weights of the first and the last map, one pixel after the other: channel, row, column."""
    network, z = make(depth=0), random_maps(1, 3, 2, 4)
    nn.init.zeros_(network.modulation_out.weight)
    nn.init.zeros_(network.modulation_out.bias)
    found = network(z, random_maps(1))
    for patch in range(2):
        pixels = [z[0, c, y, 2 * patch + x] for c in range(3) for y in range(2) for x in range(2)]
        h = network.patch_in.weight @ torch.stack(pixels) + network.patch_in.bias
        # sinusoids: two scales of each, 1 and 1/10000; all patches are in row 0
        h = h + torch.tensor(
            [0, 0, 1, 1, math.sin(patch), math.sin(patch * 1e-4), math.cos(patch), math.cos(patch * 1e-4)], dtype=F64
        )
        centred = h - h.mean()
        out = network.patch_out.weight @ (centred / (centred.square().mean() + 1e-5).sqrt()) + network.patch_out.bias
        for number, value in enumerate(out):
            c, y, x = number // 4, number % 4 // 2, number % 2
            torch.testing.assert_close(found[0, c, y, 2 * patch + x], value, rtol=1e-6, atol=1e-6)  # float32 sinusoids


@torch.no_grad()
def test_equal_patches_get_different_results_in_different_places() -> None:
    network = make()
    found = network(torch.ones(1, 3, 4, 6, dtype=F64), random_maps(1))
    patches = F.pixel_unshuffle(found, 2)[0].flatten(1)  # [12, 6]
    for one in range(6):
        for other in range(one):
            assert (patches[:, one] - patches[:, other]).abs().max() > 1e-3


# ---- layers


@torch.no_grad()
@pytest.mark.parametrize("has_source", [False, True])
def test_layer_is_each_part_of_a_scaled_and_shifted_norm_times_a_gate(has_source: bool) -> None:
    """Peebles & Xie 2023, figure 3, adaLN-Zero, one image after the other."""
    torch.manual_seed(0)
    layer = DiTLayer(
        WIDTH, num_heads=HEADS, mlp_width=12, activation="gelu", qk_norm=False, has_source=has_source, dropout_prob=0.0
    )
    randomised(layer)
    h, vector, states = random_maps(2, 5, WIDTH), random_maps(2, WIDTH), random_maps(2, 3, WIDTH)
    known = torch.tensor([[True, True, False], [True, False, False]])
    angles = rotary_angles(torch.zeros(5), torch.arange(5), 4)
    found = layer(h, vector, angles, Tokens(states, known) if has_source else None)
    for image in range(2):
        numbers = (layer.modulation.weight @ vector[image] + layer.modulation.bias).split(WIDTH)
        parts = [lambda x: layer.attention(x, angles), layer.feed_forward]
        if has_source:
            one = slice(image, image + 1)
            parts.insert(1, lambda x, one=one: layer.source_attention(x, states[one], known[one]))
        x = h[image : image + 1]
        for number, part in enumerate(parts):
            scale, shift, gate = numbers[3 * number : 3 * number + 3]
            normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
            x = x + gate * part(normed * (1 + scale) + shift)
        torch.testing.assert_close(found[image], x[0], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_layers_begin_as_the_identity() -> None:
    torch.manual_seed(0)
    network = DiT(3, width=WIDTH, depth=2, num_heads=HEADS, patch=2, mlp_width=12, text_dim=3, encoded_channels=CELLS)
    seen: list[tuple[Tensor, Tensor]] = []
    for layer in network.layers:
        layer.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    network(torch.randn(1, 3, 4, 4), torch.randn(1), text=torch.randn(1, 2, 3), encoded=torch.randn(1, CELLS, 2, 2))
    assert len(seen) == 2
    for given, out in seen:
        assert torch.equal(given, out)


# ---- encoded images


@torch.no_grad()
@pytest.mark.parametrize("text_dim", [None, 4])
def test_an_encoded_image_of_which_nothing_is_known_is_as_none(text_dim: int | None) -> None:
    network = make(encoded_channels=CELLS, text_dim=text_dim)
    z, log_snr, encoded = random_maps(2, 3, 4, 6), random_maps(2), random_maps(2, CELLS, 3, 2)
    text = None if text_dim is None else random_maps(2, 3, 4)
    known = None if text_dim is None else torch.tensor([[True, False, True], [False] * 3])
    none = network(z, log_snr, text=text, text_known=known)
    all_known = network(z, log_snr, text=text, text_known=known, encoded=encoded)
    mixed = network(z, log_snr, text=text, text_known=known, encoded=encoded, encoded_known=torch.tensor([False, True]))
    torch.testing.assert_close(mixed[0], none[0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(mixed[1], all_known[1], rtol=1e-11, atol=1e-11)
    assert ((mixed[1] - none[1]).abs() > 1e-13).all()


@torch.no_grad()
def test_where_a_cell_lies_matters() -> None:
    """Attention as such would not see an exchange of two cells."""
    network, encoded = make(encoded_channels=CELLS), random_maps(1, CELLS, 1, 2)
    z, log_snr = random_maps(1, 3, 4, 4), random_maps(1)
    change = network(z, log_snr, encoded=encoded) - network(z, log_snr, encoded=encoded.flip(3))
    assert change.abs().min() > 1e-9


# ---- sizes and refusals


def test_dit_xl_2_has_the_papers_675_million_parameters() -> None:
    """Peebles & Xie 2023, table 1, within 0.5 %: theirs also embeds 1000 classes (1.2M), and takes 256 sinusoids, not 1152."""
    with torch.device("meta"):
        network = DiT(4, width=1152, depth=28, num_heads=16, patch=2, mlp_width=4608)
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(675e6, rel=0.005)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 12}, "width = 12 is no multiple of 4 num_heads = 8"),
        ({"num_heads": 0}, "4 num_heads = 0"),
        ({"patch": 0}, "patch = 0"),
        ({"noised_image": True}, "image_channels = 0"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**change)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"encoded": torch.zeros(2, CELLS, 4)}, r"encoded is torch.float32 \[2, 3, 4\].*\[2, 3, rows, columns\]"),
        ({"encoded": torch.zeros(2, 4, 2, 2)}, r"\[2, 4, 2, 2\]"),
        ({"encoded": torch.zeros(1, CELLS, 2, 2)}, r"\[1, 3, 2, 2\]"),
        ({"encoded": torch.zeros(2, CELLS, 2, 2, dtype=torch.int64)}, "torch.int64"),
        (
            {"encoded": torch.zeros(2, CELLS, 2, 2), "encoded_known": torch.ones(2)},
            r"encoded_known is torch.float32 \[2\]",
        ),
        ({"encoded": torch.zeros(2, CELLS, 2, 2), "encoded_known": torch.ones(1, dtype=torch.bool)}, r"bool \[1\];"),
    ],
    ids=["rank", "channels", "batch", "dtype", "known dtype", "known batch"],
)
def test_a_wrong_encoded_image_is_refused(given: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        make(encoded_channels=CELLS)(random_maps(2, 3, 4, 4), random_maps(2), **given)


def test_an_encoded_image_is_refused_where_none_is_taken_and_where_only_its_mask_is_given() -> None:
    z, log_snr = random_maps(1, 3, 4, 4), random_maps(1)
    with pytest.raises(ConfigError, match="encoded was given, but this network was made without"):
        make()(z, log_snr, encoded=torch.zeros(1, CELLS, 2, 2))
    with pytest.raises(ConfigError, match="encoded_known was given without encoded"):
        make(encoded_channels=CELLS)(z, log_snr, encoded_known=torch.ones(1, dtype=torch.bool))
