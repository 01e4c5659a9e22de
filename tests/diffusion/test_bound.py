"""The bound against chains so small that every state is enumerated with dense matrices; the limit of many steps."""

import itertools
import math
from functools import cache

import pytest
import torch
from torch import Tensor

from rasterformer.diffusion.bound import bound_nats
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.diffusion.discrete import DiscreteProcess, make_process
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Cond, Loss

F64 = torch.float64
SCHEDULES = ("paper", "release", "linear", "cosine")
LENGTH = 2


class Table(CodeDenoiser):
    """Any denoiser of so few codes is a table: log p(x_0 | x_t) for every level and every x_t."""

    def __init__(self, process: DiscreteProcess, log_x0: Tensor) -> None:
        super().__init__()
        self.process, self.x_shape, self.num_classes = process, (log_x0.shape[-2], 1), 0
        self.log_x0 = log_x0  # [T + 1, (K + 1) ^ L, L, K]

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        assert t.dtype == torch.int64 and t.shape == x.shape[:1] and 1 <= int(t.min())
        base = self.process.num_codes + 1
        index = sum(x[:, i] * base**i for i in range(x.shape[1]))
        logits = self.log_x0[t, index] + 5.0  # a constant says nothing
        return logits if cond.label is None else logits + cond.label[:, None, None] * torch.arange(logits.shape[-1])

    def loss(self, x: Tensor, cond: Cond, *, rng: torch.Generator | None) -> Loss:
        raise AssertionError("a bound needs no loss")

    def sample(self, *args: object, **kwargs: object) -> Tensor:
        raise AssertionError("a bound draws nothing")

    def state_bytes(self, batch_size: int) -> int:
        raise AssertionError("a bound plans no memory")

    def to_bfloat16(self) -> CodeDenoiser:
        raise AssertionError("a bound changes no precision")


def random_table(process: DiscreteProcess, length: int = LENGTH) -> Table:
    """A network that was never trained: any table."""
    states = (process.num_codes + 1) ** length
    logits = torch.randn(
        process.num_steps + 1, states, length, process.num_codes, dtype=F64, generator=torch.Generator().manual_seed(0)
    )
    return Table(process, logits.log_softmax(-1))


def index_of(process: DiscreteProcess, state: tuple[int, ...]) -> int:
    return sum(code * (process.num_codes + 1) ** i for i, code in enumerate(state))


@cache
def one_step(process: DiscreteProcess, t: int) -> Tensor:
    """q(x_t | x_{t-1}) [from, to] by the paper's formulas of one step."""
    codes = process.num_codes
    a = float(process.keep[t] / process.keep[t - 1])
    c = 1 - float((1 - process.mask[t]) / (1 - process.mask[t - 1]))
    b = (1 - a - c) / codes
    matrix = torch.full((codes + 1, codes + 1), b, dtype=F64) + a * torch.eye(codes + 1, dtype=F64)
    matrix[:, codes], matrix[codes] = c, 0.0
    matrix[codes, codes] = 1.0
    return torch.where(matrix < 1e-14, 0.0, matrix)  # less is rounding


@cache
def marginal(process: DiscreteProcess, t: int) -> Tensor:
    """q(x_t | x_0) [from, to]."""
    return marginal(process, t - 1) @ one_step(process, t) if t else torch.eye(process.num_codes + 1, dtype=F64)


def reverse(process: DiscreteProcess, t: int, x_t: int, probs: Tensor) -> Tensor:
    """p(x_{t-1} | x_t) [K + 1] of one code by Bayes; an x_0 that cannot lead to x_t has no part in it."""
    joint = marginal(process, t - 1)[:-1] * one_step(process, t)[:, x_t]  # [x_0, x_{t-1}]
    evidence = joint.sum(1, keepdim=True)
    given = torch.where(evidence > 0, joint / evidence.clamp_min(1e-300), 0.0)
    result = probs @ given
    return result / result.sum() if float(result.sum()) > 0 else result


def states(process: DiscreteProcess, length: int) -> list[tuple[int, ...]]:
    return list(itertools.product(range(process.num_codes + 1), repeat=length))


