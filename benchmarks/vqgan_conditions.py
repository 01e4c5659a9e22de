"""Models over codes with a condition: its worth in nats, whether samples obey it, and a sheet for the eye."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.mixing import mixed
from benchmarks.obedience import (
    Agreement,
    depth_correlation,
    edge_f1,
    label_accuracy,
    pose_distance,
    reduced_difference,
)
from rasterformer.data.imageset import ImageSet
from rasterformer.data.palette import label_colours
from rasterformer.data.png import write_png
from rasterformer.drawing.canvas import source_sheet
from rasterformer.evaluation.code_likelihood import evaluate_codes
from rasterformer.interfaces import Batch
from rasterformer.recipe_images import open_recipe_images
from rasterformer.system import System
from rasterformer.tasks import Paired, Task, task_name

SAMPLES = 32  # images drawn for the agreement
SHEET_ROWS, SHEET_SAMPLES = 6, 3


@dataclass(frozen=True)
class Condition:
    """One condition.

    Args:
        run: folder of the model.
        title: for people.
        images: what it was trained on, for people.
        agreement: task and training images -> how samples are compared with it.
    """

    run: str
    title: str
    images: str
    agreement: Callable[[Any, ImageSet], Agreement]


CONDITIONS = {
    "lowres": Condition("flowers_lowres", "low resolution", "flowers", lambda task, training: reduced_difference(task)),
    "edges": Condition("scenes_edges/prior", "edges", "scenes", lambda task, training: edge_f1(task)),
    "depth": Condition("scenes_depth/prior", "depth", "scenes", lambda task, training: depth_correlation(training)),
    "semantic": Condition("camvid/prior", "label maps", "CamVid", lambda task, training: label_accuracy(training)),
    "pose": Condition("mouse/prior", "pose", "mice", lambda task, training: pose_distance(training)),
}


def measure_condition(name: str, system: System, data: str | None, limit: int | None, pictures: Path) -> dict[str, Any]:
    """Returns what the JSON says of one condition, and writes its sheet.

    Args:
        name: of CONDITIONS.
        system: the model.
        data: images. None: those of its recipe.
        limit: images measured. None: all of the test split, and SAMPLES for the agreement.
        pictures: folder for the sheet.
    """
    condition, tokenizer, task = CONDITIONS[name], system.tokenizer, system.recipe.task
    assert tokenizer is not None and task is not None, "the model is one over codes with a condition"
    held_out, training = (mixed(open_recipe_images(system.recipe, split, path=data)) for split in ("test", "train"))

    def with_source(batch: Batch, first: int) -> Batch:
        return system.with_source(batch, first=first, purpose="held-out source", seed=0)

    codes = evaluate_codes(
        system,
        tokenizer,
        held_out,
        model=condition.run,
        use_labels=system.recipe.data.use_labels,
        task=task_name(task),
        with_source=with_source,
        limit=limit,
    )
    count = min(SAMPLES if limit is None else limit, len(held_out))
    batch = with_source(held_out.batch(torch.arange(count), use_labels=system.recipe.data.use_labels), 0)
    assert batch.cond.source is not None, "the task makes sources"
    print(f"{name}: {count} samples", flush=True)
    began = time.perf_counter()
    samples = system.draw_from(batch.cond, n=1, seed=0)[:, 0]
    seconds = time.perf_counter() - began
    agreement = condition.agreement(task, training)
    compared = {
        "samples": samples,
        "reconstructions": tokenizer.reconstruct(batch.images),
        "originals": batch.images,
    }
    _write_sheet(pictures / f"vqgan-{name}.png", system, batch, is_labels=_is_labels(task))
    return {
        "codes": codes.to_dict(),
        "title": condition.title,
        "data": {"name": condition.images, "train_images": len(training), "test_images": len(held_out)},
        "samples": count,
        "seconds": seconds,
        "agreement": {
            "name": agreement.name,
            "how": agreement.how,
            "higher_is_better": agreement.higher_is_better,
            "rows": {row: agreement.compared(images, batch.cond.source) for row, images in compared.items()},
        },
    }


def _write_sheet(path: Path, system: System, batch: Batch, *, is_labels: bool) -> None:
    """Condition | samples | original, the first images."""
    first = Batch(batch.images[:SHEET_ROWS], batch.cond.rows(slice(SHEET_ROWS)))
    drawn = system.draw_from(first.cond, n=SHEET_SAMPLES, seed=0)
    if is_labels and first.cond.source is not None:
        first = Batch(first.images, replace(first.cond, source=label_colours(first.cond.source)))
    write_png(
        path, source_sheet(first, drawn, scale=2), metadata={"kind": "condition | 3 samples | original", "seed": 0}
    )


def _is_labels(task: Task) -> bool:
    return isinstance(task, Paired) and task.source_reduction == "nearest"
