"""Classifier-free guidance (Ho & Salimans 2022), what all models share of it: both passes as one batch, and their combination."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from rasterformer.errors import ConfigError
from rasterformer.interfaces import Cond

TEXT_PARTS = ("text", "text_tokens", "text_known")


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


def followed_by(cond: Cond, other: Cond) -> Cond:
    """Returns the condition of B images, and after them that of as many others, which has the same parts.

    The shorter texts are padded; what is padding is known.

    Raises:
        ConfigError: one has a part that the other has not.
    """
    parts = {}
    for part in fields(cond):
        given, after = getattr(cond, part.name), getattr(other, part.name)
        if part.name == "dropped" and (given is None) != (after is None):  # None: of no image
            present = after if given is None else given
            given, after = (torch.zeros_like(present) if one is None else one for one in (given, after))
        if (given is None) != (after is None):
            raise ConfigError(f"{part.name} is given for one of two conditions only. Give it for both, or for none.")
        if part.name in TEXT_PARTS and given is not None:
            given, after = _of_one_length(given, after)
        parts[part.name] = None if given is None else torch.cat([given, after])
    return Cond(**parts)


def _of_one_length(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Texts [B, S, ...], the shorter ones padded with zeros."""
    longest = max(one.shape[1], other.shape[1])
    padded = (
        torch.cat([part, part.new_zeros(len(part), longest - part.shape[1], *part.shape[2:])], 1)
        for part in (one, other)
    )
    first, second = padded
    return first, second


def combine(both: Tensor, scale: float) -> Tensor:
    """Logits [2 B, ...] of the rows of `with_and_without` -> l_null + scale (l_cond - l_null), [B, ...]; exact at 0 and 1."""
    given, null = both.chunk(2)
    return torch.lerp(null, given, scale)
