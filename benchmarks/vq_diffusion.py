"""VQ-Diffusion beside an autoregressive model over the same codes: likelihood, quality, speed, obedience, strides, orders, fills.

    python -m benchmarks vq_diffusion --runs FOLDER --set scenes64 --prior RUN --models RUN [RUN ...] [--pooled RUN]
        [--judge judge.safetensors] [--part likelihood quality speed obedience strides orders inpainting pictures]
        [--data DIR] [--samples 300] [--precision bfloat16] [--again] [--render]

Measures finished runs of `rasterformer train` in FOLDER and trains nothing. The first of --models is the one that --pooled,
obedience, in-painting and pictures are about; strides and orders take the first that only masks. Whatever has been measured
of the same weights in the same way is not measured again, without --again: a run that was stopped goes on. Obedience needs
the judge (`python -m benchmarks.scene_judge`) and captions of scenes64. With 300 samples of 256 codes by 5 million parameters,
in bfloat16 on one core: likelihood 10 minutes a model, quality 30 a model, speed 20, obedience 15 a model, strides 10,
orders 15, the rest 5.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import render
from benchmarks.mixing import mixed
from benchmarks.record import PICTURES, RESULTS, circumstances, write_json
from benchmarks.runs import run_record
from benchmarks.vq_diffusion_parts import (
    Model,
    Subject,
    inpainting,
    likelihood,
    obedience_of,
    obedience_references,
    order_quality,
    quality,
    quality_references,
    speed,
    stride_quality,
)
from benchmarks.vq_diffusion_pictures import draw_pictures
from benchmarks.vqgan import finished, without_folders
from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.errors import RasterformerError
from rasterformer.loading import load
from rasterformer.recipe_images import open_recipe_images

Record = dict[str, Any]
PARTS = ("likelihood", "quality", "speed", "obedience", "strides", "orders", "inpainting", "pictures")
STEPS = (100, 50, 25, 10)
FEW_STEPS = (25, 10)
SCALES = (1.0, 2.0, 4.0)
SKIPS = (3, 9)  # of 100 levels: 26 and 11 passes
ORDERS = ("posterior", "random", "purity", "confidence")
BATCHES = (1, 16)
PASSES = 25  # of diffusion models where nothing else is said
NAME = "vq_diffusion.json"


def main(arguments: list[str]) -> None:
    """Measures the parts asked for and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks vq_diffusion", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--set", required=True, help="name of the images, such as scenes64: its place in the JSON")
    parser.add_argument("--prior", help="run of the autoregressive model")
    parser.add_argument("--models", nargs="+", default=[], help="runs of diffusion models, the main one first")
    parser.add_argument("--pooled", help="run that sees pooled text")
    parser.add_argument("--judge", type=Path, help="weights of the judge; without them obedience is left out")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS, help="default: all")
    parser.add_argument("--data", help="images; default: those that the runs were trained on")
    parser.add_argument("--samples", type=int, help="images drawn for each distance; default: as many as are held out")
    parser.add_argument(
        "--captions", type=int, default=180, help="obedience: of each kind, seen and held-out; %(default)s"
    )
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
    for name in ("samples", "captions", "levels", "rounds"):
        value, least = getattr(options, name), 2 if name == "samples" else 1
        if value is not None and value < least:
            parser.error(f"--{name} {value} must be at least {least}.")
    try:
        _measure(options)
    except RasterformerError as error:
        sys.exit(str(error))
    if options.render:
        render.main([])


