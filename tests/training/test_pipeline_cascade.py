"""A cascade in one command: its stages are trained, stopped in between, resumed, joined, loaded, and drawn from."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import rasterformer
from rasterformer.cascade import join
from rasterformer.cli.main import main
from rasterformer.conditioning.text_encoder import TextEncoder, check_texts
from rasterformer.conditioning.text_folder import FolderEncoder
from rasterformer.data.png import read_png_metadata
from rasterformer.errors import CheckpointError, ConfigError, DataError
from rasterformer.manifest import MANIFEST
from rasterformer.pipeline_file import Pipeline, load_pipeline, with_data
from rasterformer.recipe_images import open_recipe_images
from rasterformer.system import System
from rasterformer.training.captions import TEXTS_FOLDER
from rasterformer.training.log import read_metrics
from rasterformer.training.pipeline import train_pipeline
from rasterformer.training.run import train_recipe

STEPS, HALF = 4, 2
SHORT = {"steps": STEPS, "batch_size": 2, "eval_every": HALF, "save_every": HALF, "eval_images": 2, "log_every": 1}
COUNT, HELD_OUT = 10, 2  # pictures


def quiet(text: str) -> None:
    """Says nothing."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 16x16 pixels in two colours, with captions, in two splits."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for k in range(COUNT):
        place = folder / ("test" if k < HELD_OUT else "train")
        place.mkdir(exist_ok=True)
        name, colour = (("red", (200, 40, 40)), ("blue", (40, 40, 200)))[k % 2]
        values = (np.array(colour) + rng.integers(-30, 31, (16, 16, 3))).astype(np.uint8)
        Image.fromarray(values).save(place / f"{k}.png")
        (place / f"{k}.txt").write_text(f"{name} picture {k}", encoding="utf-8")
    return folder