def exact_bound(model: Table, x0: tuple[int, ...]) -> Tensor:
    """All terms, every x_t: nats of each code [L]."""
    process = model.process
    prior = process.log_prior().exp()
    total = torch.zeros(len(x0), dtype=F64)
    for i, code in enumerate(x0):
        total[i] += divergence(marginal(process, process.num_steps)[code], prior)
    for t in range(1, process.num_steps + 1):
        forward = marginal(process, t)
        for x_t in states(process, len(x0)):
            weight = math.prod(float(forward[code, to]) for code, to in zip(x0, x_t, strict=True))
            if weight == 0:
                continue
            for i, code in enumerate(x0):
                certain = torch.zeros(process.num_codes, dtype=F64)
                certain[code] = 1.0
                true = reverse(process, t, x_t[i], certain)
                probs = model.log_x0[t, index_of(process, x_t), i].exp()
                total[i] += weight * divergence(true, reverse(process, t, x_t[i], probs))
    return total


def own_bound(model: Table, x0: tuple[int, ...]) -> float:
    """The same of the process's own numbers."""
    process = model.process
    total = len(x0) * process.prior_nats()
    for t in range(1, process.num_steps + 1):
        forward = marginal(process, t)
        weight = {
            x_t: math.prod(float(forward[code, to]) for code, to in zip(x0, x_t, strict=True))
            for x_t in states(process, len(x0))
        }
        possible = [x_t for x_t in weight if weight[x_t] > 0]
        log_x0 = model.log_x0[t, [index_of(process, x_t) for x_t in possible]]
        levels = torch.full((len(possible),), t)
        images = torch.tensor(x0).expand(len(possible), -1), torch.tensor(possible)
        nats = process.step_nats(log_x0, *images, levels, levels - 1).sum(1)
        total += float(torch.tensor([weight[x_t] for x_t in possible], dtype=F64) @ nats)
    return total


def divergence(q: Tensor, p: Tensor) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(q.tolist(), p.tolist(), strict=True) if a > 0)


def exact_log_prob(model: Table, length: int = LENGTH) -> dict[tuple[int, ...], float]:
    """log p(x_0) of the reverse chain: p(x_T), then a dense matrix over all states for every step."""
    process = model.process
    every = states(process, length)
    prior = process.log_prior().exp()
    probs = torch.tensor([math.prod(float(prior[code]) for code in state) for state in every], dtype=F64)
    for t in range(process.num_steps, 0, -1):
        matrix = torch.zeros(len(every), len(every), dtype=F64)
        for row, x_t in enumerate(every):
            table = model.log_x0[t, index_of(process, x_t)].exp()
            result = torch.ones(1, dtype=F64)
            for i in range(length):
                result = torch.outer(result, reverse(process, t, x_t[i], table[i])).flatten()
            matrix[row] = result
        probs = probs @ matrix
    assert float(probs.sum()) == pytest.approx(1.0, abs=1e-12)
    return {state: math.log(prob) for state, prob in zip(every, probs.tolist(), strict=True) if prob > 0}


def perfect(process: DiscreteProcess, data: dict[tuple[int, ...], float]) -> Table:
    """The posterior q(x_0 | x_t) of a distribution of data, by Bayes."""
    length = len(next(iter(data)))
    table = torch.zeros(process.num_steps + 1, (process.num_codes + 1) ** length, length, process.num_codes, dtype=F64)
    for t in range(1, process.num_steps + 1):
        forward = marginal(process, t)
        for x_t in states(process, length):
            for x0, prob in data.items():
                weight = prob * math.prod(float(forward[code, to]) for code, to in zip(x0, x_t, strict=True))
                for i, code in enumerate(x0):
                    table[t, index_of(process, x_t), i, code] += weight
    total = table.sum(-1, keepdim=True)
    uniform = 1 / process.num_codes
    return Table(process, torch.where(total > 0, table / total.clamp_min(1e-300), uniform).log())


