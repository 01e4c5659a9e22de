"""Parallel sampling, for every autoregressive system: the image that single steps draw, in fewer passes."""

import pytest
import torch

from rasterformer.autoregressive.noise import image_generators
from rasterformer.autoregressive.parallel import draw_in_parallel
from rasterformer.autoregressive.sample import draw
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Known, SampleOptions


@torch.no_grad()
@pytest.mark.parametrize("options", [SampleOptions(), SampleOptions(0.7, 50, 0.9)], ids=["", "truncated"])
@pytest.mark.parametrize("window", [2, 3, 100])
def test_the_image_is_the_one_that_single_steps_draw(case, window: int, options: SampleOptions) -> None:
    _, model = case.build(noise=0.1)
    for k in range(3):
        one, cond = image_generators(11, 1, first=k), case.cond(1)
        expected = draw(model, cond, 1, options=options, rng=image_generators(11, 1, first=k))
        found = draw_in_parallel(model, cond, options=options, rng=one, window=window)
        assert torch.equal(found.x, expected)
        assert found.positions == model.x_shape[0] and 0 < found.passes <= found.positions


@torch.no_grad()
@pytest.mark.parametrize("known", ["first", "first five", "all", "every third"])
def test_known_positions_are_kept_and_gone_on_from(case, known: str) -> None:
    _, model = case.build(noise=0.1)
    length = model.x_shape[0]
    values = model.distribution.vocab_size
    whole = torch.randint(values, (1, *model.x_shape), generator=torch.Generator().manual_seed(2))
    each, told = torch.arange(length), []
    where = {"first": each < 1, "first five": each < 5, "all": each >= 0, "every third": each % 3 == 0}[known]
    given = Known(whole, where[None])
    expected = draw(model, case.cond(1), 1, options=SampleOptions(), rng=image_generators(3, 1), known=given)
    found = draw_in_parallel(
        model, case.cond(1), options=SampleOptions(), rng=image_generators(3, 1), known=given,
        on_step=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert torch.equal(found.x, expected)
    assert torch.equal(found.x[:, where], whole[:, where])
    assert (
        found.positions == {"first": length - 1, "first five": length - 5, "all": 0, "every third": length - 1}[known]
    )
    assert not told or (told[-1] == (length, length) and told == sorted(told))


@torch.no_grad()
def test_an_image_that_does_not_depend_on_its_past_takes_one_pass_for_a_window(case) -> None:
    """Weights that only see biases: the second pass confirms what the first decided, window after window."""
    _, model = case.build(noise=0.1)
    (model.head if case.is_over_codes else model.head.linear).weight.zero_()
    found = draw_in_parallel(model, case.cond(1), options=SampleOptions(), rng=image_generators(3, 1), window=4)
    expected = draw(model, case.cond(1), 1, options=SampleOptions(), rng=image_generators(3, 1))
    assert torch.equal(found.x, expected)
    # residual outputs look at neighbours without the network, and no window reaches beyond its query block
    _, state = model.begin(case.cond(1), 1)
    if case.fields.get("output") != "residual" and model.lookahead(state) >= 4:
        assert found.passes < 0.7 * found.positions


@torch.no_grad()
def test_steps_taken_back_leave_no_trace(case) -> None:
    """Every position is reached through a step of wrong ones as long as `lookahead` allows."""
    _, model = case.build()
    values = model.distribution.vocab_size
    x = torch.randint(values, (2, *model.x_shape), generator=torch.Generator().manual_seed(1))
    params, state = model.begin(case.cond(2), 2)
    parts, length = [params], model.x_shape[0]
    for done in range(length):
        ahead = model.lookahead(state)
        assert 1 <= ahead <= length - done
        wrong = torch.cat([x[:, done : done + 1], (x[:, done + 1 : done + ahead] + 97) % values], 1)
        params, state = model.step(wrong, state)
        parts.append(params[:, :1])
        state = model.rewind(state, done + 1)
    assert model.lookahead(state) == 0
    expected = model(x, case.cond(2))
    scale = max(1.0, float(expected.abs().max()))
    assert float((torch.cat(parts, 1) - expected).abs().max()) <= 1e-12 * scale


def test_a_wrong_window_known_and_number_of_generators_are_refused(case) -> None:
    _, model = case.build()

    def call(window: int = 8, images: int = 1, known: Known | None = None) -> None:
        draw_in_parallel(
            model, case.cond(1), options=SampleOptions(), rng=image_generators(0, images), window=window, known=known
        )

    with pytest.raises(ConfigError, match="window = 1 must be at least 2"):
        call(window=1)
    with pytest.raises(ShapeError, match="rng has 2 generators for batch_size = 1"):
        call(images=2)
    length, symbols = model.x_shape
    with pytest.raises(ShapeError, match=rf"known has x \[2, {length}, {symbols}\]"):
        call(known=Known(torch.zeros(2, length, symbols, dtype=torch.int64), torch.ones(2, length, dtype=torch.bool)))
