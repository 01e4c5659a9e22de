"""Diffusion of pixels as a `System`, alone and as a cascade: sizes, texts, masks, larger pictures, progress, memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from rasterformer.drawing.diffusion_pictures import told_of
from rasterformer.drawing.options import DrawingOptions
from rasterformer.drawing.stages import Told
from rasterformer.errors import CheckpointError, ConfigError, DataError, ShapeError
from rasterformer.interfaces import Cond
from rasterformer.nn.live_memory import peak_bytes
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.imagen.config import Config
from rasterformer.systems.imagen.model import Imagen
from rasterformer.tasks import Colourise, Inpaint, SuperResolution, Task

BYTES, NOWHERE = TextConfig("bytes", dim=8, length=8), TextConfig("folder", "nowhere", dim=8, length=8)
DIT = Config(denoiser="transformer", width=16, depth=1, head_dim=8, mlp_width=8, text_width=8)
UNET = Config(
    width=8, multipliers=(1, 2), res_blocks=(1, 1), attention_levels=(1,), norm_groups=2, head_dim=8, text_width=8
)
STEPS: dict[str, Any] = {"steps": 2, "as_tensor": True}


def make(
    side: int = 8,
    *,
    config: Config = DIT,
    task: Task | None = None,
    text: TextConfig | None = None,
    classes: tuple[str, ...] = (),
    upscaled: bool = False,
    upscaler_text: TextConfig | None = None,
    **changes: Any,
) -> System:
    """Untrained, with weights so large that everything matters; a cascade doubles the side, with a multiple of 4 pixels."""
    recipe = Recipe("imagen", replace(config, **changes), DataConfig(image_size=side), TrainingConfig(), task, text)
    system = System.create(recipe, class_names=classes)
    torch.manual_seed(1)
    for weight in system.model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    system.model.eval()
    if not upscaled:
        return system
    task = SuperResolution(factor=2)
    upscaler = make(2 * side, patch=4, source_noise=1.0, task=task, text=upscaler_text)
    return replace(system, upscalers=(upscaler,))


def random_images(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, height, width), generator=rng, dtype=torch.uint8)


def random_mask(height: int, width: int, seed: int = 0) -> Tensor:
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[-1, -1] = False
    mask[0, 0] = True
    return mask


# ---- from nothing

WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one stage": ({}, {"sampler": "ancestral"}),
    "text": ({"text": BYTES}, {"text": ["red", "a blue one", "", None]}),
    "guided": ({"classes": ("cat", "dog")}, {"label": ["cat", "dog", "dog", "cat"], "guidance_scale": 3.0}),
    "wide": ({"config": UNET}, {"size": (4, 12)}),
    "cascade": (
        {"upscaled": True, "text": BYTES, "upscaler_text": BYTES},
        {"text": ["a", "b", "", "d"], "size": (16, 24)},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_image_depends_on_its_seed_and_number_only(way: str) -> None:
    system, options = make(**WAYS[way][0]), WAYS[way][1]
    images = system.sample(4, seed=3, **STEPS, **options)
    size = options.get("size", (system.image_size, system.image_size))
    assert images.shape == (4, 3, *size) and images.dtype == torch.uint8
    assert torch.equal(system.sample(4, seed=3, batch_size=3, **STEPS, **options), images)
    later = options | {name: options[name][2:] for name in ("text", "label") if name in options}
    assert torch.equal(system.sample(2, seed=3, first=2, **STEPS, **later), images[2:])
    assert not torch.equal(system.sample(4, seed=4, **STEPS, **options), images)
    assert len({image.numpy().tobytes() for image in images}) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 4}, {"sampler": "dpmpp_2m"}, {"sampler": "ddim"}, {"sampler": "heun"}, {"threshold": "static"},
        {"percentile": 50.0}, {"threshold_cap": 1.0}, {"guidance_scale": 3.0}, {"negative": "no", "guidance_scale": 3.0},
        {"guidance_rescale": 1.0, "guidance_scale": 3.0}, {"sampler": "ancestral", "variance": 1.0},
        {"source_noise": 0.9}, {"upscaler_steps": 5}, {"upscaler_guidance_scale": 3.0}, {"seed": 8},
        {"precision": "bfloat16"},
    ],
    ids=str,
)  # fmt: skip
def test_every_option_reaches_the_sampler(options: dict[str, Any]) -> None:
    system = make(upscaled=True, text=BYTES, upscaler_text=BYTES)
    before: dict[str, Any] = {"steps": 3} | ({"sampler": "ancestral"} if "variance" in options else {})
    before |= {"guidance_scale": 3.0} if "negative" in options or "guidance_rescale" in options else {}
    plain = system.sample(2, text="red", **STEPS | before)
    assert not torch.equal(system.sample(2, text="red", **STEPS | {"steps": 3} | options), plain)


@pytest.mark.parametrize(("size", "use"), [((16, 10), "16x8"), ((3, 8), "4x8"), ((0, 8), "4x8"), ((16, 15), "16x16")])
def test_sizes_that_a_stage_cannot_draw_are_refused(size: tuple[int, int], use: str) -> None:
    with pytest.raises(ShapeError, match=rf"size = {size[0]}x{size[1]} pixels is no multiple of 4\. Use {use}\."):
        make(upscaled=True).sample(1, size=size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resamplings": 2}, "resamplings = 2 is for filling in what a mask says is missing"),
        ({"batch_size": 0}, "batch_size = 0 must be at least 1"),
        ({"precision": "float16"}, "precision = 'float16' is not known"),
        ({"steps": 0}, "steps = 0 is too few"),
        ({"guidance_scale": 2.0}, "guidance needs a condition to be guided by"),
    ],
    ids=str,
)
def test_what_cannot_be_drawn_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make().sample(1, **options)


# ---- texts


def test_an_empty_text_is_a_text_and_none_is_the_learned_null() -> None:
    system = make(text=BYTES)
    empty, none, other = (system.sample(2, text=text, **STEPS) for text in ("", None, "red"))
    assert not torch.equal(empty, none) and not torch.equal(empty, other) and not torch.equal(none, other)
    guided = system.sample(2, text="", guidance_scale=3.0, **STEPS)
    assert not torch.equal(guided, empty), "an empty text can be led to, away from the null"
    away = system.sample(2, text="red", guidance_scale=3.0, negative="", **STEPS)
    assert not torch.equal(away, system.sample(2, text="red", guidance_scale=3.0, **STEPS))
    with pytest.raises(ConfigError, match="image 1 has none"):
        system.sample(2, text=["red", None], guidance_scale=3.0)


def test_texts_of_different_lengths_are_each_as_alone() -> None:
    system = make(text=BYTES)
    both = system.sample(2, text=["r", "a blue"], **STEPS)
    assert torch.equal(system.sample(1, text="r", **STEPS)[0], both[0])
    assert torch.equal(system.sample(1, first=1, text="a blue", **STEPS)[0], both[1])


@pytest.mark.parametrize("stage", [0, 1])
def test_another_text_encoder_than_a_stage_was_trained_with_is_refused(stage: int) -> None:
    system = make(upscaled=True, text=BYTES, upscaler_text=BYTES)
    (system if stage == 0 else system.upscalers[0]).trained_on_text = "another"
    with pytest.raises(CheckpointError, match="trained with text encoder another"):
        system.sample(1, text="red")


@pytest.mark.parametrize("stage", [0, 1])
def test_a_text_encoder_that_is_missing_is_named_for_every_stage(stage: int) -> None:
    texts = [BYTES, BYTES]
    texts[stage] = NOWHERE
    system = make(upscaled=True, text=texts[0], upscaler_text=texts[1])
    with pytest.raises(DataError, match="nowhere"):
        system.sample(1, text="red")


def test_one_text_encoder_reads_for_all_stages() -> None:
    system = make(upscaled=True, text=BYTES, upscaler_text=BYTES)
    system.sample(1, text="red", **STEPS)
    assert system.text_encoder is not None and system.upscalers[0].text_encoder is system.text_encoder


def test_an_upscaler_without_texts_is_not_told_any() -> None:
    system = make(upscaled=True, text=BYTES)
    assert not torch.equal(system.sample(1, text="red", **STEPS), system.sample(1, text="blue", **STEPS))


# ---- masks

MAKERS: dict[str, Callable[[], System]] = {
    "one stage": make,
    "cascade": lambda: make(upscaled=True),
    "trained for it": lambda: make(task=Inpaint()),
}


@pytest.mark.parametrize("size", [(16, 16), (17, 19), (30, 18)], ids=str)
@pytest.mark.parametrize("maker", MAKERS)
def test_restored_pictures_are_the_pictures_where_they_are_known_and_hidden_pixels_do_not_matter(
    maker: str, size: tuple[int, int]
) -> None:
    system, image, mask = MAKERS[maker](), random_images(1, *size), random_mask(*size)
    (found,) = system.restore(image, known=mask, n=2, resamplings=2, **STEPS)
    assert found.shape == (2, 3, *size)
    assert torch.equal(found[:, :, mask], image[:, :, mask].expand(2, -1, -1)) and not torch.equal(found[0], found[1])
    (other,) = system.restore(torch.where(mask, image, 255 - image), known=mask, n=2, resamplings=2, **STEPS)
    assert torch.equal(other, found)
    (another,) = system.restore(255 - image, known=mask, n=2, resamplings=2, **STEPS)
    assert not torch.equal(another[:, :, ~mask], found[:, :, ~mask]), "what is known is seen"


def test_a_result_does_not_depend_on_other_pictures_nor_on_how_many_there_are() -> None:
    system = make(upscaled=True)
    one, other, third = (random_images(1, 16, 18, seed)[0] for seed in (0, 1, 2))
    mask = random_mask(16, 18)
    both = system.restore(torch.stack([one, other]), known=[mask, mask], n=3, **STEPS)
    changed = system.restore(torch.stack([third, other]), known=[mask, mask], n=1, batch_size=1, **STEPS)
    assert torch.equal(changed[1][0], both[1][0])
    assert torch.equal(system.restore(one[None], known=mask, n=3, batch_size=2, **STEPS)[0], both[0])


def test_a_prefix_is_completed() -> None:
    system, images = make(), random_images(2, 8, 8)
    drawn = system.complete(images, known="top:0.5", n=2, **STEPS)
    assert drawn.shape == (2, 2, 3, 8, 8)
    assert torch.equal(drawn[:, :, :, :4], images[:, None, :, :4].expand(-1, 2, -1, -1, -1))


def test_masks_that_do_not_fit_are_refused() -> None:
    system, images = make(), random_images(1, 8, 8)
    for mask in (random_mask(8, 7), random_mask(8, 8).float()):
        with pytest.raises((ShapeError, ConfigError), match="mask"):
            system.restore(images, known=mask)
    with pytest.raises(ConfigError, match="the mask of image 0 says that every pixel is known"):
        system.restore(images, known=torch.ones(8, 8, dtype=torch.bool))
    with pytest.raises(ConfigError, match="sampler = 'heun', but known pixels are kept by the ancestral sampler"):
        system.restore(images, known=random_mask(8, 8), sampler="heun")


# ---- from pictures


@pytest.mark.parametrize("size", [(8, 8), (9, 11), (13, 8)], ids=str)
@pytest.mark.parametrize("kind", ["model", "cascade", "chain"])
def test_pictures_of_any_size_are_enlarged(kind: str, size: tuple[int, int]) -> None:
    """A patch of 3 pixels and a factor of 2, the upscalers of a cascade alone, and an upscaler that has one."""
    factor = 2
    if kind == "model":
        system = make(6, task=SuperResolution(factor=2), patch=3)
    elif kind == "cascade":
        system = make(4, upscaled=True)
    else:
        system, factor = make(8, task=SuperResolution(factor=2), upscaled=True), 4
    image = random_images(1, *size)
    (found,) = system.upscale(image, n=2, **STEPS)
    assert found.shape == (2, 3, factor * size[0], factor * size[1])
    (other,) = system.upscale(255 - image, n=2, **STEPS)
    assert not torch.equal(found, other)
    assert torch.equal(system.upscale(torch.cat([image, 255 - image]), n=1, **STEPS)[0][0], found[0])


def test_grey_pictures_are_coloured_at_their_own_size() -> None:
    system = make(task=Colourise())
    image = random_images(1, 9, 11)
    (found,) = system.colourise(image, **STEPS)
    assert found.shape == (1, 3, 9, 11)


def test_variations_keep_to_the_image_as_far_as_the_strength_says() -> None:
    system, images = make(), random_images(2, 8, 8)
    drawn = system.vary(images, strength=0.5, n=2, **STEPS)
    assert drawn.shape == (2, 2, 3, 8, 8) and not torch.equal(drawn[0, 0], drawn[0, 1])
    assert torch.equal(system.vary(images[:1], strength=0.5, n=2, batch_size=1, **STEPS)[0], drawn[0])
    assert make(upscaled=True).vary(random_images(1, 16, 16), **STEPS).shape == (1, 1, 3, 16, 16)
    for strength in (0.0, 1.1, -1.0):
        with pytest.raises(ConfigError, match=rf"strength = {strength} must lie above 0"):
            system.vary(images, strength=strength)
    with pytest.raises(ConfigError, match="this one has a task. Use transform"):
        make(task=Inpaint()).vary(images)


def test_sources_of_the_models_size_are_drawn_from_with_all_that_is_told() -> None:
    system = make(task=SuperResolution(factor=2), text=BYTES)
    cond = system.with_text(Cond(source=random_images(2, 4, 4)), ["red", "blue"], 2)
    plain = system.draw_from(cond, n=2, seed=1, steps=2)
    assert plain.shape == (2, 2, 3, 8, 8)
    guided = system.draw_from(cond, n=2, seed=1, steps=2, guidance_scale=3.0)
    away = system.draw_from(cond, n=2, seed=1, steps=2, guidance_scale=3.0, negative="blue")
    assert not torch.equal(plain, guided) and not torch.equal(away, guided)
    assert torch.equal(system.draw_from(cond.rows(slice(1)), n=1, seed=1, steps=2)[0, 0], plain[0, 0])


def test_a_cascade_has_no_sources_of_one_size_to_draw_from() -> None:
    system = make(task=SuperResolution(factor=2), upscaled=True)
    with pytest.raises(ConfigError, match="this is a cascade. Use upscale"):
        system.draw_from(Cond(source=random_images(1, 4, 4)), n=1)
    with pytest.raises(ConfigError, match="cond has no source"):
        make(task=SuperResolution(factor=2)).draw_from(Cond(), n=1)


class Elsewhere(Tensor):
    """Stands for images on a GPU: besides what it looks like, they must be asked for their copy on the CPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func in (Tensor.cpu, Tensor.shape.__get__, Tensor.dtype.__get__, Tensor.__len__), f"{func} on a GPU"  # type: ignore[attr-defined]
        with torch._C.DisableTorchFunctionSubclass():
            return args[0].as_subclass(Tensor) if func is Tensor.cpu else func(*args, **(kwargs or {}))


