"""How often images show what captions say: count, shapes, colours, sizes, places and floor, from what a judge sees.

Shares are over objects or over images, as `SHARES` says; intervals are 95 %: of shares of images by Wilson, of shares of
objects, several of which are in one image, by drawing images again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.scene_captions import Scene, SceneObject

NORMAL_975 = 1.959963985
BOOTSTRAPS = 1000
Counted = Callable[[Scene, Scene], tuple[int, int]]  # (wanted, seen) -> (right, of how many)
Share = dict[str, Any]


def _of_slots(key: Callable[[SceneObject], str]) -> Counted:
    def count(wanted: Scene, seen: Scene) -> tuple[int, int]:
        right = sum(key(a) == key(b) for a, b in zip(wanted.objects, seen.objects, strict=False))
        return right, len(wanted.objects)

    return count


def _of_image(right: Callable[[Scene, Scene], bool], counts: Callable[[Scene, Scene], bool] | None = None) -> Counted:
    def count(wanted: Scene, seen: Scene) -> tuple[int, int]:
        if counts is not None and not counts(wanted, seen):
            return 0, 0
        return int(right(wanted, seen)), 1

    return count


def kinds(scene: Scene) -> list[tuple[str, str]]:
    """Shape and colour of its objects, left to right."""
    return [(one.shape, one.colour) for one in scene.objects]


def _has_several_kinds(wanted: Scene, seen: Scene) -> bool:
    return len(set(kinds(wanted))) > 1


def _has_same_parts(wanted: Scene, seen: Scene) -> bool:
    """Shapes and colours are those wanted, whichever belongs to which."""
    return _has_several_kinds(wanted, seen) and all(
        Counter(part) == Counter(other)
        for part, other in zip(zip(*kinds(wanted), strict=True), zip(*kinds(seen), strict=True), strict=True)
    )


def _has_same_kinds(wanted: Scene, seen: Scene) -> bool:
    return _has_several_kinds(wanted, seen) and Counter(kinds(wanted)) == Counter(kinds(seen))


def _held_out_slots(wanted: Scene, seen: Scene) -> tuple[int, int]:
    slots = [k for k, one in enumerate(wanted.objects) if one.is_held_out]
    found = kinds(seen)
    return sum(k < len(found) and found[k] == kinds(wanted)[k] for k in slots), len(slots)


# name -> (of what, right, meaning)
SHARES: dict[str, tuple[str, Counted, str]] = {
    "count": ("images", _of_image(lambda a, b: len(a.objects) == len(b.objects)), "as many objects as wanted"),
    "shape": (
        "objects",
        _of_slots(lambda one: one.shape),
        "the k-th object from the left has the shape of the k-th wanted",
    ),
    "colour": ("objects", _of_slots(lambda one: one.colour), "the same of its colour"),
    "size": ("objects", _of_slots(lambda one: one.size), "the same of its size"),
    "bound": (
        "images",
        _of_image(_has_same_kinds, _has_same_parts),
        "of images with the wanted shapes and the wanted colours, not all alike: each shape has its own colour",
    ),
    "place": (
        "images",
        _of_image(lambda a, b: kinds(a) == kinds(b), _has_same_kinds),
        "of images with the wanted objects, not all alike: they stand in the wanted order",
    ),
    "floor": ("images", _of_image(lambda a, b: a.floor == b.floor), "the floor is right"),
    "held_out": ("objects", _held_out_slots, "objects of a pair of shape and colour never seen: both are right"),
    "everything": ("images", _of_image(lambda a, b: a == b), "all of this is right"),
}


def obedience(wanted: Sequence[Scene], seen: Sequence[Scene]) -> dict[str, Share]:
    """Returns each share of `SHARES`: `share`, `of` (how many), `interval` [low, high]; None where there is nothing to count.

    Args:
        wanted: N scenes, of the captions.
        seen: what the judge found in each image.
    """
    found: dict[str, Share] = {}
    for name, (of, count, _) in SHARES.items():
        pairs = torch.tensor([count(a, b) for a, b in zip(wanted, seen, strict=True)], dtype=torch.float64)
        right, total = (int(value) for value in pairs.sum(0).tolist())
        if total == 0:
            found[name] = {"share": None, "of": 0, "interval": None}
            continue
        low, high = wilson(right, total) if of == "images" else redrawn(pairs)
        found[name] = {"share": right / total, "of": total, "interval": [low, high]}
    return found


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927)."""
    square = NORMAL_975**2
    share = right / total
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = NORMAL_975 / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def redrawn(pairs: torch.Tensor) -> tuple[float, float]:
    """The 95 % interval of sum(right) / sum(total) over images drawn again with replacement; pairs float64 [N, 2]."""
    index = torch.randint(len(pairs), (BOOTSTRAPS, len(pairs)), generator=torch.Generator().manual_seed(0))
    sums = pairs[index].sum(1)  # [BOOTSTRAPS, 2]
    shares = sums[:, 0] / sums[:, 1].clamp(min=1)
    low, high = shares.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
