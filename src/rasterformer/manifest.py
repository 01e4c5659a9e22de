"""Folders that exist completely or not at all, and that notice every changed bit. No torch here.

A folder holds plain files and `manifest.json`, which has the size and SHA-256 of each of them and a digest of itself.
`publish` fills `NAME.tmp`, syncs it to the disk and renames it to NAME, so that a kill at any moment leaves the old
folder or the new one. safetensors and JSON have no checksums of their own. What the files mean: `checkpoint.py`.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rasterformer.errors import CheckpointError

MANIFEST = "manifest.json"
REPAIR = "Copy the folder again from where it came, or load a checkpoint of its run (checkpoints/step-N)."
FORMAT_VERSION = 1
MAX_JSON_BYTES = 64_000_000
MAX_HEADER_BYTES = 8_000_000
MAX_TENSORS = 20_000
DTYPES = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"})


def publish(folder: Path, write_files: Callable[[Path], None]) -> None:
    """Makes or replaces a folder in one step.

    Args:
        folder: its final place; missing parents are made. Only a folder of .safetensors, .json and README.md files,
            or an empty one, is replaced.
        write_files: fills the empty folder that it is given; the manifest is added afterwards.

    Raises:
        CheckpointError: the folder holds other files, or the disk refuses (full, no permission).
    """
    folder = Path(folder)
    temporary, old = _beside(folder, ".tmp"), _beside(folder, ".old")
    try:
        _refuse_foreign_files(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        temporary.mkdir()
        write_files(temporary)
        entries = {}
        for path in sorted(temporary.iterdir()):
            _sync(path)
            entries[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        (temporary / MANIFEST).write_bytes(_manifest_bytes(entries))
        _sync(temporary / MANIFEST)
        _sync(temporary)
        if folder.exists():
            _remove(old)
            os.rename(folder, old)  # from here to the next line, `old` is the folder that `standing` finds
        os.rename(temporary, folder)
        _sync(folder.parent)
        _remove(old)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}.") from error


def standing(folder: Path) -> Path:
    """Returns the folder, or `NAME.old` (with a warning) where a program was stopped while it replaced the folder.

    Raises:
        CheckpointError: neither exists, or it is not a folder.
    """
    folder = Path(folder)
    old = _beside(folder, ".old")
    if not folder.exists() and old.is_dir():
        warnings.warn(f"{folder} was being replaced when the program stopped; {old} is used.", stacklevel=2)
        return old
    if not folder.is_dir():
        raise CheckpointError(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}.")
    return folder


def verify(folder: Path) -> dict[str, int]:
    """Checks every file of the manifest by size and SHA-256, and the header of every .safetensors file.

    Returns:
        name -> bytes of the files in the manifest. Other files in the folder are not looked at.

    Raises:
        CheckpointError: the manifest or a file is missing, or is not what was written; the message names it.
    """
    sizes = check_sizes(folder)
    for name, entry in _entries(folder).items():
        path = Path(folder) / name
        if _sha256(path) != entry["sha256"]:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}. {REPAIR}")
        if path.suffix == ".safetensors":
            tensor_header(path)
    return sizes


def check_sizes(folder: Path) -> dict[str, int]:
    """As `verify`, but reads no file besides the manifest: finds what is missing or cut off, not what is altered."""
    sizes: dict[str, int] = {}
    for name, entry in _entries(folder).items():
        path = Path(folder) / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; {MANIFEST} lists it. {REPAIR}")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(f"{path} is damaged: it has {size} bytes, {MANIFEST} says {entry['bytes']}. {REPAIR}")
        sizes[name] = size
    return sizes


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object of a JSON file.

    Raises:
        CheckpointError: the file is missing, too large, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_JSON_BYTES} bytes.")
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}; an object is needed.")
    return content


def tensor_header(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Returns name -> (dtype as safetensors calls it, shape) of a .safetensors file, reading only its header.

    Raises:
        CheckpointError: the header is too large, is not JSON, or has an unknown dtype or too many tensors.
    """
    with path.open("rb") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
        if num_bytes > MAX_HEADER_BYTES:
            raise CheckpointError(f"{path} has a header of {num_bytes} bytes; {MAX_HEADER_BYTES} are allowed.")
        try:
            header = json.loads(file.read(num_bytes))
            header.pop("__metadata__", None)
            tensors = {name: (str(entry["dtype"]), list(entry["shape"])) for name, entry in header.items()}
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} has a header that is not a safetensors header.") from error
    if len(tensors) > MAX_TENSORS:
        raise CheckpointError(f"{path} has {len(tensors)} tensors; {MAX_TENSORS} are allowed.")
    for name, (dtype, _) in tensors.items():
        if dtype not in DTYPES:
            raise CheckpointError(f"{path}: {name} has dtype {dtype}; allowed: {', '.join(sorted(DTYPES))}.")
    return tensors


def _entries(folder: Path) -> dict[str, dict[str, Any]]:
    path = Path(folder) / MANIFEST
    content = read_json(path)
    if content.get("format_version") not in (FORMAT_VERSION, None):
        raise CheckpointError(
            f"{path}: format_version = {content['format_version']!r} is not known; this version reads {FORMAT_VERSION}."
        )
    entries = content.get("files")
    if not isinstance(entries, dict) or _manifest_bytes(entries) != path.read_bytes():
        raise CheckpointError(f"{path} is damaged: it is not what was written. {REPAIR}")
    for name, entry in entries.items():
        if name != os.path.basename(name) or "\\" in name or name in ("", ".", ".."):
            raise CheckpointError(f"{path} lists {name!r}; a plain file name is needed.")
        if not isinstance(entry, dict) or set(entry) != {"bytes", "sha256"}:
            raise CheckpointError(f"{path} says {entry!r} of {name}; its bytes and sha256 are needed.")
    return entries


def _manifest_bytes(entries: dict[str, Any]) -> bytes:
    """The only bytes that stand for these entries, so that a manifest can be compared as a whole."""
    digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    content = {"format_version": FORMAT_VERSION, "files": entries, "files_sha256": digest}
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _refuse_foreign_files(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; a folder is to be written there.")
    for path in sorted(folder.iterdir()):
        if path.is_dir() or not (path.suffix in (".safetensors", ".json") or path.name == "README.md"):
            raise CheckpointError(f"{folder} holds {path.name}, which is no part of a model; choose another folder.")


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _sync(path: Path) -> None:
    """Returns when the file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
