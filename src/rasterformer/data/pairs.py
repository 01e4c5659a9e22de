"""Two folders of images, the targets and their sources: partners have the same name, up to the ending."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

import torch
from torch import Tensor

from rasterformer.data.decode import SUFFIXES
from rasterformer.data.fit import Fit, Reduction
from rasterformer.data.imageset import ImageSet
from rasterformer.data.opening import open_images
from rasterformer.errors import DataError

_NAMED = 3  # names in a message


def pair_images(
    targets: ImageSet,
    source_path: str,
    *,
    source_size: int,
    fit: Fit,
    trim: tuple[int, int] = (0, 0),
    reduction: Reduction = "auto",
    max_memory_bytes: int = 2 << 30,
) -> ImageSet:
    """Finds the partner of each target in a second folder: `a/b.png` and `a/b.jpg` are partners.

    Attach the result with `dataclasses.replace(targets, sources=...)`.

    Args:
        targets: the images to be drawn.
        source_path: the second folder; sources without a target are passed over.
        source_size: side of the sources, pixels.
        fit, trim, reduction, max_memory_bytes: as in `open_images`; trim in pixels of the sources as they are stored.

    Returns:
        ImageSet in which image k is the partner of image k of `targets`.

    Raises:
        ConfigError: source_size is below 1.
        DataError: the second folder cannot be opened, two sources have the same name up to the ending, or a target has
            no partner.
    """
    try:
        found = open_images(
            source_path,
            image_size=source_size,
            fit=fit,
            trim=trim,
            reduction=reduction,
            max_memory_bytes=max_memory_bytes,
        )
    except DataError as error:  # it speaks of the folder of the targets
        said = str(error).replace("data.path", "task.source_path").replace("data.image_size", "task.source_size")
        raise DataError(said) from error
    places = _places(found, source_path)
    missing = [name for name in targets.names if _stem(name) not in places]
    if missing:
        raise DataError(
            f"task.source_path = {source_path!r}: {len(missing)} of {len(targets)} targets have no partner there, the first "
            f"{_listed(missing)}.{_passed_over(found)} Put an image with the same folder and name, up to the ending, there "
            "for each of them, or take these targets out of data.path."
        )
    return _chosen(found, torch.tensor([places[_stem(name)] for name in targets.names]), split=targets.split)


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in SUFFIXES else name


def _places(found: ImageSet, source_path: str) -> dict[str, int]:
    places: dict[str, int] = {}
    for k, name in enumerate(found.names):
        first = places.setdefault(_stem(name), k)
        if first != k:
            raise DataError(
                f"task.source_path = {source_path!r}: {found.names[first]!r} and {name!r} have the same name up to the "
                "ending, so that it is not known which of them is the source. Remove or rename one of them."
            )
    return places


def _passed_over(found: ImageSet) -> str:
    if not found.skipped:
        return ""
    name, reason = found.skipped[0]
    return f" {len(found.skipped)} images there could not be used, the first {name!r}: {reason}."


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")


def _chosen(found: ImageSet, index: Tensor, *, split: str) -> ImageSet:
    """The images of `index`, in its order."""
    numbers, pixels = index.tolist(), found.pixels
    return replace(
        found,
        split=split,
        split_origin="the partners of the targets",
        labels=None if found.labels is None else found.labels[index],
        captions=None if found.captions is None else tuple(found.captions[k] for k in numbers),
        num_images=len(numbers),
        pixels=pixels[index] if isinstance(pixels, Tensor) else lambda k: pixels(numbers[k]),
        names=tuple(found.names[k] for k in numbers),
    )
