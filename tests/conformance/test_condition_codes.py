"""What every system over codes with a condition must hold: each code of it matters everywhere; only a fitting one is taken."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rasterformer.autoregressive.noise import image_generators
from rasterformer.autoregressive.sample import draw
from rasterformer.autoregressive.score import symbol_nats
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Autoregressive, SampleOptions


def random_x(model: Autoregressive, batch: int = 1) -> Tensor:
    values = model.distribution.vocab_size
    return torch.randint(0, values, (batch, *model.x_shape), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_each_code_of_the_condition_moves_every_position(codes_case) -> None:
    """The condition comes first, so that no position is too early for it."""
    _, model = codes_case.build()
    one = codes_case.cond(1)
    count = one.codes.shape[1]
    changed = one.codes.repeat(count, 1)
    changed[torch.arange(count), torch.arange(count)] = (changed.diagonal() + 1) % model.vocabulary.condition
    many = one.rows(torch.zeros(count, dtype=torch.int64))
    x = random_x(model).expand(count, -1, -1)
    moved = (model(x, replace(many, codes=changed)) - model(x, many)).abs().amax(-1)
    assert bool((moved > 1e-8).all())


@torch.no_grad()
def test_the_condition_of_an_image_is_its_own(codes_case) -> None:
    _, model = codes_case.build()
    x, cond = random_x(model, 3), codes_case.cond(3)
    together = symbol_nats(model, x, cond)
    for k in range(3):
        alone = symbol_nats(model, x[k : k + 1], cond.rows(slice(k, k + 1)))
        torch.testing.assert_close(alone[0], together[k], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_hidden_condition_says_nothing_and_a_shown_one_does(codes_case) -> None:
    """Also of the class, and in drawing; images whose condition is not hidden stay as they are."""
    _, model = codes_case.build()
    x, cond = random_x(model, 2), codes_case.cond(2)
    hidden = replace(cond, dropped=torch.tensor([True, False]))
    if not codes_case.fields.get("drop_condition_prob"):
        with pytest.raises(ConfigError, match="guidance needs a model that has seen images without their condition"):
            model(x, hidden)
        return
    other = codes_case.cond(3).rows(torch.tensor([2, 1]))
    assert not torch.equal(other.codes[0], cond.codes[0])
    other = replace(other, dropped=hidden.dropped)
    assert torch.equal(model(x, hidden), model(x, other))
    assert torch.equal(model(x, hidden)[1], model(x, cond)[1])
    assert float((model(x, hidden)[0] - model(x, cond)[0]).abs().max()) > 1e-6
    first, second = (draw(model, c, 2, options=SampleOptions(), rng=image_generators(3, 2)) for c in (hidden, other))
    assert torch.equal(first, second)


@torch.no_grad()
def test_codes_that_do_not_fit_are_refused_with_what_was_received(codes_case) -> None:
    _, model = codes_case.build()
    x, good = random_x(model, 2), codes_case.cond(2)
    count, values = good.codes.shape[1], model.vocabulary.condition
    for call in (
        lambda cond: model(x, cond),
        lambda cond: model.begin(cond, 2),
        lambda cond: model.loss(x, cond, rng=torch.Generator()),
    ):
        with pytest.raises(ConfigError, match=f"codes is missing: this model was trained with {values} codes"):
            call(replace(good, codes=None))
        with pytest.raises(ConfigError, match="codes has 1 entries for 2 images"):
            call(replace(good, codes=good.codes[:1]))
        with pytest.raises(ConfigError, match=rf"the condition has \[{count + 1}\] codes; .* = {count}"):
            call(replace(good, codes=torch.zeros(2, count + 1, dtype=torch.int64)))
        for wrong in (-1, values):
            with pytest.raises(
                ConfigError, match=rf"the condition has codes {wrong}\.\.{wrong}; they must lie in 0\.\.{values - 1}"
            ):
                call(replace(good, codes=torch.full_like(good.codes, wrong)))


@torch.no_grad()
def test_a_model_without_a_condition_refuses_codes(case) -> None:
    if not case.is_over_codes or case.cond(1).codes is not None:
        return
    _, model = case.build()
    cond = replace(case.cond(1), codes=torch.zeros(1, 4, dtype=torch.int64))
    for call in (lambda: model(random_x(model), cond), lambda: model.begin(cond, 1)):
        with pytest.raises(
            ConfigError, match="codes was given, but this model was trained without codes of a condition"
        ):
            call()
