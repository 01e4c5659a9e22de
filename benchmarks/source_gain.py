"""What knowing an 8x8 source is worth on photographs: CIFAR-10 with and without it, the same size and training time.

    python -m benchmarks source_gain --out FOLDER --data DIR [--minutes 5] [--render]

Trains what FOLDER does not hold yet (`alone`: recipe modern-dmol; `source`: the same with the task super_resolution, one encoder
layer in place of one of the decoder's, and the source aligned), and scores all test images.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import render
from benchmarks.record import RESULTS, circumstances, write_json
from benchmarks.runs import likelihood, load_or_train, run_record
from rasterformer.errors import RasterformerError
from rasterformer.evaluation.likelihood import mean_interval
from rasterformer.recipe import Recipe
from rasterformer.recipe_file import load_recipe
from rasterformer.recipe_images import open_recipe_images

WITH_SOURCE = [
    ("task.name", "super_resolution"),
    ("task.factor", "4"),
    ("model.depth", "7"),
    ("model.encoder_depth", "1"),
    ("model.encoder_cell", "pixel"),
    ("model.aligned_source", "true"),
    ("model.shown_source", "true"),
    ("model.source_attention_layers", "[4]"),
]


def main(arguments: list[str]) -> None:
    """Trains, measures and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks source_gain", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs source and alone")
    parser.add_argument("--data", required=True, help="lossless CIFAR-10 images with a train and a test split")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of each run that is not there")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    parser.add_argument("--render", action="store_true", help="write docs/results.md at the end")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes {options.minutes} must be above 0.")
    bits, runs, likelihoods = {}, {}, {}
    try:
        for name in ("source", "alone"):
            system = load_or_train(recipe_of(name, options.data), options.out / name, minutes=options.minutes)
            held_out = open_recipe_images(system.recipe, "test", path=options.data)
            likelihoods[name] = likelihood(name, system, held_out).to_dict()
            bits[name] = system.bits_per_dim(held_out.images(slice(None)))
            runs[name] = run_record(system)
            del runs[name]["recipe"]["data"]["path"]  # a folder of this machine
    except RasterformerError as error:
        sys.exit(str(error))
    gain = bits["alone"] - bits["source"]
    record = {
        "data": {"name": held_out.name, "test_images": len(held_out), "split": held_out.split_origin},
        "runs": runs,
        "likelihoods": likelihoods,
        "gain": {"mean": gain.mean().item(), "interval": mean_interval(gain)},
        **circumstances(),
    }
    write_json(options.results / "source_gain.json", record)
    if options.render:
        render.main([])


def recipe_of(name: str, data: str) -> Recipe:
    """The recipe of a run."""
    return load_recipe("modern-dmol", [("data.path", data), *(WITH_SOURCE if name == "source" else [])])
