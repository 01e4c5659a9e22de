"""How near an image is to another one: PSNR, SSIM and MS-SSIM of each pair, by torchmetrics (extra `eval`).

None of them tracks how real a sample looks, as Parmar et al. 2018 report: a blurred image is nearer to the original than a
sharp one with other details.
"""

from __future__ import annotations

import importlib.util
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rasterformer.errors import MissingExtraError, ShapeError

MS_SSIM_SIDE = 176  # pixels: five scales of an 11-pixel window
SSIM_SIDE = 11
CHUNK_PIXELS = 1 << 19  # of the images compared at once


@torch.inference_mode()
def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Returns the peak signal-to-noise ratio of each pair in dB, float64 [N]; infinite where the two are equal.

    Args:
        a, b: uint8 [N, 3, H, W].

    Raises:
        ShapeError: a or b is not uint8 [N, 3, H, W], or their shapes differ.
        MissingExtraError: torchmetrics is not installed.
    """
    _check_pair(a, b)
    require_torchmetrics()
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return peak_signal_noise_ratio(a.double(), b.double(), data_range=255.0, reduction="none", dim=(1, 2, 3))


@torch.inference_mode()
def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Returns the structural similarity of each pair, at most 1, float64 [N]: Gaussian window of 11 pixels, sigma 1.5.

    Args:
        a, b: uint8 [N, 3, H, W], H and W at least 11.

    Raises:
        ShapeError: a or b is not uint8 [N, 3, H, W], their shapes differ, or a side is below 11 pixels.
        MissingExtraError: torchmetrics is not installed.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity".
    """
    _check_pair(a, b)
    if min(a.shape[2:]) < SSIM_SIDE:
        raise ShapeError(
            f"images have shape {list(a.shape)}; SSIM's window needs sides of at least {SSIM_SIDE} pixels."
        )
    require_torchmetrics()
    from torchmetrics.functional.image import structural_similarity_index_measure

    figures = []
    for x, y in _chunks(a, b, pixels_per_image=a.shape[2] * a.shape[3]):
        figure = structural_similarity_index_measure(_unit(x), _unit(y), data_range=1.0, reduction="none")
        assert isinstance(figure, Tensor), "a pair of tensors is returned only where the full image is asked for"
        figures.append(figure.double())
    return torch.cat(figures)


@torch.inference_mode()
def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Returns the multi-scale structural similarity of each pair, 0..1, float64 [N], with its usual five scales.

    Five scales need 176 pixels. Images with a smaller side are first enlarged bilinearly by the smallest whole factor
    that reaches it (32 pixels: 6-fold, to 192): figures of images of different sizes do not compare.
    Where the contrast of a scale is negative on average, it counts as 0.

    Args:
        a, b: uint8 [N, 3, H, W].

    Raises:
        ShapeError: a or b is not uint8 [N, 3, H, W], or their shapes differ.
        MissingExtraError: torchmetrics is not installed.

    Source: Wang et al. 2003, "Multiscale structural similarity for image quality assessment".
    """
    _check_pair(a, b)
    require_torchmetrics()
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    factor = ms_ssim_factor(*a.shape[2:])
    figures = [
        multiscale_structural_similarity_index_measure(
            _enlarged(_unit(x), factor), _enlarged(_unit(y), factor), data_range=1.0, reduction="none"
        )
        for x, y in _chunks(a, b, pixels_per_image=a.shape[2] * a.shape[3] * factor**2)
    ]
    return torch.cat([figure.double() for figure in figures])


def ms_ssim_factor(height: int, width: int) -> int:
    """Returns the whole factor by which `ms_ssim` enlarges images of this size, in pixels; 1: not at all."""
    return math.ceil(MS_SSIM_SIDE / min(height, width))


def require_torchmetrics() -> None:
    """Checks that torchmetrics is there.

    Raises:
        MissingExtraError: torchmetrics is not installed.
    """
    if importlib.util.find_spec("torchmetrics") is None:
        raise MissingExtraError(
            "PSNR, SSIM and MS-SSIM need the package torchmetrics, which is not installed. "
            "Install it with: pip install 'rasterformer[eval]'"
        )


def _enlarged(images: Tensor, factor: int) -> Tensor:
    if factor == 1:
        return images
    return F.interpolate(images, scale_factor=float(factor), mode="bilinear", align_corners=False)


def _unit(images: Tensor) -> Tensor:
    return images.float() / 255


def _chunks(a: Tensor, b: Tensor, *, pixels_per_image: int) -> list[tuple[Tensor, Tensor]]:
    size = max(1, CHUNK_PIXELS // pixels_per_image)
    return list(zip(a.split(size), b.split(size), strict=True))


def _check_pair(a: Tensor, b: Tensor) -> None:
    for name, images in (("a", a), ("b", b)):
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
            raise ShapeError(
                f"{name} has dtype {images.dtype} and shape {list(images.shape)}; uint8 [N, 3, H, W], N >= 1, is needed."
            )
    if a.shape != b.shape:
        raise ShapeError(f"a has shape {list(a.shape)}, b {list(b.shape)}; pairs of images of one size are needed.")
