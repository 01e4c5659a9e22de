"""What `benchmarks/super_resolution.py` trains and measures, and what the page says of it."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import render
from benchmarks.runs import likelihood, load_or_train, run_record
from benchmarks.super_resolution import (
    DRAWN,
    NAMES,
    PAIR,
    SHEET_SOURCES,
    TEMPERATURES,
    main,
    measure,
    recipe_of,
    temperature_sheet,
)
from rasterformer.data.imageset import ImageSet
from rasterformer.recipe_file import load_recipe, recipe_from_dict, recipe_to_dict
from rasterformer.recipe_images import open_recipe_images
from rasterformer.system import System


def folder_of_noise(folder: Path, *, count: int, side: int) -> Path:
    folder.mkdir(parents=True)
    for seed in range(count):
        values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{seed}.png")
    return folder


def make(data: Path, side: int, *, has_source: bool = True) -> System:
    words = [("data.path", str(data)), ("data.image_size", str(side)), ("data.holdout_fraction", "0.5")]
    words += [("model.depth", "1"), ("model.width", "8"), ("model.mlp_width", "8"), ("training.minutes", "3")]
    if has_source:
        words += [("task.name", "super_resolution"), ("task.factor", "2"), ("model.encoder_depth", "1")]
    system = System.create(load_recipe("tiny", words))
    system.model.eval()
    return system


def images_of(system: System) -> ImageSet:
    return open_recipe_images(system.recipe, "test")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> System:
    """A model of 4x4 images, of a folder with at least as many held-out ones as a sheet shows."""
    return make(folder_of_noise(tmp_path_factory.mktemp("small") / "images", count=40, side=4), 4)


@pytest.mark.parametrize("name", ["1d", "2d", "rest", "alone"])
def test_every_run_has_a_recipe_that_can_be_trained(name: str) -> None:
    recipe = recipe_of(name, "embedded:toonheads")
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe and recipe.data.path == "embedded:toonheads"
    assert recipe.model.attention == ("local_2d" if name == "2d" else "local_1d")
    assert (recipe.task is None) is (name == "alone") is not recipe.model.takes_source
    assert recipe.model.source_rest is (name == "rest")


def test_the_decoder_without_a_source_is_that_of_1d() -> None:
    with_source, alone = (System.create(recipe_of(name, "x")) for name in ("1d", "alone"))
    weights = [dict(system.model.named_parameters()) for system in (with_source, alone)]
    assert set(weights[1]) < set(weights[0])
    assert all(weights[0][name].shape == weight.shape for name, weight in weights[1].items())
    given = dataclasses.replace(alone.recipe, task=with_source.recipe.task, model=with_source.recipe.model)
    assert given == with_source.recipe


def test_a_run_that_is_there_is_not_trained_again(small: System, tmp_path: Path) -> None:
    small.save(tmp_path / "2d" / "model")
    before = sorted(tmp_path.rglob("*"))
    loaded = load_or_train(recipe_of("2d", "nowhere"), tmp_path / "2d", minutes=1.0)
    assert loaded.recipe == small.recipe and sorted(tmp_path.rglob("*")) == before
    state = small.model.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in loaded.model.state_dict().items())


def test_a_run_that_is_not_there_is_trained_for_the_minutes(tmp_path: Path) -> None:
    data = folder_of_noise(tmp_path / "images", count=8, side=4)
    recipe = make(data, 4).recipe
    assert recipe.training.minutes == 3
    system = load_or_train(recipe, tmp_path / "run", minutes=1e-4)
    assert system.recipe.training.minutes == 1e-4 and 0 < system.steps <= recipe.training.steps
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.mark.parametrize(
    ("words", "received"),
    [(["--images", "9"], "--images"), (["-n", "1"], "-n"), (["--minutes", "0"], "--minutes")],
)
def test_too_little_to_measure_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], received: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--out", str(tmp_path / "runs"), *words])
    assert stopped.value.code == 2 and received in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_images_that_are_not_there_are_named_without_a_traceback(tmp_path: Path) -> None:
    words = ["--data", str(tmp_path / "nowhere"), "--results", str(tmp_path), "--pictures", str(tmp_path)]
    with pytest.raises(SystemExit, match="nowhere"):
        main(["--out", str(tmp_path / "runs"), *words])
    assert not (tmp_path / "super_resolution.json").exists()


def test_the_sheet_has_sources_samples_at_each_temperature_and_originals(small: System) -> None:
    held_out = images_of(small)
    sheet = temperature_sheet(small, held_out)
    side, columns = 4 * 3, 2 + 2 * len(TEMPERATURES)
    assert sheet.shape == (3, SHEET_SOURCES * (side + 1) - 1, columns * (side + 1) - 1)
    cells = [
        [sheet[:, r * (side + 1) : (r + 1) * (side + 1) - 1 : 3, c * (side + 1) : (c + 1) * (side + 1) - 1 : 3]
         for c in range(columns)]
        for r in range(SHEET_SOURCES)
    ]  # fmt: skip
    originals = held_out.images(slice(SHEET_SOURCES))
    means = originals.long().view(-1, 3, 2, 2, 2, 2).sum((3, 5)) // 4
    for row, original, source in zip(cells, originals, means, strict=True):
        assert torch.equal(row[-1], original)
        assert torch.equal(row[0].long(), source.repeat_interleave(2, 1).repeat_interleave(2, 2))
    drawn = small.transform(means.to(torch.uint8), n=2, temperature=0.9, seed=0, as_tensor=True)
    for row, samples in zip(cells, drawn, strict=True):
        assert torch.equal(row[3], samples[0]) and torch.equal(row[4], samples[1])


def test_the_likelihood_is_of_all_held_out_images_given_their_sources(small: System) -> None:
    held_out = images_of(small)
    report = likelihood("1d", small, held_out)
    images = held_out.images(slice(None))
    assert report.bits_per_dim == pytest.approx(small.bits_per_dim(images).mean().item(), rel=1e-6)
    assert (report.num_images, report.task, report.model) == (len(held_out), "super_resolution", "1d")
    plain = likelihood("alone", make(Path(small.recipe.data.path or ""), 4, has_source=False), held_out)
    assert plain.task is None and plain.num_images == len(held_out)


def test_a_run_is_recorded_with_its_size_steps_and_recipe(small: System) -> None:
    record = run_record(small)
    assert record["parameters"] == sum(np.prod(weight.shape) for weight in small.model.state_dict().values())
    assert (record["steps"], record["minutes"]) == (0, 3.0)
    assert recipe_from_dict(record["recipe"]) == small.recipe


# ---- the page


def figures(**more: float) -> dict[str, float]:
    kinds = {"consistency_area": 0.00123, "consistency_area_grey_levels": 8.9}
    return kinds | {"consistency_bicubic": 0.002, "consistency_bicubic_grey_levels": 11.4} | more


def report(psnr: float) -> dict[str, Any]:
    return {
        "rows": {
            "model": figures(psnr_db=psnr, ssim=0.5, ms_ssim=0.75, fd_efflite0=100.0, memorisation_ms_ssim=44.3)
            | {"diversity_grey_levels": 21.0},
            "bicubic": figures(psnr_db=30.25, ssim=0.9, ms_ssim=0.95, fd_efflite0=200.0),
            "another image's sample": figures(psnr_db=9.5, ssim=0.1, ms_ssim=0.2),
            "original": figures(memorisation_ms_ssim=40.0),
        }
    }


def record(interval: tuple[float, float]) -> dict[str, Any]:
    bits = {"1d": 1.25, "2d": 1.1875, "rest": 1.125, "alone": 1.5}
    return {
        "data": {"name": "heads", "train_images": 5000, "test_images": 400},
        "runs": {name: {"parameters": 123_456, "steps": 7_890, "minutes": 20.0} for name in bits},
        "likelihoods": {name: {"bits_per_dim": b, "interval": [b - 0.01, b + 0.01]} for name, b in bits.items()},
        "gains_of_the_source": {
            "1d": {"mean": sum(interval) / 2, "interval": list(interval)},
            "rest": {"mean": 0.5, "interval": [0.4, 0.6]},
        },
        "images": 100,
        "samples": 3,
        "reports": {
            "1d": {"1.0": report(20.0), "0.9": report(21.0)},
            "2d": {"1.0": report(22.0), "0.9": report(23.0)},
        },
        "machine": {"processor": "P", "cores": 2, "threads": 2, "bfloat16_matrix_units": True},
        "torch": "2",
        "python": "3",
        "commit": "abc",
    }


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((0.125, 0.375), "better"), ((-0.125, 0.375), "not different"), ((-0.375, -0.125), "worse")],
)
def test_the_worth_of_the_source_follows_from_its_interval(
    tmp_path: Path, interval: tuple[float, float], verdict: str
) -> None:
    said = "\n".join(render.super_resolution(record(interval), tmp_path / "none.md"))
    low, high = interval
    assert f"1D attention: {sum(interval) / 2:+.4f} (95 %: {low:+.4f} .. {high:+.4f}, {verdict})" in said
    assert "1D attention and `source_rest` (recipe `upscale`): +0.5000 (95 %: +0.4000 .. +0.6000, better)" in said


def test_the_page_has_every_run_and_every_temperature(tmp_path: Path) -> None:
    said = "\n".join(render.super_resolution(record((0.1, 0.2)), tmp_path / "none.md"))
    assert "heads, 20 minutes of training each" in said and "5,000 images, scored on all 400 test images" in said
    assert "| 1D attention | 1.2500 | 1.2400 .. 1.2600 | 123,456 | 7,890 |" in said
    assert "| 2D attention | 1.1875 | 1.1775 .. 1.1975 |" in said
    assert "| the 1D decoder without a source | 1.5000 |" in said
    for title, psnr in (("1D, temperature 1.0", 20), ("1D, temperature 0.9", 21), ("2D, temperature 0.9", 23)):
        assert (
            f"| {title} | 0.00123 (8.9) | 0.00200 (11.4) | {psnr:.2f} | 0.500 | 0.750 | 100.0 | 44.3 | 21.0 |" in said
        )
    assert "| bicubic | 0.00123 (8.9) | 0.00200 (11.4) | 30.25 | 0.900 | 0.950 | 200.0 |  |  |" in said
    assert "| original | 0.00123 (8.9) | 0.00200 (11.4) |  |  |  |  | 40.0 |  |" in said
    assert said.count("| bicubic |") == 1 + 1  # a row, and a heading
    for name in ("1d", "2d"):
        assert f"(pictures/super-resolution-{name}.png)" in said
    assert "commit abc" in said


def test_the_section_and_remarks_by_hand_are_on_the_page_of_all_results(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "super_resolution.json").write_text(json.dumps(record((0.1, 0.2))))
    (results / "super_resolution-remarks.md").write_text("Remarks, written by hand: so and so.\n")
    render.main(["--results", str(results), "--docs", str(tmp_path / "docs")])
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "## Super-resolution, 8x8 -> 32x32" in page and "Remarks, written by hand: so and so." in page


@pytest.mark.slow
def test_what_is_measured_of_tiny_models_can_be_written_and_rendered(tmp_path: Path) -> None:
    """From images to the page; 12x12 pixels are the least that SSIM takes."""
    pytest.importorskip("torchmetrics")
    data = folder_of_noise(tmp_path / "images", count=40, side=12)
    systems = {name: make(data, 12, has_source=name != "alone") for name in NAMES}
    options = argparse.Namespace(data=str(data), images=2, n=2, pictures=tmp_path / "docs" / "pictures")
    content = measure(systems, options)
    test, train = (open_recipe_images(systems["1d"].recipe, split) for split in ("test", "train"))
    assert content["data"] == {"name": test.name, "train_images": len(train), "test_images": len(test)}
    gain = content["likelihoods"]["alone"]["bits_per_dim"] - content["likelihoods"]["1d"]["bits_per_dim"]
    assert content["gains_of_the_source"]["1d"]["mean"] == pytest.approx(gain, abs=1e-6)
    assert {name: list(of) for name, of in content["reports"].items()} == {
        name: ["1.0", "0.9", "0.8"] if name in PAIR else ["1.0"] for name in DRAWN
    }
    assert content["reports"]["1d"]["0.9"]["settings"] == {"temperature": 0.9, "seed": 0}
    (tmp_path / "super_resolution.json").write_text(json.dumps(content, allow_nan=False))
    render.main(["--results", str(tmp_path), "--docs", str(tmp_path / "docs")])
    page = (tmp_path / "docs" / "results.md").read_text()
    for name in PAIR:
        assert f"(pictures/super-resolution-{name}.png)" in page
        assert (tmp_path / "docs" / "pictures" / f"super-resolution-{name}.png").is_file()
