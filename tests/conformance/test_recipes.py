"""Every shipped recipe loads, fits together and builds; the smallest one lives a whole life: train, stop, resume, load."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

import rasterformer
from rasterformer.errors import ConfigError
from rasterformer.recipe import Recipe
from rasterformer.recipe_file import load_recipe, shipped_recipes
from rasterformer.system import System
from rasterformer.training.log import read_metrics
from rasterformer.training.run import train_recipe


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipe_has_no_problems_and_builds(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.model.problems() + recipe.data.problems() + recipe.training.problems() == []
    system = System.create(recipe, num_classes=10 if recipe.data.use_labels else 0)
    size = recipe.data.image_size
    assert system.codec.image_shape == (3, size, size)
    assert system.codec.x_shape[0] * system.codec.x_shape[1] == 3 * size * size
    assert all(bool(weight.isfinite().all()) for weight in system.model.parameters())


# Millions of parameters of the paper's own code, counted by building its graph (without its padded position tables,
# 1.57 M, where positions are learned). They are rounded to two decimals, hence the tolerance of 0.01.
PAPER_COUNTS = {
    "cifar10-cat": 38.33,
    "imagenet32": 38.33,
    "cifar10-class": 25.73,
    "imagenet64": 32.03,
    "cifar10-dmol": 11.06 - 1.57,
    "celeba-2d": 70.22,
}


@pytest.mark.parametrize("name", PAPER_COUNTS)
def test_paper_recipe_has_as_many_parameters_as_the_papers_code(name: str) -> None:
    recipe = load_recipe(name)
    model = System.create(recipe, num_classes=10 if recipe.data.use_labels else 0).model
    count = sum(weight.numel() for part, weight in model.named_parameters() if not part.startswith("positions."))
    assert count / 1e6 == pytest.approx(PAPER_COUNTS[name], abs=0.01)


def quiet(text: str) -> None:
    """Says nothing."""


@pytest.fixture(scope="module")
def tiny() -> Recipe:
    return load_recipe("tiny")


@pytest.fixture(scope="module")
def finished_run(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `tiny`, from beginning to end."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert train_recipe(tiny, folder, say=quiet) is True
    return folder


def same_weights(one: Path, other: Path) -> bool:
    first, second = (rasterformer.load(folder).model.state_dict() for folder in (one, other))
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_a_finished_run_holds_recipe_metrics_samples_model_and_report(finished_run: Path, tiny: Recipe) -> None:
    assert load_recipe(finished_run / "recipe.yaml") == tiny
    measured = [line for line in read_metrics(finished_run / "metrics.jsonl") if "held_out_bits_per_dim" in line]
    assert [line["step"] for line in measured] == [10, 20]
    assert measured[-1]["held_out_bits_per_dim"] < measured[0]["held_out_bits_per_dim"], "it learned nothing"
    assert [path.name for path in (finished_run / "samples").iterdir()] == ["step-0000020.png"]
    assert f"{measured[-1]['held_out_bits_per_dim']:.4f} bits/dim" in (finished_run / "report.md").read_text("utf-8")


def test_a_loaded_model_samples_and_scores_as_the_saved_one_bit_for_bit(finished_run: Path, tmp_path: Path) -> None:
    system = rasterformer.load(finished_run)
    images = system.sample(3, seed=5, as_tensor=True)
    system.save(tmp_path / "copy")
    copy = rasterformer.load(tmp_path / "copy")
    assert same_weights(finished_run, tmp_path / "copy") and copy.steps == system.steps == 20
    assert torch.equal(copy.sample(3, seed=5, as_tensor=True), images)
    assert torch.equal(copy.bits_per_dim(images), system.bits_per_dim(images))


def test_the_same_recipe_gives_the_same_weights(finished_run: Path, tiny: Recipe, tmp_path: Path) -> None:
    train_recipe(tiny, tmp_path / "again", say=quiet)
    assert same_weights(finished_run, tmp_path / "again")


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_and_resumed_run_ends_with_the_same_weights_and_metrics(
    finished_run: Path, tiny: Recipe, tmp_path: Path, stop: signal.Signals
) -> None:
    folder, said = tmp_path / "run", []

    def stop_at_step_10(text: str) -> None:
        said.append(text)
        if text.startswith("step 10,"):
            os.kill(os.getpid(), stop)

    assert train_recipe(tiny, folder, say=stop_at_step_10) is False
    assert f"stopped by {stop.name} at step 10" in said[-1]
    assert not (folder / "model").exists() and rasterformer.load(folder).steps == 10
    assert train_recipe(tiny, folder, resume=True, say=quiet) is True
    assert same_weights(finished_run, folder)

    def figures(run: Path) -> list[tuple[int, float]]:
        lines = read_metrics(run / "metrics.jsonl")
        return [(line["step"], line["held_out_bits_per_dim"]) for line in lines if "held_out_bits_per_dim" in line]

    assert figures(folder) == figures(finished_run)


def test_init_takes_over_the_weights_that_fit_and_names_the_others(finished_run: Path, tmp_path: Path) -> None:
    still = [("training.steps", "1"), ("training.learning_rate", "1e-30"), ("training.eval_images", "2")]
    deeper = load_recipe("tiny", [*still, ("model.depth", "3"), ("model.block_length", "8")])
    said: list[str] = []
    train_recipe(deeper, tmp_path / "deeper", init=finished_run, say=said.append)
    source = rasterformer.load(finished_run).model.state_dict()
    taken = rasterformer.load(tmp_path / "deeper").model.state_dict()
    assert all(torch.equal(taken[name], weight) for name, weight in source.items())
    assert any(f"{len(source)} of {len(taken)} weights taken over" in line for line in said)
    assert any("starting fresh: layers.2." in line for line in said)


def test_init_from_a_model_of_which_nothing_fits_is_refused(finished_run: Path, tmp_path: Path) -> None:
    other = load_recipe("tiny", [("model.width", "8"), ("model.mlp_width", "6"), ("model.num_mixtures", "2")])
    with pytest.raises(ConfigError, match="no weight of it has the name and shape"):
        train_recipe(other, tmp_path / "other", init=finished_run, say=quiet)


def test_a_dry_run_checks_and_makes_nothing(tiny: Recipe, tmp_path: Path) -> None:
    said: list[str] = []
    assert train_recipe(tiny, tmp_path / "run", dry_run=True, say=said.append) is True
    assert list(tmp_path.iterdir()) == []
    assert "was not made" in said[-1]


def test_a_run_needs_data_and_a_new_folder(finished_run: Path, tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.path is not set"):
        train_recipe(load_recipe("tiny", [("data.path", "null")]), tmp_path / "run", say=quiet)
    with pytest.raises(ConfigError, match="already holds a run"):
        train_recipe(tiny, finished_run, say=quiet)
    with pytest.raises(ConfigError, match="holds no run to resume"):
        train_recipe(tiny, tmp_path / "nothing", resume=True, say=quiet)


def test_a_run_is_not_resumed_with_another_recipe(finished_run: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.depth was 2, is 3; training\.seed was 0, is 4"):
        changed = load_recipe("tiny", [("model.depth", "3"), ("training.seed", "4"), ("training.steps", "30")])
        train_recipe(changed, finished_run, resume=True, say=quiet)


def test_resuming_a_finished_run_changes_nothing(finished_run: Path, tiny: Recipe) -> None:
    before = json.dumps(read_metrics(finished_run / "metrics.jsonl"))
    weights = rasterformer.load(finished_run).model.state_dict()
    assert train_recipe(tiny, finished_run, resume=True, say=quiet) is True
    after = rasterformer.load(finished_run).model.state_dict()
    assert all(torch.equal(weights[name], after[name]) for name in weights)
    assert json.dumps(read_metrics(finished_run / "metrics.jsonl")) == before
