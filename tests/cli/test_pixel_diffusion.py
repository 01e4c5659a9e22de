"""Diffusion models of pixels and cascades on the command line: what is drawn, what files say of it, what is refused."""

from __future__ import annotations

import inspect as python_inspect
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

import rasterformer
from rasterformer.cli.complete import complete
from rasterformer.cli.denoising import Denoising
from rasterformer.cli.from_images import Drawing
from rasterformer.cli.main import main
from rasterformer.cli.sample import sample
from rasterformer.conditioning.resize import reduce_area
from rasterformer.data.png import read_png_metadata
from rasterformer.diffusion.image_options import Threshold
from rasterformer.diffusion.options import Order
from rasterformer.diffusion.samplers import Sampler
from rasterformer.drawing.options import DrawingOptions
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.recipe_file import load_recipe
from rasterformer.system import System
from rasterformer.systems.imagen.config import Config
from rasterformer.tasks import Colourise, SuperResolution, Task

SIDE, LARGE = 8, 16  # pixels of what the base model draws, and the upscaler of it
TEXT = TextConfig("bytes", dim=8, length=16)
BASE = Config(
    width=8, multipliers=(1, 1), res_blocks=(1, 1), attention_levels=(1,), norm_groups=4, head_dim=8, text_width=8
)
UPSCALER = replace(BASE, denoiser="efficient_unet", source_noise=1.0, attention_levels=Config().attention_levels)
Fails = Callable[..., str]


def make(config: Config, side: int, *, text: TextConfig | None = TEXT, task: Task | None = None) -> System:
    """Untrained, but every part of it has a say in what it draws."""
    system = System.create(
        Recipe("imagen", config, DataConfig(image_size=side), TrainingConfig(), task=task, text=text)
    )
    torch.manual_seed(1)
    for weight in system.model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    system.model.eval()
    return system


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`base`, `never` (not to be guided), `plain` (without captions), `colourise`, `upscaler`, `cascade`.

    And of symbols `tiny` and, of super-resolution, `symbols`.
    """
    folder = tmp_path_factory.mktemp("models")
    base, upscaler = make(BASE, SIDE), make(UPSCALER, LARGE, task=SuperResolution(LARGE // SIDE))
    base.save(folder / "base")
    upscaler.save(folder / "upscaler")
    replace(base, upscalers=(upscaler,)).save(folder / "cascade")
    make(replace(BASE, drop_condition_prob=0.0), SIDE).save(folder / "never")
    make(BASE, SIDE, text=None).save(folder / "plain")
    make(BASE, SIDE, text=None, task=Colourise()).save(folder / "colourise")
    System.create(load_recipe("tiny", [("data.image_size", "4"), ("model.norm_position", "pre")])).save(folder / "tiny")
    symbols = [("data.image_size", "4"), ("model.norm_position", "pre"), ("model.encoder_depth", "1")]
    task = [("task.name", "super_resolution"), ("task.factor", "2")]
    System.create(load_recipe("tiny", [*symbols, *task])).save(folder / "symbols")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Fails:
    """Runs a command that must exit with 2 and write nothing, and returns what it said."""

    def command(*words: object) -> str:
        capsys.readouterr()
        before = sorted(tmp_path.rglob("*"))
        assert run(*words, "--out", tmp_path / "out") == 2
        said = capsys.readouterr().err
        assert "error: " in said and "Traceback" not in said and sorted(tmp_path.rglob("*")) == before
        return said

    return command


def run(*words: object) -> int:
    return main([str(word) for word in words])


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


def record_of(path: Path) -> dict[str, Any]:
    found = read_png_metadata(path)
    assert found is not None
    return found


def options_of(record: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `System` that a file tells of."""
    denoising = {
        name.removeprefix("denoising_"): value for name, value in record.items() if name.startswith("denoising_")
    }
    known = {field.name for field in fields(DrawingOptions)} - {"steps", "size"}
    return {name: record[name] for name in record if name in known | {"text", "label"}} | denoising


