"""Transformer layers: norm, attention, feed-forward, residual; whole sequences and, for decoders, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.nn.attention import Attention, AttentionStep
from rasterformer.nn.convolution import CausalConv2d, CausalConv2dStep, Conv2d
from rasterformer.nn.cross_attention import CrossAttention, CrossAttentionStep

Activation = Literal["relu", "gelu", "quick_gelu", "swiglu"]


NORM_EPS = 1e-6  # as in the Image Transformer's code


def make_norm(kind: Literal["layer", "rms"], width: int, *, eps: float = NORM_EPS) -> nn.Module:
    """`layer`: LayerNorm with scale and bias. `rms`: RMSNorm with scale (Zhang & Sennrich 2019)."""
    return nn.LayerNorm(width, eps=eps) if kind == "layer" else nn.RMSNorm(width, eps=eps)


def activate(up: Tensor, activation: Activation) -> Tensor:
    """What stands between the two maps of a feed-forward: [..., hidden], or [..., 2 hidden] for `swiglu` -> [..., hidden]."""
    if activation == "swiglu":
        gate, value = up.chunk(2, -1)
        return F.silu(gate) * value
    if activation == "quick_gelu":
        return up * torch.sigmoid(1.702 * up)
    return F.relu(up) if activation == "relu" else F.gelu(up)


class FeedForward(nn.Module):
    """Two linear maps around a nonlinearity; the first may look at neighbours, as a convolution.

    With kernel 1x1 it is the paper's position-wise feed-forward (equation 2). A wider kernel makes every layer see the
    cells that were generated around it, which small models need most.

    Args:
        width: D.
        hidden: inner width.
        activation: `relu` (paper), `gelu`, `quick_gelu` (Hendrycks & Gimpel 2016: x sigmoid(1.702 x)), or `swiglu` (Shazeer
            2020; doubles the first map).
        grid: rows and columns, for a kernel wider than 1x1.
        kernel: rows and columns seen by the first map.
        order: raster index of the i-th cell, int64 [L]. None: raster order.
        is_causal: whether the first map sees only what comes before.
        down_kernel: rows and columns seen by the second map, which is never causal: wider than 1x1 only where the first
            is not either.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: Activation,
        grid: tuple[int, int],
        kernel: tuple[int, int],
        order: Tensor | None = None,
        is_causal: bool = True,
        down_kernel: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        assert down_kernel == (1, 1) or not is_causal, "the second map would see what comes later"
        self.activation = activation
        gates = 2 if activation == "swiglu" else 1
        self.up: CausalConv2d | Conv2d = (
            CausalConv2d(width, gates * hidden, grid, kernel, sees_itself=True, order=order)
            if is_causal
            else Conv2d(width, gates * hidden, grid, kernel, order=order)
        )
        self.down: nn.Linear | Conv2d = (
            nn.Linear(hidden, width) if down_kernel == (1, 1) else Conv2d(hidden, width, grid, down_kernel, order=order)
        )

    def forward(self, h: Tensor) -> Tensor:
        """h [B, L, D] -> [B, L, D]."""
        return self.down(activate(self.up(h), self.activation))


