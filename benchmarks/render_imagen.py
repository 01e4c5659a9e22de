"""The section of `docs/results.md` on Imagen, and the table of all systems: from the JSON of `imagen.py`, whatever is there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.imagen_contestants import TITLES
from benchmarks.imagen_intervals import mean_with_interval, share_lead
from benchmarks.markdown import circumstances, table
from benchmarks.scene_obedience import SHARES

Record = dict[str, Any]
OBEDIENCE = ("guidance", "text", "denoiser", "codes")  # parts that measure it
KINDS = ("seen pairs", "held-out pairs")
TOLD_APART = ("colour", "shape", "floor", "everything")  # shares that systems are compared by
IN_TABLE = ("colour", "shape", "floor")
PLAIN = "guidance 1"
NOTHING = "-"


def read_parts(folder: Path) -> Record:
    """All parts that have been measured: name of the images -> part -> its record."""
    found: Record = {}
    for file in sorted(folder.glob("*.json")):
        for name, record in json.loads(file.read_text(encoding="utf-8")).items():
            found.setdefault(name, {})[file.stem] = record
    return found


def imagen(record: Record, remarks: Path) -> Iterator[str]:
    """Yields the section, paragraph by paragraph."""
    yield "## Imagen: diffusion of pixels from text, and all systems side by side"
    yield (
        "Finished runs of `rasterformer train`, measured on the same captions and held-out images. Bits/dim are of pixels: "
        "exact for the Image Transformer, an estimate of an upper bound for diffusion. Nats per code are of codes and "
        "compare with neither. FD-EffLite0 is no FID; it compares between sets of as many images only, and is biased "
        "upwards for few. Intervals are 95 %, by drawing images again; one run of each, one seed: they say nothing about "
        "other trainings."
    )
    yield "```\npython -m benchmarks imagen --judge FILE --unet RUN --upscaler RUN ... --part NAME --images N\n```"
    for name, one in record.items():
        yield f"### {name}"
        yield from of_set(one)
    if remarks.exists():  # by hand: what the numbers cannot say of themselves
        yield remarks.read_text(encoding="utf-8").strip()


def of_set(record: Record) -> Iterator[str]:
    """All that was measured on one set of images."""
    obedience = obedience_of(record)
    if "runs" in record:
        yield from all_systems(record, obedience)
        yield from runs(record["runs"])
    if obedience:
        yield from text(obedience, record.get("guidance", {}).get("references"))
        yield from verdicts(obedience, record.get("runs", {}))
    if "quality" in record:
        yield from quality(record["quality"])
    if "samplers" in record:
        yield from samplers(record["samplers"])
    if "source_noise" in record:
        yield from source_noise(record["source_noise"])
    if "likelihood" in record:
        yield from likelihood(record["likelihood"])
    if "speed" in record:
        yield from speed(record["speed"])
    if "inpainting" in record:
        yield from (inpainting(role, one) for role, one in record["inpainting"].items())
    for one in record.get("pictures", {}).values():
        yield f"{one['said']}\n\n![{Path(one['file']).stem}](pictures/{one['file']})"
    yield from dict.fromkeys(circumstances(one) for one in _measurements(record))


def obedience_of(record: Record) -> Record:
    """Role -> setting -> what was measured, of all parts that measure obedience."""
    found: Record = {}
    for part in OBEDIENCE:
        for role, settings in record.get(part, {}).items():
            if role != "references":
                found.setdefault(role, {}).update(settings)
    return {role: found[role] for role in TITLES if role in found}


# ---- the table of all systems


def all_systems(record: Record, obedience: Record) -> Iterator[str]:
    """One row for each system and guidance, columns from all parts."""
    rows = []
    for role, run in record["runs"].items():
        quality = record.get("quality", {}).get(role, {})
        settings = list(
            dict.fromkeys([*quality, *(name for name in obedience.get(role, {}) if _is_plain_setting(name))])
        )
        for number, setting in enumerate(settings or [PLAIN]):
            if role in obedience and quality and setting not in quality:
                continue  # a scale that only one system was asked for
            shares = obedience.get(role, {}).get(setting)
            row = [
                _title(role) if number == 0 else "",
                setting.removeprefix("guidance ") if run["takes_text"] else NOTHING,
            ]
            row.append(_distance(quality[setting]["fd_efflite0"]) if setting in quality else NOTHING)
            for name in IN_TABLE:
                row.append(
                    NOTHING if shares is None else " / ".join(_percent(shares["rows"][kind][name]) for kind in KINDS)
                )
            if number == 0:
                stages = run["stages"]
                row += [
                    *(_fastest(record.get("speed", {}).get(f"batch {size}"), role) for size in (1, 16)),
                    _minutes(stages),
                    f"{sum(stage['parameters'] for stage in stages) / 1e6:.1f} M",
                    _stated(record.get("likelihood", {}), role),
                ]
            else:
                row += [""] * 5
            rows.append(tuple(row))
    yield (
        "**All systems**, on the same captions and images. Colour, shape and floor: shares of objects and images that are "
        "as the caption says, of seen pairs / of held-out pairs of shape and colour. Images a second are plain, in the "
        "better of float32 and bfloat16; diffusion in as many steps as everywhere here. Minutes and parameters are of all "
        "that was trained, the tokenizer and the upscaler included; the text encoder is frozen and not counted."
    )
    head = (
        "system",
        "guidance",
        "FD-EffLite0",
        *IN_TABLE,
        "images/s, one",
        "sixteen",
        "minutes",
        "parameters",
        "likelihood",
    )
    yield table(head, rows)


def _fastest(found: Record | None, role: str) -> str:
    if found is None or role not in found["images_per_second"]:
        return NOTHING
    rates = {precision: one["median"] for precision, one in found["images_per_second"][role].items()}
    best = max(rates, key=lambda precision: float(rates[precision]))
    return f"{rates[best]:.3g} ({best})"


def _stated(found: Record, role: str) -> str:
    """What likelihood a system can state, and its figure."""
    if role in found.get("codes", {}):
        codes = found["codes"][role]["codes"]
        if codes["bound"] == "upper":
            return f"at most {codes['nats_per_code']:.3f} nats/code"
        return f"{codes['nats_per_code']:.3f} nats/code, exact"
    of_pixels = found.get("pixels", {}).get(role)
    if of_pixels is None:
        return NOTHING
    one = of_pixels.get("without captions") or next(iter(of_pixels.values()))
    if one["bound"] == "upper":
        return f"at most {one['bits_per_dim']:.3f} bits/dim"
    return f"{one['bits_per_dim']:.3f} bits/dim, exact"


def _minutes(stages: list[Record]) -> str:
    if any(stage["minutes"] is None for stage in stages):
        return "not bounded by time"
    return " + ".join(f"{stage['minutes']:g}" for stage in stages)


def runs(found: dict[str, Record]) -> Iterator[str]:
    """What was trained, stage by stage."""
    rows = [
        (
            one["title"],
            stage["name"],
            f"{stage['image_size']}x{stage['image_size']}",
            f"{stage['parameters']:,}",
            NOTHING if stage["minutes"] is None else f"{stage['minutes']:g}",
            f"{stage['steps']:,}",
        )
        for one in found.values()
        for stage in one["stages"]
    ]
    yield table(("system", "part", "images", "parameters", "minutes of training", "steps"), rows)


# ---- text


def text(obedience: Record, references: Record | None) -> Iterator[str]:
    """Shares of what captions say, and of saturated sub-pixels, by setting."""
    yield (
        "**Text**: samples of captions with pairs of shape and colour that training images show, and of captions with one "
        "pair that none shows. A small network says what is to be seen, with its own mistakes (first table). `Saturated`: "
        "sub-pixels that are 0 or 255. `Of another caption`: the same samples, judged by a caption that was not theirs."
    )
    yield "\n".join(f"- {_words(name)}: share of {of}, {meaning}." for name, (of, _, meaning) in SHARES.items())
    names = tuple(_words(name) for name in SHARES)
    if references is not None:
        rows = [
            (name, *_shares(one["shares"]), _saturated(one["saturated"])) for name, one in references["rows"].items()
        ]
        yield f"{references['images']:,} held-out images:\n\n{table(('', *names, 'saturated'), rows)}"
    for kind in KINDS:
        rows, images = [], set()
        for role, settings in obedience.items():
            for setting, one in settings.items():
                rows.append((_title(role), setting, *_shares(one["rows"][kind]), _saturated(one["saturated"])))
                images.add(one["images"])
        for role, settings in obedience.items():
            setting, one = next(iter(settings.items()))
            rows.append(
                (
                    f"{_title(role)}, of another caption",
                    setting,
                    *_shares(one["rows"][f"{kind}, of another caption"]),
                    "",
                )
            )
        count = " or ".join(f"{number:,}" for number in sorted(images))
        head = ("", "", *names, "saturated")
        yield f"{kind.capitalize()}, {count} captions; saturation is of both kinds:\n\n{table(head, rows)}"
    yield "In brackets 95 %: of shares of images by Wilson, of objects and saturation over images drawn again."


def verdicts(obedience: Record, runs_of: Record) -> Iterator[str]:
    """Pairs of settings on the same captions: what more guidance, thresholding, tokens and the denoiser are worth."""
    unet = obedience.get("unet", {})
    pairs: list[tuple[str, Record, str, Record]] = []
    scales = [setting for setting in unet if _is_plain_setting(setting)]
    pairs += [(setting, unet[setting], PLAIN, unet[PLAIN]) for setting in scales if setting != PLAIN and PLAIN in unet]
    for setting, one in unet.items():
        plain = setting.partition(",")[0]
        if plain != setting and plain in unet:
            threshold = setting.partition(", ")[2]
            other = f"{plain} with {'no' if threshold == 'none' else threshold} thresholding"
            pairs.append((f"{plain} with dynamic thresholding", unet[plain], other, one))
    for role, ours, theirs in (("pooled", "tokens", "pooled text"), ("dit", "the U-Net", "the transformer")):
        for setting, one in obedience.get(role, {}).items():
            if setting in unet:
                pairs.append((f"{ours} at {setting}", unet[setting], f"{theirs} at {setting}", one))
    rows = []
    for ours, a, theirs, b in pairs:
        if a["images"] != b["images"]:
            continue  # other captions
        for kind in KINDS:
            leads = [share_lead(a["right"][kind], b["right"][kind], name) for name in TOLD_APART]
            rows.append((f"{ours}, against {theirs}", kind, *(_lead(lead) for lead in leads)))
    if rows:
        yield (
            f"Differences of {', '.join(TOLD_APART)} in points, on the same captions (Imagen, U-Net where nothing is said); "
            "in bold those that the captions tell from zero:"
        )
        yield table(("", "captions", *TOLD_APART), rows)
    yield from _equal_times(runs_of)


def _equal_times(runs_of: Record) -> Iterator[str]:
    """Whether base models that are compared had as long."""
    minutes = {
        role: next(stage["minutes"] for stage in runs_of[role]["stages"] if stage["name"] == "base")
        for role in ("unet", "pooled", "dit")
        if role in runs_of
    }
    if len(minutes) > 1:
        said = ", ".join(
            f"{_title(role)} {NOTHING if value is None else f'{value:g}'}" for role, value in minutes.items()
        )
        if None in minutes.values():
            yield f"Whether the base models were trained as long is not known: {said} minutes. The upscaler is the same."
            return
        word = "as long" if len(set(minutes.values())) == 1 else "NOT as long"
        yield f"The base models were trained {word}: {said} minutes. The upscaler is the same."


# ---- pictures


def quality(found: Record) -> Iterator[str]:
    """Distances of all."""
    counts = sorted({one["images"] for role, group in found.items() if role != "references" for one in group.values()})
    yield (
        f"**Quality**: FD-EffLite0 of {_or(counts)} samples, each with the caption of a held-out image where it takes any. "
        "Lower is better; below other training images it would be memory. Images a second beside whatever else the machine "
        "did."
    )
    rows = []
    for name, one in found.get("references", {}).get("rows", {}).items():
        rows.append((_of_role(name), "", _distance(one), f"{one['training']:.1f}", "", ""))
    for role in TITLES:
        for setting, one in found.get(role, {}).items():
            rows.append(
                (
                    _title(role),
                    setting,
                    _distance(one["fd_efflite0"]),
                    f"{one['fd_efflite0']['training']:.1f}",
                    _saturated(one["saturated"]),
                    f"{one['images'] / one['seconds']:.3g}",
                )
            )
    yield table(("", "", "to held-out images (95 %)", "to training images", "saturated", "images/s"), rows)


def samplers(found: Record) -> Iterator[str]:
    """Distances by sampler and steps."""
    counts = sorted({one["images"] for one in found.values()})
    names = list(dict.fromkeys(one["sampler"] for one in found.values()))
    steps = sorted({one["steps"] for one in found.values()})
    yield (
        f"**Samplers**: FD-EffLite0 of {_or(counts)} samples to held-out images (95 %), guidance 1, as many steps in each "
        "stage. Heun makes two passes a step but the last."
    )
    cells = {(one["sampler"], one["steps"]): _distance(one["fd_efflite0"]) for one in found.values()}
    yield table(
        ("sampler", *(f"{count} steps" for count in steps)),
        [(name, *(cells.get((name, count), NOTHING) for count in steps)) for name in names],
    )
    best = {count: min((one for one in found.values() if one["steps"] == count), key=_held_out) for count in steps}
    listed = ", ".join(f"{count} steps: {one['sampler']}" for count, one in best.items())
    yield f"The lowest at {listed}; where intervals overlap, the order may be chance."


def source_noise(found: Record) -> Iterator[str]:
    """Distances by the noise on the upscaler's source."""
    noises = sorted({one["source_noise"] for one in found.values()})
    counts = sorted({one["images"] for one in found.values()})
    cells = {(one["is_drawn"], one["source_noise"]): _distance(one["fd_efflite0"]) for one in found.values()}
    kinds = [kind for kind in (True, False) if any(one["is_drawn"] == kind for one in found.values())]
    yield (
        f"**Noise on the upscaler's source**: FD-EffLite0 of {_or(counts)} samples to held-out images (95 %). Drawn sources "
        "are the base model's; true ones are held-out images, reduced."
    )
    yield table(
        ("source", *(f"t = {noise:g}" for noise in noises)),
        [("drawn" if kind else "true", *(cells.get((kind, noise), NOTHING) for noise in noises)) for kind in kinds],
    )


