"""What samples have in common with their source and with each other: consistency and diversity.

A model of high-resolution images given low-resolution ones should give many images, each of which is the source again when
it is reduced.
"""

from __future__ import annotations

from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from rasterformer.conditioning.resize import reduce_area, reduce_bicubic
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.evaluation.similarity import ms_ssim

REDUCTIONS = {"area": reduce_area, "bicubic": reduce_bicubic}


def consistency(samples: Tensor, sources: Tensor, factor: int, reduce: Literal["area", "bicubic"]) -> Tensor:
    """Returns the mean over values of (source - reduced sample)^2, values scaled to 0..1, float64 [N, n].

    `grey_levels` gives the root of it in grey levels: 0.0001 is 2.55 of 255. The paper's figure, 0.01
    after bicubic reduction, is an L2 distance on a scale of its own: it is not known to compare with this one.

    Args:
        samples: uint8 [N, n, 3, h * factor, w * factor], n samples of each source.
        sources: uint8 [N, 3, h, w].
        factor: pixels of a sample per pixel of the source, along each side.
        reduce: how samples are reduced; sources are made by `area`.

    Raises:
        ShapeError: samples or sources have another shape or dtype, or factor does not divide the samples' sides.
        ConfigError: reduce is neither of the two.

    Source: Parmar et al. 2018, section 5.3.
    """
    if reduce not in REDUCTIONS:
        raise ConfigError(f"reduce = {reduce!r} must be one of {', '.join(REDUCTIONS)}.")
    check_samples(samples)
    reduced: Tensor = REDUCTIONS[reduce](samples.flatten(0, 1), factor).unflatten(
        0, samples.shape[:2]
    )  # [N, n, 3, h, w]
    if sources.dtype != torch.uint8 or sources.shape != reduced[:, 0].shape:
        raise ShapeError(
            f"sources have dtype {sources.dtype} and shape {list(sources.shape)}; for samples {list(samples.shape)} and "
            f"factor {factor}, uint8 {list(reduced[:, 0].shape)} is needed."
        )
    return ((reduced.double() - sources[:, None].double()) / 255).square().mean(dim=(2, 3, 4))


def grey_levels(mean_square: Tensor) -> float:
    """Returns the root of the mean of float [...] squared differences of values in 0..1, in grey levels (0..255)."""
    return 255 * float(mean_square.double().mean().sqrt())


def diversity(samples: Tensor) -> Tensor:
    """Returns how much samples of the same source differ: the mean over pairs of their RMS difference, float64 [N].

    In grey levels: the root of the mean over values of the squared difference, 0..255.

    Args:
        samples: uint8 [N, n, 3, H, W], n >= 2.

    Raises:
        ShapeError: samples have another shape or dtype, or n is below 2.
    """
    values = _several(samples).double()
    differences = [
        (values[:, i] - values[:, j]).square().mean(dim=(1, 2, 3)).sqrt() for i, j in _pairs(samples.shape[1])
    ]
    return torch.stack(differences).mean(dim=0)


def pairwise_ms_ssim(samples: Tensor) -> Tensor:
    """Returns the mean MS-SSIM over pairs of samples of the same source, 0..1, float64 [N]; low where they differ.

    Args:
        samples: uint8 [N, n, 3, H, W], n >= 2.

    Raises:
        ShapeError: samples have another shape or dtype, or n is below 2.
        MissingExtraError: torchmetrics is not installed.
    """
    samples = _several(samples)
    return torch.stack([ms_ssim(samples[:, i], samples[:, j]) for i, j in _pairs(samples.shape[1])]).mean(dim=0)


def check_samples(samples: Tensor) -> None:
    """Checks that samples are uint8 [N, n, 3, H, W], none of it 0.

    Raises:
        ShapeError: they are not.
    """
    if samples.dtype != torch.uint8 or samples.ndim != 5 or samples.shape[2] != 3 or samples.numel() == 0:
        raise ShapeError(
            f"samples have dtype {samples.dtype} and shape {list(samples.shape)}; uint8 [N, n, 3, H, W] is needed."
        )


def _several(samples: Tensor) -> Tensor:
    check_samples(samples)
    if samples.shape[1] < 2:
        raise ShapeError(f"samples have shape {list(samples.shape)}; diversity needs n >= 2 samples of each source.")
    return samples


def _pairs(count: int) -> list[tuple[int, int]]:
    return list(combinations(range(count), 2))
