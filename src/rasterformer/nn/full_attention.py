"""softmax(q k^T / sqrt(head_dim)) v where every query sees all keys that are known, in the form that is fastest.

No weights are here; `cross_attention`, `map_attention` and `grid_attention` have them. Attention to what comes earlier is in
`attention`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Keys up to which plain products train faster on a processor than the library's fused attention. Time of fused over plain,
# forward and backward: bfloat16, 17 keys: 4 to 15; 81: 3 to 5; 273: 1.3 to 2; 1041: 0.6 to 0.7. Float32: 1; 1; 0.6 to 0.9; 0.4.
PLAIN_UP_TO = 512


def attend(
    q: Tensor, keys: Tensor, values: Tensor, known: Tensor | None, *, plain_up_to: int | None = PLAIN_UP_TO
) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v over what is known.

    Tensors of the meta device go the way of a processor's, so that `live_memory` counts what that takes.

    Args:
        q: [B, N, L, head_dim].
        keys, values: [B, kv_heads, M, head_dim]; kv_heads divides N, and neighbouring query heads share one.
        known: bool [B, M], some of each image. None: all.
        plain_up_to: keys up to which plain products are used where a processor needs gradients. None: any number.

    Returns:
        [B, L, N * head_dim].
    """
    mask = None if known is None else known[:, None, None]  # [B, 1, 1, M]
    is_few = plain_up_to is None or keys.shape[2] <= plain_up_to
    if q.device.type in ("cpu", "meta") and torch.is_grad_enabled() and is_few:
        grouped = q.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)  # [B, kv_heads, heads of a key * L, head_dim]
        scores = (grouped * q.shape[-1] ** -0.5) @ keys.mT  # [B, kv_heads, heads of a key * L, M]
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        mixed = (scores.softmax(-1).to(values.dtype) @ values).unflatten(2, (-1, q.shape[2])).flatten(1, 2)
    else:
        mixed = _fused(q, keys, values, mask)
    return mixed.transpose(1, 2).flatten(2)


def _fused(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    if q.is_meta:  # the library would use plain products there and nowhere else; this is what it calls on a processor
        mixed: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, keys, values, attn_mask=mask)[0]
        return mixed
    return F.scaled_dot_product_attention(q, keys, values, mask, enable_gqa=keys.shape[1] != q.shape[1])
