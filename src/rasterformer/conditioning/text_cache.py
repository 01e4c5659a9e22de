"""States of texts, computed once and kept on the disk, so that no training step waits for a text encoder.

A folder holds any number of files, each written when enough texts have been read, so that an interruption loses next to
nothing. A file holds the states of all tokens one text after the other, where each text ends, and a key of each text. It
knows its encoder and has a checksum; one that is damaged or of another encoder is made again, and said to be. States are
float16 where that is near enough, and stay in the files, which are mapped into memory.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rasterformer.conditioning.text_encoder import TextEncoder, check_texts
from rasterformer.errors import DataError

FORMAT = "rasterformer texts 2"
AT_A_TIME = 64  # texts
SECONDS = 10  # between two sentences
PART_SECONDS, PART_BYTES = 60, 2**28  # a file is written after so long, or of so many (float32)
NEAR = 1e-3  # distance between a state and its float16, of the state's norm; MiniLM's is 3e-4

Place = tuple[
    Tensor, int, int
]  # states [all tokens, D] of many texts, and the first of one text and the one after its last


class CachedTextEncoder(TextEncoder):
    """A text encoder that remembers what it was prepared with; other texts it passes on.

    Args:
        encoder: reads the texts. One that gives tokens is asked each time: there is nothing to compute.
        folder: of the files. None: memory only.
    """

    def __init__(self, encoder: TextEncoder, folder: Path | None = None) -> None:
        self.encoder, self.folder = encoder, folder
        self.dim, self.fingerprint = encoder.dim, encoder.fingerprint
        self._found: dict[bytes, Place] = {}  # by the key of a text

    def prepare(
        self,
        texts: Iterable[str],
        *,
        length: int,
        device: str | torch.device = "cpu",
        say: Callable[[str], None] = print,
    ) -> None:
        """Reads every different text once, from the files where it is there; others are read by the encoder and written.

        An interrupted call keeps what it has read.

        Args:
            texts: any number; files that hold none of these are removed.
            length: as in `encode`.
            device: where the encoder computes meanwhile; after that it is on the CPU.
            say: where sentences for people go: how far it is, and why a file is made again.

        Raises:
            ConfigError, DataError: as `encode`; or the disk refuses.
        """
        if self.dim is None:
            return
        wanted = {self._key(text, length): text for text in texts}
        self._found = {}
        for file in () if self.folder is None else sorted(self.folder.glob("*.safetensors")):
            stored = {key: place for key, place in self._read(file, say).items() if key in wanted}
            self._found |= stored
            if not stored:
                _remove(file)
        missing = {key: text for key, text in wanted.items() if key not in self._found}
        if missing:
            say(f"reading {len(missing):,} texts once")
            self.encoder.to(device)
            try:
                self._read_by_encoder(missing, length, say)
            finally:
                self.encoder.to("cpu")

    def encode(self, texts: Sequence[str], *, length: int = 64) -> tuple[Tensor, Tensor]:
        """As the encoder's own, up to the rounding of `NEAR`."""
        check_texts(texts, length=length)
        places = [self._found.get(self._key(text, length)) for text in texts]
        others = sorted({text for text, place in zip(texts, places, strict=True) if place is None})
        fresh: dict[str, Tensor] = {}
        if others:
            read, read_known = self.encoder.encode(others, length=length)
            if len(others) == len(texts) or self.dim is None:
                index = torch.tensor([others.index(text) for text in texts])
                return read[index], read_known[index]
            fresh = {text: row[where] for text, row, where in zip(others, read, read_known, strict=True)}
        rows = [
            fresh[text] if place is None else place[0][place[1] : place[2]].float()
            for text, place in zip(texts, places, strict=True)
        ]
        states = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        known = torch.arange(states.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        return states, known

    def to(self, device: str | torch.device) -> None:
        """Moves the encoder; what it has read stays on the disk."""
        self.encoder.to(device)

    def _read_by_encoder(self, missing: Mapping[bytes, str], length: int, say: Callable[[str], None]) -> None:
        keys = sorted(missing, key=lambda key: (len(missing[key]), key))  # texts of about one length: little padding
        part: dict[bytes, Tensor] = {}
        size, said = 0, time.monotonic()
        began = said
        try:
            for first in range(0, len(keys), AT_A_TIME):
                some = keys[first : first + AT_A_TIME]
                states, known = self.encoder.encode([missing[key] for key in some], length=length)
                part |= {key: row[where] for key, row, where in zip(some, states, known, strict=True)}
                size, now = size + states.nbytes, time.monotonic()
                if now - said > SECONDS:
                    say(f"{first + len(some):,} of {len(keys):,} texts read")
                    said = now
                if now - began > PART_SECONDS or size > PART_BYTES:
                    self._keep(part)
                    part, size, began = {}, 0, now
        finally:  # the rest, and what is read when somebody interrupts
            if part:
                self._keep(part)

    def _keep(self, part: Mapping[bytes, Tensor]) -> None:
        """Remembers the states of some texts: in a file, where there is a folder."""
        states = torch.cat(list(part.values())).float()
        half = states.half()
        is_near = bool(((half - states).norm(dim=1) <= NEAR * states.norm(dim=1)).all())
        tensors = {
            "states": half if is_near else states,
            "ends": torch.tensor([len(row) for row in part.values()]).cumsum(0),
            "keys": torch.tensor([list(key) for key in part], dtype=torch.uint8),
        }
        if self.folder is not None:
            tensors = _mapped(self._write(tensors, self.folder))[1]
        self._found |= _places(tensors)

    def _key(self, text: str, length: int) -> bytes:
        about = f"{self.fingerprint} {length} ".encode()
        return hashlib.sha256(about + text.encode("utf-8", "surrogatepass")).digest()

    def _read(self, file: Path, say: Callable[[str], None]) -> dict[bytes, Place]:
        """What a file holds; nothing where it cannot be used."""
        try:
            about, tensors = _mapped(file)
        except (OSError, SafetensorError) as error:
            say(f"the texts in {file} are read again: it cannot be opened ({error})")
            return {}
        if about.get("format") != FORMAT or about.get("sha256") != _digest(about.get("encoder", ""), tensors):
            say(f"the texts in {file} are read again: it is damaged, or no file of this version")
            return {}
        if about["encoder"] != self.fingerprint:
            say(f"the texts in {file} are read again: they were read by the text encoder {about['encoder']}")
            return {}
        return _places(tensors)

    def _write(self, tensors: dict[str, Tensor], folder: Path) -> Path:
        """Makes a file in one step, named by what it holds."""
        digest = _digest(self.fingerprint, tensors)
        file = folder / f"{digest[:16]}.safetensors"
        beside = folder / f".{file.name}.{os.getpid()}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, beside, {"format": FORMAT, "encoder": self.fingerprint, "sha256": digest})
            beside.replace(file)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{file} cannot be written: {getattr(error, 'strerror', None) or error}.") from error
        finally:
            if folder.is_dir():
                beside.unlink(missing_ok=True)
        return file


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{file} is of no use, but cannot be removed: {error.strerror}. Remove it.") from error


def _mapped(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a file, which are read from it when they are used."""
    with safe_open(file, framework="pt") as opened:
        return opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no dict)


def _places(tensors: Mapping[str, Tensor]) -> dict[bytes, Place]:
    ends = tensors["ends"].tolist()
    rows = zip(tensors["keys"].tolist(), [0, *ends], ends, strict=False)
    return {bytes(key): (tensors["states"], first, end) for key, first, end in rows}


def _digest(encoder: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(encoder.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()
