"""One list of all options of drawing: the same names everywhere, and every kind of model takes its own and refuses the others."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from typing import Any, get_type_hints

import pytest

from rasterformer.diffusion.image_options import ImageOptions
from rasterformer.drawing.code_images import CodeOptions
from rasterformer.drawing.options import DrawingArguments, DrawingOptions, TransformArguments, need_options
from rasterformer.errors import ConfigError
from rasterformer.interfaces import SampleOptions
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.image_transformer.config import Config as PixelConfig
from rasterformer.systems.imagen.config import Config
from rasterformer.systems.vq_diffusion.config import Config as DiffusionConfig
from rasterformer.systems.vqgan.config import Config as TokenizerConfig
from rasterformer.systems.vqgan_transformer.config import Config as PriorConfig
from rasterformer.tasks import SuperResolution
from rasterformer.tokenizer import Tokenizer

BYTES = TextConfig("bytes", dim=8, length=8)
GENERAL = {"seed", "batch_size", "precision", "on_step", "on_images"}
SYMBOLS = {"temperature", "top_k", "top_p"}
CODES = {"guidance_scale", "size", "window_stride"}
PIXELS = {field.name for field in fields(ImageOptions)}
TAKEN: dict[str, set[str]] = {
    "image_transformer": {"parallel"} | SYMBOLS,
    "vqgan_transformer": {"parallel"} | SYMBOLS | CODES,
    "vq_diffusion": SYMBOLS | CODES | {"steps", "order", "purity_weight"},
    "imagen": {"size", "negative"} | PIXELS,
}
# Of every option a value that is not the one it has when it is left out.
OTHER: dict[str, Any] = {
    "seed": 5, "batch_size": 2, "precision": "bfloat16", "parallel": True, "temperature": 0.5, "top_k": 3, "top_p": 0.5,
    "guidance_scale": 2.0, "size": (8, 16), "window_stride": 2, "steps": 3, "order": "random", "purity_weight": 1.0,
    "sampler": "ddim", "guidance_rescale": 0.5, "threshold": "none", "percentile": 90.0, "threshold_cap": 2.0,
    "variance": 0.5, "source_noise": 0.3, "upscaler_steps": 4, "upscaler_guidance_scale": 2.0, "resamplings": 2,
    "negative": "red", "on_step": lambda done, all_: None, "on_images": lambda first, images: None,
}  # fmt: skip


def imagen(
    side: int = 8, *, task: SuperResolution | None = None, text: TextConfig | None = BYTES, **changes: Any
) -> System:
    config = Config(
        **{"denoiser": "transformer", "width": 16, "depth": 1, "head_dim": 8, "mlp_width": 8, "text_width": 8} | changes
    )
    return System.create(Recipe("imagen", config, DataConfig(image_size=side), TrainingConfig(), task, text))


@cache
def system_of(name: str) -> System:
    """Of every kind a small one, which takes all that its kind may take."""
    small: dict[str, Any] = {"width": 16, "depth": 1, "num_heads": 2, "mlp_width": 16}
    if name == "imagen":
        upscaler = imagen(16, task=SuperResolution(factor=2), source_noise=1.0)
        return replace(imagen(), upscalers=(upscaler,))
    if name == "image_transformer":
        config: Any = PixelConfig(**small, block_length=16, memory_length=16)
        return System.create(Recipe(name, config, DataConfig(image_size=4), TrainingConfig()))
    tokenizer = TokenizerConfig(
        base_width=8, multipliers=(1, 1), res_blocks=1, attention_levels=(), middle_attention=False, z_channels=4,
        norm_groups=4, vocab_size=6, dim=4, perceptual="none", discriminator="none",
    )  # fmt: skip
    data, hides = DataConfig(image_size=8), {"drop_condition_prob": 0.1}
    made = Tokenizer.create(Recipe("vqgan", tokenizer, data, TrainingConfig()))
    kind = PriorConfig if name == "vqgan_transformer" else DiffusionConfig
    recipe = Recipe(name, kind(tokenizer="run", **small, **hides), data, TrainingConfig())
    return System.create(recipe, num_classes=2, tokenizers={"tokenizer": made})


def test_the_arguments_are_the_options_with_the_same_types() -> None:
    options, arguments = get_type_hints(DrawingOptions), get_type_hints(DrawingArguments)
    assert arguments == {field.name: options[field.name] for field in fields(DrawingOptions)}
    more = get_type_hints(TransformArguments)
    assert set(more) - set(arguments) == {"n", "label", "text", "tile", "overlap", "as_tensor"}
    assert DrawingArguments.__total__ is False and TransformArguments.__total__ is False


def test_every_option_has_another_value_in_this_test() -> None:
    assert set(OTHER) == {field.name for field in fields(DrawingOptions)}
    assert all(getattr(DrawingOptions(), name) != value for name, value in OTHER.items())


def test_the_parts_of_the_options_are_what_each_kind_of_model_reads() -> None:
    how = DrawingOptions(**OTHER)
    for part, kind in ((how.symbols, SampleOptions), (how.codes, CodeOptions), (how.pixels, ImageOptions)):
        assert type(part) is kind
        assert {field.name: getattr(part, field.name) for field in fields(kind)} == {
            field.name: OTHER[field.name] for field in fields(kind)
        }
    plain = DrawingOptions()
    assert (plain.symbols, plain.codes, plain.pixels) == (SampleOptions(), CodeOptions(), ImageOptions())


@pytest.mark.parametrize("option", OTHER)
@pytest.mark.parametrize("name", TAKEN)
def test_each_kind_takes_its_own_options_and_refuses_every_other(name: str, option: str) -> None:
    how = DrawingOptions(**{option: OTHER[option]})
    if option == "negative" and name == "imagen":
        how = replace(how, guidance_scale=2.0)
    if option in GENERAL | TAKEN[name]:
        need_options(system_of(name), how)
        return
    with pytest.raises(ConfigError, match=rf"^{option} = .* has no meaning here: this is a .*It takes ") as caught:
        need_options(system_of(name), how)
    said = str(caught.value).split("It takes ")[1].partition(";")[0].split(", ")
    assert set(said) == TAKEN[name]


@pytest.mark.parametrize("name", TAKEN)
def test_options_that_were_left_out_are_taken_by_all(name: str) -> None:
    need_options(system_of(name), DrawingOptions())


@pytest.mark.parametrize(
    ("system", "changes", "message"),
    [
        ({"drop_condition_prob": 0.0}, {"guidance_scale": 2.0}, r"guidance_scale = 2\.0 needs a model that has seen"),
        ({}, {"upscaler_steps": 4}, "upscaler_steps = 4 is for a cascade"),
        ({}, {"upscaler_guidance_scale": 2.0}, r"upscaler_guidance_scale = 2\.0 is for a cascade"),
        ({}, {"source_noise": 0.1}, r"source_noise = 0\.1 is for models of super-resolution that were trained with"),
        ({"text": None}, {"negative": "red", "guidance_scale": 2.0}, "negative = 'red' is a text, and this model was"),
        ({}, {"negative": ""}, "guidance_scale = 1 is no guidance"),
    ],
    ids=str,
)
def test_options_of_pixel_diffusion_without_what_they_are_for_are_refused(
    system: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        need_options(imagen(**system), DrawingOptions(**changes))


def test_guidance_of_upscalers_that_have_learned_none_is_refused() -> None:
    upscaler = imagen(16, task=SuperResolution(factor=2), text=None)
    with pytest.raises(ConfigError, match=r"upscaler_guidance_scale = 2\.0 needs upscalers that were trained with"):
        need_options(replace(imagen(), upscalers=(upscaler,)), DrawingOptions(upscaler_guidance_scale=2.0))


def test_noise_on_sources_is_for_an_upscaler_alone_too() -> None:
    need_options(imagen(16, task=SuperResolution(factor=2), source_noise=1.0), DrawingOptions(source_noise=0.3))


def test_more_noise_on_sources_than_was_learned_is_refused() -> None:
    system = imagen(16, task=SuperResolution(factor=2), source_noise=0.2)
    need_options(system, DrawingOptions(source_noise=0.2))
    with pytest.raises(ConfigError, match=r"source_noise = 0\.3 is more noise than .*at most 0\.2"):
        need_options(system, DrawingOptions(source_noise=0.3))