DATA: dict[tuple[int, ...], float] = {(0, 0): 0.4, (0, 1): 0.15, (1, 2): 0.25, (2, 1): 0.2}
ENTROPY = -sum(prob * math.log(prob) for prob in DATA.values())


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + k) for k in range(count)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_mean_of_many_draws_is_the_bound_by_enumeration(schedule: str, levels: int) -> None:
    model, x0, count = random_table(make_process(schedule, 2, 4)), (1, 0), 2000  # type: ignore[arg-type]
    x = torch.tensor(x0)[None, :, None].expand(count, -1, -1)
    draws = bound_nats(model, x, Cond(), rng=generators(count), levels=levels)
    assert draws.shape == (count, LENGTH) and draws.dtype == torch.float32
    error = draws.double().std(0) / math.sqrt(count)
    assert float(error.max()) < 0.3
    assert bool(((draws.double().mean(0) - exact_bound(model, x0)).abs() < 4.5 * error + 1e-6).all())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("num_codes", "num_steps"), [(2, 4), (3, 3)])
def test_bound_is_above_the_exact_negative_log_likelihood(schedule: str, num_codes: int, num_steps: int) -> None:
    model = random_table(make_process(schedule, num_codes, num_steps))  # type: ignore[arg-type]
    log_prob = exact_log_prob(model)
    for x0 in itertools.product(range(num_codes), repeat=LENGTH):
        bound = own_bound(model, x0)
        assert bound == pytest.approx(float(exact_bound(model, x0).sum()), abs=1e-8)
        assert bound > -log_prob[x0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_bound_of_one_code_and_its_perfect_denoiser_is_the_entropy_and_what_the_prior_misses(schedule: str) -> None:
    process = make_process(schedule, 3, 4)  # type: ignore[arg-type]
    data: dict[tuple[int, ...], float] = {(0,): 0.6, (1,): 0.3, (2,): 0.1}
    model = perfect(process, data)
    last = sum(prob * marginal(process, 4)[x0[0]] for x0, prob in data.items())
    assert isinstance(last, Tensor)
    expected = -sum(prob * math.log(prob) for prob in data.values()) + divergence(last, process.log_prior().exp())
    mean = sum(prob * float(exact_bound(model, x0).sum()) for x0, prob in data.items())
    assert mean == pytest.approx(expected, abs=1e-9)
    # the same chain's exact likelihood can be no better than the entropy, nor the bound better than it
    likelihood = -sum(prob * exact_log_prob(model, 1)[x0] for x0, prob in data.items())
    assert -sum(prob * math.log(prob) for prob in data.values()) - 1e-9 <= likelihood <= mean + 1e-9
    count = 1000
    x = torch.tensor([x0 for x0 in data for _ in range(count)])[..., None]
    draws = bound_nats(model, x, Cond(), rng=generators(len(x)), levels=4).double().view(3, count)
    weights = torch.tensor(list(data.values()), dtype=F64)
    error = float((weights.square() * draws.var(1) / count).sum().sqrt())
    assert abs(float((weights * draws.mean(1)).sum()) - expected) < 4.5 * error


def continuous_bound(process: DiscreteProcess, model: Table, x0: tuple[int, ...], points: int = 400) -> float:
    """The mean over times of m'(u) / m(u) times the masked tokens' nats, by the midpoint rule and over every set of masks."""
    u = (torch.arange(points, dtype=F64) + 0.5) / points
    fraction, weight = process.masked_at(u)
    total = torch.zeros(points, dtype=F64)
    for hidden in itertools.product((False, True), repeat=len(x0)):
        x_t = tuple(process.mask_index if is_hidden else code for code, is_hidden in zip(x0, hidden, strict=True))
        # a perfect denoiser of masks needs no time: level 1 says it all
        log_x0 = model.log_x0[1, index_of(process, x_t)].expand(points, -1, -1)
        images = torch.tensor(x0).expand(points, -1), torch.tensor(x_t).expand(points, -1)
        nats = process.masked_nats(log_x0, *images, weight).sum(1)
        prob = torch.stack([fraction if is_hidden else 1 - fraction for is_hidden in hidden]).prod(0)
        total += prob * nats
    return float(total.mean())


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_continuous_bound_of_the_perfect_denoiser_is_the_likelihood_and_the_limit_of_levels(schedule: str) -> None:
    coarse, fine = (make_process(schedule, 3, steps) for steps in (3, 30))  # type: ignore[arg-type]
    model = perfect(coarse, DATA)
    total = 0.0
    for x0, prob in DATA.items():
        nats = continuous_bound(coarse, model, x0)
        assert nats == pytest.approx(-math.log(prob), abs=1e-5)  # the midpoint rule of 400 points
        total += prob * nats
    assert total == pytest.approx(ENTROPY, abs=1e-5)
    # levels reveal several codes at once as if they were independent: they cost more, the less the more of them
    gaps = []
    for process in (coarse, fine):
        table = Table(process, model.log_x0[1].expand(process.num_steps + 1, -1, -1, -1))
        gaps.append(sum(prob * float(exact_bound(table, x0).sum()) for x0, prob in DATA.items()) - ENTROPY)
    assert 0 < gaps[1] < gaps[0] / 5


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_continuous_loss_at_random_times_has_the_mean_of_the_bound(schedule: str) -> None:
    process, x0, count = make_process(schedule, 3, 3), (1, 2), 40_000  # type: ignore[arg-type]
    model, rng = perfect(process, DATA), torch.Generator().manual_seed(7)
    u = 1 - torch.rand(count, dtype=F64, generator=rng)
    fraction, weight = process.masked_at(u)
    x = torch.tensor(x0).expand(count, -1)
    x_t = process.diffuse_masked(x, fraction, torch.rand(count, LENGTH, dtype=F64, generator=rng))
    log_x0 = model(x_t, torch.ones(count, dtype=torch.int64), Cond()).log_softmax(-1)
    nats = process.masked_nats(log_x0, x, x_t, weight).sum(1)
    error = float(nats.std()) / math.sqrt(count)
    assert error < 0.1
    assert abs(float(nats.mean()) + math.log(DATA[x0])) < 4 * error


def test_an_image_does_not_depend_on_its_batch() -> None:
    model = random_table(make_process("paper", 2, 4))
    x = torch.tensor([[0, 1], [1, 1], [0, 0]])[..., None]
    together = bound_nats(model, x, Cond(), rng=generators(3), levels=3)
    for k in range(3):
        alone = bound_nats(model, x[k : k + 1], Cond(), rng=generators(1, first=k), levels=3)
        assert torch.equal(alone, together[k : k + 1])
    assert not torch.equal(together, bound_nats(model, x, Cond(), rng=generators(3, first=9), levels=3))


def test_the_condition_reaches_the_network() -> None:
    model, x = random_table(make_process("linear", 2, 4)), torch.ones(2, LENGTH, 1, dtype=torch.int64)
    labelled = [
        bound_nats(model, x, Cond(label=torch.tensor([0, label])), rng=generators(2), levels=4) for label in (0, 3)
    ]
    assert torch.equal(labelled[0][0], labelled[1][0])
    assert float(labelled[1][1].sum()) < float(labelled[0][1].sum())  # the label favours code 1


def test_wrong_shapes_and_levels_are_refused() -> None:
    model, x = random_table(make_process("linear", 2, 4)), torch.zeros(3, LENGTH, 1, dtype=torch.int64)
    for wrong in (x[..., 0], x[:, :1], x.expand(-1, -1, 2)):
        says = str(list(wrong.shape)).replace("[", r"\[").replace("]", r"\]")
        with pytest.raises(ShapeError, match=rf"x is torch.int64 {says}; expected torch.int64 \['B', 2, 1\]"):
            bound_nats(model, wrong, Cond(), rng=generators(3), levels=4)
    with pytest.raises(ShapeError, match="x is torch.int32"):
        bound_nats(model, x.int(), Cond(), rng=generators(3), levels=4)
    with pytest.raises(ShapeError, match="rng has 2 generators for 3 images"):
        bound_nats(model, x, Cond(), rng=generators(2), levels=4)
    for levels in (0, 5):
        with pytest.raises(ConfigError, match=rf"levels = {levels} leaves 1\.\.4"):
            bound_nats(model, x, Cond(), rng=generators(3), levels=levels)
