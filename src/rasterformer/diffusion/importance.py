"""Which levels a training step looks at: those whose loss is large more often (Gu et al. 2022, after Nichol & Dhariwal 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rasterformer.errors import CheckpointError, ConfigError, ShapeError

MIN_HITS = 10  # of every level, before losses decide
DECAY = 0.9


class StepSampler:
    """Draws levels t with p(t) proportional to the root of the mean squared loss at t.

    Uniform until every level has been seen more than 10 times; then p(t) is proportional to
    sqrt(m_t + 1e-10) + 1e-4, where m_t is a moving average of the squared loss, m_t := 0.9 m_t + 0.1 loss^2 from 0. Level 1
    takes the value of level 2: its loss is a likelihood and no divergence (authors' code).
    A loss divided by its probability is an unbiased estimate of the sum over all levels.

    Args:
        num_steps: T, at least 2.

    Raises:
        ConfigError: fewer than 2 steps.
    """

    def __init__(self, num_steps: int) -> None:
        if num_steps < 2:
            raise ConfigError(f"num_steps = {num_steps} is too few. Use at least 2.")
        self._squared = torch.zeros(num_steps, dtype=torch.float64)
        self._hits = torch.zeros(num_steps, dtype=torch.int64)

    def probs(self) -> Tensor:
        """p(t) of the levels 1..T, float64 [T]."""
        if int(self._hits.min()) <= MIN_HITS:
            return torch.full_like(self._squared, 1 / len(self._squared))
        root = (self._squared + 1e-10).sqrt() + 1e-4
        root[0] = root[1]
        return root / root.sum()

    def draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws levels.

        Args:
            count: B, at least 1.
            rng: on the CPU.

        Returns:
            t int64 [B] in 1..T, and the probability of each, float64 [B]; on the CPU.
        """
        probs = self.probs()
        index = torch.multinomial(probs, count, replacement=True, generator=rng)
        return index + 1, probs[index]

    def update_(self, t: Tensor, losses: Tensor) -> None:
        """Takes in what was seen, one image after the other. A loss that is not finite is left out: it says nothing of a level.

        Args:
            t: int64 [B], levels 1..T.
            losses: float [B], not divided by their probability.

        Raises:
            ShapeError: not one loss per level.
            ConfigError: a level out of range.
        """
        if t.dim() != 1 or t.shape != losses.shape:
            raise ShapeError(f"t has shape {list(t.shape)} and losses {list(losses.shape)}; expected [B] of both.")
        levels = t.tolist()
        if not all(1 <= level <= len(self._hits) for level in levels):
            raise ConfigError(f"t = {levels} leaves the levels 1..{len(self._hits)}.")
        finite = losses.isfinite().tolist()
        for level, square, is_finite in zip(levels, losses.detach().double().square().tolist(), finite, strict=True):
            if is_finite:
                self._squared[level - 1] = DECAY * self._squared[level - 1] + (1 - DECAY) * square
                self._hits[level - 1] += 1

    def state(self) -> dict[str, Tensor]:
        """Returns copies of what `update_` has gathered: `squared` float64 [T] and `hits` int64 [T]."""
        return {"squared": self._squared.clone(), "hits": self._hits.clone()}

    def load_state_(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned.

        Raises:
            CheckpointError: parts that are missing, or of another shape or dtype.
        """
        own = {"squared": self._squared, "hits": self._hits}
        found = {name: (part.dtype, list(part.shape)) for name, part in state.items()}
        wanted = {name: (part.dtype, list(part.shape)) for name, part in own.items()}
        if found != wanted:
            raise CheckpointError(f"The state of the levels' sampler holds {found}; expected {wanted}.")
        for name, part in own.items():
            part.copy_(state[name])
