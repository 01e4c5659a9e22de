"""`evaluate` of diffusion models of pixels: an upper bound, beside the exact likelihood of another model on the same images."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rasterformer
from rasterformer.cli.main import main
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.recipe_file import load_recipe
from rasterformer.recipe_images import open_recipe_images
from rasterformer.system import LEVELS, System
from rasterformer.systems.imagen.config import Config
from rasterformer.tasks import SuperResolution, Task

SIDE, SCORED = 12, 3  # pixels, the window of SSIM has 11; images
SMALL: dict[str, Any] = {
    "width": 8, "multipliers": (1,), "res_blocks": (1,), "attention_levels": (), "norm_groups": 4, "head_dim": 8,
    "text_width": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained models: exact; of one stage; a cascade; its upscaler alone. All of a folder of noise, each with its caption."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "images").mkdir()
    for k in range(12):
        values = np.random.default_rng(k).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / "images" / f"{k}.png")
        (folder / "images" / f"{k}.txt").write_text(f"picture {k}", encoding="utf-8")
    path = str(folder / "images")
    words = [("data.path", path), ("data.image_size", str(SIDE)), ("data.holdout_fraction", "0.4")]
    System.create(load_recipe("tiny", words)).save(folder / "exact")

    def stage(size: int, task: Task | None) -> System:
        data = DataConfig(path=path, image_size=size, holdout_fraction=0.4)
        text = TextConfig(encoder="bytes", length=12, dim=8)
        recipe = Recipe(
            "imagen", Config(**SMALL, source_noise=float(task is not None)), data, TrainingConfig(), task=task, text=text
        )
        return System.create(recipe)

    upscaler = stage(SIDE, SuperResolution(3))
    stage(SIDE, None).save(folder / "single")
    replace(stage(4, None), upscalers=(upscaler,)).save(folder / "cascade")
    upscaler.save(folder / "upscaler")
    return {name: folder / name for name in ("exact", "single", "cascade", "upscaler")}


def run(*words: object) -> int:
    return main([str(word) for word in words])


def report_of(model: Path, file: Path, *options: object) -> dict[str, Any]:
    assert run("evaluate", model, "--limit", SCORED, "--json", file, *options) == 0
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def bits(model: Path, levels: int) -> float:
    """Upper bound of the first held-out images, one by one, each with its caption."""
    system = rasterformer.load(model)
    recipe = (system.upscalers[-1] if system.upscalers else system).recipe
    held_out, nats = open_recipe_images(recipe, "test"), 0.0
    for k in torch.arange(SCORED).split(1):
        batch = system.with_source(held_out.batch(k, use_labels=False), first=int(k), purpose="held-out source", seed=0)
        captions = held_out.captions_of(k)
        nats += float(system.image_nats(batch.images, batch.cond, captions=captions, levels=levels))
    return nats / (SCORED * 3 * SIDE**2 * math.log(2))


@pytest.mark.parametrize(
    ("name", "sizes", "given"),
    [
        ("single", [SIDE], "given its caption)"),
        ("cascade", [4, SIDE], "given its caption)"),
        ("upscaler", [SIDE], "given its caption and the source, super_resolution)"),
    ],
)
def test_the_report_is_of_an_upper_bound_at_the_levels_asked_for(
    models: dict[str, Path],
    name: str,
    sizes: list[int],
    given: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # so that no line is broken
    content = report_of(models[name], tmp_path / "report.json", "--levels", 3, "--batch-size", 2)
    assert (content["bound"], content["levels"], content["num_images"]) == ("upper", 3, SCORED)
    assert (content["num_dims"], content["given"], content["unknown_share"]) == (3 * SIDE**2, ["caption"], 1)
    assert content["bits_per_dim"] == pytest.approx(bits(models[name], 3), rel=1e-5)
    assert [one["image_size"] for one in content["stages"]] == sizes
    assert sum(one["bits_per_dim"] for one in content["stages"]) == pytest.approx(content["bits_per_dim"])
    said = capsys.readouterr().out
    assert f"{content['bits_per_dim']:.4f}  (upper bound, estimated, on the negative log-likelihood {given}" in said
    assert f"3 levels of noise, drawn for each image{' and stage' if name == 'cascade' else ''}, without" in said
    assert ("sum over stages" in said) is (name == "cascade")


def test_json_of_all_models_can_be_compared(models: dict[str, Path], tmp_path: Path) -> None:
    """The same images, in number and size, whatever the first stage of a cascade draws; the same fields."""
    names = ("exact", "single", "cascade")
    found = {
        name: report_of(models[name], tmp_path / f"{name}.json", *([] if name == "exact" else ["--levels", 1]))
        for name in names
    }
    exact = found["exact"]
    for name in names[1:]:
        assert found[name].keys() == exact.keys()
        for field in (
            "data_fingerprint",
            "num_images",
            "num_dims",
            "split_origin",
            "preprocessing",
            "baselines",
            "task",
        ):
            assert found[name][field] == exact[field]
    assert (exact["bound"], exact["levels"], exact["stages"], exact["given"]) == ("exact", None, None, [])


def test_levels_are_twenty_if_nothing_is_said(models: dict[str, Path], tmp_path: Path) -> None:
    assert report_of(models["single"], tmp_path / "report.json")["levels"] == LEVELS == 20


def test_samples_of_an_upscaler_are_judged(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    words = ["--task", "super_resolution", "--images", 2, "-n", 2, "--steps", 1, "--no-frechet", "--levels", 1]
    content = report_of(models["upscaler"], tmp_path / "report.json", *words, "--html", tmp_path / "page.html")
    samples = content["samples"]
    assert (samples["bound"], samples["bits_per_dim"]) == ("upper", content["bits_per_dim"])
    assert samples["settings"] == {"steps": 1, "sampler": "ancestral", "guidance_scale": 1.0, "seed": 0}
    assert f"{samples['bits_per_dim']:.4f} bits/dim, upper bound" in capsys.readouterr().out
    assert "bits/dim given the source, upper bound" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("exact", ["--levels", 5], "levels = 5, but this model's likelihood is exact and draws no noise"),
        ("single", ["--levels", 0], "levels = 0 must be at least 1"),
        ("upscaler", ["--task", "super_resolution", "--temperature", 0.9], "temperature = 0.9 has no meaning here"),
        ("single", ["--task", "super_resolution"], "was trained for images alone"),
    ],
)
def test_what_the_model_has_not_is_refused_before_it_is_scored(
    models: dict[str, Path],
    name: str,
    words: list[object],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    assert run("evaluate", models[name], *words, "--json", tmp_path / "report.json") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error.startswith("error: ") and message in error and not (tmp_path / "report.json").exists()
