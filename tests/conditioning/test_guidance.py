"""The batch of both passes of guidance, for every part that a condition can have."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from rasterformer.conditioning.guidance import combine, followed_by, with_and_without
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


@pytest.mark.parametrize("name", [field.name for field in fields(Cond)])
def test_one_condition_comes_after_the_other(name: str) -> None:
    one, other = torch.arange(6).view(3, 2), torch.arange(6, 12).view(3, 2)
    both = followed_by(Cond(**{name: one}), Cond(**{name: other}))
    assert getattr(both, name).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    assert [field.name for field in fields(Cond) if getattr(both, field.name) is not None] == [name]


@pytest.mark.parametrize("swap", [False, True])
def test_the_shorter_texts_are_padded_by_what_is_not_known(swap: bool) -> None:
    short = Cond(text=torch.ones(2, 1, 3), text_known=torch.ones(2, 1, dtype=torch.bool))
    long = Cond(text=torch.full((2, 3, 3), 2.0), text_known=torch.tensor([[True, True, False]] * 2))
    both = followed_by(long, short) if swap else followed_by(short, long)
    assert both.text is not None and both.text_known is not None
    assert (
        both.text[:, :, 0].tolist()
        == [[1.0, 0.0, 0.0]] * 2 * (not swap) + [[2.0, 2.0, 2.0]] * 2 + [[1.0, 0.0, 0.0]] * 2 * swap
    )
    known = [[True, False, False]] * 2
    assert both.text_known.tolist() == known * (not swap) + [[True, True, False]] * 2 + known * swap


def test_tokens_are_padded_as_states_are() -> None:
    both = followed_by(Cond(text_tokens=torch.tensor([[5]])), Cond(text_tokens=torch.tensor([[6, 7]])))
    assert both.text_tokens is not None and both.text_tokens.tolist() == [[5, 0], [6, 7]]


def test_what_is_hidden_on_one_side_is_hidden_there_only() -> None:
    hidden, shown = Cond(dropped=torch.tensor([True, False])), Cond()
    for one, other, expected in ((hidden, shown, [1, 0, 0, 0]), (shown, hidden, [0, 0, 1, 0])):
        dropped = followed_by(one, other).dropped
        assert dropped is not None and dropped.dtype == torch.bool and dropped.int().tolist() == expected


@pytest.mark.parametrize("name", [field.name for field in fields(Cond) if field.name != "dropped"])
def test_a_part_of_one_condition_only_is_refused(name: str) -> None:
    one = Cond(**{name: torch.zeros(2, 2)})
    for pair in ((one, Cond()), (Cond(), one)):
        with pytest.raises(ConfigError, match=f"{name} is given for one of two conditions only"):
            followed_by(*pair)
