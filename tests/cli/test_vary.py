"""A diffusion model over codes on the command line: `vary`, `restore` of any mask, out-painting, `sample` and `complete`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

import rasterformer
from rasterformer.cli.from_images import in_rows_of
from rasterformer.cli.main import main
from rasterformer.data.png import read_png_metadata
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.recipe_file import load_recipe
from rasterformer.system import System
from rasterformer.systems.vq_diffusion.config import Config
from rasterformer.systems.vqgan.config import Config as TokenizerConfig
from rasterformer.tokenizer import Tokenizer

SIDE = 16  # pixels of the models' images; f = 4, so 4x4 codes
Fails = Callable[..., str]


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained: `plain`, `text` (bytes), `never` (the same, not to be guided), `paper` (replaces codes), and two of pixels."""
    folder = tmp_path_factory.mktemp("models")
    network = TokenizerConfig(
        base_width=8, multipliers=(1, 1, 1), res_blocks=1, attention_levels=(), middle_attention=False, z_channels=4,
        norm_groups=4, vocab_size=8, dim=4, perceptual="none", discriminator="none"
    )  # fmt: skip
    tokenizer = Tokenizer.create(Recipe("vqgan", network, DataConfig(image_size=SIDE), TrainingConfig()))
    with torch.no_grad():
        tokenizer.autoencoder.before.weight.mul_(5)
        tokenizer.autoencoder.quantiser.codebook.mul_(8)  # type: ignore[operator]
        tokenizer.autoencoder.decoder.conv_out.weight.mul_(5)
    config = Config(tokenizer="run", num_steps=6, schedule="linear", width=16, depth=1, num_heads=2, mlp_width=16)
    text_config = TextConfig("bytes", dim=8, length=16)
    changes: dict[str, dict[str, Any]] = {"paper": {"schedule": "paper"}, "never": {"drop_condition_prob": 0.0}}
    for name, text in (("plain", None), ("text", text_config), ("never", text_config), ("paper", None)):
        model = replace(config, **changes.get(name, {}))
        recipe = Recipe("vq_diffusion", model, DataConfig(image_size=SIDE), TrainingConfig(), text=text)
        system = System.create(recipe, tokenizers={"tokenizer": tokenizer})
        torch.manual_seed(1)
        for weight in system.model.parameters():
            torch.nn.init.normal_(weight, std=0.8)
        system.save(folder / name)
    small = [("data.image_size", "4"), ("model.norm_position", "pre")]
    System.create(load_recipe("tiny", small)).save(folder / "pixels")
    inpaint = [*small, ("model.encoder_depth", "1"), ("task.name", "inpaint")]
    System.create(load_recipe("tiny", inpaint)).save(folder / "inpaint")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Fails:
    """Runs a command that must exit with 2 and write nothing, and returns what it said."""

    def command(*words: object) -> str:
        capsys.readouterr()
        before = sorted(tmp_path.rglob("*"))
        assert run(*words, "--out", tmp_path / "out") == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said and sorted(tmp_path.rglob("*")) == before
        return " ".join(said.replace("│", " ").split())  # as one line, whatever the terminal's width

    return command


def picture(path: Path, height: int = SIDE, width: int = SIDE, *, seed: int = 0) -> Path:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.array(image)


def as_array(image: Tensor) -> npt.NDArray[np.uint8]:
    return np.asarray(image.permute(1, 2, 0).numpy())


def as_tensor(path: Path) -> Tensor:
    return torch.from_numpy(pixels(path)).permute(2, 0, 1)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- vary


