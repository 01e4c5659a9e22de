"""Guidance by its formula, on a table of bigrams that is small enough to enumerate."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rasterformer.autoregressive.guidance import Guided
from rasterformer.autoregressive.noise import image_generators
from rasterformer.autoregressive.parallel import draw_in_parallel
from rasterformer.autoregressive.sample import draw
from rasterformer.distributions import Categorical, DiscretizedLogisticMixture
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Autoregressive, Cond, Known, Loss, OnStep, SampleOptions

OPTIONS = SampleOptions()
LENGTH, VOCAB, CLASSES = 4, 3, 2


class Bigrams(Autoregressive):
    """Logits by class (the last one is none), position and the token before; what a condition's `source` shows is known."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        shape = (CLASSES + 1, LENGTH, VOCAB + 1, VOCAB)  # token VOCAB stands before the first one
        self.table = nn.Parameter(torch.randn(shape, generator=rng, dtype=torch.float64))
        self.distribution, self.x_shape, self.num_classes = Categorical(VOCAB), (LENGTH, 1), CLASSES

    def _row(self, cond: Cond, batch_size: int) -> Tensor:
        assert cond.label is not None and cond.label.shape == (batch_size,)
        return cond.label if cond.dropped is None else torch.where(cond.dropped, CLASSES, cond.label)

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        before = torch.cat([torch.full_like(x[:, :1, 0], VOCAB), x[:, :-1, 0]], 1)
        return self.table[self._row(cond, len(x))[:, None], torch.arange(LENGTH), before]

    def loss(self, x: Tensor, cond: Cond, *, rng: torch.Generator | None) -> Loss:
        raise NotImplementedError

    def sample(
        self,
        cond: Cond,
        batch_size: int,
        *,
        options: SampleOptions,
        rng: Sequence[torch.Generator],
        on_step: OnStep | None = None,
    ) -> Tensor:
        return draw(self, cond, batch_size, options=options, rng=rng, on_step=on_step)

    def begin(self, cond: Cond, batch_size: int) -> tuple[Tensor, dict[str, Tensor]]:
        row = self._row(cond, batch_size)
        return self.table[row, 0, VOCAB][:, None], {"row": row, "done": torch.tensor(0)}

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        done = int(state["done"])
        state["done"] += x.shape[1]
        after = torch.arange(done + 1, min(done + x.shape[1], LENGTH - 1) + 1)
        return self.table[state["row"][:, None], after, x[:, : len(after), 0]], state

    def known(self, cond: Cond) -> Known | None:
        if cond.source is None:
            return None
        x = cond.source.flatten(1).long()[..., None]
        return Known(x, (torch.arange(LENGTH) < 1).expand(len(x), -1))

    def state_bytes(self, batch_size: int) -> int:
        return 8 * batch_size + 8

    def to_bfloat16(self) -> Bigrams:
        rounded = copy.deepcopy(self)
        rounded.table.data = rounded.table.data.to(torch.bfloat16).double()
        return rounded

    def lookahead(self, state: dict[str, Tensor]) -> int:
        return LENGTH - int(state["done"])

    def rewind(self, state: dict[str, Tensor], done: int) -> dict[str, Tensor]:
        state["done"].fill_(done)
        return state


@pytest.fixture
def model() -> Bigrams:
    return Bigrams()


def every_x() -> Tensor:
    return torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))[..., None]


def labels(count: int) -> Cond:
    return Cond(label=torch.arange(count) % CLASSES)


def without(cond: Cond) -> Cond:
    assert cond.label is not None
    return replace(cond, dropped=torch.ones(len(cond.label), dtype=torch.bool))


@torch.no_grad()
@pytest.mark.parametrize("scale", [-1.0, 0.5, 1.75, 4.0])
def test_probabilities_are_the_conditional_ones_times_a_power_of_their_ratio_to_the_unconditional(
    model: Bigrams, scale: float
) -> None:
    """p ~ p_null * (p_cond / p_null)^scale, position by position (Ho & Salimans 2022, equation 6, for probabilities)."""
    x, cond = every_x(), labels(VOCAB**LENGTH)
    given, null = model(x, cond).softmax(-1), model(x, without(cond)).softmax(-1)
    expected = null * (given / null) ** scale
    expected = expected / expected.sum(-1, keepdim=True)
    assert torch.allclose(Guided(model, scale)(x, cond).softmax(-1), expected, rtol=1e-10)


@torch.no_grad()
def test_scale_one_is_the_conditional_model_and_zero_the_unconditional_one(model: Bigrams) -> None:
    x, cond = every_x(), labels(VOCAB**LENGTH)
    assert torch.equal(Guided(model, 1.0)(x, cond), model(x, cond))
    assert torch.equal(Guided(model, 0.0)(x, cond), model(x, without(cond)))