def inpainting(role: str, one: Record) -> str:
    """Fills and their seams."""
    known = "unchanged in every image" if one["known_pixels_unchanged"] else "NOT unchanged"
    listed = ", ".join(f"{name} {value:.3f}" for name, value in one["seam_contrast"].items())
    took = ", ".join(f"{name} {value / one['images']:.2f} s an image" for name, value in one["seconds"].items())
    return (
        f"**In-painting** of the middle of {one['images']:,} held-out images ({one['unknown_share']:.0%} of the pixels) by "
        f"{_title(role)}, {one['steps']} steps a stage, captions given: known pixels are {known}. Contrast across the seam, "
        f"1 being as smooth as beside it: {listed}. Exchanged fills are those of other images, put in as they are. "
        f"{' '.join(_smoother(gain) for gain in one['gains'])} Time: {took}."
    )


def _smoother(gain: Record) -> str:
    if gain["interval"] is None:
        return f"{_capital(gain['of'])} against {gain['over']}: one image, nothing is known of the difference."
    low, high = gain["interval"]
    shown = "is lower" if low > 0 else "is HIGHER" if high < 0 else "is NOT shown to be lower"
    how_much = f"{gain['mean']:.3f} ({low:.3f} .. {high:.3f}, paired)"
    return f"The contrast of {gain['of']} {shown} than that of {gain['over']}, by {how_much}."


