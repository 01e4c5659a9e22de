"""What `imagen.py` measures, one function for each kind of record: JSON values, nothing written.

Distances are of images with the captions of the held-out images, in their order; obedience is of captions that are drawn evenly.
All models and settings get the same captions and the same seed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.imagen_contestants import BATCH, STEPS, Contestant
from benchmarks.imagen_intervals import answers, distance_with_interval, mean_with_interval
from benchmarks.mixing import mixed
from benchmarks.scene_captions import caption, class_of, parse
from benchmarks.scene_judge import load_judge
from benchmarks.scene_obedience import obedience
from benchmarks.timing import in_turn, spread
from benchmarks.vq_diffusion_parts import Model, Subject, middle_missing, others, wanted_scenes
from benchmarks.vq_diffusion_parts import likelihood as codes_likelihood
from rasterformer.batches import batches_of
from rasterformer.conditioning.resize import enlarge, reduce_area
from rasterformer.data.imageset import ImageSet
from rasterformer.drawing.options import DrawingOptions, Precision
from rasterformer.drawing.stages import conds_of_stages, passes_of, stage_nats, stages_of
from rasterformer.evaluation.frechet import frechet_distance
from rasterformer.evaluation.likelihood import bits_per_dim
from rasterformer.evaluation.seam import seam_contrast, shuffled_fills
from rasterformer.interfaces import Cond
from rasterformer.nn.efficientnet_lite import efficientnet_lite_features
from rasterformer.recipe_images import open_recipe_images
from rasterformer.system import System

Record = dict[str, Any]
KINDS = ("seen pairs", "held-out pairs")
RESAMPLINGS = (1, 4)
SCORED = 16  # images scored at a time


@dataclass(frozen=True)
class Scenes:
    """The images that models are measured on, in an order of their own.

    Args:
        held_out, training: captioned scenes, at the size of the models' images.
    """

    held_out: ImageSet
    training: ImageSet

    @classmethod
    def open(cls, system: System, data: str | None) -> Scenes:
        """Those that a model was trained on and measured by; or others of that kind."""
        held_out, training = (
            mixed(open_recipe_images(stages_of(system)[-1].recipe, split, path=data)) for split in ("test", "train")
        )
        return cls(held_out, training)

    def subject(self, images: int, precision: Precision) -> Subject:
        """For distances of so many images."""
        return Subject("scenes", self.held_out, self.training, images, precision)


def obedience_references(
    scenes: Scenes, contestants: Mapping[str, Contestant], judge: Path, *, captions: int
) -> Record:
    """What the judge says of held-out images, and of them at the best that models over codes and base models can do."""
    images, eye = scenes.held_out.images(slice(len(KINDS) * captions)), load_judge(judge)
    assert scenes.held_out.captions is not None, "scenes have captions"
    wanted = [parse(text) for text in scenes.held_out.captions[: len(images)]]
    report = judge.with_suffix(".json")  # what `scene_judge` wrote beside the weights
    return {
        "rows": {
            name: {"shares": obedience(wanted, eye.scenes(shown)), "saturated": saturated(shown)}
            for name, shown in _best_of(images, contestants).items()
        },
        "images": len(images),
        "judge": json.loads(report.read_text(encoding="utf-8")) if report.exists() else {},
    }


def obedience_of(
    contestant: Contestant, judge: Path, settings: Record, *, captions: int, precision: Precision
) -> Record:
    """How often samples show what captions say, with pairs of shape and colour that training has, and with others."""
    eye, rows, right, found = load_judge(judge), {}, {}, []
    began = time.perf_counter()
    for kind, wanted in wanted_scenes(captions).items():
        drawn = contestant.sample([caption(scene) for scene in wanted], precision=precision, **settings)
        found.append(drawn)
        seen = eye.scenes(drawn)
        rows[kind] = obedience(wanted, seen)
        rows[f"{kind}, of another caption"] = obedience(others(wanted), seen)
        right[kind] = answers(wanted, seen)
    return {
        "rows": rows,
        "right": right,
        "saturated": saturated(torch.cat(found)),
        "settings": settings,
        "images": captions,
        "seconds": time.perf_counter() - began,
    }


def saturated(images: Tensor) -> Record:
    """The share of sub-pixels that are 0 or 255: what clipping and too much guidance leave."""
    shares = ((images == 0) | (images == 255)).flatten(1).double().mean(1)
    mean, interval = mean_with_interval(shares)
    return {"share": mean, "interval": interval}


def quality_references(subject: Subject, contestants: Mapping[str, Contestant]) -> Record:
    """Distances of real images, and of the best that models over codes and base models can do."""
    originals = subject.held_out.images(slice(subject.samples))
    rest = subject.training.images(slice(subject.samples, 2 * subject.samples))
    shown = _best_of(originals, contestants)
    del shown["held-out images"]  # at a distance of 0
    if len(rest) == subject.samples:
        shown = {"other training images": rest, **shown}
    return {"rows": {name: distances(subject, images) for name, images in shown.items()}, "images": len(originals)}


def quality(subject: Subject, contestant: Contestant, settings: Record) -> Record:
    """Distances of samples, and the seconds that drawing took."""
    began = time.perf_counter()
    drawn = contestant.sample(subject.texts(), precision=subject.precision, **settings)
    seconds = time.perf_counter() - began
    return {
        "fd_efflite0": distances(subject, drawn),
        "saturated": saturated(drawn),
        "settings": settings,
        "images": len(drawn),
        "seconds": seconds,
    }


def sampler_quality(subject: Subject, contestant: Contestant, sampler: str, steps: int) -> Record:
    """Distances of samples by one sampler in so many steps of each stage, and the passes of each stage."""
    settings = {"sampler": sampler, "steps": steps}
    passes = passes_of(contestant.system, DrawingOptions(**settings).pixels)  # type: ignore[arg-type]
    return quality(subject, contestant, settings) | {"sampler": sampler, "steps": steps, "passes": passes}


def source_noise_quality(subject: Subject, contestant: Contestant, noise: float, *, is_drawn: bool) -> Record:
    """Distances of samples whose upscaler sees its source with some noise: sources that were drawn, or reduced images."""
    settings: Record = {"steps": STEPS, "source_noise": noise}
    if is_drawn:
        found = quality(subject, contestant, settings)
    else:
        originals = subject.held_out.images(slice(subject.samples))
        small = reduce_area(originals, _factor(contestant))
        began = time.perf_counter()
        drawn = contestant.system.upscale(
            small,
            text=contestant.text_of(subject.texts(len(small))),
            seed=0,
            as_tensor=True,
            precision=subject.precision,
            **settings,
        )
        seconds = time.perf_counter() - began
        images = torch.cat(drawn)
        found = {"fd_efflite0": distances(subject, images), "images": len(images), "seconds": seconds}
    return found | {"source_noise": noise, "is_drawn": is_drawn, "settings": settings}


def distances(subject: Subject, images: Tensor) -> Record:
    """FD-EffLite0 to held-out images, with an interval, and to training images."""
    features = efficientnet_lite_features(images)
    held_out, interval = distance_with_interval(features, subject.real["held-out"])
    return {
        "held-out": held_out,
        "interval": interval,
        "training": frechet_distance(features, subject.real["training"]),
    }


def pixel_likelihood(
    scenes: Scenes, contestant: Contestant, *, images: int, levels: int, with_captions: bool
) -> Record:
    """Bits/dim of held-out images, exact or an upper bound, image by image; of a cascade stage by stage."""
    system, held_out = contestant.system, scenes.held_out
    pixels = held_out.images(slice(images))
    captions = None
    if system.takes_text:
        assert held_out.captions is not None, "scenes have captions"
        captions = list(held_out.captions[: len(pixels)]) if with_captions else [""] * len(pixels)
    parts: dict[str, list[Tensor]] = {}
    for rows in batches_of(len(pixels), SCORED):
        said = None if captions is None else captions[rows]
        if contestant.is_cascade:
            found = nats_of_stages(system, pixels[rows], said, levels=levels)
        else:
            label = None
            if system.model.num_classes:
                assert held_out.captions is not None, "scenes have captions"
                label = torch.tensor(
                    [system.class_names.index(class_of(text)) for text in held_out.captions[: len(pixels)][rows]]
                )
            found = {"model": system.image_nats(pixels[rows], Cond(label=label))}
        for name, nats in found.items():
            parts.setdefault(name, []).append(nats)
    dims = system.num_dims
    of_stage = {name: bits_per_dim(torch.cat(nats), dims) for name, nats in parts.items()}
    total = torch.stack(list(of_stage.values())).sum(0)
    mean, interval = mean_with_interval(total)
    return {
        "bits_per_dim": mean,
        "interval": interval,
        "bound": system.likelihood_bound,
        "given": "classes" if system.model.num_classes else "captions" if system.takes_text and with_captions else None,
        "stages": {name: float(bits.mean()) for name, bits in of_stage.items()},
        "levels": system.levels(levels if system.is_diffusion else None),
        "images": len(pixels),
        "num_dims": dims,
        "bits_per_dim_of_images": [round(value, 6) for value in total.tolist()],
    }


def nats_of_stages(system: System, images: Tensor, captions: Sequence[str] | None, *, levels: int) -> dict[str, Tensor]:
    """The bound of each stage of a cascade, nats float64 [B]: of the reduced image, then of each image given the one before."""
    conds = conds_of_stages(system, Cond(), captions, len(images))
    nats = stage_nats(system, images, conds, levels=levels)  # [B, stages]
    sides = [stage.recipe.data.image_size for stage in stages_of(system)]
    names = [f"{f'upscaler {number}' if number else 'base'}, {side}x{side}" for number, side in enumerate(sides)]
    return dict(zip(names, nats.unbind(1), strict=True))


def code_likelihood(scenes: Scenes, contestant: Contestant, *, images: int, levels: int) -> Record:
    """Nats per code of held-out images, given their captions: exact, or an upper bound."""
    subject = Subject("scenes", first_of(scenes.held_out, images), scenes.training, images, "float32")
    return codes_likelihood(subject, Model(contestant.role, contestant.system, contestant.weights), levels=levels)


def first_of(images: ImageSet, count: int) -> ImageSet:
    """The first so many."""
    count = min(count, len(images))
    return replace(
        images,
        num_images=count,
        pixels=images.images(slice(count)),
        labels=None if images.labels is None else images.labels[:count],
        captions=None if images.captions is None else images.captions[:count],
        names=images.names[:count],
    )


def speed(contestants: Mapping[str, Contestant], texts: Sequence[str], *, rounds: int) -> Record:
    """Images a second from text to picture, plain, of all in both precisions in turn; as many at a time as there are texts."""
    calls = {
        (role, precision): (
            lambda one=one, precision=precision: one.sample(texts, precision=precision, **one.settings())
        )
        for role, one in contestants.items()
        for precision in ("float32", "bfloat16")
    }
    seconds = in_turn({" ".join(name): call for name, call in calls.items()}, rounds, seconds=0.0)
    found: Record = {}
    for role, precision in calls:
        found.setdefault(role, {})[precision] = spread([len(texts) / value for value in seconds[f"{role} {precision}"]])
    return {"batch_size": len(texts), "images_per_second": found, "steps": STEPS}


def inpainting(scenes: Scenes, contestant: Contestant, *, images: int, precision: Precision) -> Record:
    """Fills of the middle of held-out images at 1 and 4 resamplings, beside fills of other images put in their place."""
    originals = scenes.held_out.images(slice(images))
    texts = scenes.subject(len(originals), precision).texts()
    known = middle_missing(originals.shape[2], originals.shape[3])
    masks = known.expand(len(originals), -1, -1)
    shown, unchanged, seconds = {}, True, {}
    for times in RESAMPLINGS:
        began = time.perf_counter()
        fills = fill(contestant, originals, known, texts, resamplings=times, precision=precision)
        seconds[_resampled(times)] = time.perf_counter() - began
        shown[_resampled(times)] = fills
        unchanged = unchanged and bool(torch.where(known, fills == originals, True).all())
        if len(originals) > 1:
            shown[f"{_resampled(times)}, exchanged"] = shuffled_fills(fills, masks)
    shown["originals"] = originals
    contrast = {name: seam_contrast(pictures, masks) for name, pictures in shown.items()}
    compared = [(_resampled(times), f"{_resampled(times)}, exchanged") for times in RESAMPLINGS]
    compared.append((_resampled(RESAMPLINGS[-1]), _resampled(RESAMPLINGS[0])))
    return {
        "images": len(originals),
        "unknown_share": float((~known).double().mean()),
        "known_pixels_unchanged": unchanged,
        "seam_contrast": {name: float(values.mean()) for name, values in contrast.items()},
        "gains": [
            {"of": a, "over": b, **_figure(contrast[b] - contrast[a])}
            for a, b in compared
            if a in contrast and b in contrast
        ],
        "seconds": seconds,
        "steps": STEPS,
    }


def fill(
    contestant: Contestant,
    images: Tensor,
    known: Tensor,
    texts: Sequence[str],
    *,
    resamplings: int,
    precision: Precision,
) -> Tensor:
    """What a cascade makes of images with a part missing, all under one mask: [B, 3, H, W]."""
    drawn: Tensor = contestant.system.complete(
        images,
        known=known,
        text=contestant.text_of(texts),
        seed=0,
        as_tensor=True,
        precision=precision,
        steps=STEPS,
        resamplings=resamplings,
    )
    return drawn[:, 0]


def _best_of(images: Tensor, contestants: Mapping[str, Contestant]) -> dict[str, Tensor]:
    """Images themselves, through the tokenizers, and by bilinear enlargement of what base models see: a ceiling and a floor."""
    found = {"held-out images": images}
    tokenizers: dict[str, str] = {}  # fingerprint -> role
    for role, one in contestants.items():
        tokenizer = one.system.tokenizer
        if tokenizer is not None and tokenizer.fingerprint not in tokenizers:
            tokenizers[tokenizer.fingerprint] = role
            found[f"reconstructions by the tokenizer of `{role}`"] = torch.cat(
                [tokenizer.reconstruct(part) for part in images.split(BATCH)]
            )
    factors = {_factor(one) for one in contestants.values() if one.is_cascade}
    for factor in sorted(factors):
        side = images.shape[2] // factor
        found[f"reduced to {side}x{side} and enlarged without a model"] = enlarge(
            reduce_area(images, factor), factor, "bilinear"
        )
    return found


def _factor(contestant: Contestant) -> int:
    """By how much a cascade's first images are smaller than its last."""
    return contestant.system.image_size // contestant.system.recipe.data.image_size


def _figure(values: Tensor) -> Record:
    mean, interval = mean_with_interval(values)
    return {"mean": mean, "interval": interval}


def _resampled(times: int) -> str:
    return f"fills, {times} resampling{'s' * (times > 1)}"