@dataclass(frozen=True)
class Notebook:
    """The JSON of one set of images: what is there of the same weights, measured in the same way, is not measured again.

    Args:
        file: of all sets.
        name: of the set.
        again: measure nonetheless.
    """

    file: Path
    name: str
    again: bool = False

    def note(self, path: tuple[str, ...], how: Record, measure: Callable[[], Record]) -> None:
        """Calls `measure` and writes what it returns at `path`, where nothing stands that was measured like `how`."""
        said = " ".join(path)
        if not self.again and self._found(path).get("how") == without_folders(how):
            print(f"{said}: measured already", flush=True)
            return
        print(f"{said} ...", flush=True)
        record = measure()
        content: Record = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
        place = content.setdefault(self.name, {})
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = without_folders({**record, "how": how, **circumstances()})
        write_json(self.file, content)

    def _found(self, path: tuple[str, ...]) -> Record:
        place: Any = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
        for part in (self.name, *path):
            place = place.get(part, {})
        assert isinstance(place, dict), "a record is a dict"
        return place


def _measure(options: argparse.Namespace) -> None:
    """All parts, one measurement after the other."""
    names = [name for name in (options.prior, *options.models, options.pooled) if name is not None]
    models: dict[str, Model] = {}
    for name in dict.fromkeys(names):
        if (folder := finished(options.runs, name)) is not None:
            models[name] = Model(name, load(folder), weights_of(folder))
    if not models:
        sys.exit("No finished run was given: name some by --prior and --models.")
    first = next(iter(models.values())).system
    held_out, training = (
        mixed(open_recipe_images(first.recipe, split, path=options.data)) for split in ("test", "train")
    )
    subject = Subject(options.set, held_out, training, options.samples or len(held_out), options.precision)
    notebook = Notebook(options.results / NAME, options.set, options.again)
    for name, model in models.items():
        role = "prior" if name == options.prior else "pooled" if name == options.pooled else "diffusion"
        record = {"role": role, "description": model.description, "run": run_record(model.system)}
        notebook.note(("runs", name), {"weights": model.weights}, lambda record=record: record)  # type: ignore[misc]
    diffusing = [models[name] for name in options.models if name in models]
    masking = [model for model in diffusing if _denoiser(model).process.masks_only]
    prior = models.get(options.prior) if options.prior else None
    for part in options.part:
        if part == "likelihood":
            _likelihood(notebook, subject, [*([prior] if prior else []), *diffusing], options)
        elif part == "quality":
            _quality(notebook, subject, prior, diffusing)
        elif part == "speed" and diffusing:
            _speed(notebook, subject, prior, diffusing[0], options)
        elif part == "obedience":
            pooled = models.get(options.pooled) if options.pooled else None
            _obedience(notebook, subject, [diffusing[0] if diffusing else None, pooled, prior], options)
        elif part in ("strides", "orders") and not masking:
            print(f"{part} is left out: no model that only masks", flush=True)
        elif part == "strides":
            _strides(notebook, subject, masking[0])
        elif part == "orders":
            _orders(notebook, subject, masking[0])
        elif part == "inpainting" and diffusing:
            how = _how(subject, diffusing[0], steps=PASSES)
            notebook.note(("inpainting",), how, lambda: inpainting(subject, diffusing[0], steps=PASSES))
        elif part == "pictures" and diffusing:
            how = _how(subject, diffusing[0], prior=None if prior is None else prior.weights)
            notebook.note(
                ("pictures",),
                how,
                lambda: draw_pictures(subject, diffusing[0], prior, masking[0] if masking else None, options.pictures),
            )
        else:
            print(f"{part} is left out: no diffusion model", flush=True)


def _likelihood(notebook: Notebook, subject: Subject, models: list[Model], options: argparse.Namespace) -> None:
    for model in models:
        how = {"weights": model.weights, "images": len(subject.held_out), "levels": options.levels}
        notebook.note(
            ("likelihood", model.name),
            how,
            lambda model=model: likelihood(subject, model, levels=options.levels),  # type: ignore[misc]
        )


