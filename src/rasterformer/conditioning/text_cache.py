"""States of texts, computed once: in memory, and in one file, so that no training step waits for a text encoder.

The file holds the states of all tokens one text after the other, where each text begins, and a key of each text. It knows its
encoder and has a checksum; one that is damaged or of another encoder is made again, and said to be.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rasterformer.conditioning.text_encoder import TextEncoder, check_texts
from rasterformer.errors import DataError

FORMAT = "rasterformer texts 1"
AT_A_TIME = 64  # texts
SECONDS = 10  # between two sentences


class CachedTextEncoder(TextEncoder):
    """A text encoder that remembers what it was prepared with; other texts it passes on.

    Args:
        encoder: reads the texts. One that gives tokens is asked each time: there is nothing to compute.
        path: the file. None: memory only.
    """

    def __init__(self, encoder: TextEncoder, path: Path | None = None) -> None:
        self.encoder, self.path = encoder, path
        self.dim, self.fingerprint = encoder.dim, encoder.fingerprint
        self._found: dict[bytes, Tensor] = {}  # key of a text -> [S, D]

    def prepare(self, texts: Iterable[str], *, length: int, say: Callable[[str], None] = print) -> None:
        """Reads every different text once, from the file where it is there, and writes the file where it was not.

        Args:
            texts: any number; the file will hold these and no others.
            length: as in `encode`.
            say: where sentences for people go: how far it is, and why a file is made again.

        Raises:
            ConfigError, DataError: as `encode`; or the disk refuses.
        """
        if self.dim is None:
            return
        wanted = {self._key(text, length): text for text in texts}
        stored = self._read(say)
        self._found = {key: stored[key] for key in wanted if key in stored}
        missing = sorted((key for key in wanted if key not in stored), key=lambda key: (len(wanted[key]), key))
        if not missing:
            return
        say(f"reading {len(missing):,} texts once")
        said = time.monotonic()
        for first in range(0, len(missing), AT_A_TIME):  # texts of about one length: little padding
            keys = missing[first : first + AT_A_TIME]
            states, known = self.encoder.encode([wanted[key] for key in keys], length=length)
            for key, row, where in zip(keys, states, known, strict=True):
                self._found[key] = row[where]
            if time.monotonic() - said > SECONDS:
                say(f"{min(first + AT_A_TIME, len(missing)):,} of {len(missing):,} texts read")
                said = time.monotonic()
        self._write()

    def encode(self, texts: Sequence[str], *, length: int = 64) -> tuple[Tensor, Tensor]:
        """As the encoder's own, up to rounding."""
        check_texts(texts, length=length)
        rows = [self._found.get(self._key(text, length)) for text in texts]
        others = sorted({text for text, row in zip(texts, rows, strict=True) if row is None})
        if others:
            read, read_known = self.encoder.encode(others, length=length)
            if len(others) == len(texts) or self.dim is None:
                index = torch.tensor([others.index(text) for text in texts])
                return read[index], read_known[index]
            fresh = {text: row[where] for text, row, where in zip(others, read, read_known, strict=True)}
            rows = [fresh[text] if row is None else row for text, row in zip(texts, rows, strict=True)]
        there = [row for row in rows if row is not None]
        states = torch.nn.utils.rnn.pad_sequence(there, batch_first=True)
        known = torch.arange(states.shape[1]) < torch.tensor([len(row) for row in there])[:, None]
        return states, known

    def _key(self, text: str, length: int) -> bytes:
        about = f"{self.fingerprint} {length} ".encode()
        return hashlib.sha256(about + text.encode("utf-8", "surrogatepass")).digest()

    def _read(self, say: Callable[[str], None]) -> dict[bytes, Tensor]:
        """What the file holds; nothing where it cannot be used."""
        if self.path is None or not self.path.is_file():
            return {}
        try:
            with safe_open(self.path, framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        except (OSError, SafetensorError) as error:
            say(f"the texts in {self.path} are read again: it cannot be opened ({error})")
            return {}
        if about.get("format") != FORMAT or about.get("sha256") != _digest(about.get("encoder", ""), tensors):
            say(f"the texts in {self.path} are read again: it is damaged, or no file of this version")
            return {}
        if about["encoder"] != self.fingerprint:
            say(f"the texts in {self.path} are read again: they were read by the text encoder {about['encoder']}")
            return {}
        ends = tensors["ends"].tolist()
        rows = zip(tensors["keys"], [0, *ends], ends, strict=False)
        return {bytes(key.tolist()): tensors["states"][first:end] for key, first, end in rows}

    def _write(self) -> None:
        """Replaces the file in one step."""
        if self.path is None:
            return
        tensors = {
            "states": torch.cat(list(self._found.values())).float(),
            "ends": torch.tensor([len(row) for row in self._found.values()]).cumsum(0),
            "keys": torch.tensor([list(key) for key in self._found], dtype=torch.uint8),
        }
        about = {"format": FORMAT, "encoder": self.fingerprint, "sha256": _digest(self.fingerprint, tensors)}
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, beside, about)
            beside.replace(self.path)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{self.path} cannot be written: {getattr(error, 'strerror', None) or error}.") from error
        finally:
            if beside.parent.is_dir():
                beside.unlink(missing_ok=True)


def _digest(encoder: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(encoder.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()
