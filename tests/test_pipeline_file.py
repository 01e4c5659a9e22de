"""Pipelines as files: which stages there are, what may be overridden, and what each stage is trained on."""

from pathlib import Path

import pytest

from rasterformer.errors import ConfigError
from rasterformer.pipeline_file import Pipeline, load_pipeline, with_data
from rasterformer.tasks import Edges, Paired, SuperResolution

PLAIN = """
pipeline:
  tokenizer: {recipe: vqgan-tiny, set: {training.steps: 7, model.multipliers: [1, 1]}}
  prior: {recipe: vqgan-prior-tiny, set: {model.depth: 3}}
samples: 5
"""
EDGES = """
pipeline:
  prior: {recipe: vqgan-conditional}
  condition_tokenizer: {recipe: vqgan-map, set: {model.pictures: grey}}
  tokenizer: {recipe: vqgan}
"""
PAIRED = """
pipeline:
  tokenizer: {recipe: vqgan}
  condition_tokenizer: {recipe: vqgan-map, set: {data.image_size: 48, data.path: nowhere}}
  prior:
    recipe: vqgan-prior
    set:
      task.name: paired
      task.source_path: maps
      task.source_size: 32
      task.source_reduction: nearest
"""
CASCADE = """
pipeline:
  upscaler_2: {recipe: imagen-tiny-upscaler, set: {data.image_size: 64, task.factor: 4}}
  base: {recipe: imagen-tiny, set: {training.steps: 7}}
  upscaler: {recipe: imagen-tiny-upscaler}
samples: 5
"""


def load(folder: Path, text: str, *overrides: tuple[str, str]) -> Pipeline:
    file = folder / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    pipeline = load_pipeline(file, overrides)
    assert pipeline is not None
    return pipeline


