"""Gradients of parts add up to those of the whole; a step that is not finite changes nothing; what is shipped is measured."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rasterformer.checkpoint import load_checkpoint
from rasterformer.data.imageset import ImageSet
from rasterformer.errors import CheckpointError, RasterformerError
from rasterformer.interfaces import Batch, Cond
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.image_transformer.config import Config
from rasterformer.training.likelihood import LikelihoodLearner, accumulate_gradients, held_out_bits_per_dim
from rasterformer.training.log import read_metrics
from rasterformer.training.loop import Run, train
from rasterformer.training.precision import autocast
from rasterformer.training.state import shipped_weights


def image_set(num_images: int = 12, *, seed: int = 0, labels: Tensor | None = None) -> ImageSet:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (num_images, 3, 4, 4), dtype=torch.uint8, generator=rng)
    return ImageSet(
        name="toys",
        split="train",
        split_origin="all",
        preprocessing="none",
        image_size=4,
        class_names=() if labels is None else ("cat", "dog"),
        labels=labels,
        captions=None,
        fingerprint=f"{seed:064x}",
        lossless=True,
        skipped=(),
        num_images=num_images,
        pixels=images,
        names=tuple(f"{k}.png" for k in range(num_images)),
    )


def small_system(*, model: dict[str, Any] | None = None, **training: Any) -> System:
    config = Config(
        **{"width": 8, "depth": 1, "num_heads": 2, "mlp_width": 8, "block_length": 16, "memory_length": 16}
        | {"dropout_prob": 0.0, "distribution": "dmol", "num_mixtures": 2}
        | (model or {})
    )
    fields = {"steps": 4, "batch_size": 4, "warmup_steps": 0, "eval_images": 4, "precision": "float32"}
    return System.create(
        Recipe("image_transformer", config, DataConfig(image_size=4), TrainingConfig(**fields | training))
    )


def run_in(folder: Path, system: System, train_set: ImageSet | None = None) -> Run:
    return Run(LikelihoodLearner(system, train_set or image_set(), image_set(6, seed=1)), folder)


def quiet(text: str) -> None:
    """Says nothing."""


def gradients(system: System, batch: Batch) -> tuple[float, list[Tensor]]:
    nats = accumulate_gradients(system, batch)
    return nats, [weight.grad for weight in system.model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_equal_those_of_the_whole_batch(parts: int) -> None:
    """float32 sums in another order: 1e-5 of the largest gradient."""
    batch = image_set(8).batch(torch.arange(8), use_labels=False)
    whole_nats, whole = gradients(small_system(batch_size=8), batch)
    nats, accumulated = gradients(small_system(batch_size=8, accumulation_steps=parts), batch)
    assert nats == pytest.approx(whole_nats, rel=1e-5)
    largest = max(float(grad.abs().max()) for grad in whole)
    for one, other in zip(accumulated, whole, strict=True):
        assert float((one - other).abs().max()) <= 1e-5 * largest


def test_accumulation_keeps_labels_with_their_images() -> None:
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    batch = Batch(image_set(8).pixels[:8], Cond(label=labels))  # type: ignore[index]
    systems = []
    for parts in (1, 4):
        recipe = small_system(batch_size=8, accumulation_steps=parts).recipe
        systems.append(System.create(recipe, class_names=("cat", "dog")))
    (whole_nats, _), (nats, _) = (gradients(system, batch) for system in systems)
    assert nats == pytest.approx(whole_nats, rel=1e-5)


def test_training_lowers_the_loss_it_reports(tmp_path: Path) -> None:
    system = small_system(steps=30, learning_rate=0.01, batch_size=12, log_every=1, schedule="constant")
    assert train(run_in(tmp_path, system), resume=False, say=quiet) is True
    losses = [
        line["train_bits_per_dim"] for line in read_metrics(tmp_path / "metrics.jsonl") if "train_bits_per_dim" in line
    ]
    assert len(losses) == 30 and losses[-1] < losses[0] - 0.3


def poison(system: System) -> None:
    """One weight that makes every loss not a number."""
    with torch.no_grad():
        next(system.model.parameters()).fill_(math.nan)


def test_steps_that_are_not_finite_leave_the_weights_and_the_third_stops(tmp_path: Path) -> None:
    system = small_system(steps=10)
    poison(system)
    before = {name: weight.clone() for name, weight in system.model.state_dict().items()}
    with pytest.raises(
        RasterformerError, match=r"not finite in 3 steps in a row, the last at step 2.*learning_rate = 0\.001"
    ):
        train(run_in(tmp_path, system), resume=False, say=quiet)
    for name, weight in system.model.state_dict().items():
        assert torch.equal(weight.nan_to_num(-1.0), before[name].nan_to_num(-1.0)), name
    events = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line.get("event") == "not_finite"]
    assert [event["step"] for event in events] == [0, 1, 2]


def test_a_finite_step_in_between_starts_the_count_anew(tmp_path: Path) -> None:
    """Two bad steps, a good one, two bad ones, and so on: the run goes on to its end."""
    system = small_system(steps=9)
    calls, loss = [0], system.model.loss

    def sometimes_nan(x: Tensor, cond: Cond, *, rng: torch.Generator | None) -> Any:
        calls[0] += 1
        found = loss(x, cond, rng=rng)
        bad = calls[0] % 3 != 0
        return dataclasses.replace(found, nats=found.nats * math.nan, total=found.total * math.nan) if bad else found

    system.model.loss = sometimes_nan  # type: ignore[method-assign]
    assert train(run_in(tmp_path, system), resume=False, say=quiet) is True
    events = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl") if line.get("event") == "not_finite"]
    assert events == [0, 1, 3, 4, 6, 7]


def test_a_budget_of_minutes_ends_the_run(tmp_path: Path) -> None:
    system = small_system(steps=10**6, minutes=1e-9)
    assert train(run_in(tmp_path, system), resume=False, say=quiet) is True
    assert system.steps == 1


def test_gradients_are_clipped_to_the_recipes_norm(tmp_path: Path) -> None:
    """SGD would show it directly; Adam's first moment after one step is (1 - beta1) times the clipped gradient."""
    system = small_system(steps=1, clip_norm=1e-3, optimizer="adam", beta1=0.9)
    train(run_in(tmp_path, system), resume=False, say=quiet)
    state = load_checkpoint(tmp_path / "checkpoints" / "step-1").tensors["optimizer-0"]
    moments = [tensor for name, tensor in state.items() if name.endswith("exp_avg")]
    norm = math.sqrt(sum(float(moment.double().square().sum()) for moment in moments)) / (1 - 0.9)
    assert norm == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    "changes", [{"ema_decay": 0.5}, {"average_checkpoints": 2}, {}], ids=["ema", "averaged", "last"]
)
def test_the_last_figure_of_a_run_belongs_to_the_weights_it_ships(changes: dict[str, Any], tmp_path: Path) -> None:
    system = small_system(steps=4, save_every=1, eval_every=1, learning_rate=0.05, schedule="constant", **changes)
    run = run_in(tmp_path, system)
    train(run, resume=False, say=quiet)
    figures = [line["held_out_bits_per_dim"] for line in read_metrics(tmp_path / "metrics.jsonl") if "images" in line]
    shipped = held_out_bits_per_dim(system, run.learner.held_out, 4)
    assert figures[-1] == pytest.approx(shipped, abs=1e-5)
    assert figures[-2] != pytest.approx(shipped, abs=1e-4)


