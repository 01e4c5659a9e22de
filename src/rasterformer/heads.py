"""Whether heads of attention fit into a network's width: what `systems/*/config.py` check alike. No torch here."""

from __future__ import annotations


def head_problems(
    width: int, num_heads: int, *, num_kv_heads: int, rotary: bool, width_name: str = "width"
) -> list[str]:
    """Returns what is wrong, one sentence each, every field named.

    Args:
        width: of all query heads together, at least 1.
        num_heads: query heads, at least 1.
        num_kv_heads: key and value heads.
        rotary: queries and keys are turned by row and column, each in pairs of dimensions.
        width_name: field of the recipe that `width` comes from.
    """
    found = []
    if width % num_heads:
        nearest = min((d for d in range(1, width + 1) if width % d == 0), key=lambda d: abs(d - num_heads))
        found.append(
            f"model.num_heads = {num_heads} does not divide model.{width_name} = {width}. Use {nearest}, for example, or change "
            f"model.{width_name}."
        )
    elif rotary and width // num_heads % 4:
        found.append(
            f"model.rotary = true needs heads of a multiple of 4 dimensions, each has {width // num_heads}. Change "
            "model.num_heads."
        )
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        found.append(f"model.num_kv_heads = {num_kv_heads} does not divide model.num_heads = {num_heads}.")
    return found
