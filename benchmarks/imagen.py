"""Imagen beside the other systems on the same captions and images: text, likelihood, in-painting, samplers, and one table of all.

    python -m benchmarks imagen --judge judge.safetensors --unet RUN --upscaler RUN [--pooled RUN] [--dit RUN] [--pixels RUN]
        [--prior RUN] [--vq-diffusion RUN] [--part PART ...] [--images N] [--precision bfloat16] [--data DIR] [--again] [--render]

Measures finished runs of `rasterformer train` and trains nothing. Each part writes a JSON of its own, so that parts can be
measured in separate processes, each with its own --images; the page is made of all that are there. Whatever has been measured of
the same weights in the same way is not measured again, without --again: a run that was stopped goes on. A part that needs a run
which was not given leaves out what it cannot measure, and says so.

    part           what is measured                                                            --images, if not given
    runs           parameters and minutes of training, for the tables                          -
    guidance       obedience and saturation of --unet by guidance scale and thresholding       180 captions of each kind
    text           the same of --pooled at two scales                                          180
    denoiser       the same of --dit at two scales                                             180
    codes          the same of --prior and --vq-diffusion at two scales                        180
    quality        FD-EffLite0 of all, plain and guided                                        300
    samplers       FD-EffLite0 of --unet by sampler and steps                                  300
    source_noise   FD-EffLite0 of --unet by the noise that the upscaler's source has           300
    likelihood     bits/dim of pixels, nats of codes, exact or bounds                          200
    speed          images a second of all, one and sixteen at a time (--rounds)                -
    inpainting     seams of fills by --unet at 1 and 4 resamplings                             100
    pictures       sheets                                                                      8 rows
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import render
from benchmarks.imagen_contestants import CASCADES, TITLES, Contestant, add_runs, load_contestants
from benchmarks.imagen_parts import (
    Scenes,
    code_likelihood,
    inpainting,
    obedience_of,
    obedience_references,
    pixel_likelihood,
    quality,
    quality_references,
    sampler_quality,
    source_noise_quality,
    speed,
)
from benchmarks.imagen_pictures import Drawing, sheets, write_sheet
from benchmarks.record import PICTURES, RESULTS
from benchmarks.vq_diffusion import Notebook
from rasterformer.drawing.stages import stages_of
from rasterformer.errors import RasterformerError

Record = dict[str, Any]
IMAGES = {  # part -> how many, if nothing is said
    "guidance": 180,
    "text": 180,
    "denoiser": 180,
    "codes": 180,
    "quality": 300,
    "samplers": 300,
    "source_noise": 300,
    "likelihood": 200,
    "inpainting": 100,
    "pictures": 8,
}
SCALES = (1.0, 2.0, 4.0, 8.0)
COMPARED = (1.0, 4.0)  # scales at which systems are put side by side
THRESHOLDS = ("static", "none")  # besides dynamic thresholding, which is the default
SAMPLERS = ("ancestral", "ddim", "dpmpp_2m", "heun")
STEPS = (5, 10, 20, 50)
SOURCE_NOISES = (0.0, 0.1, 0.3)
BATCHES = (1, 16)
FOLDER = "imagen"


@dataclass(frozen=True)
class Measuring:
    """What every part is given.

    Args:
        contestants: by role.
        scenes: the images.
        notebook: of the part.
        options: of the command line.
        images: how many.
    """

    contestants: dict[str, Contestant]
    scenes: Scenes
    notebook: Notebook
    options: argparse.Namespace
    images: int

    def needs(self, *roles: str) -> list[Contestant]:
        """Those of some roles that were given; the others are named."""
        for role in roles:
            if role not in self.contestants:
                print(f"{TITLES[role]} is left out: no finished --{role.replace('_', '-')}", flush=True)
        return [self.contestants[role] for role in roles if role in self.contestants]

    def how(self, one: Contestant, **more: Any) -> Record:
        """What makes a measurement another one."""
        return {"weights": one.weights, "images": self.images, "precision": self.options.precision, **more}


def main(arguments: list[str]) -> None:
    """Measures the parts asked for and writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks imagen",
        description=__doc__.partition("\n\n    python")[0],
        epilog=__doc__.partition("\n\n")[2].partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_runs(parser)
    parser.add_argument("--set", default="scenes64", help="name of the images: their place in the JSON; %(default)s")
    parser.add_argument("--judge", type=Path, help="weights of the judge; without them obedience is left out")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS), help="default: all")
    parser.add_argument("--data", help="images; default: those that the runs were trained on")
    parser.add_argument("--images", type=int, help="images, captions or rows of each measurement; default: see below")
    parser.add_argument(
        "--levels", type=int, default=20, help="likelihood: levels of noise for each image; %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=3, help="speed: measurements of each, in turn; %(default)s")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="of drawing; %(default)s"
    )
    parser.add_argument("--again", action="store_true", help="measure what has been measured, too")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder for the pictures")
    parser.add_argument("--render", action="store_true", help="write docs/results.md at the end")
    options = parser.parse_args(arguments)
    for name, least in (("images", 2), ("levels", 1), ("rounds", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"--{name} {value} must be at least {least}.")
    try:
        contestants = load_contestants(options)
        scenes = Scenes.open(next(iter(contestants.values())).system, options.data)
        for part in options.part:
            notebook = Notebook(options.results / FOLDER / f"{part}.json", options.set, options.again)
            count = IMAGES.get(part, 0) if options.images is None else options.images
            PARTS[part](Measuring(contestants, scenes, notebook, options, count))
    except RasterformerError as error:
        sys.exit(str(error))
    if options.render:
        render.main([])


def _runs(here: Measuring) -> None:
    for role, one in here.contestants.items():
        here.notebook.note((role,), {"weights": one.weights}, one.record)


def _guidance(here: Measuring) -> None:
    """The main cascade at every scale; and, at the largest, by other ways to keep values in range."""
    if (judge := _judge(here)) is None:
        return
    weights = [one.weights for one in here.contestants.values()]
    here.notebook.note(
        ("references",),
        {"weights": weights, "judge": _hash(judge), "images": here.images},
        lambda: obedience_references(here.scenes, here.contestants, judge, captions=here.images),
    )
    for one in here.needs("unet"):
        for scale in SCALES if one.can_be_guided else SCALES[:1]:
            _obedience(here, one, judge, scale)
        if one.can_be_guided:
            for threshold in THRESHOLDS:
                _obedience(here, one, judge, SCALES[-1], threshold=threshold)


def _compared(*roles: str) -> Callable[[Measuring], None]:
    """Obedience of some roles at the scales at which systems are put side by side."""

    def measure(here: Measuring) -> None:
        if (judge := _judge(here)) is None:
            return
        for one in here.needs(*roles):
            for scale in COMPARED if one.can_be_guided else COMPARED[:1]:
                _obedience(here, one, judge, scale)

    return measure


def _obedience(here: Measuring, one: Contestant, judge: Path, scale: float, **more: str) -> None:
    settings, precision = one.settings(scale, **more), here.options.precision
    here.notebook.note(
        (one.role, ", ".join([f"guidance {scale:g}", *more.values()])),
        here.how(one, judge=_hash(judge), settings=settings),
        lambda: obedience_of(one, judge, settings, captions=here.images, precision=precision),
    )


def _quality(here: Measuring) -> None:
    subject = here.scenes.subject(here.images, here.options.precision)
    weights = [one.weights for one in here.contestants.values()]
    here.notebook.note(
        ("references",),
        {"weights": weights, "images": here.images},
        lambda: quality_references(subject, here.contestants),
    )
    for one in here.needs(*TITLES):
        for scale in COMPARED if one.can_be_guided else COMPARED[:1]:
            settings = one.settings(scale)
            here.notebook.note(
                (one.role, f"guidance {scale:g}"),
                here.how(one, settings=settings),
                lambda one=one, settings=settings: quality(subject, one, settings),  # type: ignore[misc]
            )


def _samplers(here: Measuring) -> None:
    subject = here.scenes.subject(here.images, here.options.precision)
    for one in here.needs("unet"):
        for steps in STEPS:
            for sampler in SAMPLERS:
                here.notebook.note(
                    (f"{sampler}, {steps} steps",),
                    here.how(one, sampler=sampler, steps=steps),
                    lambda one=one, sampler=sampler, steps=steps: sampler_quality(  # type: ignore[misc]
                        subject, one, sampler, steps
                    ),
                )


def _source_noise(here: Measuring) -> None:
    """Up to the noise that the upscaler has met in training."""
    subject = here.scenes.subject(here.images, here.options.precision)
    for one in here.needs("unet"):
        most = max(getattr(upscaler.model, "most_source_noise", 0.0) for upscaler in stages_of(one.system)[1:])
        noises = [noise for noise in SOURCE_NOISES if noise <= most]
        if most == 0:
            print("source_noise is left out: the upscaler was trained without noise on its sources", flush=True)
            continue
        for is_drawn in (True, False):
            for noise in noises:
                here.notebook.note(
                    (f"{'drawn' if is_drawn else 'true'} sources, noise {noise:g}",),
                    here.how(one, source_noise=noise, is_drawn=is_drawn),
                    lambda one=one, noise=noise, is_drawn=is_drawn: source_noise_quality(  # type: ignore[misc]
                        subject, one, noise, is_drawn=is_drawn
                    ),
                )


def _likelihood(here: Measuring) -> None:
    """Of cascades with and without the captions: a model without any knows as little as the latter."""
    levels = here.options.levels
    for one in here.needs("pixels", *CASCADES):
        hides = one.is_cascade and one.can_be_guided
        for with_captions in (True, False) if hides else (True,):
            what = ("with captions" if with_captions else "without captions") if one.system.takes_text else "plain"
            here.notebook.note(
                ("pixels", one.role, what),
                {"weights": one.weights, "images": here.images, "levels": levels if one.is_cascade else None},
                lambda one=one, with_captions=with_captions: pixel_likelihood(  # type: ignore[misc]
                    here.scenes, one, images=here.images, levels=levels, with_captions=with_captions
                ),
            )
    for one in here.needs("prior", "vq_diffusion"):
        here.notebook.note(
            ("codes", one.role),
            {"weights": one.weights, "images": here.images, "levels": levels if one.system.is_diffusion else None},
            lambda one=one: code_likelihood(here.scenes, one, images=here.images, levels=levels),  # type: ignore[misc]
        )


def _speed(here: Measuring) -> None:
    weights = [one.weights for one in here.contestants.values()]
    for batch_size in BATCHES:
        texts = here.scenes.subject(batch_size, "float32").texts()
        here.notebook.note(
            (f"batch {batch_size}",),
            {"weights": weights, "rounds": here.options.rounds},
            lambda texts=texts: speed(here.contestants, texts, rounds=here.options.rounds),  # type: ignore[misc]
        )


def _inpainting(here: Measuring) -> None:
    for one in here.needs("unet"):
        here.notebook.note(
            (one.role,),
            here.how(one),
            lambda one=one: inpainting(  # type: ignore[misc]
                here.scenes, one, images=here.images, precision=here.options.precision
            ),
        )


def _pictures(here: Measuring) -> None:
    for one in here.needs("unet"):
        drawing = Drawing(here.scenes, here.contestants, one, here.images, here.options.precision)
        for name, draw in sheets(drawing).items():
            file = here.options.pictures / f"imagen-{here.options.set}-{name}.png"
            weights = [each.weights for each in here.contestants.values()] if name == "systems" else one.weights
            here.notebook.note(
                (name,),
                {"weights": weights, "images": here.images, "precision": here.options.precision},
                lambda draw=draw, file=file: write_sheet(draw(), file),  # type: ignore[misc]
            )


def _judge(here: Measuring) -> Path | None:
    judge: Path | None = here.options.judge
    if judge is None:
        print("obedience is left out: no --judge", flush=True)
    return judge


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


PARTS: dict[str, Callable[[Measuring], None]] = {
    "runs": _runs,
    "guidance": _guidance,
    "text": _compared("pooled"),
    "denoiser": _compared("dit"),
    "codes": _compared("prior", "vq_diffusion"),
    "quality": _quality,
    "samplers": _samplers,
    "source_noise": _source_noise,
    "likelihood": _likelihood,
    "speed": _speed,
    "inpainting": _inpainting,
    "pictures": _pictures,
}
