"""The sliding window against a loop written from its definition, on a small random causal model in float64."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from rasterformer.autoregressive.noise import NoiseStream, image_generators
from rasterformer.autoregressive.sample import draw
from rasterformer.autoregressive.window import draw_in_windows, window_start
from rasterformer.distributions import Categorical
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Autoregressive, Cond, Known, Loss, OnStep, SampleOptions

OPTIONS = SampleOptions()
VOCAB = 5
Grid = tuple[int, int]


@dataclass
class State:
    codes: Tensor
    seen: list[Tensor]


class Mixing(Autoregressive):
    """The logits at a position mix vectors of the tokens before it and of all codes of the condition, at random."""

    def __init__(self, window: Grid) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        length = window[0] * window[1]

        def random(*shape: int) -> nn.Parameter:
            return nn.Parameter(2 * torch.randn(shape, generator=rng, dtype=torch.float64))

        self.mix, self.cond_mix = random(length, length), random(length, length)
        self.tokens, self.codes = random(VOCAB, VOCAB), random(VOCAB, VOCAB)
        self.distribution, self.x_shape, self.num_classes = Categorical(VOCAB), (length, 1), 0
        self.begun: list[int] = []  # the batch of every `begin`
        self.states: list[weakref.ref[State]] = []
        self.most_alive = 0  # sequences whose states were there at the same time

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        assert cond.codes is not None and cond.codes.shape == x.shape[:2]
        return (self.mix.tril(-1) @ self.tokens[x[..., 0]] + self.cond_mix @ self.codes[cond.codes]).tanh() * 2

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

    def begin(self, cond: Cond, batch_size: int) -> tuple[Tensor, State]:
        assert cond.codes is not None and cond.codes.shape == (batch_size, self.x_shape[0])
        state = State(cond.codes, [])
        self.begun.append(batch_size)
        alive = [other for ref in self.states if (other := ref()) is not None]
        self.states.append(weakref.ref(state))
        self.most_alive = max(self.most_alive, batch_size + sum(len(other.codes) for other in alive))
        return self._params(state), state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        parts = []
        for token in x.unbind(1):
            state.seen.append(self.tokens[token[:, 0]])
            if len(state.seen) < self.x_shape[0]:
                parts.append(self._params(state))
        return torch.cat(parts, 1), state

    def _params(self, state: State) -> Tensor:
        position = len(state.seen)
        mixed = self.cond_mix[position] @ self.codes[state.codes]
        for weight, vector in zip(self.mix[position], state.seen, strict=False):
            mixed = mixed + weight * vector
        return (mixed.tanh() * 2)[:, None]

    def known(self, cond: Cond) -> Known | None:
        if cond.known is None:
            return None
        return Known(torch.zeros(len(cond.known), *self.x_shape, dtype=torch.int64), cond.known.flatten(1))

    def state_bytes(self, batch_size: int) -> int:
        raise NotImplementedError

    def to_bfloat16(self) -> Mixing:
        raise NotImplementedError

    def lookahead(self, state: State) -> int:
        raise NotImplementedError

    def rewind(self, state: State, done: int) -> State:
        raise NotImplementedError


def cond_maps(grid: Grid, window: Grid, batch: int) -> Callable[[Grid], Cond]:
    """A map of codes as large as the grid, of which each window sees its part."""
    codes = torch.randint(0, VOCAB, (batch, *grid), generator=torch.Generator().manual_seed(1))

    def cond_of(start: Grid) -> Cond:
        top, left = start
        part = codes[:, top : top + window[0], left : left + window[1]]
        assert part.shape[1:] == window
        return Cond(codes=part.flatten(1))

    return cond_of


def local(at: int, size: int, window: int) -> int:
    """Where a target lies in its window: the paper's rule for a window of 16, in which 8 is the half, for any."""
    if at <= window // 2:
        return at
    if size - at < window - window // 2:
        return window - (size - at)
    return window // 2


def strided_lefts(columns: int, width: int, stride: int) -> list[int]:
    """The window of each column: it moves on by `stride` when a target would lie that far right of the middle."""
    left, lefts = 0, []
    for column in range(columns):
        if column - left == width // 2 + stride:
            left = min(left + stride, columns - width)
        lefts.append(left)
    return lefts