def test_images_on_another_device_are_taken_to_where_results_are() -> None:
    system, images = make(), random_images(1, 8, 8)
    elsewhere = images.as_subclass(Elsewhere)
    assert torch.equal(system.complete(elsewhere, **STEPS), system.complete(images, **STEPS))
    assert torch.equal(system.vary(elsewhere, **STEPS), system.vary(images, **STEPS))


# ---- what is checked and copied before

CALLS: dict[str, Callable[..., Any]] = {
    "sample": lambda system, **how: system.sample(1, text="a", **how),
    "complete": lambda system, **how: system.complete(random_images(1, 16, 16), text="a", **how),
    "restore": lambda system, **how: system.restore(
        random_images(2, 18, 18), known=[random_mask(18, 18)] * 2, text="a", **how
    ),
    "vary": lambda system, **how: system.vary(random_images(1, 16, 16), text="a", **how),
    "upscale": lambda system, **how: system.upscale(random_images(1, 8, 8), text="a", **how),
}


@pytest.mark.parametrize("call", CALLS)
def test_options_are_checked_before_a_text_encoder_is_loaded(call: str) -> None:
    system = make(upscaled=True, text=NOWHERE, upscaler_text=NOWHERE)
    for how, message in (
        ({"steps": 0}, "steps = 0 is too few"),
        ({"top_k": 3}, "top_k = 3 has no meaning here"),
        ({"batch_size": 0}, "batch_size = 0 must be at least 1"),
        ({"precision": "float16"}, "precision = 'float16' is not known"),
    ):
        with pytest.raises(ConfigError, match=message):
            CALLS[call](system, **how)
    with pytest.raises(DataError, match="nowhere"):
        CALLS[call](system)


