"""The encoder of images: its definition, sizes, what every cell depends on, gradients, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.errors import ConfigError, ShapeError
from rasterformer.nn.dit import DiT
from rasterformer.nn.image_encoder import EncoderLayer, ImageEncoder
from rasterformer.nn.positions import rotary_angles

F64 = torch.float64
WIDTH = 8
FIXED = {"patch": 2, "width": WIDTH, "depth": 2, "num_heads": 2}


def make(**changes: int) -> ImageEncoder:
    """An encoder whose weights are all random, float64."""
    encoder = ImageEncoder(3, **{**FIXED, **changes}).to(F64)
    rng = torch.Generator().manual_seed(0)
    for weight in encoder.parameters():
        nn.init.normal_(weight, std=0.3, generator=rng)
    return encoder


def pictures(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=F64, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (1, 3), (3, 2)], ids=str)
def test_there_is_a_cell_for_every_patch_normalised_over_its_dimensions(patch: int, grid: tuple[int, int]) -> None:
    """Mean and variance of each cell, where the last norm's own weights are as they begin."""
    encoder = make(patch=patch)
    nn.init.ones_(encoder.norm.weight)
    nn.init.zeros_(encoder.norm.bias)
    found = encoder(pictures(2, 3, patch * grid[0], patch * grid[1]))
    assert found.shape == (2, WIDTH, *grid)
    torch.testing.assert_close(found.mean(1), torch.zeros(2, *grid, dtype=F64), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.var(1, correction=0), torch.ones(2, *grid, dtype=F64), rtol=1e-3, atol=0)


