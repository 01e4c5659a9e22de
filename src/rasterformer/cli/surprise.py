"""`rasterformer surprise`: which images of a folder the model does not expect."""

from __future__ import annotations

import csv
import io
import json as json_format
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from rasterformer.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from rasterformer.data.imageset import ImageSet
    from rasterformer.evaluation.surprise import Ranking
    from rasterformer.system import System

QUANTILE = 0.995  # of the reference's bits per pixel: the brightest colour of a heat map
TERMINAL_ROWS = 12


def surprise(
    model: Path,
    folder: str,
    *,
    reference: str | None = None,
    out: Path = Path("surprise"),
    by: Literal["both", "high", "low"] = "both",
    top: int = 24,
    heat: Literal["top", "all", "none"] = "top",
    limit: int | None = None,
    batch_size: int = 16,
    json: Path | None = None,
) -> None:
    """Find damaged, foreign or mislabelled images: rank a folder by how far its likelihoods are from the usual ones.

    Images are compared with the model's own held-out images, by bits/dim of the whole image and of its most surprising
    window of 8x8 pixels. Images too simple for the set need fewer bits than usual, so both sides count. Writes
    surprise.html, surprise.csv with all images in rank order, and heat maps of bits per pixel. A model with classes scores
    every image under every class, which takes as many times as long. Images that the model was trained on need a little
    fewer bits than others.

    Args:
        model: run, model folder or checkpoint.
        folder: images to rank: whatever can be trained on. Images smaller than the model's are passed over.
        reference: images that are as they should be. Default: the held-out images of the model's recipe.
        out: folder to write into.
        by: high: images that need more bits first; low: fewer; both: whatever is farther.
        top: images on the page, of the most and of the least surprising.
        heat: which heat maps to write into heat/.
        limit: only the first so many images, of the folder and of the reference.
        batch_size: images scored at a time.
        json: write everything into this file too.
    """
    from rich.console import Console

    from rasterformer import load
    from rasterformer.cli.progress import step_progress
    from rasterformer.cli.scan import printable
    from rasterformer.data.png import write_png
    from rasterformer.evaluation.heat_map import heat_map
    from rasterformer.evaluation.surprise import Scores, duplicates, rank, score_images
    from rasterformer.evaluation.surprise_page import write_surprise_page
    from rasterformer.recipe_images import open_recipe_images

    if top < 1:
        raise ConfigError(f"--top {top} must be at least 1.")
    system = load(model)
    if system.recipe.task is not None:
        raise ConfigError(
            f"{model} makes images from other images (recipe.task is set), so it gives no likelihood of an image alone. "
            "Give a model that was trained without a task."
        )
    settings = system.recipe.data
    if reference is None and settings.path is None:
        raise ConfigError(f"{model} does not know its held-out images (data.path is not set). Give --reference DIR.")

    def opened(path: str, split: Literal["test", "all"]) -> ImageSet:
        return open_recipe_images(system.recipe, split, path=path)

    images = opened(folder, "all")
    usual_images = opened(str(settings.path), "test") if reference is None else opened(reference, "all")
    num_classes = system.model.num_classes
    labels, usual_labels = model_labels(system, images), model_labels(system, usual_images)
    if labels is None or usual_labels is None:  # both must be scored in the same way
        labels = usual_labels = None

    def scored(image_set: ImageSet, classes: Tensor | None, what: str) -> Scores:
        with step_progress(what) as on_progress:
            return score_images(
                system,
                image_set,
                num_classes=num_classes,
                labels=classes,
                limit=limit,
                batch_size=batch_size,
                on_progress=on_progress,
            )

    usual = scored(usual_images, usual_labels, "scoring the reference")
    scores = scored(images, labels, "scoring the folder")
    ranking = rank(scores, usual, by=by)
    count = len(ranking.order)
    num_standing_out = int((ranking.score > rank(usual, usual, by=by).score.max()).sum())
    top_bits = max(
        float(usual.pixel_bits.flatten().sort().values[int(QUANTILE * (usual.pixel_bits.numel() - 1))]), 1e-3
    )
    doubts = label_doubts(system, scores.class_bits, labels, usual.class_bits, usual_labels)
    copies = duplicates(images.images(slice(k, min(k + 256, count))) for k in range(0, count, 256))
    names = [printable(name) for name in images.names[:count]]
    rows = ranked_rows(images.names, ranking, doubts, copies)

    about: dict[str, str | int] = {
        "model": str(model),
        "folder": folder,
        "images": count,
        "images passed over": len(images.skipped),
        "images farther out than every one of the reference": num_standing_out,
        "reference": f"{usual_images.name}, {usual_images.split}: {usual_images.split_origin}",
        "reference images": len(usual.pixel_bits),
        "ranked by": by,
        "z": "0.6745 (bits/dim - median) / median absolute deviation, both of the reference",
        "window z": "the same of the 8x8 pixels that need most bits",
        "score": {
            "both": "the larger |z| of the two",
            "high": "the larger z of the two",
            "low": "the larger -z of the two",
        }[by],
        "percentile": "share of the reference with fewer bits/dim, ties counted half",
        "classes": class_rule(num_classes, labels is not None),
    }
    remarks = found_remarks(names, doubts, copies, len(images.skipped))
    if num_classes and labels is None:
        remarks.append(f"Classes: {about['classes']}. Wrong labels cannot be found so.")
    write_text(out / "surprise.csv", csv_text(rows))
    write_surprise_page(
        out / "surprise.html",
        images=images.images,
        names=names,
        scores=scores,
        reference=usual,
        ranking=ranking,
        top_bits=top_bits,
        by=by,
        num_shown=top,
        num_standing_out=num_standing_out,
        about=[(what, printable(str(value))) for what, value in about.items()],
        remarks=remarks,
    )
    for index in ranking.order[: {"top": top, "all": count, "none": 0}[heat]].tolist():
        write_png(heat_path(out / "heat", images.names[index]), heat_map(scores.pixel_bits[index], top=top_bits))
    if json is not None:
        content = {
            "about": about,
            "images": [{**row, "name": printable(row["name"])} for row in rows],
            "remarks": remarks,
        }
        write_text(json, json_format.dumps(content, indent=1) + "\n")

    console = Console()
    console.print(top_table(rows[: min(top, TERMINAL_ROWS)]))
    print(f"{num_standing_out:,} of {count:,} images are farther out than every one of the reference.")
    for remark in remarks:
        console.print(remark, markup=False, highlight=False)
    print(f"{out / 'surprise.html'} and surprise.csv written, the most surprising first")


