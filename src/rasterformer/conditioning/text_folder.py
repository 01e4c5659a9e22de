"""A frozen text encoder of one's own: T5, CLIP's text half, or a BERT, in a local folder as transformers saves them.

Weights are safetensors only, no code of the folder is run, and nothing is fetched from a network. Needs the extra `hf`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from rasterformer.conditioning.text_encoder import TextEncoder, check_texts, padded
from rasterformer.errors import DataError, MissingExtraError

# model_type of config.json -> the class of transformers that reads texts
ARCHITECTURES = {
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "bert": "BertModel",
    "distilbert": "DistilBertModel",
    "electra": "ElectraModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "mpnet": "MPNetModel",
}
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "mpnet")  # their first positions belong to the padding
UNUSED = ("pooler.", "position_ids")  # weights that the last states do not depend on
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
TOKENIZER_FILES = (*VOCABULARIES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class FolderEncoder(TextEncoder):
    """The last states of a model of transformers. Make one with `FolderEncoder.load(folder)`.

    What a token is, and whether letters are lower-cased, is the tokenizer's decision. CLIP takes at most 77 tokens.
    """

    def __init__(self, network: Any, tokenizer: Any, *, most: int | None, fingerprint: str) -> None:
        self._network, self._tokenizer, self._most = network, tokenizer, most
        self.dim, self.fingerprint = int(network.config.hidden_size), fingerprint

    @classmethod
    def load(cls, folder: str | Path) -> FolderEncoder:
        """Loads model and tokenizer of a folder, on the CPU, in float32.

        Raises:
            MissingExtraError: transformers, or a package that this tokenizer needs, is not installed.
            DataError: there is no such folder; it has no config.json, no safetensors or no tokenizer; its architecture is not
                one of `ARCHITECTURES`; or weights are missing.
        """
        place = Path(folder)
        kind = _architecture(place)
        fingerprint = _fingerprint(place)
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
        try:
            transformers = importlib.import_module("transformers")
        except ImportError as error:
            raise MissingExtraError(
                "text.encoder = 'folder' needs the package transformers, which is not installed. "
                "Install it with: pip install 'rasterformer[hf]'"
            ) from error
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(place), local_files_only=True, trust_remote_code=False
            )
        except ImportError as error:
            raise MissingExtraError(f"the tokenizer in {place} needs another package: {error}") from error
        except (OSError, ValueError) as error:
            raise DataError(f"the tokenizer in {place} cannot be read: {error}") from error
        network = _network(getattr(transformers, ARCHITECTURES[kind]), place)
        most = getattr(network.config, "max_position_embeddings", None)
        if most is not None and kind in OFFSET_POSITIONS:
            most -= network.config.pad_token_id + 1
        return cls(network, tokenizer, most=most, fingerprint=fingerprint)

    @torch.no_grad()  # not inference_mode: a model that is trained on the states keeps them for its gradients
    def encode(self, texts: Sequence[str], *, length: int = 64) -> tuple[Tensor, Tensor]:
        """Returns states float32 [B, S, D] and known bool [B, S]; see `TextEncoder`."""
        check_texts(texts, length=length, most=self._most)
        padding = self._tokenizer.pad_token_id or 0
        rows = [self._tokenizer(text, truncation=True, max_length=length)["input_ids"] for text in texts]
        tokens, known = padded([row or [padding] for row in rows], padding)
        device = self._network.device
        given = {"input_ids": tokens.to(device), "attention_mask": known.long().to(device)}
        states = self._network(**given).last_hidden_state.cpu()
        return states.masked_fill(~known[..., None], 0.0), known

    def to(self, device: str | torch.device) -> None:
        """Moves the network."""
        self._network.to(device)


def _architecture(place: Path) -> str:
    """The model_type of a folder that can be read."""
    if not place.is_dir():
        raise DataError(
            f"text.folder = {str(place)!r}: there is no such folder. Give one that transformers has saved; of a "
            "trained model: --text-folder, or rasterformer.load(..., text_folder=...)."
        )
    try:
        kind = json.loads((place / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{place / 'config.json'} cannot be read: {error}. Give a folder as transformers saves it."
        ) from error
    if kind not in ARCHITECTURES:
        raise DataError(
            f"{place / 'config.json'}: model_type = {kind!r} is no text encoder that can be used. Use one of "
            f"{', '.join(ARCHITECTURES)}."
        )
    if not any(place.glob("*.safetensors")):
        raise DataError(
            f"{place} has no weights as safetensors; pickled ones (.bin) are not opened. Save the model with transformers' "
            "save_pretrained, which writes them."
        )
    if not any((place / name).is_file() for name in VOCABULARIES):  # transformers would make an empty tokenizer
        raise DataError(f"{place} has no tokenizer: one of {', '.join(VOCABULARIES)} is needed.")
    return str(kind)


def _network(model_class: Any, place: Path) -> Any:
    with torch.random.fork_rng(devices=[]):  # its first weights leave torch's global stream as it was
        try:
            network, found = model_class.from_pretrained(
                str(place), local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise DataError(f"{place} cannot be loaded as {model_class.__name__}: {error}") from error
    missing = [name for name in found["missing_keys"] if not any(part in name for part in UNUSED)]
    if missing:
        raise DataError(
            f"{place} lacks {len(missing)} weights of {model_class.__name__}, such as {sorted(missing)[0]}. Give the folder of "
            "a whole text encoder."
        )
    return network.float().eval().requires_grad_(False)


def _fingerprint(place: Path) -> str:
    """16 hexadecimal digits over names and contents of weights, config and tokenizer."""
    names = ["config.json", *sorted(path.name for path in place.glob("*.safetensors")), *TOKENIZER_FILES]
    digest = hashlib.sha256()
    for name in names:
        if (place / name).is_file():
            with (place / name).open("rb") as file:
                digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]
