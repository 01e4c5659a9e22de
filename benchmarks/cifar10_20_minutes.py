"""Held-out likelihood on CIFAR-10 after equal training time: the house recipe, the paper's form, a small PixelCNN++.

    python -m benchmarks cifar10_20_minutes --data DIR --out FOLDER [--minutes 20] [--only house,paper] [--render]

Every contestant runs through the package's own training loop in a process of its own: same images in the same order, same
precision, same evaluation. Only optimiser steps count as training time. A contestant that was stopped goes on where it
stood; one whose JSON is there is passed over (remove the JSON to repeat it). Expected time: 25 minutes a contestant.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import PIL
import torch
from torch import Tensor

from benchmarks import render
from benchmarks.pixelcnn import PixelCNN, PixelCNNConfig
from benchmarks.record import PICTURES, RESULTS, ROOT, circumstances, write_json
from rasterformer.codecs.pixels import PixelCodec
from rasterformer.data import open_images
from rasterformer.data.imageset import ImageSet
from rasterformer.data.png import image_grid, write_png
from rasterformer.errors import RasterformerError
from rasterformer.evaluation.image_codecs import file_bits_per_dim
from rasterformer.evaluation.likelihood import mean_interval
from rasterformer.evaluation.overlap import num_identical
from rasterformer.recipe import Recipe
from rasterformer.recipe_file import load_recipe, recipe_hash, recipe_to_dict, recipe_to_yaml
from rasterformer.system import System
from rasterformer.training.interrupt import StopSignals
from rasterformer.training.likelihood import LikelihoodLearner
from rasterformer.training.log import read_metrics
from rasterformer.training.loop import Run, train
from rasterformer.training.precision import has_bfloat16_units

SHIPPED = {"house": "modern-dmol", "house-categorical": "modern-cat", "paper": "paper-dmol-small"}
OPPONENTS: dict[str, Literal["adamw", "muon"]] = {"pixelcnn": "adamw", "pixelcnn-muon": "muon"}  # their optimisers
CONTESTANTS = (*SHIPPED, *OPPONENTS)
DEFAULT = ("house", "paper", "pixelcnn", "pixelcnn-muon")
IMAGE_FILES = "image-files"  # PNG and WebP sizes of the same test images
FOLDER = RESULTS / "cifar10_20_minutes"
NUM_MEASUREMENTS = 20  # about, during training, on the first EVAL_IMAGES test images
EVAL_IMAGES = 256
OPPONENT_RATE = 7.5  # optimiser steps a second, about; spaces its measurements
WITH_PICTURES = ("house", "paper")


def main(arguments: list[str]) -> None:
    """Runs the contestants one after the other."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks cifar10_20_minutes", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data", required=True, help="lossless CIFAR-10 images with a train and a test split")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--minutes", type=float, default=20.0, help="training time of each contestant")
    parser.add_argument("--only", default=",".join(DEFAULT), help=f"of {', '.join(CONTESTANTS)}; default %(default)s")
    parser.add_argument(
        "--results", type=Path, default=FOLDER, help="folder for the JSON, default benchmarks/results/..."
    )
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder for samples, default docs/pictures")
    parser.add_argument("--render", action="store_true", help="write docs/results.md at the end")
    parser.add_argument("--here", metavar="CONTESTANT", help=argparse.SUPPRESS)  # what each subprocess is told
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    unknown = [name for name in names if name not in CONTESTANTS]
    if unknown or not options.minutes > 0:
        parser.error(f"--only {options.only} --minutes {options.minutes}: contestants are {', '.join(CONTESTANTS)}.")
    try:
        if options.here is not None:
            sys.exit(contest(options.here, options))
        for name in names:  # a recipe that is not shipped or a folder without images is to be found out now
            make_system(name, options.minutes)
        if not (options.results / f"{IMAGE_FILES}.json").exists():
            measure_image_files(options)
    except RasterformerError as error:
        sys.exit(str(error))
    failed = [name for name in names if not in_own_process(name, options)]
    if failed:
        sys.exit(f"not finished: {', '.join(failed)}. The same command goes on with them.")
    if options.render:
        render.main([])


