"""Contestants take turns; ratios are taken round by round. No time is asserted."""

import pytest

from benchmarks.timing import in_turn, ratio, spread


def test_contestants_take_turns_after_an_unmeasured_call_each() -> None:
    calls: list[str] = []
    found = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, seconds=0.0)
    assert calls == ["a", "a", "b", "b"] + ["a", "b"] * 3
    assert {name: len(values) for name, values in found.items()} == {"a": 3, "b": 3}


def test_ratios_are_taken_round_by_round() -> None:
    assert ratio([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == {
        "median": 3.0,
        "lowest": 2.0,
        "highest": 4.0,
        "all": [2.0, 3.0, 4.0],
    }
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])


def test_spread_keeps_every_value() -> None:
    assert spread([5.0, 1.0, 3.0]) == {"median": 3.0, "lowest": 1.0, "highest": 5.0, "all": [5.0, 1.0, 3.0]}
