"""`evaluate` of models with a task: the conditional likelihood, and with --task what samples are worth."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rasterformer import load
from rasterformer.cli.main import main
from rasterformer.interfaces import Batch
from rasterformer.recipe_file import load_recipe
from rasterformer.recipe_images import open_recipe_images
from rasterformer.system import System

SIDE, SCORED = 12, 4  # pixels, the window of SSIM has 11; images
TASKS = {
    "super_resolution": [("task.name", "super_resolution"), ("task.factor", "2")],
    "inpaint": [("task.name", "inpaint")],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained models by task, and one without; all of them of a folder of noise, a third of it held out."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "images").mkdir()
    for seed in range(20):
        values = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / "images" / f"{seed}.png")
    data = [("data.path", str(folder / "images")), ("data.image_size", str(SIDE)), ("data.holdout_fraction", "0.4")]
    for name, task in TASKS.items():
        words = [*data, *task, ("model.encoder_depth", "1"), ("model.encoder_cell", "pixel")]
        System.create(load_recipe("tiny", words)).save(folder / name)
    System.create(load_recipe("tiny", data)).save(folder / "plain")
    return {name: folder / name for name in (*TASKS, "plain")}


def run(*words: object) -> int:
    return main([str(word) for word in words])


def bits(model: Path, count: int) -> tuple[float, float]:
    """Of the first held-out images: their bits over all dimensions that their sources leave unknown, and the share of these."""
    system = load(model)
    images = open_recipe_images(system.recipe, "test").images(slice(count))
    nats, dims = 0.0, 0
    for k, image in enumerate(images):
        batch = system.with_source(Batch(image[None]), first=k, purpose="held-out source", seed=0)
        known = batch.cond.known
        unknown = torch.ones(SIDE, SIDE, dtype=torch.bool) if known is None else ~known[0]
        nats += system.symbol_nats(batch.images, batch.cond)[0, :, unknown].double().sum().item()
        dims += 3 * int(unknown.sum())
    return nats / dims / math.log(2), dims / (count * 3 * SIDE**2)


@pytest.fixture(params=TASKS)
def judged(
    request: pytest.FixtureRequest,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[str, str, dict[str, Any], str]:
    """Task, what was printed, the JSON and the page of `evaluate --task`."""
    monkeypatch.setenv("COLUMNS", "250")
    words = ["--images", 2, "-n", 2, "--no-frechet", "--limit", SCORED, "--seed", 5, "--temperature", 0.9]
    files = ["--json", tmp_path / "deep" / "report.json", "--html", tmp_path / "page.html"]
    assert run("evaluate", models[request.param], "--task", request.param, *words, *files) == 0
    content = json.loads((tmp_path / "deep" / "report.json").read_text())
    return request.param, capsys.readouterr().out, content, (tmp_path / "page.html").read_text()


def test_table_json_and_page_say_what_samples_are_worth(
    judged: tuple[str, str, dict[str, Any], str], models: dict[str, Path]
) -> None:
    task, said, content, page = judged
    samples = content["samples"]
    expected, share = bits(models[task], SCORED)
    assert content["bits_per_dim"] == pytest.approx(expected, rel=1e-5)
    assert content["unknown_share"] == pytest.approx(share) and (share < 1) is (task == "inpaint")
    assert (content["task"], content["num_images"], content["num_dims"]) == (task, SCORED, 3 * SIDE**2)
    assert f"{expected:.4f}  (exact likelihood given the source, {task})" in said
    part = "" if share == 1 else f", of which {100 * share:.1f} % are unknown and counted"
    assert f"{3 * SIDE**2} an image{part}" in said

    assert (samples["task"], samples["num_images"], samples["samples_per_image"]) == (task, 2, 2)
    assert samples["settings"] == {"temperature": 0.9, "seed": 5}
    assert (samples["bits_per_dim"], samples["interval"]) == (content["bits_per_dim"], content["interval"])
    own = samples["rows"]["model"]
    if task == "inpaint":
        assert own["known_pixels_changed"] == 0 and "source" in samples["rows"]
    else:
        assert samples["rows"]["original"]["consistency_area"] == 0 < own["consistency_area"]
    assert own["diversity_grey_levels"] > 0 and "fd_efflite0" not in own
    assert f"{own['psnr_db']:.2f}" in said and f"{own['diversity_grey_levels']:.1f}" in said
    assert f"{own['psnr_db']:.2f}" in page and "data:image/png;base64," in page
    assert f"{models[task]}: {task}" in page and "report.json written" in said and "page.html written" in said


@pytest.mark.parametrize("name", [*TASKS, "plain"])
def test_without_task_it_is_the_likelihood_alone(
    models: dict[str, Path],
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    file = tmp_path / "report.json"
    assert run("evaluate", models[name], "--limit", SCORED, "--json", file, "--batch-size", 3) == 0
    content, said = json.loads(file.read_text()), capsys.readouterr().out
    expected, share = bits(models[name], SCORED)
    assert content["bits_per_dim"] == pytest.approx(expected, rel=1e-5)
    assert content["unknown_share"] == pytest.approx(share) and "samples" not in content
    assert content["task"] == (None if name == "plain" else name)
    assert ("given the source" in said) is (name != "plain") and ("are unknown and counted" in said) is (
        name == "inpaint"
    )


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("inpaint", ["--task", "super_resolution"], "--task super_resolution: {model} was trained for inpaint."),
        ("inpaint", ["--task", "in-paint"], "--task in-paint: {model} was trained for inpaint."),
        ("plain", ["--task", "inpaint"], "--task inpaint: {model} was trained for images alone."),
        ("inpaint", ["--html", "page.html"], "--html shows samples of a task: give --task too."),
        ("inpaint", ["--task", "inpaint", "--images", 1], "--images 1 must be at least 2"),
        ("inpaint", ["--task", "inpaint", "-n", 0], "-n 0 at least 1"),
        ("inpaint", ["--limit", 2, "--task", "inpaint", "--temperature", 0], "temperature = 0"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    words: list[object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("evaluate", models[name], *words, "--json", "report.json") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message.format(model=models[name]) in said
    assert list(tmp_path.iterdir()) == []
