"""What a model can be asked for: every refusal says what the model is, and what can be done instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from rasterformer.code_images import CodeOptions
from rasterformer.errors import ConfigError
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


def need_window(system: System, pictures: Sequence[Tensor], *, tile: bool, overlap: int | None) -> None:
    """Refuses tiles to a model over codes, which draws larger pictures [c, h, w] by a sliding window.

    Raises:
        ConfigError: an overlap was given, or a picture is larger than the model's sources and `tile` is False.
    """
    shape = system.source_shape
    assert shape is not None, "a task has sources"
    if overlap is not None:
        raise ConfigError(f"overlap = {overlap} is for models of pixels; this one slides a window. Use window_stride.")
    if not tile and (large := [picture for picture in pictures if max(picture.shape[1:]) > shape.size]):
        raise ConfigError(
            f"a source of {large[0].shape[1]}x{large[0].shape[2]} pixels is larger than the model's {shape.size}x"
            f"{shape.size}. Let it be drawn by a sliding window, or reduce it."
        )


def need_codes(system: System, more: CodeOptions) -> None:
    """Refuses what only models over codes can do, and what this one cannot.

    Raises:
        ConfigError: `more` says such a thing.
    """
    if system.tokenizer is None and more != CodeOptions():
        raise ConfigError(
            "size, guidance_scale, window_stride, steps, order and purity_weight are for models over codes, and this one "
            "draws pixels."
        )
    if not system.is_diffusion and more != CodeOptions(more.size, more.guidance_scale, more.window_stride):
        raise ConfigError(
            "steps, order and purity_weight are for diffusion models, and this one draws code by code. Leave them out."
        )
    if more.guidance_scale != 1.0 and system.recipe.model.drop_condition_prob == 0.0:
        raise ConfigError(
            f"guidance_scale = {more.guidance_scale} needs a model that has seen images without their condition. Train it "
            "with model.drop_condition_prob = 0.1, or leave the option out."
        )
