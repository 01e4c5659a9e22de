"""Images from a diffusion model of pixels, alone or followed by its upscalers; and the bound of its likelihood.

A cascade is a `System` with `upscalers`: each of them draws a larger image from the one before, which it sees as it saw images in
training: 256 levels, reduced by areas, enlarged and with noise. What a user gives as pictures is brought into form in
`diffusion_pictures.py`; samplers are in `diffusion/`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rasterformer.autoregressive.noise import stream_seed
from rasterformer.codecs.continuous import to_images, to_numbers
from rasterformer.conditioning.resize import reduce_area
from rasterformer.diffusion.gaussian_bound import image_bound
from rasterformer.diffusion.image_denoiser import ImageDenoiser, predictor
from rasterformer.diffusion.image_options import ImageOptions
from rasterformer.diffusion.paste import fill_images
from rasterformer.diffusion.samplers import draw_images, normal
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Cond, OnStep
from rasterformer.tasks import SuperResolution

if TYPE_CHECKING:
    from rasterformer.system import System

SOURCE_NOISE = (
    0.1  # t of the noise on a small image when nothing is said (Saharia et al. 2022, section 4.4: 0.1 to 0.3)
)


@dataclass(frozen=True)
class Told:
    """What one stage is told of B images.

    Args:
        cond: classes and texts; and sources, where it is not the image before that is drawn on.
        negative: what guidance leads away from. None: nothing.
    """

    cond: Cond
    negative: Cond | None = None

    def rows(self, index: slice | Tensor) -> Told:
        """That of some of the images."""
        return Told(self.cond.rows(index), None if self.negative is None else self.negative.rows(index))


@dataclass(frozen=True)
class Given:
    """Pictures of the result's size that drawing begins from.

    Args:
        images: uint8 [B, 3, H, W].
        known: bool [B, H, W], pixels that stay. None: none does, but noise is put on the images and undone again.
        strength: the time up to which there is noise, above 0 and up to 1. For images that are known in part it is 1.
    """

    images: Tensor
    known: Tensor | None = None
    strength: float = 1.0

    def rows(self, index: slice | Tensor) -> Given:
        """That of some of the images."""
        return Given(self.images[index], None if self.known is None else self.known[index], self.strength)

    def reduced(self, factor: int) -> Given:
        """The same on images reduced by a factor, in which a pixel is known where its whole area is."""
        if factor == 1:
            return self
        known = None
        if self.known is not None:
            known = self.known.unflatten(1, (-1, factor)).unflatten(3, (-1, factor)).all(4).all(2)
        return Given(reduce_area(self.images, factor), known, self.strength)


def stages_of(system: System) -> list[System]:
    """The model itself and its upscalers, in the order in which they draw."""
    return [system, *system.upscalers]


def factors_of(system: System) -> list[int]:
    """By how much each stage's images are smaller than the last one's."""
    sides = [stage.recipe.data.image_size for stage in stages_of(system)]
    return [sides[-1] // side for side in sides]


def multiple_of(system: System) -> int:
    """What height and width of results must be multiples of, so that every stage can draw its part."""
    of_stages = (
        _model(stage).multiple * factor for stage, factor in zip(stages_of(system), factors_of(system), strict=True)
    )
    return math.lcm(*of_stages)


def stage_options(options: ImageOptions, number: int) -> ImageOptions:
    """Options of stage 0, 1, ...: upscalers have steps and guidance of their own."""
    if number == 0:
        return options
    steps = options.steps if options.upscaler_steps is None else options.upscaler_steps
    scale = options.upscaler_guidance_scale
    rescale = options.guidance_rescale if scale != 1.0 else 0.0
    return replace(options, steps=steps, guidance_scale=scale, guidance_rescale=rescale)


@torch.no_grad()
def draw_stage(
    model: ImageDenoiser,
    told: Told,
    *,
    size: tuple[int, int],
    options: ImageOptions,
    rng: Sequence[torch.Generator],
    given: Given | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draws one stage's images, uint8 [B, 3, *size], on the CPU.

    Args:
        model: the network, in the precision to draw in.
        told: with sources where the model takes some.
        size: height and width, pixels.
        options: how; those of this stage.
        rng: one generator per image.
        given: pictures of that size to begin from. None: from noise.
        on_step: told (steps done, steps); of known pixels, (passes done, passes).

    Raises:
        ShapeError: a size that the network cannot make.
        ConfigError: the condition is not what the model was trained with.
    """
    device = next(model.parameters()).device
    empty = torch.empty(len(rng), 3, *size, device=device)
    level = None
    if model.source_process is not None:
        level = empty.new_full((len(rng),), min(SOURCE_NOISE, model.most_source_noise))
        if options.source_noise is not None:
            level.fill_(options.source_noise)
    seen = model.see(told.cond, size, level=level, rng=rng)
    predict = predictor(model, told.cond, seen, options, negative=told.negative)
    noise = normal(rng, empty)
    if given is not None and given.known is not None:
        x = fill_images(
            predict,
            model.process,
            noise,
            to_numbers(given.images).to(device),
            given.known.to(device),
            steps=options.num_steps,
            rng=rng,
            resamplings=options.resamplings,
            interpolation=options.variance,
            on_step=on_step,
        )
        return to_images(x).cpu()
    start = 1.0
    if given is not None:
        start = given.strength
        noise = model.process.diffuse(to_numbers(given.images).to(device), torch.full((len(rng),), start), noise)
    x = draw_images(
        predict,
        model.process,
        noise,
        steps=options.num_steps,
        sampler=options.sampler,
        rng=rng,
        interpolation=options.variance,
        start=start,
        on_step=on_step,
    )
    return to_images(x).cpu()


