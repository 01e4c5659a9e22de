"""Levels drawn by their losses: the formula by plain loops, and what it leaves unchanged on average."""

import math

import pytest
import scipy.stats
import torch

from rasterformer.diffusion.importance import StepSampler
from rasterformer.errors import CheckpointError, ConfigError, ShapeError

LOSSES = {1: 7.0, 2: 0.5, 3: 2.0, 4: 4.0}  # one loss for each level


def seen(times: int) -> StepSampler:
    """A sampler of 4 levels that has seen each of them that often."""
    sampler = StepSampler(4)
    for _ in range(times):
        sampler.update_(torch.tensor(list(LOSSES)), torch.tensor(list(LOSSES.values())))
    return sampler


def expected_probs(times: int) -> list[float]:
    roots = []
    for level in (2, 2, 3, 4):  # level 1 takes the value of level 2
        average = 0.0
        for _ in range(times):
            average = 0.9 * average + 0.1 * LOSSES[level] ** 2
        roots.append(math.sqrt(average + 1e-10) + 1e-4)
    return [root / sum(roots) for root in roots]


def test_levels_are_uniform_until_each_has_more_than_ten_hits() -> None:
    uniform = torch.full((4,), 0.25, dtype=torch.float64)
    sampler = seen(10)
    assert torch.equal(sampler.probs(), uniform)
    sampler.update_(torch.tensor([1, 2, 3]), torch.tensor([7.0, 0.5, 2.0]))
    assert torch.equal(sampler.probs(), uniform)
    t, prob = sampler.draw(50, torch.Generator().manual_seed(0))
    assert set(t.tolist()) == {1, 2, 3, 4} and torch.equal(prob, torch.full((50,), 0.25, dtype=torch.float64))
    sampler.update_(torch.tensor([4]), torch.tensor([4.0]))
    assert not torch.equal(sampler.probs(), uniform)


@pytest.mark.parametrize("times", [11, 40])
def test_then_they_follow_the_root_of_the_average_squared_loss(times: int) -> None:
    assert seen(times).probs().tolist() == pytest.approx(expected_probs(times), abs=1e-12)


def test_a_level_that_occurs_twice_in_a_batch_is_averaged_in_turn() -> None:
    together, apart = seen(11), seen(11)
    together.update_(torch.tensor([3, 3]), torch.tensor([5.0, 1.0]))
    apart.update_(torch.tensor([3]), torch.tensor([5.0]))
    apart.update_(torch.tensor([3]), torch.tensor([1.0]))
    assert torch.equal(together.probs(), apart.probs())
    swapped = seen(11)
    swapped.update_(torch.tensor([3, 3]), torch.tensor([1.0, 5.0]))
    assert not torch.equal(together.probs(), swapped.probs())


def test_drawn_levels_fit_their_probabilities() -> None:
    t, prob = seen(20).draw(20_000, torch.Generator().manual_seed(1))
    assert t.dtype == torch.int64 and prob.dtype == torch.float64
    expected = expected_probs(20)
    assert prob.tolist() == pytest.approx([expected[level - 1] for level in t.tolist()], abs=1e-12)
    counts = torch.bincount(t, minlength=5)[1:]
    assert scipy.stats.chisquare(counts, torch.tensor(expected, dtype=torch.float64) * 20_000).pvalue > 1e-4


@pytest.mark.parametrize("times", [0, 20])
def test_a_loss_over_its_probability_is_on_average_the_sum_over_levels(times: int) -> None:
    t, prob = seen(times).draw(40_000, torch.Generator().manual_seed(2))
    noise = torch.rand(40_000, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) - 0.5
    losses = torch.tensor([0.0, *LOSSES.values()], dtype=torch.float64)[t] + noise
    estimates = losses / prob
    error = float(estimates.std()) / math.sqrt(len(estimates))
    assert 0 < error < 0.2
    assert abs(float(estimates.mean()) - sum(LOSSES.values())) < 4 * error


def test_the_state_comes_back_and_is_a_copy() -> None:
    sampler, resumed = seen(13), StepSampler(4)
    state = sampler.state()
    resumed.load_state_(state)
    assert torch.equal(resumed.probs(), sampler.probs())
    sampler.update_(torch.tensor([2]), torch.tensor([50.0]))
    assert not torch.equal(resumed.probs(), sampler.probs())
    assert {name: part.tolist() for name, part in resumed.state().items()} == {
        name: part.tolist() for name, part in state.items()
    }
    assert resumed.state()["hits"].tolist() == [13] * 4


def test_a_loss_that_is_not_finite_is_left_out() -> None:
    sampler, before = seen(11), seen(11)
    sampler.update_(torch.tensor([2, 3, 4]), torch.tensor([math.nan, math.inf, -math.inf]))
    for name, part in before.state().items():
        assert torch.equal(sampler.state()[name], part)


def test_wrong_levels_shapes_and_states_are_refused() -> None:
    sampler = StepSampler(4)
    for level in (0, 5):
        with pytest.raises(ConfigError, match=rf"t = \[1, {level}\] leaves the levels 1..4"):
            sampler.update_(torch.tensor([1, level]), torch.zeros(2))
    assert int(sampler.state()["hits"].sum()) == 0
    with pytest.raises(ShapeError, match=r"t has shape \[2\] and losses \[3\]"):
        sampler.update_(torch.tensor([1, 2]), torch.zeros(3))
    with pytest.raises(ConfigError, match="num_steps = 1 is too few"):
        StepSampler(1)
    with pytest.raises(CheckpointError, match=r"\[5\].*expected.*\[4\]"):
        sampler.load_state_(StepSampler(5).state())
    with pytest.raises(CheckpointError, match="holds {}; expected"):
        sampler.load_state_({})