# ---- likelihood and speed


def likelihood(found: Record) -> Iterator[str]:
    """Bits/dim of pixels, exact and bounds, beside each other on the same images; nats of codes."""
    of_pixels = {(role, what): one for role in TITLES for what, one in found.get("pixels", {}).get(role, {}).items()}
    if of_pixels:
        first = next(iter(of_pixels.values()))
        counts = sorted({one["images"] for one in of_pixels.values()})
        yield (
            f"**Likelihood of pixels** of the same {_or(counts)} held-out images, bits/dim over {first['num_dims']:,} "
            "dimensions. The bound of a cascade is the sum over its stages, each given the true image before it. Who is given "
            "the caption knows more of the image: the row without captions is the one that stands beside a model without any."
        )
        rows = []
        for (role, what), one in of_pixels.items():
            is_bound = one["bound"] == "upper"
            parts = ", ".join(f"{name}: {bits / one['bits_per_dim']:.0%}" for name, bits in one["stages"].items())
            rows.append(
                (
                    f"{_title(role)}, {what}" if what != "plain" else _title(role),
                    f"{'<= ' if is_bound else ''}{one['bits_per_dim']:.4f}{_range(one['interval'])}",
                    f"upper bound, {one['levels']} levels each" if is_bound else "exact",
                    one["given"] or "nothing",
                    parts if len(one["stages"]) > 1 else NOTHING,
                )
            )
        yield table(("", "bits/dim (95 %)", "", "given", "stages' share"), rows)
        yield from _against_exact(of_pixels)
    if found.get("codes"):
        yield "**Likelihood of codes**, given the captions; no likelihood of pixels follows from it."
        yield table(
            ("", "nats/code (95 %)", "", "images"), [_code_row(role, one) for role, one in found["codes"].items()]
        )


