"""How much of a codebook is used. Over an epoch: a batch has too few codes to tell, and always looks worse."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rasterformer.errors import ConfigError, DataError


class CodeUsage:
    """Counts codes.

    Args:
        vocab_size: K.

    Attributes:
        counts: int64 [K], how often each code was added; on the device of the codes.

    Raises:
        ConfigError: vocab_size is below 1.
    """

    def __init__(self, vocab_size: int) -> None:
        if vocab_size < 1:
            raise ConfigError(f"vocab_size = {vocab_size} is below 1.")
        self.vocab_size = vocab_size
        self.reset()

    def reset(self) -> None:
        """Forgets all codes."""
        self.counts = torch.zeros(self.vocab_size, dtype=torch.int64)

    def add(self, codes: Tensor) -> None:
        """Counts codes, int64 of any shape.

        Raises:
            DataError: a code is not in 0..K-1.
        """
        if codes.numel() and (codes.min() < 0 or codes.max() >= self.vocab_size):
            raise DataError(
                f"codes go from {int(codes.min())} to {int(codes.max())}; this codebook has 0 to {self.vocab_size - 1}."
            )
        self.counts = self.counts.to(codes.device) + torch.bincount(codes.flatten(), minlength=self.vocab_size)

    @property
    def share_used(self) -> float:
        """Fraction of the K codes that were added at least once."""
        return 1 - self.num_dead / self.vocab_size

    @property
    def num_dead(self) -> int:
        """Number of codes that were never added."""
        return int((self.counts == 0).sum())

    @property
    def entropy_bits(self) -> float:
        """Entropy of the codes added, bits per code: what an ideal entropy coder without context needs. 0 for no codes."""
        probs = self.counts.cpu().double() / max(1, int(self.counts.sum()))
        return float(torch.special.entr(probs).sum()) / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp of the entropy in nats: the number of equally likely codes with that entropy. 1 for no codes."""
        return 2**self.entropy_bits

    def summary(self) -> dict[str, float]:
        """`share_used`, `perplexity`, `entropy_bits` and `num_dead`, by name."""
        return {
            "share_used": self.share_used,
            "perplexity": self.perplexity,
            "entropy_bits": self.entropy_bits,
            "num_dead": self.num_dead,
        }
