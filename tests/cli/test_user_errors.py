"""What a user can do wrong: exit code 2 and one message that says where, what was received and what to do."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rasterformer.cli.main import main

Fails = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny recipe with classes."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    words = ["train", "tiny", "--out", str(folder), "--training.steps", "2", "--data.use_labels", "true"]
    assert main(words) == 0
    return folder


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Runs a command that must exit with 2, and returns what it said."""

    def command(*words: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return said

    return command


def picture(path: Path, side: int = 12) -> Path:
    values = np.random.default_rng(len(path.name)).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def test_empty_folder_is_named(fails: Fails, tmp_path: Path) -> None:
    assert str(tmp_path) in fails("train", "tiny", "--data", tmp_path, "--out", tmp_path / "run")


def test_folder_of_broken_images_names_one(fails: Fails, tmp_path: Path) -> None:
    for name in ("broken.png", "broken-too.jpg", "broken-as-well.webp"):
        (tmp_path / name).write_bytes(b"not a picture")
    assert "broken" in fails("train", "tiny", "--data", tmp_path, "--out", tmp_path / "run")


def test_images_smaller_than_the_model_are_named_with_their_size(fails: Fails, tmp_path: Path) -> None:
    for k in range(12):
        picture(tmp_path / f"{k}.png", 5)
    said = fails("train", "tiny", "--data", tmp_path, "--out", tmp_path / "run")
    assert "5x5" in said and "image_size" in said


def test_unknown_recipe_key_suggests_the_nearest(fails: Fails) -> None:
    assert "'depth'" in fails("train", "tiny", "--model.depht", "3", "--dry-run")


def test_heads_that_do_not_divide_the_width_are_explained(fails: Fails) -> None:
    assert "model.num_heads = 5 does not divide model.width = 16" in fails(
        "train", "tiny", "--model.num_heads", "5", "--dry-run"
    )


def test_all_problems_of_a_recipe_are_reported_at_once(fails: Fails) -> None:
    said = fails(
        "train", "tiny", "--model.num_heads", "5", "--training.batch_size", "0", "--data.flip", "1", "--dry-run"
    )
    assert all(name in said for name in ("model.num_heads", "training.batch_size", "flip"))


def test_unknown_label_lists_the_known_ones(fails: Fails, run: Path) -> None:
    said = fails("sample", run, "--label", "pruple")
    assert "pruple" in said and "Allowed" in said


def test_label_for_a_model_without_classes_is_refused(fails: Fails, tmp_path: Path) -> None:
    assert main(["train", "tiny", "--out", str(tmp_path / "run"), "--training.steps", "1"]) == 0
    assert "no classes" in fails("sample", tmp_path / "run", "--label", "blond")


def test_mask_that_is_no_prefix_says_where_it_breaks(fails: Fails, run: Path, tmp_path: Path) -> None:
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[4:] = 255  # the lower half is known
    Image.fromarray(mask).save(tmp_path / "mask.png")
    said = fails("complete", run, picture(tmp_path / "a.png"), "--known", tmp_path / "mask.png")
    assert "row 0, column 0" in said and "row 7, column 7" in said


def test_flipped_byte_in_a_checkpoint_is_found_and_named(fails: Fails, run: Path, tmp_path: Path) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(run / "model", model)
    content = bytearray((model / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (model / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in fails("sample", model, "--out", tmp_path / "out")


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_missing_model_is_named(fails: Fails, command: str, tmp_path: Path) -> None:
    assert "nowhere" in fails(command, tmp_path / "nowhere")


def test_missing_data_is_named(fails: Fails, tmp_path: Path) -> None:
    said = fails("train", "tiny", "--data", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert "nowhere" in said and "toonheads" in said


def test_image_smaller_than_the_model_cannot_be_completed(fails: Fails, run: Path, tmp_path: Path) -> None:
    assert "4x4" in fails("complete", run, picture(tmp_path / "small.png", 4))


def test_a_run_is_not_overwritten(fails: Fails, run: Path) -> None:
    assert "--resume" in fails("train", "tiny", "--out", run)


def test_resuming_with_another_recipe_names_the_difference(fails: Fails, run: Path) -> None:
    said = fails("train", "tiny", "--out", run, "--resume", "--model.depth", "3", "--data.use_labels", "true")
    assert "model.depth was 2, is 3" in said


@pytest.mark.parametrize(
    ("option", "value"), [("--temperature", "0"), ("--top-k", "0"), ("--top-p", "1.5"), ("-n", "0")]
)
def test_sampling_options_out_of_range_are_named(fails: Fails, run: Path, option: str, value: str) -> None:
    assert value in fails("sample", run, option, value)


def test_one_broken_file_among_good_ones_does_not_stop_training(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for k in range(24):
        picture(images / f"picture-{k}.png")
    (images / "broken.png").write_bytes(b"not a picture")
    words = ["train", "tiny", "--data", str(images), "--out", str(tmp_path / "run"), "--training.steps", "2"]
    assert main(words) == 0
    assert "broken.png" in capsys.readouterr().out
    assert main(["sample", str(tmp_path / "run"), "-n", "2", "--out", str(tmp_path / "drawn")]) == 0
    assert (tmp_path / "drawn" / "grid.png").is_file()


@pytest.mark.parametrize("command", ["upscale", "restore", "colourise", "denoise", "transform"])
def test_a_model_of_images_alone_makes_nothing_from_a_picture(
    fails: Fails, run: Path, tmp_path: Path, command: str
) -> None:
    more = ["--rectangle", 0, 0, 2, 2] if command == "restore" else []
    said = fails(command, run, picture(tmp_path / "a.png"), *more, "--out", tmp_path / "out")
    assert f"{command} needs a " in said and f"{run} was trained for images alone" in said


def test_a_model_with_a_task_draws_nothing_without_a_source(fails: Fails, tmp_path: Path) -> None:
    from rasterformer.recipe_file import load_recipe
    from rasterformer.system import System

    recipe = load_recipe("tiny", [("task.name", "super_resolution"), ("model.encoder_depth", "1")])
    System.create(recipe).save(tmp_path / "model")
    said = fails("sample", tmp_path / "model", "--out", tmp_path / "out")
    assert "sample draws images from nothing" in said and "upscale" in said
    said = fails("complete", tmp_path / "model", picture(tmp_path / "a.png"), "--out", tmp_path / "out")
    assert "complete draws images from nothing" in said and "transform" in said


def test_a_task_without_an_encoder_and_an_encoder_without_a_task_are_explained(fails: Fails) -> None:
    said = fails("train", "tiny", "--task.name", "denoise", "--dry-run")
    assert "task is set, but the network reads no source" in said and "model.encoder_depth" in said
    said = fails("train", "tiny", "--model.encoder_depth", "1", "--dry-run")
    assert "model.encoder_depth is set, but there is no task" in said and "task.name" in said


def test_a_factor_that_does_not_divide_is_named_with_those_that_do(fails: Fails) -> None:
    said = fails("train", "upscale", "--task.factor", "5", "--dry-run")
    assert "task.factor = 5 does not divide data.image_size = 32" in said and "2, 4, 8, 16, 32" in said


def test_pictures_in_pairs_need_their_second_folder(fails: Fails, tmp_path: Path) -> None:
    words = ["train", "tiny", "--task.name", "paired", "--model.encoder_depth", "1", "--out", tmp_path / "run"]
    assert "task.source_path is missing" in fails(*words)
    for folder, names in (("targets", "ab"), ("sources", "a")):
        (tmp_path / folder).mkdir()
        for name in names:
            picture(tmp_path / folder / f"{name}.png")
    said = fails(*words, "--data", tmp_path / "targets", "--task.source_path", tmp_path / "sources")
    assert "1 of" in said and "'b.png'" in said and "task.source_path" in said