def test_networks_are_rounded_once_for_a_call_and_for_a_plan_without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    system, made, rounded = make(upscaled=True), list[str](), Imagen.to_bfloat16

    def counted(self: Imagen) -> Imagen:
        made.append(next(self.parameters()).device.type)
        return rounded(self)

    monkeypatch.setattr(Imagen, "to_bfloat16", counted)
    pictures = [Image.new("RGB", size) for size in ((16, 16), (20, 16), (16, 24))]  # none of them with another
    masks = [random_mask(picture.height, picture.width) for picture in pictures]
    system.restore(pictures, known=masks, precision="bfloat16", **STEPS)
    assert made == ["cpu", "cpu"], "one for each stage"
    made.clear()
    half, full = (system.plan_sampling(3, precision=precision) for precision in ("bfloat16", "float32"))
    assert made == ["meta", "meta"]
    assert 2 * half.shared_bytes == full.shared_bytes and half.bytes_per_image < full.bytes_per_image


# ---- classes of a cascade


def class_cascade(*, text: TextConfig | None = None, **changes: Any) -> System:
    """A base of five classes, perhaps with texts, and an upscaler of the classes alone."""
    classes = tuple("abcde")
    base = make(classes=classes, text=text)
    upscaler = make(16, patch=4, source_noise=1.0, task=SuperResolution(factor=2), classes=classes, **changes)
    return replace(base, upscalers=(upscaler,))