def _code_row(role: str, one: Record) -> tuple[str, ...]:
    codes = one["codes"]
    is_bound = codes["bound"] == "upper"
    return (
        _title(role),
        f"{'<= ' if is_bound else ''}{codes['nats_per_code']:.4f}{_range(codes['interval'])}",
        f"upper bound, {codes['levels']} levels each" if is_bound else "exact",
        f"{codes['num_images']:,}",
    )


def _against_exact(of_pixels: Mapping[tuple[str, str], Record]) -> Iterator[str]:
    """Each bound against the exact value, image by image."""
    exact = next((one for (role, _), one in of_pixels.items() if role == "pixels"), None)
    if exact is None:
        return
    theirs = torch.tensor(exact["bits_per_dim_of_images"], dtype=torch.float64)
    for (role, what), one in of_pixels.items():
        if role == "pixels" or one["images"] != exact["images"]:
            continue
        ours = torch.tensor(one["bits_per_dim_of_images"], dtype=torch.float64)
        mean, interval = mean_with_interval(ours - theirs)
        if interval is None:
            continue
        low, high = interval
        if high < 0:
            said = "below the exact value: a better likelihood, however loose the bound"
        elif low > 0:
            said = "above the exact value; how much of it is the bound's, and how much the model's, is not known"
        else:
            said = "not told apart from the exact value by these images"
        yield (
            f"{_title(role)}, {what}: its bound is {mean:+.4f} bits/dim ({low:+.4f} .. {high:+.4f}, paired) from the Image "
            f"Transformer's value, {said}."
        )


