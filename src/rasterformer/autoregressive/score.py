"""The likelihood of given images, in parallel passes over as many of them as their outputs' memory allows."""

import torch
from torch import Tensor

from rasterformer.interfaces import Autoregressive, Cond

PARAMS_AT_A_TIME = 1 << 26  # 256 MiB of float32


@torch.inference_mode()
def symbol_nats(model: Autoregressive, x: Tensor, cond: Cond) -> Tensor:
    """Negative log-probability of every symbol given all before it; 0 for those that the condition gives.

    The model's outputs, P numbers for each position, are never held for more images than fit in 256 MiB, but for at least one.

    Args:
        x: int64 [B, L, E].
        cond: of every image of the batch.

    Returns:
        nats, float32 or better [B, L, E]; their sum over L and E is each image's exact negative log-likelihood.
    """
    length, _ = model.x_shape
    size = max(1, PARAMS_AT_A_TIME // (length * model.distribution.params_per_position))
    parts = []
    for first in range(0, max(1, len(x)), size):
        rows = slice(first, first + size)
        part = cond.rows(rows)
        nats = -model.distribution.symbol_log_prob(model(x[rows], part), x[rows])
        known = model.known(part)
        parts.append(nats if known is None else nats.masked_fill(known.where[..., None], 0))
    return torch.cat(parts)
