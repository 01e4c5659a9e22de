"""Transformer layers: norm, causal attention, feed-forward, residual; whole sequences and step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.nn.attention import Attention, KeyValueCache
from rasterformer.nn.convolution import CausalConv2d, InputRing

Activation = Literal["relu", "gelu", "swiglu"]


def make_norm(kind: Literal["layer", "rms"], width: int) -> nn.Module:
    """`layer`: LayerNorm with scale and bias, eps 1e-6 (the paper's code). `rms`: RMSNorm with scale (Zhang & Sennrich 2019)."""
    return nn.LayerNorm(width, eps=1e-6) if kind == "layer" else nn.RMSNorm(width, eps=1e-6)


class FeedForward(nn.Module):
    """Two linear maps around a nonlinearity; the first may look at neighbours, as a causal convolution.

    With kernel 1x1 it is the paper's position-wise feed-forward (equation 2). A wider kernel makes every layer see the
    cells that were generated around it, which small models need most.

    Args:
        width: D.
        hidden: inner width.
        activation: `relu` (paper), `gelu`, or `swiglu` (Shazeer 2020; doubles the first map).
        grid: rows and columns, for a kernel wider than 1x1.
        kernel: rows and columns seen by the first map.
    """

    def __init__(
        self, width: int, hidden: int, *, activation: Activation, grid: tuple[int, int], kernel: tuple[int, int]
    ) -> None:
        super().__init__()
        self.activation = activation
        gates = 2 if activation == "swiglu" else 1
        self.up = CausalConv2d(width, gates * hidden, grid, kernel, sees_itself=True)
        self.down = nn.Linear(hidden, width)

    def forward(self, h: Tensor) -> Tensor:
        """h [B, L, D] -> [B, L, D]."""
        return self.down(self._activate(self.up(h)))

    def step(self, h: Tensor, ring: InputRing, first: int) -> Tensor:
        """h [B, n, D] at positions first.. -> [B, n, D]."""
        return self.down(self._activate(self.up.step(h, ring, first)))

    def _activate(self, up: Tensor) -> Tensor:
        if self.activation == "swiglu":
            gate, value = up.chunk(2, -1)
            return F.silu(gate) * value
        return F.relu(up) if self.activation == "relu" else F.gelu(up)


@dataclass
class LayerCache:
    """What one layer keeps of the past: keys and values, and inputs of its convolution."""

    attention: KeyValueCache | None
    feed_forward: InputRing


class DecoderLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual connection and a norm.

    Post-norm is the paper's, x = LN(x + dropout(f(x))), equations 1 and 2; pre-norm is x = x + dropout(f(LN(x))).

    Args:
        width: D.
        attention: None leaves attention out of this layer.
        feed_forward: the second sublayer.
        norm: kind of norm.
        is_post_norm: where the norm stands.
        dropout_prob: on the output of each sublayer.
    """

    def __init__(
        self,
        width: int,
        *,
        attention: Attention | None,
        feed_forward: FeedForward,
        norm: Literal["layer", "rms"],
        is_post_norm: bool,
        dropout_prob: float,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = make_norm(norm, width) if attention is not None else None
        self.feed_forward = feed_forward
        self.feed_forward_norm = make_norm(norm, width)
        self.is_post_norm = is_post_norm
        self.dropout = nn.Dropout(dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, D] -> [B, L, D]."""
        if self.attention is not None and self.attention_norm is not None:
            x = self._residual(x, self.attention_norm, self.attention)
        return self._residual(x, self.feed_forward_norm, self.feed_forward)

    def new_cache(self, batch_size: int, chunk: int, like: Tensor) -> LayerCache:
        """Returns an empty cache for steps of at most `chunk` positions, with the dtype and device of `like`."""
        attention = None if self.attention is None else self.attention.new_cache(batch_size, like)
        return LayerCache(attention, self.feed_forward.up.new_ring(batch_size, chunk, like))

    def step(self, x: Tensor, cache: LayerCache, first: int) -> Tensor:
        """x [B, n, D] at positions first.., which lie in one query block -> [B, n, D]."""
        if self.attention is not None and self.attention_norm is not None and cache.attention is not None:
            attention, keys_values = self.attention, cache.attention
            x = self._residual(x, self.attention_norm, lambda h: attention.step(h, keys_values, first))
        return self._residual(x, self.feed_forward_norm, lambda h: self.feed_forward.step(h, cache.feed_forward, first))

    def _residual(self, x: Tensor, norm: Callable[[Tensor], Tensor], sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.is_post_norm:
            return norm(x + self.dropout(sublayer(x)))
        return x + self.dropout(sublayer(norm(x)))
