"""Training a diffusion model of pixels: runs that stop and go on, what a step sees, parts of a batch, and what is measured."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import rasterformer
from rasterformer.autoregressive.noise import stream_seed
from rasterformer.conditioning.resize import reduce_area
from rasterformer.conditioning.text_encoder import TextEncoder
from rasterformer.data.imageset import ImageSet
from rasterformer.data.order import sample_index
from rasterformer.drawing import conditions
from rasterformer.drawing.stages import image_nats
from rasterformer.errors import DataError
from rasterformer.interfaces import Cond
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.imagen.config import Config
from rasterformer.systems.imagen.model import Imagen
from rasterformer.tasks import Inpaint, SuperResolution, Task
from rasterformer.training import denoising
from rasterformer.training import run as run_module
from rasterformer.training.denoising import LEVELS, DenoisingLearner
from rasterformer.training.log import read_metrics
from rasterformer.training.run import train_recipe

SIDE, STEPS, BATCH = 8, 8, 4
BYTES, STATES = TextConfig("bytes", dim=8, length=16), TextConfig("folder", "letters", dim=6, length=4)
TINY = {"denoiser": "transformer", "width": 16, "depth": 1, "head_dim": 8, "mlp_width": 8, "text_width": 8}
FIGURE = "held_out_bits_per_dim_upper_bound"


class Letters(TextEncoder):
    """In place of a frozen encoder: two states of a text, random but its own. Keeps what it was given."""

    dim = 6
    fingerprint = "letters"

    def __init__(self) -> None:
        self.read: list[str] = []

    def encode(self, texts: Sequence[str], *, length: int = 64) -> tuple[Tensor, Tensor]:
        self.read += texts
        states = [
            torch.randn(2, self.dim, generator=torch.Generator().manual_seed(stream_seed(0, text, 0))) for text in texts
        ]
        return torch.stack(states), torch.ones(len(texts), 2, dtype=torch.bool)

    def to(self, device: str | torch.device) -> None:
        assert torch.device(device).type in ("cpu", "cuda")


def quiet(text: str) -> None:
    """Says nothing."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy pictures of two colours; a .txt file says which."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for k in range(16):
        colour = (220, 40, 30) if k % 2 else (20, 60, 210)
        values = np.clip(np.array(colour) + rng.integers(-20, 21, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(values).save(folder / f"{k:02d}.png")
        (folder / f"{k:02d}.txt").write_text(f"a {'red' if k % 2 else 'blue'} square", encoding="utf-8")
    return folder


def recipe_of(
    path: Path | None = None, *, task: Task | None = None, text: TextConfig | None = BYTES, **model: Any
) -> Recipe:
    training = TrainingConfig(
        steps=STEPS, batch_size=BATCH, warmup_steps=0, learning_rate=0.01, eval_every=STEPS // 2, save_every=STEPS // 2,
        sample_every=STEPS, eval_images=3, ema_decay=0.5, precision="float32",
    )  # fmt: skip
    data = DataConfig(path=None if path is None else str(path), image_size=SIDE, holdout_fraction=0.25)
    return Recipe("imagen", Config(**TINY | model), data, training, task, text)


KINDS: dict[str, dict[str, Any]] = {
    "text": {},
    "upscaler": {"task": SuperResolution(factor=2), "source_noise": 1.0, "crop": 4, "dropout_prob": 0.1},
}


@pytest.fixture(scope="module", params=KINDS)
def finished(
    request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, Path]:
    """A run from beginning to end."""
    recipe, folder = recipe_of(pictures, **KINDS[request.param]), tmp_path_factory.mktemp("runs") / "whole"
    assert train_recipe(recipe, folder, say=quiet) is True
    return recipe, folder


def figures(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line[FIGURE]) for line in read_metrics(run / "metrics.jsonl") if FIGURE in line]


def weights(run: Path) -> dict[str, Tensor]:
    return dict(rasterformer.load(run, device="cpu").model.state_dict())


def test_a_run_measures_draws_and_reports(finished: tuple[Recipe, Path]) -> None:
    recipe, folder = finished
    measured = figures(folder)
    assert [step for step, _ in measured] == [4, 8] and measured[1][1] < measured[0][1], "it learned nothing"
    assert [path.name for path in (folder / "samples").iterdir()] == ["step-0000008.png"]
    report = (folder / "report.md").read_text("utf-8")
    assert "Upper bound" in report and f"**{measured[-1][1]:.4f} bits/dim**" in report
    assert ("given their sources" in report) == (recipe.task is not None)


def test_a_stopped_and_resumed_run_ends_with_the_same_weights_and_figures(
    finished: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, whole = finished
    if recipe.task is None:
        pytest.skip("the other kind has all of this and more: crops, noise on sources, dropout")
    folder = tmp_path / "run"

    def stop_in_the_middle(text: str) -> None:
        if text.startswith(f"step {STEPS // 2},"):
            os.kill(os.getpid(), signal.SIGTERM)

    assert train_recipe(recipe, folder, say=stop_in_the_middle) is False
    assert not (folder / "model").exists() and rasterformer.load(folder).steps == STEPS // 2
    assert train_recipe(recipe, folder, resume=True, say=quiet) is True
    found, expected = weights(folder), weights(whole)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert figures(folder) == figures(whole)


def test_a_run_by_a_frozen_encoder_ends_the_same_when_its_captions_states_come_from_the_runs_files(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, encoders = recipe_of(pictures, text=STATES), list[Letters]()

    def make_encoder(*named: str | None) -> Letters:
        assert named == ("folder", "letters")
        encoders.append(Letters())
        return encoders[-1]

    for module in (run_module, conditions):  # in place of reading a folder
        monkeypatch.setattr(module, "load_text_encoder", make_encoder)

    def stop_in_the_middle(text: str) -> None:
        if text.startswith(f"step {STEPS // 2},"):
            os.kill(os.getpid(), signal.SIGTERM)

    assert train_recipe(recipe, tmp_path / "whole", say=quiet) is True
    assert train_recipe(recipe, tmp_path / "run", say=stop_in_the_middle) is False
    assert "a red square" in encoders[-1].read and list((tmp_path / "run" / "texts").glob("*.safetensors"))
    assert train_recipe(recipe, tmp_path / "run", resume=True, say=quiet) is True
    assert set(encoders[-1].read) <= {""}, "captions are read once"
    found, expected = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")


def test_a_finished_model_draws_the_same_after_it_was_saved_and_loaded(
    finished: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, folder = finished
    system = rasterformer.load(folder, device="cpu")
    system.save(tmp_path / "copy")
    copy, how = rasterformer.load(tmp_path / "copy", device="cpu"), {"steps": 3, "seed": 5, "as_tensor": True}
    assert copy.steps == STEPS and copy.trained_on_text == system.trained_on_text is not None
    images = random_images(1)
    if recipe.task is None:
        one, other = (each.sample(2, text="red", **how) for each in (system, copy))
    else:
        small = reduce_area(images, 2)
        one, other = (each.upscale(small, text="red", **how)[0] for each in (system, copy))
    assert torch.equal(one, other)


# ---- one step


def random_images(count: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=rng, dtype=torch.uint8)


def image_set(count: int = 7, *, captions: bool = True, split: str = "train") -> ImageSet:
    """Image k is called "k"."""
    return ImageSet(
        name="toys", split=split, split_origin="all", preprocessing="none", image_size=SIDE, class_names=(), labels=None,
        captions=tuple(str(k) for k in range(count)) if captions else None, fingerprint="0" * 64, lossless=True, skipped=(),
        num_images=count, pixels=random_images(count), names=tuple(f"{k}.png" for k in range(count)),
    )  # fmt: skip


def learner_of(recipe: Recipe, *, train_set: ImageSet | None = None) -> DenoisingLearner:
    system = System.create(recipe)
    torch.manual_seed(1)
    for weight in system.model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return DenoisingLearner(system, train_set or image_set(), image_set(5, split="test"), say=quiet)


def passes_of(learner: DenoisingLearner) -> list[int]:
    """How many images its network is given in each pass from now on; those that only count memory aside."""
    passes: list[int] = []

    def remember(network: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        if not given[0].is_meta:
            passes.append(len(given[0]))

    assert isinstance(learner.system.model, Imagen)
    learner.system.model.network.register_forward_pre_hook(remember)
    return passes


def test_every_image_of_a_step_has_its_own_caption_and_source_also_when_a_run_goes_on() -> None:
    learner = learner_of(recipe_of(task=SuperResolution(factor=2)))
    batches = learner.batches(0)
    seen = [next(batches) for _ in range(4)]
    for step, batch in enumerate(seen):
        index = sample_index(step * BATCH, BATCH, num_images=7, seed=0)
        assert torch.equal(batch.images, random_images(7)[index])
        assert batch.cond.source is not None and torch.equal(batch.cond.source, reduce_area(batch.images, 2))
        expected = learner.system.with_captions(Cond(), [str(int(k)) for k in index])
        assert batch.cond.text_tokens is not None and expected.text_tokens is not None
        assert torch.equal(batch.cond.text_tokens, expected.text_tokens)
    later = next(learner.batches(3))
    assert torch.equal(later.images, seen[3].images) and later.cond.text_tokens is not None
    assert torch.equal(later.cond.text_tokens, seen[3].cond.text_tokens)  # type: ignore[arg-type]


@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_are_those_of_the_mean_loss_of_all_parts_by_the_steps_own_noise(parts: int) -> None:
    recipe = recipe_of(text=None)
    learner = learner_of(replace(recipe, training=replace(recipe.training, accumulation_steps=parts)))
    batch, model = next(learner.batches(0)), learner.system.model
    loss = learner.accumulate_gradients(batch, 3)["loss"]
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    rng, size = torch.Generator().manual_seed(stream_seed(0, "noise", 3)), BATCH // parts
    x = batch.images.float() / 127.5 - 1
    total = torch.stack([model.loss(part, Cond(), rng=rng).total for part in x.split(size)]).mean()
    total.backward()
    assert loss == pytest.approx(float(total.detach()), rel=1e-5)
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-6)
    model.zero_grad()
    assert learner.accumulate_gradients(batch, 4)["loss"] != loss


def test_what_is_measured_is_the_bound_of_held_out_images_over_the_pixels_that_are_drawn() -> None:
    learner = learner_of(recipe_of(task=Inpaint(), text=None))
    found = learner.measure(learner.system.model, 3)[FIGURE]
    held_out = learner.held_out.batch(torch.arange(3), use_labels=False)
    batch = learner.system.with_source(held_out, first=0, purpose="held-out source", seed=0)
    assert batch.cond.known is not None
    nats = float(image_nats(learner.system, batch.images, [batch.cond], levels=LEVELS).sum())
    dims = 3 * int((~batch.cond.known).sum())
    assert found == pytest.approx(nats / dims / math.log(2), rel=1e-9)
    assert learner.measure(learner.system.model, None)[FIGURE] != found


def test_missing_captions_are_refused_before_anything_is_done() -> None:
    system = System.create(recipe_of())
    with pytest.raises(DataError, match="the recipe has a section text, but 'toys', test, has no captions"):
        DenoisingLearner(system, image_set(), image_set(captions=False, split="test"), say=quiet)


def test_other_captions_are_other_data() -> None:
    plain = learner_of(recipe_of(text=None)).data_fingerprint
    first, again = (learner_of(recipe_of()).data_fingerprint for _ in range(2))
    assert plain == "0" * 64 != first == again
    others = replace(image_set(), captions=tuple(str(k) for k in reversed(range(7))))
    assert first != learner_of(recipe_of(), train_set=others).data_fingerprint != plain


def test_captions_are_read_before_the_first_batch_is_asked_for() -> None:
    """The training minutes begin there."""
    encoder = Letters()
    system = System.create(recipe_of(text=STATES))
    system.text_encoder = encoder
    learner = DenoisingLearner(system, image_set(), image_set(5, split="test"), say=quiet)
    before = set(encoder.read)
    batches = learner.batches(0)
    read = set(encoder.read)
    assert not before & {"0", "6"} and read >= {str(k) for k in range(7)}
    encoder.read.clear()
    cond = next(batches).cond
    assert cond.text is not None and cond.text.shape == (BATCH, 2, 6) and encoder.read == []


@pytest.mark.parametrize("free", [0, 2.5, 9.0, 1e6])
def test_what_is_measured_does_not_depend_on_the_free_memory_which_it_stays_in(
    free: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`free` counts forward passes of one image; half of it is used, and one image is measured in any case."""
    learner = learner_of(recipe_of(task=Inpaint(), text=None))
    model, at_once = learner.system.model, passes_of(learner)
    assert isinstance(model, Imagen)
    expected = learner.measure(model, None)[FIGURE]
    assert set(at_once) == {5}
    at_once.clear()
    monkeypatch.setattr(denoising, "available_bytes", lambda device: int(free * model.state_bytes(1)))
    assert learner.measure(model, None)[FIGURE] == pytest.approx(expected, rel=1e-5)
    assert max(at_once) == min(5, max(1, int(free / 2)))


# ---- what a dry run says


@pytest.mark.parametrize("parts", [1, 2])
def test_a_dry_run_times_one_part_and_leaves_no_gradients(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of()
    learner = learner_of(replace(recipe, training=replace(recipe.training, accumulation_steps=parts)))
    model, seen = learner.system.model, passes_of(learner)
    now = iter([0.0, 5.0, 10.0, 12.0])  # the first run sets things up; the second one takes two seconds
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    said = learner.cost()
    assert seen == [BATCH // parts] * 2
    assert all(weight.grad is None for weight in model.parameters())
    assert f"about {2 * parts:.2f} s of gradients" in said and f"at most {1800 // parts:,} steps an hour" in said
    assert said.startswith("a step of 4 images:" if parts == 1 else "a step of 4 images, 2 at a time:")


def test_a_dry_run_does_not_run_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_of(recipe_of())
    model, seen = learner.system.model, passes_of(learner)
    assert isinstance(model, Imagen)
    weights = 4 * sum(weight.numel() for weight in model.parameters())
    needed = model.step_bytes(BATCH) + 4 * weights
    monkeypatch.setattr(model, "step_bytes", lambda count: needed - 4 * weights)
    monkeypatch.setattr(denoising, "available_bytes", lambda device: needed)
    assert "steps an hour" in learner.cost() and len(seen) == 2
    monkeypatch.setattr(denoising, "available_bytes", lambda device: needed - 1)
    said = learner.cost()
    assert len(seen) == 2 and "steps an hour" not in said
    counted, free = ((needed - 4 * weights) / 2**20, (needed - 1) / 2**20)
    assert f"about {counted:,.0f} MiB" in said and f"does not fit into the {free:,.0f} MiB that are free" in said
