import pytest

from benchmarks.training_step import step_flops_per_image
from rasterformer.recipe import DataConfig, Recipe
from rasterformer.system import System
from rasterformer.systems.image_transformer.config import Config

SIDE, WIDTH, HIDDEN, DEPTH, HEADS_WIDTH = 4, 8, 12, 2, 16
LENGTH = 3 * SIDE * SIDE


@pytest.mark.parametrize(("attention", "block", "memory"), [("full", 1, 0), ("local_1d", 16, 8), ("local_1d", 20, 20)])
def test_flops_count_weights_once_a_position_and_the_keys_that_are_seen(
    attention: str, block: int, memory: int
) -> None:
    config = Config(
        attention=attention, block_length=block, memory_length=memory, width=WIDTH, depth=DEPTH, num_heads=2,
        attention_width=HEADS_WIDTH, mlp_width=HIDDEN,
    )  # fmt: skip
    system = System.create(Recipe("image_transformer", config, DataConfig(image_size=SIDE)))
    seen = 0
    for query in range(LENGTH):
        start = 0 if attention == "full" else query // block * block
        seen += query - start + 1 + min(memory, start)
    per_position = DEPTH * (4 * WIDTH * HEADS_WIDTH + 2 * WIDTH * HIDDEN) + WIDTH * 256
    multiply_adds = LENGTH * per_position + DEPTH * seen * 2 * HEADS_WIDTH
    assert step_flops_per_image(system.model) == 3 * 2 * multiply_adds
