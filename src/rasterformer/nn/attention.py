"""Causal multi-head attention over an `AttentionPattern`, for whole sequences and step by step from a bounded cache.

`Attention.forward` sees a whole sequence; `Attention.step` sees the next positions of one query block and a cache of the
`pattern.cache_size` newest keys and values. Both give the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.nn.block_kernel import attend_in_blocks
from rasterformer.nn.pattern import AttentionPattern
from rasterformer.nn.positions import rotate


@dataclass
class KeyValueCache:
    """Ring of the newest keys and values: position p lies in slot p mod C.

    Args:
        keys, values: [B, kv_heads, C, head_dim], written in place.
        slots: int64 [C], 0..C-1.
    """

    keys: Tensor
    values: Tensor
    slots: Tensor

    def write_(self, first: int, keys: Tensor, values: Tensor) -> None:
        """Stores positions first.. of keys and values [B, kv_heads, n, head_dim]."""
        size = len(self.slots)
        start, count = first % size, keys.shape[2]
        head = min(count, size - start)
        for ring, new in ((self.keys, keys), (self.values, values)):
            ring[:, :, start : start + head] = new[:, :, :head]
            if head < count:
                ring[:, :, : count - head] = new[:, :, head:]


class Attention(nn.Module):
    """softmax(q k^T / sqrt(head_dim)) v over own block so far and memory (paper, section 3.2, equation 1).

    Projections have no bias. Attention's width is independent of the model's.

    Args:
        width: D.
        num_heads: N, query heads.
        num_kv_heads: key and value heads; divides num_heads.
        head_dim: width of one head.
        pattern: who sees whom.
        qk_norm: normalise each query and key head, with a learned scale (Dehghani et al. 2023, ViT-22B).
        angles: rotary angles [L, head_dim / 2]. None: no rotary encoding.
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
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.pattern = pattern
        # queries, keys and values of all heads, one under the other: one product is faster than three
        self.project = nn.Linear(width, (num_heads + 2 * num_kv_heads) * head_dim, bias=False)
        self.out = nn.Linear(num_heads * head_dim, width, bias=False)
        self.query_norm = nn.LayerNorm(head_dim, bias=False) if qk_norm else nn.Identity()
        self.key_norm = nn.LayerNorm(head_dim, bias=False) if qk_norm else nn.Identity()
        self.register_buffer("memory", pattern.memory.clamp(min=0), persistent=False)
        self.register_buffer("visible", pattern.visible(), persistent=False)
        self.register_buffer("angles", angles, persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        """h [B, L, D] -> [B, L, D]."""
        q, k, v = self._project(h, 0)  # each [B, L, heads, head_dim]
        if self.pattern.num_blocks == 1:
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self._is_grouped)
            return self.out(mixed.transpose(1, 2).flatten(2))
        return self.out(self._attend_in_blocks(q, k, v))

    def new_cache(self, batch_size: int, like: Tensor) -> KeyValueCache:
        """Returns an empty cache with the dtype and device of `like`."""
        shape = (batch_size, self.num_kv_heads, self.pattern.cache_size, self.head_dim)
        return KeyValueCache(like.new_zeros(shape), like.new_zeros(shape), torch.arange(shape[2], device=like.device))

    def step(self, h: Tensor, cache: KeyValueCache, first: int) -> Tensor:
        """Attends from positions first..first+n-1, which lie in one query block, after storing them in the cache.

        Args:
            h: [B, n, D].
            cache: holds everything before `first`; updated in place.
            first: position of h[:, 0].

        Returns:
            [B, n, D], equal to `forward` at those positions.
        """
        q, k, v = (t.transpose(1, 2) for t in self._project(h, first))  # [B, heads, n, head_dim]
        cache.write_(first, k, v)
        seen = self._seen_slots(first, h.shape[1], cache)
        mixed = F.scaled_dot_product_attention(q, cache.keys, cache.values, attn_mask=seen, enable_gqa=self._is_grouped)
        return self.out(mixed.transpose(1, 2).flatten(2))

    @property
    def _is_grouped(self) -> bool:
        return self.num_kv_heads != self.num_heads

    def _project(self, h: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """h [B, n, D] at positions first.. -> q, k, v, each [B, n, heads, head_dim]."""
        heads = self.project(h).unflatten(-1, (-1, self.head_dim))
        q, k, v = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], 2)
        q, k = self.query_norm(q), self.key_norm(k)
        if self.angles is not None:
            angles = self.angles[first : first + h.shape[1]]
            q, k = rotate(q, angles), rotate(k, angles)
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
            t.reshape(batch, blocks, -1, self.num_heads, self.head_dim).permute(1, 0, 3, 2, 4).flatten(1, 2)
            for t in (q, k, v)
        )  # each [blocks, B * heads, block or window, head_dim]
        if q.device.type == "cpu":
            previous = pattern.previous_blocks if in_pieces and pattern.previous_blocks is not None else 0
            mixed = attend_in_blocks(q, k, v, self.visible, previous_blocks=previous)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.visible[:, None], scale=1.0)
        mixed = mixed.unflatten(1, (batch, self.num_heads)).permute(1, 0, 3, 2, 4)  # [B, blocks, block, heads, head_dim]
        return mixed.flatten(3).flatten(1, 2)[:, :length]

    def _windows(self, t: Tensor) -> Tensor:
        """[B, blocks * block, heads, head_dim] -> memory and own block, [B, blocks * (M + block), heads, head_dim]."""
        own = t.unflatten(1, (self.pattern.num_blocks, self.pattern.block_size))
        memory = t.index_select(1, self.memory.flatten()).unflatten(1, tuple(self.memory.shape))
        return torch.cat([memory, own], 2).flatten(1, 2)

    def _seen_slots(self, first: int, count: int, cache: KeyValueCache) -> Tensor:
        """Returns bool [count, C]: which slots each of the positions sees."""
        size = self.pattern.block_size
        block, offset = divmod(first, size)
        assert offset + count <= size, "a step must stay inside one query block"
        capacity = len(cache.slots)
        seen = torch.zeros(count, capacity, dtype=torch.bool, device=cache.slots.device)
        memory = self.pattern.memory[block]
        seen[:, (memory[memory >= 0] % capacity).to(seen.device)] = True
        own = (torch.arange(block * size, first + count) % capacity).to(seen.device)
        causal = torch.ones(count, offset + count, dtype=torch.bool, device=seen.device).tril(offset)
        seen[:, own] = causal
        return seen
