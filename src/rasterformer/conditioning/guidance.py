"""Classifier-free guidance (Ho & Salimans 2022), what all models share of it: both passes as one batch, and their combination."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from rasterformer.errors import ConfigError
from rasterformer.interfaces import Cond


def with_and_without(cond: Cond, batch_size: int) -> Cond:
    """Returns the condition of B images, and after them the same images without it, by `Cond.dropped`.

    Raises:
        ConfigError: there is no condition.
    """
    parts = [getattr(cond, field.name) for field in fields(cond) if field.name != "dropped"]
    device = next((part.device for part in parts if part is not None), None)
    if device is None:
        raise ConfigError(
            "guidance needs a condition to be guided by, but none was given. Give one, or leave the guidance scale out."
        )
    dropped = torch.zeros(batch_size, dtype=torch.bool, device=device) if cond.dropped is None else cond.dropped
    twice = cond.rows(torch.arange(batch_size, device=device).repeat(2))
    return replace(twice, dropped=torch.cat([dropped, torch.ones_like(dropped)]))


def combine(both: Tensor, scale: float) -> Tensor:
    """Logits [2 B, ...] of the rows of `with_and_without` -> l_null + scale (l_cond - l_null), [B, ...]; exact at 0 and 1."""
    given, null = both.chunk(2)
    return torch.lerp(null, given, scale)