def labels_and_hidden(told: list[Told]) -> list[tuple[list[int], list[bool]]]:
    found = []
    for one in told:
        assert one.cond.label is not None
        hidden = [False] * len(one.cond.label) if one.cond.dropped is None else one.cond.dropped.tolist()
        found.append((one.cond.label.tolist(), hidden))
    return found


def test_an_upscaler_is_told_no_class_where_the_base_is_told_nothing() -> None:
    told = told_of(class_cascade(text=BYTES), None, ["a", None, "b"], 3, DrawingOptions(), draws_class=True)
    (classes, hidden), (others, others_hidden) = labels_and_hidden(told)
    assert hidden == others_hidden == [False, True, False]
    assert (classes[0], classes[2]) == (others[0], others[2]), "drawn for images that have a text"


@pytest.mark.parametrize("draws_class", [True, False])
def test_a_class_that_is_drawn_is_the_same_for_all_stages(draws_class: bool) -> None:
    told = told_of(class_cascade(), None, None, 20, DrawingOptions(seed=4), first=7, draws_class=draws_class)
    (classes, hidden), (others, others_hidden) = labels_and_hidden(told)
    assert hidden == others_hidden == [not draws_class] * 20
    if draws_class:
        assert classes == others and len(set(classes)) == 5


def test_a_class_that_is_given_is_told_to_all_stages() -> None:
    told = told_of(class_cascade(text=BYTES), ["b", 4, None], ["x", None, None], 3, DrawingOptions())
    (classes, hidden), (others, others_hidden) = labels_and_hidden(told)
    assert classes[:2] == others[:2] == [1, 4] and hidden == others_hidden == [False, False, True]


