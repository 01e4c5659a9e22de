"""`reconstruct`, `tokenize` and `detokenize`: there and back, of pictures of any size and of label maps."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rasterformer.cli.detokenize import file_names
from rasterformer.cli.main import main
from rasterformer.data.codes import load_codes
from rasterformer.data.png import read_png_metadata
from rasterformer.errors import DataError
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.systems.vqgan.config import Config
from rasterformer.tokenizer import Tokenizer, load_tokenizer

TINY = Config(
    base_width=8,
    multipliers=(1, 1),
    res_blocks=1,
    attention_levels=(),
    middle_attention=False,
    z_channels=8,
    norm_groups=2,
    vocab_size=16,
    dim=4,
    perceptual="none",
    discriminator="none",
)
LABELS = replace(TINY, pictures="labels", num_labels=5)


def save(folder: Path, model: Config, data: DataConfig, *, seed: int = 0) -> Path:
    Tokenizer.create(Recipe("vqgan", model, data, TrainingConfig(seed=seed))).save(folder)
    return folder


def write(path: Path, height: int, width: int, *, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def read(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "tiny", TINY, DataConfig(image_size=16))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of images of the tokenizer's size."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed, name in enumerate(("cats/a", "cats/b", "dogs/a")):
        write(folder / f"{name}.png", 16, 16, seed=seed)
    return folder


def originals(folder: Path, names: Sequence[str] = ("cats/a", "cats/b", "dogs/a")) -> Tensor:
    return torch.stack([read(folder / f"{name}.png") for name in names])


def test_tokenize_and_detokenize_make_the_reconstructions_bit_for_bit(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    codes, out = tmp_path / "codes.safetensors", tmp_path / "images"
    assert run("tokenize", model, "--data", pictures, "--split", "all", "--out", codes) == 0
    assert run("detokenize", model, codes, "--out", out) == 0
    expected = load_tokenizer(model, device="cpu").reconstruct(originals(pictures))
    for name, image in zip(("cats/a", "cats/b", "dogs/a"), expected, strict=True):
        assert torch.equal(read(out / f"{name}.png"), image)
    assert expected.float().std() > 0


def test_reconstruct_writes_the_same_as_the_library_does(model: Path, pictures: Path, tmp_path: Path) -> None:
    assert run("reconstruct", model, pictures / "cats", "--out", tmp_path) == 0
    tokenizer = load_tokenizer(model, device="cpu")
    shown = []
    for name in ("a", "b"):
        original = read(pictures / "cats" / f"{name}.png")
        remade = read(tmp_path / f"{name}-reconstruction.png")
        assert torch.equal(remade, tokenizer.reconstruct(original[None])[0])
        shown += [original, remade]
    sheet = read(tmp_path / "sheet.png")
    assert torch.equal(
        sheet[:, :16, :34].flatten(), torch.cat([shown[0], torch.full((3, 16, 2), 244), shown[1]], 2).flatten()
    )
    record = read_png_metadata(tmp_path / "a-reconstruction.png")
    assert record is not None and record["tokenizer"] == tokenizer.fingerprint


def test_tokenize_keeps_labels_and_mirror_images(model: Path, pictures: Path, tmp_path: Path) -> None:
    codes = tmp_path / "codes.safetensors"
    assert run("tokenize", model, "--data", pictures, "--split", "all", "--mirror", "--labels", "--out", codes) == 0
    found = load_codes(codes)
    assert found.labels is not None and found.labels.tolist() == [0, 0, 1]
    assert found.class_names == ("cats", "dogs")
    expected = load_tokenizer(model, device="cpu").encode(originals(pictures).flip(-1))
    assert torch.equal(found.codes[:, 1].long(), expected)


def test_detokenize_stops_after_so_many_images(model: Path, pictures: Path, tmp_path: Path) -> None:
    codes, out = tmp_path / "codes.safetensors", tmp_path / "images"
    run("tokenize", model, "--data", pictures, "--split", "all", "--out", codes)
    assert run("detokenize", model, codes, "-n", 2, "--out", out) == 0
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.png")) == ["cats/a.png", "cats/b.png"]


def test_codes_of_another_tokenizer_are_refused(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes, out = tmp_path / "codes.safetensors", tmp_path / "images"
    run("tokenize", model, "--data", pictures, "--split", "all", "--out", codes)
    other = save(tmp_path / "other", TINY, DataConfig(image_size=16), seed=1)
    assert run("detokenize", other, codes, "--out", out) == 2
    ours, theirs = (load_tokenizer(path, device="cpu").fingerprint for path in (model, other))
    assert f"was made by tokenizer {ours}, but this model has {theirs}" in capsys.readouterr().err
    assert not out.exists()


def test_a_picture_of_another_size_is_refused_with_sizes_that_work(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = write(tmp_path / "odd.png", 21, 40, seed=3)
    assert run("reconstruct", model, picture, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "odd.png is 40x21 pixels" in error and "multiples of 2" in error
    assert "40x20" in error and "40x22" in error
    assert not (tmp_path / "out").exists()


def test_crop_cuts_both_borders_to_the_next_multiple(tmp_path: Path) -> None:
    model = save(tmp_path / "f4", replace(TINY, multipliers=(1, 1, 1)), DataConfig(image_size=16))
    picture = write(
        tmp_path / "odd.png", 23, 38, seed=3
    )  # 3 rows and 2 columns too many: 1 above, 2 below, 1 on each side
    assert run("reconstruct", model, picture, "--crop", "--out", tmp_path / "out") == 0
    expected = load_tokenizer(model, device="cpu").reconstruct(read(picture)[None, :, 1:21, 1:37])
    assert torch.equal(read(tmp_path / "out" / "odd-reconstruction.png"), expected[0])


def test_a_picture_smaller_than_a_code_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = write(tmp_path / "line.png", 1, 40, seed=3)
    assert run("reconstruct", model, picture, "--crop", "--out", tmp_path / "out") == 2
    assert "line.png is 40x1 pixels" in capsys.readouterr().err


def test_pictures_of_several_sizes_get_a_sheet_each(model: Path, tmp_path: Path) -> None:
    for name, size in (("a", 16), ("b", 20)):
        write(tmp_path / f"{name}.png", size, size, seed=size)
    assert (
        run("reconstruct", model, tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path / "out", "--scale", 2) == 0
    )
    assert read(tmp_path / "out" / "sheet-16x16.png").shape == (3, 32, 66)
    assert read(tmp_path / "out" / "sheet-20x20.png").shape == (3, 40, 82)


def test_label_maps_come_back_as_label_maps(tmp_path: Path) -> None:
    model = save(tmp_path / "labels", LABELS, DataConfig(image_size=16, reduction="nearest"))
    values = np.random.default_rng(0).integers(0, 5, (3, 16, 16), dtype=np.uint8)
    for name, labels in zip("abc", values, strict=True):
        (tmp_path / "maps").mkdir(exist_ok=True)
        Image.fromarray(labels).save(tmp_path / "maps" / f"{name}.png")
    expected = load_tokenizer(model, device="cpu").reconstruct(torch.from_numpy(values)[:, None].repeat(1, 3, 1, 1))
    codes, report = tmp_path / "codes.safetensors", tmp_path / "report.json"
    data = ("--data", tmp_path / "maps", "--split", "all")
    assert run("tokenize", model, *data, "--out", codes) == 0
    assert run("detokenize", model, codes, "--out", tmp_path / "back") == 0
    assert torch.equal(originals(tmp_path / "back", "abc"), expected)
    assert run("reconstruct", model, *data, "--json", report) == 0
    share = (expected[:, 0].numpy() == values).mean()
    assert json.loads(report.read_text())["figures"]["label_accuracy"]["mean"] == pytest.approx(share)
    assert run("reconstruct", model, tmp_path / "maps" / "a.png", "--out", tmp_path / "one") == 0
    alone = load_tokenizer(model, device="cpu").reconstruct(torch.from_numpy(values)[:1, None].repeat(1, 3, 1, 1))
    assert torch.equal(read(tmp_path / "one" / "a-reconstruction.png"), alone[0])
    assert read(tmp_path / "one" / "sheet.png").unique().numel() > 5  # colours, not values 0 to 4


def test_reconstruct_measures_a_set_and_writes_it_down(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, document = tmp_path / "report.json", tmp_path / "page.html"
    words = ("--data", pictures, "--split", "all", "--no-frechet", "--perceptual", "none")
    assert run("reconstruct", model, *words, "--json", report, "--html", document) == 0
    content = json.loads(report.read_text())
    assert (content["num_images"], content["perceptual"], content["fd_efflite0"]) == (3, None, None)
    assert f"{content['figures']['psnr_db']['mean']:.2f}" in capsys.readouterr().out
    assert "How often each of the 16 codes occurs" in document.read_text()


def test_a_distance_that_needs_larger_images_is_refused_before_reading_them(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("reconstruct", model, "--data", tmp_path / "nowhere", "--no-frechet") == 2
    assert "--perceptual efficientnet needs images of at least 32 pixels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.png", "--data", "x"], "belong to measuring"),
        (["a.png", "--json", "x"], "belong to measuring"),
        (["--crop"], "--crop cuts pictures"),
        (["a.png", "--scale", "0"], "--scale 0 must be at least 1"),
        (["--perceptual-weights", "x"], "--perceptual-weights x belongs to --perceptual lpips, not to efficientnet"),
    ],
)
def test_options_that_nothing_would_read_are_refused(
    model: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("reconstruct", model, *words) == 2
    assert message in capsys.readouterr().err


def test_a_picture_is_not_overwritten(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = write(tmp_path / "sheet.png", 16, 16, seed=0)
    before = sheet.read_bytes()
    assert run("reconstruct", model, sheet, "--out", tmp_path) == 2
    assert "sheet.png would be overwritten" in capsys.readouterr().err
    assert sheet.read_bytes() == before


def test_detokenize_refuses_to_write_no_image(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("detokenize", model, "codes.safetensors", "-n", 0) == 2
    assert "-n 0 must be at least 1" in capsys.readouterr().err


def test_names_become_png_files_and_alike_ones_get_numbers() -> None:
    assert file_names(["cats/1.jpg", "x.y/2.PNG", "3"]) == ["cats/1.png", "x.y/2.png", "3.png"]
    assert file_names(["a/1.jpg", "a/1.png"]) == ["a/00000-1.png", "a/00001-1.png"]


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "b/../../a.png", "..\\a.png", "C:\\a.png", ""])
def test_names_that_lead_out_of_the_folder_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="leads out of --out"):
        file_names(["ok.png", name])
