"""How many bad images `rasterformer surprise` finds: foreign and damaged images hidden among clean ones, by ranking rule.

    python -m benchmarks surprise --model FOLDER --clean toonheads --foreign emoji DIR ... [--render]

The clean images are a held-out split of the set that the model was trained on. Some of them are the reference, some are damaged
in each of the ways below, the rest stays clean. All are written into a temporary folder and scored once; then mixed folders
are drawn from them, many times, and each is ranked by every rule. Expected time: a minute.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import rasterformer
from benchmarks import render
from benchmarks.record import RESULTS, circumstances, write_json
from rasterformer.data import open_images
from rasterformer.data.png import to_pil, write_png
from rasterformer.errors import RasterformerError
from rasterformer.evaluation.surprise import By, Scores, rank, score_images
from rasterformer.recipe_file import recipe_hash

RULES: dict[str, tuple[By, bool]] = {
    f"{by}, {'image and window' if patches else 'image only'}": (by, patches)
    for by in ("both", "high", "low")
    for patches in (True, False)
}
CLEAN = "clean"
NUM_REFERENCE = 100
NUM_DAMAGED = 20  # images, each damaged in every way
NUM_FOREIGN = 60  # of each set, to draw from
MIXES = 200


def jpeg(image: Tensor) -> Tensor:
    """Stored as JPEG of quality 5: blocks."""
    stream = io.BytesIO()
    to_pil(image[None])[0].save(stream, format="JPEG", quality=5)
    with Image.open(stream) as stored:
        values = torch.frombuffer(bytearray(stored.convert("RGB").tobytes()), dtype=torch.uint8)
    return values.view(*image.shape[1:], 3).permute(2, 0, 1).contiguous()


def zero_band(image: Tensor) -> Tensor:
    """The middle eighth of the rows is 0, as after a broken download."""
    height = image.shape[1]
    damaged = image.clone()
    damaged[:, height // 2 : height // 2 + height // 8] = 0
    return damaged


def hole(image: Tensor) -> Tensor:
    """A square with an eighth of the image's side, to the left above the middle, has the colour of the first pixel."""
    height, width = image.shape[1:]
    damaged = image.clone()
    damaged[:, height * 3 // 8 : height // 2, width * 3 // 8 : width // 2] = image[:, :1, :1]
    return damaged


def shifted_half(image: Tensor) -> Tensor:
    """The lower half stands a quarter of the width further right, what falls out comes in at the left."""
    height, width = image.shape[1:]
    return torch.cat([image[:, : height // 2], image[:, height // 2 :].roll(width // 4, 2)], 1)


def noise(image: Tensor) -> Tensor:
    """Gaussian noise, standard deviation 40 levels."""
    rng = torch.Generator().manual_seed(int(image.long().sum()))
    return (image + 40 * torch.randn(image.shape, generator=rng)).round().clamp(0, 255).to(torch.uint8)


def swapped_channels(image: Tensor) -> Tensor:
    """Red and blue exchanged."""
    return image.flip(0)


def black(image: Tensor) -> Tensor:
    """Nothing left."""
    return torch.zeros_like(image)


def upside_down(image: Tensor) -> Tensor:
    """Mirrored top to bottom."""
    return image.flip(1)


DAMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "JPEG quality 5": jpeg,
    "band of zeros": zero_band,
    "small hole": hole,
    "shifted half": shifted_half,
    "Gaussian noise": noise,
    "red and blue swapped": swapped_channels,
    "black": black,
    "upside down": upside_down,
}


def main(arguments: list[str]) -> None:
    """Writes benchmarks/results/surprise.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks surprise", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a model trained on the train split of --clean")
    parser.add_argument("--clean", default="toonheads", help="set with a test split, default %(default)s")
    parser.add_argument("--foreign", nargs="+", default=["emoji"], help="sets of other images, default emoji")
    parser.add_argument(
        "--mix-clean", type=int, default=200, help="clean images in a mixed folder, default %(default)s"
    )
    parser.add_argument(
        "--mix-foreign", type=int, default=5, help="images of each foreign set in it, default %(default)s"
    )
    parser.add_argument("--mix-damaged", type=int, default=2, help="images of each damage in it, default %(default)s")
    parser.add_argument("--render", action="store_true", help="write docs/results.md at the end")
    options = parser.parse_args(arguments)
    try:
        record = measure(options)
    except RasterformerError as error:
        sys.exit(str(error))
    write_json(RESULTS / "surprise.json", record)
    if options.render:
        render.main([])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Returns what the JSON says."""
    system = rasterformer.load(options.model)
    size = system.image_size
    clean = open_images(options.clean, image_size=size, split="test")
    kinds = {
        CLEAN: clean.images(slice(NUM_REFERENCE + NUM_DAMAGED, None)),
        **damaged(clean.images(slice(NUM_REFERENCE, NUM_REFERENCE + NUM_DAMAGED))),
    }
    sets = {}
    for path in options.foreign:
        foreign = open_images(path, image_size=size)
        kind = f"foreign: {foreign.name}"
        spaced = torch.linspace(0, len(foreign) - 1, min(NUM_FOREIGN, len(foreign))).long()
        kinds[kind], sets[kind] = foreign.images(spaced), {"fingerprint": foreign.fingerprint, "images": len(spaced)}
    if len(kinds[CLEAN]) < options.mix_clean:
        sys.exit(
            f"--mix-clean {options.mix_clean}: {clean.name} has only {len(kinds[CLEAN])} clean images left for it."
        )
    counts = {kind: options.mix_damaged for kind in DAMAGES} | {kind: options.mix_foreign for kind in sets}
    with tempfile.TemporaryDirectory() as folder:
        scores, kind_of = score_folder(system, kinds, Path(folder))
    reference = clean.images(slice(NUM_REFERENCE))
    with tempfile.TemporaryDirectory() as folder:
        usual, _ = score_folder(system, {CLEAN: reference}, Path(folder))
    return {
        "model": {
            "recipe": recipe_hash(system.recipe),
            "system": system.recipe.system,
            "distribution": system.recipe.model.distribution,
            "image_size": size,
            "steps": system.steps,
            "minutes": system.recipe.training.minutes,
        },
        "clean": {"name": clean.name, "fingerprint": clean.fingerprint, "reference_images": NUM_REFERENCE},
        "foreign": sets,
        "damages": {kind: str(damage.__doc__) for kind, damage in DAMAGES.items()},
        "mix": {CLEAN: options.mix_clean, **counts, "mixes": MIXES},
        "reference_bits_per_dim": usual.bits_per_dim.mean().item(),
        "bits_per_dim": {kind: scores.bits_per_dim[members(kind_of, kind)].mean().item() for kind in kinds},
        "rules": {
            name: compare(rank(scores, usual, by=by, with_patches=patches).score, kind_of, counts, options.mix_clean)
            for name, (by, patches) in RULES.items()
        },
        **circumstances(),
    }


def damaged(images: Tensor) -> dict[str, Tensor]:
    """Returns uint8 [N, 3, H, W] in every damage."""
    return {kind: torch.stack([damage(image) for image in images]) for kind, damage in DAMAGES.items()}


def score_folder(system: rasterformer.System, kinds: Mapping[str, Tensor], folder: Path) -> tuple[Scores, list[str]]:
    """Writes the images into a folder, one file each, and scores it as the command does; also the kind of each image."""
    for number, images in enumerate(kinds.values()):
        for k, image in enumerate(images):
            write_png(folder / f"{number:02d}-{k:04d}.png", image)
    found = open_images(str(folder), image_size=system.image_size)
    names = list(kinds)
    return score_images(system, found), [names[int(Path(name).name.partition("-")[0])] for name in found.names]


def members(kind_of: Sequence[str], kind: str) -> Tensor:
    """Returns the numbers of the images of a kind, int64 [n]."""
    return torch.tensor([k for k, name in enumerate(kind_of) if name == kind])


def compare(score: Tensor, kind_of: Sequence[str], counts: Mapping[str, int], num_clean: int) -> dict[str, Any]:
    """Returns what a ranking is worth: each kind against the clean images, and mixed folders of all kinds.

    Args:
        score: float [N], higher is more surprising.
        kind_of: N names, `clean` among them.
        counts: kind -> images of it in a mixed folder.
        num_clean: clean images in a mixed folder.
    """
    clean = members(kind_of, CLEAN)
    bad = {kind: members(kind_of, kind) for kind in counts}
    total = sum(counts.values())
    found: dict[int, list[dict[str, int]]] = {10: [], 20: [], total: []}
    precision = []
    rng = torch.Generator().manual_seed(0)
    for _ in range(MIXES):
        chosen = {kind: draw(numbers, counts[kind], rng) for kind, numbers in bad.items()} | {
            CLEAN: draw(clean, num_clean, rng)
        }
        numbers = torch.cat(list(chosen.values()))
        kinds = [kind for kind, part in chosen.items() for _ in part]
        order = score[numbers].argsort(descending=True, stable=True).tolist()
        for k, lists in found.items():
            first = [kinds[place] for place in order[:k]]
            lists.append({kind: first.count(kind) for kind in counts})
        precision.append(average_precision([kinds[place] != CLEAN for place in order]))
    return {
        "kinds": {kind: {"auroc": auroc(score[numbers], score[clean])} for kind, numbers in bad.items()},
        "first": {
            str(k): {
                "bad": sum(sum(one.values()) for one in lists) / MIXES,
                "by_kind": {kind: sum(one[kind] for one in lists) / MIXES for kind in counts},
            }
            for k, lists in found.items()
        },
        "num_bad": total,
        "average_precision": sum(precision) / MIXES,
    }


def draw(numbers: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Returns `count` of the numbers, without repetition."""
    return numbers[torch.randperm(len(numbers), generator=rng)[:count]]


def auroc(bad: Tensor, clean: Tensor) -> float:
    """Returns the probability that a bad image scores above a clean one, ties counted half."""
    difference = bad[:, None] - clean[None]
    return ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()


def average_precision(is_bad: Sequence[bool]) -> float:
    """Returns the mean, over the bad images, of the share of bad ones from the first place to that image."""
    places = [place for place, bad in enumerate(is_bad, start=1) if bad]
    return sum(found / place for found, place in enumerate(places, start=1)) / len(places)