def test_a_recipe_is_no_pipeline(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("system: vqgan\n", encoding="utf-8")
    assert load_pipeline("vqgan-tiny") is None
    assert load_pipeline(tmp_path / "recipe.yaml") is None


def test_stages_have_their_recipes_with_the_fields_that_the_file_sets(tmp_path: Path) -> None:
    pipeline = load(tmp_path, PLAIN)
    tokenizer, prior = pipeline.stages["tokenizer"], pipeline.stages["prior"]
    assert tokenizer.system == "vqgan" and tokenizer.training.steps == 7 and tokenizer.model.multipliers == (1, 1)
    assert prior.system == "vqgan_transformer" and prior.model.depth == 3
    assert pipeline.samples == 5


def test_stages_run_in_their_order_whatever_the_file_says_first(tmp_path: Path) -> None:
    pipeline = load(tmp_path, EDGES)
    assert list(pipeline.stages) == ["tokenizer", "condition_tokenizer", "prior"]
    assert pipeline.samples == 16


def test_an_override_changes_its_stage_only_and_counts_more_than_the_file(tmp_path: Path) -> None:
    pipeline = load(tmp_path, PLAIN, ("prior.training.seed", "9"), ("tokenizer.training.steps", "8"))
    assert [recipe.training.seed for recipe in pipeline.stages.values()] == [0, 9]
    assert pipeline.stages["tokenizer"].training.steps == 8 and pipeline.stages["prior"].training.steps == 60


TOKENIZER, PRIOR = "tokenizer: {recipe: vqgan-tiny}", "prior: {recipe: vqgan-prior-tiny}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pipeline: [vqgan]", r"has the sections pipeline and samples, but there is \['vqgan'\]"),
        (f"pipeline: {{{TOKENIZER}, {PRIOR}}}\ntraining: {{}}", "pipeline and samples, but there is training"),
        (f"pipeline: {{tokeniser: {{recipe: vqgan-tiny}}, {PRIOR}}}", r"pipeline\.tokeniser is no stage.*'?tokenizer"),
        (f"pipeline: {{{PRIOR}}}", r"pipeline\.tokenizer is missing"),
        (f"pipeline: {{{TOKENIZER}}}", r"pipeline\.prior is missing"),
        (f"pipeline: {{tokenizer: vqgan-tiny, {PRIOR}}}", r"pipeline\.tokenizer = 'vqgan-tiny' must have a recipe"),
        (f"pipeline: {{tokenizer: {{set: {{}}}}, {PRIOR}}}", r"pipeline\.tokenizer = .* must have a recipe"),
        (f"pipeline: {{tokenizer: {{recipe: vqgan-tiny, sets: {{}}}}, {PRIOR}}}", "'sets': {}} must have a recipe"),
        (f"pipeline: {{tokenizer: {{recipe: vqgan-tiny, set: 3}}, {PRIOR}}}", r"pipeline\.tokenizer\.set = 3 must be"),
        (
            f"pipeline: {{tokenizer: {{recipe: vqgan-prior-tiny}}, {PRIOR}}}",
            r"system vqgan_transformer; it needs .*vqgan",
        ),
        (
            f"pipeline: {{{TOKENIZER}, prior: {{recipe: vqgan-tiny}}}}",
            "pipeline.prior has a recipe of system vqgan; it needs a model over",
        ),
        (
            f"pipeline: {{{TOKENIZER}, prior: {{recipe: tiny}}}}",
            "system image_transformer; it needs a model over codes",
        ),
        (
            f"pipeline: {{{TOKENIZER}, prior: {{recipe: vqgan-prior-tiny, set: {{model.widht: 8}}}}}}",
            r"model\.widht = 8",
        ),
        (f"pipeline: {{{TOKENIZER}, {PRIOR}}}\nsamples: 0", "samples = 0 must be a whole number of at least 1"),
        (f"pipeline: {{{TOKENIZER}, {PRIOR}}}\nsamples: many", "samples = 'many' must be a whole number"),
        (f"pipeline: {{{TOKENIZER}, {PRIOR}}}\nsamples: true", "samples = True must be a whole number"),
        (f"pipeline: {{{TOKENIZER}, prior: {{recipe: vqgan-conditional}}}}", "task needs a stage condition_tokenizer"),
        (
            f"pipeline: {{{TOKENIZER}, condition_tokenizer: {{recipe: vqgan-map}}, {PRIOR}}}",
            "has no use for a stage condition_tokenizer",
        ),
        (
            f"pipeline: {{{TOKENIZER}, condition_tokenizer: {{recipe: vqgan-map}}, prior: {{recipe: vqgan-prior-tiny, "
            "set: {task.name: super_resolution}}}",
            "task has no use for a stage condition_tokenizer",
        ),
    ],
)
def test_what_is_no_pipeline_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize("name", ["training.steps", "model.depth", "prior", "condition_tokenizer.training.steps"])
def test_an_override_that_names_no_stage_is_refused_with_an_example(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"override '{name}' names no stage of this pipeline.*prior\.model\.depth"):
        load(tmp_path, PLAIN, (name, "8"))


def test_an_override_of_an_unknown_field_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.dept = 8 is not known. Did you mean 'depth'"):
        load(tmp_path, PLAIN, ("prior.model.dept", "8"))


def test_images_and_the_places_of_tokenizers_are_filled_in(tmp_path: Path) -> None:
    filled = with_data(load(tmp_path, PLAIN), "photos", Path("runs/mine"))
    assert [recipe.data.path for recipe in filled.stages.values()] == ["photos", "photos"]
    prior = filled.stages["prior"].model
    assert prior.tokenizer == str(Path("runs/mine/tokenizer")) and prior.condition_tokenizer is None
    assert prior.depth == 3 and filled.samples == 5


def test_images_of_the_recipes_stay_where_none_are_given(tmp_path: Path) -> None:
    pipeline = load(tmp_path, PLAIN, ("tokenizer.data.path", "flowers"), ("prior.data.path", "cats"))
    filled = with_data(pipeline, None, Path("runs"))
    assert [recipe.data.path for recipe in filled.stages.values()] == ["flowers", "cats"]


