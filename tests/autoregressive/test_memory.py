"""What drawing takes against the arithmetic of its caches, and batch sizes that follow from it."""

from pathlib import Path

import pytest
import torch

from rasterformer.autoregressive import memory
from rasterformer.autoregressive.memory import DrawingPlan, available_bytes, drawing_bytes, plan_drawing
from rasterformer.autoregressive.noise import NoiseStream, image_generators
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Autoregressive, Cond
from rasterformer.systems.image_transformer.config import Config
from rasterformer.systems.image_transformer.model import build

CPU = torch.device("cpu")
DEPTH, WIDTH, HEADS, BLOCK, MEMORY = 4, 256, 4, 256, 256
ONE_LAYER = 2 * (BLOCK + MEMORY) * WIDTH * 4  # bytes: keys and values of what a block sees, float32


def local(image_size: int = 32, *, num_kv_heads: int | None = None) -> Autoregressive:
    """1D local attention over separate channels."""
    config = Config(
        block_length=BLOCK, memory_length=MEMORY, width=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_width=8,
        num_kv_heads=num_kv_heads,
    )  # fmt: skip
    return build(config, image_size=image_size, num_classes=0)[1]


def attention_bytes(model: Autoregressive) -> int:
    """Of one image more in the batch."""
    return model.state_bytes(2) - model.state_bytes(1)


@pytest.fixture(scope="module")
def model() -> Autoregressive:
    return local()


@pytest.fixture(scope="module")
def small() -> Autoregressive:
    """Of 4x4 pixels, to draw plans for."""
    config = Config(width=8, depth=1, num_heads=2, mlp_width=8, block_length=16, memory_length=16)
    return build(config, image_size=4, num_classes=0)[1].eval()


def mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def test_local_attention_keeps_little_more_than_what_a_block_sees(model: Autoregressive) -> None:
    assert DEPTH * ONE_LAYER <= model.state_bytes(1) <= 1.2 * DEPTH * ONE_LAYER


def test_the_cache_of_local_attention_does_not_grow_with_the_image(model: Autoregressive) -> None:
    large = local(64)
    assert large.x_shape[0] == 4 * model.x_shape[0]
    assert attention_bytes(large) == attention_bytes(model) == DEPTH * ONE_LAYER


def test_bfloat16_keeps_half_and_a_shared_key_head_a_quarter(model: Autoregressive) -> None:
    assert attention_bytes(model.to_bfloat16()) == DEPTH * ONE_LAYER // 2
    assert attention_bytes(local(num_kv_heads=1)) == DEPTH * ONE_LAYER // HEADS


@torch.no_grad()
@pytest.mark.parametrize("distribution", ["categorical", "dmol"])
def test_drawing_takes_at_least_its_state_its_symbols_and_its_noise(distribution: str) -> None:
    config = Config(width=8, depth=1, num_heads=2, mlp_width=8, block_length=16, distribution=distribution)  # type: ignore[arg-type]
    model = build(config, image_size=8, num_classes=0)[1]
    length, symbols = model.x_shape
    _, state = model.begin(Cond(), 3)
    source = NoiseStream(image_generators(0, 3), model.distribution.noise_per_position, length, CPU)
    noise = source.at(0)
    x = torch.zeros(3, length, symbols, dtype=torch.int64)
    held = sum(layer.nbytes for layer in state.layers) + x.nbytes + noise.untyped_storage().nbytes()
    assert held <= drawing_bytes(model, 3) == 3 * drawing_bytes(model, 1)


