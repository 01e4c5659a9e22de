"""The fast sampler of the published code of VQ-Diffusion beside the exact stride, as plans of steps for one loop.

Skipping n levels, the published code shows the network level t, then takes the ONE-step posterior of level t - n: from there to
the level below, as if x_t were x_{t - n}. So few tokens are revealed per step, and all that are left at the end. The paper's
stride is q(x_s | x_t) over all the levels between. (microsoft/VQ-Diffusion @ d1d3948, `sample_fast`; levels here are 1..T, its
indices 0..T-1.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rasterformer.autoregressive.noise import exponential
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.diffusion.draw import predict
from rasterformer.diffusion.options import DiffusionOptions
from rasterformer.distributions.pmf import race
from rasterformer.interfaces import Cond

Plan = list[tuple[int, int, int]]  # of each step: the level shown to the network, and the posterior's from and to


def shown_levels(num_steps: int, skip: int) -> list[int]:
    """Levels at which the published code calls the network: every (skip + 1)-th from T down, and 1 at the end."""
    levels = list(range(num_steps, 0, -1 - skip))
    return levels if levels[-1] == 1 else [*levels, 1]


def released_plan(num_steps: int, skip: int) -> Plan:
    """What the published code does; without skipping it is the whole chain."""
    return [
        (level, level - skip, level - skip - 1) if level - 1 > skip else (level, level, level - 1)
        for level in shown_levels(num_steps, skip)
    ]


def exact_plan(num_steps: int, skip: int) -> Plan:
    """The exact stride between the same levels."""
    levels = [*shown_levels(num_steps, skip), 0]
    return [(t, t, s) for t, s in zip(levels[:-1], levels[1:], strict=True)]


def masked_fractions(mask: Tensor, plan: Plan) -> list[float]:
    """The expected share of masked tokens after each step: a masked token stays so with probability cbar_s / cbar_t.

    Args:
        mask: cbar, float64 [T + 1].
        plan: the steps.
    """
    share, found = float(mask[-1]), []
    for _, t, s in plan:
        share *= float(mask[s] / mask[t])
        found.append(share)
    return found


@torch.inference_mode()
def draw_by_plan(
    model: CodeDenoiser, cond: Cond, plan: Plan, rng: Sequence[torch.Generator]
) -> tuple[Tensor, list[float]]:
    """Draws codes int64 [B, L, 1] from the prior down a plan, and tells the share that was masked after each step."""
    process, length, device = model.process, model.x_shape[0], next(model.parameters()).device
    options, masked = DiffusionOptions(), []

    def clocks() -> Tensor:
        return exponential(rng, (length, process.num_codes + 1), device)

    x = race(process.log_prior().exp().to(device), clocks())
    for shown, t, s in plan:
        t_shown, t_from, s_to = (torch.full((len(rng),), level, device=device) for level in (shown, t, s))
        log_x0 = predict(model, x, t_shown, cond, options)
        x = race(process.posterior(log_x0, x, t_from, s_to).exp(), clocks())
        masked.append(float((x == process.mask_index).double().mean()))
    return x[..., None], masked
