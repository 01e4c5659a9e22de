"""The commands on a model over codes: what they write and print, and what they refuse before they begin."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import rasterformer
from rasterformer.cli.main import main
from rasterformer.data.png import read_png_metadata

SIDE = 16  # pixels; f = 2, so 8x8 codes


class Models(NamedTuple):
    """Folders of trained models and their images; `placed` sees 4x4 codes at a time, and where in the image they lie."""

    pictures: Path
    tokenizer: Path
    prior: Path
    placed: Path


def run(*words: object) -> int:
    return main([str(word) for word in words])


def read(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Two steps each, on twelve pictures of noise."""
    root = tmp_path_factory.mktemp("models")
    pictures = root / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for k in range(12):
        coarse = rng.integers(0, 256, (SIDE // 2, SIDE // 2, 3), dtype=np.uint8)
        Image.fromarray(coarse.repeat(2, 0).repeat(2, 1)).save(pictures / f"{k:02d}.png")
    short = ["--data", pictures, "--data.image_size", SIDE, "--training.steps", 2, "--training.batch_size", 4]
    short += ["--training.eval_every", 2, "--training.save_every", 2]
    tokenizer = ["--model.multipliers", "[1, 1]", "--model.perceptual", "none", "--model.discriminator", "none"]
    assert run("train", "vqgan-tiny", *short, *tokenizer, "--out", root / "tokenizer") == 0
    prior = ["--model.tokenizer", root / "tokenizer", "--model.width", 16, "--model.mlp_width", 16]
    prior += ["--training.learning_rate", 0.2, "--training.warmup_steps", 0, "--training.ema_decay", "null"]
    assert run("train", "vqgan-prior-tiny", *short, *prior, "--out", root / "prior") == 0
    window = ["--model.window", "[4, 4]", "--model.coordinates", "true"]
    assert run("train", "vqgan-prior-tiny", *short, *prior, *window, "--out", root / "placed") == 0
    return Models(pictures, root / "tokenizer", root / "prior", root / "placed")


def refused(capsys: pytest.CaptureFixture[str], words: Sequence[object]) -> str:
    """What is said about words that are refused by one message."""
    capsys.readouterr()
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    return error


def test_sample_draws_larger_pictures_as_the_library_does(models: Models, tmp_path: Path) -> None:
    assert (
        run("sample", models.placed, "-n", 2, "--size", "18x24", "--seed", 3, "--window-stride", 2, "--out", tmp_path)
        == 0
    )
    system = rasterformer.load(models.placed)
    expected = system.sample(2, size=(18, 24), seed=3, window_stride=2, as_tensor=True)
    assert expected.shape == (2, 3, 18, 24)
    for k in range(2):
        assert torch.equal(read(tmp_path / f"{k:04d}.png"), expected[k])
    record = read_png_metadata(tmp_path / "0001.png")
    assert record is not None and (record["image"], record["window_stride"], record["seed"]) == (1, 2, 3)


def test_a_wider_stride_of_the_window_draws_other_pictures(models: Models, tmp_path: Path) -> None:
    for stride in (1, 2):
        words = ["sample", models.placed, "-n", 1, "--size", "16x32", "--window-stride", stride]
        assert run(*words, "--out", tmp_path / str(stride)) == 0
    one, two = (read(tmp_path / stride / "0000.png") for stride in ("1", "2"))
    assert one.shape == two.shape == (3, 16, 32) and not torch.equal(one, two)


def test_a_size_that_is_no_multiple_is_refused_with_one_that_works(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", models.placed, "-n", 1, "--out", tmp_path / "out"]
    error = refused(capsys, [*words, "--size", "19x24"])
    assert "size = 19x24 pixels is no multiple of the tokenizer's factor 2" in error
    found = re.search(r"Use (\d+x\d+)\.", error)
    assert found is not None and not (tmp_path / "out").exists()
    assert run(*words, "--size", found[1]) == 0


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("prior", ["--size", "8x16"], "size = 8x16 pixels is smaller than the model's window of 16x16 pixels"),
        ("placed", ["--size", "6x16"], "size = 6x16 pixels is smaller than the model's window of 8x8 pixels"),
        ("prior", ["--size", "wide"], "--size wide is no size"),
        ("prior", ["--guidance-scale", "2"], "guidance needs a condition"),
        ("prior", ["--text", "a cat"], "text was given, but this model was trained without captions"),
        ("prior", ["--label", "cat"], "label = 'cat' was given, but this model has no classes"),
        ("placed", ["--size", "16x32", "--parallel"], "parallel draws images of the model's own size only"),
        ("placed", ["--size", "16x32", "--window-stride", "9"], "stride = 9 must lie in 1..2"),
    ],
)
def test_what_the_model_cannot_draw_is_refused(
    models: Models, model: str, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", getattr(models, model), "-n", 1, "--out", tmp_path / "out", *options]
    assert message in refused(capsys, words)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_told_nothing_about_places_draws_larger_pictures_and_says_so(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", models.prior, "-n", 1, "--size"]
    capsys.readouterr()
    assert run(*words, "16x20", "--out", tmp_path / "larger") == 0
    note = "this model has seen images of 16x16 pixels only"
    assert note in "".join(capsys.readouterr())
    assert read(tmp_path / "larger" / "0000.png").shape == (3, 16, 20)
    assert run(*words, "16", "--out", tmp_path / "same") == 0
    assert note not in "".join(capsys.readouterr())


def test_a_dry_run_counts_the_codes_of_larger_pictures(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sample", models.placed, "-n", 3, "--size", "16x32", "--dry-run", "--out", tmp_path / "out") == 0
    assert "3 images" in capsys.readouterr().out and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_tokenizer_draws_nothing(
    models: Models, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, [command, models.tokenizer])
    assert "is a tokenizer, which turns images into codes and back but draws none" in error and "vqgan-prior" in error


def test_evaluate_prints_nats_per_code_and_writes_them(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run("evaluate", models.prior, "--split", "all", "--json", tmp_path / "deep" / "report.json") == 0
    shown = capsys.readouterr().out
    content = json.loads((tmp_path / "deep" / "report.json").read_text(encoding="utf-8"))
    assert f"{content['nats_per_code']:.4f}" in shown and "nats/code" in shown
    assert "bits/dim" not in shown and "none of pixels" in " ".join(shown.split())
    system = rasterformer.load(models.prior)
    images = torch.stack([read(path) for path in sorted(models.pictures.glob("*.png"))])
    nats = system.code_nats(images).double().mean()
    assert content["nats_per_code"] == pytest.approx(float(nats), rel=1e-5)
    assert content["bits_per_pixel"] == pytest.approx(float(nats) / math.log(2) / 4, rel=1e-5)
    assert content["num_images"] == 12 and content["shuffled_nats_per_code"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "edges"], "--task edges"),
        (["--limit", "0"], "limit = 0 must be at least 1"),
        (["--html", "page.html"], "--html shows samples of a task"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    models: Models, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, ["evaluate", models.prior, *options])


@pytest.fixture
def mask(tmp_path: Path) -> tuple[Path, Tensor]:
    """A hole of 8x8 pixels in the middle: no prefix of any order."""
    known = torch.ones(SIDE, SIDE, dtype=torch.bool)
    known[4:12, 4:12] = False
    path = tmp_path / "mask.png"
    Image.fromarray((known.numpy() * 255).astype(np.uint8)).save(path)
    return path, known


def test_complete_fills_a_hole_and_keeps_what_is_around_it(
    models: Models, mask: tuple[Path, Tensor], tmp_path: Path
) -> None:
    path, known = mask
    picture, out = models.pictures / "03.png", tmp_path / "out"
    words = ["complete", models.prior, picture, "--known", path, "-n", 2, "--candidates", 4, "--out", out]
    assert run(*words) == 0
    original = read(picture)
    expected = rasterformer.load(models.prior).complete(original[None], known=known, n=2, candidates=4, as_tensor=True)
    for k in range(2):
        drawn = read(out / f"03-{k}.png")
        assert torch.equal(drawn, expected[0, k])
        assert torch.equal(drawn[:, known], original[:, known]) and not torch.equal(drawn, original)
    record = read_png_metadata(out / "03-1.png")
    assert record is not None and record["candidates"] == 4


def test_a_dry_run_of_complete_counts_the_candidates_too(
    models: Models, mask: tuple[Path, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    words = ["complete", models.prior, models.pictures / "03.png", "--known", mask[0], "-n", 3, "--candidates", 4]
    assert run(*words, "--dry-run") == 0
    assert "12 images" in capsys.readouterr().out


@pytest.mark.parametrize("candidates", [0, -2])
def test_no_candidates_are_refused(
    models: Models, mask: tuple[Path, Tensor], candidates: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["complete", models.prior, models.pictures / "03.png", "--known", mask[0], "--out", tmp_path / "out"]
    assert f"candidates = {candidates}" in refused(capsys, [*words, f"--candidates={candidates}"])


def lines_of(shown: str) -> list[str]:
    return [" ".join(line.split()) for line in shown.splitlines()]


def test_inspect_says_what_a_model_over_codes_carries(models: Models, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run("inspect", models.prior / "model") == 0
    lines = lines_of(capsys.readouterr().out)
    assert "system vqgan_transformer" in lines and "tokenizer vqgan, 2 steps" in lines and "image [3, 16, 16]" in lines
    assert any(re.match(r"tokenizer\.safetensors [\d,]+ numbers in \d+ tensors, .*F32", line) for line in lines)
    assert "model.width = 16" in lines


def test_inspect_says_what_a_codes_file_holds(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = tmp_path / "codes.safetensors"
    words = ["tokenize", models.tokenizer, "--data", models.pictures, "--split", "all", "--mirror", "--out", codes]
    assert run(*words) == 0
    capsys.readouterr()
    assert run("inspect", codes) == 0
    lines = lines_of(capsys.readouterr().out)
    fingerprint = rasterformer.load_tokenizer(models.tokenizer).fingerprint
    assert lines[0] == str(codes)
    assert "images 12, 2 variants of each" in lines and "codes 8x8 of 64" in lines
    assert f"tokenizer {fingerprint}" in lines
    assert "--order needs a model" in refused(capsys, ["inspect", codes, "--order", tmp_path / "order.png"])


def test_inspect_of_the_codes_in_a_run_names_its_tokenizer(models: Models, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run("inspect", models.prior / "codes.safetensors") == 0
    system = rasterformer.load(models.prior)
    assert f"tokenizer {system.tokenizers['tokenizer'].fingerprint}" in lines_of(capsys.readouterr().out)


def test_a_prior_without_a_tokenizer_is_not_trained(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train",
        "vqgan-prior-tiny",
        "--data",
        models.pictures,
        "--data.image_size",
        SIDE,
        "--out",
        tmp_path / "run",
    ]
    error = refused(capsys, words)
    assert "model.tokenizer is missing: the run or model folder of a tokenizer" in error and "vqgan" in error
    assert "there is no such folder" in refused(capsys, [*words, "--model.tokenizer", tmp_path / "nowhere"])
    assert "is a generative model (vqgan_transformer), no tokenizer" in refused(
        capsys, [*words, "--model.tokenizer", models.prior]
    )
    assert not (tmp_path / "run").exists()


def test_an_image_size_that_is_no_multiple_of_the_factor_is_refused(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--data", models.pictures, "--out", tmp_path / "run", "--data.image_size", 15]
    error = refused(capsys, ["train", "vqgan-prior-tiny", "--model.tokenizer", models.tokenizer, *more])
    assert "15" in error and "multiple of" in error and "2" in error
    small = ["--model.multipliers", "[1, 1]", "--model.perceptual", "none", "--model.discriminator", "none"]
    error = refused(capsys, ["train", "vqgan-tiny", *small, *more])
    assert "data.image_size = 15 is no multiple of 2" in error and "14" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("layout", ["taming", "llamagen"])
@pytest.mark.parametrize("name", ["notes.ckpt", "notes.pt", "notes.safetensors"])
def test_a_text_file_is_not_imported(
    layout: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    file.write_text("remember the milk\n" * 20, encoding="utf-8")
    error = refused(capsys, ["import-weights", file, "--layout", layout, "--out", tmp_path / "out"])
    assert name in error and not (tmp_path / "out").exists()


def test_a_prior_is_not_exported(models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, ["export", models.prior, "--layout", "diffusers", "--out", tmp_path / "out"])
    assert "is a generative model (vqgan_transformer), no tokenizer" in error and not (tmp_path / "out").exists()
