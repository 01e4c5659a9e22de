"""A loaded system's promises to its user: completion, seeds, labels, exact figures, and errors that name the input."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import rasterformer
from rasterformer.autoregressive.noise import image_generators
from rasterformer.errors import CheckpointError, ConfigError, ShapeError
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.image_transformer.config import Config

TINY = {"width": 8, "depth": 1, "num_heads": 2, "mlp_width": 8, "dropout_prob": 0.0, "block_length": 16}
MODELS = {
    "dmol": {"distribution": "dmol", "num_mixtures": 2, "memory_length": 16},
    "categorical": {"memory_length": 16},
    "categorical-2d": {"attention": "local_2d", "query_block": (2, 2), "flange": (2, 2)},
}


def make(name: str = "dmol", *, classes: tuple[str, ...] = (), num_classes: int | None = None) -> System:
    recipe = Recipe("image_transformer", Config(**{**TINY, **MODELS[name]}), DataConfig(image_size=4), TrainingConfig())
    system = System.create(recipe, class_names=classes, num_classes=num_classes)
    system.model.eval()
    return system


def random_images(batch: int = 2) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, 4, 4), dtype=torch.uint8, generator=rng)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("known", ["top:0.5", "rows:2", "none"])
def test_completion_keeps_the_known_pixels_exactly_and_draws_the_others(name: str, known: str) -> None:
    images, rows = random_images(), 0 if known == "none" else 2
    completed = make(name).complete(images, known=known, n=3, as_tensor=True)
    assert completed.shape == (2, 3, 3, 4, 4) and completed.dtype == torch.uint8
    for k in range(3):
        assert torch.equal(completed[:, k, :, :rows], images[:, :, :rows])
        assert not torch.equal(completed[:, k, :, rows:], images[:, :, rows:])
    assert not torch.equal(completed[:, 0], completed[:, 1])


def test_completion_of_a_block_order_takes_a_mask_of_its_first_block() -> None:
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:2, :2] = True
    images = random_images()
    completed = make("categorical-2d").complete(images, known=mask, as_tensor=True)[:, 0]
    assert torch.equal(completed[:, :, :2, :2], images[:, :, :2, :2])


@pytest.mark.parametrize("name", ["dmol", "categorical"])
def test_a_mask_that_is_no_prefix_is_refused_by_row_and_column(name: str) -> None:
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:2] = True
    mask[1, 2] = False
    with pytest.raises(
        ConfigError, match="row 1, column 2 is unknown and comes before row 1, column 3, which is known"
    ):
        make(name).complete(random_images(), known=mask)


def test_in_block_order_the_upper_row_alone_is_no_prefix() -> None:
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0] = True
    with pytest.raises(
        ConfigError, match="row 1, column 0 is unknown and comes before row 0, column 3, which is known"
    ):
        make("categorical-2d").complete(random_images(), known=mask)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ("bottom:0.5", "known = 'bottom:0.5' is not understood"),
        ("top:half", "known = 'top:half' is not understood"),
        ("rows:5", "known = 'rows:5' means 5 rows, but the model's images have 4"),
        ("top:-0.5", "known = 'top:-0.5' means -2 rows"),
    ],
)
def test_a_known_part_that_cannot_be_read_is_refused(known: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make().complete(random_images(), known=known)


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"known is torch.bool \[4, 5\]; it must be torch.bool \[4, 4\]"):
        make().complete(random_images(), known=torch.zeros(4, 5, dtype=torch.bool))


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_gives_the_same_images_for_any_number_and_batch_size(name: str) -> None:
    system = make(name)
    images = system.sample(5, seed=3, as_tensor=True)
    assert torch.equal(system.sample(5, seed=3, batch_size=2, as_tensor=True), images)
    assert torch.equal(system.sample(2, seed=3, as_tensor=True), images[:2])
    assert not torch.equal(system.sample(5, seed=4, as_tensor=True), images)
    assert len({image.numpy().tobytes() for image in images}) == 5


def test_streams_differ_between_seeds_and_between_images() -> None:
    """torch reads only the lowest 32 bits of a seed on the CPU: seed and image must both reach them."""
    numbers = [float(torch.rand((), generator=g)) for seed in (0, 1, 2**31, 2**40) for g in image_generators(seed, 3)]
    assert len(set(numbers)) == 12
    (alone,) = image_generators(1, 1, first=2)
    assert float(torch.rand((), generator=alone)) == numbers[3 + 2]


def test_samples_are_pillow_images_by_default() -> None:
    system = make()
    pictures, tensor = system.sample(2, seed=1), system.sample(2, seed=1, as_tensor=True)
    assert [picture.size for picture in pictures] == [(4, 4), (4, 4)]
    assert pictures[1].getpixel((3, 2)) == tuple(tensor[1, :, 2, 3].tolist())


def test_progress_counts_all_batches() -> None:
    told: list[tuple[int, int]] = []
    make().sample(3, batch_size=2, on_step=lambda done, total: told.append((done, total)))
    assert told[-1] == (3 * 16, 3 * 16) and [done for done, _ in told] == sorted({done for done, _ in told})


def test_labels_are_accepted_by_name_and_by_index() -> None:
    system = make(classes=("cat", "dog", "owl"))
    by_name = system.sample(2, label="dog", as_tensor=True)
    assert torch.equal(system.sample(2, label=1, as_tensor=True), by_name)
    assert torch.equal(system.sample(2, label="1", as_tensor=True), by_name)
    assert not torch.equal(system.sample(2, label="owl", as_tensor=True), by_name)
    mixed = system.sample(2, label=["dog", 2], as_tensor=True)
    assert torch.equal(mixed[0], by_name[0])
    assert torch.equal(mixed[1], system.sample(2, label="owl", as_tensor=True)[1])


def test_without_a_label_each_image_gets_a_class_drawn_from_the_seed() -> None:
    system = make(num_classes=3)
    images = system.sample(12, seed=5, as_tensor=True)
    assert torch.equal(system.sample(4, seed=5, as_tensor=True), images[:4])
    of_class = [system.sample(12, label=label, seed=5, as_tensor=True) for label in range(3)]
    drawn = [next(c for c in range(3) if torch.equal(of_class[c][k], images[k])) for k in range(12)]
    assert set(drawn) == {0, 1, 2}


def test_completions_take_one_label_for_each_image() -> None:
    system = make(classes=("cat", "dog"))
    completed = system.complete(random_images(), label=["dog", "cat"], n=2, as_tensor=True)
    dogs = system.complete(random_images(), label="dog", n=2, as_tensor=True)
    cats = system.complete(random_images(), label="cat", n=2, as_tensor=True)
    assert torch.equal(completed[0], dogs[0]) and torch.equal(completed[1], cats[1])
    assert not torch.equal(dogs, cats)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("dgo", r"label = 'dgo' is not known to this model. Did you mean 'dog'\?.*index in 0\.\.1"),
        (2, r"label = 2 is not known.*index in 0\.\.1"),
        (-1, "label = -1 is not known"),
        (["cat"], "label has 1 entries for 2 images"),
    ],
)
def test_labels_that_are_not_known_are_refused(label: object, message: str) -> None:
    system = make(classes=("cat", "dog"))
    with pytest.raises(ConfigError, match=message):
        system.sample(2, label=label)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        system.bits_per_dim(random_images(2), label=label)  # type: ignore[arg-type]


def test_a_likelihood_under_classes_needs_a_label_and_depends_on_it() -> None:
    system = make(classes=("cat", "dog"))
    with pytest.raises(ConfigError, match="label is missing.*cat, dog"):
        system.bits_per_dim(random_images())
    assert not torch.equal(system.bits_per_dim(random_images(), label=0), system.bits_per_dim(random_images(), label=1))


def test_a_label_for_a_model_without_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="label = 'cat' was given, but this model has no classes"):
        make().sample(1, label="cat")


@pytest.mark.parametrize("name", ["categorical", "categorical-2d"])
def test_a_uniform_output_costs_exactly_8_bits_a_dimension(name: str) -> None:
    system = make(name)
    with torch.no_grad():
        system.model.head.linear.weight.zero_()  # type: ignore[union-attr, operator]
        system.model.head.linear.bias.fill_(3.0)  # type: ignore[union-attr, operator]
    bits = system.bits_per_dim(random_images(5), batch_size=2)
    assert bits.dtype == torch.float64
    assert bits.tolist() == pytest.approx([8.0] * 5, abs=1e-6)  # nats of a sub-pixel are float32


@pytest.mark.parametrize("name", MODELS)
def test_bits_per_dim_is_the_sum_of_the_sub_pixels_nats(name: str) -> None:
    system, images = make(name), random_images(3)
    nats = system.symbol_nats(images)
    assert nats.shape == images.shape
    expected = nats.double().sum((1, 2, 3)) / 48 / math.log(2)
    torch.testing.assert_close(system.bits_per_dim(images), expected)


@pytest.mark.parametrize("name", MODELS)
def test_the_nats_of_a_sub_pixel_lie_at_its_place_in_the_image(name: str) -> None:
    """Changing the last sub-pixel of the order changes its own figure and no other."""
    system, images = make(name), random_images(1)
    changed = images.clone()
    changed[0, 2, 3, 3] += 40
    moved = (system.symbol_nats(changed) - system.symbol_nats(images)).abs() > 1e-4
    assert moved.nonzero().tolist() == [[0, 2, 3, 3]]


def test_pillow_images_are_fitted_and_small_ones_refused() -> None:
    system = make()
    picture = Image.new("L", (9, 6), 77)
    assert system.to_tensor([picture]).unique().tolist() == [77]
    assert system.to_tensor([picture]).shape == (1, 3, 4, 4)
    with pytest.raises(ShapeError, match="image 1 is 9x3; this model needs at least 4x4"):
        system.to_tensor([picture, Image.new("RGB", (9, 3))])


@pytest.mark.parametrize("images", [random_images()[:, :, :3], random_images().float(), random_images()[0]])
def test_tensors_of_another_shape_or_dtype_are_refused(images: Tensor) -> None:
    for call in (make().bits_per_dim, make().complete):
        with pytest.raises(
            ShapeError, match=r"images are torch\.\w+ \[.*\]; this model takes torch\.uint8 \[B, 3, 4, 4\]"
        ):
            call(images)


def test_the_seed_of_the_recipe_alone_decides_the_initial_weights() -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = make()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    pairs = zip(first.model.parameters(), make().model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make(classes=("cat", "dog")).save(tmp_path / "model")
    return tmp_path / "model"


def test_load_gives_back_outputs_bit_for_bit(saved: Path) -> None:
    system, loaded = make(classes=("cat", "dog")), rasterformer.load(saved)
    assert loaded.class_names == ("cat", "dog") and not loaded.model.training
    images = random_images()
    assert torch.equal(loaded.bits_per_dim(images, label="dog"), system.bits_per_dim(images, label="dog"))
    assert torch.equal(loaded.sample(2, seed=9, as_tensor=True), system.sample(2, seed=9, as_tensor=True))


def test_a_missing_folder_and_a_folder_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere': there is no such folder"):
        rasterformer.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no model"):
        rasterformer.load(tmp_path)


def test_damaged_weights_are_refused(saved: Path) -> None:
    weights = saved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        rasterformer.load(saved)


def test_weights_that_do_not_fit_the_recipe_are_named(tmp_path: Path) -> None:
    system = make()
    system.model.head.linear = torch.nn.Linear(8, 7, bias=False)  # type: ignore[union-attr]
    system.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"head\.linear\.weight is \[7, 8\], the recipe makes it \[20, 8\]"):
        rasterformer.load(tmp_path / "model")