def test_averaged_checkpoints_ship_the_mean_of_the_newest(tmp_path: Path) -> None:
    system = small_system(steps=4, save_every=1, learning_rate=0.05, average_checkpoints=2, keep_checkpoints=3)
    train(run_in(tmp_path, system), resume=False, say=quiet)
    third, fourth = (load_checkpoint(tmp_path / "checkpoints" / f"step-{step}").tensors["model"] for step in (3, 4))
    for name, weight in system.model.state_dict().items():
        torch.testing.assert_close(weight, (third[name] + fourth[name]) / 2)
    shipped = shipped_weights(tmp_path, system, None)
    assert all(torch.equal(shipped[name], weight) for name, weight in system.model.state_dict().items())


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    train(run_in(tmp_path, small_system(steps=5, save_every=1, keep_checkpoints=2)), resume=False, say=quiet)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-4", "step-5"]


def test_resuming_with_other_images_is_refused(tmp_path: Path) -> None:
    train(run_in(tmp_path, small_system(steps=1)), resume=False, say=quiet)
    with pytest.raises(CheckpointError, match="was trained on other images than 'toys' holds now"):
        train(run_in(tmp_path, small_system(steps=2), image_set(seed=9)), resume=True, say=quiet)


@pytest.mark.parametrize(
    "changes",
    [
        {"ema_decay": 0.9, "optimizer": "muon"},
        {"optimizer": "adamw", "weight_decay": 0.1, "average_checkpoints": 2},
        {"accumulation_steps": 2, "clip_norm": 0.1, "optimizer": "adam"},
    ],
    ids=["muon-ema", "adamw-averaged", "adam-accumulated"],
)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(changes: dict[str, Any], tmp_path: Path) -> None:
    """Five steps, against two steps and a resumption that raises `steps` to five; bit for bit, with dropout."""

    def trained(folder: Path, *step_counts: int) -> dict[str, Tensor]:
        folder.mkdir()
        for steps in step_counts:
            fields = {"schedule": "constant", "save_every": 1, "learning_rate": 0.01, **changes}
            system = small_system(steps=steps, model={"dropout_prob": 0.2}, **fields)
            train(run_in(folder, system), resume=True, say=quiet)
        return dict(system.model.state_dict())

    whole, resumed, shorter = trained(tmp_path / "a", 5), trained(tmp_path / "b", 2, 5), trained(tmp_path / "c", 2)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not all(torch.equal(whole[name], shorter[name]) for name in whole)


