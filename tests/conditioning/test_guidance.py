"""The batch of both passes of guidance, for every part that a condition can have."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from rasterformer.conditioning.guidance import combine, with_and_without
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Cond


@pytest.mark.parametrize("name", [field.name for field in fields(Cond) if field.name != "dropped"])
def test_images_come_with_their_condition_and_then_without(name: str) -> None:
    part = torch.arange(6).view(3, 2)
    twice = with_and_without(Cond(**{name: part}), 3)
    assert getattr(twice, name).tolist() == [[0, 1], [2, 3], [4, 5]] * 2
    assert twice.dropped is not None and twice.dropped.tolist() == [False] * 3 + [True] * 3


def test_what_is_dropped_already_stays_so() -> None:
    twice = with_and_without(Cond(label=torch.zeros(2).long(), dropped=torch.tensor([True, False])), 2)
    assert twice.dropped is not None and twice.dropped.tolist() == [True, False, True, True]


def test_the_combination_is_its_formula_and_exact_at_zero_and_one() -> None:
    both = torch.tensor([[0.1, 0.7], [1.3, -2.0], [0.3, 0.2], [0.9, 5.0]])
    assert torch.allclose(combine(both, 3.0), torch.tensor([[-0.3, 1.7], [2.1, -16.0]]), atol=1e-5)
    assert torch.equal(combine(both, 1.0), both[:2]) and torch.equal(combine(both, 0.0), both[2:])


@pytest.mark.parametrize("cond", [Cond(), Cond(dropped=torch.zeros(2, dtype=torch.bool))], ids=["empty", "dropped"])
def test_no_condition_is_refused(cond: Cond) -> None:
    with pytest.raises(ConfigError, match="guidance needs a condition"):
        with_and_without(cond, 2)
