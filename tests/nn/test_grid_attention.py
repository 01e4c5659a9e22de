"""Attention of grids of patches, where patches and cells lie, and what is refused."""

import pytest
import torch
from torch import nn

from rasterformer.errors import ConfigError
from rasterformer.nn.grid_attention import GridAttention, begin_linear_maps, cell_places, check_patches
from rasterformer.nn.positions import rotary_angles

F64 = torch.float64
WIDTH, HEADS = 8, 2


def make() -> GridAttention:
    attention = GridAttention(WIDTH, num_heads=HEADS, qk_norm=True).to(F64)
    for weight in attention.parameters():
        nn.init.normal_(weight, std=0.3)
    return attention


@torch.no_grad()
def test_attention_turns_by_how_far_places_are_apart_and_not_by_where_they_are() -> None:
    torch.manual_seed(0)
    attention, h = make(), torch.randn(1, 6, WIDTH, dtype=F64)
    rows, cols = torch.arange(6) // 3, torch.arange(6) % 3
    found = [attention(h, rotary_angles(rows + down, cols + right, 4)) for down, right in ((0, 0), (5, 0), (0, 7))]
    for moved in found[1:]:
        torch.testing.assert_close(moved, found[0], rtol=1e-5, atol=1e-5)  # angles are float32
    apart = attention(h, rotary_angles(2 * rows, cols, 4))
    assert (apart - found[0]).abs().max() > 1e-3


def test_cells_of_any_grid_lie_over_all_of_the_image() -> None:
    rows, cols = cell_places((2, 4), (2, 4))  # the same grid: the same places
    assert rows.tolist() == [0.0] * 4 + [1.0] * 4 and cols.tolist() == [0.0, 1.0, 2.0, 3.0] * 2
    rows, cols = cell_places((1, 2), (4, 8))  # cells of 4 x 4 patches: their middles
    assert rows.tolist() == [1.5, 1.5] and cols.tolist() == [1.5, 5.5]
    rows, cols = cell_places((4, 1), (2, 1))  # half a patch
    assert rows.tolist() == [-0.25, 0.25, 0.75, 1.25] and cols.tolist() == [0.0] * 4


def test_linear_maps_begin_with_xaviers_bounds_and_no_bias_and_nothing_else_changes() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(30, 66), nn.LayerNorm(66), nn.Linear(66, 30, bias=False))
    nn.init.constant_(network[1].bias, 3.0)
    begin_linear_maps(network)
    for linear in (network[0], network[2]):
        bound = 6**0.5 / 96**0.5  # Glorot & Bengio 2010, equation 16
        assert 0.99 * bound < linear.weight.abs().max() <= bound
    assert not network[0].bias.any()
    assert (network[1].bias == 3).all()


@pytest.mark.parametrize(
    ("width", "heads", "patch", "message"),
    [
        (10, 2, 1, "width = 10 is no multiple of 4 num_heads = 8"),
        (0, 2, 1, "width = 0 is no"),
        (8, 0, 1, "width = 8 is no multiple of 4 num_heads = 0"),
        (8, 2, 0, "patch = 0"),
    ],
)
def test_what_cannot_be_made_is_refused(width: int, heads: int, patch: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_patches(width, num_heads=heads, patch=patch)