@pytest.mark.parametrize("images_that_fit", [2, 3, 7, 9, 1000])
@pytest.mark.parametrize(("num_images", "most"), [(1, 64), (5, 3), (100, 4), (1000, 64), (1000, 10_000)])
def test_as_many_are_drawn_as_half_of_the_memory_holds(
    small: Autoregressive, images_that_fit: int, num_images: int, most: int
) -> None:
    free = images_that_fit * drawing_bytes(small, 1)
    plan = plan_drawing(small, num_images, batch_size=None, most=most, available=free)
    assert plan.batch_size == min(num_images, most, images_that_fit // 2)
    assert drawing_bytes(small, plan.batch_size) == plan.batch_size * plan.bytes_per_image <= free / 2
    assert (plan.num_images, plan.positions, plan.available_bytes) == (num_images, 48, free)


def test_a_plan_counts_the_weights_in_their_precision(small: Autoregressive) -> None:
    def weight_bytes(model: Autoregressive) -> int:
        return plan_drawing(model, 1, batch_size=1, most=64, available=2**40).shared_bytes

    numbers = {name: weight.numel() for name, weight in small.named_parameters()}
    head = sum(count for name, count in numbers.items() if name.startswith("head."))
    assert weight_bytes(small) == 4 * sum(numbers.values())
    assert (
        weight_bytes(small.to_bfloat16()) == 2 * sum(numbers.values()) + 2 * head + 2 * 48 * 8
    )  # and positions, rounded once


def test_too_little_memory_for_one_image_is_refused_and_may_be_tried_nevertheless(small: Autoregressive) -> None:
    one = drawing_bytes(small, 1)
    free = 2 * one - 1
    message = f"drawing one image takes {mebibytes(one)}, but of {mebibytes(free)} free memory only half is used"
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        plan_drawing(small, 5, batch_size=None, most=64, available=free)
    assert plan_drawing(small, 5, batch_size=None, most=64, available=2 * one).batch_size == 1
    for too_little in (free, 0):
        assert plan_drawing(small, 5, batch_size=1, most=64, available=too_little).batch_size == 1


def test_a_wished_batch_may_take_all_memory_and_no_more(small: Autoregressive) -> None:
    one = drawing_bytes(small, 1)
    free = 8 * one
    assert plan_drawing(small, 20, batch_size=8, most=4, available=free).batch_size == 8
    message = f"batch_size = 9 takes {mebibytes(9 * one)}, but {mebibytes(free)} are free. Use 4, or leave it out"
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        plan_drawing(small, 20, batch_size=9, most=64, available=free)
    assert plan_drawing(small, 20, batch_size=4, most=64, available=free).batch_size == 4


def test_a_wished_batch_is_never_larger_than_what_is_drawn(small: Autoregressive) -> None:
    free = 8 * drawing_bytes(small, 1)
    assert plan_drawing(small, 8, batch_size=1000, most=64, available=free).batch_size == 8


def test_a_plan_reads_as_two_lines() -> None:
    plan = DrawingPlan(1010, 4, 3072, 3 * 2**20, 5 * 2**19, 2**30)
    assert str(plan).splitlines() == [
        "1,010 images of 3,072 positions, 4 at a time in 253 batches",
        "memory: 12.0 MiB for a batch (3.0 MiB an image), 2.5 MiB of weights, 1,024.0 MiB free",
    ]
    assert str(DrawingPlan(1, 1, 5, 1, 1, 1, unit="passes")).startswith("1 image of 5 passes, 1 at a time in 1 batch\n")


@pytest.fixture
def control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the control group of this process."""
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    return tmp_path


def limit(folder: Path, most: str, used: int) -> None:
    (folder / "memory.max").write_text(f"{most}\n", encoding="ascii")
    (folder / "memory.current").write_text(f"{used}\n", encoding="ascii")


def test_this_machine_has_free_memory() -> None:
    assert available_bytes(CPU) > 0


@pytest.mark.parametrize(("most", "used", "free"), [(10_000_000, 4_000_000, 6_000_000), (5_000, 5_001, 0)])
def test_a_control_group_limits_what_is_free(control_group: Path, most: int, used: int, free: int) -> None:
    limit(control_group, str(most), used)
    assert available_bytes(CPU) == free


def test_a_control_group_does_not_add_to_what_is_free(control_group: Path) -> None:
    limit(control_group, str(2**62), 0)
    assert 0 < available_bytes(CPU) < 2**60


def test_a_control_group_without_a_limit_does_not_count(control_group: Path) -> None:
    without = available_bytes(CPU)
    limit(control_group, "max", 2**62)
    assert available_bytes(CPU) > without / 2 > 0  # other programs go on meanwhile
