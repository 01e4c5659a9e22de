"""Attention block by block, so that the scores of a few heads at a time stay in the processor's cache.

The library's fused attention is slow on processors where the keys of a query block are few and masked; dense products on
cache-sized pieces are two to three times faster there (benchmarks/training_step.py). Probabilities are made again for
the gradient instead of being kept, so memory does not grow with the number of keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

SCORES_AT_A_TIME = 1 << 20


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """softmax(q k^T) v within each query block; scale q beforehand.

    Args:
        q: [blocks, M, block, head_dim], M being images times heads.
        k, v: [blocks, M, window, head_dim], the keys and values that a block can see.
        visible: bool [blocks, block, window]; every query sees at least one key.

    Returns:
        [blocks, M, block, head_dim].
    """
    out: Tensor = _BlockAttention.apply(q, k, v, visible)  # type: ignore[no-untyped-call]
    return out


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v, visible)
        out = torch.empty_like(q)
        for part, bias in _parts(q, k, visible):
            out[part] = torch.bmm(_probabilities(q[part], k[part], bias), v[part])
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, visible = ctx.saved_tensors
        grad = gradients[0].contiguous()
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for part, bias in _parts(q, k, visible):
            probabilities = _probabilities(q[part], k[part], bias)
            grad_v[part] = torch.bmm(probabilities.transpose(1, 2), grad[part])
            grad_probabilities = torch.bmm(grad[part], v[part].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_probabilities, probabilities, -1, q.dtype)
            grad_q[part] = torch.bmm(grad_scores, k[part])
            grad_k[part] = torch.bmm(grad_scores.transpose(1, 2), q[part])
        return grad_q, grad_k, grad_v, None


def _parts(q: Tensor, k: Tensor, visible: Tensor) -> Iterator[tuple[tuple[int, slice], Tensor]]:
    """One query block and a few of its images and heads at a time, with the block's mask as a bias."""
    group = max(1, SCORES_AT_A_TIME // (q.shape[2] * k.shape[2]))
    for block in range(q.shape[0]):
        bias = torch.zeros(visible.shape[1:], dtype=q.dtype, device=q.device).masked_fill_(~visible[block], -torch.inf)
        for first in range(0, q.shape[1], group):
            yield (block, slice(first, first + group)), bias


def _probabilities(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    return torch.baddbmm(bias, q, k.transpose(1, 2)).softmax(-1)
