"""`rasterformer demo`: the main job from end to end on embedded images, and a page that shows what came of it."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path

from rasterformer.errors import ConfigError
from rasterformer.recipe_file import load_recipe

NUM_SAMPLES = 32
NUM_COMPLETED = 6
MARKER = "demo-run"  # the only folder that a later demo replaces


def demo(*, out: Path = Path("demo"), minutes: float = 2.0, recipe: str = "demo") -> int:
    """Train for two minutes on embedded images and write a page of results.

    Args:
        out: folder for index.html and the run; a demo that is there already is replaced.
        minutes: training time.
        recipe: what to train; its data.path must be set.
    """
    import torch

    from rasterformer.cli.progress import step_progress
    from rasterformer.data.png import image_grid
    from rasterformer.evaluation import report
    from rasterformer.evaluation.likelihood import evaluate_likelihood
    from rasterformer.loading import load
    from rasterformer.recipe_images import open_recipe_images
    from rasterformer.training.log import duration, read_metrics
    from rasterformer.training.run import train_recipe

    if not minutes > 0:
        raise ConfigError(f"--minutes {minutes} must be above 0.")
    began = time.monotonic()
    filled = load_recipe(recipe)
    filled = dataclasses.replace(filled, training=dataclasses.replace(filled.training, minutes=minutes))
    run = out / MARKER
    if run.exists():
        shutil.rmtree(run)
    print(f"Training an Image Transformer for {minutes:g} minutes on {filled.data.path}. Ctrl-C stops.")
    if not train_recipe(filled, run):
        return 130

    system = load(run)
    held_out, training = (open_recipe_images(filled, part) for part in ("test", "train"))
    with step_progress("scoring held-out images") as on_progress:
        figures = evaluate_likelihood(
            system, held_out, model="this model", dtype="float32", training_set=training, on_progress=on_progress
        )
    with step_progress(f"drawing {NUM_SAMPLES} new images") as on_step:
        started = time.monotonic()
        samples = system.sample(NUM_SAMPLES, seed=0, as_tensor=True, on_step=on_step)
        sampling_seconds = time.monotonic() - started
    halves = held_out.images(slice(0, NUM_COMPLETED))
    with step_progress("completing images") as on_step:
        completed = system.complete(halves, known="top:0.5", n=3, seed=0, as_tensor=True, on_step=on_step)
    shown = halves.clone()
    shown[:, :, system.image_size // 2 :] = 128
    rows = torch.cat([shown[:, None], completed, halves[:, None]], 1).flatten(0, 1)

    lines = read_metrics(run / "metrics.jsonl")
    curve = [(line["seconds"] / 60, line["held_out_bits_per_dim"]) for line in lines if "held_out_bits_per_dim" in line]
    low, high = figures.interval or (figures.bits_per_dim, figures.bits_per_dim)
    table = [("this model (exact)", figures.bits_per_dim), *figures.baselines.items()]
    weights = sum(p.numel() for p in system.model.parameters())
    steps, seconds = lines[-1]["step"], lines[-1]["seconds"]
    sections: list[report.Section] = [
        report.Cards(
            [
                report.Card(
                    "bits/dim, held-out", f"{figures.bits_per_dim:.3f}", f"95 % interval {low:.3f} .. {high:.3f}"
                ),
                report.Card(
                    "WebP lossless", f"{figures.baselines['WebP lossless']:.3f}", "bits/dim, one file per image"
                ),
                report.Card("training", duration(seconds), f"{steps:,} steps, {weights:,} parameters"),
                report.Card("sampling", f"{NUM_SAMPLES / sampling_seconds:.1f} images/s", f"{NUM_SAMPLES} at a time"),
            ]
        ),
        report.Heading("New images"),
        report.Picture(
            image_grid(samples, columns=8, scale=4), f"{NUM_SAMPLES} samples at temperature 1, not selected."
        ),
        report.Heading("Half images, completed"),
        report.Picture(
            image_grid(rows, columns=5, scale=4),
            "Each row: the known upper half, three completions, and the held-out original.",
        ),
        report.Heading("How good is it?"),
        report.TableSection(
            ["", "bits/dim"],
            table,
            caption=(
                f"Exact likelihood over {figures.num_dims:,} dimensions of {figures.num_images:,} held-out images "
                f"({figures.split_origin}; {figures.preprocessing}); {figures.overlap_with_training:,} of them are also "
                "training images. The files are of the same images; their headers count."
            ),
            marked=0,
        ),
        report.Curve(
            {"held-out": curve}, "minutes of training", "bits/dim", caption="On the first 64 held-out images."
        ),
        report.Heading("What to do next"),
        report.Commands(
            [
                ("draw more", f"rasterformer sample {run} -n 64 --seed 1"),
                ("measure again", f"rasterformer evaluate {run}"),
                ("look at your own images", "rasterformer scan DIR"),
                ("train on them", "rasterformer train modern-dmol --data DIR --out runs/mine"),
            ]
        ),
    ]
    page = out / "index.html"
    report.write_page(
        page,
        "rasterformer demo",
        sections,
        summary=(
            f"An Image Transformer, trained for {duration(seconds)} on {len(training):,} images of {training.name}, "
            f"{system.image_size}x{system.image_size} pixels."
        ),
    )
    print(f"\nbits/dim on {figures.num_images:,} held-out images (exact likelihood):")
    for name, value in table:
        print(f"  {name:24s} {value:.3f}")
    print(f"\nAll of it took {duration(time.monotonic() - began)}. The page with pictures: {page}")
    return 0