def short(pictures: Path, folder: Path, **fields: str) -> Pipeline:
    """imagen-pipeline-tiny, a few steps a stage."""
    overrides = [
        (f"{stage}.training.{name}", str(value)) for stage in ("base", "upscaler") for name, value in SHORT.items()
    ]
    more = [(name.replace("__", "."), value) for name, value in fields.items()]
    pipeline = load_pipeline("imagen-pipeline-tiny", [*overrides, *more])
    assert pipeline is not None
    return with_data(pipeline, str(pictures), folder)


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder, and what was said."""
    said: list[str] = []
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    assert train_pipeline(short(pictures, folder), folder, say=said.append) is True
    return folder, said


def test_every_stage_is_a_run_and_all_of_them_are_one_model(finished: tuple[Path, list[str]]) -> None:
    folder, said = finished
    for stage in ("base", "upscaler"):
        figures = read_metrics(folder / stage / "metrics.jsonl")
        measured = [line for line in figures if "held_out_bits_per_dim_upper_bound" in line]
        assert [line["step"] for line in measured] == [HALF, STEPS]
        assert (folder / stage / "report.md").is_file()
    base, upscaler = (rasterformer.load(folder / stage) for stage in ("base", "upscaler"))
    assert base.upscalers == upscaler.upscalers == ()
    loaded, joined = rasterformer.load(folder), join(base, [upscaler])
    assert loaded.image_shape == (3, 16, 16) and [one.steps for one in (loaded, *loaded.upscalers)] == [STEPS, STEPS]
    drawn, expected = (system.sample(2, text="red", seed=1, steps=2, as_tensor=True) for system in (loaded, joined))
    assert torch.equal(drawn, expected)
    commands = [line for line in said if "now:" in line]
    assert len(commands) == 1 and f"rasterformer sample {folder} " in commands[0], "stages are followed by the next one"


def test_samples_are_drawn_by_captions_of_held_out_pictures(finished: tuple[Path, list[str]]) -> None:
    folder = finished[0]
    files = sorted(path.name for path in (folder / "samples").iterdir())
    assert files == [*(f"000{k}.{kind}" for k in range(4) for kind in ("png", "txt")), "grid.png"]
    captions = ["red picture 0", "blue picture 1"] * 2  # the two held-out ones, over and over
    assert [(folder / "samples" / f"000{k}.txt").read_text("utf-8").strip() for k in range(4)] == captions
    with Image.open(folder / "samples" / "0001.png") as picture:
        drawn = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    again = rasterformer.load(folder).sample(1, text=captions[1], first=1, as_tensor=True)
    assert torch.equal(drawn, again[0])
    assert read_png_metadata(folder / "samples" / "0001.png")["text"] == captions[1]


def test_the_command_line_samples_from_the_folder_and_enlarges_pictures(
    finished: tuple[Path, list[str]], pictures: Path, tmp_path: Path
) -> None:
    sample = ["sample", finished[0], "-n", "2", "--text", "red", "--steps", "2", "--out", tmp_path / "samples"]
    assert main([str(word) for word in sample]) == 0
    with Image.open(tmp_path / "samples" / "0001.png") as picture:
        assert picture.size == (16, 16)
    upscale = [
        "upscale",
        finished[0],
        pictures / "test" / "0.png",
        "-n",
        "1",
        "--steps",
        "2",
        "--out",
        tmp_path / "large",
    ]
    assert main([str(word) for word in upscale]) == 0
    assert list((tmp_path / "large").rglob("*.png"))


def stop_when(stage: str, start: str) -> Callable[[str], None]:
    """Sends SIGTERM when a line of that stage starts so."""
    seen = [""]

    def say(text: str) -> None:
        if text.strip().startswith("stage "):
            seen[0] = text
        if f": {stage}, " in seen[0] and text.startswith(start):
            os.kill(os.getpid(), signal.SIGTERM)

    return say


@pytest.mark.parametrize("stage", ["base", "upscaler"])
def test_a_stopped_and_resumed_cascade_ends_with_the_same_model(
    finished: tuple[Path, list[str]], pictures: Path, tmp_path: Path, stage: str
) -> None:
    folder = tmp_path / "cascade"
    say = stop_when(stage, f"step {HALF},")
    assert train_pipeline(short(pictures, folder), folder, say=say) is False
    assert not (folder / stage / "model").exists() and not (folder / "model").exists()
    with pytest.raises(ConfigError, match="already holds runs"):
        train_pipeline(short(pictures, folder), folder, say=quiet)
    assert train_pipeline(short(pictures, folder), folder, resume=True, say=quiet) is True
    for one, other in zip(_weights(finished[0]), _weights(folder), strict=True):
        assert torch.equal(one, other)


def _weights(folder: Path) -> list[Tensor]:
    loaded = rasterformer.load(folder)
    return [weight for stage in (loaded, *loaded.upscalers) for weight in stage.model.state_dict().values()]


def test_a_cascade_is_joined_when_its_stages_had_ended_before(
    finished: tuple[Path, list[str]], pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cascade"
    shutil.copytree(finished[0], folder)
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "samples")
    said: list[str] = []
    assert train_pipeline(short(pictures, folder), folder, resume=True, say=said.append) is True
    assert said.count("it has ended before") == 2
    for name in ("model.safetensors", "upscaler_1.safetensors"):
        assert (folder / "model" / name).read_bytes() == (finished[0] / "model" / name).read_bytes()
    assert (folder / "samples" / "grid.png").is_file()


def test_resuming_a_finished_cascade_leaves_its_models_as_they_are(
    finished: tuple[Path, list[str]], pictures: Path
) -> None:
    folder = finished[0]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob(MANIFEST)}
    assert folder / "model" / MANIFEST in before
    assert train_pipeline(short(pictures, folder), folder, resume=True, say=quiet) is True
    assert {path: path.stat().st_mtime_ns for path in folder.rglob(MANIFEST)} == before


def test_captions_that_the_upscaler_will_miss_are_said_before_the_base_begins(pictures: Path, tmp_path: Path) -> None:
    for place in ("train", "test"):
        (tmp_path / "plain" / place).mkdir(parents=True)
        for picture in (pictures / place).glob("*.png"):
            shutil.copy(picture, tmp_path / "plain" / place)
    pipeline = short(pictures, tmp_path / "run")
    pipeline.stages["upscaler"] = short(tmp_path / "plain", tmp_path / "run").stages["upscaler"]
    with pytest.raises(DataError, match="has no captions"):
        train_pipeline(pipeline, tmp_path / "run", say=quiet)
    assert not (tmp_path / "run").exists()


def test_the_base_learns_to_draw_what_the_upscaler_learns_to_enlarge(pictures: Path, tmp_path: Path) -> None:
    """Pixel for pixel, where pictures are as large as the upscaler's."""
    stages = short(pictures, tmp_path / "run").stages
    index = torch.arange(COUNT - HELD_OUT)
    small, large = (open_recipe_images(recipe, "train").batch(index, use_labels=False) for recipe in stages.values())
    upscaler = System.create(stages["upscaler"])
    source = upscaler.with_source(large, first=0, purpose="training source", seed=0).cond.source
    assert source is not None and small.images.shape[2:] == (8, 8) and torch.equal(source, small.images)


