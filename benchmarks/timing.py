"""Side by side in one process: each contestant in turn, A B A B, so that a noisy machine is noisy for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def in_turn(contestants: Mapping[str, Callable[[], object]], rounds: int, *, seconds: float) -> dict[str, list[float]]:
    """Returns the seconds of one call of each contestant, round by round.

    Args:
        contestants: what is timed; each is called once before, unmeasured.
        rounds: measurements of each.
        seconds: a measurement repeats a quick call until it lasts about so long.
    """
    repeats = {}
    for name, call in contestants.items():
        call()
        repeats[name] = max(1, round(seconds / _seconds(call, 1)))
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            found[name].append(_seconds(call, repeats[name]))
    return found


def spread(values: list[float]) -> dict[str, Any]:
    """Median, lowest, highest and all of them."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values), "all": values}


def ratio(slower: list[float], faster: list[float]) -> dict[str, Any]:
    """How many times as fast the second is, round by round."""
    return spread([a / b for a, b in zip(slower, faster, strict=True)])


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
