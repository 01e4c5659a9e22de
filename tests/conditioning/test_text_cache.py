"""States on disk: equal to those of the encoder, read once, and never those of another text, encoder or length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rasterformer.conditioning.text import ByteTokens
from rasterformer.conditioning.text_cache import AT_A_TIME, CachedTextEncoder
from rasterformer.conditioning.text_encoder import TextEncoder, padded
from rasterformer.errors import ConfigError, DataError


class Letters(TextEncoder):
    """A state for each letter: its number, and the square of that. Keeps what it was given."""

    dim = 2

    def __init__(self, fingerprint: str = "letters", scale: float = 1.0) -> None:
        self.fingerprint, self.scale = fingerprint, scale
        self.calls: list[list[str]] = []
        self.devices: list[str] = []

    def encode(self, texts: Sequence[str], *, length: int = 64) -> tuple[Tensor, Tensor]:
        self.calls.append(list(texts))
        tokens, known = padded([[1, *map(ord, text)][:length] for text in texts], 0)
        return torch.stack([tokens, tokens**2], -1).float() * self.scale, known

    def to(self, device: str | torch.device) -> None:
        self.devices.append(str(device))


TEXTS = ["red", "a blue square", "", "red", "grün"]


def near(states: Tensor, expected: Tensor) -> bool:
    """Every state differs by a thousandth of its norm at most: half of float16's step is one 2048th."""
    return bool(((states - expected).norm(dim=-1) <= 1e-3 * expected.norm(dim=-1)).all())


def quiet(text: str) -> None:
    """Says nothing."""


@pytest.mark.parametrize("place", [None, "texts"])
def test_states_are_those_of_the_encoder_and_each_text_is_read_once(place: str | None, tmp_path: Path) -> None:
    encoder = Letters()
    cached = CachedTextEncoder(encoder, None if place is None else tmp_path / "new" / place)
    cached.prepare(TEXTS, length=8, say=quiet)
    assert sorted(sum(encoder.calls, [])) == sorted(set(TEXTS))
    encoder.calls.clear()
    states, known = cached.encode(TEXTS, length=8)
    assert encoder.calls == [] and (cached.dim, cached.fingerprint) == (2, "letters")
    expected, expected_known = encoder.encode(TEXTS, length=8)
    assert states.dtype == torch.float32 and near(states, expected) and torch.equal(known, expected_known)
    short, short_known = cached.encode(["red", ""], length=8)
    assert short.shape == (2, 4, 2) and short_known.sum(1).tolist() == [4, 1]


def test_texts_that_were_not_prepared_are_read_when_they_come() -> None:
    encoder = Letters()
    cached = CachedTextEncoder(encoder)
    cached.prepare(TEXTS, length=8, say=quiet)
    for texts in (["new"], ["red", "new", "", "new"], ["new", "other", "new"]):
        states, known = cached.encode(texts, length=8)
        expected, expected_known = Letters().encode(texts, length=8)
        assert near(states, expected) and torch.equal(known, expected_known)
    assert encoder.calls[-1] == ["new", "other"]


def test_another_length_is_another_text() -> None:
    cached = CachedTextEncoder(Letters())
    cached.prepare(["abcdef"], length=4, say=quiet)
    assert cached.encode(["abcdef"], length=4)[0].shape == (1, 4, 2)
    assert cached.encode(["abcdef"], length=6)[0].shape == (1, 6, 2)


