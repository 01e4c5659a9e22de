"""What a model says of itself, in one line and in its README.md."""

from dataclasses import replace
from typing import Any

import torch

from rasterformer.model_card import model_card, one_line
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.recipe_file import recipe_hash
from rasterformer.system import System
from rasterformer.systems.image_transformer.config import Config
from rasterformer.systems.imagen.config import Config as ImagenConfig
from rasterformer.systems.vqgan.config import Config as TokenizerConfig
from rasterformer.tasks import Inpaint, SuperResolution, Task
from rasterformer.tokenizer import Tokenizer

SMALL: dict[str, Any] = {
    "width": 8, "multipliers": (1, 1), "res_blocks": (1, 1), "attention_levels": (1,), "norm_groups": 4, "head_dim": 8,
    "text_width": 8,
}  # fmt: skip


def test_a_line_names_kind_size_weights_steps_and_origin() -> None:
    network = torch.nn.Linear(1000, 2)  # and 2 of bias
    line = one_line("System", "toy", 8, network, steps=12_000, origin="runs/a")
    assert line == "System(toy, 8x8, 2,002 parameters, 12,000 steps, from runs/a)"


def test_a_system_is_shown_as_one_line() -> None:
    config = Config(width=8, depth=1, num_heads=2, mlp_width=8, block_length=16)
    system = System.create(Recipe("image_transformer", config, DataConfig(image_size=4), TrainingConfig()))
    system.steps, system.origin = 7, "runs/b"
    weights = sum(weight.numel() for weight in system.model.parameters())
    assert (
        repr(system) == str(system) == f"System(image_transformer, 4x4, {weights:,} parameters, 7 steps, from runs/b)"
    )


def test_a_tokenizer_is_shown_as_one_line() -> None:
    config = TokenizerConfig(
        base_width=8, multipliers=(1, 1), res_blocks=1, attention_levels=(), middle_attention=False, z_channels=4,
        norm_groups=4, vocab_size=8, dim=4, perceptual="none", discriminator="none"
    )  # fmt: skip
    tokenizer = Tokenizer.create(Recipe("vqgan", config, DataConfig(image_size=8), TrainingConfig()))
    weights = sum(weight.numel() for weight in tokenizer.autoencoder.parameters())
    assert repr(tokenizer) == f"Tokenizer(vqgan, 8x8, {weights:,} parameters, 0 steps, from new)"


def stage(size: int, task: Task | None = None, *, has_text: bool = True) -> System:
    data = DataConfig(path=f"pictures of {size}", image_size=size)
    text = TextConfig(encoder="bytes", length=8, dim=8) if has_text else None
    return System.create(Recipe("imagen", ImagenConfig(**SMALL), data, TrainingConfig(), task=task, text=text))


def weights_of(system: System) -> str:
    return f"{sum(weight.numel() for weight in system.model.parameters()):,}"


def test_the_card_of_a_cascade_names_every_stage_and_says_that_its_likelihood_is_a_bound() -> None:
    base, upscaler = stage(4), stage(8, SuperResolution(2), has_text=False)
    base.steps, upscaler.steps, base.trained_on_text = 1200, 90, "utf-8 bytes 1"
    card = model_card(replace(base, upscalers=(upscaler,)))
    assert card.startswith("# imagen, 8x8\n")
    for line in (
        f"- stage 1 of 2, 4x4: {weights_of(base)} parameters, 1,200 optimiser steps, recipe {recipe_hash(base.recipe)}\n",
        "- stage 1 of 2, 4x4: trained on: pictures of 4, with captions, read by bytes (utf-8 bytes 1)\n",
        f"- stage 2 of 2, 8x8: {weights_of(upscaler)} parameters, 90 optimiser steps, recipe {recipe_hash(upscaler.recipe)}\n",
        "- stage 2 of 2, 8x8: trained on: pictures of 8\n",
        "- likelihood: an upper bound, over 192 dimensions, the sum of 2 stages; `rasterformer evaluate` estimates it.",
        'model.sample(16, text="words", seed=0)\n',
    ):
        assert line in card
    assert "exact" not in card


def test_the_card_of_a_stage_alone_names_its_task_and_how_it_is_used() -> None:
    card = model_card(stage(8, SuperResolution(2)))
    assert (
        "- likelihood: an upper bound, given the source (task super_resolution), over 192 dimensions; `rasterf" in card
    )
    assert 'model.transform(pictures, text="words", n=4, seed=0)' in card and "stage" not in card
    assert "trained on: pictures of 8, with captions, read by bytes (not trained yet)\n" in card
    assert "model.transform(pictures, known=masks, n=4, seed=0)" in model_card(stage(8, Inpaint(), has_text=False))
