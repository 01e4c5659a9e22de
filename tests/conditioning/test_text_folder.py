"""Text encoders of a local folder: states as transformers' own call gives them, and folders that are refused.

The folders are made here: tiny networks with random weights, and a tokenizer of a few words.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before the import, after which nothing looks again
transformers = pytest.importorskip("transformers", reason="not installed: transformers")
tokenizers = pytest.importorskip("tokenizers", reason="not installed: tokenizers")

from rasterformer.conditioning.text import load_text_encoder  # noqa: E402
from rasterformer.conditioning.text_folder import FolderEncoder  # noqa: E402
from rasterformer.errors import ConfigError, DataError, MissingExtraError  # noqa: E402

WORDS = ("<pad>", "<s>", "</s>", "<unk>", *"a red blue green circle square above below one two three four five".split())
TEXTS = ["a red circle above a blue square", "green", "", "one two three four five"]
SIZES = {"vocab_size": len(WORDS), "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip


def networks() -> dict[str, Callable[[], Any]]:
    """Untrained, by the name of their folder."""
    hf: Any = transformers
    t5 = {"vocab_size": len(WORDS), "d_model": 12, "d_kv": 4, "d_ff": 20, "num_layers": 2, "num_heads": 3,
          "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}  # fmt: skip
    vision = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
              "image_size": 8, "patch_size": 4}  # fmt: skip
    return {
        "t5": lambda: hf.T5EncoderModel(hf.T5Config(**t5)),
        "t5 with its decoder": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**t5)),
        "clip text": lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**SIZES)),
        "clip": lambda: hf.CLIPModel(hf.CLIPConfig(text_config=SIZES, vision_config=vision)),
        "bert": lambda: hf.BertModel(hf.BertConfig(**SIZES, max_position_embeddings=20)),
        "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**SIZES, max_position_embeddings=20)),
        "distilbert": lambda: hf.DistilBertModel(
            hf.DistilBertConfig(vocab_size=len(WORDS), dim=12, n_layers=2, n_heads=2, hidden_dim=20, pad_token_id=0)
        ),
    }


def save_tokenizer(folder: Path, *, starts: bool) -> None:
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>" if starts else "$A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("encoders")
    for name, make in networks().items():
        torch.manual_seed(0)
        network = make().eval()
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        network.save_pretrained(root / name, safe_serialization=True)
        save_tokenizer(root / name, starts=not name.startswith("t5"))
    return root


def copy(source: Path, place: Path) -> Path:
    place.mkdir()
    for path in source.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    return place


@torch.no_grad()
@pytest.mark.parametrize("name", networks())
def test_states_are_those_of_transformers_own_call(folders: Path, name: str) -> None:
    """Text by text, without padding."""
    encoder = load_text_encoder("folder", str(folders / name))
    states, known = encoder.encode(TEXTS, length=16)
    assert encoder.dim == 12 == states.shape[2] and states.dtype == torch.float32 and not states.requires_grad
    classes = {"t5": "T5EncoderModel", "clip": "CLIPTextModel", "bert": "BertModel", "roberta": "RobertaModel",
               "distilbert": "DistilBertModel"}  # fmt: skip
    network = getattr(transformers, classes[name.split()[0]]).from_pretrained(folders / name).float().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders / name)
    for index, text in enumerate(TEXTS):
        tokens = tokenizer(text, return_tensors="pt")["input_ids"]
        words = [WORDS.index(word) for word in text.split()]
        assert tokens.tolist() == [[*([] if name.startswith("t5") else [1]), *words, 2]]
        expected = network(input_ids=tokens).last_hidden_state[0]
        torch.testing.assert_close(states[index, known[index]], expected, atol=1e-5, rtol=1e-5)
        assert known[index].tolist() == [True] * len(expected) + [False] * (states.shape[1] - len(expected))
        assert not states[index, ~known[index]].any()


@pytest.mark.parametrize("name", networks())
def test_a_long_text_is_cut_and_keeps_its_last_token(folders: Path, name: str) -> None:
    encoder = FolderEncoder.load(folders / name)
    cut, known = encoder.encode(["one two three four five"], length=5)
    assert known.shape == (1, 5) and known.all()
    kept = "one two three four" if name.startswith("t5") else "one two three"
    torch.testing.assert_close(cut, encoder.encode([kept], length=16)[0])


@pytest.mark.parametrize(("name", "most"), [("clip", 77), ("clip text", 77), ("bert", 20), ("roberta", 19)])
def test_more_tokens_than_the_encoder_has_places_for_are_refused(folders: Path, name: str, most: int) -> None:
    encoder = FolderEncoder.load(folders / name)
    assert encoder.encode(["a " * 100], length=most)[0].shape == (1, most, 12)
    with pytest.raises(ConfigError, match=rf"length = {most + 1} must be 2\.\.{most} tokens.*text\.length"):
        encoder.encode(["a"], length=most + 1)


def test_the_fingerprint_names_weights_config_and_tokenizer(folders: Path, tmp_path: Path) -> None:
    same = FolderEncoder.load(copy(folders / "bert", tmp_path / "same")).fingerprint
    assert same == FolderEncoder.load(folders / "bert").fingerprint and len(same) == 16
    found = {same, FolderEncoder.load(folders / "t5").fingerprint}
    for name, change in (
        ("model.safetensors", lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])),
        ("config.json", lambda raw: raw.replace(b'"model_type"', b'"more": 1, "model_type"')),
        ("tokenizer.json", lambda raw: raw + b"\n"),
    ):
        place = copy(folders / "bert", tmp_path / name)
        (place / name).write_bytes(change((place / name).read_bytes()))
        found.add(FolderEncoder.load(place).fingerprint)
    assert len(found) == 5


def test_weights_in_half_precision_are_computed_in_float32(folders: Path, tmp_path: Path) -> None:
    place = copy(folders / "t5", tmp_path / "half")
    weights = safetensors.torch.load_file(place / "model.safetensors")
    half = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    safetensors.torch.save_file(half, place / "model.safetensors", {"format": "pt"})
    states, _ = FolderEncoder.load(place).encode(["red"])
    assert states.dtype == torch.float32 and not torch.equal(states, states.bfloat16().float())


def test_loading_leaves_the_random_numbers_as_they_were(folders: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    FolderEncoder.load(folders / "bert")
    assert torch.equal(torch.rand(1), expected)


def spoil_pickled(place: Path) -> None:
    (place / "model.safetensors").rename(place / "pytorch_model.bin")


def spoil_weight(place: Path) -> None:
    weights = safetensors.torch.load_file(place / "model.safetensors")
    weights.pop(next(name for name in weights if "layer.1.attention.self.query.weight" in name))
    safetensors.torch.save_file(weights, place / "model.safetensors", {"format": "pt"})


def spoil_shape(place: Path) -> None:
    weights = safetensors.torch.load_file(place / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] = torch.zeros(3, 12)
    safetensors.torch.save_file(weights, place / "model.safetensors", {"format": "pt"})


def spoil_kind(place: Path) -> None:
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    (place / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}), encoding="utf-8")


def spoil_tokenizer(place: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (place / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_pickled, r"has no weights as safetensors; pickled ones \(\.bin\) are not opened"),
        (spoil_weight, r"lacks 1 weights of BertModel, such as .*layer\.1\.attention\.self\.query\.weight"),
        (spoil_shape, "cannot be loaded as BertModel"),
        (spoil_kind, "model_type = 'gpt2' is no text encoder that can be used. Use one of t5"),
        (spoil_tokenizer, r"has no tokenizer: one of tokenizer\.json, vocab\.txt"),
        (lambda place: (place / "tokenizer.json").write_text("no"), "the tokenizer in .*spoilt cannot be read"),
        (lambda place: (place / "model.safetensors").write_bytes(b"no"), "cannot be loaded as BertModel"),
        (lambda place: (place / "config.json").unlink(), "config.json cannot be read"),
        (lambda place: (place / "config.json").write_text("[]"), "config.json cannot be read"),
    ],
)
def test_a_folder_that_is_no_whole_text_encoder_is_refused(
    folders: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    place = copy(folders / "bert", tmp_path / "spoilt")
    spoil(place)
    with pytest.raises(DataError, match=message):
        FolderEncoder.load(place)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere': there is no such folder.*text_folder"):
        FolderEncoder.load(tmp_path / "nowhere")


def test_the_missing_package_is_named(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"needs the package transformers.*pip install 'rasterformer\[hf\]'"):
        FolderEncoder.load(folders / "bert")