class TransformerLayer(nn.Module):
    """Self-attention, attention to a source and feed-forward, each with a residual connection and a norm.

    Post-norm is the paper's, x = LN(x + dropout(f(x))), equations 1 and 2; pre-norm is x = x + dropout(f(LN(x))).

    Args:
        width: D.
        attention: None leaves self-attention out of this layer.
        source_attention: attention to what an encoder made. None leaves it out.
        feed_forward: the last sublayer.
        norm: kind of norm.
        is_post_norm: where the norm stands.
        dropout_prob: on the output of each sublayer.
        norm_eps: what norms add to the variance.
    """

    def __init__(
        self,
        width: int,
        *,
        attention: Attention | None,
        source_attention: CrossAttention | None = None,
        feed_forward: FeedForward,
        norm: Literal["layer", "rms"],
        is_post_norm: bool,
        dropout_prob: float,
        norm_eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = make_norm(norm, width, eps=norm_eps) if attention is not None else None
        self.source_attention = source_attention
        self.source_attention_norm = make_norm(norm, width, eps=norm_eps) if source_attention is not None else None
        self.feed_forward = feed_forward
        self.feed_forward_norm = make_norm(norm, width, eps=norm_eps)
        self.is_post_norm = is_post_norm
        self.dropout = nn.Dropout(dropout_prob)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """x [B, L, D], source [B, S, D] where the layer attends to one -> [B, L, D]."""
        if self.attention is not None and self.attention_norm is not None:
            x = self._residual(x, self.attention_norm, self.attention)
        if self.source_attention is not None and self.source_attention_norm is not None:
            assert source is not None, "this layer attends to a source"
            keys_and_values = self.source_attention.keys_and_values(source)
            attend = self.source_attention.attend
            x = self._residual(x, self.source_attention_norm, lambda h: attend(h, *keys_and_values))
        return self._residual(x, self.feed_forward_norm, self.feed_forward)

    def _residual(self, x: Tensor, norm: Callable[[Tensor], Tensor], sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.is_post_norm:
            return norm(x + self.dropout(sublayer(x)))
        return x + self.dropout(sublayer(norm(x)))


class LayerStep:
    """The next positions of a layer, with what it keeps of those before them: as the layer, without dropout.

    Args:
        layer: the layer; its weights are used, not copied.
        batch_size: B.
        like: gives dtype and device of the caches.
        source: [B, S, D], what the layer's attention to a source sees. None where it has none, or only sizes are asked for.
    """

    def __init__(self, layer: TransformerLayer, batch_size: int, like: Tensor, source: Tensor | None = None) -> None:
        self.is_post_norm = layer.is_post_norm
        self.attention = None if layer.attention is None else AttentionStep(layer.attention, batch_size, like)
        self.attention_norm = None if layer.attention_norm is None else _norm_step(layer.attention_norm)
        self.source_attention: CrossAttentionStep | None = None
        if source is not None and layer.source_attention is not None and layer.source_attention_norm is not None:
            self.source_attention = CrossAttentionStep(layer.source_attention, source)
            self.source_attention_norm = _norm_step(layer.source_attention_norm)
        self.feed_forward_norm = _norm_step(layer.feed_forward_norm)
        assert isinstance(layer.feed_forward.up, CausalConv2d), "an encoder's layer has no steps"
        self.activation = layer.feed_forward.activation
        self.up = CausalConv2dStep(layer.feed_forward.up, batch_size, like)
        self.down = layer.feed_forward.down.weight, layer.feed_forward.down.bias

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        of_source = 0 if self.source_attention is None else self.source_attention.nbytes
        return self.up.nbytes + (0 if self.attention is None else self.attention.cache.nbytes) + of_source

    def __call__(self, x: Tensor, first: int) -> Tensor:
        """x [B, n, D] at positions first.., which lie in one query block -> [B, n, D]."""
        if self.attention is not None and self.attention_norm is not None:
            if self.is_post_norm:
                x = self.attention_norm(x + self.attention(x, first))
            else:
                x = x + self.attention(self.attention_norm(x), first)
        if self.source_attention is not None:
            if self.is_post_norm:
                x = self.source_attention_norm(x + self.source_attention(x))
            else:
                x = x + self.source_attention(self.source_attention_norm(x))
        if self.is_post_norm:
            return self.feed_forward_norm(x + self._feed_forward(x, first))
        return x + self._feed_forward(self.feed_forward_norm(x), first)

    def _feed_forward(self, h: Tensor, first: int) -> Tensor:
        return F.linear(activate(self.up(h, first), self.activation), *self.down)


def _norm_step(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """The norm as a plain function."""
    if not isinstance(norm, nn.LayerNorm):
        return norm
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda h: torch.layer_norm(h, shape, weight, bias, eps)
