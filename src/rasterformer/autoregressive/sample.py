"""Drawing images from an autoregressive model, position by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rasterformer.autoregressive.noise import NoiseStream
from rasterformer.distributions.pmf import check_options
from rasterformer.errors import ShapeError
from rasterformer.interfaces import Autoregressive, Cond, OnStep, SampleOptions

PREFIX_AT_A_TIME = 512  # positions of all images together, so that going over a prefix takes little memory


@torch.inference_mode()
def draw(
    model: Autoregressive,
    cond: Cond,
    batch_size: int,
    *,
    options: SampleOptions,
    rng: Sequence[torch.Generator],
    prefix: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draws x, keeping a known prefix.

    The noise belongs to image and position: the same generator gives the same image for any batch size, and
    `draw_in_parallel` the same as this function.

    Args:
        model: `begin` and `step` are used.
        cond: of every image of the batch.
        batch_size: B.
        options: temperature and truncation.
        rng: B generators, on the CPU.
        prefix: int64 [B, p, E], p <= L, the first positions. None: p = 0.
        on_step: told (positions done, L) after each position.

    Returns:
        int64 [B, L, E].

    Raises:
        ShapeError: not one generator per image, or a prefix of another shape.
        ConfigError: options that describe no distribution, or a condition that the model does not know.
    """
    x, known = start(model, batch_size, options=options, rng=rng, prefix=prefix)
    length = x.shape[1]
    params, state = begin(model, cond, x[:, :known])
    noise = NoiseStream(rng, model.distribution.noise_per_position, length, params.device)
    for position in range(known, length):
        drawn = model.distribution.sample(params[:, -1], noise.at(position)[:, 0], options=options)[:, None]
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
    batch_size: int,
    *,
    options: SampleOptions,
    rng: Sequence[torch.Generator],
    prefix: Tensor | None,
) -> tuple[Tensor, int]:
    """Checks what `draw` is given; returns x int64 [B, L, E] with the prefix in it, on the model's device, and its length."""
    length, symbols = model.x_shape
    check_options(options)
    if len(rng) != batch_size:
        raise ShapeError(f"rng has {len(rng)} generators for batch_size = {batch_size}. Pass one per image.")
    if prefix is not None and (
        prefix.ndim != 3 or prefix.shape[0] != batch_size or prefix.shape[1] > length or prefix.shape[2] != symbols
    ):
        raise ShapeError(f"prefix is {list(prefix.shape)}; expected [{batch_size}, at most {length}, {symbols}].")
    x = torch.zeros(batch_size, length, symbols, dtype=torch.int64, device=next(model.parameters()).device)
    if prefix is None:
        return x, 0
    x[:, : prefix.shape[1]] = prefix
    return x, prefix.shape[1]
