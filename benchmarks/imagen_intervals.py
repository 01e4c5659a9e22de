"""How sure a figure is: intervals by drawing images again, of shares, means, distances, and of differences on the same images.

All are 95 % and by the same random numbers each time, so that a page that is written again says the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.scene_captions import Scene
from benchmarks.scene_obedience import NORMAL_975, SHARES
from rasterformer.errors import ShapeError
from rasterformer.evaluation.frechet import frechet_distance

Interval = list[float]
Answers = dict[str, list[str]]  # name of a share -> for each image a digit: how many are right; out of how many
BOOTSTRAPS = 2000
DISTANCES = 50  # redrawn sets for the interval of a distance


def answers(wanted: Sequence[Scene], seen: Sequence[Scene]) -> Answers:
    """What is right in each image, and out of how many, for every share of `SHARES`: small enough to be kept."""
    found = {}
    for name, (_, count, _) in SHARES.items():
        pairs = [count(a, b) for a, b in zip(wanted, seen, strict=True)]
        found[name] = ["".join(str(pair[part]) for pair in pairs) for part in (0, 1)]
    return found


def share_lead(ours: Answers, theirs: Answers, name: str) -> tuple[float, Interval] | None:
    """By how much a share is larger than another one of the same captions, and the interval of that.

    Returns:
        None where one of them counts nothing.

    Raises:
        ShapeError: other numbers of images.
    """
    counts = [_counts(one[name]) for one in (ours, theirs)]
    if len(counts[0]) != len(counts[1]):
        raise ShapeError(f"{len(counts[0])} and {len(counts[1])} images cannot be compared one by one.")
    if any(float(one[:, 1].sum()) == 0 for one in counts):
        return None
    sums = [one[_redrawn(len(one))].sum(1) for one in counts]  # [BOOTSTRAPS, 2]
    shares = [one[:, 0] / one[:, 1].clamp(min=1) for one in sums]
    totals = [one.sum(0) for one in counts]
    lead = float(totals[0][0] / totals[0][1] - totals[1][0] / totals[1][1])
    return lead, _middle(shares[0] - shares[1])


def mean_with_interval(values: Tensor) -> tuple[float, Interval | None]:
    """The mean of float64 [N] and its interval; None where N is 1, which says nothing about the spread."""
    if len(values) == 1:
        return float(values[0]), None
    return float(values.mean()), _middle(values[_redrawn(len(values))].mean(1))


def distance_with_interval(drawn: Tensor, real: Tensor) -> tuple[float, Interval]:
    """The Frechet distance of features [N, D] to [M, D], and an interval from drawing the first again.

    A redrawn set has fewer different images and so lies further away (`frechet_distance`): of the redrawn distances the spread is
    taken, and not the place. The real images stay as they are, so this is about drawing more images of the same captions.
    """
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(DISTANCES):
        rows = torch.randint(len(drawn), (len(drawn),), generator=generator)
        found.append(frechet_distance(drawn[rows], real))
    distance = frechet_distance(drawn, real)
    half = NORMAL_975 * float(torch.tensor(found, dtype=torch.float64).std())
    return distance, [max(0.0, distance - half), distance + half]


def _counts(digits: Sequence[str]) -> Tensor:
    """float64 [N, 2]: right, out of how many."""
    return torch.tensor([[int(a), int(b)] for a, b in zip(*digits, strict=True)], dtype=torch.float64)


def _redrawn(count: int) -> Tensor:
    """Numbers of images drawn with replacement, int64 [BOOTSTRAPS, count]."""
    return torch.randint(count, (BOOTSTRAPS, count), generator=torch.Generator().manual_seed(0))


def _middle(values: Tensor) -> Interval:
    low, high = values.double().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return [low, high]
