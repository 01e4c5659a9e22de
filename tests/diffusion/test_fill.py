"""Grids of codes larger than the window, filled window by window, with a network that remembers what it was shown."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from rasterformer.autoregressive.noise import image_generators
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.diffusion.discrete import make_process
from rasterformer.diffusion.draw import draw_codes
from rasterformer.diffusion.fill import fill_grid
from rasterformer.diffusion.options import DiffusionOptions, Order
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Cond, Known, Loss, OnStep, SampleOptions

CODES, MASK, WINDOW = 5, 5, (4, 4)
ONE_STEP = DiffusionOptions(steps=1)


class Remembering(CodeDenoiser):
    """Each code is probably that of the nearest known one to the left, plus the label; else any."""

    def __init__(self, *, sure: float = 4.0) -> None:
        super().__init__()
        self.process, self.x_shape, self.num_classes = make_process("linear", CODES, 6), (16, 1), CODES
        self.on, self.sure = nn.Parameter(torch.zeros(())), sure
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.seen.append(x.clone())
        logits = torch.zeros(*x.shape, CODES)
        last = torch.full((len(x),), MASK)
        for place in range(16):
            last = torch.where(x[:, place] == MASK, last, x[:, place])
            rows = (last != MASK).nonzero()[:, 0]
            label = torch.zeros_like(last) if cond.label is None else cond.label
            logits[rows, place, (last + label)[rows] % CODES] = self.sure
        return logits

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

    def to_bfloat16(self) -> Remembering:
        return self


def nothing(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    shape = batch, height, width
    return torch.full(shape, 77), torch.zeros(shape, dtype=torch.bool)


def fill(model: Remembering, x: Tensor, known: Tensor, **extra: object) -> Tensor:
    extra = {"cond": Cond(), "options": ONE_STEP, "rng": image_generators(2, len(x)), **extra}
    return fill_grid(model, x, known, WINDOW, **extra)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["posterior", "random", "purity", "confidence"])
@pytest.mark.parametrize(("height", "width", "stride"), [(4, 4, None), (9, 7, None), (5, 13, 3), (6, 6, 1), (8, 8, 4)])
def test_known_codes_stay_and_all_others_are_drawn(height: int, width: int, stride: int | None, order: Order) -> None:
    x, _ = nothing(2, height, width)
    known = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    x[known] = 4
    x_before, known_before = x.clone(), known.clone()
    got = fill(Remembering(), x, known, options=DiffusionOptions(steps=3, order=order), stride=stride)
    assert (got[known] == 4).all() and got.min() >= 0 and got.max() < CODES
    assert torch.equal(x, x_before) and torch.equal(known, known_before)


def test_a_grid_of_one_window_is_draw_codes() -> None:
    x, known = nothing(3, 4, 4)
    x[:, 1], known[:, 1] = 2, True
    options = DiffusionOptions(order="purity", guidance_scale=2.0)
    cond = Cond(label=torch.tensor([0, 1, 3]))
    got = fill(Remembering(), x, known, options=options, cond=cond)
    given = Known(x.flatten(1)[..., None], known.flatten(1))
    alone = draw_codes(Remembering(), cond, 3, options=options, rng=image_generators(2, 3), known=given)
    assert torch.equal(got.flatten(1), alone[..., 0])


def test_windows_go_in_raster_order_and_see_what_was_drawn_before_in_them() -> None:
    model = Remembering()
    x, known = nothing(1, 7, 9)
    got = fill(model, x, known)
    corners = list(itertools.product([0, 2, 3], [0, 2, 4, 5]))  # half a window apart; the last ends at the border
    there = torch.zeros(7, 9, dtype=torch.bool)
    assert len(model.seen) == len(corners)
    for (top, left), seen in zip(corners, model.seen, strict=True):
        window = slice(top, top + 4), slice(left, left + 4)
        assert torch.equal(seen.view(4, 4), torch.where(there[window], got[0][window], MASK))
        there[window] = True


def test_overlaps_carry_a_pattern_through_the_whole_grid() -> None:
    x, known = nothing(2, 4, 30)
    x[:, :, 0], known[:, :, 0] = torch.tensor([[1], [3]]), True
    got = fill(Remembering(sure=60.0), x, known)
    assert (got[0] == 1).all() and (got[1] == 3).all()


def test_windows_that_miss_nothing_are_skipped_and_take_no_noise() -> None:
    model = Remembering()
    x, known = torch.ones(2, 4, 12, dtype=torch.int64), torch.ones(2, 4, 12, dtype=torch.bool)
    known[1, 0, 11] = False  # only in the last of the windows at 0, 2, .. 8, and only of one image
    rng = image_generators(2, 2)
    states = [generator.get_state() for generator in rng]
    fill(model, x, known, rng=rng)
    assert len(model.seen) == 1 and (model.seen[0] == MASK).sum(1).tolist() == [1]
    assert torch.equal(rng[0].get_state(), states[0]) and not torch.equal(rng[1].get_state(), states[1])


@pytest.mark.parametrize("order", ["posterior", "random", "confidence"])
def test_an_image_does_not_depend_on_the_batch(order: Order) -> None:
    x, _ = nothing(4, 6, 9)
    x = x % CODES
    known = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    known[1, :4, :4], known[2, :, 4:], known[3] = True, True, False
    label, rng = torch.arange(4), image_generators(6, 4)
    options = DiffusionOptions(order=order, steps=5)
    together = fill(Remembering(), x, known, options=options, rng=rng, cond=Cond(label=label))
    for k in range(4):
        one = slice(k, k + 1)
        rng = image_generators(6, 1, first=k)
        alone = fill(Remembering(), x[one], known[one], options=options, rng=rng, cond=Cond(label=label[one]))
        assert torch.equal(alone[0], together[k])


def test_progress_begins_after_what_is_known_and_ends_with_all() -> None:
    told: list[tuple[int, int]] = []
    x, known = nothing(2, 4, 8)
    x[:, 0], known[:, 0] = 1, True
    options = DiffusionOptions(steps=2)
    fill(Remembering(), x, known, options=options, on_step=lambda done, total: told.append((done, total)))
    assert told == [(28, 64), (40, 64), (46, 64), (52, 64), (58, 64), (64, 64)]


LONG = torch.zeros(2, 4, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("x", "known", "words"),
    [
        (LONG[0], LONG[0] > 0, r"x is torch.int64 \[4, 4\]"),
        (LONG.float(), LONG > 0, "x is torch.float32"),
        (LONG, LONG[:1] > 0, r"known torch.bool \[1, 4, 4\]"),
        (LONG, LONG, "known torch.int64"),
        (LONG[:, :3], LONG[:, :3] > 0, "grid of 3x4 codes is smaller than the window of 4x4"),
        (LONG[:, :, :2], LONG[:, :, :2] > 0, "grid of 4x2 codes is smaller"),
    ],
)
def test_a_grid_of_another_form_or_too_small_is_refused(x: Tensor, known: Tensor, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        fill(Remembering(), x, known)


def test_one_generator_per_grid_is_asked_for() -> None:
    with pytest.raises(ShapeError, match="rng has 1 generators for 2 grids"):
        fill(Remembering(), *nothing(2, 4, 4), rng=image_generators(0, 1))


@pytest.mark.parametrize("stride", [0, 5])
def test_a_stride_out_of_range_is_refused(stride: int) -> None:
    with pytest.raises(ConfigError, match=rf"stride = {stride} must lie in 1\.\.4"):
        fill(Remembering(), *nothing(1, 8, 8), stride=stride)


@pytest.mark.parametrize("window", [(3, 4), (0, 4)])
def test_a_model_of_another_window_is_refused(window: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=rf"window = {window[0]}x4 does not fit a model of x_shape \(16, 1\)"):
        fill_grid(Remembering(), *nothing(1, 8, 8), window, cond=Cond(), options=ONE_STEP, rng=image_generators(0, 1))


def test_options_and_known_codes_are_checked_as_by_draw_codes() -> None:
    with pytest.raises(ConfigError, match="steps = 9"):
        fill(Remembering(), *nothing(1, 8, 8), options=DiffusionOptions(steps=9))
    x, known = nothing(1, 8, 8)
    with pytest.raises(ConfigError, match="known has the code 77"):
        fill(Remembering(), x, known | (torch.arange(8) == 7))