@torch.no_grad()
def test_every_cell_depends_on_every_pixel_of_its_image() -> None:
    encoder, images = make(depth=1), pictures(1, 3, 4, 6)
    before = encoder(images)
    for number in range(images.numel()):
        moved = images.clone()
        moved.view(-1)[number] += 0.5
        change = (encoder(moved) - before).abs().amax(1)  # [1, 2, 3]
        assert (change > 1e-9).all()


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other_and_swap_as_they_do() -> None:
    encoder, images = make(), pictures(3, 3, 4, 6)
    found, order = encoder(images), [2, 0, 1]
    torch.testing.assert_close(encoder(images[order]), found[order], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(encoder(images[1:2]), found[1:2], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_a_patch_means_something_else_in_another_place() -> None:
    found = make()(torch.ones(1, 3, 4, 6, dtype=F64))[0].flatten(1)  # [D, 6], of six equal patches
    for one in range(6):
        for other in range(one):
            assert (found[:, one] - found[:, other]).abs().max() > 1e-3


@torch.no_grad()
def test_patches_are_maps_of_their_pixels_at_their_places_then_layers_then_the_norm() -> None:
    """Pixels one after the other: channel, row, column; two scales of sinusoids, 1 and 1/10000."""
    encoder, images = make(depth=1), pictures(1, 3, 4, 6)
    rows, cols = torch.arange(6) // 3, torch.arange(6) % 3
    cells = []
    for row, col in zip(rows.tolist(), cols.tolist(), strict=True):
        pixels = [images[0, c, 2 * row + y, 2 * col + x] for c in range(3) for y in range(2) for x in range(2)]
        waves = [wave(at * scale) for at in (row, col) for wave in (math.sin, math.cos) for scale in (1, 1e-4)]
        cells.append(encoder.patch_in.weight @ torch.stack(pixels) + encoder.patch_in.bias + torch.tensor(waves))
    expected = encoder.norm(encoder.layers[0](torch.stack(cells)[None], rotary_angles(rows, cols, 4)))[0]
    found = encoder(images)[0]  # [D, 2, 3]
    for number in range(6):
        of_cell = found[:, number // 3, number % 3]
        torch.testing.assert_close(of_cell, expected[number], rtol=1e-5, atol=1e-5)  # float32 sinusoids


@torch.no_grad()
def test_layer_is_each_part_of_a_norm_added_to_what_it_takes() -> None:
    """Dosovitskiy et al. 2021, equations 2 and 3, one image and one cell after the other."""
    torch.manual_seed(0)
    layer = EncoderLayer(WIDTH, num_heads=2).to(F64)
    h, angles = pictures(2, 6, WIDTH), rotary_angles(torch.arange(6) // 3, torch.arange(6) % 3, 4)
    for weight in layer.parameters():
        nn.init.normal_(weight, std=0.3)

    def normed(cells: Tensor, norm: nn.LayerNorm) -> Tensor:
        centred = cells - cells.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias

    found = layer(h, angles)
    for image in range(2):
        mixed = h[image] + layer.attention(normed(h[image : image + 1], layer.attention_norm), angles)[0]
        for place, cell in enumerate(mixed):
            up = layer.feed_forward.up(normed(cell, layer.feed_forward_norm)[None, None])[0, 0]
            assert up.shape == (4 * WIDTH,)
            expected = cell + layer.feed_forward.down.weight @ F.gelu(up) + layer.feed_forward.down.bias
            torch.testing.assert_close(found[image, place], expected, rtol=1e-11, atol=1e-11)


def test_gradients_reach_every_weight_through_a_denoiser_that_attends_to_the_cells() -> None:
    """All but the biases of keys: what is the same for all keys does not change a softmax."""
    encoder = make()
    torch.manual_seed(0)
    denoiser = DiT(3, width=8, depth=1, num_heads=2, patch=2, mlp_width=8, encoded_channels=WIDTH).to(F64)
    for weight in denoiser.parameters():
        nn.init.normal_(weight, std=0.3)
    found = denoiser(pictures(2, 3, 4, 4), pictures(2), encoded=encoder(pictures(2, 3, 6, 4)))
    found.square().mean().backward()
    for name, weight in encoder.named_parameters():
        assert weight.grad is not None, name
        if name.endswith("attention.project.bias"):
            queries, keys, values = weight.grad.abs().chunk(3)
            # turned by its place, a key's bias is not quite the same for all
            assert queries.min() > 0 and keys.max() > 0 and values.min() > 0, name
        else:
            assert weight.grad.abs().min() > 0, name


def test_weights_begin_so_that_cells_are_moderate_and_differ() -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(3, patch=2, width=32, depth=3, num_heads=4)
    bound = (6 / (12 + 32)) ** 0.5  # Glorot & Bengio 2010, equation 16; as PyTorch begins: 12^-0.5
    assert 0.95 * bound < float(encoder.patch_in.weight.detach().abs().max()) <= bound
    assert not encoder.patch_in.bias.any()
    found = encoder(pictures(2, 3, 8, 8).float()).detach()
    assert found.dtype == torch.float32
    assert 0.9 < float(found.square().mean()) < 1.1
    assert float(found.flatten(2).var(-1).mean()) > 0.1


@torch.no_grad()
def test_images_of_another_float_dtype_are_taken_in_that_of_the_weights() -> None:
    assert make()(pictures(1, 3, 4, 4).float()).dtype == F64


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 4, 4), r"images are torch.float32 \[3, 4, 4\].*float \[B, 3, height, width\]"),
        (torch.zeros(1, 4, 4, 4), r"images are torch.float32 \[1, 4, 4, 4\]"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "images are torch.uint8"),
        (torch.zeros(1, 3, 5, 4), "images are 5x4 pixels.* multiples of 2"),
        (torch.zeros(1, 3, 4, 3), "images are 4x3 pixels.* multiples of 2"),
        (torch.zeros(1, 3, 0, 4), "images are 0x4 pixels"),
    ],
    ids=["rank", "channels", "dtype", "height", "width", "no pixels"],
)
def test_images_of_another_form_are_refused(images: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        make()(images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 12}, "width = 12 is no multiple of 4 num_heads = 8"),
        ({"num_heads": 0}, "width = 8 is no multiple of 4 num_heads = 0"),
        ({"patch": 0}, "patch = 0"),
        ({"depth": 0}, "depth = 0. An encoder has at least 1 layer"),
    ],
)
def test_what_cannot_be_made_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageEncoder(3, **{**FIXED, **changes})
