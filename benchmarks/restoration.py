"""In-painting, colourisation and denoising of 32x32 images: short trainings, samples beside the sources as they are.

    python -m benchmarks restoration --out FOLDER [--data toonheads] [--minutes 8] [--images 50] [-n 3] [--render]

Trains what FOLDER does not hold yet (recipes inpaint, colourise, denoise), scores all test images, draws from the first
sources, and measures the samples. Expected time: 8 minutes of training for each of the three, and 2 of measuring.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import render
from benchmarks.record import PICTURES, RESULTS, circumstances, write_json
from benchmarks.runs import likelihood, load_or_train, run_record
from rasterformer.data.png import write_png
from rasterformer.drawing.canvas import source_sheet
from rasterformer.errors import RasterformerError
from rasterformer.evaluation.judge import judge_samples
from rasterformer.recipe_file import load_recipe
from rasterformer.recipe_images import open_recipe_images
from rasterformer.system import System

NAMES = ("inpaint", "colourise", "denoise")
SHEET_SOURCES = 8


def main(arguments: list[str]) -> None:
    """Trains, measures and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks restoration", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help=f"folder of the runs {', '.join(NAMES)}")
    parser.add_argument("--data", default="embedded:toonheads", help="images; default %(default)s")
    parser.add_argument("--minutes", type=float, default=8.0, help="training time of each run that is not there")
    parser.add_argument("--images", type=int, default=50, help="sources to draw from")
    parser.add_argument("-n", type=int, default=3, help="samples of each source")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder for the sheets")
    parser.add_argument("--render", action="store_true", help="write docs/results.md at the end")
    options = parser.parse_args(arguments)
    if options.images < SHEET_SOURCES or options.n < 2 or not options.minutes > 0:
        parser.error(f"--images must be at least {SHEET_SOURCES}, -n at least 2 and --minutes above 0.")
    try:
        tasks = {}
        for name in NAMES:
            recipe = load_recipe(name, [("data.path", options.data)])
            system = load_or_train(recipe, options.out / name, minutes=options.minutes)
            tasks[name] = measure(name, system, options)
    except RasterformerError as error:
        sys.exit(str(error))
    write_json(options.results / "restoration.json", {"tasks": tasks, **circumstances()})
    if options.render:
        render.main([])


def measure(name: str, system: System, options: argparse.Namespace) -> dict[str, Any]:
    """Returns what the JSON says of a task, and writes its sheet."""
    held_out, training = (open_recipe_images(system.recipe, split, path=options.data) for split in ("test", "train"))
    scored = likelihood(name, system, held_out)
    report = judge_samples(
        system,
        held_out,
        training,
        scored,
        num_images=options.images,
        n=options.n,
        temperature=1.0,
        seed=0,
        with_frechet=True,
    )
    batch = held_out.batch(torch.arange(SHEET_SOURCES), use_labels=False)
    batch = system.with_source(batch, first=0, purpose="held-out source", seed=0)
    sheet = source_sheet(batch, system.draw_from(batch.cond, n=4), scale=3)
    about = {"kind": "source | 4 samples at temperature 1 | original", "run": name, "seed": 0}
    write_png(options.pictures / f"{name}.png", sheet, metadata=about)
    return {
        "run": run_record(system),
        "likelihood": scored.to_dict(),
        "report": report.to_dict(),
        "images": options.images,
        "samples": options.n,
    }
