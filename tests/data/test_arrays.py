"""`.npz` files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rasterformer.data import open_images
from rasterformer.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (PIXELS, PIXELS.transpose(0, 3, 1, 2)),
        (PIXELS.transpose(0, 3, 1, 2), PIXELS.transpose(0, 3, 1, 2)),
        (PIXELS[..., 0], np.repeat(PIXELS[:, None, :, :, 0], 3, axis=1)),
    ],
    ids=["N,H,W,3", "N,3,H,W", "N,H,W"],
)
@pytest.mark.parametrize("name", ["images", "whatever"])
def test_every_layout_gives_the_same_images(tmp_path: Path, array, expected, name: str) -> None:
    np.savez(tmp_path / "x.npz", **{name: array})
    images = open_images(str(tmp_path / "x.npz"), image_size=6)
    assert np.array_equal(images.images(slice(None)).numpy(), expected)
    assert images.lossless is True


@pytest.mark.parametrize("classes", ["class_names", "classes"])
def test_labels_and_class_names(tmp_path: Path, classes: str) -> None:
    np.savez(
        tmp_path / "x.npz", images=PIXELS, labels=np.array([2, 0, 2, 1, 1]), **{classes: np.array(["c", "b", "a"])}
    )
    images = open_images(str(tmp_path / "x.npz"), image_size=6)
    assert images.class_names == ("c", "b", "a")
    assert images.labels is not None and images.labels.tolist() == [2, 0, 2, 1, 1]


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [([10, 9, 10, 2, 2], ("2", "9", "10"), [2, 1, 2, 0, 0]), (["b", "a", "b", "a", "b"], ("a", "b"), [1, 0, 1, 0, 1])],
)
def test_labels_without_class_names_name_themselves(tmp_path: Path, labels, names, numbers) -> None:
    np.savez(tmp_path / "x.npz", images=PIXELS, labels=np.array(labels))
    images = open_images(str(tmp_path / "x.npz"), image_size=6)
    assert images.class_names == names
    assert images.labels is not None and images.labels.tolist() == numbers


def test_train_and_test_arrays_are_the_sets_own_split_with_classes_in_common(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "x.npz", train_images=PIXELS[:3], train_labels=[0, 1, 2], test_images=PIXELS[3:], test_labels=[2, 2]
    )
    test = open_images(str(tmp_path / "x.npz"), image_size=6, split="test")
    assert np.array_equal(test.images(slice(None)).numpy(), PIXELS[3:].transpose(0, 3, 1, 2))
    assert test.class_names == ("0", "1", "2")
    assert test.labels is not None and test.labels.tolist() == [2, 2]
    assert test.split_origin == "train_images and test_images of x.npz"


def test_packed_jpegs(tmp_path: Path) -> None:
    files = []
    for colour in ("red", "blue"):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(file, "JPEG", quality=100)
        files.append(file.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(
        tmp_path / "x.npz", jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=offsets, labels=np.array([1, 0])
    )
    images = open_images(str(tmp_path / "x.npz"), image_size=8)
    red, blue = images.images(slice(None))[:, :, 0, 0].tolist()
    assert red[0] > 250 > 5 > red[2] and blue[2] > 250 > 5 > blue[0]
    assert images.lossless is False
    assert images.labels is not None and images.labels.tolist() == [1, 0]


def test_label_maps_are_no_classes_and_are_reported(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=PIXELS, labels=np.zeros((5, 6, 6), np.uint8), classes=np.array(["sky"]))
    images = open_images(str(tmp_path / "x.npz"), image_size=6)
    assert (images.labels, images.class_names) == (None, ())
    assert images.skipped == (("x.npz, labels", "shape (5, 6, 6) is not one class an image: left out"),)


@pytest.mark.parametrize(
    ("arrays", "received"),
    [
        ({"images": PIXELS.astype(np.float32)}, "x.npz, images: dtype float32. Images must be uint8"),
        ({"images": PIXELS[..., :2]}, r"images: shape \(5, 6, 6, 2\)"),
        ({"a": PIXELS, "b": PIXELS}, "images: not there; the arrays are a, b"),
        ({"images": PIXELS, "labels": np.zeros(4, int)}, r"labels: shape \(4,\), but there are 5 images"),
        ({"images": PIXELS, "labels": np.zeros(5)}, "labels: dtype float64"),
        (
            {"images": PIXELS, "labels": np.full(5, 2), "classes": ["a", "b"]},
            r"labels: 2..2, but there are 2 class names",
        ),
        ({"images": PIXELS, "labels": list("abcab"), "classes": ["a", "b"]}, "'c' is not among the class names a, b"),
        ({"images": PIXELS, "captions": ["x"]}, r"captions: shape \(1,\), but there are 5 images"),
        ({"jpeg": np.zeros(4, np.uint8), "offsets": np.array([0, 5])}, "offsets: they must rise from 0 to at most 4"),
        ({"jpeg": np.zeros(4, np.uint8), "offsets": np.array([0.0])}, "offsets: float64"),
        ({"jpeg": np.zeros(4), "offsets": np.array([0, 4])}, "jpeg: float64"),
        ({"images": np.array([{}])}, "without unpickling"),
    ],
)
def test_bad_arrays_are_refused(tmp_path: Path, arrays, received: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=received) as caught:
        open_images(str(tmp_path / "x.npz"), image_size=6)
    assert "data.path = " in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"\x80\x04K\x01."])
def test_damaged_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataError, match="x.npz is not an .npz that can be read without unpickling"):
        open_images(str(tmp_path / "x.npz"), image_size=6)


def test_npy_under_the_name_of_an_npz_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, PIXELS)
    with pytest.raises(DataError, match="x.npz is a single .npy array"):
        open_images(str(tmp_path / "x.npz"), image_size=6)


@pytest.mark.parametrize("channels", [None, 3])
def test_label_maps_survive_exactly(tmp_path: Path, channels: int | None) -> None:
    labels = np.random.default_rng(0).choice(np.array([0, 7, 11, 255], np.uint8), (4, 9, 9))
    np.savez(tmp_path / "x.npz", labels if channels is None else np.repeat(labels[..., None], channels, 3))
    whole = open_images(str(tmp_path / "x.npz"), image_size=9, reduction="nearest").images(slice(None)).numpy()
    assert np.array_equal(whole, np.repeat(labels[:, None], 3, 1))
    small = open_images(str(tmp_path / "x.npz"), image_size=3, reduction="nearest").images(slice(None)).numpy()
    assert np.array_equal(small, np.repeat(labels[:, None, 1::3, 1::3], 3, 1))  # the middle of 3x3 pixels


def test_arrays_in_colour_are_no_label_maps(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=PIXELS)
    with pytest.raises(DataError, match="none of its 5 images .* mode RGB with channels that differ"):
        open_images(str(tmp_path / "x.npz"), image_size=6, reduction="nearest")
