"""Keys and values of the past, laid out so that a query reads one contiguous stretch: no mask, no copy, no growth.

The memory of a query block lies directly before the block's own positions. Both are written once and read many times; only
when the next block begins is its memory moved into place, which is a row per step on average.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rasterformer.nn.pattern import AttentionPattern


class KeyValueCache:
    """What the current query block of one attention layer can see; keys of all heads, then values of all heads.

    Positions may be stored again as long as their block lasts: later positions of it are then forgotten.

    Args:
        pattern: who sees whom.
        batch_size: B.
        num_heads: key and value heads.
        head_dim: width of one head.
        like: gives dtype and device.

    Attributes:
        window: [B, 2 * heads, M + block, head_dim]. The memory of the current block ends at M, where the block begins.
        history: [B, 2 * heads, C, head_dim], position p in slot p mod C: what later blocks may need and the window does not
            hold. None where each memory is the end of the window before it.
    """

    def __init__(
        self, pattern: AttentionPattern, batch_size: int, *, num_heads: int, head_dim: int, like: Tensor
    ) -> None:
        self.pattern = pattern
        self.memory_size, self.block_size = pattern.memory_size, pattern.block_size
        self.block, self.num_known = 0, 0  # current block, and how much of a memory it has
        self.window = like.new_zeros(batch_size, 2 * num_heads, self.memory_size + self.block_size, head_dim)
        self.history: Tensor | None = None
        if not pattern.memory_is_recent:
            self.history = like.new_zeros(batch_size, 2 * num_heads, pattern.history_size, head_dim)

    @property
    def nbytes(self) -> int:
        """Bytes of window and history."""
        return self.window.nbytes + (0 if self.history is None else self.history.nbytes)

    def store_(self, first: int, keys_and_values: Tensor) -> Tensor:
        """Stores positions first.., all of one block, and returns what the last of them sees.

        Args:
            first: position; its block is the current one or the next.
            keys_and_values: [B, 2 * heads, n, head_dim].

        Returns:
            [B, 2 * heads, m, head_dim], a view of the window: memory and block up to the last position.
        """
        block, offset = divmod(first, self.block_size)
        if block != self.block:
            assert block == self.block + 1, f"block {block} cannot follow block {self.block}"
            self._next_block_()
        count = keys_and_values.shape[2]
        assert offset + count <= self.block_size, "a step must stay inside one query block"
        self.window.narrow(2, self.memory_size + offset, count).copy_(keys_and_values)
        return self.window.narrow(2, self.memory_size - self.num_known, self.num_known + offset + count)

    def _next_block_(self) -> None:
        memory, size, window = self.memory_size, self.block_size, self.window
        self.block += 1
        if self.history is None:
            for start in range(0, memory, size):  # pieces that do not overlap
                end = min(start + size, memory)
                window[:, :, start:end] = window[:, :, start + size : end + size]
            self.num_known = min(memory, self.num_known + size)
            return
        capacity = self.history.shape[2]
        begin = self.block * size
        newest = torch.arange(begin - min(size, capacity), begin, device=window.device)
        self.history[:, :, newest % capacity] = window[:, :, memory + size - len(newest) :]
        needed = self.pattern.memory[self.block].to(window.device)
        needed = needed[needed >= 0]
        self.num_known = len(needed)
        window[:, :, memory - self.num_known : memory] = self.history[:, :, needed % capacity]
