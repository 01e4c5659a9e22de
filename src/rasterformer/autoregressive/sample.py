"""Drawing images from an autoregressive model, position by position."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from rasterformer.distributions.pmf import check_options
from rasterformer.errors import ShapeError
from rasterformer.interfaces import Autoregressive, Cond, OnStep, SampleOptions


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

    All noise is drawn before the first step, from one generator per image, and belongs to its position: the same
    generator gives the same image for any batch size and any way of stepping.

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
    length, symbols = model.x_shape
    check_options(options)
    if len(rng) != batch_size:
        raise ShapeError(f"rng has {len(rng)} generators for batch_size = {batch_size}. Pass one per image.")
    if prefix is not None and (
        prefix.ndim != 3 or prefix.shape[0] != batch_size or prefix.shape[1] > length or prefix.shape[2] != symbols
    ):
        raise ShapeError(f"prefix is {list(prefix.shape)}; expected [{batch_size}, at most {length}, {symbols}].")
    known = 0 if prefix is None else prefix.shape[1]
    params, state = model.begin(cond, batch_size)
    noise = torch.stack([torch.rand(length, model.distribution.noise_per_position, generator=g) for g in rng])
    noise = noise.to(params.device)
    x = torch.zeros(batch_size, length, symbols, dtype=torch.int64, device=params.device)
    if prefix is not None and known:
        x[:, :known] = prefix.to(x.device)
        params, state = model.step(x[:, :known], state)
    for position in range(known, length):
        x[:, position] = model.distribution.sample(params[:, -1], noise[:, position], options=options)
        if position + 1 < length:
            params, state = model.step(x[:, position : position + 1], state)
        if on_step is not None:
            on_step(position + 1, length)
    return x