def test_what_was_written_is_read_back_and_only_changed_texts_are_read_again(tmp_path: Path) -> None:
    encoder, said = Letters(), list[str]()
    CachedTextEncoder(Letters(), tmp_path).prepare(TEXTS, length=8, say=quiet)
    cached = CachedTextEncoder(encoder, tmp_path)
    cached.prepare([*TEXTS[:-1], "green"], length=8, say=said.append)
    assert encoder.calls == [["green"]] and said == ["reading 1 texts once"]
    assert near(cached.encode(["a blue square"], length=8)[0], Letters().encode(["a blue square"], length=8)[0])
    encoder.calls.clear()
    CachedTextEncoder(encoder, tmp_path).prepare([*TEXTS[:-1], "green"], length=8, say=said.append)
    assert encoder.calls == [] and len(said) == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"] * 2
    CachedTextEncoder(encoder, tmp_path).prepare(["green"], length=8, say=said.append)
    assert len(list(tmp_path.iterdir())) == 1 and encoder.calls == [], "the other file holds no text that is wanted"


@pytest.mark.parametrize(("scale", "dtype"), [(1.0, torch.float16), (1e3, torch.float32), (1e-9, torch.float32)])
def test_states_are_float16_where_that_is_near_enough(scale: float, dtype: torch.dtype, tmp_path: Path) -> None:
    """Squares of letters times 1000 are beyond float16, and all numbers times 1e-9 below it."""
    CachedTextEncoder(Letters(scale=scale), tmp_path).prepare(TEXTS, length=8, say=quiet)
    (file,) = tmp_path.iterdir()
    assert load_file(file)["states"].dtype == dtype
    cached = CachedTextEncoder(Letters(scale=scale), tmp_path)
    cached.prepare(TEXTS, length=8, say=quiet)
    states, expected = cached.encode(TEXTS, length=8)[0], Letters(scale=scale).encode(TEXTS, length=8)[0]
    assert states.dtype == torch.float32 and near(states, expected)
    assert torch.equal(states, expected) == (dtype == torch.float32)


class Interrupted(Letters):
    """Somebody presses Ctrl-C while the second batch is read."""

    def encode(self, texts: Sequence[str], *, length: int = 64) -> tuple[Tensor, Tensor]:
        if self.calls:
            raise KeyboardInterrupt
        return super().encode(texts, length=length)


def test_an_interruption_loses_only_the_batch_that_is_read(tmp_path: Path) -> None:
    texts, encoder = [f"text {k:03}" for k in range(2 * AT_A_TIME)], Interrupted()
    with pytest.raises(KeyboardInterrupt):
        CachedTextEncoder(encoder, tmp_path).prepare(texts, length=8, say=quiet)
    assert encoder.devices[-1] == "cpu"
    again = Letters()
    CachedTextEncoder(again, tmp_path).prepare(texts, length=8, say=quiet)
    assert len(again.calls) == 1 and sorted(encoder.calls[0] + again.calls[0]) == texts