def passes_of(system: System, options: ImageOptions, *, is_filling: bool = False, first_stage: int = 0) -> list[int]:
    """Passes of the network that each stage makes, from `first_stage` on; of guidance, two at once count as one."""
    found = []
    for number in range(first_stage, len(stages_of(system))):
        here = stage_options(options, number)
        if is_filling:
            found.append((here.num_steps - 1) * here.resamplings + 1)
        else:
            found.append(2 * here.num_steps - 1 if here.sampler == "heun" else here.num_steps)
    return found


def draw_cascade(
    system: System,
    models: Sequence[ImageDenoiser],
    told: Sequence[Told],
    *,
    size: tuple[int, int],
    options: ImageOptions,
    streams: Sequence[tuple[int, int]],
    given: Given | None = None,
    source: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draws images by all stages, uint8 [B, 3, *size]. Image k and its noise depend on its stream only.

    Args:
        system: a diffusion model of pixels, with its upscalers.
        models: the networks of the stages, in the precision to draw in.
        told: what each stage is told.
        size: of the results, a multiple of `multiple_of`.
        options: how.
        streams: seed and number of each image.
        given: pictures of the results' size. Their known pixels are the results' own.
        source: uint8 [B, 3, h, w], in place of what the first stage would draw: the upscalers begin at once.
        on_step: told (passes done, passes in all), over all stages.
    """
    factors, x = factors_of(system), source
    first = 0 if source is None else 1
    counts = [0] * first + passes_of(
        system, options, is_filling=given is not None and given.known is not None, first_stage=first
    )
    for number in range(first, len(models)):
        here = told[number]
        if number:
            assert x is not None, "the stage before drew it"
            here = replace(here, cond=replace(here.cond, source=x.to(system.device)))
        before, total = sum(counts[:number]), sum(counts)
        x = draw_stage(
            models[number],
            here,
            size=(size[0] // factors[number], size[1] // factors[number]),
            options=stage_options(options, number),
            rng=stage_generators(streams, number),
            given=_given_of(given, number, factors[number]),
            on_step=None if on_step is None else _after(on_step, before, counts[number], total),
        )
    assert x is not None, "there is at least one stage"
    return x if given is None or given.known is None else torch.where(given.known[:, None], given.images, x)


def stage_generators(streams: Sequence[tuple[int, int]], stage: int) -> list[torch.Generator]:
    """The random numbers of images in a stage, from the seed and number of each; the first stage's are those of any model."""
    purpose = "image" if stage == 0 else f"image, upscaler {stage}"
    return [torch.Generator().manual_seed(stream_seed(seed, purpose, number)) for seed, number in streams]


def share_text_encoder(system: System, upscaler: System) -> None:
    """Lets an upscaler that reads texts as the first stage does use its text encoder: one that is loaded reads for all."""
    base, own = system.recipe.text, upscaler.recipe.text
    if upscaler.text_encoder is None and base is not None and own is not None:
        if (base.encoder, base.folder) == (own.encoder, own.folder):
            upscaler.text_encoder = system.text_encoder


def conds_of_stages(system: System, cond: Cond, captions: Sequence[str] | None, count: int) -> list[Cond]:
    """What each stage is told of images whose likelihood is asked for: of classes and captions, what it was trained with.

    Args:
        system: a diffusion model of pixels, with its upscalers.
        cond: of `count` images: classes, and the sources of the first stage where its task has some.
        captions: one for each image, "" for none. None: the first stage's are in `cond` already, upscalers are told none.
        count: number of images.

    Raises:
        ConfigError, MissingExtraError, DataError, CheckpointError: as `System.with_text`.
    """
    cond = cond.to(system.device)
    conds = [system.with_captions(cond, captions) if captions is not None and system.takes_text else cond]
    for upscaler in system.upscalers:
        told = Cond(label=cond.label if upscaler.model.num_classes else None)
        if upscaler.takes_text:
            share_text_encoder(system, upscaler)
            told = upscaler.with_captions(told, [""] * count if captions is None else captions)
        conds.append(told)
    return conds


def need_no_first_source(system: System) -> None:
    """Refuses a likelihood to a cascade whose first stage has a task: its sources would be made of images of another size.

    Raises:
        ConfigError: it is such a one.
    """
    if system.upscalers and system.recipe.task is not None:
        raise ConfigError(
            "this cascade begins from source images, and what is measured is a likelihood of images without them, or of one "
            "stage alone. Give the models of its stages, one by one."
        )


def stage_nats(system: System, images: Tensor, conds: Sequence[Cond], *, levels: int) -> Tensor:
    """An estimate of an upper bound of the negative log-likelihood of images, nats float64 [B, stages]: its sum over the stages.

    Each stage of a cascade is given the true image before it: what draws the reduced image and then the image from that draws it
    in other ways, too, so that the sum of their nats is not below its own. Noise on sources is the least, t = 0, and a mean over
    that noise bounds the rest from above (Jensen). The noise is a function of the image alone: in another batch, or under another
    text, it is the same. Nothing is guided.

    Args:
        system: a diffusion model of pixels.
        images: uint8 [B, 3, H, W] at its size; of a cascade, at that of its last stage.
        conds: what each stage is told; the first with its sources, where its task has some.
        levels: of noise, drawn for each image and stage.

    Raises:
        ShapeError: images of another size.
        ConfigError: levels are below 1, or a condition is not what its stage was trained with.
    """
    sizes, nats = _pyramid(system, system.to_tensor(images)), []
    plain = ImageOptions(threshold="static")
    for number, (stage, here, cond) in enumerate(zip(stages_of(system), sizes, conds, strict=True)):
        model = _model(stage)
        if number:
            cond = replace(cond, source=sizes[number - 1])
        cond = cond.to(system.device)
        rng = [_noise_of(image, number) for image in images]
        level = None if model.source_process is None else torch.zeros(len(images), device=system.device)
        with torch.no_grad():
            seen = model.see(cond, (here.shape[2], here.shape[3]), level=level, rng=rng)
            predict = predictor(model, cond, seen, plain)
            bound = image_bound(
                predict, model.process, here.to(system.device), rng=rng, strata=levels, known=cond.known
            )
        nats.append(bound.nats.cpu())
    return torch.stack(nats, 1)


def image_nats(system: System, images: Tensor, conds: Sequence[Cond], *, levels: int) -> Tensor:
    """The sum of `stage_nats`, nats float64 [B]. Arguments as there."""
    return stage_nats(system, images, conds, levels=levels).sum(1)


def _after(on_step: OnStep, before: int, passes: int, total: int) -> OnStep:
    """Progress of a stage, whose steps take so many passes, as progress of all."""
    return lambda done, steps: on_step(before + passes * done // steps, total)


def _given_of(given: Given | None, number: int, factor: int) -> Given | None:
    """Upscalers draw a variation from noise: their source is the variation."""
    if given is None or (number and given.known is None):
        return None
    return given.reduced(factor)


def _pyramid(system: System, images: Tensor) -> list[Tensor]:
    """The images of every stage that end in these, each reduced from the next as upscalers' sources are in training."""
    sizes = [images]
    for upscaler in reversed(system.upscalers):
        assert isinstance(upscaler.recipe.task, SuperResolution), "checked where stages are joined"
        sizes.insert(0, reduce_area(sizes[0], upscaler.recipe.task.factor))
    return sizes


def _model(stage: System) -> ImageDenoiser:
    assert isinstance(stage.model, ImageDenoiser), "only diffusion models of pixels come here"
    return stage.model


def _noise_of(image: Tensor, stage: int) -> torch.Generator:
    digest = hashlib.sha256(image.cpu().contiguous().numpy().tobytes() + bytes([stage])).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def is_upscaler(system: System) -> bool:
    """Whether the model can follow another one in a cascade."""
    return isinstance(system.model, ImageDenoiser) and isinstance(system.recipe.task, SuperResolution)
