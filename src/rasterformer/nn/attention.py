"""Multi-head self-attention over an `AttentionPattern`, for whole sequences and step by step from a bounded cache.

`Attention` sees a whole sequence; `AttentionStep`, made from it where the pattern is causal, sees the next positions of one
query block and a cache of the keys and values before them. Both give the same numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.nn.block_kernel import attend_in_blocks
from rasterformer.nn.cache import KeyValueCache
from rasterformer.nn.pattern import AttentionPattern
from rasterformer.nn.positions import rotate


class Attention(nn.Module):
    """softmax(q k^T / sqrt(head_dim)) v over own block and memory (paper, section 3.2, equation 1).

    Attention's width is independent of the model's.

    Args:
        width: D.
        num_heads: N, query heads.
        num_kv_heads: key and value heads; divides num_heads.
        head_dim: width of one head.
        pattern: who sees whom.
        qk_norm: normalise each query and key head, with a learned scale (Dehghani et al. 2023, ViT-22B).
        angles: rotary angles [L, head_dim / 2]. None: no rotary encoding.
        bias: of the projections.
    """

    memory: Tensor
    visible: Tensor
    angles: Tensor | None

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        pattern: AttentionPattern,
        qk_norm: bool = False,
        angles: Tensor | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.pattern = pattern
        # queries, keys and values of all heads, one under the other: one product is faster than three
        self.project = nn.Linear(width, (num_heads + 2 * num_kv_heads) * head_dim, bias=bias)
        self.out = nn.Linear(num_heads * head_dim, width, bias=bias)
        self.has_qk_norm = qk_norm
        self.query_norm = nn.LayerNorm(head_dim, bias=False) if qk_norm else nn.Identity()
        self.key_norm = nn.LayerNorm(head_dim, bias=False) if qk_norm else nn.Identity()
        self.register_buffer("memory", pattern.memory.clamp(min=0), persistent=False)
        self.register_buffer("visible", pattern.visible(), persistent=False)
        self.register_buffer("angles", angles, persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        """h [B, L, D] -> [B, L, D]."""
        q, k, v = self._project(h)  # each [B, L, heads, head_dim]
        if self.pattern.num_blocks == 1:
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            mixed = F.scaled_dot_product_attention(
                q, k, v, is_causal=self.pattern.is_causal, enable_gqa=self._is_grouped
            )
            return self.out(mixed.transpose(1, 2).flatten(2))
        return self.out(self._attend_in_blocks(q, k, v))

    @property
    def _is_grouped(self) -> bool:
        return self.num_kv_heads != self.num_heads

    def _project(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h [B, L, D] -> q, k, v, each [B, L, heads, head_dim]."""
        heads = self.project(h).unflatten(-1, (-1, self.head_dim))
        q, k, v = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], 2)
        q, k = self.query_norm(q), self.key_norm(k)
        if self.angles is not None:
            q, k = rotate(q, self.angles), rotate(k, self.angles)
        return q.to(v.dtype), k.to(v.dtype), v

    def _attend_in_blocks(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [B, L, heads, head_dim] -> [B, L, heads * head_dim]."""
        batch, length = q.shape[:2]
        pattern, blocks = self.pattern, self.pattern.num_blocks
        padding = blocks * pattern.block_size - length
        if padding:  # at the end, never seen by a real query
            q, k, v = (F.pad(t, (0, 0, 0, 0, 0, padding)) for t in (q, k, v))
        if self._is_grouped:
            k, v = (t.repeat_interleave(self.num_heads // self.num_kv_heads, 2) for t in (k, v))
        in_pieces = q.device.type == "cpu" and pattern.previous_blocks is not None
        if not in_pieces:
            k, v = self._windows(k), self._windows(v)
        q = q * self.head_dim**-0.5
        q, k, v = (
            t.reshape(batch, blocks, t.shape[1] // blocks, self.num_heads, self.head_dim)
            .permute(1, 0, 3, 2, 4)
            .flatten(1, 2)
            for t in (q, k, v)
        )  # each [blocks, B * heads, block or window, head_dim]
        if q.device.type == "cpu":
            previous = pattern.previous_blocks if in_pieces and pattern.previous_blocks is not None else 0
            mixed = attend_in_blocks(q, k, v, self.visible, previous_blocks=previous)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.visible[:, None], scale=1.0)
        mixed = mixed.unflatten(1, (batch, self.num_heads)).permute(
            1, 0, 3, 2, 4
        )  # [B, blocks, block, heads, head_dim]
        return mixed.flatten(3).flatten(1, 2)[:, :length]

    def _windows(self, t: Tensor) -> Tensor:
        """[B, blocks * block, heads, head_dim] -> memory and own block, [B, blocks * (M + block), heads, head_dim]."""
        own = t.unflatten(1, (self.pattern.num_blocks, self.pattern.block_size))
        memory = t.index_select(1, self.memory.flatten()).unflatten(1, tuple(self.memory.shape))
        return torch.cat([memory, own], 2).flatten(1, 2)


class AttentionStep:
    """Attention of the next positions, with the keys and values of those before them.

    Holds the layer's weights as plain attributes: a step for one image is so little work that looking things up in modules
    would be a good part of it.

    Args:
        attention: the layer.
        batch_size: B.
        like: gives dtype and device of the cache.
    """

    def __init__(self, attention: Attention, batch_size: int, like: Tensor) -> None:
        self.num_heads, self.num_kv_heads = attention.num_heads, attention.num_kv_heads
        self.head_dim, self.angles = attention.head_dim, attention.angles
        self.group = self.num_heads // self.num_kv_heads
        self.project = attention.project.weight, attention.project.bias
        self.out = attention.out.weight, attention.out.bias
        self.norms = (attention.query_norm, attention.key_norm) if attention.has_qk_norm else None
        self.cache = KeyValueCache(
            attention.pattern, batch_size, num_heads=self.num_kv_heads, head_dim=self.head_dim, like=like
        )

    def __call__(self, h: Tensor, first: int) -> Tensor:
        """Attends from positions first..first+n-1, which lie in one query block, after storing them in the cache.

        Query heads that share a key head are its queries, side by side, so that the cache is read once for all of them.

        Args:
            h: [B, n, D].
            first: position of h[:, 0]; everything before it has been given.

        Returns:
            [B, n, D], equal to `Attention` at those positions.
        """
        batch_size, count, _ = h.shape
        heads = F.linear(h, *self.project).view(batch_size, count, -1, self.head_dim).transpose(1, 2)
        if self.norms is not None or self.angles is not None:
            self._norm_and_rotate_(heads, first)
        q, keys_and_values = heads.split_with_sizes(
            [self.num_heads, 2 * self.num_kv_heads], 1
        )  # [B, heads, n, head_dim]
        keys, values = self.cache.store_(first, keys_and_values).split_with_sizes([self.num_kv_heads] * 2, 1)
        mask = None
        if count > 1:  # [group * n, m]; the last query sees everything, each one before it one less
            total = keys.shape[2]
            mask = torch.ones(count, total, dtype=torch.bool, device=h.device).tril(total - count)
            mask = mask.repeat(self.group, 1)
        if self.group > 1:
            q = q.unflatten(1, (self.num_kv_heads, self.group)).flatten(2, 3)  # [B, kv_heads, group * n, head_dim]
        mixed = F.scaled_dot_product_attention(q, keys, values, mask)
        if self.group > 1:
            mixed = mixed.unflatten(2, (self.group, count)).flatten(1, 2)
        return F.linear(mixed.transpose(1, 2).flatten(2), *self.out)

    def _norm_and_rotate_(self, heads: Tensor, first: int) -> None:
        """Queries and keys of heads [B, heads, n, head_dim], in place."""
        ends = (0, self.num_heads, self.num_heads + self.num_kv_heads)
        for number in range(2):
            part = heads[:, ends[number] : ends[number + 1]]
            new = part if self.norms is None else self.norms[number](part)
            if self.angles is not None:
                angles = self.angles[first : first + heads.shape[2]]
                new = rotate(new.transpose(1, 2), angles).transpose(1, 2)
            part.copy_(new)
