"""The noise that decides a sample: one stream per image, made as it is needed and forgotten when it has been used."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

NUMBERS_AT_A_TIME = 1 << 12


def stream_seed(seed: int, purpose: str, number: int) -> int:
    """Returns the 32-bit seed of the `number`-th random stream that serves `purpose`.

    torch's generator on the CPU reads the lowest 32 bits of a seed and no more, so seeds are hashed to a place in them.
    """
    start = int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:4], "big")
    return (start + number) % 2**32


def image_generators(seed: int, count: int, *, first: int = 0) -> list[torch.Generator]:
    """One random stream per image: image k of a seed is the same in every batch.

    Args:
        seed: any integer.
        count: number of generators.
        first: index of the first image.
    """
    return [torch.Generator().manual_seed(stream_seed(seed, "image", first + k)) for k in range(count)]


def exponential(rng: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Returns standard exponential numbers float32 [B, *shape], all above 0, from one generator per image, on the CPU.

    They come from float64 uniform numbers, so that the smallest, which decide over improbable values, are not on a grid.
    """

    def one(generator: torch.Generator) -> Tensor:
        uniform = torch.rand(shape, dtype=torch.float64, generator=generator)
        return (-torch.log1p(-uniform)).clamp_(min=2.0**-54).float()

    return torch.stack([one(generator) for generator in rng]).to(device)


class NoiseStream:
    """Standard exponential numbers that belong to the positions of images, given out in the order of positions.

    Args:
        rng: one generator per image, on the CPU.
        per_position: R.
        length: L; no noise is made beyond it.
        device: where the noise is wanted.
    """

    def __init__(self, rng: Sequence[torch.Generator], per_position: int, length: int, device: torch.device) -> None:
        self.rng, self.per_position, self.length, self.device = rng, per_position, length, device
        self.chunk = max(1, NUMBERS_AT_A_TIME // per_position)
        self.first = 0
        self.numbers = torch.empty(len(rng), 0, per_position, device=device)

    def at(self, first: int, count: int = 1) -> Tensor:
        """Returns the noise of positions first..first+count-1, float32 [B, count, R]; what lies before them is forgotten."""
        assert first + count <= self.length, f"there is no noise beyond position {self.length}"
        while self.first + self.numbers.shape[1] < first + count:
            made = self.first + self.numbers.shape[1]
            fresh = exponential(self.rng, (min(self.chunk, self.length - made), self.per_position), self.device)
            keep = max(0, made - first)  # numbers of positions first.. that are there already
            self.numbers = torch.cat([self.numbers[:, self.numbers.shape[1] - keep :], fresh], 1) if keep else fresh
            self.first = made - keep
        start = first - self.first
        assert start >= 0, "noise is given out in the order of positions"
        return self.numbers[:, start : start + count]
