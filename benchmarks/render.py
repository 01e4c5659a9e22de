"""`docs/results.md` and its curves, from the JSON in `benchmarks/results/`: every sentence follows from the numbers.

    python -m benchmarks render
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import PICTURES, RESULTS, ROOT
from rasterformer.evaluation.likelihood import mean_interval
from rasterformer.evaluation.svg_curve import svg_curve

Record = dict[str, Any]
CONTESTANTS = {
    "house": "house recipe `{recipe_name}`",
    "house-categorical": "house recipe `{recipe_name}`",
    "paper": "the paper's form, scaled down, `{recipe_name}`",
    "pixelcnn": "small PixelCNN++, AdamW",
    "pixelcnn-muon": "small PixelCNN++, Muon as in the house recipe",
}
JPEG_XL = 4.11  # lossless, same test images; measured elsewhere
SVG_STYLE = "font:12.5px system-ui,'DejaVu Sans',sans-serif;fill:#555;background:#fff"


def main(arguments: list[str]) -> None:
    """Writes docs/results.md and docs/pictures/*.svg."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks render", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON, default benchmarks/results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder to write into, default docs")
    options = parser.parse_args(arguments)
    page = "\n\n".join(sections(options.results, options.docs))
    options.docs.mkdir(parents=True, exist_ok=True)
    (options.docs / "results.md").write_text(page + "\n", encoding="utf-8")
    print(f"{options.docs / 'results.md'} written")


def sections(results: Path, docs: Path) -> Iterator[str]:
    """Yields the page, paragraph by paragraph; benchmarks without a JSON are left out."""
    yield (
        "# Results\n\nWritten by `python -m benchmarks render` from the JSON in `benchmarks/results/`; do not edit. Every "
        "likelihood is exact, in bits per dimension (sub-pixel) of held-out images; lower is better."
    )
    folder = results / "cifar10_20_minutes"
    records = {name: _read(folder / f"{name}.json") for name in CONTESTANTS if (folder / f"{name}.json").exists()}
    if records:
        yield from twenty_minutes(records, _read(folder / "image-files.json"), folder, docs)
    if (results / "training_step.json").exists():
        yield from training_step(_read(results / "training_step.json"))


def twenty_minutes(records: Mapping[str, Record], files: Record, folder: Path, docs: Path) -> Iterator[str]:
    """The equal-time comparison."""
    first = next(iter(records.values()))
    data, minutes = first["data"], sorted({record["minutes"] for record in records.values()})
    yield f"## CIFAR-10 after {' or '.join(f'{m:g}' for m in minutes)} minutes of training"
    overlap = data["test_images_also_in_train"]
    yield (
        f"What was measured: networks with fresh weights, trained on the {data['train_images']:,} lossless training images "
        f"of {data['name']} (not the full 50,000), scored on its first {data['test_images']:,} test images, of which "
        f"{overlap or 'none'} are also training images. Published figures on the full sets are not directly comparable.\n\n"
        "Equal for all: images and their order, the training loop, the time (only optimiser steps count), precision, "
        "threads, scoring in float32. Not equal: size, batch and optimiser, which are each contestant's own. The "
        "PixelCNN++ was written for this comparison (`benchmarks/pixelcnn.py`) and given the house recipe's learning-rate "
        "schedule, clipping and weight average."
    )
    yield "```\npython -m benchmarks cifar10_20_minutes --data DIR --out FOLDER\n```"
    yield circumstances(first)
    yield table(
        ("contestant", "bits/dim", "95 % interval", "parameters", "images/s", "images seen", "batch", "optimiser", "steps"),
        [_contestant_row(name, records[name]) for name in ranking(records)],
    )
    yield " ".join(verdicts(records))
    yield " ".join(against_files(records, files))
    if (folder / "remarks.md").exists():  # by hand: what the numbers cannot say of themselves
        yield (folder / "remarks.md").read_text(encoding="utf-8").strip()
    formats = sorted(files["bits_per_dim"].items(), key=lambda item: -float(item[1]))
    rows = [(name, f"{bits:.3f}") for name, bits in formats]
    if not _has_jpeg_xl(files):
        rows.append(("JPEG XL (measured elsewhere, libjxl lossless; not run again here)", f"{JPEG_XL:.2f}"))
    yield table(("lossless files of the same images", "bits/dim"), rows)
    yield _picture(docs, records)
    for name in ranking(records):
        for kind, file in records[name].get("pictures", {}).items():
            what = "32 samples, seed 0, temperature 1" if kind == "samples" else (
                "eight test images, a column each: the known upper half, three completions, the original"
            )
            yield f"{_capital(_title(name, records[name]))}: {what}.\n\n![{name}, {kind}](pictures/{file})"


def verdicts(records: Mapping[str, Record]) -> Iterator[str]:
    """Who is ahead of whom, and by how much, on the same images."""
    order = ranking(records)
    winner = order[0]
    if len(order) == 1:
        yield f"Only one contestant was run: {_title(winner, records[winner])}."
        return
    yield f"**{_capital(_title(winner, records[winner]))} is ahead, at {records[winner]['bits_per_dim']:.3f} bits/dim.**"
    for name in order[1:]:
        low, high = _lead(records[winner], records[name])
        behind = records[name]["bits_per_dim"] - records[winner]["bits_per_dim"]
        doubt = "" if low > 0 else ", which these images cannot tell from zero"
        yield (
            f"{_capital(_title(name, records[name]))} is behind by {behind:.3f}{doubt} "
            f"(95 % over the same images: {low:.3f} to {high:.3f})."
        )
    rivals = [name for name in order if name in ("pixelcnn", "pixelcnn-muon")]
    if "house" in records and rivals:
        low, high = _lead(records["house"], records[rivals[0]])
        if low > 0:
            yield "So at this budget the house recipe beats the better PixelCNN++ that was run."
        elif high < 0:
            yield (
                "So at this budget the house recipe **loses** to the better PixelCNN++ that was run. This says nothing "
                "about longer training, larger images or conditioning."
            )
        else:
            yield "So at this budget the house recipe and the better PixelCNN++ are equal within what can be measured here."


def against_files(records: Mapping[str, Record], files: Record) -> Iterator[str]:
    """Where the contestants stand beside lossless image files."""
    formats = {name.replace(", one sheet", " (one sheet)"): bits for name, bits in files["bits_per_dim"].items()}
    if not _has_jpeg_xl(files):
        formats["JPEG XL"] = JPEG_XL
    for name in ranking(records):
        bits = records[name]["bits_per_dim"]
        below = [f for f, b in formats.items() if bits < b]
        above = [f for f, b in formats.items() if bits >= b]
        said = [f"below {_and(below)}"] if below else []
        said += [f"above {_and(above)}"] if above else []
        yield f"{_capital(_title(name, records[name]))} is {' but '.join(said)}."


def training_step(record: Record) -> Iterator[str]:
    """Speed: local against dense attention, and the share of the peak."""
    yield "## Speed of a training step"
    form = record["paper_form"]
    yield (
        f"What was measured: forward and backward of the paper's categorical form (width {form['width']}, {form['depth']} "
        f"layers, {form['num_heads']} heads, feed-forward {form['mlp_width']}) with local attention (blocks of "
        f"{form['block_length']}, memory {form['memory_length']}) and with dense causal attention, which is PyTorch's own "
        f"`scaled_dot_product_attention`; same weights' shapes, batch, {record['dtype']} and threads, {record['pairs']} "
        "rounds in turn in one process."
    )
    yield "```\npython -m benchmarks training_step\n```"
    yield circumstances(record)
    rows = []
    for found in record["local_against_dense"]:
        ratio, local, dense = found["ratio"], found["local"], found["dense"]
        rows.append(
            (
                f"{found['image_size']}x{found['image_size']}",
                f"{found['seq_len']:,}",
                str(found["batch_size"]),
                f"{local['images_per_second']:.2f}",
                f"{dense['images_per_second']:.2f}",
                f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})",
                f"{local['share_of_peak']:.1%}",
                f"{dense['share_of_peak']:.1%}",
            )
        )
    speeds = ("local, images/s", "dense, images/s", "local / dense: median (range)", "local, of peak", "dense, of peak")
    yield table(("images", "positions", "batch", *speeds), rows)
    for found in record["local_against_dense"]:
        ratio = found["ratio"]
        size = f"{found['image_size']}x{found['image_size']}"
        if ratio["lowest"] > 1:
            yield f"At {size} a step with local attention is {ratio['median']:.2f} times as fast as with dense attention."
        elif ratio["highest"] < 1:
            yield f"At {size} local attention is slower than dense attention: {ratio['median']:.2f} times its speed."
        else:
            yield f"At {size} the two cannot be told apart: the rounds lie on both sides of 1."
    house = record["house"]
    yield (
        f"The house recipe `{house['recipe']}` makes {house['images_per_second']:.1f} images/s at batch {house['batch_size']}, "
        f"{house['gigaflops_per_image']:.2f} GFLOP an image, which is {house['share_of_peak']:.1%} of the peak. The peak is "
        f"{record['peak_flops_per_second'] / 1e12:.2f} TFLOP/s: {record['peak_rule']}. Operations are counted so: "
        f"{record['flop_rule']}"
    )


def ranking(records: Mapping[str, Record]) -> list[str]:
    """Names, the lowest bits/dim first."""
    return sorted(records, key=lambda name: float(records[name]["bits_per_dim"]))


def circumstances(record: Record) -> str:
    """Machine, versions and commit in one line."""
    machine = record["machine"]
    units = "with" if machine["bfloat16_matrix_units"] else "without"
    return (
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, {units} bfloat16 matrix "
        f"units; torch {record['torch']}, Python {record['python']}; commit {record['commit']}."
    )


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _contestant_row(name: str, record: Record) -> tuple[str, ...]:
    low, high = record["interval"]
    training = record["recipe"]["training"]
    return (
        _title(name, record),
        f"**{record['bits_per_dim']:.4f}**",
        f"{low:.3f} to {high:.3f}",
        f"{record['parameters'] / 1e6:.2f} M",
        f"{record['images_per_second']:.1f}",
        f"{record['images_seen']:,}",
        str(training["batch_size"]),
        training["optimizer"],
        f"{record['steps']:,}",
    )


def _picture(docs: Path, records: Mapping[str, Record]) -> str:
    """Writes the curves and returns the reference to them."""
    curves = {
        name: [(point["seconds"] / 60, point["held_out_bits_per_dim"]) for point in records[name]["curve"]]
        for name in ranking(records)
    }
    drawing = svg_curve(
        curves, x_label="training time, minutes", y_label="held-out bits/dim", lines={"JPEG XL": JPEG_XL}
    )
    target = docs / PICTURES.name / "cifar10-20-minutes.svg"
    target.parent.mkdir(parents=True, exist_ok=True)
    alone = drawing.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" style="{SVG_STYLE}" ', 1)
    target.write_text(alone + "\n", encoding="utf-8")
    images = next(iter(records.values()))["curve_images"]
    return (
        f"Held-out bits/dim against training time, on the first {images} test images (the table has all of them):\n\n"
        f"![curves](pictures/{target.name})"
    )


def _title(name: str, record: Record) -> str:
    return CONTESTANTS[name].format(recipe_name=record["recipe_name"])


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _has_jpeg_xl(files: Record) -> bool:
    return any(name.startswith("JPEG XL") for name in files["bits_per_dim"])


def _lead(better: Record, worse: Record) -> tuple[float, float]:
    """95 % interval of how many bits/dim the first is ahead of the second, from differences image by image."""
    ours, theirs = (torch.tensor(r["bits_per_dim_of_images"], dtype=torch.float64) for r in (better, worse))
    interval = mean_interval(theirs - ours)
    assert interval is not None, "one image says nothing"
    return interval


def _read(path: Path) -> Record:
    content: Record = json.loads(path.read_text(encoding="utf-8"))
    return content
