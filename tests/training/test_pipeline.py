"""A pipeline with a condition, from a folder of pictures to a model that draws along edges; stopping in between, going on."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rasterformer
from rasterformer.cli.main import main
from rasterformer.errors import ConfigError, DataError
from rasterformer.manifest import MANIFEST
from rasterformer.pipeline_file import Pipeline, load_pipeline, with_data
from rasterformer.tasks import Edges
from rasterformer.training.pipeline import train_pipeline

SHORT = (
    "training.steps: 3, training.batch_size: 4, training.eval_every: 3, training.save_every: 3, training.eval_images: 2"
)
EDGES = f"""
pipeline:
  tokenizer:
    recipe: vqgan-tiny
    set: {{data.image_size: 16, model.perceptual: none, {SHORT}}}
  condition_tokenizer:
    recipe: vqgan-tiny
    set: {{data.image_size: 16, model.perceptual: none, model.pictures: grey, model.vocab_size: 32, {SHORT}}}
  prior:
    recipe: vqgan-prior-tiny
    set: {{data.image_size: 16, task.name: edges, task.sigma: 1.0, model.aligned_condition: true, {SHORT}}}
"""


def quiet(text: str) -> None:
    """Says nothing."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures of 16x16 pixels, a bright square on a dark ground in each."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for k in range(20):
        values = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)
        top, left = rng.integers(1, 8, 2)
        values[top : top + 7, left : left + 7] += 180
        Image.fromarray(values).save(folder / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def pipeline_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipes") / "edges.yaml"
    file.write_text(EDGES, encoding="utf-8")
    return file


def filled(file: Path, pictures: Path, folder: Path) -> Pipeline:
    pipeline = load_pipeline(file)
    assert pipeline is not None
    return with_data(pipeline, str(pictures), folder)


@pytest.fixture(scope="module")
def finished(pipeline_file: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder, and what was said."""
    said: list[str] = []
    folder = tmp_path_factory.mktemp("pipelines") / "edges"
    assert train_pipeline(filled(pipeline_file, pictures, folder), folder, say=said.append) is True
    return folder, said


def test_every_stage_is_trained_on_what_the_stages_before_have_made(finished: tuple[Path, list[str]]) -> None:
    folder, said = finished
    stages = [line.strip() for line in said if line.strip().startswith("stage ")]
    names = ["tokenizer", "condition_tokenizer", "prior"]
    assert stages == [f"stage {k} of 3: {name}, in {folder / name}" for k, name in enumerate(names, start=1)]
    prior = rasterformer.load(folder / "prior")
    for name in names[:2]:
        assert prior.tokenizers[name].fingerprint == rasterformer.load_tokenizer(folder / name).fingerprint
    assert [prior.tokenizers[name].vocab_size for name in names[:2]] == [64, 32]
    assert prior.recipe.task == prior.tokenizers["condition_tokenizer"].recipe.task == Edges(sigma=1.0)
    assert all(prior.tokenizers[name].steps == prior.steps == 3 for name in names[:2])


def test_the_tokenizer_of_the_condition_was_trained_to_reproduce_edges(finished: tuple[Path, list[str]]) -> None:
    tokenizer = rasterformer.load(finished[0] / "prior").tokenizers["condition_tokenizer"]
    picture = torch.full((1, 3, 16, 16), 20, dtype=torch.uint8)
    picture[:, :, :, 8:] = 220
    seen = tokenizer.seen(picture)
    assert seen.unique().tolist() == [0, 255] and bool((seen[0, 0, :, 6:10] == 255).any(1).all())


def test_a_pipeline_with_a_task_shows_its_sheet_and_draws_nothing_from_nothing(
    finished: tuple[Path, list[str]],
) -> None:
    folder, said = finished
    assert not (folder / "samples").exists()
    sheet = said[-1].split("original: ")[1]
    assert Path(sheet).parent == folder / "prior" / "samples" and Path(sheet).is_file()
    commands = [line for line in said if line.startswith("now:")]
    assert len(commands) == 1 and str(folder / "prior") in commands[0], "other stages are followed by the next"


def test_its_model_draws_along_the_edges_of_a_larger_picture(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    values = np.full((24, 32, 3), 30, np.uint8)
    values[6:18, 8:25] = 230
    prior = rasterformer.load(finished[0] / "prior")
    (drawn,) = prior.transform([Image.fromarray(values)], n=2, seed=1, as_tensor=True)
    assert drawn.shape == (2, 3, 24, 32) and drawn.dtype == torch.uint8 and not torch.equal(drawn[0], drawn[1])
    (other,) = prior.transform([Image.fromarray(np.ascontiguousarray(values[:, ::-1]))], n=2, seed=1, as_tensor=True)
    assert not torch.equal(drawn, other), "the edges are not looked at"
    Image.fromarray(values).save(tmp_path / "square.png")
    words = ["transform", finished[0] / "prior", tmp_path / "square.png", "-n", "2", "--seed", "1", "--out", tmp_path]
    assert main([str(word) for word in words]) == 0


def test_a_folder_that_holds_runs_is_refused(
    finished: tuple[Path, list[str]], pipeline_file: Path, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"edges already holds runs.*--resume"):
        train_pipeline(filled(pipeline_file, pictures, finished[0]), finished[0], say=quiet)
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "recipe.yaml").write_text("system: vqgan_transformer\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="already holds runs"):
        train_pipeline(filled(pipeline_file, pictures, tmp_path), tmp_path, say=quiet)
    assert not (tmp_path / "tokenizer").exists()


def test_where_nothing_was_begun_nothing_is_resumed(pipeline_file: Path, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with pytest.raises(ConfigError, match="new holds no run to resume"):
        train_pipeline(filled(pipeline_file, pictures, folder), folder, resume=True, say=quiet)
    assert not folder.exists()


def test_a_pipeline_is_not_resumed_with_another_recipe(
    finished: tuple[Path, list[str]], pipeline_file: Path, pictures: Path
) -> None:
    pipeline = load_pipeline(pipeline_file, [("condition_tokenizer.training.seed", "4")])
    assert pipeline is not None
    with pytest.raises(ConfigError, match=r"condition_tokenizer was started with .*training\.seed was 0, is 4"):
        train_pipeline(with_data(pipeline, str(pictures), finished[0]), finished[0], resume=True, say=quiet)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("data.use_labels", "true", "has no classes"), ("text.length", "32", "has no captions")],
)
def test_what_a_later_stage_will_miss_is_said_before_the_first_begins(
    pipeline_file: Path, pictures: Path, tmp_path: Path, field: str, value: str, message: str
) -> None:
    pipeline = load_pipeline(pipeline_file, [(f"prior.{field}", value)])
    assert pipeline is not None
    with pytest.raises(DataError, match=message):
        train_pipeline(with_data(pipeline, str(pictures), tmp_path / "run"), tmp_path / "run", say=quiet)
    assert not (tmp_path / "run").exists()


def test_resuming_leaves_finished_stages_as_they_are(
    finished: tuple[Path, list[str]], pipeline_file: Path, pictures: Path
) -> None:
    said: list[str] = []
    folder = finished[0]
    before = {path: path.read_bytes() for path in folder.rglob(MANIFEST)}
    times = {path: path.stat().st_mtime_ns for path in before}
    assert train_pipeline(filled(pipeline_file, pictures, folder), folder, resume=True, say=said.append) is True
    assert said.count("it has ended before") == 3
    assert len(before) >= 3
    for path, content in before.items():
        assert path.read_bytes() == content and path.stat().st_mtime_ns == times[path]


def test_weights_to_begin_with_are_refused(
    pipeline_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(pipeline_file), "--out", str(tmp_path / "run"), "--init", "runs/other"]) == 2
    assert "is a pipeline: --init is for the recipes of its stages" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_builds_the_tokenizers_and_says_what_the_prior_waits_for(
    pipeline_file: Path, pictures: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    folder = tmp_path / "run"
    assert train_pipeline(filled(pipeline_file, pictures, folder), folder, dry_run=True, say=said.append) is True
    made = [line for line in said if "was not made" in line]
    assert made == [f"dry run: {folder / stage} was not made" for stage in ("tokenizer", "condition_tokenizer")]
    assert said[-1].startswith("its images fit; its network is built on the codes of tokenizer and condition_tokenizer")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_builds_the_prior_where_its_tokenizers_are(
    finished: tuple[Path, list[str]], pipeline_file: Path, pictures: Path, tmp_path: Path
) -> None:
    folder, said = tmp_path / "run", list[str]()
    shutil.copytree(finished[0], folder)
    shutil.rmtree(folder / "prior")
    assert train_pipeline(filled(pipeline_file, pictures, folder), folder, resume=True, dry_run=True, say=said.append)
    assert said[-1] == f"dry run: {folder / 'prior'} was not made" and not (folder / "prior").exists()