def drawn_directly(
    model: Mixing, grid: Grid, window: Grid, batch: int, *, known: Known | None = None, stride: int = 1
) -> Tensor:
    """Target after target, each by the whole window around it; noise as if the grid were one image."""
    cond_of = cond_maps(grid, window, batch)
    noise = NoiseStream(image_generators(7, batch), VOCAB, grid[0] * grid[1], torch.device("cpu"))
    x = torch.zeros(batch, *grid, dtype=torch.int64)
    lefts = strided_lefts(grid[1], window[1], stride)
    for row in range(grid[0]):
        for column in range(grid[1]):
            cell = row * grid[1] + column
            in_row = local(row, grid[0], window[0])
            in_column = local(column, grid[1], window[1]) if stride == 1 else column - lefts[column]
            top, left = row - in_row, column - in_column
            part = x[:, top : top + window[0], left : left + window[1]].reshape(batch, -1, 1)
            with torch.no_grad():
                params = model(part, cond_of((top, left)))[:, in_row * window[1] + in_column]
            drawn = model.distribution.sample(params, noise.at(cell)[:, 0], options=OPTIONS)[:, 0]
            if known is not None:
                drawn = torch.where(known.where[:, cell], known.x[:, cell, 0], drawn)
            x[:, row, column] = drawn
    return x.view(batch, -1, 1)


def drawn_in_windows(
    model: Mixing,
    grid: Grid,
    window: Grid,
    batch: int,
    *,
    known: Known | None = None,
    stride: int = 1,
    at_once: int | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    return draw_in_windows(
        model, grid, window, batch_size=batch, cond_of=cond_maps(grid, window, batch), options=OPTIONS,
        rng=image_generators(7, batch), known=known, stride=stride, at_once=at_once, on_step=on_step,
    )  # fmt: skip


SIZES = [
    ((4, 4), (4, 4)), ((4, 9), (4, 4)), ((9, 4), (4, 4)), ((5, 5), (4, 4)), ((7, 10), (4, 4)),
    ((3, 5), (3, 5)), ((6, 5), (3, 5)), ((8, 6), (3, 5)), ((4, 12), (3, 5)), ((4, 5), (1, 3)), ((5, 4), (3, 1)),
]  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("grid", "window"), SIZES, ids=str)
def test_tokens_are_those_of_one_window_after_another(grid: Grid, window: Grid, batch: int) -> None:
    model = Mixing(window)
    expected = drawn_directly(model, grid, window, batch)
    assert len(expected.unique()) > 1
    for at_once in (1, 3, None):
        assert torch.equal(drawn_in_windows(model, grid, window, batch, at_once=at_once), expected)


@pytest.mark.parametrize(
    ("grid", "window", "stride"),
    [((6, 11), (4, 4), 2), ((5, 12), (3, 6), 3), ((5, 13), (3, 5), 2), ((4, 9), (4, 9), 4), ((6, 9), (2, 8), 4)],
    ids=str,
)
def test_with_a_stride_targets_share_a_window_until_they_are_that_far_right_of_its_middle(
    grid: Grid, window: Grid, stride: int
) -> None:
    model = Mixing(window)
    expected = drawn_directly(model, grid, window, 2, stride=stride)
    for at_once in (1, 3, 16):
        assert torch.equal(drawn_in_windows(model, grid, window, 2, stride=stride, at_once=at_once), expected)


def known_somewhere(grid: Grid, share: float) -> Known:
    """Of two images: the second has whole rows besides."""
    rng = torch.Generator().manual_seed(2)
    x = torch.randint(0, VOCAB, (2, grid[0] * grid[1], 1), generator=rng)
    where = torch.rand(2, grid[0] * grid[1], generator=rng) < share
    where[1, : 2 * grid[1]] = True
    return Known(x, where)


@pytest.mark.parametrize("share", [0.2, 0.8])
@pytest.mark.parametrize(
    ("grid", "window", "stride"), [((7, 10), (4, 4), 1), ((8, 5), (3, 5), 1), ((6, 11), (4, 4), 2)], ids=str
)
def test_known_tokens_stay_and_are_seen_wherever_they_are(grid: Grid, window: Grid, stride: int, share: float) -> None:
    model, known = Mixing(window), known_somewhere(grid, share)
    expected = drawn_directly(model, grid, window, 2, known=known, stride=stride)
    for at_once in (1, 3, 16):
        x = drawn_in_windows(model, grid, window, 2, known=known, stride=stride, at_once=at_once)
        assert torch.equal(x, expected)
    assert torch.equal(expected[known.where], known.x[known.where])
    assert not torch.equal(expected, drawn_directly(model, grid, window, 2, stride=stride))


