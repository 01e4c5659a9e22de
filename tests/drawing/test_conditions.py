"""What upscalers of pixels are told where nothing is said: the null that they have learned, beside the source that they see."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rasterformer.autoregressive.noise import stream_seed
from rasterformer.diffusion.image_denoiser import ImageDenoiser
from rasterformer.diffusion.image_options import ImageOptions
from rasterformer.drawing.conditions import cond_of, with_text
from rasterformer.drawing.stages import Told, draw_stage, stage_generators
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Cond
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.imagen.config import Config
from rasterformer.tasks import SuperResolution

SIDE, FACTOR = 8, 2
BYTES = TextConfig("bytes", dim=6, length=12)
CLASSES = ("cat", "dog")


def make(*, text: TextConfig | None = BYTES, classes: tuple[str, ...] = (), **changes: Any) -> System:
    """An untrained upscaler, with weights so large that everything matters."""
    config = Config(
        denoiser="transformer", width=8, depth=1, head_dim=8, mlp_width=8, text_width=8, source_noise=1.0, **changes
    )
    recipe = Recipe("imagen", config, DataConfig(image_size=SIDE), TrainingConfig(), SuperResolution(FACTOR), text)
    system = System.create(recipe, class_names=classes)
    torch.manual_seed(1)
    for weight in system.model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    system.model.eval()
    return system


def random_pictures(count: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, SIDE // FACTOR, SIDE // FACTOR), generator=rng, dtype=torch.uint8)


def dropped(cond: Cond) -> list[bool] | None:
    return None if cond.dropped is None else cond.dropped.tolist()


def test_nothing_is_said_by_the_null_and_an_empty_text_is_a_text() -> None:
    system = make()
    assert dropped(cond_of(system, None, 3, 0, text=["a", None, ""])) == [False, True, False]
    assert dropped(cond_of(system, None, 2, 0, text="a")) is None


def test_an_upscaler_enlarges_by_the_null_what_it_sees() -> None:
    """No text is another condition than an empty one; what is hidden does not matter, and the source does."""
    system = make()
    one, other = random_pictures(2).split(1)
    (of_nothing, of_empty) = (system.upscale(one, text=text, seed=5, steps=2, as_tensor=True)[0] for text in (None, ""))
    (of_other,) = system.upscale(other, seed=5, steps=2, as_tensor=True)
    assert not torch.equal(of_nothing, of_empty) and not torch.equal(of_nothing, of_other)
    size, options, rng = (SIDE, SIDE), ImageOptions(steps=2), stage_generators([(stream_seed(5, "picture", 0), 0)], 0)
    hidden = replace(with_text(system, Cond(source=one), "something else", 1), dropped=torch.tensor([True]))
    assert isinstance(system.model, ImageDenoiser)
    assert torch.equal(draw_stage(system.model, Told(hidden), size=size, options=options, rng=rng), of_nothing)


def test_images_without_a_caption_are_hidden_in_training_too_and_keep_their_sources() -> None:
    system = make()
    cond = system.with_captions(Cond(source=random_pictures(3)), ["a", "", "b"])
    assert dropped(cond) == [False, True, False] and cond.source is not None
    assert dropped(with_text(system, Cond(), ["a", None], 2)) == [False, True]


def test_a_class_that_is_given_is_not_hidden_with_a_missing_text() -> None:
    system = make(classes=CLASSES)
    assert dropped(cond_of(system, ["cat", None, None], 3, 0, text=[None, "a", None])) == [False, False, True]
    cond = with_text(system, Cond(label=torch.tensor([0, 1])), [None, "a"], 2)
    assert dropped(cond) in (None, [False, False])


def test_an_upscaler_of_classes_alone_draws_by_the_null_where_none_is_given() -> None:
    system = make(text=None, classes=CLASSES)
    assert dropped(cond_of(system, ["dog", None], 2, 0)) == [False, True]
    with pytest.raises(ConfigError, match=r"guidance_scale = 2\.0 needs a class to be guided by, but image 1 has none"):
        cond_of(system, ["dog", None], 2, 0, guidance_scale=2.0)


def test_an_upscaler_that_has_learned_no_null_reads_an_empty_text() -> None:
    system = make(drop_condition_prob=0.0)
    nothing, empty = (cond_of(system, None, 1, 0, text=text) for text in (None, ""))
    assert nothing.dropped is None and empty.dropped is None
    assert nothing.text_tokens is not None and empty.text_tokens is not None
    assert torch.equal(nothing.text_tokens, empty.text_tokens)


def test_guidance_of_an_upscaler_needs_a_text() -> None:
    system = make()
    message = r"guidance_scale = 3\.0 needs a text to be guided by, but image 0 has none"
    with pytest.raises(ConfigError, match=message):
        system.upscale(random_pictures(1), guidance_scale=3.0, steps=2)
    (drawn,) = system.upscale(random_pictures(1), text="a", guidance_scale=3.0, steps=2, as_tensor=True)
    assert drawn.shape[-2:] == (SIDE, SIDE)