def test_a_dry_run_says_what_every_stage_takes_and_makes_nothing(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    folder = tmp_path / "run"
    assert train_pipeline(short(pictures, folder), folder, dry_run=True, say=said.append) is True
    for number, stage in enumerate(("base", "upscaler"), start=1):
        (start,) = (k for k, line in enumerate(said) if f"stage {number} of 2: {stage}, in {folder / stage}" in line)
        assert any("parameters" in line for line in said[start:])
        assert f"dry run: {folder / stage} was not made" in said[start:]
    assert len([line for line in said if line.startswith("a step of")]) == 2
    assert list(tmp_path.iterdir()) == []
    words = ["train", "imagen-pipeline-tiny", "--data", pictures, "--out", folder, "--dry-run"]
    assert main([str(word) for word in words]) == 0
    assert capsys.readouterr().out.count("was not made") == 2 and list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_what_a_training_refuses(
    finished: tuple[Path, list[str]], pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="already holds runs"):
        train_pipeline(short(pictures, finished[0]), finished[0], dry_run=True, say=quiet)
    with pytest.raises(DataError, match="has no classes"):
        fields = {"base__data__use_labels": "true"}
        train_pipeline(short(pictures, tmp_path / "run", **fields), tmp_path / "run", dry_run=True, say=quiet)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_a_finished_cascade_leaves_it_as_it_is(finished: tuple[Path, list[str]], pictures: Path) -> None:
    folder, said = finished[0], list[str]()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert train_pipeline(short(pictures, folder), folder, resume=True, dry_run=True, say=said.append) is True
    assert said.count("it has ended before") == 2
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_a_stage_is_not_resumed_with_other_captions_and_the_message_says_so(pictures: Path, tmp_path: Path) -> None:
    own, folder = tmp_path / "pictures", tmp_path / "run"
    shutil.copytree(pictures, own)
    recipe = short(own, folder).stages["base"]

    def stop(text: str) -> None:
        if text.startswith(f"step {HALF},"):
            os.kill(os.getpid(), signal.SIGTERM)

    assert train_recipe(recipe, folder, say=stop) is False
    (own / "train" / "3.txt").write_text("a green picture", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"\(names, sizes or pixels differ, or captions do\)"):
        train_recipe(recipe, folder, resume=True, say=quiet)


class Counting(TextEncoder):
    """A frozen encoder of two states a text, which remembers what it has read."""

    dim, fingerprint = 2, "counting 1"

    def __init__(self) -> None:
        self.read: list[str] = []

    def encode(self, texts: Sequence[str], *, length: int = 64) -> tuple[Tensor, Tensor]:
        check_texts(texts, length=length)
        self.read += texts
        states = torch.tensor([[[len(text), 1.0], [1.0, 0.0]] for text in texts])
        return states, torch.ones(states.shape[:2], dtype=torch.bool)

    def to(self, device: str | torch.device) -> None:
        """Does nothing."""


def test_captions_are_read_once_for_all_stages(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Counting()
    monkeypatch.setattr(FolderEncoder, "load", lambda folder: encoder)
    folder = tmp_path / "cascade"
    texts = {"encoder": "folder", "folder": "encoder", "dim": "2"}
    fields = {f"{stage}__text__{name}": value for stage in ("base", "upscaler") for name, value in texts.items()}
    assert train_pipeline(short(pictures, folder, **fields), folder, say=quiet) is True
    of_training = [f"{('red', 'blue')[k % 2]} picture {k}" for k in range(HELD_OUT, COUNT)]
    assert [encoder.read.count(text) for text in of_training] == [1] * len(of_training)
    names = [sorted(path.name for path in (folder / stage / TEXTS_FOLDER).iterdir()) for stage in ("base", "upscaler")]
    assert names[0] == names[1] != []
