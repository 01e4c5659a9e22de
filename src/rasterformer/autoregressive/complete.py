"""Completing images of which a part is known.

An autoregressive model draws what comes later in its generation order from what came earlier. What is known must
therefore be a prefix of that order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rasterformer.codecs.pixels import PixelCodec
from rasterformer.errors import ConfigError, ShapeError


def parse_known(text: str, height: int, width: int) -> Tensor:
    """Reads `top:0.5` (a share of the rows), `rows:12` (a number of rows) or `none`.

    Returns:
        bool [H, W], True where the image is known.

    Raises:
        ConfigError: another text, or a number out of range.
    """
    kind, _, number = text.partition(":")
    known = torch.zeros(height, width, dtype=torch.bool)
    try:
        if kind == "top":
            rows = round(float(number) * height)
        elif kind == "rows":
            rows = int(number)
        elif text == "none":
            rows = 0
        else:
            raise ValueError(kind)
    except ValueError:
        raise ConfigError(
            f"known = {text!r} is not understood. Use top:0.5 (the upper half), rows:12 (the first 12 rows), none, or a mask."
        ) from None
    if not 0 <= rows <= height:
        raise ConfigError(f"known = {text!r} means {rows} rows, but the model's images have {height}.")
    known[:rows] = True
    return known


def known_prefix(codec: PixelCodec, known: Tensor) -> int:
    """Number of positions that are known, if they are the first ones of the generation order.

    Args:
        codec: gives the order.
        known: bool [H, W].

    Raises:
        ShapeError: known has another shape or dtype.
        ConfigError: the known pixels are not a prefix of the order; the message says where it breaks and what can be done.
    """
    _, height, width = codec.image_shape
    if known.shape != (height, width) or known.dtype != torch.bool:
        raise ShapeError(f"known is {known.dtype} {list(known.shape)}; it must be torch.bool [{height}, {width}].")
    in_order = codec.positions_of(known[None])[0]
    count = int(in_order.sum())
    if not bool(in_order[:count].all()):
        hole = int(codec.order[int((~in_order).nonzero()[0])])
        row, column = divmod(hole, codec.grid[1])
        column = column * codec.symbols_per_position // 3
        late = int(codec.order[int(in_order.nonzero()[-1])])
        late_row, late_column = divmod(late, codec.grid[1])
        late_column = late_column * codec.symbols_per_position // 3
        raise ConfigError(
            f"known marks {count} of {len(in_order)} positions, but they are no prefix of the generation order: "
            f"row {row}, column {column} is unknown and comes before row {late_row}, column {late_column}, which is known. "
            "This model can only go on from what it would have generated first: give whole rows from the top (top:0.5), "
            "or mirror the image so that the known part comes first. Filling in any mask needs a model trained for it."
        )
    return count
