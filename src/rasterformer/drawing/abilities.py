"""What a model can be asked for: every refusal says what the model is, and what can be done instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from rasterformer.errors import ConfigError, ShapeError
from rasterformer.tasks import TASKS, Task, task_name

if TYPE_CHECKING:
    from rasterformer.system import System


def need_source(system: System) -> Task:
    """Returns what the model makes of source images.

    Raises:
        ConfigError: it takes none.
    """
    if system.task is None:
        raise ConfigError(
            "this model makes images from nothing and takes no source image. Train one with a task, such as the "
            "recipe upscale, or use sample or complete."
        )
    return system.task


def need_no_source(system: System, what: str) -> None:
    """Refuses `what` to a model that draws from sources only.

    Raises:
        ConfigError: it was trained for a task.
    """
    if system.recipe.task is not None:
        raise ConfigError(
            f"{what} draws images from nothing, but this model (task {task_name(system.recipe.task)}) needs a source for "
            "each image. Use upscale, restore, colourise, denoise or transform."
        )


def need_task(system: System, what: str, kind: type[Task]) -> None:
    """Refuses `what` to a model of another task.

    Raises:
        ConfigError: its task is none or another one.
    """
    task = need_source(system)
    if not isinstance(task, kind):
        needed = next(name for name, each in TASKS.items() if each is kind)
        raise ConfigError(
            f"{what} needs a model of the task {needed}, but this one was trained for {task_name(task)}. Use transform, "
            "which does what the model was trained for, or another model."
            if system.recipe.task is not None
            else f"{what} needs a model of the task {needed}, but this one was trained for images alone. Use restore or "
            "vary, which work without a task, or another model."
        )


def need_whole(system: System, pictures: Sequence[Tensor], side: int, *, tile: bool, overlap: int | None) -> None:
    """Refuses tiles to a model that does not draw in any: over codes a window slides, and diffusion draws all pixels at once.

    Args:
        system: the model.
        pictures: its sources [c, h, w].
        side: of sources in training, pixels.
        tile: whether larger ones are allowed.
        overlap: of tiles, if the user said so.

    Raises:
        ConfigError: an overlap was given, or a picture is larger than the model's sources and `tile` is False.
        ShapeError: a picture is smaller than they are.
    """
    way = "slides a window. Use window_stride" if system.tokenizer is not None else "draws pictures whole. Leave it out"
    if overlap is not None:
        raise ConfigError(f"overlap = {overlap} is for models that draw pixel by pixel; this one {way}.")
    if not tile and (large := [picture for picture in pictures if max(picture.shape[1:]) > side]):
        raise ConfigError(
            f"a source of {large[0].shape[1]}x{large[0].shape[2]} pixels is larger than the model's {side}x{side}. Allow larger "
            "ones (--tile, tile=True), or reduce it."
        )
    small = [picture for picture in pictures if min(picture.shape[1:]) < side]
    if small and system.tokenizer is None:  # of codes, the window has its own say
        raise ShapeError(
            f"source is {small[0].shape[2]}x{small[0].shape[1]} pixels; this model needs at least {side}x{side}."
        )
