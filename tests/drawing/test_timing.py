"""How long diffusion of pixels will take: which passes are timed, and how they add up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from rasterformer.drawing.options import DrawingOptions
from rasterformer.drawing.timing import DrawingTime, time_drawing, time_from_pictures
from rasterformer.errors import ConfigError
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.imagen.config import Config
from rasterformer.tasks import SuperResolution

BASE = Config(
    width=8, multipliers=(1, 1), res_blocks=(1, 1), attention_levels=(1,), norm_groups=4, head_dim=8, text_width=8
)


@pytest.fixture(scope="module")
def cascade() -> System:
    """8x8 -> 16x16, untrained."""
    recipe = Recipe(
        "imagen", BASE, DataConfig(image_size=8), TrainingConfig(), text=TextConfig("bytes", dim=8, length=8)
    )
    config = replace(BASE, denoiser="efficient_unet", source_noise=1.0)
    larger = replace(recipe, model=config, data=DataConfig(image_size=16), task=SuperResolution(2))
    return replace(System.create(recipe), upscalers=(System.create(larger),))


def test_passes_and_batches_are_multiplied() -> None:
    """2.5 batches of 10 passes of half a second and 4 of two seconds: 2.5 (5 + 8)."""
    found = DrawingTime((0.5, 2.0), (10, 4), 2.5)
    assert found.seconds == 32.5
    assert str(found) == "about 32 s (measured: 0.50 s a pass of the base model, 2.0 s a pass of upscaler 1)"
    assert str(DrawingTime((0.0311,), (100,), 1.0)) == "about 3.1 s (measured: 0.031 s a pass)"
    assert str(DrawingTime((0.65,), (50,), 4.0, 1)) == "about 2 min 10 s (measured: 0.65 s a pass of upscaler 1)"
    assert str(DrawingTime((0.65,), (50,), 4.0)) == "about 2 min 10 s (measured: 0.65 s a pass)"


def test_the_second_pass_of_each_stage_is_timed(cascade: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which the four passes take 100, 3, 200 and 7 seconds."""

    def clock() -> Iterator[float]:
        now = 0.0
        for taken in (100.0, 3.0, 200.0, 7.0):
            yield now
            now += taken
            yield now

    ticks = clock()
    monkeypatch.setattr("rasterformer.drawing.timing.time.perf_counter", lambda: next(ticks))
    plan, found = time_drawing(cascade, 5, DrawingOptions(batch_size=2, steps=10, upscaler_steps=4))
    assert (plan.num_images, plan.batch_size, plan.positions) == (5, 2, 14)
    assert found == DrawingTime((3.0, 7.0), (10, 4), 2.5)
    assert next(ticks, None) is None


@pytest.mark.parametrize(
    ("how", "more", "passes"),
    [
        ({"steps": 10}, {}, (10, 10)),
        ({"steps": 10, "sampler": "heun", "upscaler_steps": 3}, {}, (19, 5)),
        ({"steps": 10, "resamplings": 3}, {"is_filling": True}, (28, 28)),
    ],
)
def test_passes_are_counted_as_they_are_drawn(
    cascade: System, how: dict[str, Any], more: dict[str, Any], passes: tuple[int, int]
) -> None:
    plan, found = time_drawing(cascade, 12, DrawingOptions(batch_size=3, **how), **more)
    assert (plan.num_images, plan.batch_size, plan.positions) == (12, 3, sum(passes))
    assert (found.passes, found.batches) == (passes, 4.0)
    assert found.seconds == pytest.approx(4 * sum(a * b for a, b in zip(found.seconds_per_pass, passes, strict=True)))
    assert min(found.seconds_per_pass) > 0


