"""What a source image is to its target: the `task:` section of a recipe. No torch here.

A task makes a source from each training image (or finds it in a second folder), and the model learns p(target | source).
How sources are made is in `conditioning/`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class SuperResolution:
    """The source is the target reduced by averaging areas (paper, section 5.3: 8x8 -> 32x32).

    Args:
        factor: target pixels per source pixel, along each side.
    """

    factor: int = 4

    def problems(self, image_size: int) -> list[str]:
        """Returns what is wrong with it for targets of `image_size` pixels, one sentence each."""
        if self.factor < 2:
            return [f"task.factor = {self.factor} must be at least 2."]
        if image_size % self.factor:
            divisors = [d for d in range(2, image_size + 1) if image_size % d == 0]
            return [
                f"task.factor = {self.factor} does not divide data.image_size = {image_size}. "
                f"Use one of {', '.join(map(str, divisors))}, or another data.image_size."
            ]
        return []


@dataclass(frozen=True)
class Inpaint:
    """The source is the target with a part of it missing; known pixels stay exactly as they are.

    Each training image gets one kind of mask, drawn from `masks`.

    Args:
        masks: `rectangles`: one to `most_rectangles` of them, each side a quarter to a half of the image's; `strokes`: of a
            brush, one to `most_strokes`; `border`: all outside a rectangle; `half`: left, right, upper or lower half.
        most_rectangles, most_strokes: see `masks`.
    """

    masks: tuple[Literal["rectangles", "strokes", "border", "half"], ...] = ("rectangles", "strokes", "border", "half")
    most_rectangles: int = 2
    most_strokes: int = 4

    def problems(self, image_size: int) -> list[str]:
        """Returns what is wrong with it for targets of `image_size` pixels, one sentence each."""
        found = [] if self.masks else ["task.masks is empty. Name at least one kind of mask."]
        if image_size < 4:
            found.append(
                f"data.image_size = {image_size} must be at least 4 pixels for task inpaint, whose masks need them."
            )
        for name in ("most_rectangles", "most_strokes"):
            if getattr(self, name) < 1:
                found.append(f"task.{name} = {getattr(self, name)} must be at least 1.")
        return found


@dataclass(frozen=True)
class Colourise:
    """The source is the target in grey (luma of ITU-R BT.601, as Pillow's `L`)."""

    def problems(self, image_size: int) -> list[str]:
        """Returns what is wrong with it for targets of `image_size` pixels, one sentence each."""
        return []


@dataclass(frozen=True)
class Edges:
    """The source is the target's edges (Canny 1986): 255 on an edge and 0 elsewhere.

    Args:
        sigma: of the Gaussian that smooths the image first, pixels.
        low, high: sizes of the gradient from which an edge goes on and at which it begins; a sharp step from black to white
            has 1.6 at sigma 2.
    """

    sigma: float = 2.0
    low: float = 0.1
    high: float = 0.2

    def problems(self, image_size: int) -> list[str]:
        """Returns what is wrong with it for targets of `image_size` pixels, one sentence each."""
        found = [] if 0.0 < self.sigma < math.inf else [f"task.sigma = {self.sigma} must be above 0 pixels and finite."]
        if not 0.0 < self.low <= self.high:
            found.append(f"task.low = {self.low} must be above 0 and not above task.high = {self.high}.")
        return found


@dataclass(frozen=True)
class Denoise:
    """The source is the target with noise.

    Args:
        gaussian_std: of the noise added to each value, in grey levels: drawn uniformly between the two for each image.
        jpeg_quality: of a JPEG made of the noisy image: drawn uniformly between the two for each image. None: no JPEG.
    """

    gaussian_std: tuple[float, float] = (0.0, 50.0)
    jpeg_quality: tuple[int, int] | None = None

    def problems(self, image_size: int) -> list[str]:
        """Returns what is wrong with it for targets of `image_size` pixels, one sentence each."""
        found = []
        low, high = self.gaussian_std
        if not 0.0 <= low <= high:
            found.append(
                f"task.gaussian_std = {self.gaussian_std} must be two numbers, 0 or more, the smaller one first."
            )
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality[0] <= self.jpeg_quality[1] <= 95:
            found.append(
                f"task.jpeg_quality = {self.jpeg_quality} must be two numbers in 1..95, the smaller one first."
            )
        if high == 0 and self.jpeg_quality is None:
            found.append(
                "task.gaussian_std is 0 and task.jpeg_quality is null: the source would be the target. Set one."
            )
        return found


@dataclass(frozen=True)
class Paired:
    """Sources are the images of a second folder that have the same names as the targets, up to the ending.

    Args:
        source_path: that folder. None: must be given.
        source_size: side of the sources, pixels; divides that of the targets. None: that of the targets.
        source_reduction: of the sources, as `data.reduction` is of the targets; `nearest` where they are label maps.
    """

    source_path: str | None = None
    source_size: int | None = None
    source_reduction: Literal["auto", "area", "nearest"] = "auto"

    def problems(self, image_size: int) -> list[str]:
        """Returns what is wrong with it for targets of `image_size` pixels, one sentence each."""
        found = []
        if self.source_path is None:
            found.append("task.source_path is missing: the folder with the source images.")
        if self.source_size is not None and (self.source_size < 1 or image_size % self.source_size):
            found.append(
                f"task.source_size = {self.source_size} must divide data.image_size = {image_size}, "
                "or be null, for the same size."
            )
        return found


Task = SuperResolution | Inpaint | Colourise | Edges | Denoise | Paired

TASKS: dict[str, type[Any]] = {
    "super_resolution": SuperResolution,
    "inpaint": Inpaint,
    "colourise": Colourise,
    "edges": Edges,
    "denoise": Denoise,
    "paired": Paired,
}


def task_name(task: Task) -> str:
    """Returns the name that a recipe calls it by."""
    return next(name for name, kind in TASKS.items() if isinstance(task, kind))


@dataclass(frozen=True)
class SourceShape:
    """What the source images of a task look like.

    Args:
        channels: 3, or 1 for grey and for edges.
        size: side, pixels.
        has_mask: whether some of its pixels may be missing, and the others are pixels of the target.
    """

    channels: int
    size: int
    has_mask: bool


def source_shape(task: Task, image_size: int) -> SourceShape:
    """Returns the shape of a task's sources for targets of `image_size` pixels."""
    match task:
        case SuperResolution(factor=factor):
            return SourceShape(3, image_size // factor, False)
        case Inpaint():
            return SourceShape(3, image_size, True)
        case Colourise() | Edges():
            return SourceShape(1, image_size, False)
        case Denoise():
            return SourceShape(3, image_size, False)
        case Paired(source_size=size):
            return SourceShape(3, size or image_size, False)
