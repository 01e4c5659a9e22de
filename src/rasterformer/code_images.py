"""Images from a model over codes: a grid of any size, drawn at once or by a sliding window, decoded in tiles.

`System` calls these for models with a tokenizer; those of pixels draw in `autoregressive/` and `image_to_image.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rasterformer.autoregressive.guidance import Guided
from rasterformer.autoregressive.parallel import draw_in_parallel
from rasterformer.autoregressive.sample import draw
from rasterformer.autoregressive.window import draw_in_windows
from rasterformer.codecs.vq.codec import CodeCodec
from rasterformer.codecs.vq.tiles import decode_in_tiles, encode_in_tiles
from rasterformer.conditioning.coordinates import coordinate_codes
from rasterformer.conditioning.resize import enlarge
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Autoregressive, Cond, Known, OnStep, SampleOptions
from rasterformer.tasks import SuperResolution

if TYPE_CHECKING:
    from rasterformer.system import System
    from rasterformer.tokenizer import Tokenizer


@dataclass(frozen=True)
class CodeOptions:
    """What else can be said about drawing codes.

    Args:
        size: height and width of the images, pixels; multiples of the tokenizer's factor. None: those of the training.
        guidance_scale: 1 draws from the model; above it the condition counts more (Ho & Salimans 2022).
        window_stride: a sliding window moves on by so many codes; 1 is the paper's, more is faster.
    """

    size: tuple[int, int] | None = None
    guidance_scale: float = 1.0
    window_stride: int = 1


def grid_of(system: System, size: tuple[int, int] | None) -> tuple[int, int]:
    """Returns rows and columns of codes of images of `size` pixels; None: of the images it was trained on.

    Raises:
        ShapeError: a side is no multiple of the tokenizer's factor, or smaller than the model's window.
        ConfigError: another size than the window needs raster order.
    """
    codec, tokenizer = _parts(system)
    if size is None:
        return codec.grid
    factor, window = tokenizer.factor, window_of(system)
    if size[0] % factor or size[1] % factor:
        near = [max(window[k] * factor, round(size[k] / factor) * factor) for k in (0, 1)]
        raise ShapeError(
            f"size = {size[0]}x{size[1]} pixels is no multiple of the tokenizer's factor {factor}. Use {near[0]}x{near[1]}."
        )
    grid = (size[0] // factor, size[1] // factor)
    if grid[0] < window[0] or grid[1] < window[1]:
        raise ShapeError(
            f"size = {size[0]}x{size[1]} pixels is smaller than the model's window of {window[0] * factor}x"
            f"{window[1] * factor} pixels. Draw at least that, and cut."
        )
    if grid != window and system.recipe.model.order != "raster":
        raise ConfigError(
            f"images of other sizes than the model's own are drawn by a window that slides in raster order, but this model has "
            f"model.order = {system.recipe.model.order!r}."
        )
    return grid


def source_multiple(system: System) -> int:
    """Sides of source pictures must be multiples of so many pixels, for whole codes of image and condition."""
    _, tokenizer = _parts(system)
    shape = system.source_shape
    assert shape is not None, "a model with a task"
    scale = system.image_size // shape.size
    of_image = tokenizer.factor // math.gcd(tokenizer.factor, scale)
    condition = system.tokenizers.get("condition_tokenizer")
    return of_image if condition is None else math.lcm(of_image, condition.factor)


def window_of(system: System) -> tuple[int, int]:
    """Rows and columns of codes that the model sees."""
    codec, _ = _parts(system)
    return system.recipe.model.window or codec.grid


def order_of(system: System) -> Tensor:
    """Raster index, in the window, of the i-th generated code: int64 [L]."""
    codec, _ = _parts(system)
    window = window_of(system)
    return codec.order if window == codec.grid else torch.arange(window[0] * window[1])


def condition_codes(system: System, source: Tensor, size: tuple[int, int]) -> Tensor:
    """Tokenizes the sources of images.

    Args:
        system: with a task.
        source: uint8 [B, c, h, w].
        size: height and width of the images, pixels; sources of super-resolution are enlarged to it first (paper, section 4.3).

    Returns:
        int64 [B, hc, wc], on the CPU.

    Raises:
        ShapeError: sides that are no multiple of the condition tokenizer's factor.
    """
    _, tokenizer = _parts(system)
    if isinstance(system.recipe.task, SuperResolution):
        source = enlarge(source.cpu(), size, "bicubic")
    used = system.tokenizers.get("condition_tokenizer", tokenizer)
    if size == (system.image_size, system.image_size):
        return used.encode(source)
    return encode_in_tiles(used.codec(), source)


def draw_codes(
    system: System,
    model: Autoregressive,
    cond: Cond,
    condition: Tensor | None,
    grid: tuple[int, int],
    *,
    options: SampleOptions,
    more: CodeOptions,
    rng: Sequence[torch.Generator],
    known: Known | None = None,
    parallel: bool = False,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draws the codes of a batch.

    Args:
        system: gives window and coordinates.
        model: the system's, in the precision to draw in.
        cond: classes and texts of B images.
        condition: int64 [B, hc, wc], codes of the sources. None: there are none.
        grid: rows and columns.
        options, more: how.
        rng: B generators.
        known: codes that are given, of the whole grid in generation order.
        parallel: several codes per pass; the same codes. Not with a sliding window.
        on_step: told (codes done, codes in all) of an image.

    Returns:
        int64 [B, h, w].
    """
    codec, _ = _parts(system)
    window, count, device = window_of(system), len(rng), next(model.parameters()).device
    condition = _condition_map(system, condition, grid, count)
    if more.guidance_scale != 1.0:
        model = Guided(model, more.guidance_scale)

    def cond_of(corner: tuple[int, int]) -> Cond:
        return _in_window(cond, condition, corner, window, grid, device)

    if grid == window:
        whole = cond_of((0, 0))
        if parallel:
            x = draw_in_parallel(model, whole, options=options, rng=rng, known=known, on_step=on_step).x
        else:
            x = draw(model, whole, count, options=options, rng=rng, known=known, on_step=on_step)
        return codec.to_grid(x) if grid == codec.grid else x[..., 0].unflatten(1, grid)
    if parallel:
        raise ConfigError("parallel draws images of the model's own size only. Leave it out.")
    told = None if on_step is None else lambda done, every: on_step(done // count, every // count)
    x = draw_in_windows(
        model,
        grid,
        window,
        batch_size=count,
        cond_of=cond_of,
        options=options,
        rng=rng,
        known=known,
        stride=more.window_stride,
        on_step=told,
    )
    return x[..., 0].unflatten(1, grid)


def decode(system: System, codes: Tensor) -> Tensor:
    """Codes int64 [B, h, w] -> uint8 [B, 3, H, W] on the CPU, in tiles where they are many."""
    _, tokenizer = _parts(system)
    return decode_in_tiles(tokenizer.autoencoder, codes, pictures=tokenizer.recipe.model.pictures)


def code_nats(system: System, images: Tensor, cond: Cond, condition: Tensor | None) -> Tensor:
    """Negative log-likelihood of every code of images at the model's size, float32 [B, h, w]; no likelihood of pixels.

    Where the model sees a window, the image is cut into windows, each scored by itself; what is left over at the end of a side is
    scored in a window that reaches back, and counted once.
    """
    codec, _ = _parts(system)
    codes = codec.codes(images)
    return grid_nats(system, system.model, codes, cond, condition)


@torch.no_grad()
def grid_nats(system: System, model: Autoregressive, codes: Tensor, cond: Cond, condition: Tensor | None) -> Tensor:
    """As `code_nats`, from codes int64 [B, h, w] and the codes of their condition, int64 [B, hc, wc]."""
    grid, window, order = (int(codes.shape[1]), int(codes.shape[2])), window_of(system), order_of(system)
    device = next(model.parameters()).device
    codes = codes.to(device)
    condition = _condition_map(system, condition, grid, len(codes))
    nats = torch.zeros(codes.shape, device=device)
    for top in _starts(grid[0], window[0]):
        for left in _starts(grid[1], window[1]):
            part = _in_window(cond, condition, (top, left), window, grid, device)
            seen = codes[:, top : top + window[0], left : left + window[1]]
            x = seen.flatten(1)[:, order, None]
            log_prob = model.distribution.log_prob(model(x, part), x)  # [B, L], in generation order
            here = torch.empty_like(log_prob)
            here[:, order] = -log_prob
            nats[:, top : top + window[0], left : left + window[1]] = here.unflatten(1, window)
    return nats


def known_codes(system: System, images: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The codes of images, and which of them are known: those all of whose pixels are.

    Args:
        system: gives the tokenizer.
        images: uint8 [B, 3, H, W].
        known: bool [B, H, W], pixels.

    Returns:
        int64 [B, h, w] and bool [B, h, w]. Codes are made from the images with unknown pixels set to the mean of the known ones,
        so that nothing that is unknown can be seen in them beyond the reach of the encoder.
    """
    _, tokenizer = _parts(system)
    f = tokenizer.factor
    shown = images.float()
    count = known.sum((1, 2)).clamp(min=1)
    mean = (shown * known[:, None]).sum((2, 3)) / count[:, None]
    filled = torch.where(known[:, None], shown, mean[:, :, None, None]).round().to(torch.uint8)
    cells = known.unflatten(1, (-1, f)).unflatten(3, (-1, f))  # [B, h, f, w, f]
    return tokenizer.encode(filled), cells.all(4).all(2)


def _condition_map(system: System, condition: Tensor | None, grid: tuple[int, int], count: int) -> Tensor | None:
    """The codes of the condition, int64 [B, hc, wc]: those given, or the places of the cells where the model is told them."""
    _, tokenizer = _parts(system)
    if not system.recipe.model.coordinates:
        return condition
    places = coordinate_codes(grid, tokenizer.factor, system.recipe.model.num_coordinates)
    return places.expand(count, -1, -1)


def _in_window(
    cond: Cond,
    condition: Tensor | None,
    corner: tuple[int, int],
    window: tuple[int, int],
    grid: tuple[int, int],
    device: torch.device,
) -> Cond:
    """The condition of the window that begins at a corner: its part of the condition's codes [B, hc, wc]."""
    if condition is None:
        return cond
    rows, cols = (
        slice(at * side // whole, (at + length) * side // whole)
        for at, length, side, whole in zip(corner, window, condition.shape[1:], grid, strict=True)
    )
    return replace(cond, codes=condition[:, rows, cols].flatten(1).to(device))


def _starts(length: int, window: int) -> list[int]:
    return [*range(0, length - window, window), length - window]


def _parts(system: System) -> tuple[CodeCodec, Tokenizer]:
    assert isinstance(system.codec, CodeCodec), "only models over codes come here"
    return system.codec, system.tokenizers["tokenizer"]
