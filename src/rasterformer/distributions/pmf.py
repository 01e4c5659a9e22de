"""Probabilities [..., K] -> one value: temperature, top-k, top-p, and a race of exponential clocks."""

import torch
from torch import Tensor

from rasterformer.errors import ConfigError
from rasterformer.interfaces import SampleOptions


def check_options(options: SampleOptions) -> None:
    """Refuses options that describe no distribution.

    Raises:
        ConfigError: temperature <= 0; top_k < 1; top_p outside (0, 1].
    """
    if not options.temperature > 0:
        raise ConfigError(
            f"temperature = {options.temperature} must be above 0. Use a small value such as 0.1 instead of 0."
        )
    if options.top_k is not None and options.top_k < 1:
        raise ConfigError(f"top_k = {options.top_k} must be at least 1, or None to keep all values.")
    if options.top_p is not None and not 0 < options.top_p <= 1:
        raise ConfigError(f"top_p = {options.top_p} must lie above 0 and not above 1, or None to keep all values.")


def truncate(pmf: Tensor, options: SampleOptions) -> Tensor:
    """Keeps the top-k values and the smallest set that reaches top-p, and normalises.

    Args:
        pmf: probabilities [..., K]; ties are kept in favour of the smaller value.

    Returns:
        probabilities [..., K].
    """
    if options.top_k is None and options.top_p is None:
        return pmf
    ranked, index = pmf.sort(stable=True, dim=-1, descending=True)
    keep = torch.ones_like(ranked, dtype=torch.bool)
    if options.top_k is not None:
        keep[..., options.top_k :] = False
    if options.top_p is not None:
        keep &= ranked.cumsum(-1) - ranked < options.top_p
    kept = torch.zeros_like(pmf).scatter(-1, index, torch.where(keep, ranked, 0))
    return kept / kept.sum(-1, keepdim=True)


def race(pmf: Tensor, clocks: Tensor) -> Tensor:
    """Returns the value whose clock, sped up by its probability, rings first: argmin of clocks / pmf.

    With independent standard exponential clocks this draws from the pmf; it is the Gumbel-max trick without logarithms
    (Maddison et al. 2014, A* sampling). The same clocks give the same value under two pmfs with a probability near one minus
    their distance, which the inverse of the cumulative distribution does not: that is what lets parallel sampling guess.

    Args:
        pmf: probabilities [..., K], float32 or better; they need not be normalised.
        clocks: [..., K], all above 0.

    Returns:
        int64 [...], always a value of non-zero probability.
    """
    return (clocks / pmf).argmin(-1)
