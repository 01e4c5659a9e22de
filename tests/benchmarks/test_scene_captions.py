"""The grammar of captions: sentences as they stand in scenes64, both ways, and scenes that are drawn with it."""

from collections import Counter
from itertools import product

import pytest
import torch

from benchmarks.scene_captions import (
    COLOURS,
    FLOORS,
    HELD_OUT,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    caption,
    draw_scenes,
    parse,
)

SENTENCES = {  # from the set, read by eye
    "a small red sphere on grass": Scene((SceneObject("sphere", "red", "small"),), "grass"),
    "a large cyan cube left of a small cyan cylinder on a tiled floor": Scene(
        (SceneObject("cube", "cyan", "large"), SceneObject("cylinder", "cyan", "small")), "tiled"
    ),
    "a large yellow cylinder, a large purple sphere and a large green cube from left to right on a wooden floor": Scene(
        (
            SceneObject("cylinder", "yellow", "large"),
            SceneObject("sphere", "purple", "large"),
            SceneObject("cube", "green", "large"),
        ),
        "wooden",
    ),
}


@pytest.mark.parametrize(("text", "scene"), SENTENCES.items())
def test_sentences_of_the_set_are_read_and_written(text: str, scene: Scene) -> None:
    assert parse(text) == scene and caption(scene) == text


@pytest.mark.parametrize(
    "text", ["", "a small red sphere", "a small pink sphere on grass", "a small red sphere and a cube on grass"]
)
def test_what_is_no_caption_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}' is no caption of scenes64"):
        parse(text)


def test_every_object_and_floor_is_read_back() -> None:
    for shape, colour, size, floor in product(SHAPES, COLOURS, SIZES, FLOORS):
        scene = Scene((SceneObject(shape, colour, size),), floor)
        assert parse(caption(scene)) == scene
        assert scene.is_held_out == ((shape, colour) in HELD_OUT)


@pytest.mark.parametrize("held_out", [False, True])
def test_drawn_scenes_have_held_out_pairs_or_none(held_out: bool) -> None:
    scenes = draw_scenes(180, held_out=held_out, rng=torch.Generator().manual_seed(0))
    assert Counter(len(scene.objects) for scene in scenes) == {1: 60, 2: 60, 3: 60}
    pairs = [[(one.shape, one.colour) for one in scene.objects if one.is_held_out] for scene in scenes]
    if not held_out:
        assert not any(pairs)
        return
    assert all(len(found) == 1 for found in pairs)
    assert Counter(found[0] for found in pairs) == {pair: 60 for pair in HELD_OUT}
    assert len({scene.objects.index(one) for scene in scenes for one in scene.objects if one.is_held_out}) == 3


def test_the_same_seed_draws_the_same_scenes() -> None:
    first, again = (draw_scenes(9, held_out=True, rng=torch.Generator().manual_seed(5)) for _ in range(2))
    assert first == again != draw_scenes(9, held_out=True, rng=torch.Generator().manual_seed(6))
