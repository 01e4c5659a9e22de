"""What a diffusion model over codes does with pictures: it draws any part of them anew, at any size, and varies them.

Codes all of whose pixels are known stay; the others are drawn, each seeing all that is known around it; known pixels are put back
as they were. `System.transform` (and so `restore`) and `System.vary` come here, `System.complete` goes to `code_pictures.py`; how
codes are drawn is in `code_images.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rasterformer.autoregressive.noise import image_generators, stream_seed
from rasterformer.batches import collected, one_of
from rasterformer.codecs.vq.codec import CodeCodec
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.drawing.code_images import grid_of, known_codes
from rasterformer.drawing.options import DrawingOptions
from rasterformer.drawing.symbols import draw_batches, plan_drawing
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Cond, Known

if TYPE_CHECKING:
    from rasterformer.system import System


def fill_pictures(
    system: System, pictures: Sequence[Tensor], masks: Sequence[Tensor], n: int, cond: Cond, how: DrawingOptions
) -> list[Tensor]:
    """Draws what is not known of pictures, n times each.

    Args:
        system: a diffusion model over codes.
        pictures: uint8 [3, h, w] of any sizes from the model's up, multiples of the tokenizer's factor.
        masks: bool [h, w] for each, True where it stays as it is.
        n: fillings of each.
        cond: class or text of each picture.
        how: see `DrawingOptions`.

    Returns:
        uint8 [n, 3, h, w] for each picture.

    Raises:
        ConfigError: a mask knows everything.
        ShapeError: a mask of another size or dtype than its picture, or a picture of a size that has no codes.
    """
    for k, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
        if mask.shape != picture.shape[1:] or mask.dtype != torch.bool:
            raise ShapeError(
                f"the mask of image {k} is {mask.dtype} {list(mask.shape)}; it must be torch.bool {list(picture.shape[1:])}."
            )
        if bool(mask.all()):
            raise ConfigError(f"the mask of image {k} says that every pixel is known. Mark one or more as unknown.")
        grid_of(system, (picture.shape[1], picture.shape[2]))  # refuses sizes before anything is drawn
    results: list[Tensor] = []
    for k, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
        told = None if how.on_step is None else one_of(how.on_step, k, len(pictures))
        size = (picture.shape[1], picture.shape[2])
        here = replace(how, size=size, seed=stream_seed(how.seed, "picture", k), on_step=told)
        codes, where = known_codes(system, picture[None], mask[None])
        model, plan = plan_drawing(system, n, here)
        known = Known(codes.flatten(1)[..., None].expand(n, -1, -1), where.flatten(1).expand(n, -1))
        each = cond.rows(torch.full((n,), k, device=system.device))
        batches = draw_batches(system, model, plan, each, here, known=known)
        results.append(torch.where(mask, picture, collected(batches, None)))  # known pixels stay as they are
        if how.on_images is not None:
            how.on_images(k, results[-1])
    return results


def vary_images(system: System, images: Tensor, n: int, cond: Cond, how: DrawingOptions, *, strength: float) -> Tensor:
    """Undoes noise that was put on the codes of images: uint8 [B, 3, H, W] at the model's size -> [B, n, 3, H, W].

    Result k of a picture depends on the seed, the picture's number and k only, as in `fill_pictures`.

    Args:
        strength: share of the noise levels that are undone, above 0 and up to 1, where nothing of the image is left.
        how: see `DrawingOptions`; `on_images` is given (index of the first, results of it and of those after it).
    """
    assert isinstance(system.codec, CodeCodec) and isinstance(system.model, CodeDenoiser), "refused by System.vary"
    if not 0.0 < strength <= 1.0:
        raise ConfigError(f"strength = {strength} must lie above 0 and not above 1.")
    image_of = torch.arange(len(images)).repeat_interleave(n)
    codes = system.codec.to_x(system.codec.from_tokenizer(system.tokenizers["tokenizer"].encode(images)))[image_of]
    model, plan = plan_drawing(system, len(codes), how)
    level = max(1, round(strength * system.model.process.num_steps))
    streams = [
        stream for k in range(len(images)) for stream in image_generators(stream_seed(how.seed, "picture", k), n)
    ]
    each = cond.rows(image_of.to(system.device))
    batches = draw_batches(system, model, plan, each, how, streams=streams, start=(codes, level))
    return collected(batches, how.on_images).unflatten(0, (len(images), n))
