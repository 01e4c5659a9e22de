"""CIFAR-10's own files, written here byte by byte as Python 2 wrote them (protocol 2), and files that mean harm."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from rasterformer.data import open_images
from rasterformer.errors import DataError


def string(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value


def integer(value: int) -> bytes:
    return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)


def array(pixels: np.ndarray) -> bytes:
    rows, columns = pixels.shape
    return (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x06cnumpy\nndarray\nq\x07" + integer(0) + b"\x85q\x08" + string(b"b")
        + b"\x87Rq\x09(K\x01" + integer(rows) + integer(columns) + b"\x86cnumpy\ndtype\nq\x0a" + string(b"u1")
        + b"K\x00K\x01\x87Rq\x0b(K\x03" + string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + string(pixels.tobytes()) + b"tb"
    )  # fmt: skip


def batch(pixels: np.ndarray, labels: list[int]) -> bytes:
    return (
        b"\x80\x02}q\x01(" + string(b"batch_label") + b"q\x02" + string(b"training batch") + b"q\x03"
        + string(b"labels") + b"q\x04]q\x05(" + b"".join(map(integer, labels)) + b"e"
        + string(b"data") + array(pixels) + b"u."
    )  # fmt: skip


def meta(names: list[bytes]) -> bytes:
    return b"\x80\x02}q\x01(" + string(b"label_names") + b"q\x02]q\x03(" + b"".join(map(string, names)) + b"eu."


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3072), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data_batch_1").write_bytes(batch(PIXELS[:2], [1, 0]))
    (tmp_path / "data_batch_2").write_bytes(batch(PIXELS[2:3], [1]))
    (tmp_path / "test_batch").write_bytes(batch(PIXELS[3:], [0, 0]))
    (tmp_path / "batches.meta").write_bytes(meta([b"airplane", b"bird"]))
    return tmp_path


@pytest.mark.filterwarnings("ignore:numpy.core")
def test_the_handwritten_files_are_what_pickle_would_read(folder: Path) -> None:
    read = pickle.loads((folder / "test_batch").read_bytes(), encoding="bytes")
    assert np.array_equal(read[b"data"], PIXELS[3:]) and read[b"labels"] == [0, 0]


def test_batches_are_read_with_split_and_class_names(folder: Path) -> None:
    train = open_images(str(folder), image_size=32, split="train")
    test = open_images(str(folder), image_size=32, split="test")
    assert np.array_equal(train.images(slice(None)).numpy(), PIXELS[:3].reshape(-1, 3, 32, 32))
    assert np.array_equal(test.images(slice(None)).numpy(), PIXELS[3:].reshape(-1, 3, 32, 32))
    assert train.class_names == test.class_names == ("airplane", "bird")
    assert train.labels is not None and train.labels.tolist() == [1, 0, 1]
    assert test.split_origin == "the set's own test_batch" and test.lossless is True


def test_file_pickled_anew_by_python_3_is_read(folder: Path) -> None:
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": PIXELS[3:], b"labels": [0, 1]}, protocol=3))
    assert open_images(str(folder), image_size=32, split="test").labels.tolist() == [0, 1]


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("protocol", range(6))
def test_hostile_pickle_is_refused_and_runs_nothing(folder: Path, protocol: int) -> None:
    victim = folder / "victim"
    hostile = pickle.dumps({b"data": Touch(victim), b"labels": []}, protocol=protocol)
    (folder / "data_batch_1").write_bytes(hostile)
    with pytest.raises(DataError, match="data_batch_1: "):
        open_images(str(folder), image_size=32)
    assert not victim.exists()
    pickle.loads(hostile)
    assert victim.exists()  # it would have run


@pytest.mark.parametrize(
    ("content", "received"),
    [
        (b"\x80\x02cos\nsystem\nU\x04true\x85R.", "its pickle has GLOBAL os system"),
        (b"\x80\x02cbuiltins\neval\nU\x011\x85R.", "its pickle has GLOBAL builtins eval"),
        (b"\x80\x02cnumpy\nload\nU\x01x\x85R.", "its pickle has GLOBAL numpy load"),
        (b"\x80\x02cnumpy\nndarray\nK\x01\x85R.", "its pickle calls .*numpy ndarray"),
        (b"\x80\x02cnumpy\ndtype\nU\x01O\x85R.", "its pickle calls .*numpy dtype"),
        (b"\x80\x02}K\x01b.", "its pickle sets the state of dict"),
        (b"\x80\x02(ios\nsystem\n.", "its pickle has INST"),
        (b"\x80\x02Px\n.", "its pickle has PERSID"),
        (b"\x80\x02\x82\x01.", "its pickle has EXT1"),
        (b"\x80\x02K\x01.", "holds int, a CIFAR-10 file holds a dict"),
        (b"\x80\x02}.", "no entry 'data'"),
        (b"\x80\x02}q\x01(U\x04data", "damaged"),
        (b"", "damaged"),
        (b"\x80\x02h\x05.", "damaged"),
    ],
)
def test_anything_but_plain_data_is_refused(folder: Path, content: bytes, received: str) -> None:
    (folder / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match=f"data_batch_1: .*{received}|data_batch_1: {received}"):
        open_images(str(folder), image_size=32)


@pytest.mark.parametrize(
    ("content", "received"),
    [
        (batch(PIXELS[:2, :100], [0, 0]), "data is ndarray .2, 100., not uint8"),
        (batch(PIXELS[:2], [0]), "labels must be a list of 2 numbers"),
        (batch(PIXELS[:2], [0, 2]), r"a label is not in 0..1"),
        (batch(PIXELS[:2], [0, 1]).replace(b"U\x02u1", b"U\x02f4"), "only uint8 arrays"),
    ],
)
def test_batch_that_is_not_made_as_cifar10s_are_is_refused(folder: Path, content: bytes, received: str) -> None:
    (folder / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match=received):
        open_images(str(folder), image_size=32)


def test_flipped_bytes_never_escape_as_another_error(folder: Path) -> None:
    good = batch(PIXELS[:2], [1, 0])
    head = good[: good.index(b"tb\x89") + 10]
    rng = np.random.default_rng(0)
    for _ in range(300):
        bad = bytearray(good)
        bad[rng.integers(len(head))] = rng.integers(256)
        (folder / "data_batch_1").write_bytes(bytes(bad))
        try:
            open_images(str(folder), image_size=32)
        except DataError:
            pass
