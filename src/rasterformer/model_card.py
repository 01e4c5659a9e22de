"""What a model says of itself: the README.md beside its weights, and one line for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import nn

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
    weights = sum(p.numel() for p in system.model.parameters())
    classes = f"- classes: {', '.join(system.class_names)}\n" if system.class_names else ""
    task, given, text = system.recipe.task, "", 'text="words", ' if system.takes_text else ""
    use = f"model.sample(16, {text}seed=0)"
    if task is not None:
        given = f"given the source (task {task_name(task)}), "
        mask = "known=masks, " if isinstance(task, Inpaint) else ""
        use = f"model.transform(pictures, {mask}n=4, seed=0)"
    return (
        f"# {system.recipe.system}, {system.image_size}x{system.image_size}\n\n"
        f"- {weights:,} parameters, {system.steps:,} optimiser steps, recipe {recipe_hash(system.recipe)}\n"
        f"- likelihood: {'an upper bound' if system.likelihood_bound == 'upper' else 'exact'}, {given}"
        f"{_likelihood_of(system)}\n"
        f"- trained on: {system.recipe.data.path}\n{classes}\n"
        "```python\nimport rasterformer\n\n"
        f'model = rasterformer.load("this folder")\n{use}\n```\n'
    )


def _likelihood_of(system: System) -> str:
    if system.tokenizer is None:
        return f"{system.recipe.model.distribution}, over {system.num_dims:,} dimensions"
    tokenizer = system.tokenizer
    codes = (
        f"{math.prod(system.codec.x_shape):,} codes of {system.codec.vocab_size:,} (tokenizer {tokenizer.fingerprint})"
    )
    return f"of {codes}, not of pixels"