def _quality(notebook: Notebook, subject: Subject, prior: Model | None, diffusing: list[Model]) -> None:
    """Plain samples at each number of steps; then, at 25 steps and of the prior, what people change."""
    some = prior or diffusing[0]
    how = {"samples": subject.samples, "tokenizer": some.tokenizer.fingerprint}
    notebook.note(("quality", "references"), how, lambda: quality_references(subject, some.tokenizer))
    changes: list[Record] = [{"guidance_scale": 2.0}, {"top_p": 0.86}]
    wanted: list[tuple[Model, Record]] = []
    if prior is not None:
        wanted += [(prior, {}), *((prior, change) for change in changes)]
    for model in diffusing:
        wanted += [(model, {"steps": steps}) for steps in STEPS]
        wanted += [(model, {"steps": PASSES, **change}) for change in changes]
    for model, settings in wanted:
        if settings.get("guidance_scale", 1.0) != 1.0 and not model.can_be_guided:
            continue
        label = ", ".join(f"{name} {value:g}" for name, value in settings.items()) or "plain"
        notebook.note(
            ("quality", model.name, label),
            _how(subject, model, **settings),
            lambda model=model, settings=settings: quality(subject, model, settings),  # type: ignore[misc]
        )


def _speed(
    notebook: Notebook, subject: Subject, prior: Model | None, model: Model, options: argparse.Namespace
) -> None:
    for batch_size in BATCHES:
        for precision in ("float32", "bfloat16"):
            how = {
                "weights": [one.weights for one in (prior, model) if one is not None],
                "rounds": options.rounds,
                "steps": list(STEPS),
            }
            notebook.note(
                ("speed", f"batch {batch_size}, {precision}"),
                how,
                lambda batch_size=batch_size, precision=precision: speed(  # type: ignore[misc]
                    subject, prior, model, batch_size, precision, steps=STEPS, rounds=options.rounds
                ),
            )


def _obedience(notebook: Notebook, subject: Subject, models: list[Model | None], options: argparse.Namespace) -> None:
    if options.judge is None:
        print("obedience is left out: no --judge", flush=True)
        return
    judge, judge_hash = options.judge, _hash(options.judge)
    main_model, _, prior = models
    some = main_model or prior
    assert some is not None, "there is a run"
    how = {"judge": judge_hash, "tokenizer": some.tokenizer.fingerprint}
    notebook.note(("obedience", "references"), how, lambda: obedience_references(subject, some.tokenizer, judge))
    for model in models:
        if model is None:
            continue
        for scale in SCALES if model.can_be_guided else SCALES[:1]:
            steps = {} if model.is_autoregressive else {"steps": PASSES}
            settings = {**steps, "guidance_scale": scale}
            notebook.note(
                ("obedience", model.name, f"{scale:g}"),
                {**_how(subject, model, **settings), "judge": judge_hash, "captions": options.captions},
                lambda model=model, settings=settings: obedience_of(  # type: ignore[misc]
                    subject, model, judge, settings, captions=options.captions
                ),
            )


def _strides(notebook: Notebook, subject: Subject, model: Model) -> None:
    for skip in SKIPS:
        for kind in ("exact", "released"):
            notebook.note(
                ("strides", model.name, f"{kind}, skip {skip}"),
                _how(subject, model, skip=skip, kind=kind),
                lambda kind=kind, skip=skip: stride_quality(subject, model, kind, skip),  # type: ignore[misc]
            )


def _orders(notebook: Notebook, subject: Subject, model: Model) -> None:
    for steps in FEW_STEPS:
        for order in ORDERS:
            notebook.note(
                ("orders", model.name, f"{order}, {steps} steps"),
                _how(subject, model, order=order, steps=steps),
                lambda order=order, steps=steps: order_quality(subject, model, order, steps),  # type: ignore[misc]
            )


def weights_of(folder: Path) -> str:
    """The beginning of the hash of a run's weights: another training is another model."""
    return _hash(folder / "model" / "model.safetensors")


def _how(subject: Subject, model: Model, **more: object) -> Record:
    return {"weights": model.weights, "samples": subject.samples, "precision": subject.precision, **more}


def _denoiser(model: Model) -> CodeDenoiser:
    assert isinstance(model.system.model, CodeDenoiser), "a diffusion model"
    return model.system.model


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]
