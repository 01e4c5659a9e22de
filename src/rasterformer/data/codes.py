"""The codes file: a set of images as a tokenizer's codes, made once, and the batches that a prior learns from.

One .safetensors file with the codes of every image in several variants (mirrored, other crops), the codes of its
condition, labels and captions. It knows the tokenizer that made it, and is refused by the model of another one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import count
from math import gcd
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rasterformer.data.order import check_batches, flips, random_words, sample_index
from rasterformer.errors import ConfigError, DataError

FORMAT = "rasterformer codes 1"
_CROP, _CORNER = 3, 4  # streams of random words; `order.py` has 1 and 2
_TENSORS = ("codes", "condition", "labels")

CodeBatch = tuple[Tensor, Tensor | None, Tensor | None, Tensor]


@final
@dataclass(frozen=True, eq=False)
class CodeSet:
    """A set of images as codes.

    Args:
        codes: whole numbers [N, V, h, w], 0..vocab_size-1. Variants: the image; it mirrored; another crop of it; that one
            mirrored; and so on. V is 1 (not even mirrored) or even.
        condition: whole numbers [N, V, hc, wc], the codes of the same variants of each image's condition. None: none.
        labels: int64 [N], index into `class_names`. None: no classes.
        class_names: () where there are no classes.
        names: of the images, one each.
        captions: one an image, "" where it has none. None: no captions.
        vocab_size, condition_vocab_size: codes that there are. None: no condition.
        tokenizer, condition_tokenizer: hash of the tokenizer that made the codes. None: no condition.
        images: fingerprint of the images.
        preprocessing: what was done to them, one sentence.
    """

    codes: Tensor
    condition: Tensor | None
    labels: Tensor | None
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    captions: tuple[str, ...] | None
    vocab_size: int
    condition_vocab_size: int | None
    tokenizer: str
    condition_tokenizer: str | None
    images: str
    preprocessing: str

    def __len__(self) -> int:
        return len(self.codes)


def save_codes(path: str | Path, code_set: CodeSet) -> None:
    """Writes a codes file, or replaces one, in one step. Codes take two bytes each, four beyond a vocabulary of 32768.

    Args:
        path: the file; missing folders are made.
        code_set: on any device.

    Raises:
        DataError: the parts of `code_set` do not fit together, or the disk refuses.
    """
    path = Path(path)
    _check(code_set, str(path))
    tensors = {"codes": _narrow(code_set.codes, code_set.vocab_size)}
    if code_set.condition is not None:
        tensors["condition"] = _narrow(code_set.condition, code_set.condition_vocab_size or 0)
    if code_set.labels is not None:
        tensors["labels"] = code_set.labels.cpu().contiguous()
    about = json.dumps({name: getattr(code_set, name) for name in _ABOUT}, sort_keys=True)
    metadata = {"format": FORMAT, "about": about, "sha256": _digest(about, tensors)}
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, beside, metadata)
        _sync(beside)
        beside.replace(path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.") from error
    finally:
        if beside.parent.is_dir():
            beside.unlink(missing_ok=True)


def load_codes(path: str | Path, *, tokenizer: str | None = None) -> CodeSet:
    """Reads a codes file and checks all of it.

    Args:
        path: the file.
        tokenizer: hash of the tokenizer whose codes are wanted. None: of any.

    Returns:
        CodeSet with codes and condition int16 or int32, as they are stored.

    Raises:
        DataError: the file is missing, truncated, altered or no codes file; its parts do not fit together; a code is outside
            its vocabulary; or it was made by another tokenizer.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise DataError(f"{path} is no codes file of this version. Make one with `rasterformer tokenize`.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} cannot be read as a codes file ({error}). Make it with `rasterformer tokenize`."
        ) from error
    about = metadata.get("about", "")
    try:
        if metadata.get("sha256") != _digest(about, tensors) or not {"codes"} <= tensors.keys() <= set(_TENSORS):
            raise DataError(f"{path} is damaged: it is not what was written. Tokenize the images again.")
        code_set = CodeSet(
            codes=tensors["codes"],
            condition=tensors.get("condition"),
            labels=tensors.get("labels"),
            **_plain(json.loads(about)),
        )
        _check(code_set, str(path))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is no codes file of this version ({error}). Tokenize the images again.") from error
    if tokenizer is not None and code_set.tokenizer != tokenizer:
        raise DataError(
            f"{path} was made by tokenizer {code_set.tokenizer}, but this model has {tokenizer}: tokenize the images again."
        )
    return code_set


