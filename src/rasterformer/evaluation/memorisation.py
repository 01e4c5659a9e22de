"""Whether samples repeat training images: the nearest training source of each source, and its high-resolution partner.

A model that has learned its training images by heart answers a source with the partner of the nearest one it has seen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rasterformer.errors import ShapeError
from rasterformer.evaluation.similarity import ms_ssim

SOURCE_CHUNK, TRAINING_CHUNK = 256, 8192


@torch.inference_mode()
def nearest_neighbours(sources: Tensor, training_sources: Tensor) -> Tensor:
    """Returns the index of the nearest training source in L2, the first of equally near ones, int64 [N].

    Args:
        sources: uint8 [N, C, h, w].
        training_sources: uint8 [M, C, h, w], M >= 1.

    Raises:
        ShapeError: either has another shape or dtype, or there are none.
    """
    for name, images in (("sources", sources), ("training_sources", training_sources)):
        if images.dtype != torch.uint8 or images.ndim != 4 or images.numel() == 0:
            raise ShapeError(
                f"{name} have dtype {images.dtype} and shape {list(images.shape)}; uint8 [N, C, h, w], N >= 1, is needed."
            )
    if sources.shape[1:] != training_sources.shape[1:]:
        raise ShapeError(
            f"sources have shape {list(sources.shape)}, training_sources {list(training_sources.shape)}; "
            "images of one size are needed."
        )
    return torch.cat([_nearest(chunk.flatten(1).double(), training_sources) for chunk in sources.split(SOURCE_CHUNK)])


def memorisation(samples: Tensor, partners: Tensor) -> Tensor:
    """Returns the MS-SSIM, 0..100, of each sample and the partner of its nearest training source, float64 [N].

    100 would be a training image repeated. The paper has 44.3 as the mean over 50 samples on CelebA. What is usual for a data
    set is the same figure of the true originals.

    Args:
        samples: uint8 [N, 3, H, W].
        partners: uint8 [N, 3, H, W], training images at `nearest_neighbours`.

    Raises:
        ShapeError: samples or partners are not uint8 [N, 3, H, W], or their shapes differ.
        MissingExtraError: torchmetrics is not installed.

    Source: Parmar et al. 2018, section 5.3.
    """
    return 100 * ms_ssim(samples, partners)


def _nearest(sources: Tensor, training_sources: Tensor) -> Tensor:
    """float64 [n, d], uint8 [M, C, h, w] -> int64 [n]; float64 holds the squared distances exactly."""
    best = torch.full((len(sources),), torch.inf, dtype=torch.float64, device=sources.device)
    index = torch.zeros(len(sources), dtype=torch.int64, device=sources.device)
    for number, chunk in enumerate(training_sources.split(TRAINING_CHUNK)):
        training = chunk.flatten(1).double()
        distances = training.square().sum(dim=1) - 2 * sources @ training.T  # [n, chunk], less |source|^2
        here = distances.argmin(dim=1)
        distance = distances.gather(1, here[:, None])[:, 0]
        is_nearer = distance < best
        best = torch.where(is_nearer, distance, best)
        index = torch.where(is_nearer, here + number * TRAINING_CHUNK, index)
    return index
