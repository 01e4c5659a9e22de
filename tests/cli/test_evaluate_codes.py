"""`evaluate` of a diffusion model over codes: an upper bound, from as many levels of noise as are asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import rasterformer
from rasterformer.cli.main import main
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.system import LEVELS, System
from rasterformer.systems.vq_diffusion.config import Config
from rasterformer.systems.vqgan.config import Config as TokenizerConfig
from rasterformer.systems.vqgan_transformer.config import Config as PriorConfig
from rasterformer.tokenizer import Tokenizer

SIDE, USED = 8, [0, 2, 3, 6]
SMALL: dict[str, Any] = {"tokenizer": "run", "width": 16, "depth": 1, "num_heads": 2, "mlp_width": 16}


class Models(NamedTuple):
    """Folders of pictures and of untrained models: diffusion over 10 and over 40 levels, and an autoregressive one."""

    pictures: Path
    few: Path
    many: Path
    exact: Path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("models")
    found = Models(*(root / name for name in Models._fields))
    found.pictures.mkdir()
    rng = np.random.default_rng(0)
    for k in range(6):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(found.pictures / f"{k}.png")
    config = TokenizerConfig(
        base_width=8, multipliers=(1, 1), res_blocks=1, attention_levels=(), middle_attention=False, z_channels=4,
        norm_groups=4, vocab_size=8, dim=4, perceptual="none", discriminator="none",
    )  # fmt: skip
    data, training = DataConfig(path=str(found.pictures), image_size=SIDE, use_labels=False), TrainingConfig()
    tokenizers = {"tokenizer": Tokenizer.create(Recipe("vqgan", config, data, training))}
    for folder, num_steps in ((found.few, 10), (found.many, 40)):
        recipe = Recipe("vq_diffusion", Config(num_steps=num_steps, **SMALL), data, training)
        System.create(recipe, tokenizers=tokenizers, used_codes=torch.tensor(USED)).save(folder)
    System.create(Recipe("vqgan_transformer", PriorConfig(**SMALL), data, training), tokenizers=tokenizers).save(
        found.exact
    )
    return found


def run(*words: object) -> int:
    return main([str(word) for word in words])


def report_of(model: Path, file: Path, *options: object) -> dict[str, Any]:
    assert run("evaluate", model, "--split", "all", "--json", file, *options) == 0
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def test_the_report_is_of_an_upper_bound_at_the_levels_asked_for(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # so that no line is broken
    content = report_of(models.few, tmp_path / "report.json", "--levels", 3, "--batch-size", 4)
    assert (content["bound"], content["levels"], content["num_images"]) == ("upper", 3, 6)
    shown = capsys.readouterr().out
    of_codes = f"codes after replacement of {content['replaced_share']:.2%} of them"
    assert f"upper bound, estimated, on the negative log-likelihood of {of_codes}" in shown
    assert "3 levels of noise" in shown and "at most" not in shown
    system = rasterformer.load(models.few)
    images = torch.stack(
        [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in sorted(models.pictures.iterdir())]
    )
    assert content["nats_per_code"] == pytest.approx(float(system.code_nats(images, levels=3).mean()), rel=1e-5)
    assert system.tokenizer is not None
    own = system.tokenizer.encode(images)
    replaced = (~torch.isin(own, torch.tensor(USED))).double().mean()
    assert content["replaced_share"] == pytest.approx(float(replaced), abs=1e-9)


def test_levels_are_twenty_or_all_that_there_are(models: Models, tmp_path: Path) -> None:
    assert report_of(models.many, tmp_path / "many.json")["levels"] == LEVELS == 20
    assert report_of(models.few, tmp_path / "few.json")["levels"] == 10


def test_an_autoregressive_model_is_exact(models: Models, tmp_path: Path) -> None:
    content = report_of(models.exact, tmp_path / "report.json")
    assert (content["bound"], content["levels"], content["replaced_share"]) == ("exact", None, None)


@pytest.mark.parametrize(
    ("model", "levels", "message"),
    [
        ("exact", 5, "levels = 5, but this model's likelihood is exact and draws no noise"),
        ("few", 0, "levels = 0 must be at least 1"),
        ("few", 11, "levels = 11 leaves 1..10"),
    ],
)
def test_levels_that_the_model_has_not_are_refused(
    models: Models, model: str, levels: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run("evaluate", getattr(models, model), "--levels", levels) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error.startswith("error: ") and message in error
