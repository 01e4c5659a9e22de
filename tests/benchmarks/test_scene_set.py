"""Repainting of objects, and a judge that learns a few scenes by heart."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.scene_captions import COLOURS, HELD_OUT, SHAPES
from benchmarks.scene_judge import (
    SceneJudge,
    accuracies,
    drawn_colours,
    loss,
    mirrored,
    one_of_each_count,
    recombined,
    true_scenes,
)
from benchmarks.scene_set import FIRST_SHAPE, PAINT, SceneSet, held_out_colours, repainted, slot_masks, turned

SHADES = torch.tensor([0.4, 0.7, 1.0, 1.2])


def scenes_of(objects: list[list[tuple[str, str]]]) -> SceneSet:
    """Shaded squares of paint on a bright floor, 12 pixels each, from left to right."""
    count = len(objects)
    images = torch.full((count, 3, 64, 64), 220.0)
    labels = torch.ones(count, 64, 64, dtype=torch.int64)
    shapes, colours = (torch.full((count, 3), -1) for _ in range(2))
    columns = torch.zeros(count, 3)
    for k, row in enumerate(objects):
        for slot, (shape, colour) in enumerate(row):
            left = 4 + 20 * slot
            shapes[k, slot], colours[k, slot] = SHAPES.index(shape), COLOURS.index(colour)
            shading = SHADES.repeat_interleave(3)[None, :]
            images[k, :, 20:32, left : left + 12] = PAINT[COLOURS.index(colour)][:, None, None] * shading
            labels[k, 20:32, left : left + 12] = FIRST_SHAPE + SHAPES.index(shape)
            columns[k, slot] = left + 5.5
    sizes = torch.where(shapes >= 0, 0, -1)
    return SceneSet(
        images.clamp(0, 255).round().byte(), labels, shapes, colours, sizes, torch.zeros(count).long(), columns
    )


def colours_of(scenes: SceneSet, *names: str) -> Tensor:
    return torch.tensor([[COLOURS.index(name) for name in names] + [-1] * (3 - len(names))]).expand(len(scenes), 3)


def test_each_object_has_its_own_pixels() -> None:
    scenes = scenes_of([[("cube", "red"), ("cube", "blue"), ("sphere", "red")]])
    masks = slot_masks(scenes)
    assert masks.sum((0, 2, 3)).tolist() == [144, 144, 144]
    assert not (masks[:, 0] & masks[:, 1]).any() and masks[0, 1, 25, 30]


def test_repainting_gives_what_the_other_paint_would_look_like_and_nothing_else_changes() -> None:
    scenes = scenes_of([[("cube", "red"), ("sphere", "grey")]])
    made = repainted(scenes, slot_masks(scenes), colours_of(scenes, "cyan", "yellow"))
    expected = scenes_of([[("cube", "cyan"), ("sphere", "yellow")]])
    assert (made.images.int() - expected.images.int()).abs().max() <= 2  # rounding of the first picture, and its clamp
    assert made.colours.tolist() == expected.colours.tolist() and made.shapes.tolist() == scenes.shapes.tolist()
    outside = (scenes.labels == 1)[:, None].expand_as(scenes.images)
    assert torch.equal(made.images[outside], scenes.images[outside])


def test_white_light_stays_white() -> None:
    scenes = scenes_of([[("sphere", "blue")]])
    shine = scenes.images.float()
    shine[0, :, 24, 8] = PAINT[COLOURS.index("blue")] * 0.8 + 70
    scenes = replace(scenes, images=shine.round().byte())
    made = repainted(scenes, slot_masks(scenes), colours_of(scenes, "orange"))
    expected = PAINT[COLOURS.index("orange")] * 0.8 + 70
    assert (made.images[0, :, 24, 8].float() - expected).abs().max() <= 2


def test_turning_the_hue_gives_the_other_hue_at_every_shade() -> None:
    scenes = scenes_of([[("cube", "green")]])
    made = turned(scenes, slot_masks(scenes), colours_of(scenes, "purple"))
    expected = scenes_of([[("cube", "purple")]])
    assert (made.images.int() - expected.images.int()).abs().max() <= 3


def test_a_slot_without_a_wanted_colour_stays() -> None:
    scenes = scenes_of([[("cube", "red"), ("sphere", "blue")]])
    wanted = torch.tensor([[-1, COLOURS.index("red"), -1]])
    for made in (repainted(scenes, slot_masks(scenes), wanted), turned(scenes, slot_masks(scenes), wanted)):
        assert torch.equal(made.images[..., :20], scenes.images[..., :20])
        assert made.colours[0].tolist() == [COLOURS.index("red"), COLOURS.index("red"), -1]


def test_recombined_scenes_show_held_out_pairs_only_where_there_is_a_hue() -> None:
    scenes = scenes_of([[("cube", "red"), ("sphere", "grey")], [("cylinder", "grey")], [("sphere", "blue")]])
    made, is_turned = recombined(scenes)
    assert len(made) == 2 and is_turned.tolist() == [[True, False, False], [True, False, False]]
    pairs = [(one.shape, one.colour) for scene in true_scenes(made) for one in scene.objects]
    assert pairs == [("cube", "purple"), ("sphere", "grey"), ("sphere", "green")] and set(pairs) - {pairs[1]} <= set(
        HELD_OUT
    )
    assert held_out_colours(scenes)[1].tolist() == [-1, -1, -1]


def test_objects_alike_get_the_same_paint() -> None:
    scenes = scenes_of([[("cube", "red"), ("cube", "red"), ("cube", "blue")]] * 40)
    drawn = drawn_colours(scenes, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[:, 0], drawn[:, 1]) and len(drawn[:, 2].unique()) == len(COLOURS)


def test_a_mirrored_scene_has_its_objects_from_left_to_right_again() -> None:
    scenes = scenes_of([[("cube", "red"), ("sphere", "blue")], [("cylinder", "green")]])
    made = mirrored(scenes)
    assert [[one.shape for one in scene.objects] for scene in true_scenes(made)] == [["sphere", "cube"], ["cylinder"]]
    assert made.columns[0, :2].tolist() == [63 - 29.5, 63 - 9.5] and made.colours[1].tolist() == [
        COLOURS.index("green"),
        -1,
        -1,
    ]
    masks = slot_masks(made)
    assert masks[0, 0, 25].nonzero().float().mean() == pytest.approx(made.columns[0, 0].item())
    assert torch.equal(mirrored(made).images, scenes.images) and torch.equal(mirrored(made).shapes, scenes.shapes)


def test_scenes_are_drawn_as_often_by_count() -> None:
    scenes = scenes_of([[("cube", "red")]] * 3 + [[("cube", "red"), ("cube", "blue")]])
    assert one_of_each_count(scenes).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0])


def test_accuracies_count_slots_that_are_there_and_whole_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that always sees the first scene, right in one image of two."""
    scenes = scenes_of([[("cube", "red"), ("sphere", "blue")], [("cube", "green")]])
    first = {"shape": scenes.shapes[0], "colour": scenes.colours[0], "size": scenes.sizes[0]}
    sizes = {"shape": 3, "colour": 8, "size": 2}

    def answer(images: Tensor) -> dict[str, Tensor]:
        found = {
            name: torch.nn.functional.one_hot(value.clamp(min=0), sizes[name]).float().expand(len(images), -1, -1)
            for name, value in first.items()
        }
        of_image = torch.tensor([[0.0, 1.0, 0.0]]).expand(len(images), -1)
        return found | {"count": of_image, "floor": of_image.roll(-1, 1)}

    judge = SceneJudge()
    monkeypatch.setattr(judge, "forward", answer)
    found = accuracies(judge, scenes)
    assert found["shape"] == 1.0 and found["size"] == 1.0 and found["floor"] == 1.0
    assert found["colour"] == pytest.approx(2 / 3) and found["count"] == 0.5 and found["everything"] == 0.5
    assert [len(scene.objects) for scene in judge.scenes(scenes.images)] == [2, 2]


@pytest.mark.slow
def test_the_judge_learns() -> None:
    scenes = scenes_of([[("cube", "red")], [("sphere", "blue"), ("cube", "green")]])
    torch.manual_seed(0)
    judge = SceneJudge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3)
    losses = []
    for _ in range(4):
        value = loss(judge, scenes.images, scenes)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.8 * losses[0]
