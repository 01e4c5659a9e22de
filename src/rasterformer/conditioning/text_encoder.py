"""What reads texts: the interface, and what every kind of it checks. The kinds are in `text.py` and `text_folder.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from rasterformer.errors import ConfigError, DataError


class TextEncoder(ABC):
    """Texts to numbers. It is never trained, and no checkpoint holds it: a model remembers its `fingerprint`.

    Attributes:
        dim: D, width of a state. None: `encode` gives tokens, which the model embeds itself.
        fingerprint: names weights and vocabulary: two encoders with the same one give the same.
    """

    dim: int | None
    fingerprint: str

    @abstractmethod
    def encode(self, texts: Sequence[str], *, length: int = 64) -> tuple[Tensor, Tensor]:
        """Returns what stands for each token of each text, and which tokens are known.

        All texts are one batch, as long as the longest of them; a text's states do not depend on the others (up to rounding).

        Args:
            texts: B >= 1 of them; one may be empty.
            length: most tokens of a text, with those that begin and end it; what is longer is cut.

        Returns:
            states float32 [B, S, D], 0 at the padding, or tokens int64 [B, S]; known bool [B, S], False at the padding.
            1 <= S <= length, and every text has a known token.

        Raises:
            ConfigError: texts is a single string or empty, or length is out of range.
            DataError: a text has a character that Unicode does not allow in texts.
        """

    @abstractmethod
    def to(self, device: str | torch.device) -> None:
        """Moves what computes; what `encode` returns is on the CPU all the same."""


def check_texts(texts: Sequence[str], *, length: int, most: int | None = None) -> None:
    """Checks the arguments of `encode`; `most` is the largest length. None: there is no limit.

    Raises:
        ConfigError, DataError: as `TextEncoder.encode`.
    """
    if isinstance(texts, str) or not texts:
        raise ConfigError(f"texts = {texts!r} must be a list of at least one text.")
    if length < 2 or (most is not None and length > most):
        allowed = "at least 2" if most is None else f"2..{most}"
        raise ConfigError(f"length = {length} must be {allowed} tokens for this text encoder. Set text.length.")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"the text {text!r} has at character {error.start + 1} half of a surrogate pair, which is no text. "
                "Give it as UTF-8."
            ) from error


def check_dim(encoder: TextEncoder, dim: int) -> None:
    """Refuses an encoder whose states have other dimensions than `text.dim`, which a network was built for.

    Raises:
        ConfigError: they differ. One that gives tokens has none, and fits.
    """
    if encoder.dim not in (None, dim):
        raise ConfigError(f"text.dim = {dim}, but the text encoder's states have {encoder.dim}: set it to that.")


def padded(rows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Rows of at least one token each -> tokens int64 [B, S] and known bool [B, S], S that of the longest."""
    tokens = torch.full((len(rows), max(map(len, rows))), padding, dtype=torch.int64)
    known = torch.zeros_like(tokens, dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
        known[index, : len(row)] = True
    return tokens, known