@torch.no_grad()
def test_images_whose_condition_is_dropped_are_unconditional_at_every_scale(model: Bigrams) -> None:
    x, cond = every_x()[:4], replace(labels(4), dropped=torch.tensor([True, False, False, True]))
    params = Guided(model, 3.0)(x, cond)
    assert torch.equal(params[[0, 3]], model(x, without(cond))[[0, 3]])
    assert not torch.equal(params[[1, 2]], model(x, without(cond))[[1, 2]])


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [2, 2], [4], [1, 3]], ids=str)
def test_step_equals_forward(model: Bigrams, sizes: list[int]) -> None:
    guided, x, cond = Guided(model, 2.5), every_x()[5:25:4], labels(5)
    params, state = guided.begin(cond, 5)
    parts = [params]
    for piece in x.split(sizes, 1):
        params, state = guided.step(piece, state)
        parts.append(params)
    assert torch.equal(torch.cat(parts, 1), guided(x, cond))


@torch.no_grad()
def test_the_loss_is_the_likelihood_of_the_guided_distribution(model: Bigrams) -> None:
    x, cond = every_x(), Cond(label=torch.ones(VOCAB**LENGTH, dtype=torch.int64))
    loss = Guided(model, 2.5).loss(x, cond, rng=None)
    assert float((-loss.nats).exp().sum()) == pytest.approx(1, abs=1e-12)
    log_pmf = Guided(model, 2.5)(x, cond).log_softmax(-1)
    expected = [-sum(float(log_pmf[k, i, x[k, i, 0]]) for i in range(LENGTH)) for k in range(len(x))]
    assert loss.nats.tolist() == pytest.approx(expected)
    assert float(loss.total) == pytest.approx(sum(expected) / (LENGTH * len(x)))
    assert loss.dims.tolist() == [LENGTH] * len(x) and loss.bound == "exact"


@torch.no_grad()
def test_the_loss_leaves_out_what_the_condition_gives(model: Bigrams) -> None:
    x = every_x()[7:9]
    cond = replace(labels(2), source=x.view(2, 1, 2, 2).to(torch.uint8))
    loss = Guided(model, 2.5).loss(x, cond, rng=None)
    log_prob = model.distribution.log_prob(Guided(model, 2.5)(x, cond), x)
    assert torch.equal(loss.nats, -log_prob[:, 1:].sum(1)) and loss.dims.tolist() == [LENGTH - 1] * 2


@torch.no_grad()
def test_samples_fit_the_likelihood(model: Bigrams) -> None:
    """20,000 draws; each of the 81 frequencies within five standard errors of its probability."""
    count, guided = 20_000, Guided(model, 1.8)
    cond = Cond(label=torch.zeros(count, dtype=torch.int64))
    x = guided.sample(cond, count, options=OPTIONS, rng=image_generators(0, count))
    every = every_x()
    probability = (-guided.loss(every, cond.rows(slice(0, len(every))), rng=None).nats).exp()
    index = (x[..., 0] * VOCAB ** torch.arange(LENGTH - 1, -1, -1)).sum(1)
    share = torch.bincount(index, minlength=len(every)) / count
    assert bool(((share - probability).abs() <= 5 * (probability * (1 - probability) / count).sqrt()).all())


@torch.no_grad()
def test_known_positions_and_parallel_drawing_go_through_the_guidance(model: Bigrams) -> None:
    guided, x = Guided(model, 2.5), every_x()[70:71]
    cond = replace(labels(1), source=x.view(1, 1, 2, 2).to(torch.uint8))
    one_by_one = draw(guided, cond, 1, options=OPTIONS, rng=image_generators(3, 1))
    assert torch.equal(one_by_one[:, :1], x[:, :1])
    parallel = draw_in_parallel(guided, cond, options=OPTIONS, rng=image_generators(3, 1), window=3)
    assert torch.equal(parallel.x, one_by_one)


@torch.no_grad()
def test_rounding_to_bfloat16_rounds_the_model_and_keeps_the_scale(model: Bigrams) -> None:
    x, cond = every_x()[:5], labels(5)
    rounded = Guided(model, 2.5).to_bfloat16()
    assert torch.equal(rounded(x, cond), Guided(model.to_bfloat16(), 2.5)(x, cond))
    assert not torch.equal(rounded(x, cond), Guided(model, 2.5)(x, cond))


def test_the_state_is_that_of_twice_as_many_images(model: Bigrams) -> None:
    assert Guided(model, 2.0).state_bytes(3) == model.state_bytes(6)


def test_a_model_without_logits_is_refused(model: Bigrams) -> None:
    model.distribution = DiscretizedLogisticMixture(2)
    with pytest.raises(ConfigError, match="the model's distribution is DiscretizedLogisticMixture"):
        Guided(model, 2.0)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(model: Bigrams, scale: float) -> None:
    with pytest.raises(ConfigError, match=f"guidance scale = {scale}"):
        Guided(model, scale)


@pytest.mark.parametrize("cond", [Cond(), Cond(dropped=torch.zeros(2, dtype=torch.bool))], ids=["empty", "dropped"])
def test_guidance_without_a_condition_is_refused(model: Bigrams, cond: Cond) -> None:
    guided = Guided(model, 2.0)
    with pytest.raises(ConfigError, match="guidance needs a condition"):
        guided(every_x()[:2], cond)
    with pytest.raises(ConfigError, match="guidance needs a condition"):
        guided.begin(cond, 2)
