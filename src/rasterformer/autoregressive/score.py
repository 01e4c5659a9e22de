"""The likelihood of given images, in one parallel pass per batch."""

import torch
from torch import Tensor

from rasterformer.interfaces import Autoregressive, Cond


@torch.inference_mode()
def symbol_nats(model: Autoregressive, x: Tensor, cond: Cond) -> Tensor:
    """Negative log-probability of every symbol given all before it.

    Args:
        x: int64 [B, L, E].
        cond: of every image of the batch.

    Returns:
        nats, float32 or better [B, L, E]; their sum over L and E is each image's exact negative log-likelihood.
    """
    return -model.distribution.symbol_log_prob(model(x, cond), x)
