"""`docs/results.md` and its curves, from the JSON in `benchmarks/results/`: every sentence follows from the numbers.

python -m benchmarks render
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.markdown import circumstances, table, write_drawing
from benchmarks.record import PICTURES, RESULTS, ROOT
from benchmarks.render_codes_speed import codes_speed
from benchmarks.render_imagen import imagen, read_parts
from benchmarks.render_imagen_speed import imagen_speed
from benchmarks.render_vq_diffusion import vq_diffusion
from benchmarks.render_vqgan import vqgan
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
STEP_CONTESTANTS = {
    "local": "ours, local attention",
    "dense": "ours, dense attention of PyTorch",
    "local-attention": "local-attention",
    "x-transformers": "x-transformers, dense",
}
DEFAULT_RULE = "both, image and window"  # of `rasterformer surprise`
JPEG_XL = 4.11  # lossless, same test images; measured elsewhere


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
        "likelihood of pixels is exact where it is not called a bound, in bits per dimension (sub-pixel) of held-out images; "
        "lower is better. Models over codes have a likelihood of codes, in nats per code, which does not compare with it."
    )
    folder = results / "cifar10_20_minutes"
    records = {name: _read(folder / f"{name}.json") for name in CONTESTANTS if (folder / f"{name}.json").exists()}
    if records:
        yield from twenty_minutes(records, _read(folder / "image-files.json"), folder, docs)
    if (results / "sampling.json").exists():
        yield from sampling(_read(results / "sampling.json"), results / "sampling-remarks.md")
    if (results / "training_step.json").exists():
        yield from training_step(_read(results / "training_step.json"))
    if (results / "codes_speed.json").exists():
        yield from codes_speed(_read(results / "codes_speed.json"))
    if (results / "imagen_speed.json").exists():
        yield from imagen_speed(_read(results / "imagen_speed.json"))
    if (results / "super_resolution.json").exists():
        yield from super_resolution(_read(results / "super_resolution.json"), results / "super_resolution-remarks.md")
    if (results / "source_gain.json").exists():
        yield from source_gain(_read(results / "source_gain.json"))
    if (results / "restoration.json").exists():
        yield from restoration(_read(results / "restoration.json"))
    if (results / "tiles.json").exists():
        yield from tiles(_read(results / "tiles.json"))
    if (results / "surprise.json").exists():
        yield from surprise(_read(results / "surprise.json"))
    if (results / "vqgan.json").exists():
        yield from vqgan(_read(results / "vqgan.json"), results / "vqgan-remarks.md", docs / PICTURES.name)
    if (results / "vq_diffusion.json").exists():
        yield from vq_diffusion(_read(results / "vq_diffusion.json"), results / "vq_diffusion-remarks.md")
    if (results / "imagen").is_dir():
        yield from imagen(read_parts(results / "imagen"), results / "imagen-remarks.md")


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
        (
            "contestant",
            "bits/dim",
            "95 % interval",
            "parameters",
            "images/s",
            "images seen",
            "batch",
            "optimiser",
            "steps",
        ),
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
            what = (
                "32 samples, seed 0, temperature 1"
                if kind == "samples"
                else ("eight test images, a column each: the known upper half, three completions, the original")
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


def sampling(record: Record, remarks: Path) -> Iterator[str]:
    """Speed, exactness and memory of sampling."""
    form = record["form"]
    yield "## Sampling"
    yield (
        f"What was measured: drawing categorical pixels at 32x32 (3,072 steps an image) with {form['depth']} layers, width "
        f"{form['width']}, {form['num_heads']} heads, feed-forward {form['mlp_width']}, blocks of {form['block_length']} with "
        f"{form['memory_length']} of memory, fresh weights; against transformers' ImageGPT with its cache, of the same sizes and "
        f"dtype ({_versions(record)}). Equal: threads, batch, steps; one symbol drawn from a softmax in each. Not equal: "
        "ImageGPT attends to all earlier positions, ours to the window; that is the point. Steps are timed at "
        f"{record['places']} places spread over the image, {record['pairs']} rounds in turn in one process."
    )
    yield "```\npython -m benchmarks sampling --trained FOLDER ...\n```"
    yield circumstances(record)
    rows = []
    for found in record["image_gpt"]:
        ours, theirs = (found["seconds_per_step"][name]["median"] for name in ("ours", "opponent"))
        rows.append(
            (
                found["dtype"],
                str(found["batch_size"]),
                f"{1e3 * ours:.2f}",
                f"{1e3 * theirs:.2f}",
                _range(found["ratio"]),
                f"{found['batch_size'] / (ours * 3072):.2f}",
            )
        )
    columns = (
        "dtype",
        "batch",
        "ours, ms a step",
        "ImageGPT, ms a step",
        "ours is faster by: median (range)",
        "images/s, ours",
    )
    yield table(columns, rows)
    for found in record["image_gpt"]:
        wanted = 5 if found["batch_size"] == 1 else 15
        yield _wanted(f"ImageGPT, {found['dtype']}, batch {found['batch_size']}", found["ratio"], wanted)
    whole = record["whole_images"]
    seconds = {name: f"{values['median']:.2f} s" for name, values in whole["seconds"].items()}
    yield (
        f"One whole image at batch 1, float32: ours {seconds['ours']}; ImageGPT in a plain loop {seconds['loop']} "
        f"({_range(whole['ratio']['loop'])} times ours), by transformers' own `generate` {seconds['generate']} "
        f"({_range(whole['ratio']['generate'])} times ours)."
    )
    for found in record["naive"]:
        yield _wanted(f"evaluating the whole image for every symbol, batch {found['batch_size']}", found["ratio"], 300)
    saved = []
    for found in record["grouped_heads"]:
        saved.append(f"{found['dtype']}, batch {found['batch_size']}: {_range(found['ratio'])}")
    yield f"One key-value head for all query heads against as many as queries, times as fast: {'; '.join(saved)}."
    for found in record["by_image_size"]:
        times = {size: f"{1e3 * values['median']:.2f} ms" for size, values in found["seconds_per_step"].items()}
        listed = ", ".join(f"{size}x{size}: {text}" for size, text in times.items())
        met = "met" if found["ratio"]["median"] <= 1.15 else "MISSED"
        yield (
            f"Time of a step by image size, batch {found['batch_size']}: {listed}. 128x128 against 32x32: "
            f"{_range(found['ratio'])} (at most 1.15 wanted: {met})."
        )
    yield table(
        ("memory, 32 images", "size", "dtype", "keys and values, MiB", "growth of the process, MiB", "ratio"),
        [
            (
                found["kind"],
                f"{found['image_size']}x{found['image_size']}",
                found["dtype"],
                f"{found['keys_and_values'] / 2**20:.0f}",
                f"{found['bytes'] / 2**20:.0f}",
                f"{found['ratio']:.2f}",
            )
            for found in record["memory"]
        ],
    )
    worst = {
        kind: max(found["ratio"] for found in record["memory"] if found["kind"] == kind)
        for kind in dict.fromkeys(found["kind"] for found in record["memory"])
    }
    verdicts = ", ".join(f"{kind} {most:.2f} ({'met' if most <= 1.2 else 'MISSED'})" for kind, most in worst.items())
    yield (
        "The arithmetic is layers x 2 x window x width x bytes x images; the growth holds everything else too: symbols, noise, "
        f"temporary results. Completing goes over a known prefix in pieces. At most 1.2 wanted; the largest: {verdicts}."
    )
    if record["trained"]:
        yield "### Exact parallel sampling with trained models, batch 1"
        yield (
            "The same image in fewer passes: positions ahead are guessed by the model's own last outputs and kept where they "
            "reproduce themselves. Identical: images that equal those of single steps, symbol for symbol, in float32."
        )
        yield table(
            (
                "model",
                "window",
                "identical",
                "positions a pass: median (range)",
                "seconds: steps, parallel",
                "faster by",
            ),
            [_parallel_row(model, window) for model in record["trained"] for window in model["windows"]],
        )
        for model in record["trained"]:
            difference = model["bits_per_dim_bfloat16"] - model["bits_per_dim"]
            yield (
                f"{_trained_title(model)}: {model['bits_per_dim']:.4f} bits/dim in float32, {model['bits_per_dim_bfloat16']:.4f} "
                f"with layers in bfloat16 ({difference:+.4f}), {model['scored_images']} held-out images."
            )
    if remarks.exists():  # by hand: what the numbers cannot say of themselves
        yield remarks.read_text(encoding="utf-8").strip()


def _parallel_row(model: Record, found: Record) -> tuple[str, ...]:
    steps, parallel = (found["seconds_per_image"][name]["median"] for name in ("steps", "parallel"))
    return (
        _trained_title(model),
        str(found["window"]),
        f"{found['identical']} of {found['images']}",
        _range(found["positions_per_pass"]),
        f"{steps:.2f}, {parallel:.2f}",
        _range(found["ratio"]),
    )


def _trained_title(model: Record) -> str:
    return (
        f"{model['model']['distribution']}, {model['positions']:,} positions, {model['data']}, {model['steps']:,} steps"
    )


def _wanted(what: str, found: Record, wanted: float) -> str:
    met = "met" if found["median"] >= wanted else "MISSED"
    return f"Against {what}: {_range(found)} times as fast (at least {wanted:g} wanted: {met})."


def _range(found: Record) -> str:
    return f"{found['median']:.2f} ({found['lowest']:.2f} to {found['highest']:.2f})"


def _verdict(name: str, found: Record) -> str:
    if found["lowest"] > 1:
        return f"{name}: {found['median']:.2f} times as fast."
    if found["highest"] < 1:
        return f"{name}: **slower**, {found['median']:.2f} times its speed."
    return f"{name}: the rounds lie on both sides of 1."


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {version}" for name, version in record["opponents"].items())


def training_step(record: Record) -> Iterator[str]:
    """Speed: local against dense attention, and the share of the peak."""
    yield "## Speed of a training step"
    form = record["paper_form"]
    yield (
        f"What was measured: forward and backward of the paper's categorical form (width {form['width']}, {form['depth']} "
        f"layers, {form['num_heads']} heads, feed-forward {form['mlp_width']}) with local attention (blocks of "
        f"{form['block_length']}, memory {form['memory_length']}) and with dense causal attention, which is PyTorch's own "
        f"`scaled_dot_product_attention`; and of two libraries' networks of the same width, depth, heads and window. Equal: "
        f"batch, {record['dtype']}, threads, {record['pairs']} rounds in turn in one process. Not equal: the libraries' "
        f"feed-forward is gated and so larger ({_versions(record)})."
    )
    yield "```\npython -m benchmarks training_step\n```"
    yield circumstances(record)
    rows = []
    for found in record["comparisons"]:
        for name, row in found["contestants"].items():
            rows.append(
                (
                    f"{found['image_size']}x{found['image_size']}",
                    STEP_CONTESTANTS[name],
                    f"{row['parameters'] / 1e6:.2f} M",
                    f"{row['images_per_second']:.2f}",
                    "" if name == "local" else _range(row["ratio"]),
                    f"{row['share_of_peak']:.1%}" if "share_of_peak" in row else "not counted",
                )
            )
    yield table(("images", "network", "parameters", "images/s", "ours is faster by: median (range)", "of peak"), rows)
    for found in record["comparisons"]:
        size = f"{found['image_size']}x{found['image_size']}"
        yield f"At {size}, ours against: " + " ".join(
            _verdict(STEP_CONTESTANTS[name], row["ratio"])
            for name, row in found["contestants"].items()
            if name != "local"
        )
    house = record["house"]
    yield (
        f"The house recipe `{house['recipe']}` makes {house['images_per_second']:.1f} images/s at batch {house['batch_size']}, "
        f"{house['gigaflops_per_image']:.2f} GFLOP an image, which is {house['share_of_peak']:.1%} of the peak. The peak is "
        f"{record['peak_flops_per_second'] / 1e12:.2f} TFLOP/s: {record['peak_rule']}. Operations are counted so: "
        f"{record['flop_rule']}"
    )


def super_resolution(record: Record, remarks: Path) -> Iterator[str]:
    """1D and 2D attention beside each other, and the samples beside simple means."""
    data, runs, found = record["data"], record["runs"], record["likelihoods"]
    titles = {
        "1d": "1D attention",
        "2d": "2D attention",
        "rest": "1D attention and `source_rest` (recipe `upscale`)",
        "alone": "the 1D decoder without a source",
    }
    drawn = list(record["reports"])
    yield f"## Super-resolution, 8x8 -> 32x32, {data['name']}, {runs['1d']['minutes']:g} minutes of training each"
    yield (
        f"Trained on {data['train_images']:,} images, scored on all {data['test_images']:,} test images. 1D and 2D differ in "
        "attention and generation order, and in that convolutions in block order see nothing to the right. `source_rest` tells "
        "the network what each source pixel leaves for the rest of its area; it is ours, not the paper's. The decoder without a "
        "source is that of 1D, trained as long on the same images."
    )
    yield _likelihood_table(titles, found, runs)
    said = []
    for name, gain in record["gains_of_the_source"].items():
        low, high = gain["interval"]
        better = "better" if low > 0 else "worse" if high < 0 else "not different"
        said.append(f"{titles[name]}: {gain['mean']:+.4f} (95 %: {low:+.4f} .. {high:+.4f}, {better})")
    yield (
        "Bits/dim that the conditional likelihood saves against the unconditional one on the same images, paired: "
        + "; ".join(said)
        + "."
    )
    yield (
        f"Samples: {record['samples']} of each of the first {record['images']} test sources. Consistency is the mean squared "
        "difference between a source and its reduced sample, values scaled to 0..1, below it the root in grey levels; PSNR, SSIM "
        "and MS-SSIM are of the first sample and, as the paper says, do not track how good samples look. FD-EffLite0 is biased "
        "for so few images and compares only within this table; it is no FID."
    )
    first = record["reports"]["1d"]["1.0"]["rows"]
    rows = []
    for name in drawn:
        for temperature, report in record["reports"][name].items():
            short = {"1d": "1D", "2d": "2D", "rest": "1D, `source_rest`"}[name]
            rows.append(_sample_row(f"{short}, temperature {temperature}", report["rows"]["model"]))
    rows += [_sample_row(name, figures) for name, figures in first.items() if name != "model"]
    yield table(
        (
            "",
            "consistency, area",
            "bicubic",
            "PSNR",
            "SSIM",
            "MS-SSIM",
            "FD-EffLite0",
            "nearest training image",
            "diversity",
        ),
        rows,
    )
    yield (
        "Nearest training image: MS-SSIM (0..100) between the first sample and the training image whose source is nearest; the "
        "row `original` says what is usual. Diversity: root mean square difference between samples of one source, grey levels."
    )
    for name in ("1d", "2d"):
        yield (
            f"![{titles[name]}](pictures/super-resolution-{name}.png)\n\n{titles[name]}: source | two samples each at "
            "temperature 1.0, 0.9, 0.8 | original; the first test images, not chosen."
        )
    if remarks.exists():
        yield remarks.read_text(encoding="utf-8").strip()
    yield circumstances(record)


def source_gain(record: Record) -> Iterator[str]:
    """The same photographs with and without a source."""
    runs, found, gain = record["runs"], record["likelihoods"], record["gain"]
    low, high = gain["interval"]
    yield f"## What an 8x8 source is worth: {record['data']['name']}, {runs['alone']['minutes']:g} minutes of training each"
    yield (
        "Recipe `modern-dmol` without a source, and with one: super-resolution 8x8 -> 32x32, an encoder layer in place of one "
        f"of the decoder's. Scored on {record['data']['test_images']:,} test images; short trainings, not to be compared with "
        "others."
    )
    titles = {"source": "given the 8x8 source", "alone": "without a source"}
    yield _likelihood_table(titles, found, runs)
    verdict = "the conditional likelihood is better" if low > 0 else "NOT shown to be better"
    yield (
        f"On the same images the source saves {gain['mean']:.4f} bits/dim (95 %: {low:.4f} .. {high:.4f}, paired): {verdict}."
    )
    yield circumstances(record)


def restoration(record: Record) -> Iterator[str]:
    """In-painting, colourisation, denoising."""
    tasks: Record = record["tasks"]
    first = next(iter(tasks.values()))
    minutes = sorted({task["run"]["minutes"] for task in tasks.values()})
    yield f"## In-painting, colourisation, denoising, {first['likelihood']['dataset']}"
    yield (
        f"Each trained for {' or '.join(f'{m:g}' for m in minutes)} minutes, scored on all "
        f"{first['likelihood']['num_images']:,} test images, {first['samples']} samples at temperature 1 of each of the first "
        f"{first['images']} sources. The likelihood of in-painting is over unknown pixels only. PSNR and SSIM are those of the "
        "first sample, beside those of the source as it is; they reward blur, and a sample of something else that could be "
        "there loses."
    )
    rows = []
    for name, task in tasks.items():
        model, source = task["report"]["rows"]["model"], task["report"]["rows"]["source"]
        low, high = task["likelihood"]["interval"]
        changed = model.get("known_pixels_changed")
        rows.append(
            (
                name,
                f"{task['likelihood']['bits_per_dim']:.4f} ({low:.4f} .. {high:.4f})",
                f"{100 * task['likelihood']['unknown_share']:.0f} %",
                f"{model['psnr_db']:.2f} / {source['psnr_db']:.2f}",
                f"{model['ssim']:.3f} / {source['ssim']:.3f}",
                f"{model['fd_efflite0']:.1f} / {source['fd_efflite0']:.1f}",
                f"{model['diversity_grey_levels']:.1f}",
                "" if changed is None else f"{changed:.0f}",
            )
        )
    head = ("task", "bits/dim (95 %)", "dimensions counted", "PSNR / source", "SSIM / source", "FD-EffLite0 / source")
    yield table((*head, "diversity", "known pixels changed"), rows)
    for name in tasks:
        yield f"![{name}](pictures/{name}.png)\n\n{_capital(name)}: source | four samples | original; the first test images."
    yield circumstances(record)


def tiles(record: Record) -> Iterator[str]:
    """Seams of pictures drawn in tiles."""
    data, size = record["data"], record["data"]["image_size"]
    yield f"## Tiles: {size // 4}x{size // 4} -> {size}x{size} by a model of 8x8 -> 32x32, {data['name']}"
    yield (
        f"The model was trained for {record['run']['minutes']:g} minutes on 32x32 cuttings of the training images and draws "
        f"{data['test_images']} whole test images in tiles. Measured is how much neighbouring pixels differ where tiles meet, "
        "divided by how much they differ at other borders of source pixels: 1 is no seam, and the originals say what these "
        "places have anyway."
    )
    yield table(
        ("overlap, source pixels", "drawn (95 %)", "originals at the same places (95 %)"),
        [
            (overlap, *(f"{f['ratio']:.3f} ({f['interval'][0]:.3f} .. {f['interval'][1]:.3f})" for f in found.values()))
            for overlap, found in record["rows"].items()
        ],
    )
    yield "![tiles](pictures/tiles.png)\n\nSource | overlapping tiles | tiles side by side | original; the first test images."
    yield circumstances(record)


def _likelihood_table(titles: Mapping[str, str], found: Record, runs: Record) -> str:
    """A row for each run: likelihood, size, steps."""
    rows = [
        (
            title,
            f"{found[name]['bits_per_dim']:.4f}",
            f"{found[name]['interval'][0]:.4f} .. {found[name]['interval'][1]:.4f}",
            f"{runs[name]['parameters']:,}",
            f"{runs[name]['steps']:,}",
        )
        for name, title in titles.items()
    ]
    return table(("", "bits/dim", "95 % interval", "parameters", "steps"), rows)


def _sample_row(name: str, figures: Record) -> tuple[str, ...]:
    def cell(key: str, form: str) -> str:
        return "" if figures.get(key) is None else format(figures[key], form)

    def consistency(kind: str) -> str:
        if f"consistency_{kind}" not in figures:
            return ""
        return f"{figures[f'consistency_{kind}']:.5f} ({figures[f'consistency_{kind}_grey_levels']:.1f})"

    return (
        name,
        consistency("area"),
        consistency("bicubic"),
        cell("psnr_db", ".2f"),
        cell("ssim", ".3f"),
        cell("ms_ssim", ".3f"),
        cell("fd_efflite0", ".1f"),
        cell("memorisation_ms_ssim", ".1f"),
        cell("diversity_grey_levels", ".1f"),
    )


def surprise(record: Record) -> Iterator[str]:
    """How many bad images a ranking by likelihood finds."""
    mix, model = record["mix"], record["model"]
    bad = {kind: count for kind, count in mix.items() if kind not in ("clean", "mixes")}
    rules = record["rules"]
    total = next(iter(rules.values()))["num_bad"]
    yield "## Finding bad images"
    yield (
        f"What was measured: `rasterformer surprise` on {mix['clean']} held-out images of {record['clean']['name']} with {total} "
        f"bad ones mixed in ({'; '.join(f'{count} {kind}' for kind, count in bad.items())}), the mean over {mix['mixes']} such "
        f"folders drawn at random. The model ({model['distribution']}, {model['image_size']}x{model['image_size']}, "
        f"{model['steps']:,} steps) was trained on the set's other split; the reference are "
        f"{record['clean']['reference_images']} further held-out images."
    )
    yield "```\npython -m benchmarks surprise --model FOLDER --clean SET --foreign SET ...\n```"
    yield circumstances(record)
    heads = [f"bad among the first {k}" for k in next(iter(rules.values()))["first"]]
    yield table(
        ("ranked by", *heads, "average precision"),
        [
            (name, *(f"{one['bad']:.1f}" for one in rule["first"].values()), f"{rule['average_precision']:.3f}")
            for name, rule in rules.items()
        ],
    )
    best = max(rules, key=lambda name: float(rules[name]["average_precision"]))
    chosen = (
        "which is the command's default" if best == DEFAULT_RULE else f"while the command's default is {DEFAULT_RULE}"
    )
    yield f"The best of these is {best}, {chosen}. One kind at a time, AUROC against the clean images (0.5 is chance):"
    yield table(
        ("kind", "bits/dim", *rules),
        [
            (
                kind,
                f"{record['bits_per_dim'][kind]:.2f}",
                *(f"{rule['kinds'][kind]['auroc']:.3f}" for rule in rules.values()),
            )
            for kind in bad
        ],
    )
    yield (
        f"Clean images need {record['bits_per_dim']['clean']:.2f} bits/dim. "
        + " ".join(f"{_capital(kind)}: {text}" for kind, text in record["damages"].items())
    )


def ranking(records: Mapping[str, Record]) -> list[str]:
    """Names, the lowest bits/dim first."""
    return sorted(records, key=lambda name: float(records[name]["bits_per_dim"]))


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
    write_drawing(target, drawing)
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
