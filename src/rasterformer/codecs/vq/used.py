"""The codes of a codebook that occur: a model over codes numbers only those (Gu et al. 2022, section 5.1).

The paper's code puts all codes that never occur into one more code, which stands for no part of an image. Here each of them
becomes the used code that the decoder can least tell it from, so that every number of the model is a code of the tokenizer.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from rasterformer.codecs.vq.quantise import Quantiser
from rasterformer.errors import DataError, ShapeError

CODES_AT_ONCE = 1024  # unused codes whose distances are computed together


@final
class UsedCodes:
    """The tokenizer's own numbers of codes, 0..K-1, <-> compact numbers of those that are used, 0..K'-1.

    Args:
        used: int64 [K'], the tokenizer's numbers of the used codes, rising.
        vectors: float [K, D], what the decoder sees of each code.

    Attributes:
        used: as given, on the CPU.
        to_compact: int64 [K], the compact number of each code: its own if it is used, else that of the used code whose
            vector is nearest.

    Raises:
        ShapeError: used is not int64 [K'], or vectors are not [K, D].
        DataError: used is empty, does not rise or leaves 0..K-1.
    """

    def __init__(self, used: Tensor, vectors: Tensor) -> None:
        if used.dtype != torch.int64 or used.ndim != 1 or vectors.ndim != 2:
            raise ShapeError(
                f"used is {used.dtype} {list(used.shape)} and vectors are {list(vectors.shape)}; they must be torch.int64 [K'] "
                "and [K, D]."
            )
        self.used = used.cpu()
        if (
            not len(used)
            or int(self.used[0]) < 0
            or int(self.used[-1]) >= len(vectors)
            or (self.used.diff() <= 0).any()
        ):
            shown = ", ".join(map(str, self.used[:5].tolist()))
            raise DataError(
                f"used holds {len(used)} codes: {shown} ...; they must be at least one, rising and in 0..{len(vectors) - 1}."
            )
        entries = vectors.detach().cpu().double()  # the same numbers, wherever the weights are
        self.to_compact = torch.empty(len(vectors), dtype=torch.int64)
        for codes in torch.arange(len(vectors))[self._unused].split(CODES_AT_ONCE):
            self.to_compact[codes] = torch.cdist(entries[codes], entries[self.used]).argmin(1)
        self.to_compact[self.used] = torch.arange(len(self.used))

    def __len__(self) -> int:
        """K'."""
        return len(self.used)

    def compact(self, codes: Tensor) -> Tensor:
        """The tokenizer's numbers, whole numbers of any shape -> compact ones, int64."""
        return self.to_compact.to(codes.device)[codes.long()]

    def expand(self, compact: Tensor) -> Tensor:
        """Compact numbers, whole numbers of any shape -> the tokenizer's, int64."""
        return self.used.to(compact.device)[compact.long()]

    def share_replaced(self, codes: Tensor) -> float:
        """Share of codes, in the tokenizer's numbers and of any shape, that are not used: `compact` changes them. 0 for none."""
        return float(self._unused.to(codes.device)[codes.long()].double().mean()) if codes.numel() else 0.0

    @property
    def _unused(self) -> Tensor:
        """bool [K]."""
        return torch.ones(len(self.to_compact), dtype=torch.bool).index_fill_(0, self.used, False)


def used_codes(counts: Tensor) -> Tensor:
    """The codes that occur: counts int64 [K], how often each does -> int64 [K'], rising.

    Raises:
        ShapeError: counts have another shape or dtype.
        DataError: no code occurs.
    """
    if counts.dtype != torch.int64 or counts.ndim != 1:
        raise ShapeError(f"counts are {counts.dtype} {list(counts.shape)}; they must be torch.int64 [K].")
    used = counts.nonzero().flatten()
    if not len(used):
        raise DataError(f"none of the {len(counts)} codes occurs. Count the codes of at least one image.")
    return used


@torch.no_grad()
def codebook_vectors(quantiser: Quantiser) -> Tensor:
    """What the decoder sees of each code, float32 [K, D]: of length 1 where the quantiser compares directions."""
    codes = torch.arange(quantiser.vocab_size, device=_device(quantiser))
    return quantiser.lookup(codes.view(1, 1, -1))[0, :, 0].T


def _device(quantiser: Quantiser) -> torch.device:
    return next(tensor.device for tensor in (*quantiser.parameters(), *quantiser.buffers()))