def test_resuming_without_a_checkpoint_starts_at_the_beginning(tmp_path: Path) -> None:
    system = small_system(steps=2)
    assert train(run_in(tmp_path, system), resume=True, say=quiet) is True
    assert system.steps == 2


def test_dropout_depends_on_seed_and_step_and_leaves_the_global_stream_alone(tmp_path: Path) -> None:
    def trained(folder: str, seed: int, disturb: bool) -> Tensor:
        system = small_system(steps=2, model={"dropout_prob": 0.5}, learning_rate=0.01)
        recipe = dataclasses.replace(system.recipe, training=dataclasses.replace(system.recipe.training, seed=seed))
        system = System(recipe, system.codec, system.model)  # the same initial weights for every seed
        torch.manual_seed(int(disturb))
        before = torch.random.get_rng_state()
        constant = image_set(1)
        train(run_in(tmp_path / folder, system, constant), resume=False, say=quiet)
        assert torch.equal(torch.random.get_rng_state(), before)
        return torch.cat([weight.flatten() for weight in system.model.parameters()])

    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    first, again, other = trained("a", 0, False), trained("b", 0, True), trained("c", 1, False)
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_precision_of_matrix_products_is_the_recipes(precision: Any, dtype: torch.dtype) -> None:
    with autocast(TrainingConfig(precision=precision), torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_under_bfloat16_autocast_the_likelihood_is_summed_in_float32() -> None:
    system = small_system(precision="bfloat16")
    x = system.codec.encode(image_set(4).images(slice(0, 4)))
    with autocast(system.recipe.training, torch.device("cpu")):
        loss = system.model.loss(x, Cond(), rng=None)
    exact = system.model.loss(x, Cond(), rng=None)
    assert loss.nats.dtype == torch.float32
    torch.testing.assert_close(loss.nats, exact.nats, rtol=0.02, atol=0)  # bfloat16 keeps 8 bits