# ---- options


def test_options_default_to_those_of_the_library() -> None:
    plain, denoising, drawing = DrawingOptions(), Denoising(), Drawing()
    for field in fields(Denoising):
        assert getattr(denoising, field.name) == getattr(plain, field.name), field.name
    library = {field.name: getattr(plain, field.name) for field in fields(DrawingOptions)}
    shared = [field.name for field in fields(Drawing) if field.name in library]
    assert [(name, getattr(drawing, name)) for name in shared] == [(name, library[name]) for name in shared]
    own = {field.name for field in fields(Denoising)}
    for command in (sample, complete):
        said = {name: each.default for name, each in python_inspect.signature(command).parameters.items()}
        assert {name: said[name] for name in said if name in library} == {n: library[n] for n in library if n in said}
    assert own | set(said) >= set(library) - {"size", "window_stride", "on_step", "on_images"}, (
        "complete takes all others"
    )
    assert own | set(python_inspect.signature(sample).parameters) >= set(library) - {"on_step", "on_images"}
    assert own | set(shared) >= set(library) - {"size", "parallel", "on_step", "on_images"}


def test_choices_are_those_of_the_library() -> None:
    hints = get_type_hints(Denoising)
    for name, kind in (("order", Order), ("sampler", Sampler), ("threshold", Threshold)):
        assert set(get_args(hints[name])) == set(get_args(kind)), name


# ---- sample


GUIDED: list[object] = ["--text", "a cat", "--guidance", 5, "--negative", "a dog", "--steps", 2]


@pytest.mark.parametrize("name", ["base", "cascade"])
def test_sample_draws_what_the_library_draws(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    words: list[object] = [
        *GUIDED,
        "--sampler",
        "heun",
        "--threshold-cap",
        2,
        "--guidance-rescale",
        0.5,
        "--percentile",
        98,
    ]
    options: dict[str, Any] = {
        "text": "a cat", "guidance_scale": 5.0, "negative": "a dog", "steps": 2, "sampler": "heun", "threshold_cap": 2.0,
        "guidance_rescale": 0.5, "percentile": 98.0, "seed": 4, "size": (12, 20),
    }  # fmt: skip
    if name == "cascade":
        words += ["--upscaler-steps", 2, "--upscaler-guidance", 2, "--source-noise", 0.3]
        options |= {"upscaler_steps": 2, "upscaler_guidance_scale": 2.0, "source_noise": 0.3}
    words += ["-n", 2, "--seed", 4, "--size", "12x20", "--out", tmp_path]
    assert run("sample", models[name], *words) == 0
    system = rasterformer.load(models[name])
    images = system.sample(2, as_tensor=True, **options)
    assert not torch.equal(images, system.sample(2, as_tensor=True, **options | {"negative": None}))
    for k in range(2):
        assert np.array_equal(pixels(tmp_path / f"{k:04d}.png"), as_array(images[k]))


def test_a_size_that_was_not_trained_on_is_noted(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, noted in ((["--size", "8x16"], False), (["--size", "16x20"], True), ([], False)):
        assert run("sample", models["cascade"], "-n", 1, "--steps", 1, *words, "--out", tmp_path) == 0
        assert ("note: this model has seen images of 16x16 pixels only" in capsys.readouterr().err) == noted


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (GUIDED, {"resamplings"}),
        (
            ["--steps", 2, "--sampler", "ancestral", "--variance", 0.5, "--threshold", "static"],
            {"percentile", "negative"},
        ),
    ],
)
def test_the_record_of_a_picture_suffices_to_draw_it_again(
    models: dict[str, Path], tmp_path: Path, words: list[object], absent: set[str]
) -> None:
    """And says nothing of what had no part in it."""
    assert run("sample", models["cascade"], *words, "-n", 2, "--seed", 3, "--out", tmp_path) == 0
    record = record_of(tmp_path / "0001.png")
    images = rasterformer.load(models["cascade"]).sample(1, first=1, as_tensor=True, **options_of(record))
    assert np.array_equal(pixels(tmp_path / "0001.png"), as_array(images[0]))
    assert record["steps"] == 0 and record["denoising_upscaler_steps"] == record["denoising_steps"], "no None"
    assert record["denoising_source_noise"] == 0.1
    assert not {f"denoising_{name}" for name in absent | {"order", "purity_weight"}} & set(record)
    assert not {"temperature", "top_k", "top_p", "window_stride"} & set(record)


