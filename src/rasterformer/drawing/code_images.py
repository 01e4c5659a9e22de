"""Images from a model over codes: a grid of any size, drawn at once or window by window, decoded in tiles; and its likelihood.

`System` calls these for models with a tokenizer; those of pixels draw in `autoregressive/` and `canvas.py`.
"""

from __future__ import annotations

import hashlib
import math
import warnings
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
from rasterformer.conditioning.carry_on import carry_on
from rasterformer.conditioning.coordinates import coordinate_codes
from rasterformer.conditioning.resize import enlarge
from rasterformer.diffusion.bound import bound_nats
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.diffusion.draw import draw_codes as diffuse_codes
from rasterformer.diffusion.fill import fill_grid
from rasterformer.diffusion.image_denoiser import ImageDenoiser
from rasterformer.diffusion.options import DiffusionOptions, Order
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
        window_stride: a sliding window moves on by so many codes; more is faster. None: 1, the paper's; of a diffusion model half
            a window.
        steps, order, purity_weight: of a diffusion model, see `DiffusionOptions`.
    """

    size: tuple[int, int] | None = None
    guidance_scale: float = 1.0
    window_stride: int | None = None
    steps: int | None = None
    order: Order = "posterior"
    purity_weight: float = 0.0

    def of_diffusion(self, options: SampleOptions) -> DiffusionOptions:
        """All that a diffusion model takes."""
        return DiffusionOptions(
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            steps=self.steps,
            order=self.order,
            purity_weight=self.purity_weight,
            guidance_scale=self.guidance_scale,
        )


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
    if grid != window and not isinstance(system.model, CodeDenoiser) and system.recipe.model.order != "raster":
        raise ConfigError(
            f"images of other sizes than the model's own are drawn by a window that slides in raster order, but this model has "
            f"model.order = {system.recipe.model.order!r}."
        )
    return grid


def check_stride(system: System, window_stride: int) -> None:
    """Refuses strides of the sliding window that leave codes out.

    Raises:
        ConfigError: it is out of range.
    """
    rows, cols = window_of(system)
    most, what = max(1, cols // 2), "half the window's width"
    if system.is_diffusion:
        most, what = min(rows, cols), "the smaller side of the window"
    if not 1 <= window_stride <= most:
        raise ConfigError(f"window_stride = {window_stride} must lie in 1..{most}, {what} in codes.")


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
    return getattr(system.recipe.model, "window", None) or codec.grid


def is_told_places(system: System) -> bool:
    """Whether the model is conditioned on where its window lies in the image."""
    return getattr(system.recipe.model, "coordinates", False)


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
    return _tokenized(system, used, source, size)


def draw_codes(
    system: System,
    model: Autoregressive | CodeDenoiser,
    cond: Cond,
    condition: Tensor | None,
    grid: tuple[int, int],
    *,
    options: SampleOptions,
    more: CodeOptions,
    rng: Sequence[torch.Generator],
    known: Known | None = None,
    start: tuple[Tensor, int] | None = None,
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
        start: of a diffusion model: codes int64 [B, L, 1] of images of its own size, and the level of noise to put on them first.
        parallel: several codes per pass; the same codes. Not with a sliding window, and not by a diffusion model.
        on_step: told (codes done, codes in all) of an image.

    Returns:
        int64 [B, h, w].
    """
    codec, _ = _parts(system)
    window, count, device = window_of(system), len(rng), next(model.parameters()).device
    told = None if on_step is None else lambda done, every: on_step(done // count, every // count)  # of an image
    if isinstance(model, CodeDenoiser):
        assert not parallel, "plan_drawing refuses it"
        how = more.of_diffusion(options)
        if grid == window:
            x = diffuse_codes(model, cond, count, options=how, rng=rng, known=known, start=start, on_step=told)
            return x[..., 0].unflatten(1, grid)
        x = (
            torch.zeros(count, *grid, dtype=torch.int64, device=device)
            if known is None
            else known.x[..., 0].unflatten(1, grid)
        )
        where = torch.zeros_like(x, dtype=torch.bool) if known is None else known.where.unflatten(1, grid)
        return fill_grid(
            model,
            x.to(device),
            where.to(device),
            window,
            cond=cond,
            options=how,
            rng=rng,
            stride=more.window_stride,
            on_step=told,
        )
    assert start is None, "System.vary refuses models that are no diffusion models"
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
    x = draw_in_windows(
        model,
        grid,
        window,
        batch_size=count,
        cond_of=cond_of,
        options=options,
        rng=rng,
        known=known,
        stride=more.window_stride or 1,
        on_step=told,
    )
    return x[..., 0].unflatten(1, grid)


def decode(system: System, codes: Tensor) -> Tensor:
    """Codes int64 [B, h, w], by the model's numbers -> uint8 [B, 3, H, W] on the CPU, in tiles where they are many."""
    codec, tokenizer = _parts(system)
    return decode_in_tiles(tokenizer.autoencoder, codec.to_tokenizer(codes), pictures=tokenizer.recipe.model.pictures)


def code_nats(
    system: System, images: Tensor, cond: Cond, condition: Tensor | None, *, levels: int | None = None
) -> Tensor:
    """Negative log-likelihood of every code of images at the model's size, float32 [B, h, w]; no likelihood of pixels.

    Of a diffusion model: each code's share of an upper bound, estimated from so many levels of noise (all of them with None).

    Where the model sees a window, the image is cut into windows, each scored by itself; what is left over at the end of a side is
    scored in a window that reaches back, and counted once.
    """
    codec, _ = _parts(system)
    codes = codec.codes(images)
    model = system.model
    assert not isinstance(model, ImageDenoiser), "it works on pixels"
    return grid_nats(system, model, codes, cond, condition, levels=levels)


@torch.no_grad()
def grid_nats(
    system: System,
    model: Autoregressive | CodeDenoiser,
    codes: Tensor,
    cond: Cond,
    condition: Tensor | None,
    *,
    levels: int | None = None,
) -> Tensor:
    """As `code_nats`, from codes int64 [B, h, w] and the codes of their condition, int64 [B, hc, wc]."""
    if isinstance(model, CodeDenoiser):
        x = codes.flatten(1)[..., None]
        rng = [_noise_of(image) for image in x]
        drawn = model.process.num_steps if levels is None else levels
        nats = bound_nats(model, x.to(next(model.parameters()).device), cond, rng=rng, levels=drawn)
        return nats.unflatten(1, codes.shape[1:])
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
        int64 [B, h, w], by the model's numbers, and bool [B, h, w]. An encoder sees the whole image, through its norms alone:
        known pixels are carried on into the unknown ones first, so that nothing unknown is in the codes, and those of known
        pixels are nearly what they would be in the whole picture.

    Warns:
        UserWarning: less than half of the known pixels of an image lie in known codes: the model sees little of what is known.
    """
    codec, tokenizer = _parts(system)
    f = tokenizer.factor
    filled = carry_on(images, known)
    where = known.unflatten(1, (-1, f)).unflatten(3, (-1, f)).all(4).all(2)  # of [B, h, f, w, f]
    seen = f * f * where.sum((1, 2))
    for k in (2 * seen < known.sum((1, 2))).nonzero()[:1, 0].tolist():
        share, seen_share = known[k].float().mean(), seen[k] / known[k].numel()
        warnings.warn(
            f"{share:.0%} of the pixels are known, but only {seen_share:.0%} lie in codes ({f}x{f} pixels) that are known whole. "
            f"What is drawn sees no others, and may not fit them: mark fewer, larger holes, with borders at multiples of {f}.",
            stacklevel=2,
        )
    return codec.from_tokenizer(_tokenized(system, tokenizer, filled, (images.shape[2], images.shape[3]))), where


def _tokenized(system: System, tokenizer: Tokenizer, pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Codes int64 [B, h, w] on the CPU, in tiles where the images that the pictures belong to are not of the model's own size."""
    if size == (system.image_size, system.image_size):
        return tokenizer.encode(pictures)
    return encode_in_tiles(tokenizer.codec(), pictures).cpu()


def _condition_map(system: System, condition: Tensor | None, grid: tuple[int, int], count: int) -> Tensor | None:
    """The codes of the condition, int64 [B, hc, wc]: those given, or the places of the cells where the model is told them."""
    _, tokenizer = _parts(system)
    if not is_told_places(system):
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


def _noise_of(codes: Tensor) -> torch.Generator:
    """The stream that an image's bound is estimated with, from its codes: the same in every batch and under every condition."""
    digest = hashlib.sha256(codes.cpu().long().contiguous().numpy().tobytes()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def _starts(length: int, window: int) -> list[int]:
    return [*range(0, length - window, window), length - window]


def _parts(system: System) -> tuple[CodeCodec, Tokenizer]:
    assert isinstance(system.codec, CodeCodec), "only models over codes come here"
    return system.codec, system.tokenizers["tokenizer"]
