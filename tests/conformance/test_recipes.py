"""Every shipped recipe loads, fits together and builds; the smallest one lives a whole life: train, stop, resume, load."""

import dataclasses
import json
import os
import signal
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rasterformer
from rasterformer import registry
from rasterformer.cascade import join
from rasterformer.errors import ConfigError
from rasterformer.pipeline_file import Pipeline, load_pipeline, with_data
from rasterformer.recipe import Recipe
from rasterformer.recipe_file import load_recipe, shipped_recipes
from rasterformer.system import System
from rasterformer.tasks import task_name
from rasterformer.tokenizer import Tokenizer
from rasterformer.training.log import read_metrics
from rasterformer.training.pipeline import train_pipeline
from rasterformer.training.run import train_recipe

PIPELINES = [name for name in shipped_recipes() if load_pipeline(name) is not None]
CASCADES = [name for name in PIPELINES if name.startswith("imagen")]
RECIPES = {name: load_recipe(name) for name in shipped_recipes() if name not in PIPELINES}
PIXELS = [name for name, recipe in RECIPES.items() if recipe.system == "image_transformer"]
TOKENIZERS = [name for name, recipe in RECIPES.items() if recipe.system in registry.TOKENIZERS]
PRIORS = [name for name, recipe in RECIPES.items() if hasattr(recipe.model, "tokenizer")]
DENOISERS = [name for name, recipe in RECIPES.items() if recipe.system == "imagen"]


def problems(recipe: Recipe) -> list[str]:
    task, size = recipe.task, recipe.data.image_size
    found = recipe.model.problems() + recipe.data.problems() + recipe.training.problems()
    has_text = recipe.text is not None
    return found + recipe.model.fit_problems(
        task=None if task is None else task_name(task), image_size=size, has_text=has_text
    )


def test_every_recipe_is_of_a_kind_that_is_tested() -> None:
    assert sorted(PIXELS + TOKENIZERS + PRIORS + DENOISERS) == sorted(RECIPES)


@pytest.mark.parametrize("name", PIXELS)
def test_shipped_recipe_has_no_problems_and_builds(name: str) -> None:
    recipe = RECIPES[name]
    assert problems(recipe) == []
    system = System.create(recipe, num_classes=10 if recipe.data.use_labels else 0)
    size = recipe.data.image_size
    assert system.codec.image_shape == (3, size, size)
    assert system.codec.x_shape[0] * system.codec.x_shape[1] == 3 * size * size
    assert all(bool(weight.isfinite().all()) for weight in system.model.parameters())


def made_tokenizer(recipe: Recipe) -> Tokenizer:
    """Untrained."""
    assert problems(recipe) == []
    tokenizer = Tokenizer.create(recipe)
    assert all(bool(weight.isfinite().all()) for weight in tokenizer.autoencoder.parameters())
    return tokenizer


@pytest.mark.parametrize("name", TOKENIZERS)
def test_shipped_tokenizer_has_no_problems_builds_and_makes_codes(name: str) -> None:
    recipe = RECIPES[name]
    tokenizer = made_tokenizer(recipe)
    side = recipe.data.image_size // tokenizer.factor
    assert tokenizer.vocab_size == recipe.model.vocab_size
    assert tokenizer.codec().grid == (side, side)
    images = torch.zeros(1, 3, 2 * tokenizer.factor, 4 * tokenizer.factor, dtype=torch.uint8)
    codes = tokenizer.encode(images)
    assert codes.shape == (1, 2, 4) and 0 <= int(codes.min()) <= int(codes.max()) < tokenizer.vocab_size
    assert tokenizer.decode(codes).shape == images.shape


def prior_of(recipe: Recipe, tokenizers: dict[str, Tokenizer], *, depth: int | None = None) -> System:
    """Untrained, on untrained tokenizers; with fewer layers where a depth is given."""
    assert problems(recipe) == []
    if depth is not None:
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, depth=depth))
    return System.create(recipe, num_classes=1000 if recipe.data.use_labels else 0, tokenizers=tokenizers)


@cache
def tokenizer_of_size(image_size: int) -> Tokenizer:
    """Of the first shipped recipe for pictures of that size."""
    fitting = [name for name in TOKENIZERS if RECIPES[name].data.image_size == image_size]
    return made_tokenizer(RECIPES[fitting[0]])


