"""Contact sheets, and folders of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rasterformer.data import open_images
from rasterformer.data.compact import tile_size
from rasterformer.errors import DataError


def tiles(count: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def write_sheet(path: Path, images: np.ndarray, columns: int) -> None:
    """Draws tile after tile, as a person would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = images.shape[1]
    sheet = Image.new("RGB", (columns * size, -(-len(images) // columns) * size))
    for k, image in enumerate(images):
        sheet.paste(Image.fromarray(image), (k % columns * size, k // columns * size))
    sheet.save(path, lossless=True)


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 200))
def test_the_size_of_the_tiles_follows_from_sheet_and_count(size: int, columns: int, count: int) -> None:
    rows = -(-count // columns)
    assert tile_size(columns * size, rows * size, count, where="x") == size


def test_sheet_of_another_count_is_refused() -> None:
    with pytest.raises(DataError, match="x.webp: 80x24 pixels are no contact sheet of 7 square tiles"):
        tile_size(80, 24, 7, where="x.webp")


@pytest.mark.parametrize("suffix", [".webp", ".npz"])
def test_sheet_with_npz_by_its_own_path(tmp_path: Path, suffix: str) -> None:
    images = tiles(7, 4)
    write_sheet(tmp_path / "pets.webp", images, columns=3)
    np.savez(tmp_path / "pets.npz", labels=np.array([1, 0, 1, 0, 1, 0, 0]), classes=np.array(["cat", "dog"]))
    opened = open_images(str(tmp_path / f"pets{suffix}"), image_size=4)
    assert np.array_equal(opened.images(slice(None)).numpy(), images.transpose(0, 3, 1, 2))
    assert opened.class_names == ("cat", "dog") and opened.lossless is True
    assert opened.labels is not None and opened.labels.tolist() == [1, 0, 1, 0, 1, 0, 0]


def test_folder_with_train_and_test_sheets_and_jsonl_captions(tmp_path: Path) -> None:
    for split, count in (("train", 5), ("test", 2)):
        write_sheet(tmp_path / f"{split}.webp", tiles(count, 4, seed=count), columns=3)
        lines = [json.dumps({"caption": f"{split} {k}"}) for k in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    test = open_images(str(tmp_path), image_size=4, split="test")
    assert np.array_equal(test.images(slice(None)).numpy(), tiles(2, 4, seed=2).transpose(0, 3, 1, 2))
    assert test.captions == ("test 0", "test 1")
    assert test.split_origin == "the set's own files train and test"
    assert len(open_images(str(tmp_path), image_size=4)) == 7


def test_lossless_sheets_are_preferred_to_packed_jpegs_and_cifar10_gets_its_class_names(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10"
    for split in ("train", "test"):
        write_sheet(folder / f"{split}_lossless.webp", tiles(11, 4), columns=3)
        np.savez(
            folder / f"{split}_lossless.npz",
            labels=np.array([9, 3, 0, 3, 1, 2, 4, 5, 6, 7, 8], np.uint8),
            index=np.arange(11),
        )
        np.savez(folder / f"{split}_jpeg75.npz", jpeg=np.zeros(1, np.uint8), offsets=np.array([0, 1]))
    images = open_images(str(folder), image_size=4, split="train")
    assert images.name == "cifar10 (compact, lossless)" and images.lossless is True
    assert images.labels is not None
    assert [images.class_names[k] for k in images.labels.tolist()[:4]] == ["truck", "cat", "airplane", "cat"]
    assert images.split_origin == "the set's own files train_lossless and test_lossless"


def test_folder_with_one_npz_is_that_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", images=tiles(3, 4))
    assert len(open_images(str(tmp_path), image_size=4)) == 3


def test_several_sets_that_are_no_split_are_refused(tmp_path: Path) -> None:
    for name in ("apples", "pears"):
        np.savez(tmp_path / f"{name}.npz", images=tiles(3, 4))
    with pytest.raises(DataError, match="it holds apples, pears, and it is not clear which"):
        open_images(str(tmp_path), image_size=4)


def test_webp_images_of_a_plain_folder_are_no_sheets(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, ["a.webp", "b.webp"])
    assert len(open_images(str(tmp_path), image_size=8)) == 2


def test_sheet_without_anything_beside_it_is_refused(tmp_path: Path) -> None:
    write_sheet(tmp_path / "x.webp", tiles(4, 4), columns=2)
    with pytest.raises(DataError, match="needs x.npz or x.jsonl beside it"):
        open_images(str(tmp_path / "x.webp"), image_size=4)


def test_sheet_whose_npz_does_not_count_the_tiles_is_refused(tmp_path: Path) -> None:
    write_sheet(tmp_path / "x.webp", tiles(4, 4), columns=2)
    np.savez(tmp_path / "x.npz", classes=np.array(["a"]))
    with pytest.raises(DataError, match="x.npz, neither labels, names, index nor captions"):
        open_images(str(tmp_path / "x.webp"), image_size=4)


def test_jsonl_with_another_number_of_lines_than_the_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", images=tiles(4, 4))
    np.savez(tmp_path / "test.npz", images=tiles(4, 4))
    (tmp_path / "train.jsonl").write_text('{"caption": "only one"}\n')
    with pytest.raises(DataError, match="train.jsonl: 1 lines for 4 images"):
        open_images(str(tmp_path), image_size=4)


def test_damaged_sheet_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / "x.webp").write_bytes(b"broken")
    (tmp_path / "x.jsonl").write_text("{}\n{}\n")
    with pytest.raises(DataError, match="none of its 2 images can be used; the first is 'x/0': .*not a PNG"):
        open_images(str(tmp_path / "x.webp"), image_size=4)


def test_lossy_sheet_is_not_called_lossless(tmp_path: Path) -> None:
    Image.fromarray(tiles(1, 64)[0]).save(tmp_path / "x.webp", quality=50)
    (tmp_path / "x.jsonl").write_text("{}\n{}\n{}\n{}\n")
    assert open_images(str(tmp_path / "x.webp"), image_size=32).lossless is False
