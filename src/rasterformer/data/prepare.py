"""Decodes many items, in order, on a few threads. Pillow decodes outside Python's lock, so the threads do help."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

OnProgress = Callable[[int, int], None]  # (images done, images in all)
_AT_ONCE = 256  # bounds the memory of results that wait for an earlier one


def map_in_order(function: Callable[[T], R], items: Sequence[T], *, on_progress: OnProgress | None) -> Iterator[R]:
    """Yields function(item) for every item, in the order of the items."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(items), _AT_ONCE):
            for k, result in enumerate(pool.map(function, items[start : start + _AT_ONCE]), start=start + 1):
                yield result
                if on_progress is not None and (k % _AT_ONCE == 0 or k == len(items)):
                    on_progress(k, len(items))
