"""The captions of scenes64 as a grammar, both ways; and the pairs of shape and colour that no image of the set shows.

One to three objects from left to right, each of a size, a colour and a shape, on one of three floors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

SHAPES = ("sphere", "cube", "cylinder")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "grey")
SIZES = ("small", "large")
FLOORS = ("grass", "tiled", "wooden")
HELD_OUT = (("sphere", "green"), ("cube", "purple"), ("cylinder", "orange"))  # no training or test image has them
MOST_OBJECTS = 3
_OBJECT = re.compile(rf"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")
_FLOOR = re.compile(r" on (?:grass|a (tiled|wooden) floor)$")


@dataclass(frozen=True)
class SceneObject:
    """One object, its values of SHAPES, COLOURS and SIZES."""

    shape: str
    colour: str
    size: str

    @property
    def is_held_out(self) -> bool:
        """Whether no training image shows this shape in this colour."""
        return (self.shape, self.colour) in HELD_OUT


@dataclass(frozen=True)
class Scene:
    """What a caption says.

    Args:
        objects: 1 to 3, left to right.
        floor: of FLOORS.
    """

    objects: tuple[SceneObject, ...]
    floor: str

    @property
    def is_held_out(self) -> bool:
        """Whether any of its objects is."""
        return any(one.is_held_out for one in self.objects)


def caption(scene: Scene) -> str:
    """Returns the sentence."""
    said = [f"a {one.size} {one.colour} {one.shape}" for one in scene.objects]
    floor = "on grass" if scene.floor == "grass" else f"on a {scene.floor} floor"
    if len(said) == 1:
        return f"{said[0]} {floor}"
    if len(said) == 2:
        return f"{said[0]} left of {said[1]} {floor}"
    return f"{said[0]}, {said[1]} and {said[2]} from left to right {floor}"


def parse(text: str) -> Scene:
    """Returns the scene of a sentence.

    Raises:
        ValueError: it is no sentence of this grammar.
    """
    floor = _FLOOR.search(text)
    objects = tuple(SceneObject(shape, colour, size) for size, colour, shape in _OBJECT.findall(text))
    if floor is not None and 1 <= len(objects) <= MOST_OBJECTS:
        scene = Scene(objects, floor[1] or "grass")
        if caption(scene) == text:
            return scene
    raise ValueError(f"{text!r} is no caption of scenes64, such as {EXAMPLE!r}.")


def class_of(text: str) -> str:
    """The class of a caption, for a model that takes classes only: the colour of the leftmost object, and the floor.

    A folder with a subfolder for each of these 24 names is how such a model is trained: `red, grass`, `blue, wooden floor`.
    """
    scene = parse(text)
    return f"{scene.objects[0].colour}, {scene.floor if scene.floor == 'grass' else f'{scene.floor} floor'}"


def draw_scenes(count: int, *, held_out: bool, rng: torch.Generator) -> list[Scene]:
    """Returns scenes of one, two and three objects in turn, everything else drawn evenly.

    Args:
        count: of scenes.
        held_out: whether one object of each has a held-out pair of shape and colour, each pair as often; the others never do.
        rng: decides.
    """

    def pick(values: tuple[str, ...]) -> str:
        return values[int(torch.randint(len(values), (), generator=rng))]

    def seen() -> SceneObject:
        while (one := SceneObject(pick(SHAPES), pick(COLOURS), pick(SIZES))).is_held_out:
            pass
        return one

    scenes = []
    for k in range(count):
        objects = [seen() for _ in range(k % MOST_OBJECTS + 1)]
        if held_out:
            place = int(torch.randint(len(objects), (), generator=rng))
            shape, colour = HELD_OUT[k // MOST_OBJECTS % len(HELD_OUT)]
            objects[place] = SceneObject(shape, colour, pick(SIZES))
        scenes.append(Scene(tuple(objects), pick(FLOORS)))
    return scenes


EXAMPLE = caption(Scene((SceneObject("cube", "red", "small"), SceneObject("sphere", "blue", "large")), "wooden"))
