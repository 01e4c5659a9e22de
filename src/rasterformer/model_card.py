"""What a model says of itself: the README.md beside its weights, and one line for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import nn

from rasterformer.codecs.continuous import ContinuousCodec
from rasterformer.recipe_file import recipe_hash
from rasterformer.tasks import Inpaint, task_name

if TYPE_CHECKING:
    from rasterformer.system import System


def one_line(kind: str, system: str, image_size: int, network: nn.Module, *, steps: int, origin: str) -> str:
    """`System(image_transformer, 32x32, 1,234 parameters, 10 steps, from runs/a)`: the repr of a model or a tokenizer."""
    weights = sum(p.numel() for p in network.parameters())
    return f"{kind}({system}, {image_size}x{image_size}, {weights:,} parameters, {steps:,} steps, from {origin})"


def model_card(system: System) -> str:
    """The README.md of a saved model: what it is, what it was trained on, how to use it."""
    classes = f"- classes: {', '.join(system.class_names)}\n" if system.class_names else ""
    task, given, text = system.recipe.task, "", 'text="words", ' if system.takes_text else ""
    use = f"model.sample(16, {text}seed=0)"
    if task is not None:
        given = f"given the source (task {task_name(task)}), "
        mask = "known=masks, " if isinstance(task, Inpaint) else ""
        use = f"model.transform(pictures, {mask}{text}n=4, seed=0)"
    return (
        f"# {system.recipe.system}, {system.image_size}x{system.image_size}\n\n"
        f"{_stages(system)}"
        f"- likelihood: {'an upper bound' if system.likelihood_bound == 'upper' else 'exact'}, {given}"
        f"{_likelihood_of(system)}\n"
        f"{classes}\n"
        "```python\nimport rasterformer\n\n"
        f'model = rasterformer.load("this folder")\n{use}\n```\n'
    )


def _stages(system: System) -> str:
    """What was trained: a line for a model, and one for each stage of a cascade."""
    stages = [system, *system.upscalers]
    lines = []
    for number, stage in enumerate(stages, start=1):
        size, weights = stage.recipe.data.image_size, sum(p.numel() for p in stage.model.parameters())
        which = f"stage {number} of {len(stages)}, {size}x{size}: " if system.upscalers else ""
        lines.append(
            f"- {which}{weights:,} parameters, {stage.steps:,} optimiser steps, recipe {recipe_hash(stage.recipe)}\n"
            f"- {which}trained on: {stage.recipe.data.path}{_texts(stage)}\n"
        )
    return "".join(lines)


def _texts(stage: System) -> str:
    if stage.recipe.text is None:
        return ""
    return f", with captions, read by {stage.recipe.text.encoder} ({stage.trained_on_text or 'not trained yet'})"


def _likelihood_of(system: System) -> str:
    if isinstance(system.codec, ContinuousCodec):
        stages = f", the sum of {1 + len(system.upscalers)} stages" if system.upscalers else ""
        return (
            f"over {system.num_dims:,} dimensions{stages}; `rasterformer evaluate` estimates it. What was trained is a squared "
            "error, so that a better bound is not always a better picture"
        )
    if system.tokenizer is None:
        return f"{system.recipe.model.distribution}, over {system.num_dims:,} dimensions"
    tokenizer = system.tokenizer
    codes = (
        f"{math.prod(system.codec.x_shape):,} codes of {system.codec.vocab_size:,} (tokenizer {tokenizer.fingerprint})"
    )
    return f"of {codes}, not of pixels"