def test_steps_that_were_not_asked_for_are_recorded(models: dict[str, Path], tmp_path: Path) -> None:
    assert run("sample", models["plain"], "-n", 1, "--out", tmp_path) == 0
    record = record_of(tmp_path / "0000.png")
    assert record["denoising_steps"] == 50
    assert "denoising_upscaler_steps" not in record and "denoising_source_noise" not in record


@pytest.mark.parametrize(
    ("name", "words", "passes"),
    [
        ("base", [], 50),
        ("base", [*GUIDED, "--sampler", "heun"], 3),
        ("cascade", [*GUIDED, "--upscaler-steps", 7], 9),
    ],
)
def test_a_dry_run_says_passes_memory_and_time_and_writes_nothing(
    models: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    words: list[object],
    passes: int,
) -> None:
    words = [*words, "-n", 3, "--batch-size", 2, "--dry-run", "--out", tmp_path / "out"]
    assert run("sample", models[name], *words) == 0
    plan, memory, took = capsys.readouterr().out.splitlines()
    assert plan == f"3 images of {passes} passes, 2 at a time in 2 batches"
    assert memory.startswith("memory: ")
    assert took.startswith("time: about ") and " (measured: " in took
    assert took.endswith("a pass of upscaler 1)" if name == "cascade" else "a pass)")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("base", ["--guidance", 5], "guidance_scale = 5.0 needs a text to be guided by, but image 0 has none"),
        ("base", ["--guidance-scale", 5, "--dry-run"], "guidance_scale = 5.0 needs a text to be guided by"),
        ("plain", ["--guidance", 5], "guidance needs a condition to be guided by"),
        ("never", ["--guidance", 5, "--text", "a"], "Train it with model.drop_condition_prob = 0.1"),
        ("base", ["--negative", "a", "--text", "b"], "negative is what guidance leads away from"),
        ("plain", ["--negative", "a", "--guidance", 5], "negative = 'a' is a text, and this model was trained without"),
        ("plain", ["--text", "a cat"], "text was given, but this model was trained without captions"),
        ("base", ["--label", "cat"], "label = 'cat' was given, but this model has no classes"),
        ("base", ["--sampler", "foo"], 'Invalid value "foo" for --sampler. Choose from: "ancestral", "ddim"'),
        ("base", ["--threshold", "soft"], 'Invalid value "soft" for --threshold'),
        ("base", ["--steps", 0], "steps = 0 is too few. Use at least 1"),
        ("cascade", ["--upscaler-steps", 0], "upscaler_steps = 0 is too few"),
        ("base", ["--upscaler-steps", 5], "upscaler_steps = 5 is for a cascade, and this model has no upscalers"),
        ("base", ["--upscaler-guidance", 5], "upscaler_guidance_scale = 5.0 is for a cascade"),
        ("base", ["--source-noise", 0.2], "source_noise = 0.2 is for models of super-resolution"),
        ("cascade", ["--source-noise", 2], "source_noise = 2.0 must lie in 0..1"),
        ("base", ["--resamplings", 2], "resamplings = 2 is for filling in what a mask says is missing"),
        (
            "base",
            ["--percentile", 90, "--threshold", "static"],
            "percentile and threshold_cap are of threshold = 'dynamic'",
        ),
        ("base", ["--percentile", 0], "percentile = 0.0 must lie in (0, 100]"),
        ("base", ["--threshold-cap", 0.5], "threshold_cap = 0.5 must be at least 1"),
        ("base", ["--variance", 0.5, "--sampler", "ddim"], "variance = 0.5 is read by the ancestral sampler only"),
        ("base", ["--guidance-rescale", 0.5], "guidance_rescale takes back what guidance adds"),
        ("base", ["--size", "9x8"], "size = 9x8 pixels is no multiple of 2"),
        ("cascade", ["--size", "18x16", "--dry-run"], "size = 18x16 pixels is no multiple of 4"),
        ("base", ["--order", "purity"], "order = 'purity' has no meaning here: this is a diffusion model of pixels"),
        ("base", ["--temperature", 0.5], "temperature = 0.5 has no meaning here"),
        ("base", ["--temperature", 0.5, "--dry-run"], "temperature = 0.5 has no meaning here"),
        ("base", ["--window-stride", 2], "window_stride = 2 has no meaning here"),
        ("base", ["--parallel"], "parallel = True has no meaning here"),
        ("upscaler", [], "sample draws images from nothing, but this model (task super_resolution) needs a source"),
        ("upscaler", ["--dry-run"], "sample draws images from nothing"),
        (
            "tiny",
            ["--sampler", "heun"],
            "sampler = 'heun' has no meaning here: this is a model that draws pixel by pixel",
        ),
        ("tiny", ["--negative", "a cat"], "negative = 'a cat' has no meaning here"),
    ],
)
def test_what_cannot_be_sampled_is_refused(
    models: dict[str, Path], fails: Fails, name: str, words: list[object], message: str
) -> None:
    assert message in fails("sample", models[name], "-n", 1, *words)