def model_labels(system: System, images: ImageSet) -> Tensor | None:
    """Returns the model's index of each image's class, int64 [N]; None where one of the two has no classes, or others."""
    import torch

    if not system.model.num_classes or images.labels is None:
        return None
    known = {name: index for index, name in enumerate(system.class_names)}
    if not set(images.class_names) <= set(known):
        return None
    return torch.tensor([known[name] for name in images.class_names])[images.labels]


def label_doubts(
    system: System,
    class_bits: Tensor | None,
    labels: Tensor | None,
    usual_bits: Tensor | None,
    usual_labels: Tensor | None,
) -> dict[int, tuple[str, str, float]]:
    """Returns image -> (its class, the most probable one, bits that this saves) where the label is doubtful."""
    from rasterformer.evaluation.surprise import doubtful_labels, label_margin

    if class_bits is None or usual_bits is None or labels is None or usual_labels is None or class_bits.shape[1] < 2:
        return {}
    labels, usual_labels = labels[: len(class_bits)], usual_labels[: len(usual_bits)]
    margin = label_margin(class_bits, labels)
    doubtful = doubtful_labels(margin, label_margin(usual_bits, usual_labels))
    best = class_bits.argmin(1)
    return {
        k: (system.class_names[int(labels[k])], system.class_names[int(best[k])], margin[k].item())
        for k in doubtful.nonzero()[:, 0].tolist()
    }


def class_rule(num_classes: int, has_labels: bool) -> str:
    """Says under which class images were scored."""
    if not num_classes:
        return "the model has none"
    if has_labels:
        return "each image under its own class, and under the others to find wrong labels"
    return "folder or reference has not the model's classes: each image of both under its most probable class"


def ranked_rows(
    names: Sequence[str],
    ranking: Ranking,
    doubts: dict[int, tuple[str, str, float]],
    copies: list[list[int]],
) -> list[dict[str, Any]]:
    """Returns a row for each image, in rank order."""
    first_copy = {k: group[0] for group in copies for k in group[1:]}
    return [
        {
            "rank": place,
            "name": names[k],
            "bits_per_dim": round(ranking.bits_per_dim[k].item(), 5),
            "z": round(ranking.z[k].item(), 3),
            "patch_z": round(ranking.patch_z[k].item(), 3),
            "percentile": round(ranking.percentile[k].item(), 2),
            "side": ranking.side(k),
            "more_probable_class": doubts[k][1] if k in doubts else "",
            "same_pixels_as": names[first_copy[k]] if k in first_copy else "",
        }
        for place, k in enumerate(ranking.order.tolist(), start=1)
    ]


def found_remarks(
    names: Sequence[str],
    doubts: dict[int, tuple[str, str, float]],
    copies: list[list[int]],
    num_skipped: int,
) -> list[str]:
    """Returns what the ranking does not show, one paragraph each."""
    found: list[str] = []
    if doubts:
        worst = sorted(doubts, key=lambda k: -doubts[k][2])
        listed = "; ".join(f"{names[k]}: {doubts[k][0]}, rather {doubts[k][1]}" for k in worst[:12])
        more = f"; and {len(worst) - 12} more in surprise.csv" if len(worst) > 12 else ""
        found.append(f"{len(worst)} possibly mislabelled, much more probable under another class: {listed}{more}.")
    if copies:
        listed = "; ".join(" = ".join(names[k] for k in group[:4]) for group in copies[:8])
        more = "; and more in surprise.csv" if len(copies) > 8 or any(len(group) > 4 for group in copies) else ""
        found.append(f"{len(copies)} groups of images with equal pixels: {listed}{more}.")
    if num_skipped:
        found.append(
            f"{num_skipped} images passed over: broken, or smaller than the model's. `rasterformer scan` lists them."
        )
    return found


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows as CSV, a header first."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def heat_path(folder: Path, name: str) -> Path:
    """Returns where an image's heat map goes: its name below `folder`, never outside, with `.png` after it."""
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..")]
    return folder.joinpath(*parts[:-1], f"{parts[-1]}.png")


def write_text(path: Path, text: str) -> None:
    """Writes a file; names that are no UTF-8 keep their bytes.

    Raises:
        DataError: it cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}.") from error


def top_table(rows: Sequence[dict[str, Any]]) -> Any:
    """Returns the first rows for a terminal."""
    from rich.table import Table
    from rich.text import Text

    from rasterformer.cli.scan import printable

    table = Table(title="the most surprising (z above 0: more bits than usual, below 0: fewer)", title_justify="left")
    for column in ("rank", "bits/dim", "z", "window z", "percentile"):
        table.add_column(column, justify="right")
    table.add_column("image", overflow="fold", ratio=1)
    for row in rows:
        table.add_row(
            str(row["rank"]),
            f"{row['bits_per_dim']:.3f}",
            f"{row['z']:+.1f}",
            f"{row['patch_z']:+.1f}",
            f"{row['percentile']:.1f}",
            Text(printable(row["name"])),
        )
    return table
