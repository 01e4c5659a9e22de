"""The CIFAR-10 "python version": `data_batch_1..5`, `test_batch`, `batches.meta`, as its authors publish them.

These files are pickles. They are not unpickled: `_read` walks through the few opcodes that they consist of, builds
dicts, lists, bytes, numbers and uint8 arrays itself, calls nothing, and refuses everything else.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rasterformer.data.arrays import Annotations, array_items, assemble
from rasterformer.data.source import Item, Source
from rasterformer.errors import DataError

TRAIN_FILES = tuple(f"data_batch_{k}" for k in range(1, 6))
TEST_FILE = "test_batch"
META_FILE = "batches.meta"
MAX_BATCH_BYTES = 64_000_000


def is_cifar10(folder: Path) -> bool:
    """Says whether the folder has the files of CIFAR-10's python version."""
    return (folder / TRAIN_FILES[0]).is_file() or (folder / TEST_FILE).is_file()


def cifar10_source(folder: Path) -> Source:
    """Reads the batches that are there, with the set's own split and class names.

    Raises:
        DataError: a batch is damaged, is not made as CIFAR-10's are, or contains anything but plain data.
    """
    class_names: tuple[str, ...] = ()
    if (folder / META_FILE).is_file():
        class_names = tuple(_text(name) for name in _field(_read_dict(folder / META_FILE), "label_names", META_FILE))
    parts: list[list[Item]] = []
    annotations: list[Annotations] = []
    for file in (*TRAIN_FILES, TEST_FILE):
        if (folder / file).is_file():
            batch = _read_dict(folder / file)
            pixels, labels = _field(batch, "data", file), _field(batch, "labels", file)
            if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != 3072:
                raise DataError(
                    f"{file}: data is {type(pixels).__name__} {getattr(pixels, 'shape', '')}, not uint8 [N, 3072]."
                )
            if not isinstance(labels, list) or len(labels) != len(pixels):
                raise DataError(f"{file}: labels must be a list of {len(pixels)} numbers.")
            images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            split: Literal["train", "test"] = "test" if file == TEST_FILE else "train"
            found = array_items({"images": images}, where=f"{file}, ")
            parts.append([replace(item, name=f"{file}/{item.name}", split=split) for item in found])
            if class_names and not all(isinstance(v, int) and 0 <= v < len(class_names) for v in labels):
                raise DataError(f"{file}: a label is not in 0..{len(class_names) - 1}.")
            annotations.append(
                Annotations(tuple(class_names[v] if class_names else str(v) for v in labels), class_names)
            )
    has_both = (folder / TRAIN_FILES[0]).is_file() and (folder / TEST_FILE).is_file()
    return assemble(
        "CIFAR-10 (python version)", parts, annotations, split_origin="the set's own test_batch" if has_both else None
    )


def _field(batch: dict[Any, Any], name: str, file: str) -> Any:
    for key, value in batch.items():
        if _text(key) == name:
            return value
    raise DataError(f"{file}: no entry {name!r} in it. It must be a file of CIFAR-10's python version.")


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _read_dict(path: Path) -> dict[Any, Any]:
    size = path.stat().st_size
    if size > MAX_BATCH_BYTES:
        raise DataError(f"{path.name}: {size} bytes, a CIFAR-10 batch has at most {MAX_BATCH_BYTES}.")
    content = path.read_bytes()
    try:
        value = _read(content, path.name)
    except DataError:
        raise
    except Exception as error:  # a damaged file can end anywhere
        raise DataError(f"{path.name}: damaged ({type(error).__name__}: {error}). Download the set again.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path.name}: holds {type(value).__name__}, a CIFAR-10 file holds a dict.")
    return value


@dataclass
class _Array:
    """An array whose content follows in a BUILD."""

    pixels: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class _Name:
    """A name that the file wants to call; it never is."""

    name: str


_MARK = object()
_RECONSTRUCT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
_NAMES = (*_RECONSTRUCT, "numpy ndarray", "numpy dtype")
_UINT8 = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_BYTES = ("STRING", "BINSTRING", "SHORT_BINSTRING")  # Python 2's str; pickletools gives them as latin-1
_VALUES = ("BININT", "BININT1", "BININT2", "BINBYTES", "SHORT_BINBYTES", "BINUNICODE", "SHORT_BINUNICODE")


def _read(content: bytes, file: str) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        start = len(stack) - 1 - next(k for k, value in enumerate(reversed(stack)) if value is _MARK)
        taken = stack[start + 1 :]
        del stack[start:]
        return taken

    argument: Any
    for opcode, argument, _ in pickletools.genops(content):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return _finished(stack.pop())
            case "MARK":
                stack.append(_MARK)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case name if name in _BYTES:
                stack.append(argument.encode("latin-1"))
            case name if name in _VALUES:
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack[-int(name[-1]) :] = [tuple(stack[-int(name[-1]) :])]
            case "TUPLE":
                stack.append(tuple(above_mark()))
            case "APPEND":
                value = stack.pop()
                stack[-1].append(value)
            case "APPENDS":
                values = above_mark()
                stack[-1].extend(values)
            case "SETITEM":
                key, value = stack.pop(-2), stack.pop()
                stack[-1][key] = value
            case "SETITEMS":
                pairs = above_mark()
                stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL" if argument in _NAMES:
                stack.append(_Name(argument))
            case "REDUCE":
                arguments, called = stack.pop(), stack.pop()
                stack.append(_called(called, arguments, file))
            case "BUILD":
                state = stack.pop()
                _build(stack[-1], state, file)
            case name:
                raise DataError(
                    f"{file}: its pickle has {name} {argument if name == 'GLOBAL' else ''}, which CIFAR-10's files do "
                    "not need. It is refused, because a pickle can run any program. Use the original files."
                )
    raise DataError(f"{file}: ends before its pickle does. Download the set again.")


def _called(called: Any, arguments: Any, file: str) -> Any:
    if isinstance(called, _Name) and called.name in _RECONSTRUCT:
        return _Array()
    if called == _Name("numpy dtype") and _text(arguments[0]) == "u1":
        return _UINT8
    raise DataError(f"{file}: its pickle calls {called} with {arguments!r}, but only uint8 arrays are read.")


def _build(target: Any, state: Any, file: str) -> None:
    if target is _UINT8:  # byte order and alignment, which a byte has not
        return
    if not isinstance(target, _Array):
        raise DataError(f"{file}: its pickle sets the state of {type(target).__name__}, but only arrays are read.")
    _, shape, dtype, is_fortran, content = state
    if dtype is not _UINT8 or not isinstance(content, bytes):
        raise DataError(f"{file}: an array in it is not uint8.")
    target.pixels = np.frombuffer(content, np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _finished(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: entry.pixels if isinstance(entry, _Array) else entry for key, entry in value.items()}
    return value
