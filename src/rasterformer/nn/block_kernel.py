"""Attention block by block, so that the scores of a few heads at a time stay in the processor's cache.

The library's fused attention is slow on processors where the keys of a query block are few and masked; dense products on
cache-sized pieces were 1.3 to 2 times as fast there in a prototype. What that comes to in a whole training step, against
dense attention, is measured by benchmarks/training_step.py. Probabilities are made again for the gradient instead of being
kept, so memory does not grow with the number of keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

SCORES_AT_A_TIME = 1 << 20


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, *, previous_blocks: int) -> Tensor:
    """softmax(q k^T) v within each query block's window; scale q beforehand.

    The window of a block is the k and v of the `previous_blocks` blocks before it, as far as there are any, and its own.

    Args:
        q: [blocks, M, block, head_dim], M being images times heads.
        k, v: [blocks, M, w, head_dim].
        visible: bool [blocks, block, (previous_blocks + 1) w]; every query sees at least one key.
        previous_blocks: 0 where k and v hold whole windows already.

    Returns:
        [blocks, M, block, head_dim].
    """
    out: Tensor = _BlockAttention.apply(q, k, v, visible, previous_blocks)  # type: ignore[no-untyped-call]
    return out


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, visible: Tensor, previous_blocks: int) -> Tensor:
        ctx.save_for_backward(q, k, v, visible)
        ctx.previous_blocks = previous_blocks
        out = torch.empty_like(q)
        for block, part, window, bias in _parts(q, k, visible, previous_blocks):
            keys, values = _gather(k, window, part), _gather(v, window, part)
            out[block, part] = torch.bmm(_probabilities(q[block, part], keys, bias), values)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, visible = ctx.saved_tensors
        grad_out = gradients[0].contiguous()
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block, part, window, bias in _parts(q, k, visible, ctx.previous_blocks):
            queries, grad = q[block, part], grad_out[block, part]
            keys, values = _gather(k, window, part), _gather(v, window, part)
            probabilities = _probabilities(queries, keys, bias)
            grad_probabilities = torch.bmm(grad, values.transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_probabilities, probabilities, -1, q.dtype)
            grad_q[block, part] = torch.bmm(grad_scores, keys)
            _scatter_add_(grad_k, window, part, torch.bmm(grad_scores.transpose(1, 2), queries))
            _scatter_add_(grad_v, window, part, torch.bmm(probabilities.transpose(1, 2), grad))
        return grad_q, grad_k, grad_v, None, None


def _parts(q: Tensor, k: Tensor, visible: Tensor, previous_blocks: int) -> Iterator[tuple[int, slice, range, Tensor]]:
    """One query block and a few of its images and heads at a time, the blocks of its window, and its mask as a bias."""
    bias = torch.empty(0)
    for block in range(q.shape[0]):
        window = range(max(0, block - previous_blocks), block + 1)
        if previous_blocks == 0 or block <= previous_blocks:  # later blocks see what this one sees
            seen = visible[block, :, -len(window) * k.shape[2] :]
            bias = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill_(~seen, -torch.inf)
        group = max(1, SCORES_AT_A_TIME // bias.numel())
        for first in range(0, q.shape[1], group):
            yield block, slice(first, first + group), window, bias


def _gather(t: Tensor, window: range, part: slice) -> Tensor:
    """[blocks, M, w, head_dim] -> the blocks of the window, one after the other, [part, len(window) w, head_dim]."""
    return t[window[0], part] if len(window) == 1 else torch.cat([t[block, part] for block in window], 1)


def _scatter_add_(grad: Tensor, window: range, part: slice, of_window: Tensor) -> None:
    for block, piece in zip(window, of_window.split(grad.shape[2], 1), strict=True):
        grad[block, part] += piece


def _probabilities(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    return torch.baddbmm(bias, q, k.transpose(1, 2)).softmax(-1)
