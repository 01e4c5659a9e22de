"""scenes64 with its annotations, and its objects in other colours: by shading, as the judge is trained, and by turning the hue.

Recoloured objects are how a judge meets pairs of shape and colour that no image of the set shows. The two ways have nothing
in common, so that a judge trained on the one can be checked on the other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.scene_captions import COLOURS, FLOORS, HELD_OUT, MOST_OBJECTS, SHAPES, SIZES

SIDE, COLUMNS = 64, 40  # of a tile, and tiles in a row of the sheet
FIRST_SHAPE = 2  # label of the first of SHAPES; 0 is sky, 1 floor
# median colour of the lit objects of each colour in training images with one object, sRGB
PAINT = torch.tensor(
    [
        [184, 64, 55],
        [194, 132, 49],
        [190, 177, 63],
        [62, 146, 74],
        [64, 163, 169],
        [64, 98, 184],
        [143, 77, 157],
        [132, 132, 131],
    ]
).float()
CAMERA = (
    31.8,
    89.4,
    7.67,
)  # column = a + b x / (z + c), fitted to the middles of single objects; within a pixel or two


@dataclass(frozen=True)
class SceneSet:
    """Images and what they show; slots are objects from left to right, -1 where there is none.

    Args:
        images: uint8 [N, 3, 64, 64].
        labels: int64 [N, 64, 64], 0 sky, 1 floor, then SHAPES.
        shapes, colours, sizes: int64 [N, 3], indices of SHAPES, COLOURS and SIZES.
        floors: int64 [N], index of FLOORS.
        columns: float32 [N, 3], pixels, where the middle of each object lies, roughly.
    """

    images: Tensor
    labels: Tensor
    shapes: Tensor
    colours: Tensor
    sizes: Tensor
    floors: Tensor
    columns: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, index: Tensor) -> SceneSet:
        """Some of them."""
        return SceneSet(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def read_scenes(folder: Path, split: str) -> SceneSet:
    """Reads SPLIT.webp, SPLIT.npz and SPLIT.jsonl of a folder."""
    lines = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
    sheet = np.asarray(Image.open(folder / f"{split}.webp").convert("RGB"))
    tiles = sheet.reshape(-1, SIDE, COLUMNS, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)[: len(lines)]
    with np.load(folder / f"{split}.npz") as arrays:
        labels = torch.from_numpy(arrays["labels"].astype(np.int64))

    def slots(key: str, values: tuple[str, ...]) -> Tensor:
        found = torch.full((len(lines), MOST_OBJECTS), -1)
        for k, line in enumerate(lines):
            for place, one in enumerate(line["objects"]):
                found[k, place] = values.index(one[key])
        return found

    columns = torch.zeros(len(lines), MOST_OBJECTS)
    for k, line in enumerate(lines):
        for place, one in enumerate(line["objects"]):
            columns[k, place] = CAMERA[0] + CAMERA[1] * one["x"] / (one["z"] + CAMERA[2])
    return SceneSet(
        images=torch.from_numpy(tiles.copy()).permute(0, 3, 1, 2).contiguous(),
        labels=labels,
        shapes=slots("shape", SHAPES),
        colours=slots("color", COLOURS),
        sizes=slots("size", SIZES),
        floors=torch.tensor([FLOORS.index(line["floor"]) for line in lines]),
        columns=columns,
    )


def slot_masks(scenes: SceneSet) -> Tensor:
    """Returns the pixels of each slot, bool [N, 3, H, W].

    Pixels of a shape go to the object of that shape whose paint is nearest in direction; objects alike in both share theirs.
    """
    pixels = scenes.images.permute(0, 2, 3, 1).float()  # [N, H, W, 3]
    direction = torch.nn.functional.normalize(pixels, dim=-1) @ torch.nn.functional.normalize(PAINT, dim=-1).T
    found = []
    for slot in range(MOST_OBJECTS):
        shape, colour = scenes.shapes[:, slot], scenes.colours[:, slot]
        mask = scenes.labels == (shape + FIRST_SHAPE)[:, None, None]
        own = _of_colour(direction, colour)
        for other in range(MOST_OBJECTS):
            rival = (scenes.shapes[:, other] == shape) & (scenes.colours[:, other] != colour)
            mask &= ~rival[:, None, None] | (own >= _of_colour(direction, scenes.colours[:, other]))
        found.append(mask & (shape >= 0)[:, None, None])
    return torch.stack(found, 1)


def repainted(scenes: SceneSet, masks: Tensor, colours: Tensor) -> SceneSet:
    """Gives objects other colours: each pixel is so much paint and so much white light, and the paint is exchanged.

    Args:
        scenes: [N].
        masks: bool [N, 3, H, W], of `slot_masks`.
        colours: int64 [N, 3], wanted; -1 leaves a slot as it is. Slots alike in shape and colour must get the same.
    """
    images = scenes.images.float()
    kept = scenes.colours.clone()
    for slot in range(MOST_OBJECTS):
        chosen = (colours[:, slot] >= 0) & (scenes.colours[:, slot] >= 0)
        old, new = PAINT[scenes.colours[:, slot].clamp(min=0)], PAINT[colours[:, slot].clamp(min=0)]  # [N, 3]
        amount = _paint_amount(scenes.images.float(), old)[:, None]  # [N, 1, H, W]
        painted = (scenes.images.float() + amount * (new - old)[:, :, None, None]).clamp(0, 255)
        images = torch.where((masks[:, slot] & chosen[:, None, None])[:, None], painted, images)
        kept[chosen, slot] = colours[chosen, slot]
    return replace(scenes, images=images.round().byte(), colours=kept)


def turned(scenes: SceneSet, masks: Tensor, colours: Tensor) -> SceneSet:
    """As `repainted`, by hue: that of the wanted paint, saturation and value scaled as one paint is to the other."""
    images = scenes.images.clone()
    kept = scenes.colours.clone()
    hue, saturation, value = _to_hsv(scenes.images.float() / 255)
    paint_hue, paint_saturation, paint_value = _to_hsv(PAINT.T[None, :, :, None] / 255)
    for slot in range(MOST_OBJECTS):
        chosen = (colours[:, slot] >= 0) & (scenes.colours[:, slot] >= 0)
        old, new = scenes.colours[:, slot].clamp(min=0), colours[:, slot].clamp(min=0)

        def scale(of: Tensor, old: Tensor = old, new: Tensor = new) -> Tensor:
            return (of[0, new, 0] / of[0, old, 0])[:, None, None]

        made = _from_hsv(
            paint_hue[0, new, 0][:, None, None].expand_as(hue),
            (saturation * scale(paint_saturation)).clamp(0, 1),
            (value * scale(paint_value)).clamp(0, 1),
        )
        mask = masks[:, slot] & chosen[:, None, None]
        images = torch.where(mask[:, None], (made * 255).round().byte(), images)
        kept[chosen, slot] = colours[chosen, slot]
    return replace(scenes, images=images, colours=kept)


def held_out_colours(scenes: SceneSet) -> Tensor:
    """For each slot the colour in which no image shows its shape, int64 [N, 3]; -1 where the object is grey or missing."""
    wanted = torch.tensor([COLOURS.index(dict(HELD_OUT)[shape]) for shape in SHAPES])
    has_hue = (scenes.colours >= 0) & (scenes.colours != COLOURS.index("grey"))
    return torch.where(has_hue, wanted[scenes.shapes.clamp(min=0)], -1)


def _of_colour(direction: Tensor, colour: Tensor) -> Tensor:
    """direction [N, H, W, 8], colour [N] -> [N, H, W]."""
    index = colour.clamp(min=0)[:, None, None, None].expand(-1, *direction.shape[1:3], 1)
    return direction.gather(-1, index)[..., 0]


def _paint_amount(images: Tensor, paint: Tensor) -> Tensor:
    """The k of least squares pixel = k paint + w white, within 0..1.35: images [N, 3, H, W], paint [N, 3] -> [N, H, W]."""
    towards = paint - paint.mean(1, keepdim=True)  # what paint has and white has not
    norm = towards.square().sum(1)
    amount = torch.einsum("nchw,nc->nhw", images, towards) / norm.clamp(min=1)[:, None, None]
    grey = images.mean(1) / paint.mean(1)[:, None, None]  # white and grey paint cannot be told apart: all is paint
    return torch.where((norm < 100)[:, None, None], grey, amount).clamp(0, 1.35)


def _to_hsv(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """rgb [N, 3, H, W] in 0..1 -> hue in sixths 0..6, saturation, value, each [N, H, W]."""
    red, green, blue = rgb.unbind(1)
    value, low = rgb.amax(1), rgb.amin(1)
    spread = (value - low).clamp(min=1e-6)
    hue = torch.where(
        value == red,
        (green - blue) / spread % 6,
        torch.where(value == green, (blue - red) / spread + 2, (red - green) / spread + 4),
    )
    return hue, (value - low) / value.clamp(min=1e-6), value


def _from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Inverse of `_to_hsv`."""
    channels = []
    for offset in (5, 3, 1):
        k = (offset + hue) % 6
        channels.append(value * (1 - saturation * torch.minimum(k, 4 - k).clamp(0, 1)))
    return torch.stack(channels, 1)
