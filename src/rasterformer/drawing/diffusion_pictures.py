"""What a diffusion model of pixels, or a cascade, makes of what a user gives: texts, classes, pictures of any size, masks.

`System` comes here for such models; how stages draw is in `stages.py`. Pictures whose sides do not fit are carried on at
their right and lower borders, and what was drawn there is cut off again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rasterformer.autoregressive.memory import DrawingPlan, available_bytes, choose_batch
from rasterformer.autoregressive.noise import stream_seed
from rasterformer.batches import batches_of, collected, in_parts
from rasterformer.conditioning.sources import masked_source, source_of_picture
from rasterformer.diffusion.image_denoiser import ImageDenoiser
from rasterformer.diffusion.image_options import check_image_options
from rasterformer.drawing.conditions import Label, Text, cond_of
from rasterformer.drawing.options import DrawingOptions, need_options
from rasterformer.drawing.stages import (
    Given,
    Told,
    draw_cascade,
    factors_of,
    multiple_of,
    passes_of,
    share_text_encoder,
    stage_options,
    stages_of,
)
from rasterformer.drawing.symbols import MOST_AT_A_TIME, check_counts, check_precision
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Cond, OnStep
from rasterformer.nn.live_memory import meta_copy
from rasterformer.tasks import Inpaint, source_shape

if TYPE_CHECKING:
    from rasterformer.system import System

NUMBERS_BESIDE = (
    10  # images that a sampler holds beside a pass of the network: z, predictions, noise (measured: 5 to 9)
)


def told_of(
    system: System,
    label: Label | Sequence[Label],
    text: Text | Sequence[Text],
    count: int,
    how: DrawingOptions,
    *,
    first: int = 0,
    draws_class: bool = False,
) -> list[Told]:
    """What every stage is told: each takes of classes and texts what it was trained with.

    Classes that are drawn at random are drawn for the first stage, and told to the upscalers; where it draws by its null, they
    are told none, either.

    Args:
        system: the model, with its upscalers.
        label, text: for all or one for each of `count` images.
        count: number of images.
        how: guidance and the negative text.
        first, draws_class: as in `cond_of`.

    Raises:
        ConfigError, MissingExtraError, DataError, CheckpointError: as `cond_of`.
    """
    told: list[Told] = []
    any_classes = any(stage.model.num_classes for stage in stages_of(system))
    any_texts = any(stage.takes_text for stage in stages_of(system))
    for number, stage in enumerate(stages_of(system)):
        if number:
            share_text_encoder(system, stage)
            draws_class = False
        if number == 1 and system.model.num_classes:
            label = _classes_told(told[0].cond)
        scale = stage_options(how.pixels, number).guidance_scale
        # what no stage takes goes to the first one, which refuses it
        labels = label if stage.model.num_classes or (number == 0 and not any_classes) else None
        texts = text if stage.takes_text or (number == 0 and not any_texts) else None
        cond = cond_of(
            stage, labels, count, how.seed, first=first, text=texts, guidance_scale=scale, draws_class=draws_class
        )
        negative = None
        if how.negative is not None and scale != 1.0 and stage.takes_text:
            negative = cond_of(stage, labels, count, how.seed, first=first, text=how.negative)
        told.append(Told(cond, negative))
    return told


def _classes_told(cond: Cond) -> list[Label]:
    """The class that each image's first stage is told; None where it is told nothing."""
    assert cond.label is not None, "it has classes"
    hidden = [False] * len(cond.label) if cond.dropped is None else cond.dropped.tolist()
    return [None if is_hidden else index for index, is_hidden in zip(cond.label.tolist(), hidden, strict=True)]


def networks_of(system: System, how: DrawingOptions, *, is_plan: bool = False) -> list[ImageDenoiser]:
    """The networks of all stages in the precision to draw in, made once for all that a call draws.

    Args:
        system: the model, with its upscalers.
        how: see `DrawingOptions`; checked here, before anything is copied or read.
        is_plan: nothing will be drawn: copies are made without numbers, and take no memory.

    Raises:
        ConfigError: an option is out of range or not for the model.
    """
    need_options(system, how)
    check_image_options(how.pixels)
    check_precision(how.precision)
    networks = []
    for stage in stages_of(system):
        assert isinstance(stage.model, ImageDenoiser), "a diffusion model of pixels"
        network = stage.model
        if how.precision == "bfloat16":
            network = (meta_copy(network) if is_plan else network).to_bfloat16()
        networks.append(network)
    return networks


