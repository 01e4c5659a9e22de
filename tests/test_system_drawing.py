"""How a system draws: going on, in batches, in parallel, in bfloat16, and told about as it happens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rasterformer.errors import ConfigError
from rasterformer.recipe_file import load_recipe
from rasterformer.system import System

CATEGORICAL = [("model.distribution", "categorical"), ("model.input", "table"), ("data.image_size", "4")]


def make(changes: list[tuple[str, str]] | None = None, *, num_classes: int = 0) -> System:
    """A model of the recipe `tiny` with random weights so large that what is drawn depends on what was drawn before."""
    system = System.create(load_recipe("tiny", changes or []), num_classes=num_classes)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in system.model.eval().parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=rng)
    return system


@pytest.fixture(scope="module", params=["dmol", "categorical"])
def system(request: pytest.FixtureRequest) -> System:
    return make(CATEGORICAL if request.param == "categorical" else None)


@pytest.fixture(scope="module")
def tiny() -> System:
    return make()


def random_images(system: System, batch: int = 2) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, *system.codec.image_shape), dtype=torch.uint8, generator=rng)


def test_first_goes_on_where_fewer_images_ended(system: System) -> None:
    images = system.sample(5, seed=3, as_tensor=True)
    assert torch.equal(system.sample(2, seed=3, first=3, as_tensor=True), images[3:])
    assert torch.equal(system.sample(3, seed=3, first=1, batch_size=2, as_tensor=True), images[1:4])
    assert len({image.numpy().tobytes() for image in images}) == 5


def test_first_goes_on_with_the_labels_too() -> None:
    """A class is drawn for each image, and not the same for all."""
    system = make(num_classes=3)
    images = system.sample(12, seed=5, as_tensor=True)
    assert torch.equal(system.sample(10, seed=5, first=2, as_tensor=True), images[2:])
    of_class = [system.sample(10, seed=5, first=2, label=label, as_tensor=True) for label in range(3)]
    drawn = [[label for label in range(3) if torch.equal(of_class[label][k], images[2 + k])] for k in range(10)]
    assert all(len(labels) == 1 for labels in drawn) and {labels[0] for labels in drawn} == {0, 1, 2}


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_images_do_not_depend_on_the_batch_size(system: System, batch_size: int) -> None:
    pixels = random_images(system)
    assert torch.equal(
        system.sample(4, seed=1, batch_size=batch_size, as_tensor=True), system.sample(4, seed=1, as_tensor=True)
    )
    completed = system.complete(pixels, n=2, seed=1, as_tensor=True)
    assert torch.equal(system.complete(pixels, n=2, seed=1, batch_size=batch_size, as_tensor=True), completed)
    assert not torch.equal(completed[:, 0], completed[:, 1])


def test_parallel_samples_are_the_same_images(system: System) -> None:
    options = {"seed": 2, "temperature": 0.8, "as_tensor": True}
    assert torch.equal(system.sample(3, parallel=True, **options), system.sample(3, **options))
    assert torch.equal(system.sample(2, first=1, parallel=True, **options), system.sample(3, **options)[1:])


@pytest.mark.parametrize("known", ["none", "top:0.5", "top:1.0"])
def test_parallel_completions_are_the_same_images(system: System, known: str) -> None:
    pixels = random_images(system)
    expected = system.complete(pixels, known=known, n=2, seed=4, as_tensor=True)
    found = system.complete(pixels, known=known, n=2, seed=4, parallel=True, batch_size=1, as_tensor=True)
    assert torch.equal(found, expected)
    rows = {"none": 0, "top:0.5": system.image_size // 2, "top:1.0": system.image_size}[known]
    assert torch.equal(found[:, 1, :, :rows], pixels[:, :, :rows])


def test_parallel_draws_each_image_under_its_own_label() -> None:
    system = make(CATEGORICAL, num_classes=3)
    options = {"seed": 5, "label": [2, 0, 1], "as_tensor": True}
    assert torch.equal(system.sample(3, parallel=True, **options), system.sample(3, **options))
    pixels = random_images(system, 3)
    assert torch.equal(system.complete(pixels, parallel=True, **options), system.complete(pixels, **options))


@pytest.mark.parametrize(
    ("how", "starts"), [({"batch_size": 2}, [0, 2, 4]), ({}, [0]), ({"parallel": True}, [0, 1, 2, 3, 4])]
)
def test_every_batch_of_samples_is_told_in_order(tiny: System, how: dict, starts: list[int]) -> None:
    told: list[tuple[int, Tensor]] = []
    images = tiny.sample(5, seed=6, first=7, as_tensor=True, on_images=lambda *batch: told.append(batch), **how)
    assert [start for start, _ in told] == starts
    assert torch.equal(torch.cat([batch for _, batch in told]), images)
    ends = [start + len(batch) for start, batch in told]
    assert ends == [*starts[1:], 5], "a batch begins where the one before it ended"


@pytest.mark.parametrize(
    ("how", "starts"), [({"batch_size": 4}, [0, 4]), ({}, [0]), ({"parallel": True}, [0, 1, 2, 3, 4, 5])]
)
def test_every_batch_of_completions_is_told_image_by_image(tiny: System, how: dict, starts: list[int]) -> None:
    told: list[tuple[int, Tensor]] = []
    completed = tiny.complete(
        random_images(tiny), n=3, seed=6, as_tensor=True, on_images=lambda *batch: told.append(batch), **how
    )
    assert [start for start, _ in told] == starts
    assert torch.equal(torch.cat([batch for _, batch in told]), completed.flatten(0, 1))


def test_a_batch_is_told_before_the_next_is_drawn(tiny: System) -> None:
    """What is finished can be kept when drawing is stopped."""
    events: list[str] = []
    length = tiny.codec.x_shape[0]
    tiny.sample(
        4,
        batch_size=2,
        on_step=lambda done, total: events.append(f"{done} of {total}") if done % length == 0 else None,
        on_images=lambda start, images: events.append(f"images {start}..{start + len(images) - 1}"),
    )
    last = [k for k, event in enumerate(events) if event == f"{2 * length} of {4 * length}"]
    assert events[last[0] + 1] == "images 0..1" and events[-1] == "images 2..3"
    assert events[-2] == f"{4 * length} of {4 * length}"


@pytest.mark.parametrize("parallel", [False, True])
def test_progress_rises_to_the_end_however_it_is_drawn(tiny: System, parallel: bool) -> None:
    told: list[tuple[int, int]] = []
    tiny.sample(3, parallel=parallel, on_step=lambda done, total: told.append((done, total)))
    assert told[-1] == (3 * 64, 3 * 64) and {total for _, total in told} == {3 * 64}
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_bfloat16_draws_images_of_a_rounded_model(system: System) -> None:
    before = {name: weight.clone() for name, weight in system.model.state_dict().items()}
    images = system.sample(3, seed=8, precision="bfloat16", as_tensor=True)
    assert images.dtype == torch.uint8 and images.shape == (3, *system.codec.image_shape)
    assert all(len(image.unique()) > 5 for image in images)
    assert torch.equal(system.sample(3, seed=8, precision="bfloat16", as_tensor=True), images)
    assert not torch.equal(system.sample(3, seed=8, as_tensor=True), images)
    after = system.model.state_dict()
    assert all(
        torch.equal(after[name], weight) and after[name].dtype == weight.dtype for name, weight in before.items()
    )


def test_bfloat16_completions_keep_the_known_pixels(system: System) -> None:
    pixels, half = random_images(system), system.image_size // 2
    completed = system.complete(pixels, precision="bfloat16", as_tensor=True)[:, 0]
    assert completed.dtype == torch.uint8 and torch.equal(completed[:, :, :half], pixels[:, :, :half])
    assert not torch.equal(completed[:, :, half:], pixels[:, :, half:])


def test_bfloat16_turns_the_heads_of_a_large_image_by_the_same_angles() -> None:
    """Rotary angles reach tens of radians, where bfloat16 has steps of an eighth; only their cosine may be rounded, by 2^-8."""
    changes = [("model.rotary", "true"), ("model.num_heads", "1"), ("data.image_size", "64")]
    model = make([*CATEGORICAL[:2], *changes]).model
    angles, rounded = (m.layers[0].attention.angles for m in (model, model.to_bfloat16()))  # type: ignore[union-attr, index]
    assert float(angles.max()) > 100
    error = float((rounded.float().cos() - angles.cos()).abs().max())
    assert error <= 2**-8


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"n": 0}, "n = 0 and batch_size = None must be at least 1"),
        ({"n": -2}, "n = -2 and batch_size = None must be at least 1"),
        ({"batch_size": 0}, "n = 2 and batch_size = 0 must be at least 1"),
        ({"parallel": True, "batch_size": 2}, "batch_size = 2, but parallel draws one image at a time"),
        ({"precision": "float16"}, "precision = 'float16' is not known. Use float32 or bfloat16"),
        ({"temperature": 0.0}, r"temperature = 0\.0 must be above 0"),
        ({"top_p": 1.5}, r"top_p = 1\.5"),
    ],
)
def test_ways_of_drawing_that_make_no_sense_are_refused(tiny: System, how: dict, message: str) -> None:
    for call in (tiny.sample, tiny.plan_sampling):
        with pytest.raises(ConfigError, match=message):
            call(**{"n": 2, **how})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"n": 0}, "n = 0"),
        ({"n": -2}, "n = -.* must be at least 1"),
        ({"batch_size": 0}, "batch_size = 0 must be at least 1"),
        ({"parallel": True, "batch_size": 2}, "batch_size = 2, but parallel draws one image at a time"),
        ({"precision": "half"}, "precision = 'half' is not known. Use float32 or bfloat16"),
    ],
)
def test_ways_of_completing_that_make_no_sense_are_refused(tiny: System, how: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny.complete(random_images(tiny), **how)


def test_a_plan_says_what_sampling_then_does(tiny: System) -> None:
    starts: list[int] = []
    plan = tiny.plan_sampling(70)
    assert (plan.num_images, plan.batch_size, plan.positions) == (70, 64, 64)
    tiny.sample(5, batch_size=2, on_images=lambda start, _: starts.append(start))
    planned = tiny.plan_sampling(5, batch_size=2)
    assert starts == list(range(0, planned.num_images, planned.batch_size))
    assert planned.bytes_per_image == plan.bytes_per_image >= tiny.model.state_bytes(1)
    assert tiny.plan_sampling(5, parallel=True).batch_size == 1


def test_a_plan_in_bfloat16_takes_less_memory(tiny: System) -> None:
    full, half = tiny.plan_sampling(3), tiny.plan_sampling(3, precision="bfloat16")
    assert half.bytes_per_image < full.bytes_per_image and half.shared_bytes < full.shared_bytes
    positions = 4 * tiny.model.config.width * tiny.model.x_shape[0]  # learned ones, put together once
    assert full.shared_bytes == sum(weight.nbytes for weight in tiny.model.parameters()) + positions
