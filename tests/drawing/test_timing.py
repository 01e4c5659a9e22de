"""How long diffusion of pixels will take: which passes are timed, and how they add up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from rasterformer.drawing.options import DrawingOptions
from rasterformer.drawing.timing import DrawingTime, time_drawing
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
    found = time_drawing(cascade, 3, DrawingOptions(**how), num_pictures=4, **more)[1]
    assert (found.passes, found.batches) == (passes, 4.0)
    assert found.seconds == pytest.approx(4 * sum(a * b for a, b in zip(found.seconds_per_pass, passes, strict=True)))
    assert min(found.seconds_per_pass) > 0


def test_a_timed_pass_is_one_of_drawing(cascade: System) -> None:
    """Of the planned batch, at the size of the stage; twice as many rows where it is guided."""
    seen: list[tuple[int, ...]] = []

    def note(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        seen.append(tuple(given[0].shape))

    hooks = [stage.model.register_forward_pre_hook(note) for stage in (cascade, *cascade.upscalers)]
    how = DrawingOptions(batch_size=3, guidance_scale=2.0, size=(12, 20))
    time_drawing(cascade, 7, how, text="a cat")
    for hook in hooks:
        hook.remove()
    assert seen == [(6, 3, 6, 10)] * 2 + [(3, 3, 12, 20)] * 2


def test_what_cannot_be_drawn_is_not_timed(cascade: System) -> None:
    with pytest.raises(ConfigError, match=r"guidance_scale = 2\.0 needs a text to be guided by"):
        time_drawing(cascade, 1, DrawingOptions(guidance_scale=2.0))
    with pytest.raises(ConfigError, match="steps = 0 is too few"):
        time_drawing(cascade, 1, DrawingOptions(steps=0))
