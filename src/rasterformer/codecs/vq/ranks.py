"""What every rank of a distributed run must agree on: sums and random choices over the vectors of all ranks.

Without an initialised process group there is one rank, and these functions talk to nobody.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether a process group is initialised."""
    return dist.is_available() and dist.is_initialized()


def summed(x: Tensor) -> Tensor:
    """The sum of x over ranks, in place: any shape, equal on all ranks."""
    if is_distributed():
        dist.all_reduce(x)
    return x


def shared(x: Tensor) -> Tensor:
    """What rank 0 has, on all ranks, in place: any shape, equal on all ranks."""
    if is_distributed():
        dist.broadcast(x, 0)
    return x


def gathered(vectors: Tensor) -> Tensor:
    """The vectors of all ranks, in order of rank: [M_r, D], with any M_r on rank r -> [sum of M_r, D]."""
    if not is_distributed():
        return vectors
    num_ranks = dist.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=vectors.device) for _ in range(num_ranks)]
    dist.all_gather(counts, torch.full_like(counts[0], len(vectors)))
    longest = int(torch.cat(counts).max())
    padded = torch.cat([vectors, vectors.new_zeros(longest - len(vectors), vectors.shape[1])])
    from_ranks = [torch.empty_like(padded) for _ in range(num_ranks)]
    dist.all_gather(from_ranks, padded)
    return torch.cat([mine[: int(count)] for mine, count in zip(from_ranks, counts, strict=True)])


def drawn(vectors: Tensor, count: int, *, rng: torch.Generator) -> Tensor:
    """Draws distinct rows from those of all ranks, the same on all ranks.

    Args:
        vectors: [M, D], this rank's.
        count: how many to draw.
        rng: this rank's random stream.

    Returns:
        [min(count, M of all ranks), D].
    """
    chosen = shuffled(vectors, rng=rng)[:count]
    return shared(shuffled(gathered(chosen), rng=rng)[:count]) if is_distributed() else chosen


def shuffled(vectors: Tensor, *, rng: torch.Generator) -> Tensor:
    """The rows of vectors [M, D] in random order."""
    return vectors[torch.randperm(len(vectors), generator=rng, device=rng.device).to(vectors.device)]
