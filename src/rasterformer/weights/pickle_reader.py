"""torch's checkpoint files (.ckpt, .pt, .pth, .bin) as tensors, without running anything that they hold.

The pickle inside is taken apart by `unpickle.py` in another process, without this process's environment and with bounds on
time and memory; what comes back are a .safetensors file and JSON. Which tensor is what: `layouts.py`.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file
from torch import Tensor

from rasterformer.errors import CheckpointError
from rasterformer.manifest import MAX_TENSORS, read_json, tensor_header

_LARGEST = 2**40  # numbers, if an empty tensor's empty dimensions were 1
_PROGRAM = Path(__file__).with_name("unpickle.py")


@dataclass(frozen=True)
class TorchFile:
    """What was read from a checkpoint, and what was not.

    Args:
        tensors: name -> tensor, on the CPU, contiguous; some may share memory.
        entry: the entry of the file that `tensors` are from. None: the file is a plain dict of tensors.
        stubbed: full names of the classes and functions that the file asks for and did not get.
        dropped: names in the entry that are not tensors of a known dtype.
        beside: the file's other entries, none of them read.
    """

    tensors: dict[str, Tensor]
    entry: str | None
    stubbed: tuple[str, ...]
    dropped: tuple[str, ...]
    beside: tuple[str, ...]


def read_checkpoint(path: str | Path, *, limit_seconds: int = 600) -> TorchFile:
    """Returns the tensors of a file that `torch.save` wrote (zip format, torch 1.6 and later).

    Args:
        path: the file.
        limit_seconds: bound on the time that taking it apart may need.

    Raises:
        CheckpointError: the file does not exist, is in the older format, is no archive, is cut off or damaged, holds no dict
            of tensors, holds a tensor that is larger than its data, tries to do more, or takes too long.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is no file. Give a checkpoint of torch.save.")
    with tempfile.TemporaryDirectory(prefix="rasterformer-", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        report = _take_apart(path, place, limit_seconds)
        if len(report["tensors"]) > MAX_TENSORS:
            raise CheckpointError(f"{path} has {len(report['tensors'])} tensors; {MAX_TENSORS} are allowed.")
        tensor_header(place / "storages.safetensors")
        try:
            storages = load_file(place / "storages.safetensors")
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from error
        tensors = {
            name: _view(f"{path}: {name!r}", storages[key], offset, shape, stride)
            for name, (key, offset, shape, stride) in report["tensors"].items()
        }
    names = {part: tuple(report[part]) for part in ("stubbed", "dropped", "beside")}
    return TorchFile(tensors, report["entry"], **names)


def _take_apart(path: Path, place: Path, limit_seconds: int) -> Mapping[str, Any]:
    order = {"checkpoint": str(path.absolute()), "limit_seconds": limit_seconds}
    kept = ("SYSTEMROOT",)  # without which Windows starts nothing
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(_PROGRAM)],
            input=json.dumps(order).encode(),
            capture_output=True,
            cwd=place,
            env=environment,
            timeout=limit_seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(f"{path} was not read within {limit_seconds} seconds; it may be hostile.") from error
    if not (place / "report.json").is_file():
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise CheckpointError(f"{path} could not be read: the reader ended with {done.returncode} ({last[:300]!r}).")
    report = read_json(place / "report.json")
    if "error" in report:
        raise CheckpointError(f"{path} {report['error']}.")
    return report


def _view(where: str, storage: Tensor, offset: int, shape: list[int], stride: list[int]) -> Tensor:
    count = math.prod(shape)
    if count == 0 and math.prod(size or 1 for size in shape) <= _LARGEST:
        return storage.new_empty(shape)
    end = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if end >= len(storage) or not 0 < count <= len(storage):
        raise CheckpointError(
            f"{where} has shape {shape} and strides {stride}, more than its {len(storage)} stored numbers."
        )
    return storage[offset:].as_strided(shape, stride).contiguous()
