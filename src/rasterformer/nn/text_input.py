"""What a network sees of texts: states of a frozen encoder, or bytes that it embeds itself, brought to its width.

The texts come as `Cond.text` or `Cond.text_tokens`; `conditioning/text.py` makes them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.errors import ConfigError
from rasterformer.interfaces import Cond

BYTE_TOKENS = 259  # bytes, then:
START, END, PADDING = 256, 257, 258
DEPTH = 2  # layers over bytes
HEAD_DIM = 32


class TextInput(nn.Module):
    """Texts at the network's width: a linear map and a LayerNorm, for the states of encoders have lengths of their own.

    Bytes are embedded first, with learned positions, and go through two layers that are trained with the network.

    Args:
        width: of the states that the network sees.
        dim: D of the encoder's states, or of the bytes' embedding.
        length: most tokens of a text.
        is_bytes: take `Cond.text_tokens` instead of `Cond.text`.
    """

    def __init__(self, width: int, *, dim: int, length: int, is_bytes: bool) -> None:
        super().__init__()
        self.dim, self.length, self.is_bytes = dim, length, is_bytes
        self.bytes = ByteLayers(dim, length) if is_bytes else None
        self.project = nn.Linear(dim, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, cond: Cond) -> tuple[Tensor, Tensor]:
        """Returns states [B, S, width] and bool [B, S], which of them are known; those of the padding mean nothing.

        Raises:
            ConfigError: the condition has no text, one of the other kind, or one of another shape.
        """
        given = self._given(cond)
        known = cond.text_known
        if known is None:
            known = torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
        elif known.dtype != torch.bool or known.shape != given.shape[:2]:
            raise ConfigError(
                f"text_known is {known.dtype} {list(known.shape)}; the text has tokens for bool {list(given.shape[:2])}."
            )
        if self.bytes is not None:
            given = self.bytes(given, known)
        return self.norm(self.project(given.to(self.project.weight.dtype))), known

    def _given(self, cond: Cond) -> Tensor:
        given, other = (cond.text_tokens, cond.text) if self.is_bytes else (cond.text, cond.text_tokens)
        kinds = ("states of a text encoder", "bytes (text_tokens)")
        if other is not None:
            raise ConfigError(
                f"text was given as {kinds[not self.is_bytes]}, but this model was trained with {kinds[self.is_bytes]}."
            )
        if given is None:
            raise ConfigError(f"text is missing: this model was trained with {kinds[self.is_bytes]}.")
        wanted = (self.length,) if self.is_bytes else (self.length, self.dim)
        if given.ndim != 1 + len(wanted) or not 1 <= given.shape[1] <= self.length or given.shape[2:] != wanted[1:]:
            takes = "bytes" if self.is_bytes else f"states of {self.dim} dimensions"
            raise ConfigError(f"text is {list(given.shape)}; this model takes [B, S] {takes}, S = 1..{self.length}.")
        return given


class ByteLayers(nn.Module):
    """Bytes [B, S] -> [B, S, dim]: embeddings and two pre-norm layers, in which every byte sees the whole text."""

    def __init__(self, dim: int, length: int) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(BYTE_TOKENS, dim), nn.Embedding(length, dim)
        self.layers = nn.ModuleList(ByteLayer(dim) for _ in range(DEPTH))

    def forward(self, tokens: Tensor, known: Tensor) -> Tensor:
        """tokens int64 [B, S], known bool [B, S], which no padding has -> [B, S, dim]."""
        h = self.words(tokens) + self.positions.weight[: tokens.shape[1]]
        for layer in self.layers:
            h = layer(h, known)
        return h


class ByteLayer(nn.Module):
    """Attention to the known tokens, then feed-forward; each on the normalised input, and added to it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_heads = next(heads for heads in range(max(1, dim // HEAD_DIM), 0, -1) if dim % heads == 0)
        self.attention_norm, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, h: Tensor, known: Tensor) -> Tensor:
        """h [B, S, dim], known bool [B, S] -> [B, S, dim]."""
        heads = self.qkv(self.attention_norm(h)).unflatten(-1, (3, self.num_heads, -1))  # [B, S, 3, N, head_dim]
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each [B, N, S, head_dim]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=known[:, None, None])
        h = h + self.out(mixed.transpose(1, 2).flatten(2))
        return h + self.down(F.gelu(self.up(self.norm(h))))
