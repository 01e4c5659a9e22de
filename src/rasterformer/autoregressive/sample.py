"""Drawing images from an autoregressive model, position by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rasterformer.autoregressive.noise import NoiseStream
from rasterformer.distributions.pmf import check_options
from rasterformer.errors import ShapeError
from rasterformer.interfaces import Autoregressive, Cond, Known, OnStep, SampleOptions

PREFIX_AT_A_TIME = 512  # positions of all images together, so that going over a prefix takes little memory


@torch.inference_mode()
def draw(
    model: Autoregressive,
    cond: Cond,
    batch_size: int,
    *,
    options: SampleOptions,
    rng: Sequence[torch.Generator],
    known: Known | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draws x, keeping what is known: by the condition, or given here besides.

    The noise belongs to image and position: the same generator gives the same image for any batch size, and
    `draw_in_parallel` the same as this function.

    Args:
        model: `begin` and `step` are used.
        cond: of every image of the batch.
        batch_size: B.
        options: temperature and truncation.
        rng: B generators, on the CPU.
        known: values that stay. Those that come first for all images are gone over in one pass.
        on_step: told (positions done, L) after each position.

    Returns:
        int64 [B, L, E].

    Raises:
        ShapeError: not one generator per image, or `known` of another shape or dtype.
        ConfigError: options that describe no distribution, or a condition that the model does not know.
    """
    x, given, first = start(model, cond, batch_size, options=options, rng=rng, known=known)
    length = x.shape[1]
    params, state = begin(model, cond, x[:, :first])
    noise = NoiseStream(rng, model.distribution.noise_per_position, length, params.device)
    for position in range(first, length):
        drawn = model.distribution.sample(params[:, -1], noise.at(position)[:, 0], options=options)[:, None]
        if given is not None:
            here = slice(position, position + 1)
            drawn = torch.where(given[:, here, None], x[:, here], drawn)
        x[:, position : position + 1] = drawn
        if position + 1 < length:
            params, state = model.step(drawn, state)
        if on_step is not None:
            on_step(position + 1, length)
    return x


def begin(model: Autoregressive, cond: Cond, prefix: Tensor) -> tuple[Tensor, Any]:
    """`begin` of the model and a step over the prefix int64 [B, p, E], in pieces whose params are forgotten."""
    params, state = model.begin(cond, len(prefix))
    for piece in prefix.split(max(1, PREFIX_AT_A_TIME // len(prefix)), 1):
        if piece.shape[1]:
            params, state = model.step(piece, state)
    return params, state


def start(
    model: Autoregressive,
    cond: Cond,
    batch_size: int,
    *,
    options: SampleOptions,
    rng: Sequence[torch.Generator],
    known: Known | None,
) -> tuple[Tensor, Tensor | None, int]:
    """Checks what `draw` is given and puts together what is known.

    Returns:
        x int64 [B, L, E] on the model's device with all known values in it; which positions are known, bool [B, L], None where
        none or only first ones are; and how many of the first positions are known for every image.
    """
    length, symbols = model.x_shape
    check_options(options)
    if len(rng) != batch_size:
        raise ShapeError(f"rng has {len(rng)} generators for batch_size = {batch_size}. Pass one per image.")
    device = next(model.parameters()).device
    x = torch.zeros(batch_size, length, symbols, dtype=torch.int64, device=device)
    where = torch.zeros(batch_size, length, dtype=torch.bool, device=device)
    for part in (known, model.known(cond)):
        if part is None:
            continue
        if part.x.shape != x.shape or part.where.shape != where.shape or part.where.dtype != torch.bool:
            raise ShapeError(
                f"known has x {list(part.x.shape)} and where {part.where.dtype} {list(part.where.shape)}; expected "
                f"{list(x.shape)} and torch.bool {list(where.shape)}."
            )
        given = part.where.to(device)
        x = torch.where(given[..., None], part.x.to(device), x)
        where = where | given
    first = int(where.all(0).long().cumprod(0).sum())
    return x, where if bool(where[:, first:].any()) else None, first
