"""`surprise` on the command line, with a small model that was trained for a moment on folders of images."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rasterformer.cli.main import main
from rasterformer.cli.surprise import heat_path
from rasterformer.recipe_file import load_recipe
from rasterformer.system import System
from rasterformer.tasks import Colourise

SIZE = 8
BRIGHTNESS = {"dark": 60, "light": 200}


def write(folder: Path, name: str, values: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(folder / f"{name}.png")


def usual(brightness: int, seed: int) -> np.ndarray:
    """A level with a little noise, uint8 [8, 8, 3]."""
    return np.random.default_rng(seed).normal(brightness, 6, (SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, dark and light, for training: 80 images each."""
    folder = tmp_path_factory.mktemp("data")
    for name, brightness in BRIGHTNESS.items():
        for k in range(80):
            write(folder / name, f"{k:02d}", usual(brightness, 1000 * brightness + k))
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "classes"])
def model(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    words = [
        "train",
        "tiny",
        "--data",
        data,
        "--out",
        run,
        "--training.steps",
        "150",
        "--data.use_labels",
        request.param,
    ]
    words += ["--data.holdout_fraction", "0.4", "--training.eval_every", "150", "--training.save_every", "150"]
    assert main([str(word).lower() if isinstance(word, bool) else str(word) for word in words]) == 0
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty proper images of each class; noise, black, a light image among the dark, a copy, one too small."""
    folder = tmp_path / "mixed"
    for name, brightness in BRIGHTNESS.items():
        for k in range(20):
            write(folder / name, f"{k:02d}", usual(brightness, 5000 * brightness + k))
    write(folder / "dark", "noise", np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)))
    write(folder / "dark", "wrong", usual(BRIGHTNESS["light"], 1))
    write(folder / "light", "copy", usual(BRIGHTNESS["light"], 5000 * BRIGHTNESS["light"] + 3))
    write(folder / "light", "small", usual(100, 2)[:4, :4])
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_mixed_folder_is_ranked_and_all_is_written(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert (
        main(["surprise", str(model), str(folder), "--out", str(out), "--top", "5", "--json", str(out / "all.json")])
        == 0
    )
    said = capsys.readouterr().out
    assert "dark/noise.png" in said and "1 images passed over" in said
    assert "of 43 images are farther out than every one of the reference" in said

    table = rows(out / "surprise.csv")
    names = {row["name"] for row in table}
    assert [row["rank"] for row in table] == [str(k) for k in range(1, 44)]
    assert names == {str(path.relative_to(folder)) for path in folder.rglob("*.png")} - {"light/small.png"}
    assert table[0]["name"] == "dark/noise.png"
    assert table[0]["side"] == "more bits than usual" and table[0]["percentile"] == "100.0"
    scores = [max(abs(float(row["z"])), abs(float(row["patch_z"]))) for row in table]
    assert scores == sorted(scores, reverse=True)
    copies = {row["name"]: row["same_pixels_as"] for row in table if row["same_pixels_as"]}
    assert copies == {"light/copy.png": "light/03.png"}

    heat = sorted(str(path.relative_to(out / "heat")) for path in (out / "heat").rglob("*.png"))
    assert heat == sorted(f"{row['name']}.png" for row in table[:5])
    with Image.open(out / "heat" / "dark" / "noise.png.png") as picture:
        assert picture.size == (SIZE, SIZE)
    page = (out / "surprise.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 1 + 5 + 5  # legend, most and least surprising
    assert "dark/noise.png" in page and table[-1]["name"] in page
    assert "<script" not in page and "http:" not in page and "https:" not in page
    content = json.loads((out / "all.json").read_text())
    assert [image["name"] for image in content["images"]] == [row["name"] for row in table]
    assert content["about"]["images farther out than every one of the reference"] >= 1
    assert content["about"]["images"] == 43 and content["about"]["images passed over"] == 1


def test_a_wrong_label_is_found_where_the_model_has_classes(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["surprise", str(model), str(folder), "--out", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    better = {row["name"]: row["more_probable_class"] for row in rows(tmp_path / "out" / "surprise.csv")}
    if "use_labels: true" in (model / "recipe.yaml").read_text():
        assert better["dark/wrong.png"] == "light" and "dark/wrong.png: dark, rather light" in said
        assert sum(map(bool, better.values())) <= 3  # the noise may be one
    else:
        assert not any(better.values()) and "mislabelled" not in said


def test_a_folder_without_the_models_classes_is_scored_under_the_most_probable_one(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A light image is then as usual in a folder of dark ones."""
    assert main(["surprise", str(model), str(folder / "dark"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    place = [row["name"] for row in rows(tmp_path / "out" / "surprise.csv")].index("wrong.png")
    if "use_labels: true" in (model / "recipe.yaml").read_text():
        assert "under its most probable class" in " ".join(said.split())
        assert place > 0
    else:
        assert "most probable class" not in said


@pytest.mark.parametrize(("heat", "count"), [("none", 0), ("top", 2), ("all", 12)])
def test_heat_writes_as_many_maps_as_asked_for(
    model: Path, folder: Path, tmp_path: Path, heat: str, count: int
) -> None:
    words = ["surprise", model, folder, "--out", tmp_path / "out", "--heat", heat, "--top", 2, "--limit", 12]
    assert main([str(word) for word in words]) == 0
    assert len(list((tmp_path / "out").rglob("heat/**/*.png"))) == count
    assert len(rows(tmp_path / "out" / "surprise.csv")) == 12


def test_another_reference_makes_other_images_usual(model: Path, folder: Path, tmp_path: Path) -> None:
    """Against a reference of noise it is the proper images that need fewer bits than usual."""
    for k in range(15):
        write(tmp_path / "noises", f"{k}", np.random.default_rng(k + 1).integers(0, 256, (SIZE, SIZE, 3)))
    words = ["surprise", model, folder, "--reference", tmp_path / "noises", "--out", tmp_path / "out", "--by", "low"]
    assert main([str(word) for word in words]) == 0
    table = rows(tmp_path / "out" / "surprise.csv")
    assert table[-1]["name"] == "dark/noise.png"
    assert table[0]["side"] == "fewer bits than usual" and table[0]["percentile"] == "0.0"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--by", "odd"], "odd"),
        (["--heat", "some"], "some"),
        (["--top", "0"], "--top 0 must be at least 1"),
        (["--limit", "0"], "limit = 0 must be at least 1"),
        (["--limit", "3"], "reference has 3 images; at least 10"),
        (["--reference", "nowhere"], "nowhere"),
    ],
)
def test_bad_options_are_the_users(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["surprise", str(model), str(folder), "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_is_the_users(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["surprise", str(model), str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 2
    assert "no image in it" in capsys.readouterr().err


def test_heat_maps_stay_inside_their_folder() -> None:
    assert heat_path(Path("heat"), "cat/1.jpg") == Path("heat/cat/1.jpg.png")
    assert heat_path(Path("heat"), "../../1.jpg") == Path("heat/1.jpg.png")
    assert heat_path(Path("heat"), "/etc/1.jpg") == Path("heat/etc/1.jpg.png")


def test_a_model_with_a_task_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe("tiny")
    recipe = dataclasses.replace(recipe, task=Colourise(), model=dataclasses.replace(recipe.model, encoder_depth=0))
    System.create(recipe).save(tmp_path / "colourise")
    assert main(["surprise", str(tmp_path / "colourise"), str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "makes images from other images" in capsys.readouterr().err
