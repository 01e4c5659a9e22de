"""Drawing against exact enumeration: two codes and a mask, two places, five levels, and any table for a network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from rasterformer.autoregressive.noise import image_generators
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.diffusion.discrete import DiscreteProcess, Schedule, make_process
from rasterformer.diffusion.draw import draw_codes, levels_of, predict
from rasterformer.diffusion.options import DiffusionOptions, Order
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Cond, Known, Loss, OnStep, SampleOptions

SCHEDULES: tuple[Schedule, ...] = ("paper", "release", "linear", "cosine")
MASKS_ONLY: tuple[Schedule, ...] = ("release", "linear", "cosine")
ORDERS: tuple[Order, ...] = ("posterior", "random", "purity", "confidence")
REVEALING: tuple[Order, ...] = ("random", "purity", "confidence")
CLASSES = 2


class Toy(CodeDenoiser):
    """Remembers what it was shown."""

    def __init__(self, process: DiscreteProcess, length: int) -> None:
        super().__init__()
        self.process, self.x_shape, self.num_classes = process, (length, 1), CLASSES
        self.on = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[Tensor, Tensor, Cond]] = []

    def logits(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.seen.append((x.clone(), t.clone(), cond))
        return self.logits(x, t, cond)

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
        return draw_codes(self, cond, batch_size, options=options, rng=rng, on_step=on_step)

    def state_bytes(self, batch_size: int) -> int:
        return 0

    def to_bfloat16(self) -> Toy:
        return self


class Table(Toy):
    """Any logits for every (class or none, level, x_t)."""

    def __init__(self, schedule: Schedule, *, codes: int = 2, length: int = 2, levels: int = 5) -> None:
        super().__init__(make_process(schedule, codes, levels), length)
        states = (codes + 1) ** length
        rng = torch.Generator().manual_seed(1)
        self.table = 1.5 * torch.randn(CLASSES + 1, levels + 1, states, length, codes, generator=rng)

    def logits(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        row = torch.full_like(t, CLASSES) if cond.label is None else cond.label
        row = row if cond.dropped is None else torch.where(cond.dropped, CLASSES, row)
        base = self.process.num_codes + 1
        state = sum(x[:, i] * base ** (x.shape[1] - 1 - i) for i in range(x.shape[1]))
        return self.table[row, t, state]


class Constant(Toy):
    """The same logits [K] everywhere."""

    def __init__(self, process: DiscreteProcess, length: int, logits: Tensor) -> None:
        super().__init__(process, length)
        self.row = logits

    def logits(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.row.expand(*x.shape, -1)


class Exact(Toy):
    """The true p(x_0 | x_t) of a distribution [K] * L, by Bayes."""

    def __init__(self, schedule: Schedule, data: Tensor, *, levels: int = 6) -> None:
        super().__init__(make_process(schedule, data.shape[0], levels), data.dim())
        self.data = data.double()

    def logits(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        chance = torch.stack([cumulative(self.process, level) for level in range(self.process.num_steps + 1)])
        codes, length = self.process.num_codes, self.data.dim()
        joint = self.data.expand(len(x), *self.data.shape).clone()
        for i in range(length):
            shape = [len(x)] + [codes if j == i else 1 for j in range(length)]
            joint *= chance[t, :codes, x[:, i]].view(shape)
        marginals = [joint.movedim(i + 1, 1).flatten(2).sum(2) if length > 1 else joint for i in range(length)]
        return torch.stack(marginals, 1).clamp(min=1e-300).log().float()


def cumulative(process: DiscreteProcess, t: int) -> Tensor:
    """q(x_t | x_0) as a matrix [K + 1, K + 1] with a row for each x_0, the mask last."""
    codes = process.num_codes
    keep, mask = float(process.keep[t]), float(process.mask[t])
    matrix = torch.zeros(codes + 1, codes + 1, dtype=torch.float64)
    for i in range(codes):
        for j in range(codes):
            matrix[i, j] = (1 - keep - mask) / codes + (keep if i == j else 0)
        matrix[i, codes] = mask
    matrix[codes, codes] = 1
    return matrix.clamp(min=0)


def reverse(process: DiscreteProcess, p_x0: Tensor, x_t: int, t: int, s: int) -> Tensor:
    """p(x_s | x_t) [K + 1], by Bayes: the sum over x_0 of q(x_t | x_s) q(x_s | x_0) / q(x_t | x_0) p(x_0 | x_t)."""
    to_s, to_t = cumulative(process, s), cumulative(process, t)
    between = torch.linalg.solve(to_s, to_t)
    if x_t != process.mask_index and float(1 - process.keep[t] - process.mask[t]) < 1e-9:
        return torch.eye(process.num_codes + 1, dtype=torch.float64)[x_t]  # nothing is replaced: it is x_0
    total = torch.zeros(process.num_codes + 1, dtype=torch.float64)
    for x0 in range(process.num_codes):
        total += between[:, x_t] * to_s[x0] / to_t[x0, x_t] * p_x0[x0]
    return total / total.sum()


def chain(model: Table, levels: list[int], begin: Tensor, p_x0: Tensor) -> Tensor:
    """The distribution of all x_0, float64 [K + 1] * 2, of the reverse chain; p_x0 float64 [T + 1, states, L, K]."""
    size = model.process.num_codes + 1
    now = begin
    for t, s in itertools.pairwise(levels):
        after = torch.zeros_like(now)
        for state, (a, b) in enumerate(itertools.product(range(size), repeat=2)):
            if now[a, b] > 0:
                first = reverse(model.process, p_x0[t, state, 0], a, t, s)
                second = reverse(model.process, p_x0[t, state, 1], b, t, s)
                after += now[a, b] * first[:, None] * second
        now = after
    return now


def prior(process: DiscreteProcess) -> Tensor:
    mask = float(process.mask[-1])
    one = torch.tensor([(1 - mask) / process.num_codes] * process.num_codes + [mask], dtype=torch.float64)
    return one[:, None] * one


def fit(x: Tensor, expected: Tensor) -> float:
    """The p-value of codes int64 [B, L, 1] under probabilities [K] * L; cells of fewer than 5 are one cell."""
    codes = x[..., 0]
    index = torch.zeros(len(codes), dtype=torch.int64)
    for i, size in enumerate(expected.shape):
        index = index * size + codes[:, i]
    seen = torch.bincount(index, minlength=expected.numel()).double()
    wanted = expected.double().flatten() / expected.double().sum() * len(codes)
    assert seen[wanted == 0].sum() == 0
    rare = wanted < 5
    if bool(rare.any()):
        seen, wanted = (torch.cat([part[~rare], part[rare].sum()[None]]) for part in (seen, wanted))
    keep = wanted > 1e-3
    assert seen[~keep].sum() == 0
    return float(scipy.stats.chisquare(seen[keep], wanted[keep] * seen[keep].sum() / wanted[keep].sum()).pvalue)


def draws(model: Toy, count: int, options: SampleOptions, *, cond: Cond | None = None, **extra: object) -> Tensor:
    rng = image_generators(3, count)
    return draw_codes(model, cond or Cond(), count, options=options, rng=rng, **extra)  # type: ignore[arg-type]


@pytest.mark.parametrize(("top", "steps"), [(100, 25), (100, 30), (7, 7), (7, 5), (7, 1), (10, 9)])
def test_levels_go_from_the_last_to_zero_in_strides_that_differ_by_at_most_one(top: int, steps: int) -> None:
    levels = levels_of(top, steps)
    strides = {t - s for t, s in itertools.pairwise(levels)}
    assert (levels[0], levels[-1], len(levels)) == (top, 0, steps + 1)
    assert strides <= {top // steps, -(-top // steps)}


@pytest.mark.parametrize("steps", [None, 3, 2, 1])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_draws_fit_the_enumerated_reverse_chain(schedule: Schedule, steps: int | None) -> None:
    model = Table(schedule)
    p_x0 = model.table[CLASSES].double().softmax(-1)
    expected = chain(model, levels_of(5, steps or 5), prior(model.process), p_x0)
    assert fit(draws(model, 2500, DiffusionOptions(steps=steps)), expected[:2, :2]) > 1e-4
    assert expected[:2, :2].sum() == pytest.approx(1)
    assert len(model.seen) == (steps or 5)


def test_plain_options_draw_the_whole_chain() -> None:
    model = Table("paper")
    assert torch.equal(draws(model, 50, SampleOptions(temperature=0.5)), draws(model, 50, DiffusionOptions(0.5)))
    assert len(model.seen) == 2 * 5


@pytest.mark.parametrize("schedule", ["paper", "linear"])
def test_draws_fit_the_chain_of_guided_cooled_truncated_and_sharpened_predictions(schedule: Schedule) -> None:
    model, scale, temperature, weight = Table(schedule, codes=3), 1.7, 0.8, 1.3
    given, null = (model.table[row].double().log_softmax(-1) for row in (1, CLASSES))
    p = ((null + scale * (given - null)) / temperature).softmax(-1)
    kept = torch.where(p == p.amin(-1, keepdim=True), 0, p)  # the two best of three
    sharp = ((1 + weight * kept.amax(-1, keepdim=True)) * kept.log()).softmax(-1)
    expected = chain(model, levels_of(5, 3), prior(model.process), sharp)
    options = DiffusionOptions(temperature, top_k=2, steps=3, purity_weight=weight, guidance_scale=scale)
    x = draws(model, 2500, options, cond=Cond(label=torch.ones(2500, dtype=torch.int64)))
    assert fit(x, expected[:3, :3]) > 1e-4


@pytest.mark.parametrize("steps", [1, 2, 4, 6])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_true_network_of_one_code_draws_the_data_in_any_number_of_steps(schedule: Schedule, steps: int) -> None:
    data = torch.tensor([0.55, 0.3, 0.15])
    assert fit(draws(Exact(schedule, data), 1500, DiffusionOptions(steps=steps)), data) > 1e-4


CORRELATED = torch.tensor([[0.3, 0.02, 0.08], [0.05, 0.25, 0.0], [0.1, 0.1, 0.1]])


@pytest.mark.parametrize("order", ["random", "purity"])
@pytest.mark.parametrize("schedule", MASKS_ONLY)
def test_a_true_network_draws_the_data_where_codes_are_revealed_one_by_one(schedule: Schedule, order: Order) -> None:
    model = Exact(schedule, CORRELATED)
    assert fit(draws(model, 2000, DiffusionOptions(steps=2, order=order)), CORRELATED) > 1e-4


@pytest.mark.parametrize(("order", "steps"), [("posterior", 6), ("posterior", 2), ("random", 3), ("confidence", 1)])
@pytest.mark.parametrize("schedule", MASKS_ONLY)
def test_a_true_network_draws_the_true_conditional_of_known_codes(schedule: Schedule, order: Order, steps: int) -> None:
    model, count = Exact(schedule, CORRELATED), 1500
    value = torch.arange(count)[:, None, None] % 3
    known = Known(value.expand(-1, 2, -1), torch.tensor([[False, True]]).expand(count, -1))
    x = draws(model, count, DiffusionOptions(steps=steps, order=order), known=known)
    assert torch.equal(x[:, 1], value[:, 0])
    for code in range(3):
        assert fit(x[value[:, 0, 0] == code, :1], CORRELATED[:, code]) > 1e-4


def revealed(model: Table, order: Order, weight: float) -> Tensor:
    """The distribution of two codes that are revealed one after the other; half masked is level 2 of 4."""
    p = model.table[CLASSES].double().softmax(-1)  # [T + 1, states, 2, 2]
    purity = p.amax(-1, keepdim=True)
    sharp = p ** (1 + weight * purity)
    sharp = sharp / sharp.sum(-1, keepdim=True)
    total = torch.zeros(2, 2, dtype=torch.float64)
    both = 8  # the state (mask, mask)
    for drawn in itertools.product(range(2), repeat=2):
        chance = float(sharp[4, both, 0, drawn[0]] * sharp[4, both, 1, drawn[1]])
        sure = [float(p[4, both, i, drawn[i]]) for i in range(2)]
        pure = [float(purity[4, both, i]) for i in range(2)]
        first = {"random": 0.5, "purity": pure[0] / sum(pure), "confidence": float(sure[0] > sure[1])}[order]
        for other in range(2):
            total[drawn[0], other] += chance * first * sharp[2, 3 * drawn[0] + 2, 1, other]
            total[other, drawn[1]] += chance * (1 - first) * sharp[2, 6 + drawn[1], 0, other]
    return total


@pytest.mark.parametrize("weight", [0.0, 1.5])
@pytest.mark.parametrize("order", REVEALING)
def test_draws_that_reveal_masks_fit_their_enumeration(order: Order, weight: float) -> None:
    model = Table("linear", levels=4)
    x = draws(model, 3000, DiffusionOptions(steps=2, order=order, purity_weight=weight))
    assert fit(x, revealed(model, order, weight)) > 1e-4


@pytest.mark.parametrize("order", REVEALING)
@pytest.mark.parametrize(("length", "steps"), [(16, 4), (7, 5), (5, 5), (33, 10), (9, 1), (13, 40), (3, 20)])
def test_masks_left_after_each_step_and_the_level_follow_the_schedule(length: int, steps: int, order: Order) -> None:
    model = Constant(make_process("linear", 3, 20), length, torch.zeros(3))
    draws(model, 2, DiffusionOptions(steps=steps, order=order))
    left, plan = length, []
    for k in range(1, steps + 1):
        if left:
            plan.append(left)
            left = max(0, min(left - 1, round(length * (1 - k / steps))))
    assert [(x == 3).sum(1).tolist() for x, _, _ in model.seen] == [[count, count] for count in plan]
    for (_, t, _), count in zip(model.seen, plan, strict=True):
        best = min(abs(level / 20 - count / length) for level in range(1, 21))
        assert [abs(level / 20 - count / length) for level in t.tolist()] == pytest.approx([best, best])


def test_masks_of_an_image_with_known_codes_follow_the_schedule_and_its_level_counts_all_codes() -> None:
    model = Constant(make_process("linear", 3, 20), 16, torch.zeros(3))
    where = torch.zeros(3, 16, dtype=torch.bool)
    where[1, :8], where[2, :15] = True, True
    draws(model, 3, DiffusionOptions(steps=4, order="random"), known=Known(torch.ones(3, 16, 1).long(), where))
    seen = [list(zip((x == 3).sum(1).tolist(), t.tolist(), strict=True)) for x, t, _ in model.seen]
    assert seen == [
        [(16, 20), (8, 10), (1, 1)],
        [(12, 15), (6, seen[1][1][1])],
        [(8, 10), (4, 5)],
        [(4, 5), (2, seen[3][1][1])],
    ]
    assert seen[1][1][1] in (7, 8) and seen[3][1][1] in (2, 3)  # 6 and 2 of 16 lie halfway between levels


@pytest.mark.parametrize(("schedule", "told"), [("linear", [10, 5]), ("paper", [20, 10])])
def test_the_posterior_order_tells_the_level_or_what_fits_known_codes(schedule: Schedule, told: list[int]) -> None:
    model = Constant(make_process(schedule, 3, 20), 400, torch.zeros(3))
    where = torch.zeros(2, 400, dtype=torch.bool)
    where[1, :200] = True
    draws(model, 2, DiffusionOptions(steps=2), known=Known(torch.ones(2, 400, 1).long(), where))
    plain, with_known = zip(*(t.tolist() for _, t, _ in model.seen), strict=True)
    assert list(plain) == [20, 10]
    assert list(with_known) == pytest.approx(told, abs=1 if schedule == "linear" else 0)  # half of the masks, by chance


def all_of(schedule: Schedule) -> tuple[Order, ...]:
    return ("posterior",) if schedule == "paper" else ORDERS


@pytest.mark.parametrize(("schedule", "order"), [(name, order) for name in SCHEDULES for order in all_of(name)])
def test_known_codes_stay_and_are_shown_at_every_step(schedule: Schedule, order: Order) -> None:
    model = Constant(make_process(schedule, 4, 6), 12, torch.tensor([0.0, 0.0, 0.0, -9.0]))
    rng = torch.Generator().manual_seed(0)
    given = torch.full((5, 12, 1), 3)
    where = torch.rand(5, 12, generator=rng) < 0.4
    start = (torch.zeros(5, 12, 1, dtype=torch.int64), 4)
    for begin in (None, start):
        x = draws(model, 5, DiffusionOptions(order=order), known=Known(given, where), start=begin)
        assert (x[where] == 3).all() and (x >= 0).all() and (x < 4).all()
        assert not bool((x[~where] == 3).all())
    full = [x for x, _, _ in model.seen if len(x) == 5]
    assert full and all(bool((x[where] == 3).all()) for x in full)


@pytest.mark.parametrize("order", ORDERS)
def test_all_known_codes_are_returned_without_a_pass_or_noise(order: Order) -> None:
    model, rng = Table("linear"), image_generators(0, 3)
    states = [generator.get_state() for generator in rng]
    given = torch.tensor([[0, 1], [1, 1], [1, 0]])[..., None]
    known = Known(given, torch.ones(3, 2, dtype=torch.bool))
    x = draw_codes(model, Cond(), 3, options=DiffusionOptions(order=order), rng=rng, known=known)
    assert torch.equal(x, given) and model.seen == []
    assert all(torch.equal(generator.get_state(), state) for generator, state in zip(rng, states, strict=True))


@pytest.mark.parametrize("steps", [None, 50])
def test_steps_that_decide_nothing_need_no_pass_and_images_that_gain_nothing_are_left_out(steps: int | None) -> None:
    """A hole of one code in one image, of five in the other: at most six passes of 100, each shows what misses something."""
    model = Constant(make_process("linear", 3, 100), 16, torch.zeros(3))
    where = torch.ones(2, 16, dtype=torch.bool)
    where[0, 3], where[1, :5] = False, False
    told: list[int] = []
    known = Known(torch.ones(2, 16, 1).long(), where)
    draws(model, 2, DiffusionOptions(steps=steps), known=known, on_step=lambda done, _: told.append(done))
    holes = [count for x, _, _ in model.seen for count in (x == 3).sum(1).tolist()]
    assert 2 <= len(model.seen) <= 6 and 0 < min(holes) and len(holes) <= 6
    assert len(told) == (steps or 100) and told[-1] == 32


def test_the_passes_of_whole_images_are_as_many_as_steps_reveal_something() -> None:
    """Each of 40 masks is revealed in one of 300 steps, evenly: in 300 (1 - (1 - 1/300)^40) = 37.5 different ones."""
    model, counts = Constant(make_process("linear", 3, 300), 40, torch.zeros(3)), []
    for k in range(12):
        model.seen.clear()
        draw_codes(model, Cond(), 1, options=DiffusionOptions(), rng=image_generators(k, 1))
        counts.append(len(model.seen))
    deviation = 1.5  # of about 2.5 masks that share a step with another
    assert max(counts) <= 40 and sum(counts) / 12 == pytest.approx(37.5, abs=4 * deviation / math.sqrt(12))


@pytest.mark.parametrize(("schedule", "order"), [("paper", "posterior"), *(("linear", order) for order in ORDERS)])
@pytest.mark.parametrize("level", [None, 3])
def test_an_image_and_its_noise_do_not_depend_on_the_batch(schedule: Schedule, order: Order, level: int | None) -> None:
    model = Table(schedule, codes=3, length=4, levels=4)
    options = DiffusionOptions(order=order, guidance_scale=2.0, top_p=0.9, purity_weight=0.5)
    label = torch.arange(6) % 2
    where = torch.arange(24).view(6, 4) % 5 == 0
    where[2] = True
    codes = (torch.arange(24) % 3).view(6, 4, 1)

    def run(rows: slice) -> tuple[Tensor, list[Tensor]]:
        rng = image_generators(5, 6)[rows]
        x = draw_codes(
            model,
            Cond(label=label[rows]),
            len(rng),
            options=options,
            rng=rng,
            known=Known(codes[rows], where[rows]),
            start=None if level is None else (codes[rows], level),
        )
        return x, [generator.get_state() for generator in rng]

    together, states = run(slice(None))
    for k in range(6):
        alone, state = run(slice(k, k + 1))
        assert torch.equal(alone[0], together[k]) and torch.equal(state[0], states[k])


@pytest.mark.parametrize("level", [2, 3, 5])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_variation_fits_the_chain_from_noised_codes(schedule: Schedule, level: int) -> None:
    model = Table(schedule)
    to_level = cumulative(model.process, level)
    begin = to_level[1][:, None] * to_level[0]
    levels = [level, *(s for s in levels_of(5, 2) if s < level)]  # of 5, 3, 0
    expected = chain(model, levels, begin, model.table[CLASSES].double().softmax(-1))
    codes = torch.tensor([1, 0]).expand(2500, 2)[..., None]
    assert fit(draws(model, 2500, DiffusionOptions(steps=2), start=(codes, level)), expected[:2, :2]) > 1e-4
    assert [t[0].item() for _, t, _ in model.seen] == levels[:-1]


@pytest.mark.parametrize("order", REVEALING)
def test_a_variation_redraws_only_codes_that_the_level_masks(order: Order) -> None:
    model = Constant(make_process("linear", 4, 20), 200, torch.tensor([-50.0, 0, -50.0, -50.0]))  # draws nothing but 1
    codes = torch.full((3, 200, 1), 2)
    x = draws(model, 3, DiffusionOptions(order=order, steps=10), start=(codes, 8))
    assert set(x.unique().tolist()) == {1, 2}
    assert len(model.seen) == 4  # of 10 steps those that end at 6, 4, 2 and 0
    redrawn = (x == 1).sum().item()
    assert scipy.stats.binomtest(redrawn, 600, 8 / 20).pvalue > 1e-4
    assert redrawn == (model.seen[0][0] == 4).sum()


@pytest.mark.parametrize("order", ORDERS)
def test_a_variation_at_level_zero_is_the_image_and_at_the_last_level_begins_with_masks(order: Order) -> None:
    model = Table("linear")
    codes = torch.tensor([[0, 1], [1, 1]])[..., None]
    x = draws(model, 2, DiffusionOptions(order=order), start=(codes, 0))
    assert torch.equal(x, codes) and x.data_ptr() != codes.data_ptr() and model.seen == []
    draws(model, 2, DiffusionOptions(order=order, steps=1), start=(codes, 5))
    assert (model.seen[0][0] == 2).all() and model.seen[0][1].tolist() == [5, 5]


def states_of(model: Table) -> Tensor:
    size = model.process.num_codes + 1
    return torch.tensor(list(itertools.product(range(size), repeat=2)))


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, -1.0])
def test_guidance_is_its_formula(scale: float) -> None:
    model, x = Table("paper", codes=3), states_of(Table("paper", codes=3))
    t, label = torch.arange(len(x)) % 6, torch.arange(len(x)) % 2
    got = predict(model, x, t, Cond(label=label), DiffusionOptions(guidance_scale=scale))
    for k in range(len(x)):
        for i in range(2):
            given, null = (model.table[row, t[k], k, i].tolist() for row in (int(label[k]), CLASSES))
            moved = [n + scale * (g - n) for g, n in zip(given, null, strict=True)]
            norm = math.log(sum(math.exp(value) for value in moved))
            assert got[k, i].tolist() == pytest.approx([value - norm for value in moved], abs=1e-5)
    assert [len(seen) for seen, _, _ in model.seen] == [2 * len(x)]


def test_guidance_of_one_is_the_conditional_network_and_one_pass() -> None:
    model = Table("paper")
    x, label = states_of(model), torch.arange(9) % 2
    got = predict(model, x, torch.full((9,), 3), Cond(label=label), DiffusionOptions(guidance_scale=1.0))
    assert torch.equal(got, model.table[label, 3, torch.arange(9)].log_softmax(-1))
    assert [len(seen) for seen, _, _ in model.seen] == [9] and model.seen[0][2].dropped is None


def test_images_whose_condition_is_dropped_are_not_guided() -> None:
    model = Table("paper")
    x, t = states_of(model), torch.full((9,), 2)
    cond = Cond(label=torch.zeros(9, dtype=torch.int64), dropped=torch.ones(9, dtype=torch.bool))
    guided = predict(model, x, t, cond, DiffusionOptions(guidance_scale=4.0))
    assert torch.allclose(guided, predict(model, x, t, cond, DiffusionOptions()), atol=1e-6)


def test_temperature_divides_logits() -> None:
    model = Table("paper")
    x, t = states_of(model), torch.full((9,), 2)
    got = predict(model, x, t, Cond(), DiffusionOptions(temperature=0.25))
    assert torch.allclose(got, (4 * model.table[CLASSES, 2]).log_softmax(-1), atol=1e-5)


@pytest.mark.parametrize(("top_k", "top_p"), [(None, 0.6), (None, 0.95), (2, None), (3, 0.7), (3, 1.0)])
def test_truncation_keeps_the_smallest_set_and_leaves_its_probabilities(top_k: int | None, top_p: float | None) -> None:
    rng = torch.Generator().manual_seed(0)
    model = Constant(make_process("linear", 6, 4), 1, torch.randn(6, generator=rng))
    one = torch.zeros(1, 1, dtype=torch.int64), torch.tensor([2])
    got = predict(model, *one, Cond(), DiffusionOptions(top_k=top_k, top_p=top_p))[0, 0].exp().tolist()
    p = model.row.softmax(-1).tolist()
    ranked = sorted(range(6), key=lambda code: -p[code])
    kept, reached = set(), 0.0
    for code in ranked[: top_k or 6]:
        if reached < (1 if top_p is None else top_p):
            kept.add(code)
            reached += p[code]
    assert got == pytest.approx([p[code] if code in kept else 0 for code in range(6)], abs=1e-6)


def test_truncation_at_one_is_none_bit_for_bit() -> None:
    rng = torch.Generator().manual_seed(0)
    model = Constant(make_process("linear", 500, 4), 1, 12 * torch.randn(500, generator=rng))
    ranked = model.row.softmax(-1).sort(descending=True).values
    assert not bool((ranked.cumsum(0) - ranked < 1).all())  # a plain test of the sum would drop codes
    one = torch.zeros(1, 1, dtype=torch.int64), torch.tensor([2])
    off, none = (predict(model, *one, Cond(), DiffusionOptions(top_p=top_p)) for top_p in (1.0, None))
    assert torch.equal(off, none) and bool((off > -torch.inf).all())


@pytest.mark.parametrize(("schedule", "order"), [("paper", "posterior"), *(("linear", order) for order in ORDERS)])
def test_codes_that_truncation_drops_never_occur(schedule: Schedule, order: Order) -> None:
    model = Constant(make_process(schedule, 4, 5), 50, torch.tensor([0.4, 0.06, 0.3, 0.24]).log())
    x = draws(model, 40, DiffusionOptions(top_p=0.75, order=order))
    assert set(x.unique().tolist()) == {0, 2, 3}


@pytest.mark.parametrize("order", ORDERS)
def test_progress_counts_codes_as_if_steps_did_the_same(order: Order) -> None:
    told: list[tuple[int, int]] = []
    model = Constant(make_process("linear", 3, 20), 10, torch.zeros(3))
    draws(model, 3, DiffusionOptions(steps=4, order=order), on_step=lambda done, total: told.append((done, total)))
    assert told == [(6, 30), (15, 30), (24, 30), (30, 30)]


@pytest.mark.parametrize("order", REVEALING)
def test_orders_that_reveal_masks_are_refused_where_codes_are_replaced(order: Order) -> None:
    with pytest.raises(ConfigError, match=rf"order = '{order}'.* 0\.1 .*paper.*Use order posterior.*confidence"):
        draws(Table("paper"), 1, DiffusionOptions(order=order))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (DiffusionOptions(steps=0), r"steps = 0 must lie in 1\.\.5"),
        (DiffusionOptions(steps=6), r"steps = 6 must lie in 1\.\.5"),
        (DiffusionOptions(steps=0, order="purity"), "steps = 0 must be at least 1"),
        (DiffusionOptions(order="confident"), "order = 'confident' is unknown. Did you mean 'confidence'"),  # type: ignore[arg-type]
        (DiffusionOptions(guidance_scale=math.inf), "guidance_scale = inf"),
        (DiffusionOptions(purity_weight=-0.5), "purity_weight = -0.5"),
        (DiffusionOptions(purity_weight=math.nan), "purity_weight = nan"),
        (DiffusionOptions(temperature=0), "temperature = 0"),
        (SampleOptions(top_k=0), "top_k = 0"),
        (SampleOptions(top_p=1.5), "top_p = 1.5"),
        (DiffusionOptions(guidance_scale=2.0), "guidance needs a condition"),
    ],
)
def test_options_that_describe_no_way_to_draw_are_refused(options: SampleOptions, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        draws(Table("linear"), 2, options)


CODES, WHERE = torch.zeros(2, 2, 1, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("known", "start", "words"),
    [
        (Known(CODES[:, :1], WHERE), None, r"known has x \[2, 1, 1\]"),
        (Known(CODES, WHERE[:1]), None, r"torch.bool \[1, 2\]"),
        (Known(CODES, WHERE.long()), None, r"where torch.int64"),
        (None, (CODES[..., 0], 2), r"start has codes torch.int64 \[2, 2\]"),
        (None, (CODES.float(), 2), r"start has codes torch.float32 \[2, 2, 1\]"),
    ],
)
def test_known_or_start_of_another_form_is_refused(
    known: Known | None, start: tuple[Tensor, int] | None, words: str
) -> None:
    with pytest.raises(ShapeError, match=words):
        draws(Table("linear"), 2, DiffusionOptions(), known=known, start=start)


@pytest.mark.parametrize(
    ("known", "start", "words"),
    [
        (Known(CODES + 2, ~WHERE), None, r"known has the code 2; those of the model are 0\.\.1"),
        (None, (CODES - 1, 2), r"start has the code -1; those of the model are 0\.\.1"),
        (None, (CODES, 6), r"start has level 6; the levels of the process are 0\.\.5"),
        (None, (CODES, -1), "start has level -1"),
    ],
)
def test_known_or_start_out_of_range_is_refused(
    known: Known | None, start: tuple[Tensor, int] | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        draws(Table("linear"), 2, DiffusionOptions(), known=known, start=start)


def test_values_where_nothing_is_known_do_not_matter() -> None:
    x = draws(Table("linear"), 2, DiffusionOptions(), known=Known(CODES + 99, WHERE))
    assert torch.equal(x, draws(Table("linear"), 2, DiffusionOptions()))


def test_one_generator_per_image_is_asked_for() -> None:
    with pytest.raises(ShapeError, match="rng has 3 generators for batch_size = 2"):
        draw_codes(Table("linear"), Cond(), 2, options=DiffusionOptions(), rng=image_generators(0, 3))
