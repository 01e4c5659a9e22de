"""Attention of all cells of feature maps, of any size, to each other and to the tokens of a text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.errors import ConfigError
from rasterformer.nn.denoiser_inputs import Tokens
from rasterformer.nn.feature_maps import group_norm
from rasterformer.nn.full_attention import attend


class MapAttention(nn.Module):
    """h + attention of every cell to all cells and to the text, whose keys and values stand beside theirs.

    That is how Saharia et al. 2022 give the text to their models with self-attention (appendix D.3.1). Begins as the identity.

    Args:
        channels: C.
        num_heads: N; divides channels.
        text_dim: D of the tokens. None: there are none.
        self_attention: whether cells see each other. False: only the text (their 256 -> 1024 model).
        norm_groups: groups of GroupNorm.

    Raises:
        ConfigError: num_heads does not divide channels; norm_groups neither; neither self_attention nor text_dim.
    """

    def __init__(
        self, channels: int, *, num_heads: int, text_dim: int | None, self_attention: bool = True, norm_groups: int
    ) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ConfigError(f"num_heads = {num_heads} does not divide {channels} channels. Use one that does.")
        if not self_attention and text_dim is None:
            raise ConfigError(
                "self_attention = False and text_dim = None leave nothing to attend to. Give one of them."
            )
        self.num_heads = num_heads
        self.norm = group_norm(channels, norm_groups)
        self.query = nn.Linear(channels, channels)
        self.of_cells = nn.Linear(channels, 2 * channels) if self_attention else None  # keys, below them values
        self.of_text = nn.Linear(text_dim, 2 * channels) if text_dim is not None else None
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, tokens: Tokens | None) -> Tensor:
        """h [B, C, H, W], tokens if and only if there is a text_dim -> [B, C, H, W]."""
        cells = self.norm(h).flatten(2).mT  # [B, HW, C]
        parts, known = [], None
        if self.of_cells is not None:
            parts.append(self._heads(self.of_cells(cells)))
        if self.of_text is not None:
            assert tokens is not None, "this layer attends to a text"
            parts.append(self._heads(self.of_text(tokens.states)))
            if tokens.known is not None:
                num_cells = cells.shape[1] if self.of_cells is not None else 0
                known = F.pad(tokens.known, (num_cells, 0), value=True)
        keys, values = torch.cat(parts, 2).chunk(2, 1)  # each [B, N, HW + S, head_dim]
        change = self.out(attend(self._heads(self.query(cells)), keys, values, known))
        return h + change.mT.unflatten(2, h.shape[2:])

    def _heads(self, h: Tensor) -> Tensor:
        """[B, L, n * C] -> [B, n * N, L, head_dim]."""
        return h.unflatten(-1, (-1, self.query.out_features // self.num_heads)).transpose(1, 2)
