"""Shares of what captions say, on scenes whose mistakes are known, and their intervals."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest  # type: ignore[import-untyped]

from benchmarks.scene_captions import Scene, SceneObject, draw_scenes
from benchmarks.scene_obedience import SHARES, obedience, redrawn, wilson

BALL, BOX = SceneObject("sphere", "red", "small"), SceneObject("cube", "blue", "large")
CAN = SceneObject("cylinder", "orange", "small")  # a held-out pair
WANTED = Scene((BALL, BOX), "grass")


def shares(wanted: Scene, seen: Scene) -> dict[str, float | None]:
    return {name: one["share"] for name, one in obedience([wanted], [seen]).items()}


def test_a_scene_as_wanted_is_right_in_everything() -> None:
    found = shares(WANTED, WANTED)
    assert found.pop("held_out") is None  # nothing to count
    assert set(found.values()) == {1.0} and set(found) | {"held_out"} == set(SHARES)


def test_swapped_objects_are_bound_but_out_of_place() -> None:
    found = shares(WANTED, Scene((BOX, BALL), "grass"))
    assert (found["bound"], found["place"]) == (1.0, 0.0)
    assert (found["shape"], found["colour"], found["size"], found["everything"]) == (0.0, 0.0, 0.0, 0.0)
    assert (found["count"], found["floor"]) == (1.0, 1.0)


def test_swapped_colours_are_not_bound_and_place_is_not_asked() -> None:
    mixed = Scene((replace(BALL, colour="blue"), replace(BOX, colour="red")), "grass")
    found = shares(WANTED, mixed)
    assert (found["bound"], found["place"]) == (0.0, None)
    assert (found["shape"], found["colour"], found["size"]) == (1.0, 0.0, 1.0)


def test_a_missing_object_is_wrong_in_all_its_parts() -> None:
    found = shares(WANTED, Scene((BALL,), "wooden"))
    assert (found["shape"], found["colour"], found["size"]) == (0.5, 0.5, 0.5)
    assert (found["count"], found["floor"], found["everything"]) == (0.0, 0.0, 0.0)
    assert found["bound"] is None and found["place"] is None


def test_one_object_or_objects_alike_say_nothing_of_binding() -> None:
    for scene in (Scene((BALL,), "grass"), Scene((BALL, replace(BALL, size="large")), "grass")):
        found = shares(scene, scene)
        assert found["bound"] is None and found["place"] is None and found["everything"] == 1.0


def test_a_held_out_pair_counts_where_it_is_wanted() -> None:
    wanted = [Scene((BALL, CAN), "grass"), Scene((CAN,), "grass"), Scene((BALL,), "grass")]
    seen = [wanted[0], Scene((replace(CAN, colour="red"),), "grass"), wanted[2]]
    found = obedience(wanted, seen)["held_out"]
    assert (found["share"], found["of"]) == (0.5, 2)


@pytest.mark.parametrize(("right", "total"), [(0, 12), (7, 12), (12, 12), (150, 180)])
def test_the_interval_of_images_is_that_of_wilson(right: int, total: int) -> None:
    expected = binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert wilson(right, total) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_objects_of_one_image_are_not_counted_as_independent() -> None:
    """Images whose three objects are right or wrong together: as wide as an interval of images, not of objects."""
    together = torch.tensor([[3.0, 3.0], [0.0, 3.0]], dtype=torch.float64).repeat(50, 1)
    low, high = redrawn(together)
    wide, narrow = wilson(50, 100), wilson(150, 300)
    assert high - low == pytest.approx(wide[1] - wide[0], rel=0.1)
    assert high - low > 1.5 * (narrow[1] - narrow[0])


def test_shares_are_over_all_images() -> None:
    wanted = draw_scenes(60, held_out=False, rng=torch.Generator().manual_seed(0))
    seen = [replace(scene, floor="grass") for scene in wanted]
    found = obedience(wanted, seen)
    right = sum(scene.floor == "grass" for scene in wanted)
    assert found["floor"] | {"interval": None} == {"share": right / 60, "of": 60, "interval": None}
    assert found["shape"]["share"] == 1.0 and found["shape"]["of"] == 20 * (1 + 2 + 3)