def speed(found: Record) -> Iterator[str]:
    """Images a second."""
    first = next(iter(found.values()))
    yield (
        "**Speed** from text to picture, plain, images a second: medians of measurements in turn (lowest .. highest); "
        f"diffusion in {first['steps']} steps a stage."
    )
    rows = []
    for one in found.values():
        for role, rates in one["images_per_second"].items():
            for precision, rate in rates.items():
                spread = f"{rate['median']:.3g} ({rate['lowest']:.3g} .. {rate['highest']:.3g})"
                rows.append((_title(role), str(one["batch_size"]), precision, spread))
    yield table(("", "at a time", "precision", "images/s"), rows)


# ---- words and cells


def _title(role: str) -> str:
    return TITLES[role]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _of_role(name: str) -> str:
    """A reference's name with what tables call its role."""
    for role, title in TITLES.items():
        name = name.replace(f"`{role}`", title)
    return name


def _is_plain_setting(setting: str) -> bool:
    """Guidance, and nothing besides."""
    return "," not in setting


def _shares(shares: Record) -> list[str]:
    return [NOTHING if shares[name]["share"] is None else _share(shares[name]) for name in SHARES]


def _share(one: Record) -> str:
    low, high = one["interval"]
    return f"{one['share']:.0%} ({low:.0%}..{high:.0%})"


def _saturated(one: Record) -> str:
    if one["interval"] is None:
        return f"{one['share']:.1%}"
    low, high = one["interval"]
    return f"{one['share']:.1%} ({low:.1%}..{high:.1%})"


def _percent(one: Record) -> str:
    return NOTHING if one["share"] is None else f"{one['share']:.0%}"


def _lead(lead: tuple[float, list[float]] | None) -> str:
    if lead is None:
        return NOTHING
    mean, (low, high) = lead
    said = f"{100 * mean:+.0f} ({100 * low:+.0f}..{100 * high:+.0f})"
    return f"**{said}**" if low > 0 or high < 0 else said


def _distance(one: Record) -> str:
    low, high = one["interval"]
    return f"{one['held-out']:.1f} ({low:.1f}..{high:.1f})"


def _held_out(one: Record) -> float:
    return float(one["fd_efflite0"]["held-out"])


def _range(interval: list[float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.4f} .. {interval[1]:.4f})"


def _or(counts: list[int]) -> str:
    return " or ".join(f"{count:,}" for count in counts)


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _measurements(record: Record) -> Iterator[Record]:
    """All records below one that say where they were measured."""
    if "machine" in record:
        yield record
        return
    for part in record.values():
        if isinstance(part, dict):
            yield from _measurements(part)
