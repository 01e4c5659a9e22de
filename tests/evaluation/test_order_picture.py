"""The picture of order, blocks and memory shows what the model does: held against the rule of the paper, pixel by pixel."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from rasterformer.errors import ConfigError
from rasterformer.evaluation.order_picture import draw_order, layer_dependence, model_dependence, query_blocks
from rasterformer.interfaces import Cond
from rasterformer.nn.attention import Attention
from rasterformer.recipe_file import load_recipe
from rasterformer.system import System

SIZE = 6
LOCAL_2D = [("model.attention", "local_2d"), ("model.query_block", "[2, 3]"), ("model.flange", "[1, 2]")]


def make(*overrides: tuple[str, str]) -> System:
    recipe = load_recipe("tiny", [("data.image_size", str(SIZE)), *overrides])
    system = System.create(recipe)
    system.model.double().eval()
    return system


def attention_of(system: System) -> Attention:
    return next(module for module in system.model.modules() if isinstance(module, Attention))


def test_2d_layer_sees_band_above_flange_to_the_left_and_own_block_so_far() -> None:
    system = make(*LOCAL_2D)
    sees = layer_dependence(attention_of(system), system.codec.order, SIZE * SIZE)
    for row in range(SIZE):
        for column in range(SIZE):
            top, left = row // 2 * 2, column // 3 * 3
            for y in range(SIZE):
                for x in range(SIZE):
                    in_block = top <= y < top + 2 and left <= x < left + 3
                    expected = in_block and (y, x) <= (row, column)
                    expected |= top - 1 <= y < top and left - 2 <= x < left + 3 + 2
                    expected |= top <= y < top + 2 and left - 2 <= x < left
                    assert bool(sees[y * SIZE + x, row * SIZE + column]) == expected, (row, column, y, x)


def test_query_blocks_of_2d_attention_are_found_from_what_pixels_see() -> None:
    system = make(*LOCAL_2D)
    blocks = query_blocks(layer_dependence(attention_of(system), system.codec.order, SIZE * SIZE), system.codec.rank)
    expected = torch.tensor([[(y // 2) * 2 + x // 3 for x in range(SIZE)] for y in range(SIZE)])
    assert torch.equal(blocks.view(SIZE, SIZE), expected)


def test_network_depends_on_earlier_pixels_only_and_on_the_one_just_before() -> None:
    system = make(("model.block_length", "4"), ("model.memory_length", "4"))
    pixel = 20
    seen = model_dependence(system.model, Cond(), system.codec.order, SIZE * SIZE, pixel)
    assert not seen[pixel:].any()
    assert seen[pixel - 1]


def test_separate_channels_are_drawn_as_pixels(tmp_path: Path) -> None:
    system = make(("model.distribution", "categorical"), ("model.input", "table"))
    draw_order(system, tmp_path / "order.png", (3, 2))
    with Image.open(tmp_path / "order.png") as picture:
        assert picture.width > 3 * SIZE * 50 and picture.height > SIZE * 50


def test_pixel_outside_the_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="position 6,0 lies outside the 6x6 image"):
        draw_order(make(), tmp_path / "order.png", (6, 0))
