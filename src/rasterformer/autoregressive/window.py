"""Images larger than the model: a window slides over the grid, and each token is drawn from the window around it.

Exact, and faster than one window after another in two ways. Targets that follow each other in the same window are a run, and
share its keys and values. Runs of different rows that lie far enough apart do not see each other, and go through the model
as one batch: they advance in wavefronts, each row some columns behind the one above.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import groupby

import torch
from torch import Tensor

from rasterformer.autoregressive.noise import NUMBERS_AT_A_TIME, NoiseStream
from rasterformer.autoregressive.sample import begin
from rasterformer.distributions.pmf import check_options
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Autoregressive, Cond, Known, OnStep, SampleOptions

AT_ONCE = 16


def window_start(
    cell: tuple[int, int], grid: tuple[int, int], window: tuple[int, int], *, stride: int = 1
) -> tuple[int, int]:
    """Returns (top, left) of the window that a cell is drawn from.

    The cell is in the middle of it, with `window // 2` cells above and to the left, except where the window would leave the
    grid. With a stride, `left` is a multiple of it away from the left border.

    Args:
        cell: row and column.
        grid: rows and columns.
        window: rows and columns, even or odd.
        stride: see `draw_in_windows`.

    Source: Esser et al. 2021, section 3.3 and figure 3; which cells stay off the middle at the borders, from their code.
    """
    (row, column), (rows, columns), (height, width) = cell, grid, window
    left = (column - width // 2) // stride * stride
    return min(max(row - height // 2, 0), rows - height), min(max(left, 0), columns - width)


@torch.inference_mode()
def draw_in_windows(
    model: Autoregressive,
    grid: tuple[int, int],
    window: tuple[int, int],
    *,
    batch_size: int,
    cond_of: Callable[[tuple[int, int]], Cond],
    options: SampleOptions,
    rng: Sequence[torch.Generator],
    known: Known | None = None,
    stride: int = 1,
    at_once: int | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draws the tokens of a grid of any size: each given those before it, in raster order, in its window.

    The noise of a token belongs to its image and its place in the grid, and is that of `draw` on a model of the whole grid:
    batch size, stride and `at_once` do not change it, and where the grid is the window this function is `draw`. Batches of
    another size differ by rounding: a token is then another one only where two clocks ring within rounding of each other.

    Args:
        model: of one window, whose tokens are in raster order. `begin` and `step` are used.
        grid: H, W, tokens.
        window: rows and columns, tokens.
        batch_size: B.
        cond_of: (top, left) of a window -> its condition for all B images: codes cropped to it, its coordinates, labels.
        options: temperature and truncation.
        rng: B generators, on the CPU.
        known: x int64 [B, H * W, 1] in raster order, and where it is known, which may be anywhere. Known tokens stay, and are
            seen by those after them.
        stride: columns that the window moves at a time, 1..half its width. 1 is the paper's. With s, it stays for s targets:
            s times fewer windows, but a target then lies up to s - 1 columns right of the middle, and sees that much less to
            its upper right.
        at_once: most sequences in a batch of the model, whose `state_bytes` are allocated once at a time. None: 16.
        on_step: told (tokens known or drawn, B * H * W) after each step of a batch.

    Returns:
        int64 [B, H * W, 1], raster order.

    Raises:
        ConfigError: a grid smaller than the window; a model of another window, or of several symbols at a position; a stride or
            `at_once` out of range; options that describe no distribution; a condition that gives values itself, or that has
            other parts in another window.
        ShapeError: not one generator per image, or `known` of another shape or dtype.
    """
    at_once = AT_ONCE if at_once is None else at_once
    _check(model, grid, window, stride=stride, at_once=at_once, batch_size=batch_size, rng=rng, known=known)
    check_options(options)
    first_cond = cond_of((0, 0))
    if model.known(first_cond) is not None:
        raise ConfigError("the condition gives values of the window itself. Give them as known, for the whole grid.")
    rows, columns = grid
    device = next(model.parameters()).device
    x = torch.zeros(batch_size, rows, columns, dtype=torch.int64, device=device)
    given = torch.zeros(batch_size, rows * columns, dtype=torch.bool)
    if known is not None:
        given = known.where.cpu()
        x = torch.where(known.where.to(device), known.x[..., 0].to(device), 0).view(x.shape)
    noise = [_Noise(generator, grid, model.distribution.noise_per_position, device) for generator in rng]
    done = int(given.sum())

    def draw_runs(batch: list[tuple[_Run, int]]) -> None:
        """The same run in several rows and images: one pass over what is before it, and single steps."""
        nonlocal done
        first, length = batch[0][0].before, batch[0][0].length
        x_window = torch.stack([x[image, run.rows, run.columns].flatten() for run, image in batch])[..., None]
        keep = torch.stack([given[image, run.cell : run.cell + length] for run, image in batch])  # [b, length]
        unknown = (~keep).any(0).nonzero()
        start, stop = first + int(unknown[0]), first + int(unknown[-1]) + 1
        params, state = begin(model, _cond(batch, cond_of, _names(first_cond)), x_window[:, :start])
        for position in range(start, stop):
            offset = position - first
            numbers = torch.cat([noise[image].at(run.cell + offset) for run, image in batch])
            drawn = model.distribution.sample(params[:, -1], numbers, options=options)
            stay = keep[:, offset, None].to(device)
            x_window[:, position] = torch.where(stay, x_window[:, position], drawn)
            if position + 1 < stop:
                params, state = model.step(x_window[:, position : position + 1], state)
            done += int((~keep[:, offset]).sum())
            if on_step is not None:
                on_step(done, given.numel())
        for (run, image), tokens in zip(batch, x_window[:, first : first + length, 0], strict=True):
            x[image].view(-1)[run.cell : run.cell + length] = tokens

    for wave in _waves(grid, window, stride):
        waiting: dict[tuple[int, int], list[tuple[_Run, int]]] = {}
        for run in wave:
            images = (~given[:, run.cell : run.cell + run.length]).any(1).nonzero()[:, 0].tolist()
            if images:
                waiting.setdefault((run.before, run.length), []).extend((run, image) for image in images)
        for alike in waiting.values():
            for number in range(0, len(alike), at_once):
                draw_runs(alike[number : number + at_once])
    return x.view(batch_size, -1, 1)


