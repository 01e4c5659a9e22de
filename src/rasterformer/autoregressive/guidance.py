"""Classifier-free guidance: the conditional distribution, moved away from the unconditional one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rasterformer.autoregressive.sample import draw
from rasterformer.conditioning.guidance import combine, with_and_without
from rasterformer.distributions import Categorical
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Autoregressive, Cond, Known, Loss, OnStep, SampleOptions


class Guided(Autoregressive):
    """A model of its own: logits l_null + scale * (l_cond - l_null), where l_null are those without the condition.

    Scale 1 is the conditional model, 0 the unconditional one; above 1 images are more typical of their condition and differ
    less from each other. Each position is exactly normalised, so there is a likelihood. Both passes are one pass with a batch
    twice as large: time and caches are those of 2 B images. Images whose condition is `dropped` already are unconditional.

    Source: Ho & Salimans 2022 (Classifier-free diffusion guidance), equation 6, with scale = 1 + w, on logits of tokens.

    Args:
        model: takes `Cond.dropped`, and was trained with it; its params are logits.
        scale: of the guidance.

    Raises:
        ConfigError: params that are no logits, or a scale that is no finite number.
    """

    def __init__(self, model: Autoregressive, scale: float) -> None:
        super().__init__()
        if not isinstance(model.distribution, Categorical):
            raise ConfigError(
                f"guidance combines logits, but the model's distribution is {type(model.distribution).__name__}. "
                "Leave the guidance scale out."
            )
        if not math.isfinite(scale):
            raise ConfigError(f"guidance scale = {scale} must be a finite number; 1 is no guidance.")
        self.model, self.scale = model, scale
        self.distribution, self.x_shape, self.num_classes = model.distribution, model.x_shape, model.num_classes

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        """x int64 [B, L, 1] -> logits [B, L, K]; those of position i depend only on x[:, :i] and cond.

        Raises:
            ConfigError: there is no condition.
        """
        params: Tensor = self.model(torch.cat([x, x]), with_and_without(cond, len(x)))
        return combine(params, self.scale)

    def loss(self, x: Tensor, cond: Cond, *, rng: torch.Generator | None) -> Loss:
        """Negative log-likelihood under the guided distribution, exact; `rng` is not used."""
        nats = -self.distribution.log_prob(self(x, cond), x)  # [B, L]
        dims = nats.new_full((len(x),), nats.shape[1], dtype=torch.int64)
        known = self.known(cond)
        if known is not None:
            nats, dims = nats.masked_fill(known.where, 0), (~known.where).sum(1)
        nats = nats.sum(1)
        return Loss(total=nats.sum() / dims.sum(), nats=nats.detach(), dims=dims, bound="exact")

    def sample(
        self,
        cond: Cond,
        batch_size: int,
        *,
        options: SampleOptions,
        rng: Sequence[torch.Generator],
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Draws x int64 [B, L, 1], position by position; temperature and truncation apply to the guided logits."""
        return draw(self, cond, batch_size, options=options, rng=rng, on_step=on_step)

    def begin(self, cond: Cond, batch_size: int) -> tuple[Tensor, Any]:
        """Returns logits [B, 1, K] of position 0 and the model's state for 2 B images.

        Raises:
            ConfigError: there is no condition.
        """
        params, state = self.model.begin(with_and_without(cond, batch_size), 2 * batch_size)
        return combine(params, self.scale), state

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """x int64 [B, n, 1], the next positions -> logits [B, n, K] of those after them, n - 1 at the end of the image."""
        params, state = self.model.step(torch.cat([x, x]), state)
        return combine(params, self.scale), state

    def known(self, cond: Cond) -> Known | None:
        """What the condition gives to the conditional model."""
        return self.model.known(cond)

    def state_bytes(self, batch_size: int) -> int:
        """Bytes of the model's state for 2 B images."""
        return self.model.state_bytes(2 * batch_size)

    def to_bfloat16(self) -> Guided:
        """Returns the same guidance of a model that computes in bfloat16."""
        return Guided(self.model.to_bfloat16(), self.scale)

    def lookahead(self, state: Any) -> int:
        """How many positions can be given to `step` now, and all but the first of them be taken back."""
        return self.model.lookahead(state)

    def rewind(self, state: Any, done: int) -> Any:
        """Takes back what was given after the first `done` positions."""
        return self.model.rewind(state, done)