# ---- complete, restore, vary


def test_complete_draws_what_the_library_draws(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, out = (
        [picture(tmp_path / f"{name}.png", LARGE, LARGE, seed=k) for k, name in enumerate("ab")],
        tmp_path / "out",
    )
    words = ["--known", "rows:5", *GUIDED, "--resamplings", 2, "-n", 2, "--batch-size", 1]
    assert run("complete", models["cascade"], *files, *words, "--dry-run", "--out", out) == 0
    said = capsys.readouterr().out
    assert said.startswith("4 images of 6 passes, 1 at a time in 4 batches\n") and "time: " in said
    assert run("complete", models["cascade"], *files, *words[:-2], "--dry-run", "--out", out) == 0
    assert capsys.readouterr().out.startswith("4 images of 6 passes, 4 at a time in 1 batch\n"), "as they are drawn"
    assert not out.exists()
    assert run("complete", models["cascade"], *files, *words, "--out", out) == 0
    expected = rasterformer.load(models["cascade"]).complete(
        torch.stack([as_tensor(file) for file in files]), known="rows:5", text="a cat", guidance_scale=5.0, negative="a dog",
        steps=2, resamplings=2, n=2, as_tensor=True,
    )  # fmt: skip
    for row, file in zip(expected, files, strict=True):
        for k in range(2):
            result = pixels(out / f"{file.stem}-{k}.png")
            assert np.array_equal(result, as_array(row[k])) and np.array_equal(result[:5], pixels(file)[:5])
    record = record_of(out / "a-0.png")
    assert (record["denoising_sampler"], record["denoising_resamplings"]) == ("ancestral", 2)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 23)])
def test_any_mask_is_filled_in_and_known_pixels_stay(
    models: dict[str, Path], tmp_path: Path, height: int, width: int
) -> None:
    """Of a picture with any sides, without --crop."""
    file, missing = picture(tmp_path / "a.png", height, width), np.random.default_rng(1).random((height, width)) < 0.4
    Image.fromarray(np.where(missing, 255, 0).astype(np.uint8)).save(tmp_path / "mask.png")
    words = ["--mask", tmp_path / "mask.png", *GUIDED, "--resamplings", 2, "-n", 2]
    assert run("restore", models["cascade"], file, *words, "--out", tmp_path / "out") == 0
    (expected,) = rasterformer.load(models["cascade"]).restore(
        as_tensor(file)[None], known=[torch.from_numpy(~missing)], text="a cat", guidance_scale=5.0, negative="a dog", steps=2,
        resamplings=2, n=2, as_tensor=True,
    )  # fmt: skip
    for k in range(2):
        result = pixels(tmp_path / "out" / f"a-{k}.png")
        assert np.array_equal(result, as_array(expected[k])) and np.array_equal(
            result[~missing], pixels(file)[~missing]
        )
    record = record_of(tmp_path / "out" / "a-1.png")
    assert (record["denoising_resamplings"], record["mask"]) == (2, str(tmp_path / "mask.png"))
    assert "overlap" not in record and "crop" not in record


