"""Drawing what is missing of a grid of codes, however large: in-painting, out-painting, and images larger than the model.

A window goes over the grid in raster order, and each time all that is missing in it is drawn at once by `draw_codes`, given
what is known or was drawn before in it. Windows overlap, so that each has a part of its neighbours to go on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.diffusion.draw import draw_codes
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Cond, Known, OnStep, SampleOptions


def fill_grid(
    model: CodeDenoiser,
    x: Tensor,
    known: Tensor,
    window: tuple[int, int],
    *,
    cond: Cond,
    options: SampleOptions,
    rng: Sequence[torch.Generator],
    stride: int | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draws the codes of a grid that are not known.

    A window is skipped for the images that miss nothing in it: they take no noise, and image k does not depend on its batch.
    Where the grid is the window, this function is `draw_codes`. Memory does not grow with the grid, but for the grid itself.

    Args:
        model: of one window, codes in raster order.
        x: int64 [B, h, w]; what it holds where it is not known does not matter.
        known: bool [B, h, w], the codes that stay.
        window: rows and columns.
        cond: of each image, the same in all of its windows.
        options: as `draw_codes` takes them, for each window.
        rng: B generators, on the CPU.
        stride: rows and columns between windows, 1..the smaller side of the window. The last of a row or column is moved back
            to end at the border. None: half the window's rows and half its columns.
        on_step: told (codes known or drawn, B * h * w) after each step.

    Returns:
        int64 [B, h, w].

    Raises:
        ShapeError: x and known of different shapes or other dtypes; a grid smaller than the window; not one generator per image.
        ConfigError: a model of another window; a stride out of range; what `draw_codes` refuses.
    """
    _check(model, x, known, window, stride=stride, rng=rng)
    x, known = torch.where(known, x, 0), known.clone()
    for top in _starts(x.shape[1], window[0], stride):
        for left in _starts(x.shape[2], window[1], stride):
            here = (slice(None), slice(top, top + window[0]), slice(left, left + window[1]))
            if known[here].all():
                continue
            given = Known(x[here].flatten(1)[..., None], known[here].flatten(1))
            part = _part_of(on_step, done=int(known.sum()), missing=int((~known[here]).sum()), total=known.numel())
            drawn = draw_codes(model, cond, len(x), options=options, rng=rng, known=given, on_step=part)
            x[here] = drawn.view(len(x), *window).to(x.device)
            known[here] = True
    return x


def _starts(length: int, size: int, stride: int | None) -> list[int]:
    return [*range(0, length - size, stride or max(1, size // 2)), length - size]


def _part_of(on_step: OnStep | None, *, done: int, missing: int, total: int) -> OnStep | None:
    """Tells of a window's progress as a part of the grid's."""
    if on_step is None:
        return None
    return lambda codes, of: on_step(done + missing * codes // of, total)


def _check(
    model: CodeDenoiser,
    x: Tensor,
    known: Tensor,
    window: tuple[int, int],
    *,
    stride: int | None,
    rng: Sequence[torch.Generator],
) -> None:
    height, width = window
    if x.dim() != 3 or x.dtype != torch.int64 or known.shape != x.shape or known.dtype != torch.bool:
        raise ShapeError(
            f"x is {x.dtype} {list(x.shape)} and known {known.dtype} {list(known.shape)}; expected torch.int64 and "
            "torch.bool [B, h, w] of the same size."
        )
    if len(rng) != len(x):
        raise ShapeError(f"rng has {len(rng)} generators for {len(x)} grids. Pass one per image.")
    if min(window) < 1 or model.x_shape != (height * width, 1):
        raise ConfigError(
            f"window = {height}x{width} does not fit a model of x_shape {model.x_shape}: it takes one of "
            f"{(height * width, 1)}."
        )
    if x.shape[1] < height or x.shape[2] < width:
        raise ShapeError(
            f"The grid of {x.shape[1]}x{x.shape[2]} codes is smaller than the window of {height}x{width}. Fill at least "
            "one window."
        )
    if stride is not None and not 1 <= stride <= min(window):
        raise ConfigError(f"stride = {stride} must lie in 1..{min(window)}, the smaller side of the window.")
