"""What a loaded system with a task promises: n results of each picture, seeds, kinds of pictures, and errors that name them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import rasterformer
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Batch, Cond
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.recipe_file import recipe_from_dict, recipe_to_dict
from rasterformer.system import System
from rasterformer.systems.image_transformer.config import Config
from rasterformer.tasks import Colourise, Denoise, Inpaint, Paired, SuperResolution, Task

TINY = {"width": 8, "depth": 1, "num_heads": 2, "mlp_width": 8, "dropout_prob": 0.0, "block_length": 16}
DMOL = {"distribution": "dmol", "num_mixtures": 2, "memory_length": 16, "encoder_depth": 1, "encoder_cell": "pixel"}
TASKS: dict[str, Task] = {
    "upscale": SuperResolution(2),
    "restore": Inpaint(),
    "colourise": Colourise(),
    "denoise": Denoise(),
    "transform": Paired("elsewhere", source_size=2),
}
SOURCE_SIZE = {"upscale": 2, "restore": 4, "colourise": 4, "denoise": 4, "transform": 2}


def make(name: str, *, num_classes: int = 0) -> System:
    recipe = Recipe(
        "image_transformer", Config(**TINY, **DMOL), DataConfig(image_size=4), TrainingConfig(), task=TASKS[name]
    )
    system = System.create(recipe, num_classes=num_classes)
    system.model.eval()
    with torch.no_grad():  # so that the source has a say
        rng = torch.Generator().manual_seed(0)
        for weight in system.model.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=rng)
    return system


def pictures(count: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=rng)


def left_half(count: int, height: int, width: int) -> Tensor:
    """The left half is known."""
    return (torch.arange(width) < width // 2).expand(count, height, -1)


def call(name: str, images: Any, **options: Any) -> list[Tensor]:
    """`transform` with tensors, and a mask where the task needs one."""
    if name == "restore" and "known" not in options:
        sizes = [image.shape[1:] if isinstance(image, Tensor) else image.size[::-1] for image in images]
        options["known"] = [left_half(1, *size)[0] for size in sizes]
    return make(name).transform(images, as_tensor=True, **options)


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", TASKS)
def test_there_are_n_results_of_each_picture_and_the_seed_decides_them(name: str) -> None:
    size = SOURCE_SIZE[name]
    images = pictures(2, size, size)
    results = call(name, images, n=3, seed=5)
    assert [result.shape for result in results] == [(3, 3, 4, 4)] * 2
    assert len({image.numpy().tobytes() for result in results for image in result}) == 6
    assert same(call(name, images, n=3, seed=5), results)
    assert not same(call(name, images, n=3, seed=6), results)
    assert not same(call(name, 255 - images, n=3, seed=5), results), "the source has a say"


@pytest.mark.parametrize("name", TASKS)
def test_results_depend_neither_on_the_batch_size_nor_on_the_pictures_that_follow(name: str) -> None:
    size = SOURCE_SIZE[name]
    images = pictures(3, size, size)
    results = call(name, images, n=2, seed=5)
    for batch_size in (1, 2, 5):
        assert same(call(name, images, n=2, seed=5, batch_size=batch_size), results)
    assert same(call(name, images[:2], n=2, seed=5), results[:2])


def test_pictures_of_several_sizes_keep_their_order_and_do_not_disturb_one_another() -> None:
    images = pictures(3, 2, 2)
    large = pictures(1, 3, 5)[0]
    alike = call("upscale", images, seed=5)
    mixed = call("upscale", [*_pillow(images[:1]), *_pillow(large[None]), *_pillow(images[2:])], seed=5)
    assert [result.shape for result in mixed] == [(1, 3, 4, 4), (1, 3, 6, 10), (1, 3, 4, 4)]
    assert torch.equal(mixed[0], alike[0]) and torch.equal(mixed[2], alike[2])


def _pillow(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in images]


METHODS: dict[str, Callable[[System, Any, int], list[Any]]] = {
    "upscale": lambda system, images, seed: system.upscale(images, n=2, seed=seed),
    "restore": lambda system, images, seed: system.restore(images, known=left_half(1, 4, 4), n=2, seed=seed),
    "colourise": lambda system, images, seed: system.colourise(images, n=2, seed=seed),
    "denoise": lambda system, images, seed: system.denoise(images, n=2, seed=seed),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_method_of_a_task_is_transform_with_pillow_images(name: str) -> None:
    images = pictures(1, SOURCE_SIZE[name], SOURCE_SIZE[name])
    (found,) = METHODS[name](make(name), images, 4)
    (expected,) = call(name, images, n=2, seed=4)
    assert [picture.size for picture in found] == [(4, 4), (4, 4)]
    for picture, tensor in zip(found, expected, strict=True):
        assert picture.getpixel((3, 1)) == tuple(tensor[:, 1, 3].tolist())
        assert picture.tobytes() == tensor.permute(1, 2, 0).contiguous().numpy().tobytes()


KINDS = {"upscale": "super_resolution", "restore": "inpaint", "colourise": "colourise", "denoise": "denoise"}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("other", ["restore", "colourise", "transform"])
def test_a_model_of_another_task_is_refused(name: str, other: str) -> None:
    if name == other:
        return
    trained = KINDS.get(other, "paired")
    with pytest.raises(ConfigError, match=f"{name} needs a model of the task {KINDS[name]}, but .* for {trained}"):
        METHODS[name](make(other), pictures(1, 4, 4), 0)


def test_a_model_without_a_task_takes_no_source_and_one_with_a_task_needs_it() -> None:
    plain = Config(**{**TINY, **DMOL, "encoder_depth": None})
    system = System.create(Recipe("image_transformer", plain, DataConfig(image_size=4), TrainingConfig()))
    for method in METHODS.values():
        with pytest.raises(ConfigError, match="this model makes images from nothing and takes no source image"):
            method(system, pictures(1, 4, 4), 0)
    with pytest.raises(ConfigError, match="this model makes images from nothing"):
        system.transform(pictures(1, 4, 4))
    with pytest.raises(ConfigError, match=r"sample draws images from nothing, but this model \(task colourise\) needs"):
        make("colourise").sample(1)
    with pytest.raises(ConfigError, match=r"complete draws images from nothing, but this model \(task inpaint\) needs"):
        make("restore").complete(pictures(1, 4, 4))


def test_a_network_and_a_recipe_that_do_not_agree_on_a_source_are_refused() -> None:
    plain, reading = Config(**{**TINY, **DMOL, "encoder_depth": None}), Config(**TINY, **DMOL)
    data, training = DataConfig(image_size=4), TrainingConfig()
    with pytest.raises(ConfigError, match="model.encoder_depth is null, but the recipe has a task"):
        System.create(Recipe("image_transformer", plain, data, training, task=Colourise()))
    with pytest.raises(ConfigError, match="model.encoder_depth = 1, but the recipe has no task"):
        System.create(Recipe("image_transformer", reading, data, training))


def test_grey_palette_and_transparent_pictures_become_rgb_on_white() -> None:
    rgb = pictures(1, 2, 2)
    (picture,) = _pillow(rgb)
    expected = call("upscale", rgb, seed=1)
    palette = picture.quantize(4)
    assert palette.mode == "P" and palette.convert("RGB").tobytes() == picture.tobytes()
    assert same(call("upscale", [palette], seed=1), expected)
    grey = Image.new("L", (2, 2), 77)
    assert same(call("upscale", [grey], seed=1), call("upscale", torch.full_like(rgb, 77), seed=1))
    clear = picture.copy()
    clear.putalpha(Image.new("L", (2, 2), 0))
    assert clear.mode == "RGBA"
    assert same(call("upscale", [clear], seed=1), call("upscale", torch.full_like(rgb, 255), seed=1))


def test_of_a_picture_in_colour_colourisation_sees_the_luma_only() -> None:
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(-1, -1, 4, 4)
    grey = torch.full((1, 3, 4, 4), 76, dtype=torch.uint8)  # 0.299 * 255 = 76.2
    assert same(call("colourise", red), call("colourise", grey))
    assert not same(call("colourise", red), call("colourise", grey + 60))


def test_known_pixels_stay_and_all_others_are_drawn() -> None:
    images, known = pictures(2, 4, 4), torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(3)) < 0.5
    results = call("restore", images, known=known, n=6)
    for image, mask, result in zip(images, known, results, strict=True):
        assert torch.equal(result[:, :, mask], image[:, mask].expand(6, -1, -1))
        assert bool((result[:, :, ~mask] != result[:1, :, ~mask]).any(1).any(0).all())


def test_pictures_that_are_too_small_or_too_large_are_refused_with_their_size() -> None:
    with pytest.raises(ShapeError, match="source is 5x1 pixels; this model needs at least 2x2"):
        call("upscale", pictures(1, 1, 5))
    with pytest.raises(ShapeError, match="source is 3x4 pixels; this model needs at least 4x4"):
        call("restore", pictures(1, 4, 3))
    with pytest.raises(ConfigError, match="source is 5x4 pixels, this model takes 4x4. Allow overlapping tiles"):
        call("denoise", pictures(1, 4, 5), tile=False)
    assert call("denoise", pictures(1, 4, 4), tile=False)[0].shape == (1, 3, 4, 4)
    with pytest.raises(ConfigError, match=r"overlap = 4 must lie in 0\.\.3"):
        call("denoise", pictures(1, 4, 5), overlap=4)


@pytest.mark.parametrize(
    "images", [pictures(1, 4, 4).float(), pictures(1, 4, 4)[0], pictures(1, 4, 4)[:, :1]], ids=lambda t: str(t.shape)
)
def test_tensors_of_another_shape_or_dtype_are_refused(images: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"images are torch\.\w+ \[.*\]; torch.uint8 \[B, 3, h, w\] is needed"):
        make("denoise").transform(images)


def test_no_pictures_and_no_results_are_refused() -> None:
    with pytest.raises(ConfigError, match="no images were given"):
        make("denoise").transform([])
    with pytest.raises(ConfigError, match="n = 0 must be at least 1"):
        make("denoise").transform(pictures(1, 4, 4), n=0)
    with pytest.raises(ConfigError, match="temperature = 0"):
        make("denoise").transform(pictures(1, 4, 4), temperature=0.0)


def test_masks_that_do_not_fit_are_refused() -> None:
    images = pictures(2, 4, 4)
    with pytest.raises(ConfigError, match="known is missing"):
        make("restore").transform(images)
    with pytest.raises(ShapeError, match="known has 1 masks for 2 images"):
        call("restore", images, known=left_half(1, 4, 4))
    with pytest.raises(ShapeError, match=r"known is torch.bool \[1, 4, 5\]. It must be torch.bool \[1, 4, 4\]"):
        call("restore", images, known=[left_half(1, 4, 4)[0], left_half(1, 4, 5)[0]])
    with pytest.raises(ShapeError, match=r"known is torch.uint8 \[1, 4, 4\]"):
        call("restore", images, known=left_half(2, 4, 4).to(torch.uint8))
    with pytest.raises(ConfigError, match="every pixel is known"):
        call("restore", images, known=torch.ones(2, 4, 4, dtype=torch.bool))


@pytest.mark.parametrize(("name", "task"), [("upscale", "super_resolution"), ("transform", "paired")])
def test_a_mask_for_a_task_that_has_none_is_refused(name: str, task: str) -> None:
    with pytest.raises(ConfigError, match=f"known was given, but a model of the task {task} draws every pixel"):
        call(name, pictures(1, 2, 2), known=left_half(1, 2, 2))


def test_each_picture_has_its_label() -> None:
    system, images = make("colourise", num_classes=2), pictures(2, 4, 4)
    mixed = system.transform(images, label=[1, 0], n=2, as_tensor=True)
    of_class = [system.transform(images, label=label, n=2, as_tensor=True) for label in (0, 1)]
    assert torch.equal(mixed[0], of_class[1][0]) and torch.equal(mixed[1], of_class[0][1])
    assert not torch.equal(of_class[0][0], of_class[1][0])
    with pytest.raises(ConfigError, match="label has 1 entries for 2 images"):
        system.transform(images, label=[0])


def test_progress_counts_all_tiles_and_results_are_told_in_order() -> None:
    told: list[tuple[int, int]] = []
    given: list[tuple[int, Tensor]] = []
    results = call(
        "denoise", pictures(2, 4, 6), n=2, batch_size=3,
        on_step=lambda done, total: told.append((done, total)),
        on_images=lambda number, images: given.append((number, images)),
    )  # fmt: skip
    total = 2 * 2 * 2 * 16  # pictures, results, tiles, positions
    assert told[-1] == (total, total) and [done for done, _ in told] == sorted({done for done, _ in told})
    assert [number for number, _ in given] == [0, 1] and same([images for _, images in given], results)


def test_drawing_from_sources_tells_the_results_of_each() -> None:
    system, given = make("denoise"), {}
    results = system.draw_from(Cond(source=pictures(3, 4, 4)), n=2, batch_size=4, on_images=given.__setitem__)
    assert results.shape == (3, 2, 3, 4, 4)
    assert list(given) == [0, 1, 2] and all(torch.equal(given[k], results[k]) for k in range(3))


@pytest.mark.parametrize("options", [{"top_k": 3}, {"batch_size": 1}, {"label": 1}], ids=str)
@pytest.mark.parametrize("name", ["upscale", "colourise", "denoise"])
def test_the_methods_of_a_task_take_what_transform_takes(name: str, options: dict[str, Any]) -> None:
    system, images = make(name, num_classes=2), pictures(2, SOURCE_SIZE[name], SOURCE_SIZE[name])
    found = getattr(system, name)(images, n=2, seed=3, as_tensor=True, **options)
    assert same(found, system.transform(images, n=2, seed=3, as_tensor=True, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parallel": True}, "parallel is for sample and complete"),
        ({"size": (8, 8)}, r"size = \(8, 8\) is for sample; here the pictures say it"),
        ({"steps": 3}, "steps = 3 has no meaning here: this is a model that draws pixel by pixel"),
        ({"sampler": "ddim"}, "sampler = 'ddim' has no meaning here: this is a model that draws pixel by pixel"),
    ],
    ids=str,
)
def test_ways_of_drawing_that_are_for_others_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make("denoise").transform(pictures(1, 4, 4), **options)


@pytest.mark.parametrize("name", TASKS)
def test_a_saved_system_keeps_its_task_and_its_results(name: str, tmp_path: Path) -> None:
    system = make(name)
    system.save(tmp_path / "model")
    loaded = rasterformer.load(tmp_path / "model")
    assert loaded.recipe == system.recipe and loaded.recipe.task == TASKS[name]
    size = SOURCE_SIZE[name]
    options = {"known": left_half(1, size, size)} if name == "restore" else {}
    images = pictures(1, size, size)
    assert same(*(each.transform(images, as_tensor=True, **options) for each in (loaded, system)))


@pytest.mark.parametrize("name", ["upscale", "restore", "colourise", "denoise"])
def test_sources_made_for_images_depend_on_seed_purpose_and_number_alone(name: str) -> None:
    system, batch = make(name), Batch(pictures(8, 4, 4))
    made = system.with_source(batch, first=8, purpose="training source", seed=1).cond
    rest = Batch(batch.images[3:])
    again = system.with_source(rest, first=11, purpose="training source", seed=1).cond
    assert torch.equal(again.source, made.source[3:])
    assert again.known is None or torch.equal(again.known, made.known[3:])
    is_random = name in ("restore", "denoise")
    for options in ({"first": 0}, {"purpose": "held-out source"}, {"seed": 2}):
        other = system.with_source(batch, **{"first": 8, "purpose": "training source", "seed": 1} | options).cond
        assert torch.equal(other.source, made.source) is not is_random
    kept = Batch(batch.images, Cond(source=made.source, known=made.known))
    assert system.with_source(kept, first=0, purpose="x", seed=9) is kept


@pytest.mark.parametrize("name", ["upscale", "restore"])
def test_bits_per_dim_is_over_the_unknown_dimensions_given_the_source(name: str) -> None:
    system, images = make(name), pictures(3, 4, 4)
    cond = system.with_source(Batch(images), first=0, purpose="held-out source", seed=0).cond
    nats = system.symbol_nats(images, cond)
    dims = torch.full((3,), 48)
    if cond.known is not None:
        dims = 3 * (~cond.known).sum((1, 2))
        assert not bool(nats[cond.known[:, None].expand(-1, 3, -1, -1)].any())
    expected = nats.double().sum((1, 2, 3)) / dims / math.log(2)
    torch.testing.assert_close(system.bits_per_dim(images, batch_size=2), expected)


@pytest.mark.parametrize("source_size", [3, 8])
def test_a_paired_source_of_an_odd_size_is_refused_by_the_recipe(source_size: int) -> None:
    task = Paired("elsewhere", source_size=source_size)
    recipe = Recipe("image_transformer", Config(**TINY, **DMOL), DataConfig(image_size=4), TrainingConfig(), task=task)
    with pytest.raises(ConfigError, match=f"task.source_size = {source_size} must divide data.image_size = 4"):
        recipe_from_dict(recipe_to_dict(recipe))