def code_batches(
    code_set: CodeSet,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    flip_prob: float,
    use_labels: bool,
    window: tuple[int, int] | None = None,
) -> Iterator[CodeBatch]:
    """Yields the batches of steps start_step, start_step + 1, ... without end: a pure function of seed and step.

    Each image comes exactly once an epoch, in the order of `data.order.training_batches`. Of its crops each is equally
    probable.

    Args:
        code_set: the codes.
        batch_size: B, at least 1.
        seed: decides the order, the variants and the windows.
        start_step: number of the first batch, at least 0.
        flip_prob: probability of a mirrored variant.
        use_labels: give the classes.
        window: rows and columns of a part of the codes, at a random place, and the same part of the condition. None: whole.

    Yields:
        codes int64 [B, h, w], condition int64 [B, hc, wc] or None, labels int64 [B] or None, and the row and column of the
        first code, int64 [B, 2]; h, w, hc and wc are those of the window, if there is one.

    Raises:
        ConfigError: batch_size or start_step is too small, flip_prob is not in 0..1 or needs variants that are not there,
            labels are asked for where there are none, or the window is larger than the codes or cuts through a code of the
            condition.
    """
    check_batches(batch_size, start_step, flip_prob)
    num_variants, *grid = code_set.codes.shape[1:]
    num_mirrors = min(num_variants, 2)
    if flip_prob > 0 and num_mirrors == 1:
        raise ConfigError(
            f"flip_prob = {flip_prob}, but the codes file has no mirrored images. Tokenize them with mirroring, or set it to 0."
        )
    if use_labels and code_set.labels is None:
        raise ConfigError("labels are asked for, but the codes file has no classes. Set data.use_labels to false.")
    rows, cols = window or grid
    condition_grid = grid if code_set.condition is None else code_set.condition.shape[2:]
    parts = [_Side(*sides) for sides in zip((rows, cols), grid, condition_grid, strict=True)]

    def make(step: int) -> CodeBatch:
        first = step * batch_size
        image = sample_index(first, batch_size, num_images=len(code_set), seed=seed)
        mirrored = flips(first, batch_size, flip_prob=flip_prob, seed=seed)
        crop = _uniform(seed, _CROP, first, batch_size, num_variants // num_mirrors)
        variant = crop * num_mirrors + mirrored
        at = torch.stack(
            [_uniform(seed, _CORNER, first, batch_size, part.num_places, k) for k, part in enumerate(parts)], 1
        )
        codes = _cut(code_set.codes[image, variant], at, [(part.step, part.length) for part in parts])
        condition = code_set.condition
        if condition is not None:
            condition = _cut(
                condition[image, variant], at, [(part.condition_step, part.condition_length) for part in parts]
            )
        labels = None if not use_labels or code_set.labels is None else code_set.labels[image]
        return codes, condition, labels, at * torch.tensor([part.step for part in parts])

    return (make(step) for step in count(start_step))


class _Side:
    """Where a window may lie along rows or columns, so that no code of the condition is cut through."""

    def __init__(self, length: int, codes: int, condition: int) -> None:
        shared = gcd(codes, condition)
        self.step, self.condition_step = codes // shared, condition // shared
        if not 1 <= length <= codes or length % self.step:
            raise ConfigError(
                f"window of {length} codes along a side of {codes}: it must be at least 1, at most {codes} and a multiple of "
                f"{self.step}, as {self.step} of them lie beside {self.condition_step} of the condition."
            )
        self.length, self.condition_length = length, length // self.step * self.condition_step
        self.num_places = (codes - length) // self.step + 1


def _uniform(seed: int, stream: int, first: int, count: int, choices: int, part: int = 0) -> Tensor:
    """int64 [count], each 0..choices-1: of samples first, first + 1, ..., which have two words each."""
    words = random_words(seed, stream, 2 * first, 2 * count)[part::2]
    return torch.from_numpy(np.floor((words >> np.uint64(11)) * 2.0**-53 * choices).astype(np.int64))


def _cut(codes: Tensor, at: Tensor, sides: list[tuple[int, int]]) -> Tensor:
    """The window of each grid: whole numbers [B, h, w], places [B, 2] counted in (step, length) -> int64."""
    (row_step, rows), (col_step, cols) = sides
    row = at[:, :1] * row_step + torch.arange(rows)  # [B, rows]
    col = at[:, 1:] * col_step + torch.arange(cols)  # [B, cols]
    return codes[torch.arange(len(codes))[:, None, None], row[:, :, None], col[:, None, :]].long()


_ABOUT = tuple(field.name for field in fields(CodeSet) if field.name not in _TENSORS)


def _plain(about: Any) -> dict[str, Any]:
    """The fields of a CodeSet from JSON."""
    if not isinstance(about, dict):
        raise TypeError("its description is no JSON object")
    return {name: tuple(map(str, value)) if isinstance(value, list) else value for name, value in about.items()}


def _check(code_set: CodeSet, where: str) -> None:
    codes, labels = code_set.codes, code_set.labels
    _check_codes(codes, code_set.vocab_size, f"{where}: codes")
    if codes.shape[1] != 1 and codes.shape[1] % 2:
        raise DataError(
            f"{where}: codes have {codes.shape[1]} variants. There must be 1 of each image, or an even number."
        )
    condition = (code_set.condition, code_set.condition_vocab_size, code_set.condition_tokenizer)
    if any(part is None for part in condition) != all(part is None for part in condition):
        raise DataError(
            f"{where}: codes, vocabulary and tokenizer of the condition must all be there, or none of them."
        )
    if code_set.condition is not None:
        _check_codes(code_set.condition, code_set.condition_vocab_size, f"{where}: condition")
        if code_set.condition.shape[:2] != codes.shape[:2]:
            raise DataError(f"{where}: condition {list(code_set.condition.shape)} is not of codes {list(codes.shape)}.")
    for name, count_there in (
        ("names", len(code_set.names)),
        ("captions", len(codes) if code_set.captions is None else len(code_set.captions)),
    ):
        if count_there != len(codes):
            raise DataError(f"{where}: {count_there} {name} for {len(codes)} images. There must be one an image.")
    if labels is not None:
        if labels.dtype != torch.int64 or labels.shape != (len(codes),):
            raise DataError(f"{where}: labels are {labels.dtype} {list(labels.shape)}, not int64 [{len(codes)}].")
        _check_range(labels, len(code_set.class_names), f"{where}: labels")


def _check_codes(codes: Tensor, vocab_size: int | None, where: str) -> None:
    if codes.dtype not in (torch.int16, torch.int32, torch.int64) or codes.ndim != 4 or codes.numel() == 0:
        raise DataError(f"{where} are {codes.dtype} {list(codes.shape)}, not whole numbers [N, V, h, w], at least one.")
    _check_range(codes, vocab_size or 0, where)


def _check_range(values: Tensor, limit: int, where: str) -> None:
    low, high = (int(value) for value in values.aminmax())
    if low < 0 or high >= limit:
        raise DataError(f"{where} are {low}..{high}, but must be 0..{limit - 1}.")


def _narrow(codes: Tensor, vocab_size: int) -> Tensor:
    return codes.to("cpu", torch.int16 if vocab_size <= 2**15 else torch.int32).contiguous()


def _digest(about: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Returns when the file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
