"""The section of `docs/results.md` on VQ-Diffusion, from `vq_diffusion.json`: whatever has been measured of each set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.markdown import circumstances, table
from benchmarks.scene_obedience import SHARES

Record = dict[str, Any]
PLAIN_PRIOR = "plain"
COMPARED_STEPS = "steps 25"
NOTHING = "-"


def vq_diffusion(record: Record, remarks: Path) -> Iterator[str]:
    """Yields the section, paragraph by paragraph."""
    yield "## VQ-Diffusion: discrete diffusion over the same codes"
    yield (
        "Finished runs of `rasterformer train`, measured. An autoregressive transformer and diffusion models see the "
        "same codes of "
        "the same tokenizer and the same captions. Nats per code are of codes, not of pixels: exact for the "
        "autoregressive model, an "
        "estimate of an upper bound for diffusion. FD-EffLite0 is no FID, and flatters a tokenizer that was trained "
        "with the same "
        "network; it compares between sets of the same number of images only, and is biased upwards for few."
    )
    yield "```\npython -m benchmarks vq_diffusion --runs FOLDER --set NAME --prior RUN --models RUN ... --judge FILE\n```"
    for name, one in record.items():
        yield from of_set(name, one)
    if remarks.exists():  # by hand: what the numbers cannot say of themselves
        yield remarks.read_text(encoding="utf-8").strip()


def of_set(name: str, record: Record) -> Iterator[str]:
    """All that was measured on one set of images."""
    yield f"### {name}"
    yield from runs(record["runs"])
    if "likelihood" in record:
        yield from likelihood(record["likelihood"])
    if "quality" in record:
        yield from quality(record["quality"], record["runs"])
    if "speed" in record:
        yield from speed(list(record["speed"].values()))
    if "obedience" in record:
        yield from obedience(record["obedience"])
    if "strides" in record:
        yield from strides(record["strides"])
    if "orders" in record:
        yield from orders(record["orders"])
    if "inpainting" in record:
        yield inpainting(record["inpainting"])
    if "pictures" in record:
        for file, said in record["pictures"]["sheets"].items():
            yield f"{said}\n\n![{Path(file).stem}](pictures/{file})"
    yield from dict.fromkeys(circumstances(one) for one in _measurements(record))


def runs(found: dict[str, Record]) -> Iterator[str]:
    """What was trained."""
    rows = [
        (
            f"`{name}`",
            one["description"],
            f"{one['run']['parameters']:,}",
            "" if one["run"]["minutes"] is None else f"{one['run']['minutes']:g}",
            f"{one['run']['steps']:,}",
        )
        for name, one in found.items()
    ]
    yield table(("run", "what", "parameters", "minutes of training", "steps"), rows)


def likelihood(found: dict[str, Record]) -> Iterator[str]:
    """Nats per code, exact and bounds."""
    first = next(iter(found.values()))["codes"]
    yield (
        f"**Likelihood of the codes** of {first['num_images']:,} held-out images, {first['codes_per_image']} codes "
        "each. Codes taken one "
        f"by one need {first['unigram_nats_per_code']:.4f} nats; knowing nothing costs "
        f"{first['uniform_nats_per_code']:.4f}."
    )
    rows = []
    for name, one in found.items():
        codes = one["codes"]
        is_bound = codes["bound"] == "upper"
        low, high = codes["interval"] or (None, None)
        shuffled = codes["shuffled_nats_per_code"]
        rows.append(
            (
                f"`{name}`",
                f"{'<= ' if is_bound else ''}{codes['nats_per_code']:.4f}",
                NOTHING if low is None else f"{low:.4f} .. {high:.4f}",
                f"upper bound, {codes['levels']} levels each" if is_bound else "exact",
                NOTHING if shuffled is None else f"{shuffled:.4f}",
            )
        )
    yield table(("run", "nats/code", "95 % over images", "", "with the caption of another image"), rows)
    numbered = {name: one["codes"]["replaced_share"] for name, one in found.items()}
    if replaced := [f"`{name}` {share:.2%}" for name, share in numbered.items() if share]:
        yield (
            "Codes that do not occur in training are dropped, and their nearest scored in their place: "
            + ", ".join(replaced)
            + "."
        )


def quality(found: dict[str, Record], of_runs: dict[str, Record]) -> Iterator[str]:
    """Distances, and whether diffusion at 25 steps is ahead."""
    references = found.get("references")
    counts = sorted({one["images"] for name, group in found.items() if name != "references" for one in group.values()})
    yield (
        f"**Quality**: FD-EffLite0 of {' or '.join(f'{n:,}' for n in counts)} samples to as many held-out and "
        "training images; each "
        "sample has the caption of a held-out image. Lower is better; a distance to the training images below that "
        "of other "
        "training images would be memory. Seconds are of drawing and decoding, beside whatever else the machine did."
    )
    rows = []
    for name, distances in (references or {"rows": {}})["rows"].items():
        rows.append((name, "", f"{distances['held-out']:.1f}", f"{distances['training']:.1f}", ""))
    for name, group in found.items():
        if name == "references":
            continue
        for setting, one in group.items():
            distances = one["fd_efflite0"]
            rows.append(
                (
                    f"`{name}`",
                    _setting(setting),
                    f"{distances['held-out']:.1f}",
                    f"{distances['training']:.1f}",
                    f"{one['images'] / one['seconds']:.2f}",
                )
            )
    yield table(("", "drawn with", "to held-out images", "to training images", "images/s"), rows)
    yield from _verdicts(found, of_runs)


def _verdicts(found: dict[str, Record], of_runs: dict[str, Record]) -> Iterator[str]:
    priors = [name for name in found if of_runs.get(name, {}).get("role") == "prior" and PLAIN_PRIOR in found[name]]
    for prior in priors:
        theirs = found[prior][PLAIN_PRIOR]["fd_efflite0"]["held-out"]
        for name, group in found.items():
            if of_runs.get(name, {}).get("role") == "diffusion" and COMPARED_STEPS in group:
                ours = group[COMPARED_STEPS]["fd_efflite0"]["held-out"]
                word = "ahead of" if ours < theirs else "behind"
                yield (
                    f"At 25 steps `{name}` is {word} the autoregressive `{prior}`: {ours:.1f} against {theirs:.1f} "
                    "to held-out images, both "
                    "plain; one seed, no interval."
                )


def speed(rows_of: list[Record]) -> Iterator[str]:
    """Images a second."""
    yield (
        f"**Speed** of drawing {rows_of[0]['codes']} codes, medians of measurements in turn; decoding comes on top "
        "of each. Without "
        "caches means a pass over all codes for each code, which is what the paper compared with."
    )
    rows = []
    for one in rows_of:
        for name, rate in one["images_per_second"].items():
            times = one["times_as_fast"].get(name, {})
            rows.append(
                (
                    str(one["batch_size"]),
                    one["precision"],
                    name,
                    _rate(rate["median"]),
                    f"{_rate(rate['lowest'])} .. {_rate(rate['highest'])}",
                    *(
                        f"{times[of]['median']:.2f}" if of in times else ""
                        for of in ("autoregressive, cached", "autoregressive, without caches")
                    ),
                )
            )
    head = ("batch", "precision", "", "images/s", "lowest .. highest", "times as fast as cached", "as without caches")
    yield table(head, rows)


def obedience(found: dict[str, Record]) -> Iterator[str]:
    """Shares of what captions say."""
    models = {name: group for name, group in found.items() if name != "references"}
    yield (
        "**Obedience**: samples of captions with pairs of shape and colour that training images show, and of "
        "captions with one pair that "
        "none shows; one, two and three objects in turn. A small network, trained on real and repainted scenes, says "
        "what is to "
        "be seen; the first rows are what it says of real images and of their reconstructions, with its own "
        "mistakes. `Of "
        "another caption`: the same samples judged by a caption with as many objects that was not theirs."
    )
    yield "\n".join(
        f"- {name.replace('_', ' ')}: share of {of}, {meaning}." for name, (of, _, meaning) in SHARES.items()
    )
    head = ("", "guidance", *(name.replace("_", " ") for name in SHARES))
    if "references" in found:
        rows = [(name, "", *_shares(shares)) for name, shares in found["references"]["rows"].items()]
        yield f"{found['references']['images']:,} held-out images:\n\n{table(head, rows)}"
        yield from _judge(found["references"]["judge"])
    for kind in ("seen pairs", "held-out pairs"):
        rows, images = [], set()
        for name, group in models.items():
            for scale, one in group.items():
                rows.append((f"`{name}`", scale, *_shares(one["rows"][kind])))
                images.add(one["images"])
        for name, group in models.items():
            first = next(iter(group.items()))
            rows.append(
                (f"`{name}`, of another caption", first[0], *_shares(first[1]["rows"][f"{kind}, of another caption"]))
            )
        count = " or ".join(f"{number:,}" for number in sorted(images))
        yield f"{kind.capitalize()}, {count} captions:\n\n{table(head, rows)}"
    yield "In brackets 95 %: of images by Wilson, of objects over images drawn again."


def _judge(report: Record) -> Iterator[str]:
    """What the judge itself is worth."""
    if not report:
        return
    names = ("count", "shape", "colour", "size", "floor", "everything")
    rows = [(of, *(f"{shares[name]:.1%}" for name in names), f"{shares['images']:,}") for of, shares in report.items()]
    yield (
        "The judge where the truth is known. Held-out pairs are real objects whose hue was turned inside their label "
        "map; the judge "
        "was trained on objects repainted in another way.\n\n" + table(("", *names, "images"), rows)
    )


def strides(found: dict[str, Record]) -> Iterator[str]:
    """The published sampler beside the exact one."""
    for name, group in found.items():
        yield (
            f"**Strides** of `{name}`: the published code's fast sampler takes the one-step posterior of a lower "
            "level, the exact one the "
            "posterior over all levels between. Same levels, captions and noise; masked is the share of all codes, "
            "expected / found."
        )
        rows = []
        for label, one in group.items():
            expected, met = one["masked_expected"], one["masked_found"]
            half = len(expected) // 2 - 1
            last = len(expected) - 2
            rows.append(
                (
                    label.partition(",")[0],
                    str(one["passes"]),
                    f"{expected[half]:.1%} / {met[half]:.1%}",
                    f"{expected[last]:.1%} / {met[last]:.1%}",
                    f"{one['fd_efflite0']['held-out']:.1f}",
                    f"{one['fd_efflite0']['training']:.1f}",
                )
            )
        head = (
            "sampler",
            "passes",
            "masked half-way",
            "masked before the last pass",
            "FD to held-out images",
            "to training images",
        )
        yield table(head, rows)


def orders(found: dict[str, Record]) -> Iterator[str]:
    """Which codes a step decides."""
    for name, group in found.items():
        rows = [
            (
                one["order"],
                str(one["steps"]),
                f"{one['fd_efflite0']['held-out']:.1f}",
                f"{one['fd_efflite0']['training']:.1f}",
            )
            for one in group.values()
        ]
        yield f"**Orders** of `{name}`: which codes a step decides."
        yield table(("order", "steps", "FD to held-out images", "to training images"), rows)


def inpainting(one: Record) -> str:
    """Fills and their seams."""
    known = "unchanged in every image" if one["known_pixels_unchanged"] else "NOT unchanged"
    listed = ", ".join(f"{name} {value:.3f}" for name, value in one["seam_contrast"].items())
    return (
        f"**In-painting** of the middle of {one['images']:,} held-out images ({one['unknown_share']:.0%} of the "
        "pixels), "
        f"{one['steps']} steps, captions given: known pixels are {known}. Contrast across the seam, 1 being as "
        "smooth as beside it: "
        f"{listed}. Exchanged pixels are fills of other images put in as they are; exchanged codes are decoded "
        "together with the "
        f"codes around them, which smooths the seam. {' '.join(_gain(of, gain) for of, gain in one['gain'].items())}"
    )


def _gain(of: str, gain: Record) -> str:
    if gain["interval"] is None:
        return f"Against {of}: one image, nothing is known of the difference."
    low, high = gain["interval"]
    shown = "better than" if low > 0 else "NOT shown to be better than"
    return (
        f"The model's fills agree with their surroundings {shown} {of}, by {gain['mean']:.3f} (95 % over images: "
        f"{low:.3f} .. "
        f"{high:.3f})."
    )


def _shares(shares: Record) -> list[str]:
    cells = []
    for name in SHARES:
        one = shares[name]
        if one["share"] is None:
            cells.append(NOTHING)
            continue
        low, high = one["interval"]
        cells.append(f"{one['share']:.0%} ({low:.0%}..{high:.0%})")
    return cells


def _setting(label: str) -> str:
    return label.replace("guidance_scale", "guidance").replace("top_p", "truncation")


def _rate(value: float) -> str:
    return f"{value:.3g}"


def _measurements(record: Record) -> Iterator[Record]:
    """All records below one that say where they were measured."""
    if "machine" in record:
        yield record
        return
    for part in record.values():
        if isinstance(part, dict):
            yield from _measurements(part)
