"""PSNR, SSIM and MS-SSIM against their definitions, written out with loops and scipy."""

import math
import sys

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from rasterformer.errors import MissingExtraError, ShapeError
from rasterformer.evaluation.similarity import ms_ssim, ms_ssim_factor, psnr, ssim

C1, C2 = 0.01**2, 0.03**2  # Wang et al. 2004, for values in 0..1
BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003
MEASURES = (psnr, ssim, ms_ssim)


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def noisy(images: torch.Tensor, seed: int = 1) -> torch.Tensor:
    noise = 20 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + noise).clamp(0, 255).to(torch.uint8)


def window() -> np.ndarray:
    weights = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    return weights / weights.sum()


def test_psnr_is_its_definition() -> None:
    a = random_images(3, 3, 5, 4)
    b = noisy(a)
    for k in range(3):
        mean = sum((int(x) - int(y)) ** 2 for x, y in zip(a[k].flatten(), b[k].flatten(), strict=True)) / 60
        assert psnr(a, b)[k].item() == pytest.approx(10 * math.log10(255**2 / mean), abs=1e-5)


def test_psnr_of_equal_images_is_infinite() -> None:
    a = random_images(2, 3, 4, 4)
    assert psnr(a, a).tolist() == [math.inf, math.inf]


def test_ssim_is_its_definition_window_by_window() -> None:
    a = random_images(1, 3, 14, 12)
    b = noisy(a)
    kernel = np.outer(window(), window())
    figures = []
    for x, y in zip(a[0].numpy() / 255, b[0].numpy() / 255, strict=True):
        x, y = np.pad(x, 5, mode="reflect"), np.pad(y, 5, mode="reflect")
        for row in range(14):
            for column in range(12):
                p, q = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
                mean_p, mean_q = (kernel * p).sum(), (kernel * q).sum()
                var_p, var_q = (kernel * (p - mean_p) ** 2).sum(), (kernel * (q - mean_q) ** 2).sum()
                both = (kernel * (p - mean_p) * (q - mean_q)).sum()
                luminance = (2 * mean_p * mean_q + C1) / (mean_p**2 + mean_q**2 + C1)
                figures.append(luminance * (2 * both + C2) / (var_p + var_q + C2))
    assert ssim(a, b).item() == pytest.approx(np.mean(figures), abs=1e-5)  # float32


def filtered(image: np.ndarray) -> np.ndarray:
    for axis in (0, 1):
        image = scipy.ndimage.correlate1d(image, window(), axis=axis, mode="mirror")
    return image


def halved(images: np.ndarray) -> np.ndarray:
    images = images[:, : images.shape[1] // 2 * 2, : images.shape[2] // 2 * 2]
    return (images[:, ::2, ::2] + images[:, 1::2, ::2] + images[:, ::2, 1::2] + images[:, 1::2, 1::2]) / 4


def ms_ssim_reference(a: np.ndarray, b: np.ndarray) -> float:
    """[3, H, W] in 0..1; Wang et al. 2003, equation 7. Contrast is read 5 pixels from the border, as torchmetrics does."""
    product = 1.0
    for scale, beta in enumerate(BETAS):
        contrasts, similarities = [], []
        for x, y in zip(a, b, strict=True):
            mean_x, mean_y = filtered(x), filtered(y)
            var_x, var_y = filtered(x * x) - mean_x**2, filtered(y * y) - mean_y**2
            contrast = (2 * (filtered(x * y) - mean_x * mean_y) + C2) / (var_x + var_y + C2)
            contrasts.append(contrast[5:-5, 5:-5])
            similarities.append(contrast * (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1))
        product *= np.mean(similarities if scale == 4 else contrasts) ** beta
        a, b = halved(a), halved(b)
    return float(product)


def test_ms_ssim_of_large_images_is_its_definition() -> None:
    a = random_images(1, 3, 11, 12).repeat_interleave(16, 2).repeat_interleave(16, 3)  # 176 x 192: no enlargement
    b = noisy(a)
    assert ms_ssim_factor(176, 192) == 1
    expected = ms_ssim_reference(a[0].double().numpy() / 255, b[0].double().numpy() / 255)
    assert 0.2 < expected < 0.95
    assert ms_ssim(a, b).item() == pytest.approx(expected, abs=1e-4)  # float32


def test_ms_ssim_of_small_images_is_that_of_the_images_enlarged_bilinearly() -> None:
    a = random_images(1, 3, 32, 32)
    b = noisy(a)
    assert ms_ssim_factor(32, 32) == 6

    def enlarged(images: torch.Tensor) -> np.ndarray:
        planes = [Image.fromarray(plane.float().numpy() / 255) for plane in images[0]]
        return np.stack([np.asarray(p.resize((192, 192), Image.Resampling.BILINEAR), np.float64) for p in planes])

    assert ms_ssim(a, b).item() == pytest.approx(ms_ssim_reference(enlarged(a), enlarged(b)), abs=1e-4)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_pair_does_not_depend_on_the_others(measure) -> None:
    a = random_images(3, 3, 12, 12)
    b = noisy(a)
    together = measure(a, b)
    assert together.dtype == torch.float64 and together.shape == (3,)
    for k in range(3):
        torch.testing.assert_close(measure(a[k : k + 1], b[k : k + 1]), together[k : k + 1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("measure", (ssim, ms_ssim))
def test_equal_images_have_similarity_one(measure) -> None:
    a = random_images(1, 3, 12, 12)
    assert measure(a, a).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(2, 3, 12, 12),
        torch.zeros(2, 1, 12, 12, dtype=torch.uint8),
        torch.zeros(3, 12, 12, dtype=torch.uint8),
        torch.zeros(0, 3, 12, 12, dtype=torch.uint8),
    ],
)
def test_wrong_images_are_refused(measure, wrong: torch.Tensor) -> None:
    for pair in ((wrong, random_images(2, 3, 12, 12)), (random_images(2, 3, 12, 12), wrong)):
        with pytest.raises(ShapeError, match=str(list(wrong.shape)).replace("[", r"\[")):
            measure(*pair)


@pytest.mark.parametrize("measure", MEASURES)
def test_images_of_two_sizes_are_refused(measure) -> None:
    with pytest.raises(ShapeError, match=r"\[2, 3, 12, 12\].*\[2, 3, 12, 13\]"):
        measure(random_images(2, 3, 12, 12), random_images(2, 3, 12, 13))


def test_ssim_refuses_images_below_its_window() -> None:
    with pytest.raises(ShapeError, match=r"\[1, 3, 10, 12\].*at least 11"):
        ssim(random_images(1, 3, 10, 12), random_images(1, 3, 10, 12))


@pytest.mark.parametrize("measure", MEASURES)
def test_the_missing_extra_is_named(measure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(MissingExtraError, match=r"torchmetrics.*pip install 'rasterformer\[eval\]'"):
        measure(random_images(1, 3, 12, 12), random_images(1, 3, 12, 12))


def test_torchvision_is_not_imported() -> None:
    a = random_images(1, 3, 12, 12)
    psnr(a, a)
    assert "torchvision" not in sys.modules
