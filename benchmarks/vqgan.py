"""VQGAN in two stages on small photographs: tokenizers, priors over their codes, conditions that are obeyed, a large picture.

    python -m benchmarks vqgan --runs FOLDER [--part tokenizers prior lowres conditions megapixel] [--data DIR] [--photo FILE]
                               [--limit 350] [--large 256:1 256:4 1024:4] [--render]

Measures finished runs of `rasterformer train` and trains nothing. FOLDER holds `flowers_tok` (recipe vqgan), `flowers_paper` (the
same with the paper's quantiser), `flowers_prior`, `flowers_lowres`, `scenes_edges/prior`, `scenes_depth/prior`, `camvid/prior`
and `mouse/prior`; those that are not there are left out, and named. Each part can be run by itself: what it measured takes its
place in the JSON, and the rest stays. On one core: tokenizers 5 minutes, prior 10, lowres and each condition 2, megapixel 30.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import render
from benchmarks.mixing import mixed
from benchmarks.record import PICTURES, RESULTS, circumstances, write_json
from benchmarks.vqgan_conditions import CONDITIONS, measure_condition
from benchmarks.vqgan_large import measure_large
from rasterformer.codecs.perceptual import make_perceptual
from rasterformer.codecs.vq.usage import CodeUsage
from rasterformer.data.imageset import ImageSet
from rasterformer.data.png import image_grid, write_png
from rasterformer.errors import RasterformerError
from rasterformer.evaluation.code_likelihood import evaluate_codes
from rasterformer.evaluation.frechet import frechet_distance
from rasterformer.evaluation.reconstruction import evaluate_reconstruction
from rasterformer.loading import load
from rasterformer.nn.efficientnet_lite import efficientnet_lite_features
from rasterformer.recipe import Recipe
from rasterformer.recipe_file import recipe_to_dict
from rasterformer.recipe_images import open_recipe_images
from rasterformer.system import System
from rasterformer.tokenizer import Tokenizer, load_tokenizer
from rasterformer.training.log import read_metrics

Record = dict[str, Any]
PARTS = ("tokenizers", "prior", "lowres", "conditions", "megapixel")
TOKENIZERS = {"modern": "flowers_tok", "paper": "flowers_paper"}
PRIOR, LOWRES = "flowers_prior", "flowers_lowres"
LARGE = ("256:1", "256:4", "1024:4")
GUIDANCE = (1.0, 2.0)
SHEET_COLUMNS = 8


def main(arguments: list[str]) -> None:
    """Measures the parts asked for and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks vqgan", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS, help="default: all")
    parser.add_argument("--data", help="flowers; default: those that the runs were trained on")
    parser.add_argument(
        "--photo", type=Path, help="megapixel: the photograph to draw from; without it the part is left out"
    )
    parser.add_argument("--large", nargs="+", default=LARGE, help="megapixel: SIDE:STRIDE of each picture; %(default)s")
    parser.add_argument(
        "--limit", type=int, help="images measured, at least 8; default: all, and 32 with a sample each"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder for the pictures")
    parser.add_argument("--render", action="store_true", help="write docs/results.md at the end")
    options = parser.parse_args(arguments)
    if options.limit is not None and options.limit < SHEET_COLUMNS:
        parser.error(f"--limit {options.limit} must be at least {SHEET_COLUMNS}.")
    large = [_side_and_stride(parser, text) for text in options.large]
    try:
        for path, record in measured(options, large):
            merge(options.results / "vqgan.json", path, record | circumstances())
    except RasterformerError as error:
        sys.exit(str(error))
    if options.render:
        render.main([])


def measured(options: argparse.Namespace, large: list[tuple[int, int]]) -> Iterator[tuple[tuple[str, ...], Record]]:
    """Yields what was measured as soon as it is, and where it belongs in the JSON."""
    for name, run in TOKENIZERS.items() if "tokenizers" in options.part else ():
        if (folder := finished(options.runs, run)) is not None:
            yield ("tokenizers", name), measure_tokenizer(folder, options.data, options.limit)
    if "tokenizers" in options.part:
        draw_reconstructions(options)
    if "prior" in options.part and (folder := finished(options.runs, PRIOR)) is not None:
        yield ("prior",), measure_prior(load(folder), options.data, options.limit, options.pictures)
    for name, condition in CONDITIONS.items():
        is_lowres = condition.run == LOWRES
        if ("lowres" if is_lowres else "conditions") in options.part:
            if (folder := finished(options.runs, condition.run)) is not None:
                system = load(folder)
                found = measure_condition(
                    name, system, options.data if is_lowres else None, options.limit, options.pictures
                )
                yield ("conditions", name), found | {"run": run_record(system.recipe, system.model, system.steps)}
    if "megapixel" in options.part and (folder := finished(options.runs, LOWRES)) is not None:
        if options.photo is None:
            print("megapixel is left out: no --photo", flush=True)
            return
        system = load(folder)
        for side, stride in large:
            found = measure_large(system, options.photo, side, stride, options.pictures)
            yield ("megapixel", f"{side}:{stride}"), found


def finished(runs: Path, name: str) -> Path | None:
    """The folder of a run that has ended; None, and said, where there is none."""
    if (runs / name / "model").is_dir():
        print(f"{name} ...", flush=True)
        return runs / name
    print(f"{name} is left out: no finished run", flush=True)
    return None


def measure_tokenizer(folder: Path, data: str | None, limit: int | None) -> Record:
    """Reconstructions of the test images, use of the codebook in test and training images, and the curves of the training."""
    tokenizer = load_tokenizer(folder)
    held_out, training = (open_recipe_images(tokenizer.recipe, split, path=data) for split in ("test", "train"))
    perceptual = make_perceptual("efficientnet", weights=None).to(tokenizer.autoencoder.last_layer.device)
    report = evaluate_reconstruction(
        tokenizer, mixed(held_out), limit=limit, perceptual=perceptual, with_frechet=True
    ).to_dict()
    usage = CodeUsage(tokenizer.vocab_size)
    for index in torch.arange(_count(training, limit)).split(64):
        usage.add(tokenizer.encode(training.images(index)))
    curve = [
        {
            "minutes": line["seconds"] / 60,
            "psnr_db": line["held_out_psnr_db"],
            "perceptual": line.get("held_out_perceptual_distance"),
            "share_used": line["held_out_share_used"],
        }
        for line in read_metrics(folder / "metrics.jsonl")
        if "held_out_psnr_db" in line
    ]
    return {
        "report": report | {"model": folder.name},
        "training_usage": {"images": _count(training, limit), **usage.summary()},
        "curve": curve,
        "run": run_record(tokenizer.recipe, tokenizer.autoencoder, tokenizer.steps),
    }


def draw_reconstructions(options: argparse.Namespace) -> None:
    """A row of originals and one of reconstructions for each tokenizer that is there."""
    rows: list[Tensor] = []
    names = [name for name, run in TOKENIZERS.items() if (options.runs / run / "model").is_dir()]
    for name in names:
        tokenizer = load_tokenizer(options.runs / TOKENIZERS[name])
        held_out = mixed(open_recipe_images(tokenizer.recipe, "test", path=options.data))
        originals = held_out.images(slice(SHEET_COLUMNS))
        rows += [tokenizer.reconstruct(originals)] if rows else [originals, tokenizer.reconstruct(originals)]
    if rows:
        _write(options.pictures / "vqgan-reconstructions.png", torch.cat(rows), " / ".join(["originals", *names]))


def measure_prior(system: System, data: str | None, limit: int | None, pictures: Path) -> Record:
    """Likelihood of the codes, samples of all classes, and how far a set of them is from real images."""
    held_out, training = (mixed(open_recipe_images(system.recipe, split, path=data)) for split in ("test", "train"))
    count = _count(held_out, limit)
    tokenizer = _tokenizer(system)
    codes = evaluate_codes(
        system,
        tokenizer,
        held_out,
        model=PRIOR,
        use_labels=system.recipe.data.use_labels,
        task=None,
        with_source=lambda batch, first: batch,
        limit=limit,
    )
    originals = held_out.images(slice(count))
    real = efficientnet_lite_features(originals)
    sets: dict[str, Callable[[], Tensor]] = {
        "training images": lambda: training.images(slice(count)),
        "reconstructions": lambda: tokenizer.reconstruct(originals),
    }
    distances = {name: frechet_distance(efficientnet_lite_features(images()), real) for name, images in sets.items()}
    labels, rows = None, 1
    if system.model.num_classes and held_out.labels is not None:
        labels, rows = held_out.labels[:count].tolist(), system.model.num_classes
    classes = None if labels is None else [k for k in range(rows) for _ in range(SHEET_COLUMNS)]
    seconds = {}
    for scale in GUIDANCE if labels is not None else GUIDANCE[:1]:
        print(f"guidance {scale:g}: {count} samples", flush=True)
        began = time.perf_counter()
        drawn = system.sample(count, label=labels, guidance_scale=scale, seed=0, as_tensor=True)
        seconds[f"{scale:g}"] = time.perf_counter() - began
        distances[f"samples, guidance {scale:g}"] = frechet_distance(efficientnet_lite_features(drawn), real)
        sheet = system.sample(rows * SHEET_COLUMNS, label=classes, guidance_scale=scale, seed=0, as_tensor=True)
        _write(pictures / f"vqgan-samples-guidance-{scale:g}.png", sheet, f"a row for each class, guidance {scale:g}")
    return {
        "codes": codes.to_dict(),
        "class_names": list(system.class_names),
        "samples": count,
        "fd_efflite0": distances,
        "seconds": seconds,
        "run": run_record(system.recipe, system.model, system.steps),
    }


def run_record(recipe: Recipe, network: nn.Module, steps: int) -> Record:
    """What was trained."""
    return {
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "steps": steps,
        "minutes": recipe.training.minutes,
        "recipe": recipe_to_dict(recipe),
    }


def merge(file: Path, path: tuple[str, ...], record: Record) -> None:
    """Puts one record into the JSON, in place of an older one, and lists the runs of which there is none yet."""
    content: Record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    place = content
    for name in path[:-1]:
        place = place.setdefault(name, {})
    place[path[-1]] = without_folders(record)
    content["missing"] = missing(content)
    write_json(file, content)


def missing(content: Record) -> list[str]:
    """The runs of which the JSON says nothing."""
    wanted = {("tokenizers", name): run for name, run in TOKENIZERS.items()} | {("prior",): PRIOR}
    wanted |= {("conditions", name): condition.run for name, condition in CONDITIONS.items()}
    return [
        run for (part, *names), run in wanted.items() if not all(n in content.get(part, {}) for n in names or ("run",))
    ]


def without_folders(value: Any) -> Any:
    """The same JSON with each absolute path, which is of this machine, cut down to its last name."""
    if isinstance(value, dict):
        return {name: without_folders(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(part) for part in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _side_and_stride(parser: argparse.ArgumentParser, text: str) -> tuple[int, int]:
    side, colon, stride = text.partition(":")
    if not (colon and side.isdigit() and stride.isdigit()):
        parser.error(f"--large {text} is not SIDE:STRIDE, such as 1024:4.")
    return int(side), int(stride)


def _count(images: ImageSet, limit: int | None) -> int:
    return len(images) if limit is None else min(limit, len(images))


def _tokenizer(system: System) -> Tokenizer:
    assert system.tokenizer is not None, "the model is one over codes"
    return system.tokenizer


def _write(path: Path, images: Tensor, kind: str) -> None:
    write_png(path, image_grid(images, columns=SHEET_COLUMNS, scale=2), metadata={"kind": kind, "seed": 0})
