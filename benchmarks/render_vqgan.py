"""The section of `docs/results.md` on VQGAN, from `vqgan.json`: whatever parts of it have been measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.markdown import circumstances, table, write_drawing
from rasterformer.evaluation.svg_curve import svg_curve

Record = dict[str, Any]
QUANTISERS = {
    "modern": "recipe `vqgan`: 8-dimensional normalised codes, k-means start, restarts",
    "paper": "the paper's quantiser: 256 dimensions, uniform start, beta on the codebook term",
}
WANTED_USAGE = 0.8


def vqgan(record: Record, remarks: Path, pictures: Path) -> Iterator[str]:
    """Yields the section, paragraph by paragraph."""
    yield "## VQGAN: a tokenizer and a transformer over its codes"
    yield (
        "Finished runs of `rasterformer train`, measured. The perceptual loss of the tokenizers and FD-EffLite0 use the same "
        "ImageNet network, EfficientNet-Lite0, so that FD-EffLite0 flatters what was trained with that loss; it is no FID."
    )
    yield "```\npython -m benchmarks vqgan --runs FOLDER --photo FILE\n```"
    if record.get("tokenizers"):
        yield from tokenizers(record["tokenizers"], pictures)
    if "prior" in record:
        yield from prior(record["prior"])
    if record.get("conditions"):
        yield from conditions(record["conditions"])
    if record.get("megapixel"):
        yield from large(list(record["megapixel"].values()))
    if record["missing"]:
        yield f"Not measured yet, because there was no finished run: {', '.join(f'`{run}`' for run in record['missing'])}."
    if remarks.exists():  # by hand: what the numbers cannot say of themselves
        yield remarks.read_text(encoding="utf-8").strip()


def tokenizers(found: dict[str, Record], pictures: Path) -> Iterator[str]:
    """Reconstructions and the use of the codebook."""
    first = next(iter(found.values()))
    report, minutes = first["report"], sorted({one["run"]["minutes"] for one in found.values()})
    yield f"### Tokenizers, {report['dataset']}, {' or '.join(f'{m:g}' for m in minutes)} minutes of training each"
    yield (
        f"{report['image_size']}x{report['image_size']} pixels to {report['codes_per_image']} of {report['vocab_size']:,} codes "
        f"(f = {report['factor']}), measured on {report['num_images']:,} of {report['split_images']:,} test images. Equal for "
        f"all: networks, losses, images, time. Perceptual distance: {report['perceptual']}."
    )
    rows = []
    for name, one in found.items():
        figures = {
            key: f"{value['mean']:.{2 if key != 'ssim' else 3}f}" for key, value in one["report"]["figures"].items()
        }
        rows.append(
            (
                QUANTISERS[name],
                *(figures[key] for key in ("psnr_db", "ssim", "l1_grey_levels", "perceptual")),
                f"{one['report']['fd_efflite0']:.1f}",
                f"{one['report']['share_used']:.1%}",
                f"{one['training_usage']['share_used']:.1%}",
                f"{one['training_usage']['perplexity']:.0f}",
                f"{one['run']['steps']:,}",
            )
        )
    columns = ("PSNR, dB", "SSIM", "L1, grey levels", "perceptual", "FD-EffLite0")
    yield table(("", *columns, "codes used: test", "training", "perplexity, training", "steps"), rows)
    used = {name: one["training_usage"]["share_used"] for name, one in found.items()}
    images = first["training_usage"]["images"]
    if "modern" in used:
        met = "met" if used["modern"] > WANTED_USAGE else "MISSED"
        yield (
            f"Recipe `vqgan`: {used['modern']:.1%} of the codes occur in {images:,} training images (above {WANTED_USAGE:.0%} "
            f"wanted: {met})" + ("." if "paper" not in used else f"; with the paper's quantiser {used['paper']:.1%}.")
        )
    for key, label, target in (
        ("psnr_db", "held-out PSNR, dB", "vqgan-psnr.svg"),
        ("share_used", "share of codes used, held-out", "vqgan-usage.svg"),
    ):
        curves = {name: [(point["minutes"], point[key]) for point in one["curve"]] for name, one in found.items()}
        write_drawing(pictures / target, svg_curve(curves, x_label="training time, minutes", y_label=label))
        yield f"![{label}](pictures/{target})"
    yield (
        f"Test images drawn at random, a row each: originals, {', '.join(found)}.\n\n"
        "![reconstructions](pictures/vqgan-reconstructions.png)"
    )
    yield from _circumstances(found)


def prior(record: Record) -> Iterator[str]:
    """The class-conditional transformer."""
    codes, run = record["codes"], record["run"]
    yield f"### Class-conditional prior, {codes['dataset']}, {run['minutes']:g} minutes of training"
    yield _nats(codes, "class") + (
        f" That is {codes['bits_per_pixel']:.4f} bits a pixel for the codes, from which an image returns only as its "
        f"reconstruction. {run['parameters']:,} parameters, {run['steps']:,} steps."
    )
    yield (
        f"FD-EffLite0 of {record['samples']:,} images each to as many test images; samples have the classes of the test images, "
        "temperature 1. Reconstructions are what the codes of the test images themselves decode to, and training images what "
        "other real images reach."
    )
    seconds = record["seconds"]
    rows = []
    for name, distance in record["fd_efflite0"].items():
        scale = name.rpartition(" ")[2]
        speed = f"{record['samples'] / seconds[scale]:.2f}" if scale in seconds else ""
        rows.append((name, f"{distance:.1f}", speed))
    yield table(("", "FD-EffLite0", "images/s"), rows)
    for scale in seconds:
        classes = f"; a row for each class: {', '.join(record['class_names'])}" if record["class_names"] else ""
        file = f"vqgan-samples-guidance-{scale}.png"
        yield f"Guidance {scale}, the first samples of seed 0, not chosen{classes}.\n\n![samples](pictures/{file})"
    yield circumstances(record)


def conditions(found: dict[str, Record]) -> Iterator[str]:
    """Likelihood, obedience and sheets of conditional models."""
    yield "### Conditions"
    yield (
        "Each model was trained briefly. Nats per code are of the test images' codes, given their own condition and given "
        "that of another image. Then one sample is drawn for each of some test images, taken at random, and compared "
        "with the condition it was given and with that of another image; the same for originals and for their "
        "reconstructions, which show how much the measure can see at best."
    )
    rows = [
        (
            one["title"],
            one["data"]["name"],
            f"{one['run']['minutes']:g}",
            f"{one['codes']['nats_per_code']:.3f}",
            "" if one["codes"]["shuffled_nats_per_code"] is None else f"{one['codes']['shuffled_nats_per_code']:.3f}",
            f"{one['codes']['unigram_nats_per_code']:.3f}",
            f"{one['run']['steps']:,}",
        )
        for name, one in found.items()
    ]
    head = ("condition", "images", "minutes", "nats/code", "with another's condition", "codes one by one", "steps")
    yield table(head, rows)
    rows = []
    for one in found.values():
        cells = [
            f"{one['agreement']['rows'][row]['own']:.3f} / {one['agreement']['rows'][row]['other']:.3f}"
            for row in ("samples", "reconstructions", "originals")
        ]
        rows.append((one["title"], one["agreement"]["name"], *cells, str(one["samples"]), _verdict(one)))
    head = ("condition", "measure", "samples: own / another's", "reconstructions", "originals", "images", "obeyed?")
    yield table(head, rows)
    yield "\n".join(
        f"- {one['title'].capitalize()}: {one['agreement']['how']}; "
        f"{'higher' if one['agreement']['higher_is_better'] else 'lower'} is better."
        for name, one in found.items()
    )
    for name, one in found.items():
        yield (
            f"![{name}](pictures/vqgan-{name}.png)\n\n{one['title'].capitalize()}: condition | three samples | original; "
            "test images drawn at random, not chosen."
        )
    yield from _circumstances(found)


def large(found: list[Record]) -> Iterator[str]:
    """Pictures drawn by the sliding window."""
    yield "### Larger than trained: the sliding window"
    yield (
        f"The low-resolution model sees 64x64 pixels, and draws larger pictures of the photograph `{found[0]['photo']}`, cut "
        "square and reduced; no other photograph like those of the training has that size. Memory is the peak of the process "
        "while it draws and decodes, and what it held before. The difference is that between the reduced picture and the source."
    )
    rows = [
        (
            f"{one['source_side']}x{one['source_side']} -> {one['side']}x{one['side']}",
            str(one["stride"]),
            f"{one['codes']:,}",
            f"{one['seconds'] / 60:.1f}",
            f"{one['codes_per_second']:.1f}",
            f"{one['bytes_peak'] / 2**20:,.0f} ({one['bytes_before'] / 2**20:,.0f} before)",
            f"{one['difference_grey_levels']:.1f}",
        )
        for one in found
    ]
    head = ("", "stride, codes", "codes", "minutes", "codes/s", "peak memory, MiB", "difference, grey levels")
    yield table(head, rows)
    for one in found:
        size = f"{one['side']}x{one['side']}, stride {one['stride']}"
        beside = "source | drawn | the photograph at that size" if one["has_original"] else "drawn"
        yield f"![{size}](pictures/{one['picture']})\n\n{size}: {beside}."
    yield from _circumstances({str(k): one for k, one in enumerate(found)})


def _nats(codes: Record, what: str) -> str:
    low, high = codes["interval"] or (None, None)
    interval = "" if low is None else f" (95 % over images: {low:.4f} .. {high:.4f})"
    other = codes["shuffled_nats_per_code"]
    swapped = "" if other is None else f"with the {what} of another image, which may be the same, {other:.4f}; "
    return (
        f"{codes['nats_per_code']:.4f} nats per code of {codes['num_images']:,} test images{interval}; {swapped}codes one by one "
        f"{codes['unigram_nats_per_code']:.4f}, knowing nothing {codes['uniform_nats_per_code']:.4f}. Exact, of codes, not of "
        "pixels."
    )


def _verdict(one: Record) -> str:
    row = one["agreement"]["rows"]["samples"]
    if row["interval"] is None:
        return "one image: not known"
    low, high = row["interval"]
    better = "yes" if low > 0 else "NOT shown"
    return f"{better}: {row['gain']:+.3f} (95 %: {low:+.3f} .. {high:+.3f})"


def _circumstances(records: dict[str, Record]) -> list[str]:
    """The circumstances of all records, each said once."""
    return list(dict.fromkeys(circumstances(record) for record in records.values()))