def test_long_reading_is_written_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill that leaves no time for anything loses what was read since the last file."""
    files = list[int]()

    class Counting(Letters):
        def encode(self, texts: Sequence[str], *, length: int = 64) -> tuple[Tensor, Tensor]:
            files.append(len(list(tmp_path.iterdir())))
            return super().encode(texts, length=length)

    clock = iter(range(0, 1000, 25))  # seconds: more than 60 after three batches
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    texts = [f"text {k:03}" for k in range(7 * AT_A_TIME)]
    cached = CachedTextEncoder(Counting(), tmp_path)
    cached.prepare(texts, length=8, say=quiet)
    assert files == [0, 0, 0, 1, 1, 1, 2] and len(list(tmp_path.iterdir())) == 3
    assert near(cached.encode(texts, length=8)[0], Letters().encode(texts, length=8)[0])


def test_many_states_are_written_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rasterformer.conditioning.text_cache.PART_BYTES", 1000)  # 64 texts of 8 letters have 4096
    texts = [f"text {k:03}" for k in range(3 * AT_A_TIME)]
    CachedTextEncoder(Letters(), tmp_path).prepare(texts, length=8, say=quiet)
    assert len(list(tmp_path.iterdir())) == 3


def test_the_encoder_computes_where_it_is_told_and_only_while_it_reads(tmp_path: Path) -> None:
    encoder = Letters()
    cached = CachedTextEncoder(encoder, tmp_path)
    cached.prepare(TEXTS, length=8, device="cuda", say=quiet)
    assert encoder.devices == ["cuda", "cpu"]
    cached.prepare(TEXTS, length=8, device="cuda", say=quiet)
    assert encoder.devices == ["cuda", "cpu"], "nothing was left to read"
    cached.to("meta")
    assert encoder.devices[-1] == "meta"


def test_a_file_of_another_encoder_is_made_again_and_said_to_be(tmp_path: Path) -> None:
    encoder, said = Letters("other"), list[str]()
    CachedTextEncoder(Letters(), tmp_path).prepare(["red"], length=8, say=quiet)
    CachedTextEncoder(encoder, tmp_path).prepare(["red"], length=8, say=said.append)
    assert len(list(tmp_path.iterdir())) == 1
    assert encoder.calls == [["red"]] and "read by the text encoder letters" in said[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-9] + b"?" + raw[-8:], "it is damaged"),
        (lambda raw: raw[: len(raw) // 2], "cannot be opened"),
        (lambda raw: b"", "cannot be opened"),
        (lambda raw: raw.replace(b"rasterformer texts 2", b"rasterformer texts 9"), "no file of this version"),
        (lambda raw: raw.replace(b"letters", b"Letters"), "it is damaged"),
    ],
)
def test_a_damaged_file_is_made_again_and_said_to_be(
    damage: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    encoder, said = Letters(), list[str]()
    CachedTextEncoder(Letters(), tmp_path).prepare(TEXTS, length=8, say=quiet)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert file.read_bytes() != whole
    cached = CachedTextEncoder(encoder, tmp_path)
    cached.prepare(TEXTS, length=8, say=said.append)
    assert sorted(sum(encoder.calls, [])) == sorted(set(TEXTS)) and message in said[0]
    assert near(cached.encode(TEXTS, length=8)[0], Letters().encode(TEXTS, length=8)[0])
    encoder.calls.clear()
    CachedTextEncoder(encoder, tmp_path).prepare(TEXTS, length=8, say=quiet)
    assert encoder.calls == [], "it is whole again"


def test_many_texts_are_read_in_batches() -> None:
    encoder = Letters()
    CachedTextEncoder(encoder).prepare([f"text {k}" for k in range(150)], length=8, say=quiet)
    assert [len(call) for call in encoder.calls] == [AT_A_TIME, AT_A_TIME, 150 - 2 * AT_A_TIME]


def test_it_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 7))  # seconds: a sentence after every second batch
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    said = list[str]()
    CachedTextEncoder(Letters()).prepare([f"text {k}" for k in range(200)], length=8, say=said.append)
    assert said == ["reading 200 texts once", "128 of 200 texts read", "200 of 200 texts read"]


def test_bytes_are_passed_on(tmp_path: Path) -> None:
    cached = CachedTextEncoder(ByteTokens(), tmp_path)
    cached.prepare(["a"], length=8, device="cuda", say=quiet)
    tokens, known = cached.encode(["a", "", "a"], length=8)
    assert cached.dim is None and tokens.tolist() == [[256, 97, 257], [256, 257, 258], [256, 97, 257]]
    assert known.sum(1).tolist() == [3, 2, 3] and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"[0-9a-f]{16}\.safetensors cannot be written"):
        CachedTextEncoder(Letters(), tmp_path / "file" / "texts").prepare(["a"], length=8, say=quiet)


@pytest.mark.parametrize("texts", ["red", []])
def test_no_list_of_texts_is_refused(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="must be a list of at least one text"):
        CachedTextEncoder(Letters()).encode(texts)


def test_what_cannot_be_removed_is_named(tmp_path: Path) -> None:
    (tmp_path / "old.safetensors").mkdir()
    with pytest.raises(DataError, match=r"old\.safetensors is of no use, but cannot be removed"):
        CachedTextEncoder(Letters(), tmp_path).prepare(["a"], length=8, say=quiet)