def in_own_process(name: str, options: argparse.Namespace) -> bool:
    """Runs one contestant; returns whether its JSON is there."""
    result = options.results / f"{name}.json"
    if result.exists():
        print(f"{name}: {result.name} is there, passed over", flush=True)
        return True
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "cifar10_20_minutes",
        "--here",
        name,
        "--minutes",
        str(options.minutes),
    ]
    for option in ("data", "out", "results", "pictures"):
        command += [f"--{option}", str(Path(getattr(options, option)).expanduser().absolute())]
    with StopSignals() as signals:  # Ctrl-C reaches the child too, which saves and ends
        process = subprocess.Popen(command, cwd=ROOT)
        while process.poll() is None:
            time.sleep(0.5)
            if signals.received == signal.SIGTERM.name:
                process.terminate()
                process.wait()
    if signals.received:
        sys.exit(f"stopped by {signals.received}. The same command goes on.")
    return process.returncode == 0 and result.exists()


def contest(name: str, options: argparse.Namespace) -> int:
    """Trains and measures one contestant; returns 0, or 130 where it was stopped."""
    train_set, test_set = images(options.data, "train"), images(options.data, "test")
    system = make_system(name, options.minutes)
    folder = options.out / name
    yaml = recipe_to_yaml(system.recipe)
    recipe_file = folder / "recipe.yaml"
    if recipe_file.exists() and recipe_file.read_text(encoding="utf-8") != yaml:
        sys.exit(f"{folder} holds a run of another recipe or of other minutes. Give another --out, or remove it.")
    folder.mkdir(parents=True, exist_ok=True)
    recipe_file.write_text(yaml, encoding="utf-8")
    print(f"\n{name}: {num_parameters(system):,} parameters, recipe {recipe_hash(system.recipe)}", flush=True)
    run = Run(LikelihoodLearner(system, train_set, test_set), folder)
    if not train(run, resume=True, say=lambda line: print(line, flush=True)):
        return 130
    bits = system.bits_per_dim(test_set.images(slice(None)))
    record = result(name, system, bits, read_metrics(folder / "metrics.jsonl"), options.minutes)
    record["data"] = data_record(train_set, test_set)
    if name in WITH_PICTURES:
        record["pictures"] = draw_pictures(name, system, test_set, options.pictures)
    write_json(options.results / f"{name}.json", record)
    return 0