def plan_pictures(
    system: System,
    networks: Sequence[ImageDenoiser],
    n: int,
    how: DrawingOptions,
    size: tuple[int, int],
    *,
    is_filling: bool = False,
    first_stage: int = 0,
) -> DrawingPlan:
    """How many images are drawn at a time, in how many passes and how much memory.

    Args:
        system: the model, with its upscalers.
        networks: what `networks_of` made of it.
        n: number of images.
        how: see `DrawingOptions`.
        size: of the results, pixels.
        is_filling: known pixels are kept.
        first_stage: the first that draws.

    Raises:
        ConfigError: an option is not for this way of drawing, or a batch does not fit into memory.
        ShapeError: the size is none that the model can draw.
    """
    check_counts(n, how.batch_size)
    if is_filling and how.sampler != "ancestral":
        raise ConfigError(
            f"sampler = {how.sampler!r}, but known pixels are kept by the ancestral sampler. Leave it out."
        )
    if not is_filling and how.resamplings != 1:
        raise ConfigError(
            f"resamplings = {how.resamplings} is for filling in what a mask says is missing. Leave it out."
        )
    multiple = multiple_of(system)
    if min(size) < 1 or size[0] % multiple or size[1] % multiple:
        near = [max(multiple, round(side / multiple) * multiple) for side in size]
        raise ShapeError(f"size = {size[0]}x{size[1]} pixels is no multiple of {multiple}. Use {near[0]}x{near[1]}.")
    one = 0
    for number, (network, factor) in enumerate(zip(networks, factors_of(system), strict=True)):
        if number >= first_stage:
            here = (size[0] // factor, size[1] // factor)
            rows = 1 if stage_options(how.pixels, number).guidance_scale == 1.0 else 2
            one = max(one, network.state_bytes(rows, here) + NUMBERS_BESIDE * 4 * 3 * here[0] * here[1])
    available = available_bytes(system.device)
    batch_size = choose_batch(n, one, batch_size=how.batch_size, most=MOST_AT_A_TIME, available=available)
    weights = sum(p.numel() * p.element_size() for network in networks for p in network.parameters())
    passes = sum(passes_of(system, how.pixels, is_filling=is_filling, first_stage=first_stage))
    return DrawingPlan(n, batch_size, passes, one, weights, available, unit="passes")


def sample_pictures(
    system: System,
    n: int,
    label: Label | Sequence[Label],
    text: Text | Sequence[Text],
    how: DrawingOptions,
    *,
    first: int,
) -> Tensor:
    """`System.sample`: uint8 [n, 3, H, W]."""
    size = how.size or (system.image_size, system.image_size)
    networks = networks_of(system, how)
    plan = plan_pictures(system, networks, n, how, size)
    told = told_of(system, label, text, n, how, first=first, draws_class=True)

    def batches() -> Iterator[tuple[int, Tensor]]:
        for rows in batches_of(n, plan.batch_size):
            yield (
                rows.start,
                draw_cascade(
                    system,
                    networks,
                    [each.rows(rows) for each in told],
                    size=size,
                    options=how.pixels,
                    streams=[(how.seed, first + k) for k in range(rows.start, rows.stop)],
                    on_step=in_parts(how.on_step, rows, n, plan.positions),
                ),
            )

    return collected(batches(), how.on_images)


def transform_pictures(
    system: System,
    pictures: Sequence[Tensor],
    masks: Sequence[Tensor] | None,
    n: int,
    label: Label | Sequence[Label],
    text: Text | Sequence[Text],
    how: DrawingOptions,
) -> list[Tensor]:
    """`System.transform`: what the model's task makes of pictures, or what a mask says is missing of them, drawn.

    Args:
        system: a diffusion model of pixels.
        pictures: uint8 [c, h, w] of any sizes.
        masks: bool [h, w] for each, True where it stays. None: the task draws every pixel.
        n: results of each.
        label, text: for all or one for each picture.
        how: see `DrawingOptions`.

    Returns:
        uint8 [n, 3, H, W] for each picture.

    Raises:
        ConfigError, ShapeError: as `pieces_of_task`, and what cannot be drawn.
    """
    return _draw_pieces(system, pieces_of_task(system, pictures, masks), n, label, text, how)


def pieces_of_task(system: System, pictures: Sequence[Tensor], masks: Sequence[Tensor] | None) -> list[Piece]:
    """What is drawn from pictures by the model's task, or where masks say that something is missing.

    Arguments as in `transform_pictures`.

    Raises:
        ConfigError: a mask knows everything.
        ShapeError: a mask of another size or dtype than its picture.
    """
    task = system.recipe.task
    scale = 1 if task is None else system.image_size // source_shape(task, system.recipe.data.image_size).size
    side, pieces = math.lcm(multiple_of(system), scale), []
    for k, picture in enumerate(pictures):
        size, cut, source = _fitted(picture, scale, side)
        given, cond = None, Cond()
        if masks is not None:
            given = Given(source, _known(masks[k], picture, k, (source.shape[2], source.shape[3])))
        if isinstance(task, Inpaint):
            assert given is not None and given.known is not None, "asked for by System.transform"
            cond = masked_source(source, given.known)
        elif task is not None:
            cond = Cond(source=source if source.shape[1] == 1 else source_of_picture(task, source))
        pieces.append(Piece(size, cut, cond=cond, given=given))
    return pieces


def upscale_pictures(
    system: System,
    pictures: Sequence[Tensor],
    n: int,
    label: Label | Sequence[Label],
    text: Text | Sequence[Text],
    how: DrawingOptions,
) -> list[Tensor]:
    """`System.upscale` of a cascade: its upscalers alone, uint8 [3, h, w] of any sizes -> uint8 [n, 3, H, W] for each."""
    return _draw_pieces(system, pieces_to_enlarge(system, pictures, how), n, label, text, how)


def pieces_to_enlarge(system: System, pictures: Sequence[Tensor], how: DrawingOptions) -> list[Piece]:
    """What the upscalers of a cascade draw from pictures alone.

    Raises:
        ConfigError: guidance of the base model.
    """
    if how.guidance_scale != 1.0:
        raise ConfigError(
            f"guidance_scale = {how.guidance_scale} is of the base model, which has no part in this. Use upscaler_guidance_scale."
        )
    scale, side = factors_of(system)[0], multiple_of(system)
    pieces = []
    for picture in pictures:
        size, cut, source = _fitted(picture, scale, side)
        pieces.append(Piece(size, cut, source=source))
    return pieces


def vary_pictures(
    system: System,
    images: Tensor,
    n: int,
    label: Label | Sequence[Label],
    text: Text | Sequence[Text],
    how: DrawingOptions,
    *,
    strength: float,
) -> Tensor:
    """`System.vary`: noise is put on images and undone (Meng et al. 2022, SDEdit); of a cascade on the reduced ones.

    Args:
        system: a diffusion model of pixels without a task.
        images: uint8 [B, 3, H, W] at its size.
        n: variations of each.
        label, text: for all or one for each image.
        how: see `DrawingOptions`; `steps` are those from `strength` to the image.
        strength: time up to which there is noise, above 0 and up to 1, where nothing of the image is left.

    Returns:
        uint8 [B, n, 3, H, W].

    Raises:
        ConfigError: as `pieces_to_vary`, and what cannot be drawn.
    """
    return torch.stack(_draw_pieces(system, pieces_to_vary(system, images, strength), n, label, text, how))


def pieces_to_vary(system: System, images: Tensor, strength: float) -> list[Piece]:
    """What is drawn from images that noise is put on. Arguments as in `vary_pictures`.

    Raises:
        ConfigError: the model has a task, or strength is out of range.
    """
    if system.recipe.task is not None:
        raise ConfigError("vary needs a model that makes images from nothing, and this one has a task. Use transform.")
    if not 0.0 < strength <= 1.0:
        raise ConfigError(f"strength = {strength} must lie above 0 and not above 1.")
    size = (system.image_size, system.image_size)
    return [Piece(size, size, given=Given(image[None], None, strength)) for image in images]


def draw_from_sources(system: System, cond: Cond, n: int, how: DrawingOptions) -> Tensor:
    """`System.draw_from`: n images from each source of the model's size, uint8 [B, n, 3, H, W].

    Args:
        system: a diffusion model of pixels with a task, without upscalers.
        cond: of B images, with all that the network is told.
        n: results of each.
        how: see `DrawingOptions`.
    """
    assert cond.source is not None and not system.upscalers, "one stage, which has sources"
    size, pieces = (system.image_size, system.image_size), []
    for k in range(len(cond.source)):
        own = Cond(source=cond.source, known=cond.known).rows(slice(k, k + 1))
        given = None
        if own.known is not None and own.source is not None:
            given = Given(own.source.cpu(), own.known.cpu())
        pieces.append(Piece(size, size, cond=own, given=given))
    networks = networks_of(system, how)
    groups = plan_pieces(system, networks, pieces, n, how)
    told = Told(replace(cond, source=None, known=None).to(system.device))
    if how.negative is not None:
        told = replace(told, negative=system.with_text(Cond(label=told.cond.label), how.negative, len(pieces)))
    return torch.stack(_drawn(system, networks, groups, pieces, [told], n, how))


@dataclass(frozen=True)
class Piece:
    """What is drawn from one picture.

    Args:
        size: height and width that are drawn, pixels.
        cut: of the results, not larger.
        cond: with the first stage's source, of one image, or nothing.
        given: a picture of that size to begin from, of one image.
        source: uint8 [1, 3, h, w], from which the upscalers draw alone.
    """

    size: tuple[int, int]
    cut: tuple[int, int]
    cond: Cond = field(default_factory=Cond)
    given: Given | None = None
    source: Tensor | None = None

    @property
    def kind(self) -> tuple[tuple[int, int], bool, int]:
        """Size, whether pixels are known, and the first stage that draws: what pieces that are drawn together share."""
        return self.size, self.given is not None and self.given.known is not None, int(self.source is not None)


def plan_pieces(
    system: System, networks: Sequence[ImageDenoiser], pieces: Sequence[Piece], n: int, how: DrawingOptions
) -> list[tuple[list[int], DrawingPlan]]:
    """Which neighbours of one kind are drawn together, by their numbers, and how.

    Args:
        system: the model, with its upscalers.
        networks: what `networks_of` made of it.
        pieces: one for each picture.
        n: results of each.
        how: see `DrawingOptions`.

    Raises:
        ConfigError, ShapeError: as `plan_pictures`.
    """
    groups = [list(group) for _, group in groupby(range(len(pieces)), key=lambda k: pieces[k].kind)]
    planned = []
    for group in groups:
        size, is_filling, first_stage = pieces[group[0]].kind
        count = n * len(group)
        plan = plan_pictures(system, networks, count, how, size, is_filling=is_filling, first_stage=first_stage)
        planned.append((group, plan))
    return planned


def told_of_pieces(
    system: System, pieces: Sequence[Piece], told: Sequence[Told], rows: Sequence[int]
) -> tuple[list[Told], list[Piece]]:
    """What each stage is told of some of the pieces, the first with their sources; and these pieces.

    Args:
        system: the model.
        pieces: all of them.
        told: what each stage is told of each piece, its source aside.
        rows: numbers of the pieces, one for each image.
    """
    here = [pieces[k] for k in rows]
    each = [one.rows(torch.tensor(rows, device=system.device)) for one in told]
    source = _together([piece.cond.source for piece in here])
    known = _together([piece.cond.known for piece in here])
    own = Cond(source=source, known=known).to(system.device)
    each[0] = replace(each[0], cond=replace(each[0].cond, source=own.source, known=own.known))
    return each, here


def _draw_pieces(
    system: System,
    pieces: Sequence[Piece],
    n: int,
    label: Label | Sequence[Label],
    text: Text | Sequence[Text],
    how: DrawingOptions,
) -> list[Tensor]:
    """Plans, reads the texts and draws: what cannot be done is said before a text encoder is loaded."""
    networks = networks_of(system, how)
    groups = plan_pieces(system, networks, pieces, n, how)
    return _drawn(system, networks, groups, pieces, told_of(system, label, text, len(pieces), how), n, how)


def _drawn(
    system: System,
    networks: Sequence[ImageDenoiser],
    groups: Sequence[tuple[list[int], DrawingPlan]],
    pieces: Sequence[Piece],
    told: Sequence[Told],
    n: int,
    how: DrawingOptions,
) -> list[Tensor]:
    """Draws n results of each piece: uint8 [n, 3, H, W] for each. Result k of picture i depends on the seed, i and k only.

    Args:
        system: the model.
        networks: what `networks_of` made of it.
        groups: what `plan_pieces` made of the pieces.
        pieces: one for each picture.
        told: what each stage is told of each picture, its source aside.
        n: results of each.
        how: see `DrawingOptions`.
    """
    results: list[Tensor] = []
    waiting: list[Tensor] = []
    done, total = 0, sum(plan.num_images * plan.positions for _, plan in groups)
    for group, plan in groups:
        on_step = None if how.on_step is None else _after(how.on_step, done, total)
        done += plan.num_images * plan.positions
        for rows in batches_of(plan.num_images, plan.batch_size):
            places = [(group[row // n], row % n) for row in range(rows.start, rows.stop)]  # picture and result
            each, here = told_of_pieces(system, pieces, told, [k for k, _ in places])
            waiting += draw_cascade(
                system,
                networks,
                each,
                size=here[0].size,
                options=how.pixels,
                streams=[(stream_seed(how.seed, "picture", k), number) for k, number in places],
                given=_given_together([piece.given for piece in here]),
                source=_together([piece.source for piece in here]),
                on_step=in_parts(on_step, rows, plan.num_images, plan.positions),
            )
            while len(waiting) >= n:
                height, width = pieces[len(results)].cut
                results.append(torch.stack(waiting[:n])[..., :height, :width])
                del waiting[:n]
                if how.on_images is not None:
                    how.on_images(len(results) - 1, results[-1])
    return results


def _together(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Parts [1, ...] of some images as one [B, ...]; all of them, or none, are there."""
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None


def _given_together(parts: Sequence[Given | None]) -> Given | None:
    """What is given of some images as one; all of them begin from the same time."""
    there = [part for part in parts if part is not None]
    images = _together([part.images for part in there])
    return None if images is None else Given(images, _together([part.known for part in there]), there[0].strength)


def _after(on_step: OnStep, before: int, total: int) -> OnStep:
    """Progress of a group as progress of all."""
    return lambda done, _: on_step(before + done, total)


def _known(mask: Tensor, picture: Tensor, k: int, size: tuple[int, int]) -> Tensor:
    """The mask of picture k as bool [1, *size], carried on as the picture is: what is hidden in it stays hidden."""
    if mask.shape != picture.shape[1:] or mask.dtype != torch.bool:
        raise ShapeError(
            f"the mask of image {k} is {mask.dtype} {list(mask.shape)}; it must be torch.bool {list(picture.shape[1:])}."
        )
    if bool(mask.all()):
        raise ConfigError(f"the mask of image {k} says that every pixel is known. Mark one or more as unknown.")
    return _carried_on(mask[None, None].cpu(), size)[0]


def _fitted(picture: Tensor, scale: int, multiple: int) -> tuple[tuple[int, int], tuple[int, int], Tensor]:
    """What is drawn of a picture uint8 [c, h, w] whose results are `scale` times as large.

    Returns:
        height and width to draw, which are multiples; those of the result; and the picture carried on to fit, [1, c, h', w'].
    """
    rows, cols = (-(-scale * length // multiple) * multiple // scale for length in picture.shape[1:])
    cut = (scale * picture.shape[1], scale * picture.shape[2])
    return (scale * rows, scale * cols), cut, _carried_on(picture[None], (rows, cols))


def _carried_on(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [1, c, h, w] as [1, c, *size], not smaller: the last row and the last column go on."""
    rows, cols = (torch.arange(side).clamp(max=length - 1) for side, length in zip(size, maps.shape[2:], strict=True))
    return maps[:, :, rows][..., cols]
