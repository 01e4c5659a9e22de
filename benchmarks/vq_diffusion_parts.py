"""What `vq_diffusion.py` measures, one function for each kind of record: JSON values, nothing written.

Images are drawn with the captions of the held-out images, in their order; all models and settings get the same captions and the
same seed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.released_sampler import draw_by_plan, exact_plan, masked_fractions, released_plan
from benchmarks.scene_captions import MOST_OBJECTS, Scene, caption, draw_scenes, parse
from benchmarks.scene_judge import load_judge
from benchmarks.scene_obedience import obedience
from benchmarks.timing import in_turn, ratio, spread
from rasterformer.autoregressive.noise import image_generators
from rasterformer.codecs.vq.codec import CodeCodec
from rasterformer.data.imageset import ImageSet
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.diffusion.image_denoiser import ImageDenoiser
from rasterformer.drawing.code_images import CodeOptions, decode, draw_codes, known_codes, window_of
from rasterformer.drawing.options import Precision
from rasterformer.evaluation.code_likelihood import evaluate_codes
from rasterformer.evaluation.frechet import frechet_distance
from rasterformer.evaluation.likelihood import mean_interval
from rasterformer.evaluation.seam import seam_contrast, shuffled_fills
from rasterformer.interfaces import Autoregressive, Cond, Known, SampleOptions
from rasterformer.nn.efficientnet_lite import efficientnet_lite_features
from rasterformer.system import System
from rasterformer.tokenizer import Tokenizer

Record = dict[str, Any]
BATCH = 50  # images drawn at a time
FORWARDS = 4  # passes by which drawing without caches is timed
FILLED_IMAGES = 100  # of the held-out ones
CAPTION_SEED = 2024


@dataclass(frozen=True)
class Model:
    """A run that is measured.

    Args:
        name: its folder.
        system: loaded.
        weights: hash of them.
    """

    name: str
    system: System
    weights: str

    @property
    def is_autoregressive(self) -> bool:
        """Or a diffusion model."""
        return isinstance(self.system.model, Autoregressive)

    @property
    def can_be_guided(self) -> bool:
        """Whether it has seen images without their condition."""
        return self.system.takes_text and self.system.recipe.model.drop_condition_prob > 0

    @property
    def tokenizer(self) -> Tokenizer:
        """Of its images."""
        assert self.system.tokenizer is not None, "a model over codes"
        return self.system.tokenizer

    @property
    def codec(self) -> CodeCodec:
        """Images <-> its codes."""
        assert isinstance(self.system.codec, CodeCodec), "a model over codes"
        return self.system.codec

    @property
    def description(self) -> str:
        """What it is, in few words, for tables."""
        config = self.system.recipe.model
        if self.is_autoregressive:
            return "autoregressive"
        text = ", pooled text" if config.pooled_text else ""
        return f"VQ-Diffusion, schedule {config.schedule}, {config.bound} bound{text}"

    def text_of(self, texts: Sequence[str]) -> list[str] | None:
        """What `System` takes as texts. None: the model has none."""
        return list(texts) if self.system.takes_text else None

    def cond(self, texts: Sequence[str]) -> Cond:
        """The condition of so many texts, as the model reads it."""
        return self.system.with_text(Cond(), list(texts), len(texts)) if self.system.takes_text else Cond()

    def sample(self, texts: Sequence[str], *, precision: Precision, **settings: Any) -> Tensor:
        """One image for each text, uint8 [N, 3, H, W]."""
        text = self.text_of(texts)
        drawn: Tensor = self.system.sample(
            len(texts), text=text, seed=0, as_tensor=True, precision=precision, batch_size=BATCH, **settings
        )
        return drawn


@dataclass(frozen=True)
class Subject:
    """The images that models are measured on.

    Args:
        name: of the set.
        held_out, training: in an order of their own.
        samples: drawn for each distance.
        precision: of drawing.
    """

    name: str
    held_out: ImageSet
    training: ImageSet
    samples: int
    precision: Precision

    def texts(self, count: int | None = None) -> list[str]:
        """Captions of the held-out images, from the beginning again where more are wanted; "" where there are none.

        None: as many as are drawn for each distance.
        """
        captions = self.held_out.captions or ("",) * len(self.held_out)
        return [captions[k % len(captions)] for k in range(self.samples if count is None else count)]

    @cached_property
    def real(self) -> dict[str, Tensor]:
        """Features of as many held-out and training images as are drawn, or of all of them."""
        sets = {"held-out": self.held_out, "training": self.training}
        return {name: efficientnet_lite_features(images.images(slice(self.samples))) for name, images in sets.items()}

    def distances(self, images: Tensor) -> dict[str, float]:
        """FD-EffLite0 to both."""
        features = efficientnet_lite_features(images)
        return {name: frechet_distance(features, real) for name, real in self.real.items()}


def likelihood(subject: Subject, model: Model, *, levels: int) -> Record:
    """Nats per code of the held-out images: exact, or an estimate of the bound from so many levels of noise each."""
    system, window = model.system, window_of(model.system)
    bound = system.likelihood_bound
    report = evaluate_codes(
        system,
        model.tokenizer,
        subject.held_out,
        model=model.name,
        use_labels=system.recipe.data.use_labels,
        task=None,
        window=None if window == model.codec.grid else window,
        bound=bound,
        levels=None if bound == "exact" else levels,
        used=model.codec.used,
        with_source=lambda batch, first: batch,
        with_text=(lambda cond, texts: system.with_text(cond, texts, len(texts))) if system.takes_text else None,
    )
    return {"codes": report.to_dict()}


def quality_references(subject: Subject, tokenizer: Tokenizer) -> Record:
    """Distances of real images and of reconstructions: what samples can reach."""
    originals = subject.held_out.images(slice(subject.samples))
    rest = subject.training.images(slice(subject.samples, 2 * subject.samples))
    found = {"reconstructions of held-out images": subject.distances(tokenizer.reconstruct(originals))}
    if len(rest) == subject.samples:
        found["other training images"] = subject.distances(rest)
    return {"rows": found, "images": len(originals)}


def quality(subject: Subject, model: Model, settings: Record) -> Record:
    """Distances of samples, and the seconds that they took."""
    began = time.perf_counter()
    drawn = model.sample(subject.texts(), precision=subject.precision, **settings)
    seconds = time.perf_counter() - began
    return {"fd_efflite0": subject.distances(drawn), "settings": settings, "images": len(drawn), "seconds": seconds}


def speed(
    subject: Subject,
    prior: Model | None,
    model: Model,
    batch_size: int,
    precision: Precision,
    *,
    steps: Sequence[int],
    rounds: int,
) -> Record:
    """Images a second of drawing codes, all contestants in turn; decoding, which is the same for all, beside it."""
    texts = subject.texts(batch_size)
    calls: dict[str, Callable[[], object]] = {}
    for one in (prior, model):
        if one is None:
            continue
        network = one.system.model if precision == "float32" else one.system.model.to_bfloat16()
        cond = one.cond(texts)

        def drawing(one: Model = one, network: Any = network, cond: Cond = cond, **more: Any) -> Tensor:
            return draw_codes(
                one.system,
                network,
                cond,
                None,
                one.codec.grid,
                options=SampleOptions(),
                more=CodeOptions(**more),
                rng=image_generators(0, batch_size),
            )

        if one.is_autoregressive:
            calls["autoregressive, cached"] = drawing
            x = torch.zeros(batch_size, *network.x_shape, dtype=torch.int64)

            def plain(network: Any = network, x: Tensor = x, cond: Cond = cond) -> None:
                for _ in range(FORWARDS):
                    network(x, cond)

            calls["autoregressive, without caches"] = plain
        else:
            for n in steps:
                calls[f"diffusion, {n} steps"] = partial(drawing, steps=n)
            if one.can_be_guided:
                name = f"diffusion, {steps[-2]} steps, guidance 2"
                calls[name] = partial(drawing, steps=steps[-2], guidance_scale=2.0)
    length = model.codec.x_shape[0]
    codes = model.codec.to_grid(torch.zeros(batch_size, *model.codec.x_shape, dtype=torch.int64))
    calls["decoding"] = lambda: decode(model.system, codes)
    with torch.inference_mode():
        seconds = in_turn(calls, rounds, seconds=0.0)
    if "autoregressive, without caches" in seconds:
        name = "autoregressive, without caches"
        seconds[name] = [value * length / FORWARDS for value in seconds[name]]
    of_prior = {name: values for name, values in seconds.items() if name.startswith("autoregressive")}
    return {
        "batch_size": batch_size,
        "precision": precision,
        "codes": length,
        "images_per_second": {name: spread([batch_size / s for s in values]) for name, values in seconds.items()},
        "times_as_fast": {
            name: {of: ratio(slower, values) for of, slower in of_prior.items()}
            for name, values in seconds.items()
            if name.startswith("diffusion")
        },
    }


def obedience_references(subject: Subject, tokenizer: Tokenizer, judge: Path) -> Record:
    """What the judge says of held-out images, and of them as the tokenizer gives them back: the most that can be reached."""
    images, eye = subject.held_out.images(slice(None)), load_judge(judge)
    assert subject.held_out.captions is not None, "scenes have captions"
    wanted = [parse(text) for text in subject.held_out.captions]
    sets = {"held-out images": images, "reconstructions": tokenizer.reconstruct(images)}
    report = judge.with_suffix(".json")  # what `scene_judge` wrote beside the weights
    return {
        "rows": {name: obedience(wanted, eye.scenes(shown)) for name, shown in sets.items()},
        "images": len(images),
        "judge": json.loads(report.read_text(encoding="utf-8")) if report.exists() else {},
    }


def obedience_of(subject: Subject, model: Model, judge: Path, settings: Record, *, captions: int) -> Record:
    """How often samples show what captions say, with pairs of shape and colour that training has, and with others."""
    eye, rows = load_judge(judge), {}
    for kind, wanted in wanted_scenes(captions).items():
        drawn = model.sample([caption(scene) for scene in wanted], precision=subject.precision, **settings)
        seen = eye.scenes(drawn)
        rows[kind] = obedience(wanted, seen)
        rows[f"{kind}, of another caption"] = obedience(others(wanted), seen)
    return {"rows": rows, "settings": settings, "images": captions}


def wanted_scenes(count: int) -> dict[str, list[Scene]]:
    """The captions that are drawn, as scenes: the same for every model."""
    rng = torch.Generator().manual_seed(CAPTION_SEED)
    return {
        kind: draw_scenes(count, held_out=kind == "held-out pairs", rng=rng)
        for kind in ("seen pairs", "held-out pairs")
    }


def others(wanted: list[Scene]) -> list[Scene]:
    """The scene of another caption with as many objects, for each."""
    shift = MOST_OBJECTS if len(wanted) > MOST_OBJECTS else 1
    return wanted[shift:] + wanted[:shift]


def stride_quality(subject: Subject, model: Model, kind: Literal["exact", "released"], skip: int) -> Record:
    """The share that is masked after each step of a plan, expected and found, and the distances of samples."""
    denoiser = model.system.model if subject.precision == "float32" else model.system.model.to_bfloat16()
    assert isinstance(denoiser, CodeDenoiser), "a diffusion model"
    plan = (exact_plan if kind == "exact" else released_plan)(denoiser.process.num_steps, skip)
    images, masked = draw_planned(model, denoiser, plan, subject.texts())
    return {
        "passes": len(plan),
        "masked_expected": masked_fractions(denoiser.process.mask, plan),
        "masked_found": masked,
        "fd_efflite0": subject.distances(images),
        "images": len(images),
    }


def draw_planned(
    model: Model, denoiser: CodeDenoiser, plan: list[tuple[int, int, int]], texts: Sequence[str]
) -> tuple[Tensor, list[float]]:
    """One image for each text, drawn down a plan, and the mean share that was masked after each step."""
    images: list[Tensor] = []
    shares = torch.zeros(len(plan), dtype=torch.float64)
    for first in range(0, len(texts), BATCH):
        part = texts[first : first + BATCH]
        rng = image_generators(0, len(part), first=first)
        x, masked = draw_by_plan(denoiser, model.cond(part), plan, rng)
        images.append(decode(model.system, model.codec.to_grid(x)))
        shares += torch.tensor(masked, dtype=torch.float64) * len(part) / len(texts)
    return torch.cat(images), shares.tolist()


def order_quality(subject: Subject, model: Model, order: str, steps: int) -> Record:
    """Distances of samples whose codes are revealed in an order."""
    return quality(subject, model, {"order": order, "steps": steps}) | {"order": order, "steps": steps}


def inpainting(subject: Subject, model: Model, *, steps: int) -> Record:
    """Fills of the middle of held-out images, beside fills that know nothing of their surroundings.

    Exchanged pixels are fills of other images, put in as they are. Exchanged codes are decoded together with the codes around
    them: the decoder then smooths the seam, so that what is left is the model's own.
    """
    count = min(FILLED_IMAGES, len(subject.held_out))
    originals, texts = subject.held_out.images(slice(count)), subject.texts(count)
    known = middle_missing(originals.shape[2], originals.shape[3])
    masks = known.expand(count, -1, -1)
    restored = fill(model, originals, known, texts, steps=steps, precision=subject.precision)
    codes, where = filled_codes(model, originals, masks, texts, steps=steps, precision=subject.precision)

    def put_in(codes: Tensor) -> Tensor:
        return torch.where(known, originals, decode(model.system, codes))

    fills = put_in(codes)
    shown = {
        "fills": fills,
        "exchanged codes": put_in(torch.where(where, codes, codes.roll(-(count // 2), 0))),
        "exchanged pixels": shuffled_fills(fills, masks),
        "reconstructions": put_in(model.codec.codes(originals)),
        "originals": originals,
    }
    contrast = {name: seam_contrast(images, masks) for name, images in shown.items()}
    gains = {name: contrast[name] - contrast["fills"] for name in ("exchanged codes", "exchanged pixels")}
    return {
        "images": count,
        "unknown_share": float((~known).double().mean()),
        "known_pixels_unchanged": bool(torch.where(known, restored == originals, True).all()),
        "seam_contrast": {name: float(values.mean()) for name, values in contrast.items()},
        "gain": {name: {"mean": float(gain.mean()), "interval": _interval(gain)} for name, gain in gains.items()},
        "steps": steps,
    }


def filled_codes(
    model: Model, images: Tensor, masks: Tensor, texts: Sequence[str], *, steps: int, precision: Precision
) -> tuple[Tensor, Tensor]:
    """The codes of images, those that are not known drawn: int64 [B, h, w]; and which were known, bool [B, h, w]."""
    system = model.system
    network = system.model if precision == "float32" else system.model.to_bfloat16()
    assert not isinstance(network, ImageDenoiser), "a model over codes"
    codes, where = known_codes(system, images, masks)
    x, given = model.codec.to_x(codes), model.codec.to_x(where)[..., 0]
    parts = []
    for first in range(0, len(images), BATCH):
        rows = slice(first, min(first + BATCH, len(images)))
        parts.append(
            draw_codes(
                system,
                network,
                model.cond(texts[rows]),
                None,
                model.codec.grid,
                options=SampleOptions(),
                more=CodeOptions(steps=steps),
                rng=image_generators(0, rows.stop - rows.start, first=first),
                known=Known(x[rows], given[rows]),
            )
        )
    return torch.cat(parts), where


def _interval(values: Tensor) -> list[float] | None:
    found = mean_interval(values)
    return None if found is None else list(found)


def middle_missing(height: int, width: int) -> Tensor:
    """bool [H, W]: False in the middle half of rows and columns."""
    known = torch.ones(height, width, dtype=torch.bool)
    known[height // 4 : height - height // 4, width // 4 : width - width // 4] = False
    return known


def fill(
    model: Model, images: Tensor, known: Tensor, texts: Sequence[str], *, steps: int, precision: Precision, n: int = 1
) -> Tensor:
    """What a model makes of images with a part missing, all under one mask: [B, 3, H, W], or [B, n, 3, H, W] where n > 1."""
    drawn: Tensor = model.system.complete(
        images,
        known=known,
        n=n,
        steps=steps,
        text=model.text_of(texts),
        seed=0,
        as_tensor=True,
        precision=precision,
        batch_size=BATCH,
    )
    return drawn[:, 0] if n == 1 else drawn
