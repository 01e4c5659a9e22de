"""Averages of weights: exponential while training, plain over the last checkpoints afterwards."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """A copy of the model whose weights follow with decay d_s = min(decay, s / (s + 10)); its buffers are the model's.

    Args:
        model: is copied.
        decay: in 0..1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        weights = dict(model.named_parameters())
        self.buffers = [
            name for name in model.state_dict() if name not in weights
        ]  # such as a codebook that is no weight

    @torch.no_grad()
    def update_(self, model: nn.Module, step: int) -> None:
        """Moves the average towards the model after optimiser step number `step`, counted from 1."""
        decay = min(self.decay, step / (step + 10))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for name in self.buffers:
            self.model.get_buffer(name).copy_(model.get_buffer(name))


def mean_of_weights(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The plain mean of several state dicts of one model (paper, Table 3: "averaged")."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(states[0][name].dtype)
        for name in states[0]
    }