def test_the_tokenizer_of_edges_learns_from_the_edges_of_the_images(tmp_path: Path) -> None:
    pipeline = load(tmp_path, EDGES, ("prior.task.sigma", "1.5"))
    filled = with_data(pipeline, "photos", Path("runs"))
    assert {recipe.data.path for recipe in filled.stages.values()} == {"photos"}
    assert filled.stages["condition_tokenizer"].task == filled.stages["prior"].task == Edges(sigma=1.5)
    assert filled.stages["tokenizer"].task is None
    prior = filled.stages["prior"].model
    assert prior.tokenizer == str(Path("runs/tokenizer"))
    assert prior.condition_tokenizer == str(Path("runs/condition_tokenizer"))


def test_the_tokenizer_of_a_second_folder_learns_from_that_folder_as_the_prior_reads_it(tmp_path: Path) -> None:
    filled = with_data(load(tmp_path, PAIRED), "photos", Path("runs"))
    condition = filled.stages["condition_tokenizer"]
    assert (condition.data.path, condition.data.image_size, condition.data.reduction) == ("maps", 32, "nearest")
    assert condition.task is None
    assert [filled.stages[name].data.path for name in ("tokenizer", "prior")] == ["photos", "photos"]
    assert [filled.stages[name].data.reduction for name in ("tokenizer", "prior")] == ["auto", "auto"]
    assert filled.stages["prior"].task == Paired("maps", 32, "nearest")


def test_sources_as_large_as_the_images_are_tokenized_at_the_priors_size(tmp_path: Path) -> None:
    wider = [("prior.task.source_size", "null"), ("prior.data.image_size", "96"), ("prior.data.trim", "[4, 0]")]
    filled = with_data(load(tmp_path, PAIRED, *wider, ("prior.data.fit", "stretch")), "photos", Path("runs"))
    condition = filled.stages["condition_tokenizer"].data
    assert (condition.image_size, condition.fit, condition.trim) == (96, "stretch", (4, 0))


def test_a_task_of_its_own_for_the_condition_is_refused(tmp_path: Path) -> None:
    pipeline = load(tmp_path, EDGES, ("condition_tokenizer.task.name", "colourise"))
    with pytest.raises(ConfigError, match=r"condition_tokenizer\.task is that of the prior: leave it out there"):
        with_data(pipeline, "photos", Path("runs"))


def test_a_size_of_the_prior_that_does_not_suit_the_tokenizer_of_its_sources_is_refused(tmp_path: Path) -> None:
    pipeline = load(tmp_path, EDGES, ("prior.data.image_size", "66"))
    with pytest.raises(
        ConfigError, match=r"stage condition_tokenizer has 1 problem:\s+data\.image_size = 66 is no multiple"
    ):
        with_data(pipeline, "photos", Path("runs"))


def test_stages_of_a_cascade_run_in_their_order(tmp_path: Path) -> None:
    pipeline = load(tmp_path, CASCADE, ("upscaler.training.seed", "9"))
    assert pipeline.is_cascade and not load(tmp_path, PLAIN).is_cascade
    assert list(pipeline.stages) == ["base", "upscaler", "upscaler_2"] and pipeline.samples == 5
    assert [recipe.data.image_size for recipe in pipeline.stages.values()] == [8, 16, 64]
    tasks = [recipe.task for recipe in pipeline.stages.values()]
    assert tasks == [None, SuperResolution(2), SuperResolution(4)]
    assert [recipe.training.seed for recipe in pipeline.stages.values()] == [0, 9, 0]
    assert pipeline.stages["base"].training.steps == 7


def test_all_stages_of_a_cascade_learn_from_the_same_images(tmp_path: Path) -> None:
    filled = with_data(load(tmp_path, CASCADE), "photos", Path("runs/mine"))
    assert {recipe.data.path for recipe in filled.stages.values()} == {"photos"} and filled.samples == 5
    pipeline = load(tmp_path, CASCADE, ("base.data.path", "flowers"))
    kept = with_data(pipeline, None, Path("runs/mine"))
    assert [recipe.data.path for recipe in kept.stages.values()] == ["flowers", None, None]