def test_vary_writes_what_the_library_draws(models: dict[str, Path], tmp_path: Path) -> None:
    files = [picture(tmp_path / f"{name}.png", seed=seed) for seed, name in enumerate("ab")]
    words = [
        "--strength",
        0.7,
        "--text",
        "a cat",
        "--steps",
        3,
        "--order",
        "random",
        "--guidance-scale",
        2,
        "--seed",
        5,
    ]
    words += ["--purity-weight", 0.5, "--batch-size", 3, "-n", 2]
    assert run("vary", models["text"], *files, *words, "--out", tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["a-0.png", "a-1.png", "b-0.png", "b-1.png", "sheet.png"]
    expected = rasterformer.load(models["text"]).vary(
        torch.stack([as_tensor(file) for file in files]), strength=0.7, text="a cat", steps=3, order="random",
        guidance_scale=2.0, seed=5, purity_weight=0.5, n=2, as_tensor=True,
    )  # fmt: skip
    for row, file in zip(expected, files, strict=True):
        for k in range(2):
            assert np.array_equal(pixels(tmp_path / "out" / f"{file.stem}-{k}.png"), as_array(row[k]))
    record = read_png_metadata(tmp_path / "out" / "b-1.png")
    assert record is not None
    assert {name: record[name] for name in ("kind", "strength", "text", "image", "number", "result", "denoising_order")} == {
        "kind": "vary", "strength": 0.7, "text": "a cat", "image": "b.png", "number": 1, "result": 1,
        "denoising_order": "random",
    }  # fmt: skip


def test_vary_fits_pictures_to_the_models_size(models: dict[str, Path], tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png", 32, 40)
    assert run("vary", models["plain"], file, "--out", tmp_path / "out") == 0
    assert pixels(tmp_path / "out" / "a-0.png").shape == (SIDE, SIDE, 3)
    fitted = Image.fromarray(pixels(file)[:, 4:36]).resize((SIDE, SIDE), Image.Resampling.BOX)
    shown = pixels(tmp_path / "out" / "sheet.png")[: 4 * SIDE : 4, : 4 * SIDE : 4]
    assert np.abs(shown.astype(int) - np.array(fitted)).max() <= 1, "they may round differently"


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("plain", ["--strength", 0], "--strength 0.0 must lie above 0 and not above 1"),
        ("plain", ["--strength", 1.01], "--strength 1.01 must lie above 0 and not above 1"),
        ("nowhere", ["--strength", 0], "--strength 0.0 must lie above 0 and not above 1"),
        ("text", ["--guidance-scale", 2], "guidance_scale = 2.0 needs a text to be guided by, but image 0 has none"),
        ("plain", ["--strength", "much"], "much"),
        ("plain", ["--steps", 7], "steps = 7 must lie in 1..6"),
        ("plain", ["--order", "purty"], "purty"),
        ("paper", ["--order", "purity"], "order = 'purity' reveals masks"),
        ("plain", ["--purity-weight", -1], "purity_weight = -1.0"),
        ("plain", ["--guidance-scale", 2], "guidance needs a condition"),
        ("plain", ["--text", "a cat"], "text was given, but this model was trained without captions"),
        ("plain", ["-n", 0], "-n 0"),
        ("plain", ["--original"], "--original is not for vary"),
        ("plain", ["--no-tile"], "--no-tile is not for vary"),
        ("plain", ["--overlap", 2], "--overlap is not for vary"),
        ("plain", ["--window-stride", 2], "--window-stride is not for vary"),
        ("plain", ["--crop"], "--crop is not for vary"),
        ("pixels", [], "vary undoes noise, which only a diffusion model does"),
        ("inpaint", [], "vary undoes noise, which only a diffusion model does"),
        ("nowhere", [], "nowhere"),
    ],
)
def test_what_cannot_be_varied_is_refused(
    models: dict[str, Path], tmp_path: Path, fails: Fails, model: str, words: list[object], message: str
) -> None:
    assert message in fails("vary", models.get(model, tmp_path / "nowhere"), picture(tmp_path / "a.png"), *words)


def test_vary_needs_pictures_of_the_models_size_or_more(models: dict[str, Path], tmp_path: Path, fails: Fails) -> None:
    assert "no picture was given" in fails("vary", models["plain"])
    said = fails("vary", models["plain"], picture(tmp_path / "a.png", 15, 20))
    assert "20x15 pixels; this model needs at least 16x16" in said
    assert "no such file" in fails("vary", models["plain"], tmp_path / "none.png")


