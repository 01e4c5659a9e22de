"""Schedules against their formulas; which optimiser moves which weights."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from rasterformer.recipe import TrainingConfig
from rasterformer.training.optim import learning_rate_factor, make_optimizers


def factor(step: int, *, steps: int = 1000, **fields: Any) -> float:
    training = TrainingConfig(steps=steps, **fields)
    return learning_rate_factor(training, step, step / steps)


@pytest.mark.parametrize("step", [0, 5, 99, 100, 101, 5000, 250_000])
def test_transformer_schedule_is_the_papers_relative_to_the_end_of_its_warm_up(step: int) -> None:
    """min((s + 1) w^-1.5, (s + 1)^-0.5) of Vaswani et al. 2017, equation 3, divided by its value at s + 1 = w."""
    warmup = 100
    expected = min((step + 1) * warmup**-1.5, (step + 1) ** -0.5) / warmup**-0.5
    assert factor(step, schedule="transformer", warmup_steps=warmup) == pytest.approx(expected, rel=1e-12)


def test_cosine_schedule_falls_from_the_peak_to_zero() -> None:
    fields = {"schedule": "cosine", "warmup_steps": 0}
    assert factor(0, **fields) == 1.0
    assert factor(500, **fields) == pytest.approx(0.5)
    assert factor(250, **fields) == pytest.approx(0.5 + 0.25 * math.sqrt(2))
    assert factor(1000, **fields) == pytest.approx(0.0, abs=1e-15)


def test_linear_schedule_holds_the_peak_and_falls_over_the_last_share_of_the_run() -> None:
    fields = {"schedule": "linear", "warmup_steps": 0, "decay_fraction": 0.4}
    assert [factor(step, **fields) for step in (0, 300, 600)] == [1.0, 1.0, 1.0]
    assert factor(800, **fields) == pytest.approx(0.5)
    assert factor(900, **fields) == pytest.approx(0.25)
    assert factor(1000, **fields) == 0.0


def test_constant_schedule_stays_at_the_peak() -> None:
    assert [factor(step, schedule="constant", warmup_steps=0) for step in (0, 999)] == [1.0, 1.0]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "transformer"])
def test_warm_up_rises_linearly_from_the_first_step(schedule: Any) -> None:
    factors = [factor(step, steps=10**9, schedule=schedule, warmup_steps=4) for step in range(4)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_the_schedule_follows_the_progress_that_it_is_told() -> None:
    training = TrainingConfig(steps=10**6, schedule="cosine", warmup_steps=0)
    assert learning_rate_factor(training, 7, 0.5) == pytest.approx(0.5)


class Toy(nn.Module):
    """The kinds of weights that a model has: layers' matrices and vectors, an embedding, a head, a frozen weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.head = nn.Linear(4, 3)
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)


def names(model: nn.Module, groups: list[dict[str, Any]]) -> set[str]:
    by_id = {id(weight): name for name, weight in model.named_parameters()}
    return {by_id[id(weight)] for group in groups for weight in group["params"]}


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_every_trainable_weight_belongs_to_exactly_one_optimiser(optimizer: Any) -> None:
    model = Toy()
    optimizers = make_optimizers(model, TrainingConfig(optimizer=optimizer))
    moved = [id(weight) for one in optimizers for group in one.param_groups for weight in group["params"]]
    assert len(moved) == len(set(moved))
    assert set(moved) == {id(weight) for weight in model.parameters() if weight.requires_grad}


def test_muon_takes_the_layers_matrices_only() -> None:
    model = Toy()
    rest, muon = make_optimizers(model, TrainingConfig(optimizer="muon", muon_learning_rate=0.03, learning_rate=0.004))
    assert isinstance(muon, torch.optim.Muon) and isinstance(rest, torch.optim.AdamW)
    assert names(model, muon.param_groups) == {"layers.0.weight", "layers.1.weight"}
    assert {group["lr"] for group in muon.param_groups} == {0.03}
    assert {group["lr"] for group in rest.param_groups} == {0.004}


def test_muon_of_a_model_without_layers_is_adamw_alone() -> None:
    assert [type(one) for one in make_optimizers(nn.Linear(2, 2), TrainingConfig(optimizer="muon"))] == [
        torch.optim.AdamW
    ]


def test_weight_decay_falls_on_matrices_only() -> None:
    model = Toy()
    (adamw,) = make_optimizers(model, TrainingConfig(optimizer="adamw", weight_decay=0.1))
    decayed = [group for group in adamw.param_groups if group["weight_decay"] == 0.1]
    spared = [group for group in adamw.param_groups if group["weight_decay"] == 0.0]
    assert names(model, decayed) == {"embedding.weight", "layers.0.weight", "layers.1.weight", "head.weight"}
    assert names(model, spared) == {"layers.0.bias", "layers.1.bias", "head.bias"}


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_uses_the_recipes_betas_and_epsilon(optimizer: Any) -> None:
    training = TrainingConfig(optimizer=optimizer, beta1=0.7, beta2=0.8, epsilon=1e-5, learning_rate=0.02)
    for group in make_optimizers(Toy(), training)[0].param_groups:
        assert (group["betas"], group["eps"], group["lr"]) == ((0.7, 0.8), 1e-5, 0.02)
