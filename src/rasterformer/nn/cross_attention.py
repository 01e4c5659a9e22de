"""Attention from a decoder's positions to all of an encoder's, for whole sequences and step by step.

What the encoder made does not change while a decoder steps, so a step keeps its keys and values. Where sources are of different
lengths a mask says which of them are known.
"""

from __future__ import annotations

from torch import Tensor, nn

from rasterformer.nn.full_attention import attend


class CrossAttention(nn.Module):
    """softmax(q k^T / sqrt(head_dim)) v, queries from the decoder, keys and values from the encoder.

    The encoder-decoder attention of the Image Transformer (section 5.3) and of Vaswani et al. 2017, section 3.2.3. Both sides
    have the width D.

    Args:
        width: D.
        num_heads: N, query heads.
        num_kv_heads: key and value heads; divides num_heads.
        head_dim: width of one head.
        qk_norm: normalise each query and key head, with a learned scale.
        bias: of the projections.
    """

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        qk_norm: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.query = nn.Linear(width, num_heads * head_dim, bias=bias)
        self.project = nn.Linear(width, 2 * num_kv_heads * head_dim, bias=bias)  # keys, below them values
        self.out = nn.Linear(num_heads * head_dim, width, bias=bias)
        self.query_norm = nn.LayerNorm(head_dim, bias=False) if qk_norm else nn.Identity()
        self.key_norm = nn.LayerNorm(head_dim, bias=False) if qk_norm else nn.Identity()

    def forward(self, h: Tensor, source: Tensor, known: Tensor | None = None) -> Tensor:
        """h [B, L, D], source [B, S, D] -> [B, L, D]; known bool [B, S] hides what is False, None hides nothing."""
        return self.attend(h, *self.keys_and_values(source), known=known)

    def keys_and_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """source [B, S, D] -> keys and values, each [B, kv_heads, S, head_dim]."""
        heads = self.project(source).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        keys, values = heads.split([self.num_kv_heads] * 2, 1)
        return self.key_norm(keys).to(values.dtype), values

    def kept_bytes(self, batch_size: int, source_len: int, like: Tensor) -> int:
        """Bytes of keys and values in the dtype of `like`."""
        return batch_size * source_len * 2 * self.num_kv_heads * self.head_dim * like.element_size()

    def attend(self, h: Tensor, keys: Tensor, values: Tensor, *, known: Tensor | None = None) -> Tensor:
        """h [B, n, D] and what `keys_and_values` returned -> [B, n, D]; each image knows some of its source at least."""
        q = self.query_norm(self.query(h).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)).to(values.dtype)
        return self.out(attend(q, keys, values, known, plain_up_to=None))


class CrossAttentionStep:
    """The next positions' attention to a source whose keys and values are kept.

    Args:
        attention: the layer; its weights are used, not copied.
        source: [B, S, D], what the encoder made.
    """

    def __init__(self, attention: CrossAttention, source: Tensor) -> None:
        self.attend = attention.attend
        self.keys, self.values = (part.contiguous() for part in attention.keys_and_values(source))

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def __call__(self, h: Tensor) -> Tensor:
        """h [B, n, D] -> [B, n, D]."""
        return self.attend(h, self.keys, self.values)