def make_system(name: str, minutes: float) -> System:
    """Builds a contestant with fresh weights."""
    if name in SHIPPED:
        return System.create(for_budget(load_recipe(SHIPPED[name]), minutes, share=minutes / 20))
    house = load_recipe(SHIPPED["house"])
    every = 60 * minutes / NUM_MEASUREMENTS * OPPONENT_RATE
    training = dataclasses.replace(
        house.training,
        optimizer=OPPONENTS[name],
        learning_rate=1e-3,
        batch_size=8,  # 16 was behind after a minute, 5.14 against 4.69
        warmup_steps=100,
        eval_every=max(1, round(every)),
        save_every=max(1, round(every)),
    )
    recipe = for_budget(Recipe("pixelcnn", PixelCNNConfig(), house.data, training), minutes, share=1.0)
    codec = PixelCodec(recipe.data.image_size, is_joint=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        return System(recipe, codec, PixelCNN(recipe.model, codec))


def for_budget(recipe: Recipe, minutes: float, *, share: float) -> Recipe:
    """The recipe for that training time; measurements and checkpoints come `share` as far apart."""
    training = recipe.training
    return dataclasses.replace(
        recipe,
        training=dataclasses.replace(
            training,
            minutes=minutes,
            eval_every=max(1, round((training.eval_every or 500) * share)),
            save_every=max(1, round((training.save_every or 500) * share)),
            eval_images=EVAL_IMAGES,
        ),
    )


def result(name: str, system: System, bits: Tensor, metrics: list[dict[str, Any]], minutes: float) -> dict[str, Any]:
    """What the JSON says of a contestant; `bits` float64 [N] are bits/dim of each test image."""
    batch_size = system.recipe.training.batch_size
    measured = [line for line in metrics if "held_out_bits_per_dim" in line]
    seconds, steps = [line["seconds"] for line in metrics if "seconds" in line][-1], system.steps
    precision = system.recipe.training.precision
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16_units(system.device) else "float32"
    return {
        "contestant": name,
        "bits_per_dim": bits.mean().item(),
        "interval": mean_interval(bits),
        "interval_method": "95 %, normal approximation on the mean over images",
        "likelihood": f"exact, over {system.num_dims:,} dimensions",
        "test_images": len(bits),
        "parameters": num_parameters(system),
        "minutes": minutes,
        "training_seconds": seconds,
        "steps": steps,
        "images_seen": steps * batch_size,
        "images_per_second": steps * batch_size / seconds,
        "training_dtype": f"{precision} autocast" if precision == "bfloat16" else precision,
        "evaluation_dtype": "float32",
        "curve_images": measured[-1]["images"],
        "curve": [
            {
                "seconds": line["seconds"],
                "images_seen": line["step"] * batch_size,
                "held_out_bits_per_dim": line["held_out_bits_per_dim"],
            }
            for line in measured
        ],
        **circumstances(),
        "recipe_name": SHIPPED.get(name),
        "recipe": recipe_to_dict(system.recipe),
        "bits_per_dim_of_images": [round(value, 5) for value in bits.tolist()],
    }


def data_record(train_set: ImageSet, test_set: ImageSet) -> dict[str, Any]:
    """What was trained and measured on."""
    everything = slice(None)
    return {
        "name": train_set.name,
        "split": train_set.split_origin,
        "lossless": test_set.lossless,
        "train_images": len(train_set),
        "train_fingerprint": train_set.fingerprint,
        "test_images": len(test_set),
        "test_fingerprint": test_set.fingerprint,
        "test_images_also_in_train": num_identical([test_set.images(everything)], [train_set.images(everything)]),
    }


def draw_pictures(name: str, system: System, test_set: ImageSet, folder: Path) -> dict[str, str]:
    """Writes 32 samples, and 8 test images with what the model makes of their upper half; returns the file names."""
    record = {"recipe": recipe_hash(system.recipe), "steps": system.steps, "seed": 0}
    samples = system.sample(32, seed=0, batch_size=32, as_tensor=True)
    originals = test_set.images(slice(8))
    completed = system.complete(originals, known="top:0.5", n=3, seed=0, as_tensor=True)  # [8, 3, 3, H, W]
    half_known = originals.clone()
    half_known[:, :, system.image_size // 2 :] = 244
    rows = torch.stack([half_known, *completed.unbind(1), originals]).flatten(0, 1)  # a column for each test image
    pictures = {
        "samples": (samples, "samples"),
        "completions": (rows, "test images 0..7: known, 3 completions, original"),
    }
    for kind, (tiles, text) in pictures.items():
        target = folder / f"cifar10-{name}-{kind}.png"
        write_png(target, image_grid(tiles, columns=8, scale=2), metadata={**record, "kind": text})
    return {kind: f"cifar10-{name}-{kind}.png" for kind in pictures}


def measure_image_files(options: argparse.Namespace) -> None:
    """Writes what PNG and WebP files need for the test images."""
    test_set = images(options.data, "test")
    record = {
        "bits_per_dim": file_bits_per_dim([test_set.images(slice(None))]),
        "pillow": PIL.__version__,
        "test_images": len(test_set),
        "test_fingerprint": test_set.fingerprint,
        **circumstances(),
    }
    write_json(options.results / f"{IMAGE_FILES}.json", record)


def images(path: str, split: str) -> ImageSet:
    """Opens one split at 32x32."""
    return open_images(path, image_size=32, split="train" if split == "train" else "test")


def num_parameters(system: System) -> int:
    """Returns the number of trained weights."""
    return sum(math.prod(weight.shape) for weight in system.model.parameters())
