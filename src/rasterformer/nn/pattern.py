"""Which positions a query may see: full, 1D local and 2D local attention (paper, section 3.3 and Figure 2).

Positions are counted in generation order. They are cut into query blocks of equal length; all queries of a block share
one memory, a set of positions outside the block. A decoder's patterns are causal: memory lies before its block, which caches
rely on, and a query sees of its block what came before it. An encoder's patterns look to all sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rasterformer.errors import ConfigError


@dataclass(frozen=True)
class AttentionPattern:
    """Query blocks and their memories.

    Args:
        seq_len: L.
        block_size: positions per query block; the last block may reach beyond L (such positions are never seen).
        memory: int64 [num_blocks, M], positions that each block sees outside itself, -1 where there is none.
        previous_blocks: n, where every memory is exactly the n blocks before its block; None for any other shape.
        is_causal: whether a query sees only what comes before it, and itself.
    """

    seq_len: int
    block_size: int
    memory: Tensor
    previous_blocks: int | None
    is_causal: bool = True

    @property
    def num_blocks(self) -> int:
        return self.memory.shape[0]

    @cached_property
    def memory_size(self) -> int:
        """M: the most positions that any block sees outside itself."""
        return int((self.memory >= 0).sum(-1).max())

    @cached_property
    def memory_is_recent(self) -> bool:
        """Whether every block's memory is the M positions before the block, or all there are."""
        size = self.memory_size
        for block, row in enumerate(self.memory):
            first, known = block * self.block_size, row[row >= 0]
            if not torch.equal(known.sort().values, torch.arange(max(0, first - size), first)):
                return False
        return True

    @cached_property
    def history_size(self) -> int:
        """Positions before a block that must be kept for it and the blocks after it: back to the oldest memory."""
        first = torch.arange(self.num_blocks) * self.block_size
        oldest = torch.where(self.memory >= 0, self.memory, self.seq_len).amin(-1) if self.memory.shape[1] else first
        return int((first - torch.minimum(oldest, first)).max())

    def visible(self) -> Tensor:
        """Returns bool [num_blocks, block_size, M + block_size]: which of memory and own block each query sees."""
        own = torch.ones(self.block_size, self.block_size, dtype=torch.bool)
        own = own.tril() if self.is_causal else own
        known = (self.memory >= 0)[:, None, :].expand(-1, self.block_size, -1)
        return torch.cat([known, own.expand(self.num_blocks, -1, -1)], -1)


def full_pattern(seq_len: int, *, is_causal: bool = True) -> AttentionPattern:
    """One block, no memory: every earlier position and the query itself, or every position."""
    return AttentionPattern(seq_len, seq_len, torch.empty(1, 0, dtype=torch.int64), 0, is_causal)


def local_1d_pattern(seq_len: int, block_size: int, memory_size: int) -> AttentionPattern:
    """1D local attention: blocks of l_q positions, each seeing the l_m positions before it.

    Args:
        block_size: l_q, at least 1.
        memory_size: l_m, at least 0. (The paper counts the query block into its memory: its "l_q = 256, memory 512"
            is block_size 256, memory_size 256.)

    Raises:
        ConfigError: a size out of range.
    """
    if block_size < 1 or memory_size < 0:
        raise ConfigError(
            f"block_length = {block_size} must be at least 1 and memory_length = {memory_size} must not be negative."
        )
    if block_size >= seq_len:
        return full_pattern(seq_len)
    first = torch.arange(0, seq_len, block_size)
    memory = (first[:, None] + torch.arange(-memory_size, 0)).clamp(min=-1)
    previous = memory_size // block_size if memory_size % block_size == 0 else None
    return AttentionPattern(seq_len, block_size, memory, previous)


def local_2d_pattern(
    order: Tensor, grid: tuple[int, int], block: tuple[int, int], flange: tuple[int, int]
) -> AttentionPattern:
    """2D local attention: rectangular query blocks with a band of memory above, to the left and to the upper right.

    A block sees the `flange[0]` rows above it, from `flange[1]` columns left of it to `flange[1]` columns right of it, and
    the `flange[1]` columns left of it in its own rows.

    Args:
        order: int64 [L], raster index of the i-th generated cell: blocks in raster order, raster order inside a block.
        grid: rows and columns, cells.
        block: rows and columns of a query block, cells; must divide the grid.
        flange: rows above and columns to either side, cells, not negative.

    Raises:
        ConfigError: the blocks do not tile the grid, or a flange is negative.
    """
    (rows, cols), (block_rows, block_cols), (above, aside) = grid, block, flange
    _check_tiling(grid, block, flange)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    memories = []
    for top in range(0, rows, block_rows):
        for left in range(0, cols, block_cols):
            row = torch.arange(top - above, top + block_rows)[:, None]
            col = torch.arange(left - aside, left + block_cols + aside)[None, :]
            inside = (row >= 0) & (col >= 0) & (col < cols) & ((row < top) | (col < left))
            cell = row.clamp(min=0) * cols + col.clamp(0, cols - 1)
            memory = torch.where(inside, rank[cell], -1)
            memories.append(memory[(row < top) | (col < left)])
    return AttentionPattern(len(order), block_rows * block_cols, torch.stack(memories), None)


def surrounding_2d_pattern(
    order: Tensor, grid: tuple[int, int], block: tuple[int, int], flange: tuple[int, int]
) -> AttentionPattern:
    """2D local attention of an encoder: a block sees itself and the frame of `flange` cells around it.

    Args:
        order, grid, block, flange: as in `local_2d_pattern`.

    Raises:
        ConfigError: the blocks do not tile the grid, or a flange is negative.
    """
    (rows, cols), (block_rows, block_cols), (above, aside) = grid, block, flange
    _check_tiling(grid, block, flange)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    memories = []
    for top in range(0, rows, block_rows):
        for left in range(0, cols, block_cols):
            row = torch.arange(top - above, top + block_rows + above)[:, None]
            col = torch.arange(left - aside, left + block_cols + aside)[None, :]
            inside = (row >= 0) & (row < rows) & (col >= 0) & (col < cols)
            cell = row.clamp(0, rows - 1) * cols + col.clamp(0, cols - 1)
            is_own = (row >= top) & (row < top + block_rows) & (col >= left) & (col < left + block_cols)
            memories.append(torch.where(inside, rank[cell], -1)[~is_own])
    return AttentionPattern(len(order), block_rows * block_cols, torch.stack(memories), None, is_causal=False)


def _check_tiling(grid: tuple[int, int], block: tuple[int, int], flange: tuple[int, int]) -> None:
    (rows, cols), (block_rows, block_cols), (above, aside) = grid, block, flange
    if block_rows < 1 or block_cols < 1 or rows % block_rows or cols % block_cols:
        raise ConfigError(
            f"query_block = {block_rows}x{block_cols} cells does not tile the grid of {rows}x{cols} cells."
        )
    if above < 0 or aside < 0:
        raise ConfigError(f"flange = {above}x{aside} cells must not be negative.")
