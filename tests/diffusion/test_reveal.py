"""How many masks are revealed per step, which, and what the network is told: against the schedules' formulas and plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from rasterformer.diffusion.discrete import Schedule, make_process
from rasterformer.diffusion.options import Order
from rasterformer.diffusion.reveal import masked_after, nearest_level, purity, rank_of, reveal, sharpen

FRACTION: dict[str, Callable[[float], float]] = {
    "linear": lambda u: u,
    "cosine": lambda u: math.cos(math.pi / 2 * (1 - u)),
}


@pytest.mark.parametrize("steps", [1, 5, 10, 20])
@pytest.mark.parametrize("length", [1, 3, 16, 257, 1024])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_plan_follows_the_schedule(schedule: Schedule, length: int, steps: int) -> None:
    all_masked = torch.tensor([length])
    plan = masked_after(make_process(schedule, 4, 20), all_masked, all_masked, steps=steps, level=20)[:, 0].tolist()
    left, expected = length, []
    for k in range(1, steps + 1):
        if left:
            left = max(0, min(left - 1, round(length * FRACTION[schedule](1 - k / steps))))
            expected.append(left)
    assert plan == expected


@pytest.mark.parametrize("steps", [1, 3, 7, 64, 200])
@pytest.mark.parametrize("schedule", ["release", "linear", "cosine"])
def test_every_step_reveals_something_of_every_image_that_has_masks_and_all_end_without(
    schedule: Schedule, steps: int
) -> None:
    masked = torch.tensor([0, 1, 2, 50, 64, 64])
    unknown = torch.tensor([10, 1, 64, 60, 64, 100])
    plan = masked_after(make_process(schedule, 4, 16), masked, unknown, steps=steps, level=16)
    assert len(plan) <= min(steps, 64) and (plan[-1] == 0).all()
    before = masked
    for after in plan:
        assert ((after < before) | (before == 0)).all() and (after >= 0).all() and bool((before > 0).any())
        before = after


def test_steps_between_levels_are_interpolated() -> None:
    process = make_process("cosine", 4, 2)  # masked fractions 0, cos(pi / 4), 1
    many = torch.tensor([10_000])
    plan = masked_after(process, many, many, steps=4, level=2)[:, 0].tolist()
    half = math.cos(math.pi / 4)
    assert plan == [round(10_000 * share) for share in ((1 + half) / 2, half, half / 2, 0)]


def test_steps_begin_below_the_level() -> None:
    plan = masked_after(make_process("linear", 4, 10), torch.tensor([70]), torch.tensor([100]), steps=5, level=7)
    assert plan[:, 0].tolist() == [60, 40, 20, 0]


@pytest.mark.parametrize("level", [7, 10])
def test_a_plan_of_any_number_of_steps_ends_with_the_masks(level: int) -> None:
    plan = masked_after(
        make_process("linear", 4, 10), torch.tensor([70]), torch.tensor([100]), steps=10**12, level=level
    )
    assert plan[:, 0].tolist() == list(range(69, -1, -1))


@pytest.mark.parametrize("schedule", ["release", "linear", "cosine"])
def test_the_nearest_level_is_found_by_trying_all(schedule: Schedule) -> None:
    process = make_process(schedule, 4, 12)
    x_t = torch.where(torch.arange(41) < torch.arange(42)[:, None], 4, 1)  # 0, 1, .. 41 of 41 codes are masked
    for count, level in enumerate(nearest_level(process, x_t).tolist()):
        distances = {t: abs(float(process.mask[t]) - count / 41) for t in range(1, 13)}
        assert level == min(distances, key=lambda t: distances[t])


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_sharpening_is_its_formula(weight: float) -> None:
    p = torch.tensor([[[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]]], dtype=torch.float64)
    assert torch.equal(purity(p.log()), torch.tensor([[0.7, 0.4]], dtype=torch.float64).log().exp())
    got = sharpen(p.log(), weight).exp()
    for place, best in enumerate((0.7, 0.4)):
        raised = [value ** (1 + weight * best) for value in p[0, place].tolist()]
        assert got[0, place].tolist() == pytest.approx([value / sum(raised) for value in raised])


def test_sharpening_of_weight_zero_is_none_and_dropped_codes_stay_dropped() -> None:
    log_p = torch.tensor([[[0.6, 0.4, 0.0]]]).log()
    assert sharpen(log_p, 0) is log_p
    assert sharpen(log_p, 2.0)[0, 0, 2] == -torch.inf


def test_the_masks_of_lowest_rank_are_revealed_and_nothing_else() -> None:
    x = torch.tensor([[9, 1, 9, 9], [9, 9, 9, 2], [3, 3, 9, 3]])
    drawn = torch.tensor([[5, 6, 7, 8]]).expand(3, -1)
    rank = torch.tensor([[0.3, 0.0, 0.1, 0.2], [0.5, 0.5, 0.5, 0.1], [0.0, 0.0, 9.0, 0.0]])
    got = reveal(x, drawn, rank, x == 9, count=torch.tensor([2, 1, 0]))
    assert got.tolist() == [[9, 1, 7, 8], [5, 9, 9, 2], [3, 3, 9, 3]]


@pytest.mark.parametrize("order", ["random", "purity"])
def test_places_are_drawn_without_replacement(order: Order) -> None:
    log_x0 = torch.tensor([[0.5, 0.5], [0.9, 0.1], [1.0, 0.0]]).log()
    weights = [1, 1, 1] if order == "random" else [0.5, 0.9, 1.0]
    clocks = torch.empty(20_000, 3).exponential_(generator=torch.Generator().manual_seed(0))
    rank = rank_of(order, log_x0.expand(20_000, 3, 2), torch.zeros(20_000, 3, dtype=torch.int64), clocks)
    places = rank.argsort(1)
    for first in range(3):
        for second in {0, 1, 2} - {first}:
            chance = weights[first] / sum(weights) * weights[second] / (sum(weights) - weights[first])
            share = ((places[:, 0] == first) & (places[:, 1] == second)).double().mean().item()
            assert share == pytest.approx(chance, abs=4 * math.sqrt(chance / 20_000))


def test_confidence_puts_the_most_probable_drawn_code_first() -> None:
    log_x0 = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.6, 0.35, 0.05]]]).log()
    drawn = torch.tensor([[0, 2, 1]])  # of probability 0.5, 0.1, 0.35
    assert rank_of("confidence", log_x0, drawn, torch.ones(1, 3)).argsort(1).tolist() == [[0, 2, 1]]
