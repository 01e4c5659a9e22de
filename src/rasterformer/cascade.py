"""Diffusion models of pixels that were trained one by one, joined to one model: a cascade.

How it draws is in `drawing/stages.py`; how a pipeline trains all of its stages in `training/pipeline.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from rasterformer.diffusion.image_denoiser import ImageDenoiser
from rasterformer.drawing.stages import is_upscaler, stages_of
from rasterformer.errors import ConfigError
from rasterformer.system import System
from rasterformer.tasks import SuperResolution, source_shape, task_name


def join(base: System, upscalers: Sequence[System]) -> System:
    """Returns one model that draws by all stages: each upscaler enlarges what the one before has drawn.

    Args:
        base: draws the smallest images; or an upscaler itself, and then what comes of it is one.
        upscalers: in the order in which they draw. Each has learned super-resolution, of sources as large as the images of the
            one before. A cascade among all these counts as its stages.

    Returns:
        A new system that shares the weights of those given, which go where the base's are.

    Raises:
        ConfigError: there is no upscaler; a model is none that a cascade is made of; sizes, classes, or the parts of images that
            they learned from (`data.fit`, `data.trim`) do not fit. One message says all of it.

    Warns where they learned from images that were reduced in other ways: by a level or so, they draw other pictures than the next
    one has learned to enlarge.
    """
    stages = [replace(stage, upscalers=()) for system in (base, *upscalers) for stage in stages_of(system)]
    found = _problems(stages[0], stages[1:])
    if found:
        raise ConfigError("\n  ".join(["these models do not make a cascade:", *found]))
    for remark in _remarks(stages[0], stages[1:]):
        warnings.warn(remark, stacklevel=2)
    return replace(stages[0], upscalers=tuple(stages[1:])).to(base.device)


def _problems(base: System, upscalers: Sequence[System]) -> list[str]:
    found = [] if upscalers else ["There is no upscaler. Give at least one model of the task super_resolution."]
    if not isinstance(base.model, ImageDenoiser):
        found.append(
            f"{base.origin} is of system {base.recipe.system}; the first stage is a diffusion model of pixels, such as the "
            "recipe imagen-unet makes."
        )
    elif base.recipe.task is not None and not is_upscaler(base):
        found.append(
            f"{base.origin} has the task {task_name(base.recipe.task)}; the first stage draws from nothing, or has the task "
            "super_resolution."
        )
    before = base
    for upscaler in upscalers:
        task = upscaler.recipe.task
        if not is_upscaler(upscaler) or not isinstance(task, SuperResolution):
            kind = "no task" if task is None else f"the task {task_name(task)}"
            found.append(
                f"{upscaler.origin} is of system {upscaler.recipe.system} with {kind}; an upscaler is a diffusion model of "
                "pixels with the task super_resolution, such as the recipe imagen-upscaler makes."
            )
        else:
            side, needed = before.image_size, source_shape(task, upscaler.image_size).size
            if side != needed:
                found.append(
                    f"{upscaler.origin} enlarges images of {needed}x{needed} pixels, but {before.origin}, which is before it, "
                    f"draws {side}x{side}. Train one of them with another data.image_size or task.factor, or change their order."
                )
            if upscaler.model.num_classes and _classes(upscaler) != _classes(base):
                found.append(
                    f"{upscaler.origin} knows {_in_words(upscaler)}, but {base.origin} knows {_in_words(base)}. Both must know "
                    "the same, or the upscaler none."
                )
            found += [
                f"{upscaler.origin} was trained with data.{field} = {own!r}, but {base.origin} with {of_base!r}: the one would "
                "enlarge other parts of images than the other draws. Train one of them again."
                for field, own, of_base in _differences(upscaler, base, ("fit", "trim"))
            ]
        before = upscaler
    return found


def _remarks(base: System, upscalers: Sequence[System]) -> list[str]:
    """What may be, but is worth knowing."""
    return [
        f"{upscaler.origin} was trained with data.reduction = {own!r}, but {base.origin} with {of_base!r}: the small images that "
        "they have learned from differ a little, which may show. With 'area' for both they are the same."
        for upscaler in upscalers
        for _, own, of_base in _differences(upscaler, base, ("reduction",))
    ]


def _differences(one: System, other: System, names: Sequence[str]) -> list[tuple[str, object, object]]:
    """Fields of `data` by which they were trained that differ, with both values."""
    pairs = [(name, getattr(one.recipe.data, name), getattr(other.recipe.data, name)) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _classes(system: System) -> tuple[int, tuple[str, ...]]:
    return system.model.num_classes, system.class_names


def _in_words(system: System) -> str:
    names, count = system.class_names, system.model.num_classes
    if not names:
        return f"{count} classes" if count else "no classes"
    return f"the {count} classes {', '.join(names[:5])}{', ...' if count > 5 else ''}"
