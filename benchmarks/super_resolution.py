"""8x8 -> 32x32 super-resolution after equal training time: 1D and 2D attention, our addition, and no source at all.

    python -m benchmarks super_resolution --out FOLDER [--data toonheads] [--minutes 20] [--images 32] [-n 2] [--render]

Trains what FOLDER does not hold yet (`1d`: recipe upscale without source_rest; `2d`: upscale-2d; `rest`: upscale; `alone`:
the decoder of 1d without task and encoder), scores all test images, draws from the first sources, for 1d and 2d at temperatures
1.0, 0.9 and 0.8, and measures the samples beside simple means. Expected time: 20 minutes of training for each of the four, and
10 of measuring.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import render
from benchmarks.record import PICTURES, RESULTS, circumstances, write_json
from benchmarks.runs import likelihood, load_or_train, run_record
from rasterformer.data.imageset import ImageSet
from rasterformer.data.png import image_grid, write_png
from rasterformer.drawing.canvas import visible_source
from rasterformer.errors import RasterformerError
from rasterformer.evaluation.judge import judge_samples
from rasterformer.evaluation.likelihood import mean_interval
from rasterformer.recipe import Recipe
from rasterformer.recipe_file import load_recipe
from rasterformer.recipe_images import open_recipe_images
from rasterformer.system import System

NAMES = ("1d", "2d", "rest", "alone")
PAIR = ("1d", "2d")
DRAWN = ("1d", "2d", "rest")
TEMPERATURES = (1.0, 0.9, 0.8)
SHEET_SOURCES = 10


def main(arguments: list[str]) -> None:
    """Trains, measures and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks super_resolution", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--data", default="embedded:toonheads", help="images; default %(default)s")
    parser.add_argument("--minutes", type=float, default=20.0, help="training time of each run that is not there")
    parser.add_argument("--images", type=int, default=32, help="sources to draw from")
    parser.add_argument("-n", type=int, default=2, help="samples of each source")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder for the sheets")
    parser.add_argument("--render", action="store_true", help="write docs/results.md at the end")
    options = parser.parse_args(arguments)
    if options.images < SHEET_SOURCES or options.n < 2 or not options.minutes > 0:
        parser.error(f"--images must be at least {SHEET_SOURCES}, -n at least 2 and --minutes above 0.")
    try:
        systems = {
            name: load_or_train(recipe_of(name, options.data), options.out / name, minutes=options.minutes)
            for name in NAMES
        }
        record = measure(systems, options)
    except RasterformerError as error:
        sys.exit(str(error))
    write_json(options.results / "super_resolution.json", record)
    if options.render:
        render.main([])


def recipe_of(name: str, data: str) -> Recipe:
    """The recipe of a run."""
    recipe = load_recipe("upscale-2d" if name == "2d" else "upscale", [("data.path", data)])
    changes: dict[str, Any] = {
        "1d": {"source_rest": False},
        "alone": {"source_rest": False, "encoder_depth": None},
    }.get(name, {})
    task = None if name == "alone" else recipe.task
    return dataclasses.replace(recipe, task=task, model=dataclasses.replace(recipe.model, **changes))


def measure(systems: dict[str, System], options: argparse.Namespace) -> dict[str, Any]:
    """Returns what the JSON says."""
    first = systems["1d"]
    held_out, training = (open_recipe_images(first.recipe, split, path=options.data) for split in ("test", "train"))
    likelihoods = {name: likelihood(name, system, held_out) for name, system in systems.items()}
    bits = {name: system.bits_per_dim(held_out.images(slice(None))) for name, system in systems.items()}
    gains = {name: bits["alone"] - bits[name] for name in DRAWN}
    reports: dict[str, dict[str, Any]] = {}
    for name in DRAWN:
        reports[name] = {}
        for temperature in TEMPERATURES if name in PAIR else TEMPERATURES[:1]:
            print(f"{name}, temperature {temperature}", flush=True)
            report = judge_samples(
                systems[name],
                held_out,
                training,
                likelihoods[name],
                num_images=options.images,
                n=options.n,
                temperature=temperature,
                seed=0,
                with_frechet=True,
            )
            reports[name][str(temperature)] = report.to_dict()
    for name in PAIR:
        write_png(
            options.pictures / f"super-resolution-{name}.png",
            temperature_sheet(systems[name], held_out),
            metadata={
                "kind": "source | 2 samples each at temperature 1.0, 0.9, 0.8 | original",
                "run": name,
                "seed": 0,
            },
        )
    return {
        "data": {"name": held_out.name, "train_images": len(training), "test_images": len(held_out)},
        "runs": {name: run_record(system) for name, system in systems.items()},
        "likelihoods": {name: report.to_dict() for name, report in likelihoods.items()},
        "gains_of_the_source": {
            name: {"mean": gain.mean().item(), "interval": mean_interval(gain)} for name, gain in gains.items()
        },
        "images": options.images,
        "samples": options.n,
        "reports": reports,
        **circumstances(),
    }


def temperature_sheet(system: System, held_out: ImageSet) -> Tensor:
    """A row for each of the first sources: source | 2 samples at each temperature | original."""
    batch = held_out.batch(torch.arange(SHEET_SOURCES), use_labels=False)
    batch = system.with_source(batch, first=0, purpose="held-out source", seed=0)
    columns = [visible_source(batch.cond, (system.image_size, system.image_size))]
    for temperature in TEMPERATURES:
        columns += list(system.draw_from(batch.cond, n=2, temperature=temperature, seed=0).unbind(1))
    columns.append(batch.images)
    return image_grid(torch.stack(columns, 1).flatten(0, 1), columns=len(columns), scale=3)
