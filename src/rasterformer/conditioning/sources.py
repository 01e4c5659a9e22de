"""A task and images -> their sources, each decided by its image and a random stream of its own.

The tasks are described in `tasks.py`; what is random about a mask is in `masks.py`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rasterformer.autoregressive.noise import stream_seed
from rasterformer.conditioning.edges import canny_edges
from rasterformer.conditioning.luma import luma
from rasterformer.conditioning.masks import random_mask
from rasterformer.conditioning.resize import check_images, reduce_area
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Cond
from rasterformer.tasks import Colourise, Denoise, Edges, Inpaint, Paired, SuperResolution, Task


def make_source(task: Task, images: Tensor, rng: Sequence[torch.Generator]) -> Cond:
    """Makes the sources of target images.

    Args:
        task: what a source is.
        images: uint8 [B, 3, H, W], on the CPU; square for `Inpaint`.
        rng: one generator per image, on the CPU. The source of image k depends on pixels and generator k alone.

    Returns:
        Cond with `source` uint8 [B, c, h, w] and, for `Inpaint`, `known` bool [B, H, W]; no label.

    Raises:
        ShapeError: images are no uint8 [B, 3, H, W], are not square for `Inpaint`, or cannot be divided by the factor of
            `SuperResolution`; or there are more or fewer generators than images.
        ConfigError: the task is `Paired`, whose sources are not made from the targets.
    """
    check_images(images, channels=3)
    if len(rng) != len(images):
        raise ShapeError(f"rng has {len(rng)} generators for {len(images)} images. Give one for each image.")
    match task:
        case SuperResolution(factor=factor):
            return Cond(source=reduce_area(images, factor))
        case Inpaint():
            return masked_source(images, _random_masks(task, images, rng))
        case Colourise():
            return Cond(source=luma(images))
        case Edges(sigma=sigma, low=low, high=high):
            return Cond(source=canny_edges(images, sigma=sigma, low=low, high=high))
        case Denoise():
            noisy = [_noisy(task, image, stream) for image, stream in zip(images, rng, strict=True)]
            return Cond(source=torch.stack(noisy) if noisy else images)
        case Paired():
            raise ConfigError(
                "task = paired has no sources that are made from the targets: they come from the second folder, "
                "task.source_path. Attach them with data.pairs.pair_images."
            )


def source_of_picture(task: Task, pictures: Tensor) -> Tensor:
    """Returns what the model is given when a user shows it pictures: their luma or edges, or the pictures as they are.

    Args:
        task: what the model was trained for.
        pictures: uint8 [B, 3, H, W], of any size.

    Returns:
        uint8 [B, c, H, W], c as `tasks.source_shape` says.

    Raises:
        ShapeError: pictures are of another shape or dtype.
    """
    match task:
        case Colourise():
            return luma(pictures)
        case Edges(sigma=sigma, low=low, high=high):
            return canny_edges(pictures, sigma=sigma, low=low, high=high)
        case _:
            check_images(pictures, channels=3)
            return pictures


def source_generators(seed: int, numbers: Sequence[int] | range, *, purpose: str) -> list[torch.Generator]:
    """Returns the random streams of some samples' sources: each depends on seed, purpose and its number alone.

    Args:
        seed: any integer.
        numbers: of the samples, since step 0 or from the beginning of a split.
        purpose: keeps streams with the same seed apart, for instance "training source" and "held-out source".
    """
    return [torch.Generator().manual_seed(stream_seed(seed, purpose, number)) for number in numbers]


def masked_source(images: Tensor, known: Tensor) -> Cond:
    """Returns the condition of in-painting: the images where they are known and 0 elsewhere, and what is known.

    Args:
        images: uint8 [B, 3, H, W].
        known: bool [B, H, W]; False where the image is to be drawn.

    Raises:
        ShapeError: images are no uint8 [B, 3, H, W], or known is no bool [B, H, W] of the same size.
        ConfigError: every pixel of an image is known, so that nothing is left to draw.
    """
    check_images(images, channels=3)
    size = (len(images), *images.shape[2:])
    if known.dtype != torch.bool or known.shape != size:
        raise ShapeError(
            f"known is {known.dtype} {list(known.shape)}. It must be torch.bool {list(size)}: a mask of the size of its "
            "image for each image."
        )
    complete = known.flatten(1).all(1).nonzero().flatten().tolist()
    if complete:
        raise ConfigError(
            f"The mask of image {complete[0]} says that every pixel is known ({len(complete)} of {len(known)} masks do). "
            "Mark at least one pixel as unknown."
        )
    return Cond(source=images * known[:, None], known=known)


def _random_masks(task: Inpaint, images: Tensor, rng: Sequence[torch.Generator]) -> Tensor:
    height, width = images.shape[2:]
    if height != width:
        raise ShapeError(f"images are {height}x{width} pixels. Random masks are made for square images: crop them.")
    masks = []
    for stream in rng:
        kind = task.masks[int(torch.randint(len(task.masks), (), generator=stream))]
        most = {"most_rectangles": task.most_rectangles, "most_strokes": task.most_strokes}
        masks.append(random_mask(kind, width, stream, **most))
    return torch.stack(masks) if masks else torch.empty((0, height, width), dtype=torch.bool)


def _noisy(task: Denoise, image: Tensor, rng: torch.Generator) -> Tensor:
    low, high = task.gaussian_std
    std = low + (high - low) * float(torch.rand((), generator=rng))
    noise = std * torch.randn(image.shape, generator=rng)
    noisy = (image + noise).round().clamp(0, 255).to(torch.uint8)  # [3, H, W]
    if task.jpeg_quality is None:
        return noisy
    worst, best = task.jpeg_quality
    return _through_jpeg(noisy, int(torch.randint(worst, best + 1, (), generator=rng)))


def _through_jpeg(image: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=quality)
    with Image.open(file) as decoded:
        return torch.from_numpy(np.array(decoded)).permute(2, 0, 1).contiguous()
