"""What every autoregressive system must hold: causality, step = forward, normalisation, samples that fit, conditions."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rasterformer.autoregressive.noise import NoiseStream, image_generators
from rasterformer.autoregressive.sample import draw
from rasterformer.autoregressive.score import symbol_nats
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Autoregressive, Cond, Known, SampleOptions

OPTIONS = SampleOptions()


def random_x(model: Autoregressive, batch: int = 2) -> Tensor:
    values = model.distribution.vocab_size
    return torch.randint(0, values, (batch, *model.x_shape), generator=torch.Generator().manual_seed(1))


def other_values(x: Tensor, model: Autoregressive) -> Tensor:
    """Another value for each symbol."""
    return (x + 97) % model.distribution.vocab_size


def first_of(x: Tensor, count: int) -> Known:
    """The first positions of x as known."""
    return Known(x, (torch.arange(x.shape[1]) < count).expand(len(x), -1))


@torch.no_grad()
def test_no_output_depends_on_its_own_or_a_later_position_and_every_position_is_used(case) -> None:
    """One row for each position j, changed there: outputs up to j stay (float64, 1e-10), a later one moves.

    That a later one moves holds for the last cell of every 2D block too, which a shift inside blocks would lose.
    """
    _, model = case.build()
    length = model.x_shape[0]
    x = random_x(model, 1)
    changed = x.repeat(length, 1, 1)
    each = torch.arange(length)
    changed[each, each] = other_values(changed[each, each], model)
    moved = (model(changed, case.same_cond(length)) - model(x, case.same_cond(1))).abs().amax(-1)  # [L, L]
    upto = torch.ones(length, length, dtype=torch.bool).tril()  # row j, column i <= j
    assert float(moved[upto].max()) < 1e-10
    assert bool((moved.masked_fill(upto, 0).amax(1)[:-1] > 1e-6).all())


@torch.no_grad()
def test_every_channel_of_a_position_is_used(case) -> None:
    _, model = case.build()
    x = random_x(model, 1)
    before = model(x, case.same_cond(1))
    for symbol in range(model.x_shape[1]):
        changed = x.clone()
        changed[:, 4, symbol] = other_values(changed[:, 4, symbol], model)
        assert float((model(changed, case.same_cond(1)) - before)[:, 5:].abs().max()) > 1e-6


def stepped(model: Autoregressive, x: Tensor, cond: Cond, chunks: list[int]) -> Tensor:
    """params [B, L, P] by begin and steps of the given sizes, the last repeated."""
    params, state = model.begin(cond, len(x))
    parts, first = [params], 0
    for number in range(x.shape[1]):
        size = chunks[min(number, len(chunks) - 1)]
        if first >= x.shape[1]:
            break
        params, state = model.step(x[:, first : first + size], state)
        parts.append(params)
        first += size
    return torch.cat(parts, 1)


@torch.no_grad()
@pytest.mark.parametrize(
    ("dtype", "noise", "tolerance"),
    [(torch.float64, 0.3, 1e-12), (torch.float32, 0.0, 2e-5)],
    ids=["float64-large-weights", "float32-fresh-weights"],
)
@pytest.mark.parametrize("chunks", [[1], [3], [13, 1], [100], [2, 5, 1, 9]], ids=str)
def test_step_equals_forward(case, chunks: list[int], dtype: torch.dtype, noise: float, tolerance: float) -> None:
    """Single positions, odd pieces, pieces that cross block borders, all at once."""
    _, model = case.build(dtype=dtype, noise=noise)
    x, cond = random_x(model), case.cond(2)
    expected = model(x, cond)
    scale = max(1.0, float(expected.abs().max()))  # relative to the largest output where that is above 1
    assert float((stepped(model, x, cond, chunks) - expected).abs().max()) <= tolerance * scale


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_probabilities_of_all_images_sum_to_one(case, few_levels, dtype: torch.dtype, tolerance: float) -> None:
    """All 4,096 images of 2x2 pixels whose sub-pixels take two values, or all 625 grids of 2x2 codes of five.

    Weights are large, so that a leak would show.
    """
    case = case.small()
    _, model = case.build(dtype=dtype, noise=1.0)
    small = few_levels(model, case.levels)
    x = small.every_x()
    assert len(x) == len(small.index_of(x).unique()) == (625 if case.is_over_codes else 4096)
    log_prob = small.distribution.log_prob(small(x, case.same_cond(len(x))), x).sum(1)
    assert abs(float(log_prob.double().exp().sum()) - 1) <= tolerance
    assert float(log_prob.max() - log_prob.min()) > 5, "a flat distribution would hide leaks"


@torch.no_grad()
def test_the_sum_over_all_images_shows_a_leak(case, few_levels) -> None:
    """The test above can fail: the same model, shown the position that it predicts, is far from one."""
    case = case.small()
    _, model = case.build(noise=1.0)
    small = few_levels(model, case.levels)
    x = small.every_x()
    leaked = small(x.roll(-1, 1), case.same_cond(len(x)))
    total = small.distribution.log_prob(leaked, x).sum(1).exp().sum()
    assert abs(float(total) - 1) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("options", [OPTIONS, SampleOptions(temperature=1.5)], ids=["", "temperature"])
def test_samples_fit_the_likelihood(
    case, few_levels, options: SampleOptions, fit_p_value: Callable[[Tensor, Tensor], float]
) -> None:
    """4,000 draws from all images against their enumerated probabilities."""
    case = case.small()
    _, model = case.build(noise=0.3)
    small = few_levels(model, case.levels)
    cond = case.same_cond(4000)
    x = draw(small, cond, 4000, options=options, rng=image_generators(3, 4000))
    every = small.every_x()
    params = small(every, case.same_cond(len(every)))
    counts = torch.bincount(small.index_of(x), minlength=len(every))
    fits = fit_p_value(counts, probabilities(small, params, every, options.temperature))
    assert fits > 1e-4


def probabilities(small: Autoregressive, params: Tensor, every: Tensor, temperature: float) -> Tensor:
    """Of every image, float64; temperature divides logits and multiplies the scales of logistics."""
    if small.distribution.symbols_per_position == 1:
        params = params / temperature
    else:
        mixtures = params.shape[-1] // 10
        params = params.clone()
        params[..., :mixtures] /= temperature
        log_scales = params[..., 4 * mixtures : 7 * mixtures]
        log_scales.copy_(log_scales.clamp(min=-7.0) + torch.tensor(temperature).log())
    return small.distribution.log_prob(params, every).sum(1).exp()


@torch.no_grad()
def test_an_image_does_not_depend_on_the_batch_it_is_drawn_in(case) -> None:
    case = case.small()
    _, model = case.build()
    together = model.sample(case.cond(3), 3, options=OPTIONS, rng=image_generators(7, 3))
    for k in range(3):
        alone = model.sample(
            case.cond(3).rows(slice(k, k + 1)), 1, options=OPTIONS, rng=image_generators(7, 1, first=k)
        )
        assert torch.equal(alone[0], together[k])
    assert not torch.equal(together[0], together[1])


@torch.no_grad()
def test_the_seed_decides_the_sample(case) -> None:
    case = case.small()
    _, model = case.build()
    first, again, other = (
        model.sample(case.cond(2), 2, options=OPTIONS, rng=image_generators(seed, 2)) for seed in (7, 7, 8)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


@torch.no_grad()
@pytest.mark.parametrize("known", [1, 3])
def test_draw_keeps_a_prefix_and_goes_on_from_it_as_if_drawn(case, known: int) -> None:
    case = case.small()
    _, model = case.build()
    cond, count = case.cond(32), 32  # so many that another prefix changes what is drawn of one of them, at least
    whole = draw(model, cond, count, options=OPTIONS, rng=image_generators(7, count))
    again = draw(model, cond, count, options=OPTIONS, rng=image_generators(7, count), known=first_of(whole, known))
    assert torch.equal(again, whole)
    given = Known(other_values(whole, model), first_of(whole, known).where)
    other = draw(model, cond, count, options=OPTIONS, rng=image_generators(7, count), known=given)
    assert torch.equal(other[:, :known], given.x[:, :known])
    assert not torch.equal(other[:, known:], whole[:, known:])


@torch.no_grad()
def test_draw_returns_a_whole_prefix_unchanged_and_reports_each_step(case) -> None:
    case = case.small()
    _, model = case.build()
    x = random_x(model)
    told: list[tuple[int, int]] = []
    length = model.x_shape[0]
    whole = first_of(x, length)
    assert torch.equal(draw(model, case.cond(2), 2, options=OPTIONS, rng=image_generators(0, 2), known=whole), x)
    draw(
        model, case.cond(2), 2, options=OPTIONS, rng=image_generators(0, 2), known=first_of(x, 1),
        on_step=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(position + 1, length) for position in range(1, length)]


@torch.no_grad()
def test_draw_keeps_known_positions_wherever_they_are_and_draws_the_others_from_the_model(case) -> None:
    """The same noise decides a value from the params that follow the known values: an independent loop over forward."""
    case = case.small()
    _, model = case.build()
    length, _ = model.x_shape
    where = torch.zeros(2, length, dtype=torch.bool)
    where[0, ::3], where[1, 1::2] = True, True
    given = Known(random_x(model), where)
    drawn = draw(model, case.cond(2), 2, options=OPTIONS, rng=image_generators(7, 2), known=given)
    noise = NoiseStream(image_generators(7, 2), model.distribution.noise_per_position, length, torch.device("cpu"))
    expected = torch.zeros_like(drawn)
    for position in range(length):
        params = model(expected, case.cond(2))[:, position]
        value = model.distribution.sample(params, noise.at(position)[:, 0], options=OPTIONS)
        expected[:, position] = torch.where(where[:, position, None], given.x[:, position], value)
    assert torch.equal(drawn, expected)


@torch.no_grad()
def test_draw_refuses_known_values_of_another_shape_and_too_few_generators(case) -> None:
    case = case.small()
    _, model = case.build()
    length, symbols = model.x_shape
    for shape in [(1, length, symbols), (2, length + 1, symbols), (2, length, symbols + 1), (2, length)]:
        with pytest.raises(ShapeError, match=r"known has x \[" + ", ".join(map(str, shape))):
            draw(
                model, case.cond(2), 2, options=OPTIONS, rng=image_generators(0, 2),
                known=Known(torch.zeros(shape, dtype=torch.int64), torch.ones(2, length, dtype=torch.bool)),
            )  # fmt: skip
    with pytest.raises(ShapeError, match=r"where torch.int64 \[2, "):
        draw(
            model, case.cond(2), 2, options=OPTIONS, rng=image_generators(0, 2),
            known=Known(random_x(model), torch.ones(2, length, dtype=torch.int64)),
        )  # fmt: skip
    with pytest.raises(ShapeError, match="rng has 1 generators for batch_size = 2"):
        draw(model, case.cond(2), 2, options=OPTIONS, rng=image_generators(0, 1))


def test_loss_is_the_mean_negative_log_likelihood_per_dimension(case) -> None:
    _, model = case.build(noise=0.1)
    x, cond = random_x(model), case.cond(2)
    loss = model.loss(x, cond, rng=None)
    nats = symbol_nats(model, x, cond).sum((1, 2))
    torch.testing.assert_close(loss.nats, nats, rtol=1e-10, atol=1e-10)
    assert loss.total.item() == pytest.approx(float(nats.mean()) / (16 if case.is_over_codes else 48), rel=1e-10)
    assert loss.bound == "exact"


def test_the_class_changes_the_likelihood_and_must_be_given_and_known(case) -> None:
    _, model = case.build(noise=0.1)
    x = random_x(model, 1)
    cond = case.cond(1)
    if not case.num_classes:
        with pytest.raises(ConfigError, match="trained without classes"):
            model(x, replace(cond, label=torch.tensor([0])))
        return
    classes = [replace(cond, label=torch.tensor([label])) for label in range(3)]
    by_class = [float(symbol_nats(model, x, of_class).sum()) for of_class in classes]
    assert len({round(nats, 6) for nats in by_class}) == 3
    with pytest.raises(ConfigError, match="label is missing: this model was trained with 3 classes"):
        model(x, replace(cond, label=None))
    for label in ([3], [-1], [0, 1]):
        with pytest.raises(ConfigError, match=rf"label = \[{label[0]}.* must have one class index in 0\.\.2"):
            model(x, replace(cond, label=torch.tensor(label)))
    with pytest.raises(ConfigError, match="label is missing"):
        model.begin(replace(cond, label=None), 1)
