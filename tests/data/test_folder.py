"""Folders of images as people keep them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rasterformer.data import open_images
from rasterformer.data.scan import scan
from rasterformer.data.source import passed_over
from rasterformer.errors import DataError


def test_images_are_found_at_any_depth_in_the_order_of_their_names(tmp_path: Path, write_folder, noise) -> None:
    write_folder(tmp_path, ["b.png", "a/x/deep.png", "c.BMP"])
    images = open_images(str(tmp_path), image_size=8)
    expected = np.stack([noise(8, 8, seed) for seed in (1, 0, 2)]).transpose(0, 3, 1, 2)
    assert np.array_equal(images.images(slice(None)).numpy(), expected)
    assert (images.name, images.split, images.class_names, images.labels, images.captions) == (
        tmp_path.name, "all", (), None, None,
    )  # fmt: skip
    assert images.preprocessing == "none (stored at 8x8)"
    assert images.lossless is True


def test_subfolders_are_classes(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, ["dog/1.png", "cat/2.png", "cat/more/3.png"])
    images = open_images(str(tmp_path), image_size=8)
    assert images.class_names == ("cat", "dog")
    assert images.labels is not None and images.labels.tolist() == [0, 0, 1]
    assert images.labels.dtype == torch.int64


@pytest.mark.parametrize("names", [["dog/1.png", "cat/2.png", "3.png"], ["only/1.png", "only/2.png"]])
def test_images_beside_folders_or_a_single_folder_make_no_classes(tmp_path: Path, write_folder, names) -> None:
    write_folder(tmp_path, names)
    assert open_images(str(tmp_path), image_size=8).labels is None


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
def test_train_and_test_folders_are_the_sets_own_split(tmp_path: Path, write_folder, test: str) -> None:
    write_folder(tmp_path, ["train/cat/1.png", "train/dog/2.png", f"{test}/dog/3.png"])
    held_out = open_images(str(tmp_path), image_size=8, split="test")
    train = open_images(str(tmp_path), image_size=8, split="train")
    assert (len(train), len(held_out)) == (2, 1)
    assert held_out.class_names == train.class_names == ("cat", "dog")
    assert held_out.labels is not None and held_out.labels.tolist() == [1]
    assert held_out.split_origin == f"the set's own folders train/ and {test}/"


def test_third_part_belongs_to_neither(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, ["train/1.png", "test/2.png", "val/3.png"])
    sets = {split: open_images(str(tmp_path), image_size=8, split=split) for split in ("train", "test", "all")}
    assert [len(images) for images in sets.values()] == [1, 1, 3]
    assert sets["train"].split_origin.endswith("(1 image in neither)")


def test_metadata_jsonl_gives_labels_and_captions_and_chooses_the_images(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, ["a.png", "sub/b.png", "unlisted.png"])
    rows = [
        {"file_name": "sub/b.png", "label": "wolf", "text": "a wolf"},
        {"file_name": "a.png", "label": "ant"},
        {"file_name": "../gone.png", "label": "ant"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    images = open_images(str(tmp_path), image_size=8)
    assert images.class_names == ("ant", "wolf")
    assert images.labels is not None and images.labels.tolist() == [0, 1]
    assert images.captions == ("", "a wolf")
    assert images.skipped == (
        ("unlisted.png", "not listed in metadata.jsonl"),
        ("../gone.png", "listed in metadata.jsonl, but missing"),
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            {"txt": "a cat"},
            "has the columns file_name, txt; captions are read from text or caption. Did you mean 'text'?",
        ),
        ({"captions": "a cat"}, "file_name, captions; captions are read from text or caption. Did you mean 'caption'?"),
        ({"prompt": "a cat", "label": 1}, "file_name, prompt, label; captions are read from text or caption."),
    ],
)
def test_columns_that_nothing_reads_are_named_where_captions_are_missing(
    tmp_path: Path, write_folder, rows: dict[str, object], said: str
) -> None:
    write_folder(tmp_path, ["a.png"])
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", **rows}))
    with pytest.raises(DataError) as caught:
        open_images(str(tmp_path), image_size=8).captions_of(torch.arange(0))
    assert str(caught.value).endswith(f"metadata.jsonl {said}" if said.startswith("has") else said)
    assert any(action.endswith(said) for action in scan(str(tmp_path)).actions)


def test_other_columns_are_not_spoken_of_where_there_are_captions_or_all_are_read(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, ["a.png"])
    for row in ({"text": "a cat", "licence": "free"}, {"label": "cat"}):
        (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", **row}))
        assert open_images(str(tmp_path), image_size=8).caption_hint == ""
        assert not any("columns" in action for action in scan(str(tmp_path)).actions)


def test_one_listed_image_of_many_is_refused_with_what_the_list_leaves_out(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{"file_name": "gone.png"}\n')
    with pytest.raises(DataError) as caught:
        open_images(str(tmp_path), image_size=8, split="train")
    assert str(caught.value).endswith(
        "one image cannot be divided into train and test. Of 4 only 1 is used: 2 not listed in metadata.jsonl (first b.png); "
        "1 listed in metadata.jsonl, but missing (first gone.png)."
    )
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "gone.png"}\n')
    with pytest.raises(
        DataError, match=r"no image in it that can be used: 3 not listed in metadata.jsonl \(first a.png\); 1 "
    ):
        open_images(str(tmp_path), image_size=8)


def test_reasons_are_counted_and_the_rarest_are_summed() -> None:
    reasons = ["a"] * 4 + ["b"] * 3 + ["c"] * 2 + ["d", "e"]
    skipped = [(str(k), reason) for k, reason in enumerate(reasons)]
    assert passed_over(skipped) == "4 a (first 0); 3 b (first 4); 2 c (first 7); 2 for other reasons"
    assert passed_over(skipped[:1]) == "1 a (first 0)"


def test_metadata_csv_in_the_folders_of_a_split(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, ["train/a.png", "train/b.png", "test/c.png"])
    (tmp_path / "train/metadata.csv").write_text('file_name,label,caption\na.png,10,"red, round"\nb.png,9,\n')
    (tmp_path / "test/metadata.csv").write_text("file_name,label\nc.png,10\n")
    train = open_images(str(tmp_path), image_size=8, split="train")
    assert train.class_names == ("9", "10")
    assert train.labels is not None and train.labels.tolist() == [1, 0]
    assert train.captions == ("red, round", "")
    assert open_images(str(tmp_path), image_size=8, split="test").labels == torch.tensor([1])


def test_image_without_a_label_among_labelled_ones_is_skipped(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, ["a.png", "b.png"])
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "label": 3}\n{"file_name": "b.png"}\n')
    images = open_images(str(tmp_path), image_size=8)
    assert (len(images), images.class_names, images.skipped) == (1, ("3",), (("b.png", "no label in metadata.jsonl"),))


@pytest.mark.parametrize(
    ("name", "content", "received"),
    [
        ("metadata.jsonl", b'{"file_name": "a.png"}\n{oops\n', "metadata.jsonl, line 2: not JSON"),
        ("metadata.jsonl", b"[1]\n", r"metadata.jsonl, line 1: \[1\] is not an object"),
        ("metadata.jsonl", b'{"label": 1}\n', "line 1: file_name is None"),
        ("metadata.jsonl", b'{"file_name": "a.png", "label": 1.5}\n', "line 1: label is 1.5"),
        ("metadata.jsonl", b'{"file_name": "a.png", "label": true}\n', "line 1: label is True"),
        ("metadata.jsonl", b'{"file_name": "a.png", "text": 5}\n', "line 1: the caption is 5"),
        ("metadata.csv", b"file_name\n\xff.png\n", "metadata.csv: byte 10 is not UTF-8"),
        ("metadata.csv", b"picture\na.png\n", "metadata.csv, line 2: file_name is None"),
        ("metadata.jsonl", b"\n", "metadata.jsonl lists no image. Give each image a line with its file_name"),
        ("metadata.csv", b"file_name,text\n", "metadata.csv lists no image"),
    ],
)
def test_damaged_metadata_is_refused_with_its_line(tmp_path: Path, write_folder, name, content, received) -> None:
    write_folder(tmp_path, ["a.png"])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=received) as caught:
        open_images(str(tmp_path), image_size=8)
    assert f"data.path = {str(tmp_path)!r}" in str(caught.value)


def test_txt_beside_an_image_is_its_caption(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, ["a.png", "b.png"])
    (tmp_path / "a.txt").write_text("  ein Bär\n", encoding="utf-8")
    assert open_images(str(tmp_path), image_size=8).captions == ("ein Bär", "")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff", "caption is not UTF-8 at byte 0"),
        (b"a\0b", "caption has a NUL character"),
        (b"x" * 4097, "longer than 4096"),
    ],
)
def test_bad_caption_is_left_out_and_reported_but_its_image_is_used(tmp_path, write_folder, content, reason) -> None:
    write_folder(tmp_path, ["a.png"])
    (tmp_path / "a.txt").write_bytes(content)
    images = open_images(str(tmp_path), image_size=8)
    assert len(images) == 1 and images.captions is None
    assert images.skipped[0][0] == "a.txt" and reason in images.skipped[0][1]


def test_one_broken_file_never_stops_the_others(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, ["cat/a.png", "dog/b.png", "dog/c.png"])
    (tmp_path / "cat/broken.png").write_bytes(b"no image at all")
    images = open_images(str(tmp_path), image_size=8)
    assert len(images) == 3
    assert images.labels is not None and images.labels.tolist() == [0, 1, 1]
    assert [name for name, _ in images.skipped] == ["cat/broken.png"]
    assert "not a PNG" in images.skipped[0][1]


def test_smaller_images_are_skipped_and_named(tmp_path: Path, write_image, noise) -> None:
    write_image(tmp_path / "large.png", noise(8, 8))
    write_image(tmp_path / "small.png", noise(20, 7))
    images = open_images(str(tmp_path), image_size=8)
    assert (len(images), images.skipped) == (1, (("small.png", "7x20 pixels, smaller than 8x8"),))


def test_links_that_leave_the_folder_are_refused_and_those_inside_followed(tmp_path: Path, write_folder) -> None:
    outside = write_folder(tmp_path / "outside", ["secret.png"])
    root = write_folder(tmp_path / "root", ["a.png"])
    (root / "inside.png").symlink_to(root / "a.png")
    (root / "leak.png").symlink_to(outside / "secret.png")
    (root / "nothing.png").symlink_to(root / "gone.png")
    (root / "folder").symlink_to(outside)
    images = open_images(str(root), image_size=8)
    assert len(images) == 2
    assert dict(images.skipped) == {
        "leak.png": "link that leaves the folder",
        "nothing.png": "not a regular file, or a link to nothing",
        "folder": "link to a folder: not followed",
    }


def test_lossless_is_false_for_jpeg_and_unknown_for_a_mixture(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path / "jpeg", ["a.jpg", "b.jpeg"])
    write_folder(tmp_path / "mixed", ["a.jpg", "b.png"])
    write_folder(tmp_path / "webp", ["a.webp"])
    assert open_images(str(tmp_path / "jpeg"), image_size=8).lossless is False
    assert open_images(str(tmp_path / "mixed"), image_size=8).lossless is None
    assert open_images(str(tmp_path / "webp"), image_size=8).lossless is None


def test_preprocessing_says_what_was_done(tmp_path: Path) -> None:
    for name, size in {"crop": (8, 6), "box": (12, 12), "both": (14, 12), "lanczos": (7, 7)}.items():
        (tmp_path / name).mkdir()
        Image.new("RGB", size).save(tmp_path / name / "a.png")
    (tmp_path / "mixed").mkdir()
    for k, side in enumerate((6, 12, 12, 9)):
        Image.new("RGB", (side, side)).save(tmp_path / "mixed" / f"{k}.png")

    def words(name: str, fit: str = "crop") -> str:
        return open_images(str(tmp_path / name), image_size=6, fit=fit).preprocessing

    assert words("crop") == "centre crop to 6x6"
    assert words("box") == "reduced to 6x6 by box averaging"
    assert words("both") == "centre crop to a square, reduced to 6x6 by box averaging"
    assert words("both", "stretch") == "both sides separately, reduced to 6x6 by Lanczos"
    assert words("lanczos") == "reduced to 6x6 by Lanczos"
    assert words("mixed") == "reduced to 6x6 (1 as stored, 2 by box averaging, 1 by Lanczos)"
