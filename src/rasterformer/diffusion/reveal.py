"""Orders that reveal a planned number of masked codes per step, for processes of nothing but masks.

How many (`masked_after`), what the network is told of it (`nearest_level`), and which (`reveal`). Read `draw.py` first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rasterformer.diffusion.discrete import DiscreteProcess
from rasterformer.diffusion.options import Order


def masked_after(process: DiscreteProcess, masked: Tensor, unknown: Tensor, *, steps: int, level: int) -> Tensor:
    """Returns how many codes of each image are masked after each step, int64 [n, B].

    `steps` steps divide the levels 0..T evenly; of them, those that end below `level` are taken. After one that ends at level s,
    round(unknown * cbar_s) codes are masked, and at least one fewer than before while there are any; between two levels cbar is
    interpolated. Steps after the one that reveals the last masks are left out, so that n <= steps and n <= masked.max().

    Args:
        process: its mask fractions cbar are followed.
        masked: int64 [B], of them that are masked at `level`.
        unknown: int64 [B], codes of each image that are not known.
        steps: from level T to 0, at least 1; may be more than T, and more than there are masks.
        level: where the images are, 0..T.
    """
    plan, top = [masked], process.num_steps
    for k in range(steps * (top - level) // top + 1, steps + 1):  # the first ends below the level
        if not plan[-1].any():
            break
        end = top * (steps - k) / steps
        share = torch.lerp(process.mask[int(end)], process.mask[int(end) + 1], end - int(end)).item()
        plan.append(torch.minimum((unknown.double() * share).round().long(), plan[-1] - 1).clamp(min=0))
    return torch.stack(plan)[1:]


def nearest_level(process: DiscreteProcess, x_t: Tensor) -> Tensor:
    """x_t int64 [B, L] -> the level 1..T whose mask fraction is nearest to each image's own, int64 [B]; of equals the lowest."""
    fraction = (x_t == process.mask_index).double().mean(1, keepdim=True)
    return (process.mask[1:].to(x_t.device) - fraction).abs().argmin(1) + 1


def purity(log_x0: Tensor) -> Tensor:
    """log p(x_0 | x_t) [B, L, K] -> the probability of the most probable code [B, L]."""
    return log_x0.amax(-1).exp()


def sharpen(log_x0: Tensor, weight: float) -> Tensor:
    """log p [B, L, K] -> log softmax((1 + weight * purity) log p); as it is at weight 0.

    Source: Tang et al. 2022, Improved Vector Quantized Diffusion Models, the high-quality inference strategy.
    """
    return ((1 + weight * purity(log_x0)[..., None]) * log_x0).log_softmax(-1) if weight else log_x0


def reveal(x_t: Tensor, drawn: Tensor, rank: Tensor, is_mask: Tensor, *, count: Tensor) -> Tensor:
    """Returns x_t with the `count` masks of lowest rank replaced by the drawn codes.

    Args:
        x_t, drawn: int64 [B, L].
        rank: float [B, L]; of equals the earlier place comes first.
        is_mask: bool [B, L].
        count: int64 [B], at most as many as there are masks.
    """
    place = rank.masked_fill(~is_mask, torch.inf).argsort(dim=1, stable=True).argsort(1)
    return torch.where((place < count[:, None]) & is_mask, drawn, x_t)


def rank_of(order: Order, log_x0: Tensor, drawn: Tensor, clocks: Tensor) -> Tensor:
    """Returns float [B, L], lowest for the places that an order reveals first.

    Args:
        order: `random` and `purity` draw places without replacement, evenly or in proportion to purity, by the order in which
            exponential clocks of that rate ring. `confidence` takes the drawn codes of highest probability.
        log_x0: log p(x_0 | x_t) [B, L, K].
        drawn: int64 [B, L].
        clocks: standard exponential numbers [B, L].
    """
    if order == "random":
        return clocks
    if order == "purity":
        return clocks / purity(log_x0)
    assert order == "confidence", f"order {order!r} ranks nothing"
    return -log_x0.gather(-1, drawn[..., None])[..., 0]
