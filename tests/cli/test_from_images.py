"""`upscale`, `restore`, `colourise`, `denoise`, `transform` on the command line: which pictures, which files, what is refused."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from rasterformer import load
from rasterformer.cli.from_images import find_pictures
from rasterformer.cli.main import main
from rasterformer.conditioning.edges import canny_edges
from rasterformer.data.palette import label_colours
from rasterformer.data.png import read_png_metadata
from rasterformer.errors import ConfigError, DataError
from rasterformer.interfaces import Batch, Cond
from rasterformer.recipe_file import load_recipe, recipe_hash
from rasterformer.system import System

Pixels = npt.NDArray[np.uint8]
Fails = Callable[..., str]
SIDE, POSITIONS = 4, 16  # of an image of the models, pixels
TASKS = {
    "upscale": [("task.name", "super_resolution"), ("task.factor", "2")],
    "restore": [("task.name", "inpaint")],
    "colourise": [("task.name", "colourise")],
    "denoise": [("task.name", "denoise")],
    "transform": [("task.name", "paired"), ("task.source_path", "elsewhere"), ("task.source_size", "2")],
}
SOURCE_SIDE = {"upscale": 2, "restore": 4, "colourise": 4, "denoise": 4, "transform": 2}
HOLE = ["--rectangle", 0, 1, 4, 2]  # top, left, height, width
MORE = {"restore": HOLE}  # words that a command cannot do without
GREY, GAP = 128, 244  # of missing pixels, and of the ground between the images of a sheet


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained models by the command that they are for; more for upscale with classes, no task, edges, label maps."""
    folder = tmp_path_factory.mktemp("models")
    small = [("data.image_size", str(SIDE)), ("model.norm_position", "pre")]
    reads = [*small, ("model.encoder_depth", "1")]
    for command, task in TASKS.items():
        System.create(load_recipe("tiny", [*reads, *task])).save(folder / command)
    System.create(load_recipe("tiny", [*reads, *TASKS["upscale"]]), class_names=("cat", "dog")).save(folder / "classes")
    System.create(load_recipe("tiny", small)).save(folder / "plain")
    edges = [("task.name", "edges"), ("task.sigma", "0.5")]
    System.create(load_recipe("tiny", [*reads, *edges])).save(folder / "edges")
    labels = [*TASKS["transform"], ("task.source_reduction", "nearest")]
    System.create(load_recipe("tiny", [*reads, *labels])).save(folder / "labels")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Presses Ctrl-C when that many results are finished and the next ones have begun."""

    def arrange(finished: int) -> None:
        @contextmanager
        def progress(what: str) -> Iterator[Callable[[int, int], None]]:
            def told(done: int, total: int) -> None:
                if done > finished * POSITIONS:
                    raise KeyboardInterrupt

            yield told

        monkeypatch.setattr("rasterformer.cli.progress.step_progress", progress)

    return arrange


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Fails:
    """Runs a command that must exit with 2 and write nothing, and returns what it said."""

    def command(*words: object) -> str:
        capsys.readouterr()
        before = sorted(tmp_path.rglob("*"))
        assert run(*words, "--out", tmp_path / "out") == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and "Traceback" not in said
        assert sorted(tmp_path.rglob("*")) == before
        return said

    return command


def run(*words: object) -> int:
    return main([str(word) for word in words])


def noise(height: int, width: int, *, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(path: Path, height: int, width: int, *, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(height, width, seed=seed)).save(path)
    return path


def square(path: Path, side: int, *, seed: int = 0) -> Path:
    return picture(path, side, side, seed=seed)


def pixels(path: Path) -> Pixels:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.array(image)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def equal(one: Path, other: Path) -> bool:
    return np.array_equal(pixels(one), pixels(other))


def cells(sheet: Pixels, *, columns: int, side: int = SIDE, scale: int = 4) -> list[list[Pixels]]:
    """The images of a sheet, row by row, at their own size; all else must be its ground."""
    step = side * scale + 1
    height, width = sheet.shape[0] + 1, sheet.shape[1] + 1
    assert width == columns * step and height % step == 0
    assert (sheet[side * scale :: step] == GAP).all() and (sheet[:, side * scale :: step] == GAP).all()
    found = []
    for top in range(0, height, step):
        row = [sheet[top : top + step - 1, left : left + step - 1] for left in range(0, width, step)]
        assert all(np.array_equal(big, enlarged(big[::scale, ::scale], scale)) for big in row)
        found.append([big[::scale, ::scale] for big in row])
    return found


def enlarged(image: Pixels, factor: int) -> Pixels:
    return image.repeat(factor, 0).repeat(factor, 1)


# ---- results and sheet


@pytest.mark.parametrize("command", TASKS)
def test_each_picture_has_n_results_and_a_row_of_the_sheet(
    command: str, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    side, out = SOURCE_SIDE[command], tmp_path / "deep" / "out"
    files = [square(tmp_path / f"{name}.png", side, seed=seed) for seed, name in enumerate("ab")]
    assert run(command, models[command], *files, *MORE.get(command, []), "-n", 2, "--out", out) == 0
    assert names(out) == ["a-0.png", "a-1.png", "b-0.png", "b-1.png", "sheet.png"]
    said = capsys.readouterr()
    assert said.out.splitlines() == [f"4 of 4 results are in {out}", f"{out / 'sheet.png'} shows source | results"]
    assert said.err == ""
    results = {name: pixels(out / name) for name in names(out)[:4]}
    assert {image.shape for image in results.values()} == {(SIDE, SIDE, 3)}
    assert len({image.tobytes() for image in results.values()}) == 4
    rows = cells(pixels(out / "sheet.png"), columns=3)
    assert len(rows) == 2
    for file, name, row in zip(files, "ab", rows, strict=True):
        shown = enlarged(pixels(file), SIDE // side)
        if command == "colourise":  # luma, as Pillow makes it
            shown = np.array(Image.open(file).convert("L").convert("RGB"))
        if command == "restore":
            shown[:, 1:3] = GREY
        assert np.array_equal(row[0], shown)
        assert all(np.array_equal(row[1 + k], results[f"{name}-{k}.png"]) for k in range(2))


@pytest.mark.parametrize("command", TASKS)
def test_the_seed_decides_the_results(command: str, models: dict[str, Path], tmp_path: Path) -> None:
    file = square(tmp_path / "a.png", SOURCE_SIDE[command])
    for out, seed in (("one", 1), ("again", 1), ("other", 2)):
        words = [*MORE.get(command, []), "--seed", seed, "--out", tmp_path / out]
        assert run(command, models[command], file, *words) == 0
    assert equal(tmp_path / "one" / "a-0.png", tmp_path / "again" / "a-0.png")
    assert not equal(tmp_path / "one" / "a-0.png", tmp_path / "other" / "a-0.png")


def test_the_record_in_a_result_says_how_it_was_made(models: dict[str, Path], tmp_path: Path) -> None:
    words = ["-n", 2, "--seed", 7, "--temperature", 0.9, "--top-k", 5, "--label", "dog", "--precision", "bfloat16"]
    file, model = square(tmp_path / "my picture.png", 2), models["classes"]
    assert run("upscale", model, file, *words, "--out", tmp_path / "out") == 0
    about = {
        "kind": "upscale",
        "model": str(model),
        "recipe": recipe_hash(load(model).recipe),
        "temperature": 0.9,
        "top_k": 5,
        "top_p": None,
        "label": "dog",
        "seed": 7,
        "precision": "bfloat16",
        "original": False,
        "tile": True,
        "overlap": None,
        "crop": False,
    }
    for k in range(2):
        record = read_png_metadata(tmp_path / "out" / f"my picture-{k}.png")
        assert record == {**about, "image": "my picture.png", "number": 0, "result": k}
    assert read_png_metadata(tmp_path / "out" / "sheet.png") == about


def test_scale_is_that_of_the_sheet_only(models: dict[str, Path], tmp_path: Path) -> None:
    words = ["--scale", 3, "--out", tmp_path / "out"]
    assert run("denoise", models["denoise"], square(tmp_path / "a.png", 4), *words) == 0
    ((_, result),) = cells(pixels(tmp_path / "out" / "sheet.png"), columns=2, scale=3)
    assert np.array_equal(result, pixels(tmp_path / "out" / "a-0.png"))


@pytest.mark.parametrize("options", [["--temperature", 0.01], ["--top-k", 1], ["--top-p", 0.001]])
def test_options_of_drawing_reach_the_model(models: dict[str, Path], tmp_path: Path, options: list[object]) -> None:
    """Each leaves next to nothing to chance, so that results are nearer to one another."""
    file, spread = square(tmp_path / "a.png", 4), []
    for out, words in (("free", []), ("held", options)):
        assert run("denoise", models["denoise"], file, "-n", 8, *words, "--out", tmp_path / out) == 0
        drawn = np.stack([pixels(tmp_path / out / f"a-{k}.png") for k in range(8)]).astype(float)
        spread.append(drawn.std(0).mean())
    assert spread[1] < spread[0] / 2


def test_results_do_not_depend_on_the_batch_size(models: dict[str, Path], tmp_path: Path) -> None:
    files = [square(tmp_path / f"{name}.png", 2, seed=seed) for seed, name in enumerate("ab")]
    for out, words in (("all", []), ("single", ["--batch-size", 1])):
        assert run("upscale", models["upscale"], *files, "-n", 2, *words, "--out", tmp_path / out) == 0
    assert all(equal(tmp_path / "all" / name, tmp_path / "single" / name) for name in names(tmp_path / "all"))


def test_transform_does_what_a_model_was_trained_for(models: dict[str, Path], tmp_path: Path) -> None:
    file = square(tmp_path / "a.png", 2)
    for command in ("upscale", "transform"):
        assert run(command, models["upscale"], file, "--out", tmp_path / command) == 0
    assert equal(tmp_path / "upscale" / "a-0.png", tmp_path / "transform" / "a-0.png")


def test_the_class_that_is_asked_for_is_drawn(models: dict[str, Path], tmp_path: Path) -> None:
    file = square(tmp_path / "a.png", 2)
    for label in ("cat", "dog", "1"):
        assert run("upscale", models["classes"], file, "--label", label, "--out", tmp_path / label) == 0
    assert equal(tmp_path / "dog" / "a-0.png", tmp_path / "1" / "a-0.png")
    assert not equal(tmp_path / "cat" / "a-0.png", tmp_path / "dog" / "a-0.png")


# ---- which files, and where results go


def test_files_folders_and_patterns_are_found(tmp_path: Path) -> None:
    made = ["b.png", "a.JPG", "c[1].png", "in/d.webp", "in/deep/e.png"]
    for name in made:
        square(tmp_path / name, 2)
    (tmp_path / "notes.txt").write_text("no picture")

    def found(*images: str) -> list[str]:
        paths = find_pictures([str(tmp_path / name) for name in images])
        return [path.relative_to(tmp_path).as_posix() for path in paths]

    assert found("") == ["a.JPG", "b.png", "c[1].png"], "a folder: its own images, sorted, and nothing else"
    assert found("*.png") == ["b.png", "c[1].png"]
    assert found("**/*.png") == ["b.png", "c[1].png", "in/deep/e.png"]
    assert found("c[1].png") == ["c[1].png"], "a file whose name looks like a pattern"
    assert found("in", "b.png", "in/*.webp") == ["in/d.webp", "b.png", "in/d.webp"]
    assert found("i*/*") == ["in/d.webp"], "a folder that matches a pattern is no picture"


def test_a_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = square(tmp_path / "a.png", 2)
    assert find_pictures(["~/a*.png", "~/a.png"]) == [file, file]


def test_pictures_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no picture was given. Give at least one file, folder or pattern"):
        find_pictures([])
    with pytest.raises(DataError, match=r"nothing/here\.png: no such file, folder or match"):
        find_pictures([str(tmp_path / "nothing" / "here.png")])
    with pytest.raises(DataError, match=r"\*\.png: no such file, folder or match"):
        find_pictures([str(tmp_path / "*.png")])
    with pytest.raises(DataError, match=f"{tmp_path.name}: no image in this folder"):
        find_pictures([str(tmp_path)])


def test_a_folder_and_a_quoted_pattern_are_drawn_from(models: dict[str, Path], tmp_path: Path) -> None:
    square(tmp_path / "one" / "a.png", 2)
    square(tmp_path / "two" / "b1.png", 2)
    square(tmp_path / "two" / "c.png", 2)
    out = tmp_path / "out"
    assert run("upscale", models["upscale"], tmp_path / "one", tmp_path / "two" / "b*.png", "--out", out) == 0
    assert names(out) == ["a-0.png", "b1-0.png", "sheet.png"]


def test_pictures_of_one_name_are_numbered(models: dict[str, Path], tmp_path: Path) -> None:
    files = [
        square(tmp_path / "one" / "a.png", 2),
        square(tmp_path / "two" / "a.png", 2),
        square(tmp_path / "b.png", 2),
    ]
    assert run("upscale", models["upscale"], *files, "--out", tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["000-a-0.png", "001-a-0.png", "002-b-0.png", "sheet.png"]


def test_without_out_results_are_in_a_folder_of_that_name(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    square(tmp_path / "a.png", 2)
    assert run("upscale", models["upscale"], "a.png") == 0
    assert names(tmp_path) == ["a.png", "results"] and names(tmp_path / "results") == ["a-0.png", "sheet.png"]


def test_beside_puts_results_next_to_their_pictures_and_nothing_elsewhere(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [square(tmp_path / "one" / "a.png", 4), square(tmp_path / "two" / "a.png", 4, seed=1)]
    before = [file.read_bytes() for file in files]
    assert run("denoise", models["denoise"], *files, "-n", 2, "--beside") == 0
    assert [file.read_bytes() for file in files] == before
    assert names(tmp_path) == ["one", "two"]
    for folder in ("one", "two"):
        assert names(tmp_path / folder) == ["a-denoise-0.png", "a-denoise-1.png", "a.png"]
    assert capsys.readouterr().out == "4 of 4 results are beside their pictures\n"


def test_beside_keeps_the_results_of_pictures_that_differ_in_their_ending(
    models: dict[str, Path], tmp_path: Path
) -> None:
    files = [square(tmp_path / "a.png", 4), square(tmp_path / "a.bmp", 4, seed=1)]
    assert run("denoise", models["denoise"], *files, "--beside") == 0
    assert names(tmp_path) == ["000-a-denoise-0.png", "001-a-denoise-0.png", "a.bmp", "a.png"]


def test_beside_keeps_the_results_of_a_relative_and_an_absolute_name(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    square(tmp_path / "a.png", 4)
    square(tmp_path / "a.bmp", 4, seed=1)
    assert run("denoise", models["denoise"], "a.png", tmp_path / "a.bmp", "--beside") == 0
    assert len(names(tmp_path)) == 4


# With --beside this happens when a folder is given a second time (a-denoise-0.png is a picture now, and a result of a.png);
# with --out when it is the pictures' folder.
@pytest.mark.parametrize(
    ("name", "words"),
    [("a-denoise-0.png", ["--beside"]), ("a-0.png", ["--out", "."]), ("sheet.png", ["--out", "."])],
)
def test_no_result_overwrites_a_picture_that_was_given(
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [square(tmp_path / "a.png", 4), square(tmp_path / name, 4, seed=1)]
    before = [file.read_bytes() for file in files]
    assert run("denoise", models["denoise"], *files, *words) == 2
    assert f"{name} would be overwritten, and is one of the pictures" in capsys.readouterr().err
    assert [file.read_bytes() for file in files] == before and len(names(tmp_path)) == 2


def test_no_sheet_of_several_overwrites_a_picture_that_was_given(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [square(tmp_path / "a.png", 4), square(tmp_path / "sheet-5x5.png", 5, seed=1)]
    before = [file.read_bytes() for file in files]
    assert run("denoise", models["denoise"], *files, "--out", ".") in (0, 2)
    assert [file.read_bytes() for file in files] == before


# ---- originals


def test_of_originals_sources_are_made_and_shown_with_them(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """8x10 pixels: the middle 8x8 are reduced to 4x4 by means of blocks, rounded; their 2x2 source by means rounded down."""
    file, out = picture(tmp_path / "a.png", 8, 10), tmp_path / "out"
    assert run("upscale", models["upscale"], file, "-n", 2, "--original", "--out", out) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{out / 'sheet.png'} shows source | results | original"
    sums = pixels(file)[:, 1:9].reshape(4, 2, 4, 2, 3).sum((1, 3), dtype=int)
    original = (sums + 2) // 4
    source = original.reshape(2, 2, 2, 2, 3).sum((1, 3)) // 4
    ((shown, *results, last),) = cells(pixels(out / "sheet.png"), columns=4)
    assert np.array_equal(last, original) and np.array_equal(shown, enlarged(source, 2))
    assert all(np.array_equal(result, pixels(out / f"a-{k}.png")) for k, result in enumerate(results))
    Image.fromarray(source.astype(np.uint8)).save(tmp_path / "source.png")
    assert run("upscale", models["upscale"], tmp_path / "source.png", "-n", 2, "--out", tmp_path / "direct") == 0
    assert all(equal(out / f"a-{k}.png", tmp_path / "direct" / f"source-{k}.png") for k in range(2))


def test_of_originals_masks_are_made_as_in_training(models: dict[str, Path], tmp_path: Path) -> None:
    files = [square(tmp_path / f"{name}.png", SIDE, seed=seed) for seed, name in enumerate("ab")]
    words = ["--original", "--seed", 3, "--out", tmp_path / "out"]
    assert run("restore", models["restore"], *files, *words) == 0
    originals = torch.from_numpy(np.stack([pixels(file) for file in files])).permute(0, 3, 1, 2)
    made = load(models["restore"]).with_source(Batch(originals), first=0, purpose="held-out source", seed=3)
    assert made.cond.known is not None
    rows = cells(pixels(tmp_path / "out" / "sheet.png"), columns=3)
    for known, (source, result, original), file in zip(made.cond.known.numpy(), rows, files, strict=True):
        assert np.array_equal(original, pixels(file))
        assert np.array_equal(source[known], original[known]) and (source[~known] == GREY).all()
        assert np.array_equal(result[known], original[known]) and not np.array_equal(result, original)


def test_of_originals_a_rectangle_is_missing_where_it_is_given(models: dict[str, Path], tmp_path: Path) -> None:
    file = square(tmp_path / "a.png", 2 * SIDE)
    assert run("restore", models["restore"], file, "--original", *HOLE, "--out", tmp_path / "out") == 0
    ((source, result, original),) = cells(pixels(tmp_path / "out" / "sheet.png"), columns=3)
    assert (source[:, 1:3] == GREY).all() and np.array_equal(source[:, [0, 3]], original[:, [0, 3]])
    assert np.array_equal(result[:, [0, 3]], original[:, [0, 3]])


def test_of_paired_folders_originals_have_no_sources(models: dict[str, Path], tmp_path: Path, fails: Fails) -> None:
    said = fails("transform", models["transform"], square(tmp_path / "a.png", 4), "--original")
    assert "paired" in said and "folder" in said


@pytest.mark.parametrize("more", [[], ["--original"]])
def test_a_model_of_edges_is_given_the_edges_of_a_picture(
    models: dict[str, Path], tmp_path: Path, more: list[str]
) -> None:
    file = square(tmp_path / "a.png", SIDE, seed=1)
    assert run("transform", models["edges"], file, *more, "--out", tmp_path / "out") == 0
    edges = canny_edges(torch.from_numpy(pixels(file)).permute(2, 0, 1)[None], sigma=0.5)
    ((shown, result, *_),) = cells(pixels(tmp_path / "out" / "sheet.png"), columns=2 + len(more))
    assert 0 < int((edges == 255).sum()) < edges.numel()
    assert np.array_equal(shown, edges[0].expand(3, -1, -1).permute(1, 2, 0).numpy())
    drawn = load(models["edges"]).draw_from(Cond(source=edges), n=1)
    assert np.array_equal(result, drawn[0, 0].permute(1, 2, 0).numpy())


def test_a_model_of_label_maps_is_given_the_indices_of_a_palette(models: dict[str, Path], tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[3, 0], [11, 3]], np.uint8), "P")
    palette.putpalette(list(range(100, 100 + 3 * 12)))
    palette.save(tmp_path / "a.png")
    assert run("transform", models["labels"], tmp_path / "a.png", "--out", tmp_path / "out") == 0
    ((shown, _),) = cells(pixels(tmp_path / "out" / "sheet.png"), columns=2)
    indices = torch.tensor([[3, 0], [11, 3]], dtype=torch.uint8).expand(1, 3, -1, -1)
    coloured = label_colours(indices)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(shown, enlarged(coloured, 2)), "a sheet shows each label in its colour"


def test_an_original_smaller_than_the_model_is_refused(models: dict[str, Path], tmp_path: Path, fails: Fails) -> None:
    said = fails("upscale", models["upscale"], square(tmp_path / "a.png", 3), "--original")
    assert "image 0 is 3x3; this model needs at least 4x4" in said


# ---- larger pictures, other sizes, other kinds


def test_pictures_of_two_sizes_have_a_sheet_each(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [square(tmp_path / "a.png", 2), square(tmp_path / "b.png", 3), square(tmp_path / "c.png", 2, seed=1)]
    out = tmp_path / "out"
    assert run("upscale", models["upscale"], *files, "--out", out) == 0
    assert names(out) == ["a-0.png", "b-0.png", "c-0.png", "sheet-4x4.png", "sheet-6x6.png"]
    small, large = (
        cells(pixels(out / "sheet-4x4.png"), columns=2),
        cells(pixels(out / "sheet-6x6.png"), columns=2, side=6),
    )
    for name, row in zip("acb", [*small, *large], strict=True):
        assert np.array_equal(row[0], enlarged(pixels(tmp_path / f"{name}.png"), 2))
        assert np.array_equal(row[1], pixels(out / f"{name}-0.png"))
    assert [line.partition(" ")[0] for line in capsys.readouterr().out.splitlines()[1:]] == [
        str(out / "sheet-4x4.png"),
        str(out / "sheet-6x6.png"),
    ]


def test_a_picture_called_sheet_keeps_its_results(models: dict[str, Path], tmp_path: Path) -> None:
    files = [square(tmp_path / "sheet.png", 2), square(tmp_path / "b.png", 3)]
    out = tmp_path / "out"
    assert run("upscale", models["upscale"], *files, "--out", out) == 0
    assert sum(pixels(path).shape in ((4, 4, 3), (6, 6, 3)) for path in out.iterdir()) == 2


def test_a_larger_picture_is_drawn_in_tiles(models: dict[str, Path], tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png", 3, 5)
    for overlap in (0, 1):
        out = tmp_path / str(overlap)
        assert run("upscale", models["upscale"], file, "--overlap", overlap, "--out", out) == 0
        assert pixels(out / "a-0.png").shape == (6, 10, 3)
    assert run("upscale", models["upscale"], file, "--out", tmp_path / "default") == 0
    default = tmp_path / "default" / "a-0.png"
    assert equal(default, tmp_path / "1" / "a-0.png") and not equal(default, tmp_path / "0" / "a-0.png")


@pytest.mark.parametrize(
    ("size", "words", "message"),
    [
        ((3, 5), ["--no-tile"], "source is 5x3 pixels, this model takes 2x2. Allow overlapping tiles (--tile"),
        ((3, 5), ["--overlap", 2], "overlap = 2 must lie in 0..1"),
        ((3, 5), ["--overlap", -1], "overlap = -1 must lie in 0..1"),
        ((1, 9), [], "source is 9x1 pixels; this model needs at least 2x2"),
        ((2, 2), ["--temperature", 0], "temperature = 0"),
        ((2, 2), ["--top-k", 0], "top_k = 0"),
        ((2, 2), ["--top-p", 1.5], "top_p = 1.5"),
        ((2, 2), ["-n", 0], "-n 0"),
        ((2, 2), ["--scale", 0], "--scale 0"),
        ((2, 2), ["--batch-size", 0], "batch_size = 0"),
        ((2, 2), ["--precision", "float16"], "float16"),
        ((2, 2), ["--label", "dog"], "label = 'dog' was given, but this model has no classes"),
    ],
)
def test_options_out_of_range_and_sizes_that_do_not_fit_are_named(
    models: dict[str, Path], tmp_path: Path, fails: Fails, size: tuple[int, int], words: list[object], message: str
) -> None:
    assert message in fails("upscale", models["upscale"], picture(tmp_path / "a.png", *size), *words)


def test_an_unknown_label_suggests_the_nearest(models: dict[str, Path], tmp_path: Path, fails: Fails) -> None:
    said = fails("upscale", models["classes"], square(tmp_path / "a.png", 2), "--label", "dgo")
    assert "label = 'dgo' is not known to this model" in said and "'dog'" in said


def test_grey_transparent_and_deep_pictures_become_rgb_and_what_changes_them_is_said(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = noise(2, 2)[:, :, 0]
    as_rgb, clear = np.stack([grey] * 3, 2), np.dstack([noise(2, 2), np.zeros((2, 2), np.uint8)])
    same: dict[str, npt.NDArray[Any]] = {"grey": grey, "deep": grey.astype(np.uint16) * 257, "rgb": as_rgb}
    for name, values in {**same, "clear": clear, "white": np.full((2, 2, 3), 255, np.uint8)}.items():
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    for name in (*same, "clear", "white"):
        assert run("upscale", models["upscale"], tmp_path / f"{name}.png", "--out", tmp_path / name) == 0
        notes = capsys.readouterr().out.splitlines()[:-2]
        expected = {"deep": "16-bit grey divided by 257", "clear": "transparency composited on white"}
        assert notes == ([f"{tmp_path / name}.png: {expected[name]}"] if name in expected else [])
    for name in ("grey", "deep"):
        assert equal(tmp_path / name / f"{name}-0.png", tmp_path / "rgb" / "rgb-0.png")
    assert equal(tmp_path / "clear" / "clear-0.png", tmp_path / "white" / "white-0.png")
    assert not equal(tmp_path / "rgb" / "rgb-0.png", tmp_path / "white" / "white-0.png"), "the source has a say"


@pytest.mark.parametrize("name", ["text.png", "text.txt"])
def test_a_file_that_is_no_picture_is_named(models: dict[str, Path], tmp_path: Path, fails: Fails, name: str) -> None:
    (tmp_path / name).write_text("no picture")
    said = fails("upscale", models["upscale"], square(tmp_path / "a.png", 2), tmp_path / name)
    assert f"{tmp_path / name}: not a PNG" in said


# ---- restoring


def white(path: Path, where: npt.NDArray[np.bool_]) -> Path:
    Image.fromarray(np.where(where, 255, 0).astype(np.uint8)).save(path)
    return path


def test_a_known_pixel_stays_exactly_and_a_white_one_is_drawn(models: dict[str, Path], tmp_path: Path) -> None:
    """In a picture of several tiles, too."""
    for height, width in ((4, 4), (7, 5)):
        file = picture(tmp_path / f"{width}.png", height, width)
        missing = np.random.default_rng(1).random((height, width)) < 0.4
        mask, out = white(tmp_path / "mask.png", missing), tmp_path / "out" / str(width)
        assert run("restore", models["restore"], file, "--mask", mask, "-n", 6, "--out", out) == 0
        results = np.stack([pixels(out / f"{width}-{k}.png") for k in range(6)])
        assert (results[:, ~missing] == pixels(file)[~missing]).all()
        assert (results[:, missing] != results[:1, missing]).any((0, 2)).all()


def test_a_rectangle_is_top_left_height_and_width(models: dict[str, Path], tmp_path: Path) -> None:
    file, out = picture(tmp_path / "a.png", 5, 6), tmp_path / "out"
    missing = np.zeros((5, 6), bool)
    missing[1:4, 4:6] = True
    assert run("restore", models["restore"], file, "--rectangle", 1, 4, 3, 2, "-n", 6, "--out", out) == 0
    mask = white(tmp_path / "mask.png", missing)
    assert run("restore", models["restore"], file, "--mask", mask, "-n", 6, "--out", tmp_path / "masked") == 0
    results = np.stack([pixels(out / f"a-{k}.png") for k in range(6)])
    assert (results[:, ~missing] == pixels(file)[~missing]).all()
    assert (results[:, missing] != results[:1, missing]).any((0, 2)).all()
    assert all(equal(out / name, tmp_path / "masked" / name) for name in names(out))


def test_one_mask_is_for_all_pictures(models: dict[str, Path], tmp_path: Path) -> None:
    files = [square(tmp_path / f"{name}.png", 4, seed=seed) for seed, name in enumerate("ab")]
    assert run("restore", models["restore"], *files, *HOLE, "--out", tmp_path / "out") == 0
    for file in files:
        result = pixels(tmp_path / "out" / f"{file.stem}-0.png")
        assert np.array_equal(result[:, [0, 3]], pixels(file)[:, [0, 3]])


def test_masks_and_rectangles_that_cannot_be_used_are_refused(
    models: dict[str, Path], tmp_path: Path, fails: Fails
) -> None:
    file, model = picture(tmp_path / "a.png", 4, 5), models["restore"]
    wide = white(tmp_path / "wide.png", np.ones((5, 4), bool))
    black = white(tmp_path / "black.png", np.zeros((4, 5), bool))
    (tmp_path / "text.png").write_text("no picture")
    for words, messages in (
        (
            [],
            ["what is missing? Give --mask FILE, --rectangle TOP LEFT HEIGHT WIDTH, or --extend TOP RIGHT BOTTOM LEFT"],
        ),
        (["--mask", black, *HOLE], ["--mask, --rectangle and --extend all say what is missing: give one of them"]),
        (["--mask", wide], [str(wide), "is 4x5 pixels, but a picture is 5x4"]),
        (["--mask", black], [str(black), "has no white pixel"]),
        (["--mask", tmp_path / "none.png"], [str(tmp_path / "none.png"), "No such file"]),
        (["--mask", tmp_path / "text.png"], [str(tmp_path / "text.png"), "not a PNG"]),
        (["--rectangle", 1, 3, 2, 3], ["2x3 pixels at row 1, column 3 reaches out of the image of 4x5"]),
        (["--rectangle", -1, 0, 2, 2], ["at row -1, column 0 reaches out of the image of 4x5"]),
        (["--rectangle", 0, 0, 0, 2], ["0x2 pixels at row 0, column 0 is empty"]),
        (["--rectangle", 0, 0, 2], ["rectangle"]),
    ):
        said = fails("restore", model, file, *words)
        assert all(message in said for message in messages), said


# ---- models


@pytest.mark.parametrize(
    ("command", "model", "message"),
    [
        ("upscale", "colourise", "a model of the task super_resolution, but {model} was trained for colourise."),
        ("restore", "denoise", "a model of the task inpaint, but {model} was trained for denoise."),
        ("colourise", "transform", "a model of the task colourise, but {model} was trained for paired."),
        ("denoise", "restore", "a model of the task denoise, but {model} was trained for inpaint."),
        ("denoise", "plain", "a model of the task denoise, but {model} was trained for images alone."),
        ("transform", "plain", "a model with a task, but {model} was trained for images alone."),
        ("transform", "restore", "fills in what a mask says is missing: rasterformer restore"),
        ("upscale", "nowhere", "nowhere"),
    ],
)
def test_a_model_that_cannot_do_it_is_named(
    models: dict[str, Path], tmp_path: Path, fails: Fails, command: str, model: str, message: str
) -> None:
    folder = models.get(model, tmp_path / "nowhere")
    said = fails(command, folder, square(tmp_path / "a.png", 4), *MORE.get(command, []))
    assert message.format(model=folder) in said


@pytest.mark.parametrize(("model", "does_it"), [("colourise", "transform"), ("restore", "restore")])
def test_a_model_of_another_task_comes_with_the_command_that_uses_it(
    models: dict[str, Path], tmp_path: Path, fails: Fails, model: str, does_it: str
) -> None:
    said = fails("upscale", models[model], square(tmp_path / "a.png", 4))
    assert f"`rasterformer {does_it} {models[model]}`" in said


# ---- Ctrl-C


def test_what_is_finished_when_it_is_stopped_stays_and_the_exit_code_says_so(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], stop_after: Callable[[int], None]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    files = [square(tmp_path / f"{name}.png", 2, seed=seed) for seed, name in enumerate("abc")]
    words = ["upscale", models["upscale"], *files, "-n", 2, "--batch-size", 2, "--out"]
    assert run(*words, whole) == 0
    stop_after(2)
    capsys.readouterr()
    assert run(*words, out) == 130
    assert capsys.readouterr().out.splitlines()[0] == f"stopped: 2 of 6 results are in {out}"
    assert names(out) == ["a-0.png", "a-1.png", "sheet.png"]
    assert equal(out / "a-0.png", whole / "a-0.png") and equal(out / "a-1.png", whole / "a-1.png")
    (row,) = cells(pixels(out / "sheet.png"), columns=3)
    assert np.array_equal(row[1], pixels(out / "a-0.png"))


def test_nothing_is_claimed_when_it_is_stopped_before_the_first_result(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], stop_after: Callable[[int], None]
) -> None:
    file, out = square(tmp_path / "a.png", 2), tmp_path / "out"
    stop_after(0)
    assert run("upscale", models["upscale"], file, "--out", out) == 130
    assert capsys.readouterr().out == f"stopped: 0 of 1 results are in {out}\n" and not out.exists()
