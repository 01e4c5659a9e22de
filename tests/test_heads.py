"""Which numbers of heads fit a width, and what is said of those that do not."""

import pytest

from rasterformer.heads import head_problems


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "rotary"), [(1, 1, True), (3, 1, False), (6, 2, False), (3, 3, True)]
)
def test_heads_that_fit_are_no_problem(num_heads: int, num_kv_heads: int, rotary: bool) -> None:
    assert head_problems(12, num_heads, num_kv_heads=num_kv_heads, rotary=rotary) == []


@pytest.mark.parametrize(
    ("width", "num_heads", "num_kv_heads", "rotary", "message"),
    [
        (10, 3, 3, False, "model.num_heads = 3 does not divide model.inner = 10. Use 2"),
        (16, 11, 11, True, "model.num_heads = 11 does not divide model.inner = 16. Use 8"),
        (12, 2, 2, True, "model.rotary = true needs heads of a multiple of 4 dimensions, each has 6"),
        (12, 4, 3, False, "model.num_kv_heads = 3 does not divide model.num_heads = 4"),
        (12, 4, 0, False, "model.num_kv_heads = 0 does not divide model.num_heads = 4"),
    ],
)
def test_heads_that_do_not_fit_are_named(
    width: int, num_heads: int, num_kv_heads: int, rotary: bool, message: str
) -> None:
    (problem,) = head_problems(width, num_heads, num_kv_heads=num_kv_heads, rotary=rotary, width_name="inner")
    assert message in problem


def test_problems_of_queries_and_of_keys_are_said_at_once() -> None:
    assert len(head_problems(10, 4, num_kv_heads=3, rotary=False)) == 2
