"""The published fast sampler beside the exact stride: what it leaves masked, and by how much its samples are wrong."""

from functools import cache
from itertools import product

import pytest
import torch
from torch import Tensor

from benchmarks.released_sampler import Plan, draw_by_plan, exact_plan, masked_fractions, released_plan, shown_levels
from rasterformer.autoregressive.noise import image_generators
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.diffusion.discrete import DiscreteProcess, make_process
from rasterformer.interfaces import Cond, Loss

TWINS = torch.tensor([[0.45, 0.05], [0.05, 0.45]], dtype=torch.float64)  # p(x_0) of two tokens that mostly agree


class Perfect(CodeDenoiser):
    """Knows p(x_0 | x_t) of TWINS exactly, for a process that only masks."""

    num_classes, x_shape = 0, (2, 1)

    def __init__(self, process: DiscreteProcess) -> None:
        super().__init__()
        self.process = process
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return torch.stack([torch.stack([marginal(*row, k) for k in (0, 1)]) for row in x.tolist()]).log().float()

    def loss(self, x: Tensor, cond: Cond, *, rng: torch.Generator | None) -> Loss:
        raise NotImplementedError

    def sample(self, *args: object, **options: object) -> Tensor:
        raise NotImplementedError

    def state_bytes(self, batch_size: int) -> int:
        return 0

    def to_bfloat16(self) -> CodeDenoiser:
        return self


@cache
def marginal(first: int, second: int, place: int) -> Tensor:
    """p(x_0 at a place | x_t) by enumeration; 2 is the mask. What cannot occur is given a little."""
    found = torch.full((2,), 1e-12, dtype=torch.float64)
    for x0 in product(range(2), repeat=2):
        if first in (2, x0[0]) and second in (2, x0[1]):
            found[x0[place]] += TWINS[x0]
    return found / found.sum()


def distribution(process: DiscreteProcess, plan: Plan) -> Tensor:
    """What a plan draws, by going through all states: probabilities [2, 2] of codes."""
    states = list(product(range(3), repeat=2))
    prior = process.log_prior().exp()
    chances = {state: float(prior[state[0]] * prior[state[1]]) for state in states}
    for _, t, s in plan:
        after = dict.fromkeys(states, 0.0)
        for state, chance in chances.items():
            if chance == 0.0:
                continue
            log_x0 = torch.stack([marginal(*state, place) for place in (0, 1)]).log()[None]
            x_t = torch.tensor([state])
            p = process.posterior(log_x0, x_t, torch.tensor([t]), torch.tensor([s])).exp()[0]
            for target in states:
                after[target] += chance * float(p[0, target[0]] * p[1, target[1]])
        chances = after
    return torch.tensor([[chances[0, 0], chances[0, 1]], [chances[1, 0], chances[1, 1]]], dtype=torch.float64)


@pytest.mark.parametrize(("skip", "passes", "left", "left_exactly"), [(3, 26, 0.245, 0.0303), (9, 11, 0.66, 0.0909)])
def test_the_published_sampler_leaves_most_of_the_work_to_its_last_pass(
    skip: int, passes: int, left: float, left_exactly: float
) -> None:
    """Release schedule: cbar is (t - 1) / 99 but for 1e-5, and the exact stride keeps to it, so level 4 has 3 / 99 masks."""
    process = make_process("release", 8, 100)
    released, exact = released_plan(100, skip), exact_plan(100, skip)
    assert len(released) == len(exact) == len(shown_levels(100, skip)) == passes
    by_hand = 1.0  # the chance to stay masked, from the published indices
    for level in shown_levels(100, skip)[:-1]:
        top = level - skip if level - 1 > skip else level
        by_hand *= (top - 2) / (top - 1)
    found = masked_fractions(process.mask, released)
    assert found[-2] == pytest.approx(by_hand, abs=2e-4) == pytest.approx(left, abs=5e-3)
    assert masked_fractions(process.mask, exact)[-3] == pytest.approx(left_exactly, abs=2e-5)
    assert found[-1] == 0.0


def test_without_skipping_both_are_the_whole_chain() -> None:
    assert released_plan(5, 0) == exact_plan(5, 0) == [(5, 5, 4), (4, 4, 3), (3, 3, 2), (2, 2, 1), (1, 1, 0)]


@pytest.mark.parametrize(("skip", "most"), [(3, 0.5), (9, 0.25)])
def test_the_published_sampler_errs_where_it_reveals_many_tokens_at_once(skip: int, most: float) -> None:
    """With a perfect network only tokens of one pass err: each pair that is revealed together is drawn independently.

    The total variation is then that of independent twins, 0.4, times the chance that one pass reveals both.
    """
    process = make_process("linear", 2, 100)
    errors = []
    for plan in (exact_plan(100, skip), released_plan(100, skip)):
        found = distribution(process, plan)
        errors.append((found - TWINS).abs().sum().item() / 2)
        masked, together = 1.0, 0.0
        for _, t, s in plan:
            together += (masked - masked * s / t) ** 2
            masked *= s / t
        assert found.sum() == pytest.approx(1.0, abs=1e-9)
        assert errors[-1] == pytest.approx(0.4 * together, abs=1e-6)
    assert 0 < errors[0] < most * errors[1]


def test_draws_follow_the_enumerated_distribution_and_masks_the_expected_fractions() -> None:
    process = make_process("linear", 2, 8)
    plan = released_plan(8, 3)
    x, masked = draw_by_plan(Perfect(process), Cond(), plan, image_generators(0, 2000))
    counts = torch.zeros(2, 2, dtype=torch.float64)
    for first, second in x[..., 0].tolist():
        counts[first, second] += 1
    expected = 2000 * distribution(process, plan)
    assert ((counts - expected) ** 2 / expected).sum() < 21.1  # chi-square, 3 degrees of freedom, p > 1e-4
    assert masked == pytest.approx(masked_fractions(process.mask, plan), abs=0.04)  # 4 standard errors of 4000 tokens
