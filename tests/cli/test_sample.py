"""`sample` and `complete` on the command line: plans, going on, stopping; what is on the disk afterwards."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rasterformer.cli.main import main
from rasterformer.data.png import read_png_metadata
from rasterformer.recipe_file import load_recipe
from rasterformer.system import System

POSITIONS = 64  # of an image of the recipe `tiny`


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of the recipe `tiny`, with classes."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    System.create(load_recipe("tiny"), class_names=("cat", "dog")).save(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two images to complete."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed, name in enumerate(("a", "b")):
        values = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{name}.png")
    return [folder / "a.png", folder / "b.png"]


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Presses Ctrl-C when that many images are finished and the next ones have begun."""

    def arrange(finished: int) -> None:
        @contextmanager
        def progress(what: str) -> Iterator[Callable[[int, int], None]]:
            def told(done: int, total: int) -> None:
                if done > finished * POSITIONS:
                    raise KeyboardInterrupt

            yield told

        monkeypatch.setattr("rasterformer.cli.progress.step_progress", progress)

    return arrange


def run(*words: object) -> int:
    return main([str(word) for word in words])


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.size[0].to_bytes(4, "big") + image.tobytes()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("words", "first_line"),
    [
        (["-n", "5", "--batch-size", "2"], "5 images of 64 positions, 2 at a time in 3 batches"),
        (["-n", "100"], "100 images of 64 positions, 64 at a time in 2 batches"),
        (["-n", "3", "--parallel"], "3 images of 64 positions, 1 at a time in 3 batches"),
        (["-n", "3", "--precision", "bfloat16"], "3 images of 64 positions, 3 at a time in 1 batch"),
    ],
)
def test_a_dry_run_of_sample_says_what_it_takes_and_writes_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], first_line: str
) -> None:
    assert run("sample", model, *words, "--dry-run", "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == first_line
    assert said[1].startswith("memory: ") and said[1].endswith(" MiB free") and len(said) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_complete_counts_all_completions_and_writes_nothing(
    model: Path, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-n", "3", "--batch-size", "4", "--dry-run", "--out", tmp_path / "out"]
    assert run("complete", model, *pictures, *words) == 0
    said = capsys.readouterr().out
    assert said.startswith("6 images of 64 positions, 4 at a time in 2 batches\nmemory: ")
    assert list(tmp_path.iterdir()) == []


def test_first_names_the_files_and_draws_the_images_of_the_larger_run(model: Path, tmp_path: Path) -> None:
    """Classes are drawn too, one for each image."""
    assert run("sample", model, "-n", "4", "--seed", "3", "--out", tmp_path / "all") == 0
    assert run("sample", model, "-n", "2", "--seed", "3", "--first", "2", "--out", tmp_path / "rest") == 0
    assert names(tmp_path / "rest") == ["0002.png", "0003.png", "grid.png"]
    for name in ("0002.png", "0003.png"):
        assert pixels(tmp_path / "rest" / name) == pixels(tmp_path / "all" / name)
        assert read_png_metadata(tmp_path / "rest" / name) == read_png_metadata(tmp_path / "all" / name)
    assert len({pixels(tmp_path / "all" / f"000{k}.png") for k in range(4)}) == 4


def test_parallel_and_batch_size_leave_the_same_files(model: Path, tmp_path: Path) -> None:
    for folder, words in (("plain", []), ("parallel", ["--parallel"]), ("batches", ["--batch-size", "2"])):
        assert run("sample", model, "-n", "3", *words, "--out", tmp_path / folder) == 0
    assert names(tmp_path / "plain") == ["0000.png", "0001.png", "0002.png", "grid.png"]
    for folder in ("parallel", "batches"):
        assert names(tmp_path / folder) == names(tmp_path / "plain")
        for name in names(tmp_path / folder):
            assert pixels(tmp_path / folder / name) == pixels(tmp_path / "plain" / name)


def test_stopped_sampling_leaves_what_is_finished_and_says_how_to_go_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stop_after: Callable[[int], None]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    words = ["sample", model, "-n", "5", "--seed", "1", "--batch-size", "2", "--out"]
    assert run(*words, whole) == 0
    stop_after(2)
    capsys.readouterr()
    assert run(*words, out) == 130
    assert capsys.readouterr().out == f"stopped: 2 of 5 images are in {out}; the others: --first 2 -n 3\n"
    assert names(out) == ["0000.png", "0001.png", "grid.png"]
    record = read_png_metadata(out / "grid.png")
    assert record is not None and (record["first"], record["images"]) == (0, 2)


def test_what_stopping_advises_completes_the_images(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stop_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a run that itself began with --first."""
    words = ["sample", model, "--seed", "1", "--batch-size", "2", "--out"]
    assert run(*words, tmp_path / "whole", "-n", "5", "--first", "7") == 0
    stop_after(2)
    capsys.readouterr()
    assert run(*words, tmp_path / "out", "-n", "5", "--first", "7") == 130
    monkeypatch.undo()
    advice = capsys.readouterr().out.partition("the others: ")[2].split()
    assert advice == ["--first", "9", "-n", "3"]
    assert run(*words, tmp_path / "out", *advice) == 0
    assert names(tmp_path / "out") == names(tmp_path / "whole")
    for number in range(7, 12):
        assert pixels(tmp_path / "out" / f"{number:04d}.png") == pixels(tmp_path / "whole" / f"{number:04d}.png")


def test_sampling_stopped_before_the_first_image_claims_none(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stop_after: Callable[[int], None]
) -> None:
    stop_after(0)
    assert run("sample", model, "-n", "3", "--out", tmp_path / "out") == 130
    said = capsys.readouterr().out
    assert said.startswith("stopped: 0 of 3 images") and said.endswith("--first 0 -n 3\n")
    assert list(tmp_path.iterdir()) == []


def test_sampling_stopped_while_a_batch_is_written_claims_only_what_is_there(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C just before the second image of the second batch is written: the advice must not skip it."""
    from rasterformer.data import png

    write = png.write_png

    def stopped(path: Path, *arguments: object, **named: object) -> None:
        if path.name == "0003.png":
            raise KeyboardInterrupt
        write(path, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(png, "write_png", stopped)
    out = tmp_path / "out"
    assert run("sample", model, "-n", "5", "--batch-size", "2", "--out", out) == 130
    advice = capsys.readouterr().out.partition("--first ")[2].split()
    first = int(advice[0])
    assert all((out / f"{number:04d}.png").is_file() for number in range(first)), f"--first {first} leaves a gap"


def test_stopped_completing_leaves_what_is_finished_and_says_so(
    model: Path,
    pictures: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stop_after: Callable[[int], None],
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    words = ["complete", model, *pictures, "-n", "2", "--batch-size", "3", "--out"]
    assert run(*words, whole) == 0
    assert names(whole) == ["a-0.png", "a-1.png", "b-0.png", "b-1.png", "grid.png"]
    stop_after(3)
    capsys.readouterr()
    assert run(*words, out) == 130
    assert capsys.readouterr().out.startswith(f"stopped: 3 of 4 completions are in {out}")
    finished = ["a-0.png", "a-1.png", "b-0.png"]
    assert set(finished) <= set(names(out)) and "b-1.png" not in names(out)
    assert all(pixels(out / name) == pixels(whole / name) for name in finished)


def test_each_completion_bears_the_name_of_the_image_whose_upper_half_it_keeps(
    model: Path, pictures: list[Path], tmp_path: Path
) -> None:
    words = ["-n", "2", "--batch-size", "3", "--out", tmp_path]
    assert run("complete", model, *pictures, *words) == 0
    drawn = [pixels(tmp_path / f"{picture.stem}-{k}.png") for picture in pictures for k in range(2)]
    half = len(drawn[0]) // 2
    assert [image[:half] for image in drawn] == [pixels(picture)[:half] for picture in pictures for _ in range(2)]
    assert len(set(drawn)) == 4


@pytest.mark.parametrize("command", ["sample", "complete"])
def test_parallel_with_a_batch_size_is_refused(
    model: Path, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    images = pictures if command == "complete" else []
    assert run(command, model, *images, "--parallel", "--batch-size", "2", "--out", tmp_path / "out") == 2
    assert "batch_size = 2, but parallel draws one image at a time" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert run(command, model, *images, "-n", "1", "--parallel", "--batch-size", "1", "--out", tmp_path / "out") == 0


def test_pictures_of_earlier_calls_are_mentioned(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sample", model, "-n", 2, "--out", tmp_path) == 0
    assert "earlier calls" not in capsys.readouterr().out
    assert run("sample", model, "-n", 1, "--out", tmp_path) == 0
    assert "holds 1 more of earlier calls, such as 0001.png" in capsys.readouterr().out