def test_what_is_all_known_takes_no_pass() -> None:
    model, known = Mixing((4, 4)), known_somewhere((6, 6), 1.0)
    assert torch.equal(drawn_in_windows(model, (6, 6), (4, 4), 2, known=known), known.x)
    assert model.begun == []


@pytest.mark.parametrize("some", [False, True])
def test_one_window_is_drawn_as_draw_does(some: bool) -> None:
    model, known = Mixing((3, 5)), known_somewhere((3, 5), 0.3) if some else None
    cond = cond_maps((3, 5), (3, 5), 2)((0, 0))
    expected = draw(model, cond, 2, options=OPTIONS, rng=image_generators(7, 2), known=known)
    model.begun.clear()
    assert torch.equal(drawn_in_windows(model, (3, 5), (3, 5), 2, known=known), expected)
    assert model.begun == [2]


def test_an_image_does_not_depend_on_the_batch_it_is_drawn_in() -> None:
    model, grid, window = Mixing((4, 4)), (6, 7), (4, 4)
    cond_of = cond_maps(grid, window, 3)
    together = drawn_in_windows(model, grid, window, 3)
    for k in range(3):
        alone = draw_in_windows(
            model, grid, window, batch_size=1, cond_of=lambda start, k=k: cond_of(start).rows(slice(k, k + 1)),  # type: ignore[misc]
            options=OPTIONS, rng=image_generators(7, 1, first=k),
        )  # fmt: skip
        assert torch.equal(alone[0], together[k])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize(
    ("grid", "window", "stride", "windows"),
    [((9, 4), (4, 4), 1, 6), ((5, 10), (4, 4), 1, 5 * 7), ((5, 10), (4, 4), 2, 5 * 4), ((4, 4), (4, 4), 1, 1)],
    ids=str,
)
def test_targets_that_share_a_window_share_one_pass_over_what_is_before_them(
    grid: Grid, window: Grid, stride: int, windows: int
) -> None:
    """A grid as wide as the window has one pass for each top, any other grid one in each row for each left."""
    model = Mixing(window)
    drawn_in_windows(model, grid, window, 1, stride=stride, at_once=1)
    assert model.begun == [1] * windows


def test_rows_that_are_far_enough_apart_are_drawn_together() -> None:
    """Of 16x16 cells and a window of 4x4, a row is 12 targets from its second window to its last; a row follows two behind the
    one above (its window reaches a column beyond the target, which must be there), so six rows are on their way."""
    model = Mixing((4, 4))
    drawn_in_windows(model, (16, 16), (4, 4), 1)
    assert max(model.begun) == 6
    assert sum(model.begun) == 16 * 13 and len(model.begun) < 16 * 13 / 2


@pytest.mark.parametrize(("batch", "at_once"), [(1, 1), (2, 3), (3, 2), (5, None)])
def test_no_more_states_than_allowed_are_there_at_a_time(batch: int, at_once: int | None) -> None:
    model = Mixing((4, 4))
    drawn_in_windows(model, (8, 14), (4, 4), batch, at_once=at_once)
    assert model.most_alive == max(model.begun) == (at_once or 16)


@pytest.mark.parametrize("known", [None, known_somewhere((6, 7), 0.4)], ids=["drawn", "completed"])
def test_each_step_is_told(known: Known | None) -> None:
    told: list[tuple[int, int]] = []
    drawn_in_windows(
        Mixing((4, 4)), (6, 7), (4, 4), 2, known=known, on_step=lambda done, total: told.append((done, total))
    )
    counts, at_first = [done for done, _ in told], 0 if known is None else int(known.where.sum())
    assert {total for _, total in told} == {84} and counts == sorted(counts) and counts[-1] == 84
    assert at_first < counts[0] <= at_first + 2