def test_results_of_a_picture_are_handed_on_when_all_of_them_are_there() -> None:
    taken: list[tuple[int, list[int]]] = []
    take = in_rows_of(3, lambda which, results: taken.append((which, results.flatten().tolist())))
    for first, last in ((0, 2), (2, 7), (7, 8), (8, 9)):
        take(first, torch.arange(first, last)[:, None])
        assert len(taken) == last // 3
    assert taken == [(0, [0, 1, 2]), (1, [3, 4, 5]), (2, [6, 7, 8])]


# ---- restore


def test_any_mask_is_filled_in_and_known_pixels_stay(models: dict[str, Path], tmp_path: Path) -> None:
    """Of pictures larger than the model's, too."""
    for height, width in ((16, 16), (24, 20)):
        file, out = picture(tmp_path / f"{width}.png", height, width), tmp_path / "out" / str(width)
        missing = np.random.default_rng(1).random((height // 4, width // 4)) < 0.4
        missing = missing.repeat(4, 0).repeat(4, 1)
        missing[:, 0] = True  # not only whole codes
        mask = tmp_path / "mask.png"
        Image.fromarray(np.where(missing, 255, 0).astype(np.uint8)).save(mask)
        words = ["--mask", mask, "--steps", 2, "--text", "a cat", "-n", 2]
        assert run("restore", models["text"], file, *words, "--out", out) == 0
        (expected,) = rasterformer.load(models["text"]).restore(
            as_tensor(file)[None], known=[torch.from_numpy(~missing)], steps=2, text="a cat", n=2, as_tensor=True
        )
        for k in range(2):
            result = pixels(out / f"{width}-{k}.png")
            assert np.array_equal(result, as_array(expected[k])) and np.array_equal(
                result[~missing], pixels(file)[~missing]
            )


@pytest.mark.parametrize("more", [[], ["--original"]], ids=["as it is", "original"])
def test_a_rectangle_is_filled_in(models: dict[str, Path], tmp_path: Path, more: list[str]) -> None:
    file, missing = picture(tmp_path / "a.png"), np.zeros((SIDE, SIDE), bool)
    missing[2:8, 3:14] = True
    assert run("restore", models["plain"], file, "--rectangle", 2, 3, 6, 11, *more, "--out", tmp_path / "out") == 0
    result = pixels(tmp_path / "out" / "a-0.png")
    assert np.array_equal(result[~missing], pixels(file)[~missing])
    (expected,) = rasterformer.load(models["plain"]).restore(
        as_tensor(file)[None], known=[torch.from_numpy(~missing)], as_tensor=True
    )
    assert np.array_equal(result, as_array(expected[0]))


@pytest.mark.filterwarnings("ignore:51% of the pixels are known, but only 25%")  # 10x13 of 16x16, from row 3, column 1
@pytest.mark.parametrize(
    ("size", "extend"),
    [((16, 16), (4, 8, 0, 0)), ((20, 16), (0, 4, 4, 8)), ((10, 13), (3, 2, 3, 1)), ((17, 18), (0, 2, 3, 0))],
)
def test_a_picture_goes_on_where_it_is_extended(
    models: dict[str, Path], tmp_path: Path, size: tuple[int, int], extend: tuple[int, int, int, int]
) -> None:
    """Also of a picture smaller than the model's, and where only the sum of old and new pixels is a multiple."""
    top, right, bottom, left = extend
    file, out = picture(tmp_path / "a.png", *size), tmp_path / "out"
    assert run("restore", models["plain"], file, "--extend", *extend, "-n", 2, "--out", out) == 0
    one, other = (pixels(out / f"a-{k}.png") for k in range(2))
    assert one.shape == (size[0] + top + bottom, size[1] + left + right, 3)
    for result in (one, other):
        assert np.array_equal(result[top : top + size[0], left : left + size[1]], pixels(file))
    assert not np.array_equal(one, other)


def test_an_extended_picture_is_cut_only_with_crop_and_keeps_all_of_its_extension(
    models: dict[str, Path], tmp_path: Path, fails: Fails
) -> None:
    """19x17 pixels and 8 more on the left: 27 is 3 too many, 17 is 1."""
    file, out = picture(tmp_path / "a.png", 17, 19), tmp_path / "out"
    said = fails("restore", models["plain"], file, "--extend", 0, 0, 0, 8)
    assert (
        "is 19x17 pixels, 27x17 with --extend; this model takes multiples of 4. With --crop it is cut to 16x16" in said
    )
    assert run("restore", models["plain"], file, "--extend", 0, 0, 0, 8, "--crop", "--out", out) == 0
    result = pixels(out / "a-0.png")
    assert result.shape == (16, 24, 3) and np.array_equal(result[:, 8:], pixels(file)[0:16, 1:17])
    plain = fails("restore", models["plain"], file, "--rectangle", 0, 0, 4, 4)
    assert "is 19x17 pixels; this model takes multiples of 4. With --crop it is cut to 16x16" in plain


@pytest.mark.parametrize("how", ["mask", "rectangle"])
def test_what_is_missing_is_said_of_the_whole_picture_and_cut_with_it(
    models: dict[str, Path], tmp_path: Path, how: str
) -> None:
    """21x19 pixels are cut to 20x16, without the first row, the last two, and the last column."""
    file, out, missing = picture(tmp_path / "a.png", 19, 21), tmp_path / "out", np.zeros((19, 21), bool)
    missing[2:8, 5:12] = True
    Image.fromarray(np.where(missing, 255, 0).astype(np.uint8)).save(tmp_path / "mask.png")
    words = ["--mask", tmp_path / "mask.png"] if how == "mask" else ["--rectangle", 2, 5, 6, 7]
    assert run("restore", models["plain"], file, *words, "--crop", "--out", out) == 0
    part = slice(1, 17), slice(0, 20)
    (expected,) = rasterformer.load(models["plain"]).restore(
        torch.from_numpy(pixels(file)[part].copy()).permute(2, 0, 1)[None],
        known=[torch.from_numpy(~missing[part])],
        as_tensor=True,
    )
    assert np.array_equal(pixels(out / "a-0.png"), as_array(expected[0]))


def test_the_record_of_a_restored_picture_suffices_to_draw_it_again(models: dict[str, Path], tmp_path: Path) -> None:
    files, out = [picture(tmp_path / f"{name}.png", 17, 16, seed=k) for k, name in enumerate("ab")], tmp_path / "out"
    assert run("restore", models["plain"], *files, "--rectangle", 4, 4, 5, 6, "--crop", "-n", 2, "--out", out) == 0
    record = read_png_metadata(out / "b-1.png")
    assert record is not None and (record["number"], record["result"], record["image"]) == (1, 1, "b.png")
    assert (record["rectangle"], record["mask"], record["extend"]) == ([4, 4, 5, 6], None, None)
    assert [record[name] for name in ("crop", "original", "tile", "overlap")] == [True, False, True, None]
    words = ["--rectangle", *record["rectangle"], "--crop", "-n", record["result"] + 1, "--seed", record["seed"]]
    assert run("restore", models["plain"], files[0], files[1], *words, "--out", tmp_path / "again") == 0
    assert np.array_equal(pixels(tmp_path / "again" / "b-1.png"), pixels(out / "b-1.png"))
    mask = tmp_path / "mask.png"
    Image.fromarray(np.tile(np.arange(16) < 8, (16, 1)).astype(np.uint8) * 255).save(mask)
    file = picture(tmp_path / "c.png")
    assert run("restore", models["plain"], file, "--mask", mask, "--out", out) == 0
    assert (read_png_metadata(out / "c-0.png") or {})["mask"] == str(mask)
    assert run("restore", models["plain"], file, "--extend", 0, 4, 0, 0, "--out", out) == 0
    assert (read_png_metadata(out / "c-0.png") or {})["extend"] == [0, 4, 0, 0]


@pytest.mark.filterwarnings("default")
def test_a_mask_that_hides_most_codes_is_warned_of(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One column of pixels in four: no code of 4x4 is known."""
    mask = tmp_path / "mask.png"
    Image.fromarray(np.tile(np.arange(16) % 4 == 0, (16, 1)).astype(np.uint8) * 255).save(mask)
    words = ["--mask", mask, "--out", tmp_path / "out"]
    assert run("restore", models["plain"], picture(tmp_path / "a.png"), *words) == 0
    assert "warning: 75% of the pixels are known, but only 0% lie in codes (4x4 pixels)" in capsys.readouterr().err


def test_a_model_of_in_painting_extends_pictures_too(models: dict[str, Path], tmp_path: Path) -> None:
    file, out = picture(tmp_path / "a.png", 4, 4), tmp_path / "out"
    assert run("restore", models["inpaint"], file, "--extend", 0, 1, 0, 0, "--out", out) == 0
    result = pixels(out / "a-0.png")
    assert result.shape == (4, 5, 3) and np.array_equal(result[:, :4], pixels(file))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "what is missing? Give --mask FILE, --rectangle TOP LEFT HEIGHT WIDTH, or --extend TOP RIGHT BOTTOM LEFT"),
        (
            ["--rectangle", 0, 0, 4, 4, "--extend", 4, 0, 0, 0],
            "--mask, --rectangle and --extend all say what is missing",
        ),
        (["--mask", "m.png", "--extend", 4, 0, 0, 0], "--mask, --rectangle and --extend all say what is missing"),
        (["--extend", 4, 0, 0, 0, "--original"], "--extend makes pictures larger, --original reduces them"),
        (["--extend", 0, 0, 0, 0], "--extend 0 0 0 0 must be pixels, 0 or more and not all 0"),
        (["--extend", 4, -4, 0, 0], "--extend 4 -4 0 0 must be pixels"),
        (["--extend", 4, 0], "extend"),
        (["--extend", "a", 0, 0, 0], "extend"),
        (["--original"], "this model fills in any mask, and draws none for --original"),
        (["--rectangle", 0, 0, 4, 17], "reaches out of the image of 16x16"),
        (
            ["--rectangle", 0, 0, 4, 4, "--overlap", 2],
            "overlap = 2 is for models that draw pixel by pixel; this one slides a window",
        ),
        (["--rectangle", 0, 0, 4, 4, "--steps", 0], "steps = 0"),
        (["--rectangle", 0, 0, 4, 4, "--order", "best"], "best"),
        (["--mask", "none.png"], "none.png"),
    ],
)
def test_what_cannot_be_restored_is_refused(
    models: dict[str, Path], tmp_path: Path, fails: Fails, words: list[object], message: str
) -> None:
    assert message in fails("restore", models["plain"], picture(tmp_path / "a.png"), *words)


def test_a_picture_too_small_even_when_extended_is_refused(
    models: dict[str, Path], tmp_path: Path, fails: Fails
) -> None:
    said = fails("restore", models["plain"], picture(tmp_path / "a.png", 8, 16), "--extend", 4, 0, 0, 0)
    assert "with --extend it is 16x12 pixels; this model needs at least 16x16" in said


def test_options_of_diffusion_are_for_diffusion_models(models: dict[str, Path], tmp_path: Path, fails: Fails) -> None:
    file = picture(tmp_path / "a.png", 4, 4)
    said = fails("restore", models["inpaint"], file, "--rectangle", 0, 0, 2, 2, "--steps", 3)
    because = "has no meaning here: this is a model that draws pixel by pixel"
    assert f"steps = 3 {because}" in said
    assert f"order = 'random' {because}" in fails("sample", models["pixels"], "--order", "random")
    assert f"purity_weight = 1.0 {because}" in fails("complete", models["pixels"], file, "--purity-weight", 1)


@pytest.mark.parametrize("command", ["upscale", "transform"])
def test_other_commands_say_what_a_diffusion_model_is_for(
    models: dict[str, Path], tmp_path: Path, fails: Fails, command: str
) -> None:
    said = fails(command, models["plain"], picture(tmp_path / "a.png"))
    assert f"rasterformer restore {models['plain']}" in said


# ---- sample and complete


def test_sample_draws_what_the_library_draws(models: dict[str, Path], tmp_path: Path) -> None:
    words: list[object] = ["--text", "a cat", "--steps", 3, "--order", "confidence", "--guidance-scale", 2.5, "-n", 2]
    expected: dict[str, Any] = {"text": "a cat", "steps": 3, "order": "confidence", "guidance_scale": 2.5}
    assert run("sample", models["text"], *words, "--out", tmp_path / "out") == 0
    images = rasterformer.load(models["text"]).sample(2, as_tensor=True, **expected)
    for k in range(2):
        assert np.array_equal(pixels(tmp_path / "out" / f"{k:04d}.png"), as_array(images[k]))
    record = read_png_metadata(tmp_path / "out" / "0001.png")
    assert record is not None and (record["text"], record["guidance_scale"]) == ("a cat", 2.5)
    assert (record["denoising_steps"], record["denoising_order"]) == (3, "confidence")
    assert record["steps"] == 0, "of training"


def test_sample_draws_larger_pictures(models: dict[str, Path], tmp_path: Path) -> None:
    assert run("sample", models["plain"], "-n", 1, "--size", "24x20", "--steps", 2, "--out", tmp_path / "out") == 0
    (image,) = rasterformer.load(models["plain"]).sample(1, size=(24, 20), steps=2, as_tensor=True)
    assert np.array_equal(pixels(tmp_path / "out" / "0000.png"), as_array(image))


def test_complete_draws_what_the_library_draws(models: dict[str, Path], tmp_path: Path) -> None:
    file, out = picture(tmp_path / "a.png"), tmp_path / "out"
    words = ["--known", "rows:6", "--text", "dogs", "--steps", 2, "--order", "purity", "-n", 2, "--out", out]
    assert run("complete", models["text"], file, *words) == 0
    expected = rasterformer.load(models["text"]).complete(
        as_tensor(file)[None], known="rows:6", text="dogs", steps=2, order="purity", n=2, as_tensor=True
    )
    for k in range(2):
        result = pixels(out / f"a-{k}.png")
        assert np.array_equal(result, as_array(expected[0, k])) and np.array_equal(result[:6], pixels(file)[:6])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", 7], "steps = 7 must lie in 1..6"),
        (["--steps", "few"], "few"),
        (["--order", "best"], "best"),
        (["--steps", 0, "--dry-run"], "steps = 0 must lie in 1..6"),
        (["--purity-weight", -1, "--dry-run"], "purity_weight = -1.0"),
        (["--size", "24x16", "--window-stride", 5], "window_stride = 5 must lie in 1..4"),
        (["--parallel"], "parallel = True has no meaning here: this is a diffusion model over codes"),
        (["--parallel", "--dry-run"], "parallel = True has no meaning here: this is a diffusion model over codes"),
        (["--size", "15x16"], "size = 15x16 pixels is no multiple of the tokenizer's factor 4"),
        (["--sampler", "heun"], "sampler = 'heun' has no meaning here: this is a diffusion model over codes"),
        (["--negative", "a cat"], "negative = 'a cat' has no meaning here"),
        (["--top-p", 1.5], "top_p = 1.5"),
    ],
)
def test_what_cannot_be_sampled_is_refused(
    models: dict[str, Path], fails: Fails, words: list[object], message: str
) -> None:
    assert message in fails("sample", models["plain"], *words)


def test_what_cannot_be_completed_is_refused(models: dict[str, Path], tmp_path: Path, fails: Fails) -> None:
    file = picture(tmp_path / "a.png")
    said = fails("complete", models["plain"], file, "--candidates", 2)
    assert "candidates = 2, but a diffusion model sees all that is known already" in said
    assert "every code of the image is known" in fails("complete", models["plain"], file, "--known", "rows:16")


def test_a_dry_run_looks_at_guidance_too(
    models: dict[str, Path], tmp_path: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    file = picture(tmp_path / "a.png")
    for words in (["sample"], ["complete", file]):
        command, *files = words
        assert "steps = 7 must lie in 1..6" in fails(command, models["text"], *files, "--steps", 7, "--dry-run")
        guided = ["-n", 2, "--guidance-scale", 3, "--dry-run"]
        assert run(command, models["text"], *files, *guided, "--out", tmp_path / "out") == 0
        assert "2 images of 16 positions" in capsys.readouterr().out and not (tmp_path / "out").exists()
        assert "Train it with model.drop_condition_prob = 0.1" in fails(command, models["never"], *files, *guided)
