"""Exact sampling of several positions per pass (predictive sampling; Jacobi decoding).

With its noise fixed, a sample is a function of itself: x_i is decided by the noise of position i and by x_<i. So positions
ahead may be guessed, all of them decided in one pass under the guess, and those that come out as guessed kept, together with
the first that does not, for what it was decided by is right. What came out of the others is the next guess.

Source: Wiggers & Hoogeboom 2020 (Predictive sampling with forecasting autoregressive models), algorithm 1 with the model's
own last outputs as forecast; Song et al. 2021 (Accelerating feedforward computation via parallel nonlinear equation solving).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rasterformer.autoregressive.noise import NoiseStream
from rasterformer.autoregressive.sample import begin, start
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Autoregressive, Cond, Known, OnStep, SampleOptions


@dataclass(frozen=True)
class ParallelSample:
    """An image and what it cost.

    Args:
        x: int64 [1, L, E].
        passes: evaluations of the network.
        positions: that were drawn in them.
    """

    x: Tensor
    passes: int
    positions: int


@torch.inference_mode()
def draw_in_parallel(
    model: Autoregressive,
    cond: Cond,
    *,
    options: SampleOptions,
    rng: Sequence[torch.Generator],
    known: Known | None = None,
    window: int = 16,
    on_step: OnStep | None = None,
) -> ParallelSample:
    """Draws the image that `draw` draws, in fewer passes through the network; one image at a time.

    The numbers of a pass over many positions differ from those of single steps by rounding. A value is therefore another one
    only where two clocks ring within rounding of each other: in float32 that is rare, in bfloat16 it happens.

    Args:
        model: `begin`, `step`, `lookahead` and `rewind` are used.
        cond: of one image.
        options: temperature and truncation.
        rng: one generator, on the CPU.
        known: values that stay, of one image.
        window: most positions decided in one pass, at least 2. A pass costs more with more of them.
        on_step: told (positions done, L) after each pass.

    Raises:
        ShapeError: not one generator, or `known` of another shape or dtype.
        ConfigError: a window below 2, options that describe no distribution, or a condition that the model does not know.
    """
    if window < 2:
        raise ConfigError(f"window = {window} must be at least 2.")
    x, given, first = start(model, cond, 1, options=options, rng=rng, known=known)
    length = x.shape[1]
    params, state = begin(model, cond, x[:, :first])
    noise = NoiseStream(rng, model.distribution.noise_per_position, length, params.device)
    passes, done = 0, first  # positions before `done` are right; x[:, done:] is a guess
    fixed = x.clone()

    def decide(params: Tensor, position: int, count: int) -> Tensor:
        decided = model.distribution.sample(params, noise.at(position, count), options=options)  # [1, count, E]
        here = slice(position, position + count)
        return decided if given is None else torch.where(given[:, here, None], fixed[:, here], decided)

    if done < length:
        x[:, done] = decide(params[:, -1:], done, 1)[:, 0]
        done, passes = done + 1, 1
        if on_step is not None:
            on_step(done, length)
    while done < length:
        # the newest right position goes in with the guesses behind it; each position is decided by the one before it
        count = min(window, model.lookahead(state), length - done)
        guess = x[:, done : done + count].clone()
        params, state = model.step(x[:, done - 1 : done - 1 + count], state)
        decided = decide(params, done, count)
        same = (decided == guess)[0].all(-1)
        right = min(count, 1 + int(same.long().cumprod(0).sum()))
        x[:, done : done + count] = decided
        ahead = slice(done + count, done + count + window)
        x[:, ahead] = decided[:, -1:]
        if given is not None:
            x[:, ahead] = torch.where(given[:, ahead, None], fixed[:, ahead], x[:, ahead])
        done, passes = done + right, passes + 1
        state = model.rewind(state, done - 1)
        if on_step is not None:
            on_step(done, length)
    return ParallelSample(x, passes, length - first)
