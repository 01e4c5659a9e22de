"""The images that a recipe names, as its model sees them: at its size and, for a paired task, with their sources."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from rasterformer.data.imageset import ImageSet
from rasterformer.data.opening import open_images
from rasterformer.data.pairs import pair_images
from rasterformer.errors import ConfigError
from rasterformer.recipe import Recipe
from rasterformer.tasks import Paired

if TYPE_CHECKING:
    from rasterformer.system import System


def open_images_of(system: System, split: Literal["train", "test", "all"], *, path: str | None = None) -> ImageSet:
    """Opens one split of the images that a model was trained with: of a cascade, those of its last stage, which are the largest.

    Args:
        system: the model.
        split, path: as `open_recipe_images`.

    Raises:
        ConfigError, DataError: as `open_recipe_images`.
    """
    return open_recipe_images((system.upscalers[-1] if system.upscalers else system).recipe, split, path=path)


def open_recipe_images(recipe: Recipe, split: Literal["train", "test", "all"], *, path: str | None = None) -> ImageSet:
    """Opens one split.

    Args:
        recipe: its `data` and `task` sections are read.
        split: which part.
        path: other images. None: those of the recipe.

    Raises:
        ConfigError: neither the recipe nor `path` names images.
        DataError: the images, or the sources of a paired task, cannot be used.
    """
    data = recipe.data
    path = path if path is not None else data.path
    if path is None:
        raise ConfigError("data.path is not set. Give your images: --data DIR, or an embedded set: --data toonheads.")
    images = open_images(
        path,
        image_size=data.image_size,
        fit=data.fit,
        trim=data.trim,
        reduction=data.reduction,
        split=split,
        holdout_fraction=data.holdout_fraction,
    )
    if not isinstance(recipe.task, Paired):
        return images
    assert recipe.task.source_path is not None, "a recipe without one is refused"
    size = recipe.task.source_size or data.image_size
    sources = pair_images(
        images,
        recipe.task.source_path,
        source_size=size,
        fit=data.fit,
        trim=data.trim,
        reduction=recipe.task.source_reduction,
    )
    both = hashlib.sha256(f"{images.fingerprint} {sources.fingerprint}".encode()).hexdigest()
    return replace(images, sources=sources, fingerprint=both)