def test_the_window_of_sixteen_is_the_papers() -> None:
    """Rows and columns apart, on 40x23: the first eight and nine, the middle, the last eight."""
    for row in range(40):
        for column in range(23):
            expected = (row - local(row, 40, 16), column - local(column, 23, 16))
            assert window_start((row, column), (40, 23), (16, 16)) == expected
    assert window_start((8, 8), (40, 23), (16, 16)) == (0, 0)
    assert window_start((20, 12), (40, 23), (16, 16)) == (12, 4)
    assert window_start((39, 22), (40, 23), (16, 16)) == (24, 7)
    assert [window_start((0, column), (3, 9), (3, 5))[1] for column in range(9)] == [0, 0, 0, 1, 2, 3, 4, 4, 4]


@pytest.mark.parametrize(
    ("grid", "window", "changes", "message"),
    [
        ((3, 8), (4, 4), {}, "grid = 3x8 is smaller than the window of 4x4"),
        ((8, 3), (4, 4), {}, "grid = 8x3 is smaller than the window of 4x4"),
        ((8, 8), (4, 5), {}, r"window = 4x5 does not fit a model of x_shape \(16, 1\)"),
        ((8, 8), (4, 4), {"stride": 0}, r"stride = 0 must lie in 1..2"),
        ((8, 8), (4, 4), {"stride": 3}, r"stride = 3 must lie in 1..2"),
        ((8, 8), (4, 4), {"at_once": 0}, "at_once = 0 must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(grid: Grid, window: Grid, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        drawn_in_windows(Mixing((4, 4)), grid, window, 1, **changes)  # type: ignore[arg-type]


def test_several_symbols_at_a_position_are_refused() -> None:
    model = Mixing((4, 4))
    model.x_shape = (16, 3)
    with pytest.raises(ConfigError, match=r"a model of x_shape \(16, 3\): it takes one of \(16, 1\)"):
        drawn_in_windows(model, (8, 8), (4, 4), 1)


def drawn_with(cond_of: Callable[[Grid], Cond], options: SampleOptions = OPTIONS, generators: int = 1) -> Tensor:
    return draw_in_windows(
        Mixing((4, 4)),
        (6, 6),
        (4, 4),
        batch_size=1,
        cond_of=cond_of,
        options=options,
        rng=image_generators(7, generators),
    )


def test_other_numbers_of_generators_and_options_without_a_distribution_are_refused() -> None:
    cond_of = cond_maps((6, 6), (4, 4), 1)
    with pytest.raises(ShapeError, match="rng has 2 generators for batch_size = 1"):
        drawn_with(cond_of, generators=2)
    with pytest.raises(ConfigError, match="temperature = 0"):
        drawn_with(cond_of, SampleOptions(temperature=0))


def test_conditions_that_give_values_or_not_everywhere_are_refused() -> None:
    cond_of = cond_maps((6, 6), (4, 4), 1)
    shown = torch.ones(1, 4, 4, dtype=torch.bool)
    with pytest.raises(ConfigError, match="the condition gives values of the window itself"):
        drawn_with(lambda start: replace(cond_of(start), known=shown))
    label = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"gives \['label', 'codes'\] at \(0, 1\), but \['codes'\] at \(0, 0\)"):
        drawn_with(lambda start: replace(cond_of(start), label=None if start == (0, 0) else label))


@pytest.mark.parametrize("shape", [(2, 36, 1), (1, 35, 1), (1, 36, 2), (1, 36)], ids=str)
def test_known_tokens_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    known = Known(torch.zeros(shape, dtype=torch.int64), torch.ones(1, 36, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"known has x \[" + ", ".join(map(str, shape))):
        drawn_in_windows(Mixing((4, 4)), (6, 6), (4, 4), 1, known=known)


@pytest.mark.parametrize("where", [torch.ones(1, 36), torch.ones(1, 35, dtype=torch.bool)], ids=["float", "short"])
def test_masks_of_another_shape_or_dtype_are_refused(where: Tensor) -> None:
    known = Known(torch.zeros(1, 36, 1, dtype=torch.int64), where)
    with pytest.raises(ShapeError, match=rf"where {where.dtype} \[1, {where.shape[1]}\]"):
        drawn_in_windows(Mixing((4, 4)), (6, 6), (4, 4), 1, known=known)
