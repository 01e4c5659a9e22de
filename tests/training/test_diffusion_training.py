"""Training a diffusion model over codes: runs that stop and go on, codes that do not occur, captions, and what is measured."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import rasterformer
from rasterformer.checkpoint import load_checkpoint
from rasterformer.conditioning.text import ByteTokens, MiniLMEncoder
from rasterformer.conditioning.text_encoder import TextEncoder, check_texts
from rasterformer.conditioning.text_folder import FolderEncoder
from rasterformer.data.codes import load_codes
from rasterformer.data.png import read_png_metadata
from rasterformer.diffusion.importance import StepSampler
from rasterformer.errors import CheckpointError, ConfigError, DataError, MissingExtraError
from rasterformer.interfaces import Cond
from rasterformer.pipeline_file import Pipeline, load_pipeline, with_data
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.recipe_images import open_recipe_images
from rasterformer.system import System
from rasterformer.systems.vqgan.config import Config as TokenizerConfig
from rasterformer.tokenizer import Tokenizer
from rasterformer.training.codes import CodesLearner
from rasterformer.training.log import read_metrics
from rasterformer.training.pipeline import train_pipeline
from rasterformer.training.run import train_recipe

SIDE, LEVELS, BATCH, STEPS = 8, 4, 8, 20  # pixels (f = 2: 4x4 codes); T; images; of which half before a run is stopped
CODES, FAR = 12, 6  # of the tokenizer, and those of them that are near no picture
COLOURS = {"red": (220, 40, 30), "blue": (20, 60, 210), "grey": (128, 128, 128)}


def quiet(text: str) -> None:
    """Says nothing."""


def write_pictures(folder: Path, *, count: int, side: int, captions: bool) -> Path:
    """Noisy pictures of three colours; a .txt file says which."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in range(count):
        name, colour = list(COLOURS.items())[k % 3]
        values = np.clip(np.array(colour) + rng.integers(-30, 31, (side, side, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(values).save(folder / f"{k:02d}.png")
        if captions:
            (folder / f"{k:02d}.txt").write_text(f"a {name} square, number {k}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures", count=24, side=SIDE, captions=True)


@pytest.fixture(scope="module")
def tokenizer(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained; six of its codes lie in what it sees of the pictures, the others far away."""
    config = TokenizerConfig(
        base_width=8, multipliers=(1, 1), res_blocks=1, attention_levels=(), middle_attention=False, z_channels=8,
        norm_groups=2, vocab_size=CODES, dim=4, perceptual="none", discriminator="none",
    )  # fmt: skip
    made = Tokenizer.create(Recipe("vqgan", config, DataConfig(image_size=SIDE), TrainingConfig()))
    images = torch.stack(
        [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in sorted(pictures.glob("*.png"))]
    )
    with torch.no_grad():
        z = made.autoencoder.encode(images.float() / 127.5 - 1).permute(0, 2, 3, 1).reshape(-1, 4)
        made.autoencoder.quantiser.codebook[FAR:] = z[:: len(z) // FAR][:FAR]  # type: ignore[operator]
        made.autoencoder.quantiser.codebook[:FAR] = 1000 + torch.randn(FAR, 4)  # type: ignore[operator]
    folder = tmp_path_factory.mktemp("models") / "tokenizer"
    made.save(folder)
    return folder


def recipe_of(pictures: Path, tokenizer: Path, **changes: Any) -> Recipe:
    """The tiny recipe, smaller: levels are drawn by their importance before half of its steps are done."""
    fields: dict[str, Any] = {
        "data.path": f'"{pictures}"', "data.image_size": SIDE, "data.holdout_fraction": 0.25,
        "model.tokenizer": f'"{tokenizer}"', "model.num_steps": LEVELS, "model.width": 16, "model.depth": 1,
        "model.mlp_width": 16, "text.encoder": "bytes", "text.dim": 8, "text.length": 32,
        "training.steps": STEPS, "training.batch_size": BATCH, "training.eval_every": STEPS // 2,
        "training.save_every": STEPS // 2, "training.eval_images": 4,
    }  # fmt: skip
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    merged = {name: str(value) for name, value in (fields | changed).items() if value is not None}
    return rasterformer.load_recipe("vq-diffusion-tiny", list(merged.items()))


@pytest.fixture(scope="module")
def recipe(pictures: Path, tokenizer: Path) -> Recipe:
    return recipe_of(pictures, tokenizer)


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run from beginning to end, and what was said."""
    folder, said = tmp_path_factory.mktemp("runs") / "whole", list[str]()
    assert train_recipe(recipe, folder, say=said.append) is True
    return folder, said


@pytest.fixture(scope="module")
def stopped(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped by a signal in the middle."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"

    def stop_in_the_middle(text: str) -> None:
        if text.startswith(f"step {STEPS // 2},"):
            os.kill(os.getpid(), signal.SIGTERM)

    assert train_recipe(recipe, folder, say=stop_in_the_middle) is False
    return folder


def newest(folder: Path) -> Any:
    return load_checkpoint(max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name[5:])))


def held_out(folder: Path) -> list[tuple[int, float]]:
    lines = read_metrics(folder / "metrics.jsonl")
    return [
        (line["step"], line["held_out_nats_per_code_upper_bound"])
        for line in lines
        if "held_out_nats_per_code_upper_bound" in line
    ]


def test_the_losses_of_the_levels_are_kept_in_checkpoints_and_decide_what_is_drawn(
    finished: tuple[Path, list[str]], stopped: Path
) -> None:
    for folder, steps in ((finished[0], STEPS), (stopped, STEPS // 2)):
        counts = newest(folder).tensors["counts"]
        assert int(counts["hits"].sum()) == steps * BATCH and counts["squared"].shape == (LEVELS,)
        sampler = StepSampler(LEVELS)
        sampler.load_state_(counts)
        assert float(sampler.probs().std()) > 0.01, "levels are still drawn evenly: the test below would show nothing"


@pytest.mark.parametrize("without", [None, "codes.safetensors"])
def test_a_stopped_and_resumed_run_ends_with_the_same_weights_and_figures(
    finished: tuple[Path, list[str]], stopped: Path, recipe: Recipe, tmp_path: Path, without: str | None
) -> None:
    whole, folder = finished[0], tmp_path / "run"
    shutil.copytree(stopped, folder)
    assert not (folder / "model").exists() and rasterformer.load(folder).steps == STEPS // 2
    if without is not None:
        (folder / without).unlink()
    said: list[str] = []
    assert train_recipe(recipe, folder, resume=True, say=said.append) is True
    assert any(line.startswith("tokenizing") for line in said) is (without == "codes.safetensors")
    assert not any("codes occur" in line for line in said), "they are those of the checkpoint"
    resumed = newest(folder).tensors
    for name, part in newest(whole).tensors.items():
        assert all(torch.equal(resumed[name][key], value) for key, value in part.items()), name
    assert held_out(folder) == held_out(whole) and len(held_out(whole)) == 2
    both = [rasterformer.load(each).sample(2, text="a red square", as_tensor=True) for each in (folder, whole)]
    assert torch.equal(*both)


def test_codes_that_do_not_occur_are_counted_said_and_dropped(finished: tuple[Path, list[str]], pictures: Path) -> None:
    folder, said = finished
    codes = load_codes(folder / "codes.safetensors").codes
    used = codes.unique().long()
    assert codes.shape[1] == 2 and 1 < len(used) <= CODES - FAR and int(used.min()) >= FAR, "by the tokenizer's numbers"
    assert f"{len(used)} of {CODES} codes occur in the training images; the others are dropped" in said
    system = rasterformer.load(folder)
    assert system.codec.vocab_size == len(used) and system.model.get_parameter("head.weight").shape[0] == len(used)
    assert torch.equal(newest(folder).tensors["used_codes"]["used"], used)
    whole = recipe_of(
        pictures, folder / "nowhere", model__drop_unused_codes="false", text__encoder=None, text__dim=None
    )
    kept = System.create(whole, tokenizers=system.tokenizers)
    assert kept.codec.vocab_size == CODES


def test_what_is_measured_is_the_averaged_models_bound_under_each_images_own_caption(
    finished: tuple[Path, list[str]], recipe: Recipe
) -> None:
    """As `code_nats` says of the model that is shipped, over all T levels; the weights themselves say something else."""
    folder = finished[0]
    system, images = rasterformer.load(folder), open_recipe_images(recipe, "test")
    index = torch.arange(4)
    cond = system.with_text(Cond(), images.captions_of(index), 4)
    measured = float(system.code_nats(images.images(slice(0, 4)), cond, levels=LEVELS).double().mean())
    step, figure = held_out(folder)[-1]
    assert step == STEPS and figure == pytest.approx(measured, abs=1e-4)
    system.model.load_state_dict(newest(folder).tensors["model"])
    assert abs(float(system.code_nats(images.images(slice(0, 4)), cond).double().mean()) - measured) > 1e-3
    empty = rasterformer.load(folder)
    plain = float(empty.code_nats(images.images(slice(0, 4)), empty.with_text(Cond(), "", 4)).double().mean())
    assert abs(plain - measured) > 2e-4, "the captions are not looked at"


def test_the_report_calls_the_figure_a_bound_and_names_its_levels(finished: tuple[Path, list[str]]) -> None:
    report = (finished[0] / "report.md").read_text("utf-8")
    assert "Upper bound of the negative log-likelihood of codes" in report and "Exact" not in report
    assert f"estimated from {LEVELS} levels of noise" in report and "no likelihood of pixels" in report
    assert f"**{held_out(finished[0])[-1][1]:.4f} nats per code**" in report


def test_the_report_says_how_many_held_out_codes_were_replaced(
    finished: tuple[Path, list[str]], recipe: Recipe
) -> None:
    """Counted one by one, of the images that are measured."""
    folder = finished[0]
    used = set(newest(folder).tensors["used_codes"]["used"].tolist())
    codes = (
        rasterformer.load(folder).tokenizers["tokenizer"].encode(open_recipe_images(recipe, "test").images(slice(0, 4)))
    )
    share = sum(code not in used for code in codes.flatten().tolist()) / codes.numel()
    assert f"codes after replacement of {share:.2%} of them" in (folder / "report.md").read_text("utf-8")
    one, few = torch.tensor([min(used)]), sum(code != min(used) for code in codes.flatten().tolist()) / codes.numel()
    system = rasterformer.load(folder)
    system = System.create(recipe, tokenizers=system.tokenizers, used_codes=one)
    system.text_encoder = ByteTokens()
    learner = CodesLearner(system, open_recipe_images(recipe, "train"), open_recipe_images(recipe, "test"), say=quiet)
    figures = {"held_out_nats_per_code_upper_bound": 1.0, "images": 4}
    assert few > 0 and f"codes after replacement of {few:.2%} of them" in learner.headline(figures)


@pytest.mark.parametrize(("nats", "is_above"), [(0.5, False), (9.5, True)])
def test_the_report_says_when_knowing_nothing_would_cost_less(
    finished: tuple[Path, list[str]], recipe: Recipe, nats: float, is_above: bool
) -> None:
    """There are six codes at most: ln 6 = 1.79; and more than one."""
    system = rasterformer.load(finished[0])
    learner = CodesLearner(system, open_recipe_images(recipe, "train"), open_recipe_images(recipe, "test"), say=quiet)
    headline = learner.headline({"held_out_nats_per_code_upper_bound": nats, "images": 4})
    verdict = "That is more than knowing nothing would cost: the model is not trained enough to say anything."
    assert f"**{nats:.4f} nats per code**" in headline and (verdict in headline) is is_above


def test_training_lowers_the_bound(finished: tuple[Path, list[str]]) -> None:
    (_, first), (_, last) = held_out(finished[0])
    assert last < first


def test_bytes_of_captions_are_learnt(finished: tuple[Path, list[str]], recipe: Recipe) -> None:
    system = rasterformer.load(finished[0])
    fresh = System.create(
        recipe, tokenizers=system.tokenizers, used_codes=newest(finished[0]).tensors["used_codes"]["used"]
    )
    name = "text_input.bytes.words.weight"
    moved = (system.model.get_parameter(name) - fresh.model.get_parameter(name)).abs().amax(1)
    assert bool(moved[ord("q")] > 0) and not moved[ord("Z")], "of the bytes that occur"


@pytest.mark.parametrize("name", ["vq-diffusion-tiny", "vqgan-prior-tiny"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_missing_tokenizer_is_named_where_codes_are_dropped(
    name: str, dry_run: bool, pictures: Path, tmp_path: Path
) -> None:
    fields = [("data.path", f'"{pictures}"'), ("data.image_size", str(SIDE)), ("model.drop_unused_codes", "true")]
    encoder = [("text.encoder", "bytes"), ("text.dim", "8")]
    bare = rasterformer.load_recipe(name, [*fields, *encoder])
    with pytest.raises(ConfigError, match="model.tokenizer is missing: the run or model folder of a tokenizer"):
        train_recipe(bare, tmp_path / "run", dry_run=dry_run, say=quiet)


def test_a_dry_run_tokenizes_nothing_and_makes_nothing(recipe: Recipe, tmp_path: Path) -> None:
    said: list[str] = []
    assert train_recipe(recipe, tmp_path / "run", dry_run=True, say=said.append) is True
    assert not (tmp_path / "run").exists() and not any("tokenizing" in line for line in said)
    assert "codes that do not occur in the training images will be dropped; here all of them count" in said


@pytest.mark.parametrize("codes", ["kept", "damaged"])
def test_a_dry_run_of_a_resumption_leaves_the_run_as_it_is(
    codes: str, stopped: Path, recipe: Recipe, tmp_path: Path
) -> None:
    folder, said = tmp_path / "run", list[str]()
    shutil.copytree(stopped, folder)
    if codes == "damaged":
        (folder / "codes.safetensors").write_bytes(b"codes")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert train_recipe(recipe, folder, resume=True, dry_run=True, say=said.append) is True
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    used = newest(stopped).tensors["used_codes"]["used"]
    assert not any("tokenizing" in line or "will be dropped" in line for line in said)
    width, extra = 16, len(used) + 1  # the mask
    shown = next(line for line in said if line.startswith("vq_diffusion, "))
    whole = System.create(recipe, tokenizers=rasterformer.load(stopped).tokenizers, used_codes=used)
    assert whole.model.get_parameter("token_embedding.weight").shape == (extra, width)
    assert f"{sum(weight.numel() for weight in whole.model.parameters()):,} parameters" in shown


def test_a_resumption_on_other_images_keeps_the_codes_of_the_run(tokenizer: Path, tmp_path: Path) -> None:
    own = write_pictures(tmp_path / "own", count=12, side=SIDE, captions=True)
    short = recipe_of(own, tokenizer, training__steps=2, training__eval_every=2, training__save_every=2)
    assert train_recipe(short, tmp_path / "run", say=quiet) is True
    kept = (tmp_path / "run" / "codes.safetensors").read_bytes()
    (own / open_recipe_images(short, "train").names[0]).unlink()
    with pytest.raises(CheckpointError, match="was trained on other images"):
        train_recipe(short, tmp_path / "run", resume=True, say=quiet)
    assert (tmp_path / "run" / "codes.safetensors").read_bytes() == kept


def test_pictures_without_a_caption_are_counted(pictures: Path, tokenizer: Path, tmp_path: Path) -> None:
    some, said = tmp_path / "some", list[str]()
    shutil.copytree(pictures, some)
    for k in (1, 2, 5, 6, 9):
        (some / f"{k:02d}.txt").unlink()
    recipe = recipe_of(some, tokenizer)
    assert train_recipe(recipe, tmp_path / "run", dry_run=True, say=said.append) is True
    missing = {}
    for split in ("train", "test"):
        images = open_recipe_images(recipe, "train" if split == "train" else "test")
        missing[split] = sum(Path(name).stem in ("01", "02", "05", "06", "09") for name in images.names)
        line = f"{split}: {missing[split]} of {len(images)} images have no caption"
        assert (line in said) is (missing[split] > 0)
    assert sum(missing.values()) == 5
    said.clear()
    assert train_recipe(recipe_of(pictures, tokenizer), tmp_path / "run", dry_run=True, say=said.append) is True
    assert not any("no caption" in line for line in said)


class Words(TextEncoder):
    """In place of a folder's: six dimensions, at most 16 tokens."""

    dim, fingerprint = 6, "words"

    def encode(self, texts: Sequence[str], *, length: int = 64) -> tuple[Tensor, Tensor]:
        check_texts(texts, length=length, most=16)
        return torch.ones(len(texts), 2, 6), torch.ones(len(texts), 2, dtype=torch.bool)

    def to(self, device: str | torch.device) -> None:
        raise AssertionError("nothing is read")


MISFITS = {
    "dim": ({"text.dim": "8", "text.length": "16"}, r"text\.dim = 8, but the text encoder's states have 6"),
    "length": ({"text.dim": "6", "text.length": "17"}, r"length = 17 must be 2\.\.16 tokens"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_text_encoder_that_does_not_fit_the_recipe_is_refused_before_any_work(
    name: str, pictures: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields, message = MISFITS[name]
    monkeypatch.setattr(FolderEncoder, "load", lambda folder: Words())
    fields = {"text.encoder": "folder", "text.folder": "somewhere", **fields}
    said: list[str] = []
    with pytest.raises(ConfigError, match=message):
        train_recipe(recipe_of(pictures, tokenizer, **fields), tmp_path / "run", say=said.append)
    assert not any("tokenizing" in line for line in said)
    images = write_pictures(tmp_path / "images", count=12, side=32, captions=True)
    more = [(f"prior.{field}", value) for field, value in fields.items()]
    with pytest.raises(ConfigError, match=message):
        train_pipeline(short_pipeline(tmp_path / "stages", images, *more), tmp_path / "stages", say=quiet)
    assert not (tmp_path / "stages").exists()


def test_a_run_is_not_resumed_without_its_captions(stopped: Path, pictures: Path, tokenizer: Path) -> None:
    bare = recipe_of(pictures, tokenizer, text__encoder=None, text__dim=None, text__length=None)
    assert bare.text is None
    with pytest.raises(ConfigError, match="text.encoder was bytes, is None"):
        train_recipe(bare, stopped, resume=True, say=quiet)


def test_a_run_is_not_resumed_with_another_caption(tokenizer: Path, tmp_path: Path) -> None:
    own = write_pictures(tmp_path / "own", count=12, side=SIDE, captions=True)
    short = {"training__eval_every": 2, "training__save_every": 2, "training__schedule": "constant"}
    assert train_recipe(recipe_of(own, tokenizer, **short, training__steps=2), tmp_path / "run", say=quiet) is True
    for path in own.glob("*.txt"):
        path.write_text("a green square", encoding="utf-8")
    with pytest.raises(CheckpointError, match="the tokenizer or captions do"):
        train_recipe(recipe_of(own, tokenizer, **short, training__steps=4), tmp_path / "run", resume=True, say=quiet)


@pytest.mark.parametrize("what", ["captions", "encoder"])
def test_what_is_missing_is_said_before_images_are_tokenized(
    what: str, pictures: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> MiniLMEncoder:
        raise MissingExtraError("pip install 'rasterformer[text]'")

    said: list[str] = []
    if what == "captions":
        bare = write_pictures(tmp_path / "bare", count=6, side=SIDE, captions=False)
        with pytest.raises(DataError, match="has no captions"):
            train_recipe(recipe_of(bare, tokenizer), tmp_path / "run", say=said.append)
    else:
        monkeypatch.setattr(MiniLMEncoder, "load", missing)
        with pytest.raises(MissingExtraError, match="pip install"):
            train_recipe(
                recipe_of(pictures, tokenizer, text__encoder="minilm", text__dim=384), tmp_path / "run", say=said.append
            )
    assert not any("tokenizing" in line for line in said) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "cosine", "step_embedding": "sinusoidal", "bound": "continuous"},
        {"schedule": "release", "importance_sampling": "false"},
    ],
    ids=lambda changes: str(changes["schedule"]),
)
def test_other_forms_resume_bit_for_bit_too(
    changes: dict[str, str], pictures: Path, tokenizer: Path, tmp_path: Path
) -> None:
    fields = {f"model__{name}": value for name, value in changes.items()}
    short = {"training__eval_every": 3, "training__save_every": 2, "training__schedule": "constant"}
    for name, parts in (("whole", (4,)), ("parts", (2, 4))):
        for number, steps in enumerate(parts):
            made = recipe_of(pictures, tokenizer, **fields, **short, training__steps=steps)
            assert train_recipe(made, tmp_path / name, resume=number > 0, say=quiet) is True
    one, other = (rasterformer.load(tmp_path / name).model.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(one[key], other[key]) for key in one)


# ---- the pipeline


def short_pipeline(folder: Path, images: Path, *more: tuple[str, str]) -> Pipeline:
    """The shipped pipeline, a few steps a stage."""
    fields = {
        "training.steps": "4",
        "training.eval_every": "4",
        "training.save_every": "4",
        "training.eval_images": "2",
    }
    overrides = [(f"{stage}.{name}", text) for stage in ("tokenizer", "prior") for name, text in fields.items()]
    pipeline = load_pipeline("vq-diffusion-pipeline-tiny", [*overrides, ("prior.model.num_steps", "5"), *more])
    assert pipeline is not None
    return with_data(pipeline, str(images), folder)


def test_the_pipeline_ends_with_samples_by_held_out_captions(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", count=12, side=32, captions=True)
    folder, said = tmp_path / "run", list[str]()
    pipeline = short_pipeline(folder, images)
    assert train_pipeline(pipeline, folder, say=said.append) is True
    prior = pipeline.stages["prior"]
    test = open_recipe_images(prior, "test")
    captions = test.captions_of(torch.arange(4) % len(test))
    files = sorted((folder / "samples").iterdir())
    assert [path.name for path in files] == [
        *(f"{k:04d}.{end}" for k in range(4) for end in ("png", "txt")),
        "grid.png",
    ]
    expected = rasterformer.load(folder / "prior").sample(4, text=captions, seed=0, as_tensor=True)
    for k, caption in enumerate(captions):
        assert (folder / "samples" / f"{k:04d}.txt").read_text("utf-8") == f"{caption}\n"
        drawn = np.array(Image.open(folder / "samples" / f"{k:04d}.png"))
        assert np.array_equal(drawn, expected[k].permute(1, 2, 0).numpy())
        record = read_png_metadata(folder / "samples" / f"{k:04d}.png")
        assert record is not None and (record["text"], record["image"]) == (caption, k)
    assert f"4 samples, by captions of held-out images: {folder / 'samples'}" in said[-1]
    commands = [line for line in said if line.startswith("now:")]
    assert len(commands) == 1 and f"sample {folder / 'prior'}" in commands[0], "the second stage begins by itself"


def test_what_is_shown_for_the_large_pipeline_works_on_the_tiny_one_too(tmp_path: Path) -> None:
    """An order needs masks only, and so many steps as many levels; captions that say left and right no mirrored picture."""
    images = write_pictures(tmp_path / "images", count=12, side=32, captions=True)
    pipeline = load_pipeline("vq-diffusion-pipeline-tiny")
    assert pipeline is not None
    stages = with_data(pipeline, str(images), tmp_path).stages
    assert all(stage.data.flip_prob == 0.0 for stage in stages.values())
    tokenizer = Tokenizer.create(stages["tokenizer"])
    tokenizer.autoencoder.eval()
    system = System.create(stages["prior"], tokenizers={"tokenizer": tokenizer})
    system.model.eval()
    drawn = [
        system.sample(1, text="a red square", order=order, steps=25, guidance_scale=2.0, as_tensor=True)
        for order in ("posterior", "confidence", "purity", "random")
    ]
    assert all(image.shape == (1, 3, 32, 32) for image in drawn) and len({str(image.tolist()) for image in drawn}) > 1


def test_a_folder_without_captions_is_refused_before_the_first_stage(tmp_path: Path) -> None:
    images, folder = write_pictures(tmp_path / "images", count=12, side=32, captions=False), tmp_path / "run"
    with pytest.raises(DataError, match="has no captions"):
        train_pipeline(short_pipeline(folder, images), folder, say=quiet)
    assert not folder.exists()


def test_a_missing_text_encoder_is_named_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> MiniLMEncoder:
        raise MissingExtraError("pip install 'rasterformer[text]'")

    monkeypatch.setattr(MiniLMEncoder, "load", missing)
    images, folder = write_pictures(tmp_path / "images", count=12, side=32, captions=True), tmp_path / "run"
    by_minilm = (("prior.text.encoder", "minilm"), ("prior.text.dim", "384"))
    with pytest.raises(MissingExtraError, match="pip install"):
        train_pipeline(short_pipeline(folder, images, *by_minilm), folder, say=quiet)
    assert not folder.exists()