@dataclass(frozen=True)
class _Run:
    """Targets that follow each other in raster order and share a window, of `rows` and `columns`.

    The first of them is `cell` of the grid, in raster order; `before` tokens of the window come before it.
    """

    cell: int
    length: int
    before: int
    rows: slice
    columns: slice


def _waves(grid: tuple[int, int], window: tuple[int, int], stride: int) -> list[list[_Run]]:
    """All runs, in waves: what a run sees was drawn in the waves before its own."""
    width = grid[1]
    queues: list[deque[_Run]] = [deque() for _ in range(grid[0])]  # by the row that a run begins in
    cells = range(grid[0] * width)
    for (top, left), group in groupby(cells, lambda i: window_start(divmod(i, width), grid, window, stride=stride)):
        same = list(group)
        row, column = divmod(same[0], width)
        before = (row - top) * window[1] + column - left
        rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
        queues[row].append(_Run(same[0], len(same), before, rows, columns))
    waves, drawn = [], [0] * grid[0]  # drawn: columns of each row. A row above another is never behind it.
    while any(queues):
        wave = []
        for row, queue in enumerate(queues):
            if queue and (row == queue[0].rows.start or drawn[row - 1] >= queue[0].columns.stop):
                wave.append(queue[0])
        for run in wave:
            queues[run.cell // width].popleft()
            for cell in range(run.cell, run.cell + run.length):
                drawn[cell // width] = cell % width + 1
        waves.append(wave)
    return waves


def _cond(batch: list[tuple[_Run, int]], cond_of: Callable[[tuple[int, int]], Cond], names: list[str]) -> Cond:
    """The condition of each run of a batch in its image: those of their windows, one under the other."""
    parts = []
    for run, group in groupby(batch, lambda item: item[0]):
        start = run.rows.start, run.columns.start
        part = cond_of(start)
        if _names(part) != names:
            raise ConfigError(
                f"cond_of gives {_names(part)} at {start}, but {names} at (0, 0). Give the same everywhere."
            )
        parts.append(part.rows(torch.tensor([image for _, image in group])))
    return Cond(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def _names(cond: Cond) -> list[str]:
    """What the condition has."""
    return [field.name for field in fields(cond) if getattr(cond, field.name) is not None]


class _Noise:
    """The noise of one image, as `draw` would use it on the whole grid, for rows that are drawn side by side.

    When a row begins, the generator is copied for it, and goes on past the row's numbers: they are made twice, so that they
    need not be kept. A row in work holds those of one position, or a few thousand.
    """

    def __init__(self, rng: torch.Generator, grid: tuple[int, int], per_position: int, device: torch.device) -> None:
        self.rng, self.columns, self.per_position, self.device = rng, grid[1], per_position, device
        self.streams: dict[int, NoiseStream] = {}
        self.begun = 0  # rows whose streams were made

    def at(self, cell: int) -> Tensor:
        """float32 [1, R] of a cell, by its raster index; the cells of each row are asked for in their order."""
        row, column = divmod(cell, self.columns)
        while self.begun <= row:
            if self.begun:
                self._pass(self.columns * self.per_position)
            copy = torch.Generator().set_state(self.rng.get_state())
            self.streams[self.begun] = NoiseStream([copy], self.per_position, self.columns, self.device)
            self.begun += 1
        numbers = self.streams[row].at(column)[:, 0]
        if column + 1 == self.columns:
            del self.streams[row]
        return numbers

    def _pass(self, count: int) -> None:
        for first in range(0, count, NUMBERS_AT_A_TIME):
            torch.rand(min(NUMBERS_AT_A_TIME, count - first), dtype=torch.float64, generator=self.rng)


def _check(
    model: Autoregressive,
    grid: tuple[int, int],
    window: tuple[int, int],
    *,
    stride: int,
    at_once: int,
    batch_size: int,
    rng: Sequence[torch.Generator],
    known: Known | None,
) -> None:
    (rows, columns), (height, width) = grid, window
    if min(window) < 1 or model.x_shape != (height * width, 1):
        raise ConfigError(
            f"window = {height}x{width} does not fit a model of x_shape {model.x_shape}: it takes one of "
            f"{(height * width, 1)}, with one symbol at each position."
        )
    if rows < height or columns < width:
        raise ConfigError(
            f"grid = {rows}x{columns} is smaller than the window of {height}x{width}. Draw at least one window."
        )
    if not 1 <= stride <= max(1, width // 2):
        raise ConfigError(f"stride = {stride} must lie in 1..{max(1, width // 2)}, half the window's width.")
    if at_once < 1:
        raise ConfigError(f"at_once = {at_once} must be at least 1.")
    if len(rng) != batch_size:
        raise ShapeError(f"rng has {len(rng)} generators for batch_size = {batch_size}. Pass one per image.")
    shape = (batch_size, rows * columns)
    if known is not None and (
        known.x.shape != (*shape, 1) or known.where.shape != shape or known.where.dtype != torch.bool
    ):
        raise ShapeError(
            f"known has x {list(known.x.shape)} and where {known.where.dtype} {list(known.where.shape)}; expected "
            f"{[*shape, 1]} and torch.bool {list(shape)}."
        )
