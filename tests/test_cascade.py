"""A cascade: stages that were trained one by one, joined, saved as one folder, and loaded again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rasterformer
from rasterformer.cascade import join
from rasterformer.checkpoint import save_model_folder
from rasterformer.diffusion.image_options import ImageOptions
from rasterformer.drawing.stages import Told, draw_stage, stage_generators
from rasterformer.errors import CheckpointError, ConfigError
from rasterformer.interfaces import Cond
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.recipe_file import load_recipe
from rasterformer.system import System
from rasterformer.systems.imagen.config import Config
from rasterformer.tasks import Colourise, SuperResolution, Task

SMALL = Config(
    width=8, multipliers=(1, 2), res_blocks=(1, 1), attention_levels=(1,), norm_groups=2, head_dim=8, text_width=8
)
EFFICIENT = replace(SMALL, denoiser="efficient_unet", attention_levels=Config().attention_levels, source_noise=1.0)
BYTES = TextConfig("bytes", dim=6, length=12)
ELSEWHERE = TextConfig("folder", folder="where/it/lay", dim=6, length=12)
STEPS = 2


def make(
    size: int,
    *,
    task: Task | None = None,
    text: TextConfig | None = None,
    classes: tuple[str, ...] = (),
    seed: int = 0,
    name: str = "new",
    **data: Any,
) -> System:
    """Untrained, with weights that are all random: what it draws depends on everything."""
    config = EFFICIENT if isinstance(task, SuperResolution) else SMALL
    recipe = Recipe("imagen", config, DataConfig(image_size=size, **data), TrainingConfig(seed=seed), task, text)
    system = System.create(recipe, class_names=classes)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in system.model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=rng))
    system.model.eval()
    system.origin, system.steps = name, 10 * size
    return system


def upscaler(
    size: int,
    *,
    text: TextConfig | None = None,
    classes: tuple[str, ...] = (),
    name: str = "new",
    seed: int = 1,
    **data: Any,
) -> System:
    """Of images of half of the size."""
    return make(size, task=SuperResolution(2), text=text, classes=classes, name=name, seed=seed, **data)


def test_a_cascade_draws_what_its_upscalers_make_of_what_its_base_draws() -> None:
    base, second, third = make(4), upscaler(8), upscaler(16, seed=2)
    joined = join(base, [second, third])
    assert joined.image_shape == (3, 16, 16) and base.upscalers == ()
    assert joined.model is base.model and [one.model for one in joined.upscalers] == [second.model, third.model]
    drawn = joined.sample(2, seed=3, steps=STEPS, as_tensor=True)
    small = base.sample(2, seed=3, steps=STEPS, as_tensor=True)  # uint8 [2, 3, 4, 4]
    options = ImageOptions(steps=STEPS)
    for number, stage in enumerate((second, third), start=1):
        told, rng = Told(Cond(source=small)), stage_generators([(3, 0), (3, 1)], number)
        small = draw_stage(stage.model, told, size=stage.image_shape[1:], options=options, rng=rng)  # type: ignore[arg-type]
    assert torch.equal(drawn, small)


def test_stages_of_cascades_count_one_by_one() -> None:
    base, second, third = make(4), upscaler(8), upscaler(16, seed=2)
    at_once = join(base, [second, third]).sample(1, steps=STEPS, as_tensor=True)
    later = join(join(base, [second]), [third])
    earlier = join(base, [join(second, [third])])
    for joined in (later, earlier):
        assert [one.upscalers for one in joined.upscalers] == [(), ()]
        assert torch.equal(joined.sample(1, steps=STEPS, as_tensor=True), at_once)


def test_upscalers_alone_make_an_upscaler() -> None:
    joined = join(upscaler(8), [upscaler(16, seed=2)])
    picture = torch.randint(256, (1, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (drawn,) = joined.upscale(picture, steps=STEPS, as_tensor=True)
    assert drawn.shape == (1, 3, 16, 16)
    with pytest.raises(ConfigError, match="needs a source"):
        joined.sample(1)


PIXELS = load_recipe("tiny")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([make(4)], "There is no upscaler. Give at least one model of the task super_resolution"),
        (
            [make(4, name="a"), upscaler(16, name="b")],
            "b enlarges images of 8x8 pixels, but a, which is before it, draws 4x4",
        ),
        (
            [make(4, name="a"), upscaler(16, name="b"), upscaler(8, name="c")],
            "(?s)b enlarges images of 8x8 .*c enlarges images of 4x4 pixels, but b, which is before it, draws 16x16",
        ),
        ([make(4), make(8, name="b")], "b is of system imagen with no task; an upscaler is"),
        ([make(4), make(8, task=Colourise(), name="b")], "b is of system imagen with the task colourise; an upscaler"),
        (
            [make(4, task=Colourise(), name="a"), upscaler(8)],
            "a has the task colourise; the first stage draws from nothing",
        ),
        (
            [System.create(PIXELS), upscaler(2 * PIXELS.data.image_size)],
            "new is of system image_transformer; the first stage is a diffusion model of pixels",
        ),
        (
            [make(4, name="a"), upscaler(8, classes=("cat", "dog"), name="b")],
            "b knows the 2 classes cat, dog, but a knows no classes",
        ),
        (
            [make(4, classes=("dog", "cat"), name="a"), upscaler(8, classes=("cat", "dog"), name="b")],
            "b knows the 2 classes cat, dog, but a knows the 2 classes dog, cat. Both must know the same",
        ),
        (
            [make(4, name="a"), upscaler(8, fit="stretch", trim=(1, 0), name="b")],
            r"(?s)b was trained with data\.fit = 'stretch', but a with 'crop'.*data\.trim = \(1, 0\), but a with \(0, 0\)",
        ),
    ],
)
def test_what_does_not_fit_is_said(stages: list[System], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        join(stages[0], stages[1:])


def test_stages_of_images_that_were_reduced_in_other_ways_are_joined_with_a_warning() -> None:
    base, same, other = make(4, name="a"), upscaler(8, name="b"), upscaler(16, seed=2, name="c", reduction="area")
    with pytest.warns(UserWarning, match=r"^c was trained with data\.reduction = 'area', but a with 'auto'") as said:
        joined = join(base, [same, other])
    assert len(said) == 1 and [one.model for one in joined.upscalers] == [same.model, other.model]


def test_an_upscaler_without_classes_or_texts_enlarges_for_all() -> None:
    joined = join(make(4, classes=("cat", "dog"), text=BYTES), [upscaler(8), upscaler(16, classes=("cat", "dog"))])
    drawn = joined.sample(2, label=["cat", "dog"], text="a", steps=STEPS, as_tensor=True)
    assert drawn.shape == (2, 3, 16, 16)


def test_a_saved_cascade_is_loaded_with_all_of_its_stages(tmp_path: Path) -> None:
    texts = {"text": BYTES, "classes": ("cat", "dog")}
    joined = join(make(4, **texts), [upscaler(8, **texts), upscaler(16, seed=2)])  # type: ignore[arg-type]
    how = {"label": "dog", "text": "red", "seed": 1, "steps": STEPS, "as_tensor": True}
    drawn = joined.sample(2, **how)  # type: ignore[arg-type]
    joined.save(tmp_path / "run" / "model")
    for place in (tmp_path / "run" / "model", tmp_path / "run"):
        loaded = rasterformer.load(place)
        assert torch.equal(loaded.sample(2, **how), drawn)  # type: ignore[arg-type]
    stages = [loaded, *loaded.upscalers]
    assert [stage.recipe for stage in stages] == [stage.recipe for stage in (joined, *joined.upscalers)]
    assert [stage.steps for stage in stages] == [40, 80, 160]
    assert [stage.class_names for stage in stages] == [("cat", "dog"), ("cat", "dog"), ()]
    fingerprint = joined.trained_on_text
    assert fingerprint is not None and [stage.trained_on_text for stage in stages] == [fingerprint, fingerprint, None]
    assert not any(module.training for stage in stages for module in stage.model.modules())
    again = tmp_path / "again"
    loaded.save(again)
    assert (again / "config.json").read_bytes() == (tmp_path / "run" / "model" / "config.json").read_bytes()


def test_an_upscaler_that_was_trained_with_another_text_encoder_is_refused(tmp_path: Path) -> None:
    joined = join(make(4, text=BYTES), [upscaler(8, text=BYTES, seed=2)])
    joined.upscalers[0].trained_on_text = "another"
    joined.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="trained with text encoder another"):
        rasterformer.load(tmp_path / "model").sample(1, text="red", steps=STEPS)


def test_the_folder_of_a_text_encoder_is_set_for_all_stages_that_read_by_one(tmp_path: Path) -> None:
    joined = join(make(4, text=BYTES), [upscaler(8, text=ELSEWHERE), upscaler(16, text=ELSEWHERE, seed=2)])
    joined.save(tmp_path / "model")
    loaded = rasterformer.load(tmp_path / "model", text_folder="here")
    texts = [stage.recipe.text for stage in (loaded, *loaded.upscalers)]
    assert texts == [BYTES, replace(ELSEWHERE, folder="here"), replace(ELSEWHERE, folder="here")]
    join(make(4, text=BYTES), [upscaler(8)]).save(tmp_path / "bytes")
    with pytest.raises(ConfigError, match="text_folder = 'here': .*bytes reads texts by no folder"):
        rasterformer.load(tmp_path / "bytes", text_folder="here")


def test_a_folder_without_the_weights_of_an_upscaler_is_refused(tmp_path: Path) -> None:
    joined = join(make(4), [upscaler(8)])
    save_model_folder(tmp_path / "model", config=joined.config(), state=joined.model.state_dict(), card="")
    with pytest.raises(CheckpointError, match=r"model, upscaler_1: the weights do not fit the recipe: .* is missing"):
        rasterformer.load(tmp_path / "model")