BASE, UPSCALER = "base: {recipe: imagen-tiny}", "upscaler: {recipe: imagen-tiny-upscaler}"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (f"{BASE}, {TOKENIZER}", r"pipeline\.tokenizer is no stage of a cascade, which has base, upscaler, upscaler_2"),
        (f"{UPSCALER}, {TOKENIZER}, {PRIOR}", r"pipeline\.tokenizer is no stage of a cascade"),
        (BASE, r"pipeline\.upscaler is missing"),
        (UPSCALER, r"pipeline\.base is missing"),
        (f"{BASE}, upscaler_2: {{recipe: imagen-tiny-upscaler}}", r"pipeline\.upscaler is missing"),
        (
            f"base: {{recipe: tiny}}, {UPSCALER}",
            "base has a recipe of system image_transformer; it needs a diffusion model",
        ),
        (
            f"{BASE}, upscaler: {{recipe: vq-diffusion-tiny}}",
            "system vq_diffusion; it needs a diffusion model of pixels",
        ),
        (
            f"{BASE}, upscaler: {{recipe: imagen-tiny}}",
            r"upscaler\.task is missing; an upscaler needs super_resolution",
        ),
        (f"{BASE}, upscaler: {{recipe: imagen-inpaint}}", r"upscaler\.task is inpaint; an upscaler needs"),
        (
            f"base: {{recipe: imagen-tiny-upscaler}}, {UPSCALER}",
            r"base\.task is super_resolution, but the base draws from n",
        ),
    ],
)
def test_what_is_no_cascade_is_refused(tmp_path: Path, stages: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, f"pipeline: {{{stages}}}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"base.data.image_size": "16"},
            r"image_size = 16 and upscaler\.task\.factor = 2 make images from those of 8x8 pixels, but base draws 16x16",
        ),
        ({"upscaler.task.factor": "4"}, "make images from those of 4x4 pixels, but base draws 8x8"),
        (
            {"upscaler_2.task.factor": "2"},
            r"upscaler_2\.task\.factor = 2 .* 32x32 pixels, but upscaler draws 16x16 \(upscaler\.data\.image_size\)",
        ),
        (
            {"upscaler.data.use_labels": "true"},
            r"upscaler\.data\.use_labels = true, but base\.data\.use_labels = false",
        ),
        ({"upscaler_2.data.fit": "stretch"}, r"upscaler_2\.data\.fit = 'stretch', but base\.data\.fit = 'crop'"),
        (
            {"upscaler.data.reduction": "auto"},
            r"upscaler\.data\.reduction = 'auto', but base\.data\.reduction = 'area'",
        ),
        (
            {"base.data.holdout_fraction": "0.2"},
            r"(?s)upscaler\.data\.holdout_fraction = 0\.1, but base\.data\.holdout_fraction = 0\.2.*upscaler_2\.data\.h",
        ),
        ({"base.data.trim": "[1, 0]"}, r"(?s)upscaler\.data\.trim = \(0, 0\), but base.*upscaler_2\.data\.trim"),
    ],
)
def test_stages_of_a_cascade_that_do_not_fit_are_refused(
    tmp_path: Path, overrides: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, CASCADE, *overrides.items())


def test_a_base_with_classes_may_have_upscalers_without(tmp_path: Path) -> None:
    pipeline = load(tmp_path, CASCADE, ("base.data.use_labels", "true"))
    assert [recipe.data.use_labels for recipe in pipeline.stages.values()] == [True, False, False]


def test_an_override_that_names_no_stage_of_a_cascade_is_refused_with_an_example(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'prior\.model\.depth' names no stage .*base\.training\.minutes"):
        load(tmp_path, CASCADE, ("prior.model.depth", "8"))