# ---- bits of images


def test_bits_of_images_are_those_given_their_captions() -> None:
    system = make(upscaled=True, text=BYTES, upscaler_text=BYTES)
    images, texts = random_images(2, 16, 16), ["red", "a blue one"]
    found = system.bits_per_dim(images, text=texts, batch_size=1)
    nats = system.image_nats(images, captions=texts)
    torch.testing.assert_close(found, nats / (3 * 16 * 16 * math.log(2)), rtol=1e-5, atol=0)
    nothing, empty = system.bits_per_dim(images), system.bits_per_dim(images, text="")
    assert torch.equal(nothing, system.bits_per_dim(images, text=[None, None]))
    torch.testing.assert_close(
        nothing, system.image_nats(images, captions=["", ""]) / (768 * math.log(2)), rtol=1e-5, atol=0
    )
    assert not torch.equal(nothing, empty) and not torch.equal(nothing, found)
    with pytest.raises(ConfigError, match="text was given, but this model was trained without captions"):
        make().bits_per_dim(random_images(1, 8, 8), text="red")
    with pytest.raises(ConfigError, match="text has 3 entries for 2 images"):
        system.bits_per_dim(images, text=["a", "b", "c"])


def test_bits_of_a_cascade_that_begins_from_sources_are_refused() -> None:
    system = make(task=SuperResolution(factor=2), upscaled=True)
    with pytest.raises(ConfigError, match="this cascade begins from source images"):
        system.bits_per_dim(random_images(1, 16, 16))


