"""Pictures larger than the model's, drawn in overlapping tiles: are there seams?

    python -m benchmarks tiles --out FOLDER --data DIR [--image-size 64] [--minutes 10] [--images 60] [--render]

Trains recipe upscale (8x8 -> 32x32) on 32x32 cuttings of larger images, unless FOLDER holds the run, and enlarges whole reduced
images of the test split. What is measured: how much neighbouring pixels differ across the borders of tiles, divided by how much
they differ elsewhere; for overlapping tiles, for tiles side by side, and for the originals at the same places.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import render
from benchmarks.record import PICTURES, RESULTS, circumstances, write_json
from benchmarks.runs import load_or_train, run_record
from rasterformer.conditioning.resize import enlarge, reduce_area
from rasterformer.conditioning.tiles import plan_tiles
from rasterformer.data import open_images
from rasterformer.data.png import image_grid, write_png
from rasterformer.errors import RasterformerError
from rasterformer.evaluation.likelihood import mean_interval
from rasterformer.recipe_file import load_recipe
from rasterformer.system import System

CUTTINGS_PER_IMAGE = 6
SHEET_IMAGES = 6


def main(arguments: list[str]) -> None:
    """Trains, draws, measures and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks tiles", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the run and its cuttings")
    parser.add_argument("--data", required=True, help="images with a train and a test split")
    parser.add_argument("--image-size", type=int, default=64, help="side of the larger images, pixels")
    parser.add_argument("--minutes", type=float, default=10.0, help="training time, if the run is not there")
    parser.add_argument("--images", type=int, default=60, help="larger images to draw")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder for the sheet")
    parser.add_argument("--render", action="store_true", help="write docs/results.md at the end")
    options = parser.parse_args(arguments)
    if options.image_size % 32 or options.image_size < 64 or options.images < SHEET_IMAGES or not options.minutes > 0:
        parser.error(
            f"--image-size must be a multiple of 32 above 32, --images at least {SHEET_IMAGES}, --minutes above 0."
        )
    try:
        record = measure(trained(options), options)
    except RasterformerError as error:
        sys.exit(str(error))
    write_json(options.results / "tiles.json", record)
    if options.render:
        render.main([])


def trained(options: argparse.Namespace) -> System:
    """Loads the run, which is trained first where it is not there."""
    folder, cuttings = options.out / "run", options.out / "cuttings.npz"
    if not (folder / "model").is_dir():
        options.out.mkdir(parents=True, exist_ok=True)
        np.savez(cuttings, images=cut(options.data, options.image_size))
    recipe = load_recipe("upscale", [("data.path", str(cuttings))])
    return load_or_train(recipe, folder, minutes=options.minutes)


def cut(data: str, image_size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Cuttings of the training images at random places: uint8 [N, 32, 32, 3]."""
    images = open_images(data, image_size=image_size, split="train").images(slice(None)).permute(0, 2, 3, 1).numpy()
    places = np.random.default_rng(0).integers(0, image_size - 31, (len(images), CUTTINGS_PER_IMAGE, 2))
    return np.stack(
        [
            image[top : top + 32, left : left + 32]
            for image, of_image in zip(images, places, strict=True)
            for top, left in of_image
        ]
    )


def measure(system: System, options: argparse.Namespace) -> dict[str, Any]:
    """Returns what the JSON says, and writes the sheet."""
    test = open_images(options.data, image_size=options.image_size, split="test")
    originals = test.images(slice(options.images))
    sources = reduce_area(originals, 4)
    rows: dict[str, dict[str, Any]] = {}
    drawn: dict[int, Tensor] = {}
    for overlap in (4, 0):
        print(f"overlap {overlap}", flush=True)
        results = system.transform(sources, overlap=overlap, seed=0, as_tensor=True)
        drawn[overlap] = torch.cat(results)  # [N, 3, S, S]
        at = borders(sources.shape[2], overlap)
        rows[str(overlap)] = {
            name: {"ratio": ratio.mean().item(), "interval": mean_interval(ratio)}
            for name, ratio in (("drawn", seam_ratio(drawn[overlap], at)), ("originals", seam_ratio(originals, at)))
        }
    some = slice(SHEET_IMAGES)
    columns = [enlarge(sources[some], 4, "nearest"), drawn[4][some], drawn[0][some], originals[some]]
    sheet = image_grid(torch.stack(columns, 1).flatten(0, 1), columns=4, scale=2)
    kind = "source | overlapping tiles | tiles side by side | original"
    write_png(options.pictures / "tiles.png", sheet, metadata={"kind": kind, "seed": 0})
    return {
        "data": {"name": test.name, "image_size": options.image_size, "test_images": len(originals)},
        "run": run_record(system) | {"recipe": "upscale, on cuttings of the training images"},
        "rows": rows,
        **circumstances(),
    }


def borders(source_size: int, overlap: int) -> list[int]:
    """Rows (and columns) of the result at which a tile's kept part ends, 4 result pixels for each source pixel."""
    tiles = (tile for wave in plan_tiles(source_size, source_size, size=8, overlap=overlap) for tile in wave)
    return sorted({4 * tile.keep_right for tile in tiles} - {4 * source_size})


def seam_ratio(images: Tensor, at: list[int]) -> Tensor:
    """How much neighbours differ across the given rows and columns, over how much elsewhere: float64 [N].

    Rows and columns that are no border of source pixels either are left out: differences are larger at those.

    Args:
        images: uint8 [N, 3, S, S].
        at: places where tiles meet, multiples of 4.
    """
    values = images.double()
    across = (values[..., 1:] - values[..., :-1]).abs().mean((1, 2))  # [N, S - 1], between column k and k + 1
    down = (values[:, :, 1:] - values[:, :, :-1]).abs().mean((1, 3))
    both = torch.cat([across, down], 1)
    place = torch.arange(1, images.shape[-1]).repeat(2)
    meets = torch.isin(place, torch.tensor(at))
    others = (place % 4 == 0) & ~meets
    return both[:, meets].mean(1) / both[:, others].mean(1).clamp(min=1e-6)