def shapes_seen(system: System, draw: Callable[[], object]) -> list[tuple[int, ...]]:
    """Of the noisy images that the networks of all stages are given."""
    seen: list[tuple[int, ...]] = []

    def note(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        seen.append(tuple(given[0].shape))

    hooks = [stage.model.register_forward_pre_hook(note) for stage in (system, *system.upscalers)]
    draw()
    for hook in hooks:
        hook.remove()
    return seen


PICTURES = [torch.zeros(3, *size, dtype=torch.uint8) for size in ((16, 16), (16, 16), (17, 23))]
KNOWN = [torch.arange(picture[0].numel()).view(picture.shape[1:]) > 9 for picture in PICTURES]


@pytest.mark.parametrize(
    ("arguments", "counts", "sizes", "passes"),
    [
        ({"known": KNOWN}, [4, 2], [(16, 16), (20, 24)], (4, 4)),
        ({"strength": 0.3}, [6], [(16, 16)], (2, 2)),
        ({"upscalers_alone": True}, [4, 2], [(32, 32), (36, 48)], (2,)),
    ],
    ids=["restore", "vary", "upscale"],
)
def test_what_is_planned_and_timed_from_pictures_is_what_is_drawn(
    cascade: System, arguments: dict[str, Any], counts: list[int], sizes: list[tuple[int, int]], passes: tuple[int, ...]
) -> None:
    """Two results each: neighbours of one size together, two passes of each group and stage, of as many rows."""
    how: dict[str, Any] = {"steps": 2, "resamplings": 3 if "known" in arguments else 1}
    pictures = [picture[:, :16, :16] for picture in PICTURES] if "strength" in arguments else PICTURES
    timed: list[Any] = []
    first = int("upscalers_alone" in arguments)
    seen = shapes_seen(
        cascade, lambda: timed.extend(time_from_pictures(cascade, pictures, 2, DrawingOptions(**how), **arguments))
    )
    expected = [(count, size) for count, size in zip(counts, sizes, strict=True) for _ in range(2)]
    assert [(plan.num_images, plan.batch_size) for plan, _ in timed] == [(count, count) for count in counts]
    assert [(shape[0], shape[2:]) for shape in seen if shape[2] >= 16] == expected
    assert len(seen) == (2 if first else 4) * len(counts)
    assert all((found.passes, found.batches, found.first_stage) == (passes, 1.0, first) for _, found in timed)
    known, strength = arguments.get("known"), arguments.get("strength")
    images = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]

    def draw() -> None:
        if known is not None:
            cascade.restore(images, known=known, n=2, **how)
        elif strength is not None:
            cascade.vary(images, strength=strength, n=2, **how)
        else:
            cascade.upscale(images, n=2, **how)

    drawn = shapes_seen(cascade, draw)
    assert set(drawn) == set(seen), "of the same sizes and batches"
    assert len(drawn) == sum(plan.positions for plan, _ in timed)


def test_what_is_planned_for_completions_is_what_is_drawn(cascade: System) -> None:
    """Three pictures, two of each: all six at a time."""
    how: dict[str, Any] = {"steps": 2, "resamplings": 2}
    plan, _ = time_drawing(cascade, 6, DrawingOptions(**how), is_filling=True)
    assert cascade.plan_sampling(6, is_filling=True, **how).batch_size == plan.batch_size == 6
    assert cascade.plan_sampling(6, is_filling=True, **how).positions == plan.positions == 6
    images = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    drawn = shapes_seen(cascade, lambda: cascade.complete(images, n=2, **how))
    assert {shape[0] for shape in drawn} == {6} and len(drawn) == plan.positions


def test_pictures_that_are_not_drawn_are_not_timed(cascade: System) -> None:
    for arguments, message in (
        ({"tile": False}, "is larger than the model's 16x16"),
        ({"overlap": 3}, "overlap = 3 is for models that draw pixel by pixel"),
    ):
        with pytest.raises(ConfigError, match=message):
            time_from_pictures(cascade, PICTURES, 1, DrawingOptions(), known=KNOWN, **arguments)


def test_a_timed_pass_is_one_of_drawing(cascade: System) -> None:
    """Of the planned batch, at the size of the stage; twice as many rows where it is guided."""
    how = DrawingOptions(batch_size=3, guidance_scale=2.0, size=(12, 20))
    seen = shapes_seen(cascade, lambda: time_drawing(cascade, 7, how, text="a cat"))
    assert seen == [(6, 3, 6, 10)] * 2 + [(3, 3, 12, 20)] * 2


def test_what_cannot_be_drawn_is_not_timed(cascade: System) -> None:
    with pytest.raises(ConfigError, match=r"guidance_scale = 2\.0 needs a text to be guided by"):
        time_drawing(cascade, 1, DrawingOptions(guidance_scale=2.0))
    with pytest.raises(ConfigError, match="steps = 0 is too few"):
        time_drawing(cascade, 1, DrawingOptions(steps=0))