def test_a_cascade_says_all_its_weights() -> None:
    system = make(upscaled=True)
    counts = [sum(weight.numel() for weight in stage.model.parameters()) for stage in (system, *system.upscalers)]
    assert repr(system).startswith(f"System(imagen, 16x16, {sum(counts):,} parameters, ") and counts[1] > 0


# ---- progress and memory


@pytest.mark.parametrize("sampler", ["ancestral", "dpmpp_2m", "heun"])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_progress_ends_at_all_passes_of_all_images(sampler: Any, batch_size: int) -> None:
    system, told = make(upscaled=True), list[tuple[int, int]]()
    how: dict[str, Any] = {"steps": 3, "upscaler_steps": 2, "sampler": sampler, "batch_size": batch_size}
    plan = system.plan_sampling(3, **how)
    assert plan.positions == (8 if sampler == "heun" else 5) and plan.unit == "passes"
    shown: list[tuple[int, int]] = []
    system.sample(
        3, on_step=lambda *step: told.append(step), on_images=lambda k, images: shown.append((k, len(images))), **how
    )
    assert told == sorted(told) and told[-1] == (3 * plan.positions, 3 * plan.positions)
    assert {total for _, total in told} == {3 * plan.positions}
    assert sum(count for _, count in shown) == 3 and [k for k, _ in shown] == list(range(0, 3, batch_size))


def test_progress_and_results_of_pictures_are_told_one_after_the_other() -> None:
    system, told, shown = make(), list[tuple[int, int]](), list[tuple[int, int]]()
    system.restore(
        random_images(2, 9, 8), known=[random_mask(9, 8)] * 2, n=3, steps=2, resamplings=2, batch_size=2,
        on_step=lambda *step: told.append(step), on_images=lambda k, images: shown.append((k, len(images))),
    )  # fmt: skip
    assert told[-1] == (2 * 3 * 3, 2 * 3 * 3) and told == sorted(told) and shown == [(0, 3), (1, 3)]


@pytest.mark.parametrize(
    ("maker", "options"),
    [
        ({"config": UNET}, {"sampler": "heun"}),
        ({"config": UNET, "text": BYTES}, {"text": "red", "guidance_scale": 3.0, "sampler": "heun"}),
        ({"config": UNET, "text": BYTES}, {"text": "red", "guidance_scale": 3.0, "sampler": "ancestral"}),
        ({"text": BYTES}, {"text": "red", "guidance_scale": 3.0, "negative": "blue"}),
        ({"upscaled": True}, {}),
    ],
    ids=["unet", "unet guided", "unet guided ancestral", "dit guided", "cascade"],
)
def test_memory_of_drawing_is_not_above_the_plans(maker: dict[str, Any], options: dict[str, Any]) -> None:
    system, how = make(16, **maker), {"steps": 3, "batch_size": 3}
    said = {name: value for name, value in options.items() if name not in ("text", "negative")}
    plan = system.plan_sampling(3, **how, **said)
    system.sample(1, **how, **options)  # what is made once is there
    held = peak_bytes(lambda: system.sample(3, as_tensor=True, **how, **options))
    assert 0.3 * 3 * plan.bytes_per_image < held <= 3 * plan.bytes_per_image


def test_memory_of_filling_in_is_not_above_the_plans() -> None:
    system, images, mask = make(16), random_images(1, 16, 16), random_mask(16, 16)
    one = system.plan_sampling(1, is_filling=True, steps=3).bytes_per_image
    held = peak_bytes(lambda: system.restore(images, known=mask, n=3, steps=3, batch_size=3, as_tensor=True))
    assert 0.3 * 3 * one < held <= 3 * one


def test_a_batch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch_size = 10000000 takes .* MiB"):
        make().plan_sampling(10_000_000, batch_size=10_000_000)
