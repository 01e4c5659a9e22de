"""What a model says of itself in one line."""

import torch

from rasterformer.model_card import one_line
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.image_transformer.config import Config
from rasterformer.systems.vqgan.config import Config as TokenizerConfig
from rasterformer.tokenizer import Tokenizer


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