def test_a_picture_goes_on_where_it_is_extended(models: dict[str, Path], tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png", 7, 9)
    words = ["--extend", 1, 2, 3, 0, "--steps", 2, "-n", 2, "--out", tmp_path / "out"]
    assert run("restore", models["base"], file, *words) == 0
    one, other = (pixels(tmp_path / "out" / f"a-{k}.png") for k in range(2))
    assert one.shape == (11, 11, 3) and not np.array_equal(one, other)
    for result in (one, other):
        assert np.array_equal(result[1:8, :9], pixels(file))


def test_vary_draws_what_the_library_draws(models: dict[str, Path], tmp_path: Path) -> None:
    file, out = picture(tmp_path / "a.png", LARGE, LARGE), tmp_path / "out"
    words = ["--strength", 0.4, *GUIDED, "--sampler", "ddim", "-n", 2, "--out", out]
    assert run("vary", models["cascade"], file, *words) == 0
    expected = rasterformer.load(models["cascade"]).vary(
        as_tensor(file)[None], strength=0.4, text="a cat", guidance_scale=5.0, negative="a dog", steps=2, sampler="ddim", n=2,
        as_tensor=True,
    )  # fmt: skip
    for k in range(2):
        assert np.array_equal(pixels(out / f"a-{k}.png"), as_array(expected[0, k]))
    record = record_of(out / "a-0.png")
    assert (record["strength"], record["denoising_sampler"]) == (0.4, "ddim") and "tile" not in record


# ---- upscale


@pytest.mark.parametrize("name", ["upscaler", "cascade"])
def test_upscale_enlarges_pictures_of_any_size_and_shape(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Of a cascade by its upscalers alone."""
    files = [picture(tmp_path / "a.png"), picture(tmp_path / "b.png", 9, 13, seed=1)]
    words = ["--text", "a cat", "--steps", 2, "--source-noise", 0.2, "-n", 2, "--out", tmp_path / "out"]
    assert run("upscale", models[name], *files, *words) == 0
    expected = rasterformer.load(models[name]).upscale(
        [Image.open(file) for file in files], text="a cat", steps=2, source_noise=0.2, n=2, as_tensor=True
    )
    for file, results in zip(files, expected, strict=True):
        for k in range(2):
            assert np.array_equal(pixels(tmp_path / "out" / f"{file.stem}-{k}.png"), as_array(results[k]))
    assert pixels(tmp_path / "out" / "b-1.png").shape == (18, 26, 3)
    record = record_of(tmp_path / "out" / "b-1.png")
    if name == "cascade":
        assert (
            record["denoising_upscaler_steps"] == 2
            and "denoising_steps" not in record
            and "guidance_scale" not in record
        )
    else:
        assert record["denoising_steps"] == 2 and record["guidance_scale"] == 1.0
    assert record["denoising_source_noise"] == 0.2


@pytest.mark.parametrize("name", ["upscaler", "cascade"])
def test_upscale_reduces_originals_itself(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    file = picture(tmp_path / "a.png", LARGE, LARGE)
    assert run("upscale", models[name], file, "--original", "--steps", 2, "--out", tmp_path / "out") == 0
    small = reduce_area(as_tensor(file)[None], LARGE // SIDE)
    (expected,) = rasterformer.load(models[name]).upscale(small, steps=2, as_tensor=True)
    assert np.array_equal(pixels(tmp_path / "out" / "a-0.png"), as_array(expected[0]))
    sheet = pixels(tmp_path / "out" / "sheet.png")[: 4 * LARGE : 4]
    parts = [sheet[:, start : start + 4 * LARGE : 4] for start in range(0, sheet.shape[1], 4 * LARGE + 1)]
    shown = [as_array(small[0]).repeat(2, 0).repeat(2, 1), as_array(expected[0]), pixels(file)]
    assert len(parts) == 3 and all(np.array_equal(*pair) for pair in zip(parts, shown, strict=True))


@pytest.mark.parametrize(
    ("command", "name", "size", "words", "message"),
    [
        ("upscale", "upscaler", (6, 9), [], "source is 9x6 pixels; this model needs at least 8x8"),
        ("upscale", "cascade", (6, 9), [], "source is 9x6 pixels; this model needs at least 8x8"),
        ("upscale", "cascade", (9, 9), ["--overlap", 2], "overlap = 2 is for models that draw pixel by pixel"),
        ("upscale", "cascade", (9, 10), ["--no-tile"], "a source of 9x10 pixels is larger than the model's 8x8"),
        ("upscale", "upscaler", (9, 10), ["--no-tile"], "a source of 9x10 pixels is larger than the model's 8x8"),
        ("upscale", "cascade", (9, 10), ["--crop"], "--crop is for models over codes"),
        ("upscale", "base", (8, 8), [], "upscale needs a cascade or a model of the task super_resolution"),
        ("colourise", "cascade", (16, 16), [], ", vary and upscale work without a task"),
        ("restore", "base", (6, 9), ["--rectangle", 0, 0, 2, 2], "source is 9x6 pixels; this model needs at least 8x8"),
        (
            "restore",
            "cascade",
            (16, 15),
            ["--rectangle", 0, 0, 2, 2],
            "source is 15x16 pixels; this model needs at least 16x16",
        ),
        (
            "restore",
            "base",
            (9, 9),
            ["--rectangle", 0, 0, 2, 2, "--overlap", 2],
            "overlap = 2 is for models that draw pixel",
        ),
        ("restore", "base", (9, 9), ["--rectangle", 0, 0, 2, 2, "--no-tile"], "is larger than the model's 8x8"),
        ("restore", "base", (9, 9), ["--rectangle", 0, 0, 2, 2, "--crop"], "--crop is for models over codes"),
        (
            "restore",
            "base",
            (9, 9),
            ["--rectangle", 0, 0, 2, 2, "--sampler", "heun"],
            "known pixels are kept by the ancestral",
        ),
        (
            "restore",
            "base",
            (9, 9),
            ["--rectangle", 0, 0, 2, 2, "--resamplings", 0],
            "resamplings = 0 must be at least 1",
        ),
        ("restore", "base", (9, 9), ["--mask", "MASK"], "is 8x8 pixels, but a picture is 9x9"),
        ("restore", "upscaler", (9, 9), ["--rectangle", 0, 0, 2, 2], "restore needs a model of the task inpaint"),
        ("vary", "colourise", (8, 8), [], "vary needs a model that makes images from nothing"),
        ("vary", "base", (8, 8), ["--resamplings", 2], "resamplings = 2 is for filling in"),
        ("complete", "base", (8, 8), ["--candidates", 2], "candidates = 2 is for models over codes"),
        ("complete", "upscaler", (16, 16), ["--dry-run"], "complete draws images from nothing"),
        ("complete", "base", (8, 8), ["--known", "rows:8"], "says that every pixel is known"),
        ("colourise", "colourise", (8, 8), ["--negative", "a"], "negative = 'a' is a text"),
        ("colourise", "colourise", (8, 8), ["--steps", 0, "--dry-run"], "steps = 0 is too few"),
        ("vary", "colourise", (8, 8), ["--dry-run"], "vary needs a model that makes images from nothing"),
        (
            "upscale",
            "upscaler",
            (9, 10),
            ["--no-tile", "--dry-run"],
            "a source of 9x10 pixels is larger than the model's 8x8",
        ),
        ("upscale", "symbols", (2, 2), ["--dry-run"], "--dry-run of upscale is for diffusion models of pixels"),
    ],
)
def test_what_cannot_be_drawn_from_pictures_is_refused(
    models: dict[str, Path],
    tmp_path: Path,
    fails: Fails,
    command: str,
    name: str,
    size: tuple[int, int],
    words: list[object],
    message: str,
) -> None:
    mask = picture(tmp_path / "mask.png")
    words = [mask if word == "MASK" else word for word in words]
    assert message in fails(command, models[name], picture(tmp_path / "a.png", *size), *words)


@pytest.mark.parametrize(
    ("command", "name", "words", "plans"),
    [
        ("upscale", "upscaler", [], ["4 images of 3 passes, 4 at a time", "2 images of 3 passes, 2 at a time"]),
        ("upscale", "cascade", [], ["4 images of 3 passes, 4 at a time", "2 images of 3 passes, 2 at a time"]),
        (
            "restore",
            "base",
            ["--rectangle", 0, 0, 2, 2, "--resamplings", 2],
            ["4 images of 5 passes, 4 at a time", "2 images of 5 passes, 2 at a time"],
        ),
        ("vary", "base", [], ["6 images of 3 passes, 6 at a time"]),
        ("colourise", "colourise", [], ["4 images of 3 passes, 4 at a time", "2 images of 3 passes, 2 at a time"]),
        (
            "transform",
            "colourise",
            ["--batch-size", 1],
            ["4 images of 3 passes, 1 at a time", "2 images of 3 passes, 1"],
        ),
    ],
)
def test_a_dry_run_from_pictures_says_memory_and_time_and_writes_nothing(
    models: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    name: str,
    words: list[object],
    plans: list[str],
) -> None:
    files = [picture(tmp_path / f"{k}.png", 8, width) for k, width in enumerate((8, 8, 13))]
    before = sorted(tmp_path.iterdir())
    assert (
        run(command, models[name], *files, *words, "-n", 2, "--steps", 3, "--dry-run", "--out", tmp_path / "out") == 0
    )
    said = capsys.readouterr().out.splitlines()
    assert [line.startswith(plan) for line, plan in zip(said[::3], plans, strict=True)] == [True] * len(plans)
    assert all(line.startswith("memory: ") for line in said[1::3])
    assert all(line.startswith("time: about ") and " (measured: " in line for line in said[2::3])
    assert all(line.endswith("a pass of upscaler 1)") == (name == "cascade") for line in said[2::3])
    assert sorted(tmp_path.iterdir()) == before


def test_a_task_draws_by_options_of_diffusion(models: dict[str, Path], tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png", 9, 11)
    words = ["--steps", 2, "--sampler", "ddim", "--threshold", "static", "--out", tmp_path / "out"]
    for command in ("colourise", "transform"):
        assert run(command, models["colourise"], file, *words) == 0
        (expected,) = rasterformer.load(models["colourise"]).colourise(
            as_tensor(file)[None], steps=2, sampler="ddim", threshold="static", as_tensor=True
        )
        assert np.array_equal(pixels(tmp_path / "out" / "a-0.png"), as_array(expected[0]))


# ---- inspect


def test_inspect_shows_what_each_stage_draws_from_what(
    models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    system = rasterformer.load(models["cascade"])
    assert run("inspect", models["cascade"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    base, upscaler = (
        sum(weight.numel() for weight in stage.model.state_dict().values()) for stage in (system, *system.upscalers)
    )
    assert f"stage 1 8x8 pixels from texts, {base:,} parameters, 0 steps" in lines
    assert f"stage 2 16x16 pixels from 8x8 pixels and texts, {upscaler:,} parameters, 0 steps" in lines
    assert "image [3, 16, 16]" in lines
    assert "upscaler_1.task.factor = 2" in lines and "data.image_size = 8" in lines
    assert "upscaler_1.data.image_size = 16" in lines and 'upscaler_1.model.denoiser = "efficient_unet"' in lines
