"""A text encoder's folder that has moved since the training: every command that reads texts can be told where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rasterformer.cli.main import main
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.vq_diffusion.config import Config
from rasterformer.systems.vqgan.config import Config as TokenizerConfig
from rasterformer.tokenizer import Tokenizer

SIDE = 8
SMALL: dict[str, Any] = {"tokenizer": "run", "num_steps": 3, "width": 16, "depth": 1, "num_heads": 2, "mlp_width": 16}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two untrained models, `folder` (reads texts by a folder that is gone) and `bytes`, and pictures with captions."""
    made = tmp_path_factory.mktemp("models")
    (made / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for k in range(3):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(made / "pictures" / f"{k}.png")
        (made / "pictures" / f"{k}.txt").write_text("a cat", encoding="utf-8")
    config = TokenizerConfig(
        base_width=8, multipliers=(1, 1), res_blocks=1, attention_levels=(), middle_attention=False, z_channels=4,
        norm_groups=4, vocab_size=8, dim=4, perceptual="none", discriminator="none",
    )  # fmt: skip
    data, training = DataConfig(path=str(made / "pictures"), image_size=SIDE), TrainingConfig()
    tokenizers = {"tokenizer": Tokenizer.create(Recipe("vqgan", config, data, training))}
    for text in (TextConfig("folder", "gone", dim=12), TextConfig("bytes", dim=12, length=16)):
        recipe = Recipe("vq_diffusion", Config(**SMALL), data, training, text=text)
        System.create(recipe, tokenizers=tokenizers, used_codes=torch.arange(8)).save(made / text.encoder)
    return made


COMMANDS = {
    "sample": ["--text", "a cat", "-n", "1"],
    "complete": ["PICTURE", "--text", "a cat"],
    "restore": ["PICTURE", "--text", "a cat", "--rectangle", "0", "0", "4", "4"],
    "vary": ["PICTURE", "--text", "a cat"],
    "evaluate": ["--split", "all"],
}


def error_of(root: Path, command: str, model: str, *more: str, capsys: pytest.CaptureFixture[str]) -> str:
    words = [str(root / "pictures" / "0.png") if word == "PICTURE" else word for word in COMMANDS[command]]
    assert main([command, str(root / model), *words, *more]) == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_the_folder_is_looked_for_where_the_option_says(
    command: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = error_of(root, command, "folder", capsys=capsys)
    assert "text.folder = 'gone': there is no such folder" in error and "--text-folder" in error
    error = error_of(root, command, "folder", "--text-folder", "elsewhere", capsys=capsys)
    assert "text.folder = 'elsewhere': there is no such folder" in error


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_that_reads_no_folder_refuses_the_option(
    command: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = error_of(root, command, "bytes", "--text-folder", "elsewhere", capsys=capsys)
    assert "text_folder = 'elsewhere'" in error and "reads texts by no folder" in error