def tokenizers_for(recipe: Recipe) -> dict[str, Tokenizer]:
    size = recipe.data.image_size
    parts = ("tokenizer",) if recipe.task is None else ("tokenizer", "condition_tokenizer")
    return {part: tokenizer_of_size(size) for part in parts}


@pytest.mark.parametrize("name", PRIORS)
def test_shipped_prior_has_no_problems_and_builds_on_a_tokenizer_of_its_pictures(name: str) -> None:
    """With two of its layers, which are alike: all of those of the paper's largest take six gigabytes."""
    recipe = RECIPES[name]
    tokenizers = tokenizers_for(recipe)
    system = prior_of(recipe, tokenizers, depth=2)
    size, factor = recipe.data.image_size, tokenizers["tokenizer"].factor
    assert system.codec.image_shape == (3, size, size)
    assert system.codec.x_shape == ((size // factor) ** 2, 1)
    assert len(system.model.layers) == 2 and system.model.num_classes == (1000 if recipe.data.use_labels else 0)
    assert all(bool(weight.isfinite().all()) for weight in system.model.parameters())
    with pytest.raises(ConfigError, match=r"model\.(condition_)?tokenizer is missing"):
        System.create(recipe, num_classes=system.model.num_classes)


# Billions of parameters that the networks' docstrings state for texts of 512 dimensions, `text_width` of these recipes. The paper
# says 2B, 600M and 400M.
PAPER_BILLIONS = {"imagen-paper-base": 2.13, "imagen-paper-sr256": 0.57, "imagen-paper-sr1024": 0.56}


@pytest.mark.parametrize("name", [name for name in DENOISERS if name not in PAPER_BILLIONS])
def test_shipped_denoiser_has_no_problems_and_builds(name: str) -> None:
    recipe = RECIPES[name]
    assert problems(recipe) == []
    system = System.create(recipe)
    size = recipe.data.image_size
    assert system.image_shape == system.codec.image_shape == (3, size, size)
    assert system.takes_text == (recipe.text is not None)
    assert all(bool(weight.isfinite().all()) for weight in system.model.parameters())


@pytest.mark.parametrize("name", DENOISERS)
def test_shipped_denoiser_learns_from_pictures_reduced_as_the_sources_of_upscalers(name: str) -> None:
    assert RECIPES[name].data.reduction == "area"


@pytest.mark.parametrize("name", PAPER_BILLIONS)
def test_the_papers_denoisers_have_as_many_parameters_as_stated(name: str) -> None:
    """Their number is a polynomial of degree two in the width: three small widths tell that of the paper's."""
    recipe = RECIPES[name]
    assert problems(recipe) == [] and recipe.model.text_width == 512

    def count(width: int) -> int:
        small = dataclasses.replace(recipe.model, width=width, head_dim=width // 2, norm_groups=width // 4)
        network = System.create(dataclasses.replace(recipe, model=small)).model.network
        return sum(weight.numel() for weight in network.parameters())

    one, two, three = (count(8 * k) for k in (1, 2, 3))
    k = recipe.model.width // 8  # Newton's forward differences
    billions = (one + (k - 1) * (two - one) + (k - 1) * (k - 2) / 2 * (three - 2 * two + one)) / 1e9
    assert billions == pytest.approx(PAPER_BILLIONS[name], abs=0.005)


@pytest.mark.parametrize("name", CASCADES)
def test_shipped_cascade_has_stages_that_build_and_fit(name: str) -> None:
    pipeline = load_pipeline(name)
    assert pipeline is not None and pipeline.samples >= 1
    base, *upscalers = (System.create(recipe) for recipe in pipeline.stages.values())
    joined = join(base, upscalers)
    assert joined.image_size == pipeline.stages["upscaler"].data.image_size > base.image_size
    assert all(stage.takes_text for stage in (joined, *joined.upscalers))


@pytest.mark.parametrize("name", [name for name in PIPELINES if name not in CASCADES])
def test_shipped_pipeline_has_stages_that_build_on_one_another(name: str) -> None:
    pipeline = load_pipeline(name)
    assert pipeline is not None and pipeline.samples >= 1
    *before, last = pipeline.stages
    assert last == "prior"
    tokenizers = {stage: made_tokenizer(pipeline.stages[stage]) for stage in before}
    prior = prior_of(pipeline.stages["prior"], tokenizers, depth=2)
    assert prior.image_size == tokenizers["tokenizer"].image_size


def test_the_papers_tokenizer_has_as_many_parameters_as_the_papers() -> None:
    """Counted in the published code: 29.3 M in the encoder and 42.4 M in the decoder."""
    autoencoder = tokenizer_of_size(256).autoencoder
    counts = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (autoencoder.encoder, autoencoder.decoder)]
    assert counts == pytest.approx([29.3, 42.4], abs=0.05)


def test_the_papers_largest_prior_has_as_many_parameters_as_the_papers() -> None:
    """1.4 billion (Esser et al. 2021, table 4), by the difference that a layer makes."""
    recipe = RECIPES["vqgan-prior-imagenet"]
    one, two = (
        sum(p.numel() for p in prior_of(recipe, tokenizers_for(recipe), depth=depth).model.parameters()) / 1e9
        for depth in (1, 2)
    )
    assert one + (recipe.model.depth - 1) * (two - one) == pytest.approx(1.4, abs=0.05)


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


def short_pipeline(folder: Path, images: Path) -> Pipeline:
    """The smallest pipeline, four steps a stage, measured and saved after two."""
    fields = {
        "training.steps": "4",
        "training.eval_every": "2",
        "training.save_every": "2",
        "training.eval_images": "4",
    }
    overrides = [(f"{stage}.{name}", text) for stage in ("tokenizer", "prior") for name, text in fields.items()]
    pipeline = load_pipeline("vqgan-pipeline-tiny", overrides)
    assert pipeline is not None
    return with_data(pipeline, str(images), folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pictures of 32x32 pixels of noise."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for k in range(30):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def finished_pipeline(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    assert train_pipeline(short_pipeline(folder, pictures), folder, say=quiet) is True
    return folder


def test_a_finished_pipeline_holds_both_runs_and_its_samples(finished_pipeline: Path) -> None:
    for stage, figure in (("tokenizer", "held_out_psnr_db"), ("prior", "held_out_nats_per_code")):
        measured = [line for line in read_metrics(finished_pipeline / stage / "metrics.jsonl") if figure in line]
        assert [line["step"] for line in measured] == [2, 4]
        assert (finished_pipeline / stage / "report.md").is_file()
    tokenizer, prior = (
        rasterformer.load_tokenizer(finished_pipeline / "tokenizer"),
        rasterformer.load(finished_pipeline / "prior"),
    )
    assert prior.tokenizers["tokenizer"].fingerprint == tokenizer.fingerprint
    names = sorted(path.name for path in (finished_pipeline / "samples").iterdir())
    assert names == ["0000.png", "0001.png", "0002.png", "0003.png", "grid.png"]
    with Image.open(finished_pipeline / "samples" / "0002.png") as picture:
        drawn = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert torch.equal(drawn, prior.sample(1, seed=0, first=2, as_tensor=True)[0])


@pytest.mark.parametrize("stage", ["tokenizer", "prior"])
def test_a_stopped_and_resumed_pipeline_ends_with_the_same_model(
    finished_pipeline: Path, pictures: Path, tmp_path: Path, stage: str
) -> None:
    folder, seen = tmp_path / "pipeline", ["none"]

    def stop_at_step_2(text: str) -> None:
        if text.strip().startswith("stage "):
            seen[0] = text
        if text.startswith("step 2,") and f": {stage}, " in seen[0]:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train_pipeline(short_pipeline(folder, pictures), folder, say=stop_at_step_2) is False
    assert not (folder / stage / "model").exists()
    with pytest.raises(ConfigError, match="already holds runs"):
        train_pipeline(short_pipeline(folder, pictures), folder, say=quiet)
    assert train_pipeline(short_pipeline(folder, pictures), folder, resume=True, say=quiet) is True
    assert same_weights(finished_pipeline / "prior", folder / "prior")
    fingerprints = [
        rasterformer.load_tokenizer(place / "tokenizer").fingerprint for place in (finished_pipeline, folder)
    ]
    assert fingerprints[0] == fingerprints[1]
    first, second = (
        rasterformer.load(place / "prior").sample(2, seed=5, as_tensor=True) for place in (finished_pipeline, folder)
    )
    assert torch.equal(first, second)
