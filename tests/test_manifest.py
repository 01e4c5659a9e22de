"""Files that carry a correct manifest but are hostile: limits that hold before any tensor is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from rasterformer.errors import CheckpointError
from rasterformer.manifest import publish, read_json, tensor_header, verify


def tensor_file(header: Any, path: Path, *, length: int | None = None) -> Path:
    raw = json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw)
    return path


def entry(dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [2, 3], "data_offsets": [0, 0]}


def test_header_gives_dtype_and_shape(tmp_path: Path) -> None:
    path = tensor_file({"__metadata__": {"a": "b"}, "w": entry()}, tmp_path / "x")
    assert tensor_header(path) == {"w": ("F32", [2, 3])}


@pytest.mark.parametrize(
    ("header", "length", "message"),
    [
        ({}, 8_000_001, "x.safetensors has a header of 8000001 bytes; 8000000 are allowed"),
        ({"w": entry("F8_E5M2")}, None, "w has dtype F8_E5M2; allowed: BF16"),
        ({str(k): entry() for k in range(20_001)}, None, "has 20001 tensors; 20000 are allowed"),
        ([1], None, "not a safetensors header"),
        ({"w": 3}, None, "not a safetensors header"),
        ({"w": {"dtype": "F32"}}, None, "not a safetensors header"),
        ({"w": entry()}, 5, "not a safetensors header"),
    ],
)
def test_hostile_header_is_refused(tmp_path: Path, header: Any, length: int | None, message: str) -> None:
    def write(place: Path) -> None:
        tensor_file(header, place / "x.safetensors", length=length)

    publish(tmp_path / "m", write)
    with pytest.raises(CheckpointError, match=message):
        verify(tmp_path / "m")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"../secret": {"bytes": 0, "sha256": ""}}, "lists '../secret'; a plain file name is needed"),
        ({"a\\b": {"bytes": 0, "sha256": ""}}, "a plain file name is needed"),
        ({"": {"bytes": 0, "sha256": ""}}, "lists ''"),
        ({"a": 3}, "says 3 of a; its bytes and sha256 are needed"),
        ({"a": {"bytes": 0, "sha256": "", "url": "x"}}, "its bytes and sha256 are needed"),
    ],
)
def test_manifest_with_a_right_digest_is_still_a_closed_schema(tmp_path: Path, entries: Any, message: str) -> None:
    from rasterformer.manifest import _manifest_bytes

    (tmp_path / "manifest.json").write_bytes(_manifest_bytes(entries))
    with pytest.raises(CheckpointError, match=message):
        verify(tmp_path)


def test_manifest_of_a_later_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format_version": 2}')
    with pytest.raises(CheckpointError, match="format_version = 2 is not known; this version reads 1"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"[1]", "x.json holds a JSON list; an object is needed"),
        (b"{", "x.json is not JSON"),
        (b"\xff", "x.json is not JSON"),
        (b"[" * 100_000, "x.json is not JSON"),
    ],
)
def test_file_that_is_no_json_object_is_named(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(raw)
    with pytest.raises(CheckpointError, match=message):
        read_json(tmp_path / "x.json")


def test_json_file_of_huge_size_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(64_000_001)
    with pytest.raises(CheckpointError, match="x.json is larger than 64000000 bytes"):
        read_json(tmp_path / "x.json")


def test_other_files_in_a_folder_are_not_looked_at(tmp_path: Path) -> None:
    publish(tmp_path / "m", lambda place: (place / "a.json").write_text("{}") and None)
    (tmp_path / "m" / ".gitattributes").touch()
    assert verify(tmp_path / "m") == {"a.json": 2}
