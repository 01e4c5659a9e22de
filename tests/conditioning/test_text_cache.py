"""States on disk: equal to those of the encoder, read once, and never those of another text, encoder or length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rasterformer.conditioning.text import ByteTokens
from rasterformer.conditioning.text_cache import AT_A_TIME, CachedTextEncoder
from rasterformer.conditioning.text_encoder import TextEncoder, padded
from rasterformer.errors import ConfigError, DataError


class Letters(TextEncoder):
    """A state for each letter: its number, and the square of that. Keeps what it was given."""

    dim = 2

    def __init__(self, fingerprint: str = "letters") -> None:
        self.fingerprint = fingerprint
        self.calls: list[list[str]] = []

    def encode(self, texts: Sequence[str], *, length: int = 64) -> tuple[Tensor, Tensor]:
        self.calls.append(list(texts))
        tokens, known = padded([[1, *map(ord, text)][:length] for text in texts], 0)
        return torch.stack([tokens, tokens**2], -1).float(), known


TEXTS = ["red", "a blue square", "", "red", "grün"]


def quiet(text: str) -> None:
    """Says nothing."""


@pytest.mark.parametrize("place", [None, "texts.safetensors"])
def test_states_are_those_of_the_encoder_and_each_text_is_read_once(place: str | None, tmp_path: Path) -> None:
    encoder = Letters()
    cached = CachedTextEncoder(encoder, None if place is None else tmp_path / "new" / place)
    cached.prepare(TEXTS, length=8, say=quiet)
    assert sorted(sum(encoder.calls, [])) == sorted(set(TEXTS))
    encoder.calls.clear()
    states, known = cached.encode(TEXTS, length=8)
    assert encoder.calls == [] and (cached.dim, cached.fingerprint) == (2, "letters")
    expected, expected_known = encoder.encode(TEXTS, length=8)
    assert torch.equal(states, expected) and torch.equal(known, expected_known)
    short, short_known = cached.encode(["red", ""], length=8)
    assert short.shape == (2, 4, 2) and short_known.sum(1).tolist() == [4, 1]


def test_texts_that_were_not_prepared_are_read_when_they_come() -> None:
    encoder = Letters()
    cached = CachedTextEncoder(encoder)
    cached.prepare(TEXTS, length=8, say=quiet)
    for texts in (["new"], ["red", "new", "", "new"], ["new", "other", "new"]):
        states, known = cached.encode(texts, length=8)
        expected, expected_known = Letters().encode(texts, length=8)
        assert torch.equal(states, expected) and torch.equal(known, expected_known)
    assert encoder.calls[-1] == ["new", "other"]


def test_another_length_is_another_text() -> None:
    cached = CachedTextEncoder(Letters())
    cached.prepare(["abcdef"], length=4, say=quiet)
    assert cached.encode(["abcdef"], length=4)[0].shape == (1, 4, 2)
    assert cached.encode(["abcdef"], length=6)[0].shape == (1, 6, 2)


def test_the_file_is_read_back_and_only_changed_texts_are_read_again(tmp_path: Path) -> None:
    file, encoder, said = tmp_path / "texts.safetensors", Letters(), list[str]()
    CachedTextEncoder(Letters(), file).prepare(TEXTS, length=8, say=quiet)
    cached = CachedTextEncoder(encoder, file)
    cached.prepare([*TEXTS[:-1], "green"], length=8, say=said.append)
    assert encoder.calls == [["green"]] and said == ["reading 1 texts once"]
    assert torch.equal(cached.encode(["a blue square"], length=8)[0], Letters().encode(["a blue square"], length=8)[0])
    encoder.calls.clear()
    CachedTextEncoder(encoder, file).prepare([*TEXTS[:-1], "green"], length=8, say=said.append)
    assert encoder.calls == [] and len(said) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["texts.safetensors"]


def test_a_file_of_another_encoder_is_made_again_and_said_to_be(tmp_path: Path) -> None:
    file, encoder, said = tmp_path / "texts.safetensors", Letters("other"), list[str]()
    CachedTextEncoder(Letters(), file).prepare(["red"], length=8, say=quiet)
    CachedTextEncoder(encoder, file).prepare(["red"], length=8, say=said.append)
    assert encoder.calls == [["red"]] and "read by the text encoder letters" in said[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-9] + b"?" + raw[-8:], "it is damaged"),
        (lambda raw: raw[: len(raw) // 2], "cannot be opened"),
        (lambda raw: b"", "cannot be opened"),
        (lambda raw: raw.replace(b"rasterformer texts 1", b"rasterformer texts 9"), "no file of this version"),
        (lambda raw: raw.replace(b"letters", b"Letters"), "it is damaged"),
    ],
)
def test_a_damaged_file_is_made_again_and_said_to_be(
    damage: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    file, encoder, said = tmp_path / "texts.safetensors", Letters(), list[str]()
    CachedTextEncoder(Letters(), file).prepare(TEXTS, length=8, say=quiet)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert file.read_bytes() != whole
    cached = CachedTextEncoder(encoder, file)
    cached.prepare(TEXTS, length=8, say=said.append)
    assert sorted(sum(encoder.calls, [])) == sorted(set(TEXTS)) and message in said[0]
    assert torch.equal(cached.encode(TEXTS, length=8)[0], Letters().encode(TEXTS, length=8)[0])
    encoder.calls.clear()
    CachedTextEncoder(encoder, file).prepare(TEXTS, length=8, say=quiet)
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
    cached = CachedTextEncoder(ByteTokens(), tmp_path / "texts.safetensors")
    cached.prepare(["a"], length=8, say=quiet)
    tokens, known = cached.encode(["a", "", "a"], length=8)
    assert cached.dim is None and tokens.tolist() == [[256, 97, 257], [256, 257, 258], [256, 97, 257]]
    assert known.sum(1).tolist() == [3, 2, 3] and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="texts.safetensors cannot be written"):
        CachedTextEncoder(Letters(), tmp_path / "file" / "texts.safetensors").prepare(["a"], length=8, say=quiet)


@pytest.mark.parametrize("texts", ["red", []])
def test_no_list_of_texts_is_refused(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="must be a list of at least one text"):
        CachedTextEncoder(Letters()).encode(texts)
