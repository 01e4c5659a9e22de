"""The report of a folder with everything in it, and how the command shows it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rasterformer.cli.main import main
from rasterformer.cli.scan import scan as scan_command
from rasterformer.data.scan import scan
from rasterformer.errors import DataError


@pytest.fixture
def folder(tmp_path: Path, write_folder, write_image, noise) -> Path:
    root = write_folder(tmp_path / "pets", ["cat/a.png", "cat/b.png", "dog/c.bmp"])
    shutil.copy(root / "cat/a.png", root / "dog/copy of a.png")
    write_image(root / "dog/large.jpg", noise(20, 30))
    layered = np.zeros((9, 9, 4), np.uint8)
    write_image(root / "dog/transparent.png", layered)
    (root / "cat/empty.png").touch()
    (root / "cat/broken.png").write_bytes(b"broken")
    (root / "cat/a.txt").write_text("a cat")
    (root / "notes.md").write_text("not an image")
    return root


def test_report_counts_everything(folder: Path) -> None:
    report = scan(str(folder))
    assert (report.name, report.ok, report.repaired, len(report.skipped)) == ("pets", 5, 1, 2)
    assert report.repairs == {"transparency composited on white": 1}
    assert [name for name, _ in report.skipped] == ["cat/broken.png", "cat/empty.png"]
    assert report.zero_bytes == ("cat/empty.png",)
    assert report.sizes == {"8x8": 4, "30x20": 1, "9x9": 1}
    assert report.formats == {"PNG": 4, "BMP": 1, "JPEG": 1}
    assert report.modes == {"RGB": 5, "RGBA": 1}
    assert report.classes == {"cat": 2, "dog": 4}
    assert report.duplicates == (("cat/a.png", "dog/copy of a.png"),)
    assert (report.captions, report.other_files, report.smallest_side) == (1, ("notes.md",), 8)
    assert (report.split_origin, report.splits) == (None, {})


def test_actions_say_what_training_will_do(folder: Path) -> None:
    actions = "\n".join(scan(str(folder)).actions)
    for sentence in (
        "6 of 8 images will be used; the others are passed over.",
        "1 image: transparency composited on white.",
        "With data.image_size up to 8 all of them are used",
        "1 image is a copy of another one",
        "2 classes are there",
        "The set has no split of its own",
    ):
        assert sentence in actions


def test_report_of_nothing_usable(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    report = scan(str(tmp_path))
    assert (report.ok, report.smallest_side) == (0, None)
    assert report.actions == ("There is nothing to train on: no image can be used.",)


@pytest.mark.parametrize(
    ("texts", "sentences"),
    [
        (["a cat", "a dog", "a cow"], []),
        (["a cat"], ["2 of 3 pictures have no caption: they are trained as pictures whose caption is hidden."]),
        (["a cat", " \n"], ["2 of 3 pictures have no caption: they are trained as", "1 .txt files are empty."]),
        (["", ""], ["2 .txt files are empty, and there is no other caption: text to image cannot be trained."]),
        ([], []),
    ],
)
def test_pictures_without_a_caption_and_empty_ones_are_counted(
    tmp_path: Path, write_folder, texts: list[str], sentences: list[str]
) -> None:
    names = ["a.png", "b.png", "c.png"]
    root = write_folder(tmp_path, names)
    for name, text in zip(names, texts, strict=False):
        (root / name).with_suffix(".txt").write_text(text, encoding="utf-8")
    report = scan(str(root))
    assert report.captions == sum(bool(text.strip()) for text in texts)
    assert report.empty_captions == sum(not text.strip() for text in texts)
    said = [action for action in report.actions if "caption" in action or ".txt" in action]
    assert len(said) == len(sentences)
    for action, sentence in zip(said, sentences, strict=True):
        assert action.startswith(sentence)


def test_command_ends_with_an_error_where_there_is_nothing_to_train_on(
    tmp_path: Path, write_folder, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").touch()
    assert main(["scan", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "There is nothing to train on: no image can be used." in captured.out
    assert "no image can be used (the first: a.png: " in captured.err and "0 bytes" in captured.err
    unlisted = write_folder(tmp_path / "unlisted", ["a.png"])
    (unlisted / "metadata.jsonl").touch()
    assert main(["scan", str(unlisted)]) == 2
    assert "metadata.jsonl lists no image. Give each image a line with its file_name" in capsys.readouterr().err


def test_own_split_is_counted() -> None:
    report = scan("emoji")
    assert report.splits == {"train": 2818, "test": 305}
    assert "copies of another one and are used all the same; none lies in train and in test." in report.actions[2]
    assert sum(report.classes.values()) == 3123


def test_copies_across_the_split_are_counted(tmp_path: Path, write_folder) -> None:
    root = write_folder(tmp_path, ["train/a.png", "train/b.png", "test/c.png"])
    shutil.copy(root / "train/a.png", root / "test/a.png")
    assert "1 pictures lie in train and in test: remove them from one" in "\n".join(scan(str(root)).actions)


def test_missing_path_is_refused() -> None:
    with pytest.raises(DataError, match="'no/such/place': no such file"):
        scan("no/such/place")


def test_command_prints_and_writes_json(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan_command(str(folder), json=tmp_path / "report.json")
    printed = capsys.readouterr().out
    for words in ("pets: 6 usable images", "repaired", "cat/broken.png", "What will be done:", "report.json"):
        assert words in printed
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["ok"] == 5 and written["duplicates"] == [["cat/a.png", "dog/copy of a.png"]]
    assert written == json.loads(json.dumps(scan(str(folder)).to_dict()))


def test_command_refuses_a_json_path_that_cannot_be_written(folder: Path) -> None:
    with pytest.raises(DataError, match="gone/report.json: cannot be written"):
        scan_command(str(folder), json=Path("gone/report.json"))


def test_hostile_names_are_printed_as_escapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    for name in (b"\xff.png", b"\x1b[31mred.png", b"[bold]x.png"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(b"broken")
    scan_command(str(tmp_path))
    printed = capsys.readouterr().out
    assert "\\udcff.png" in printed and "\\x1b[31mred.png" in printed and "[bold]x.png" in printed
    assert "\x1b[31m" not in printed
