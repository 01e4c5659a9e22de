"""The section of `docs/results.md` on the speed of pixel diffusion, from `imagen_speed.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.markdown import circumstances, table

Record = dict[str, Any]
FASTER = "ours is faster by: median (range)"


def imagen_speed(record: Record) -> Iterator[str]:
    """Training steps, drawing, samplers, guidance and gradient checkpointing, beside diffusers."""
    versions = ", ".join(f"{name} {version}" for name, version in record["opponents"].items())
    yield "## Speed of pixel diffusion"
    yield (
        f"What was measured: our U-Net and samplers against `UNet2DConditionModel` and the schedulers of {versions}. Equal: "
        f"{record['equal']}. {record['pairs']} rounds in turn in one process."
    )
    yield "```\npython -m benchmarks imagen_speed\n```"
    yield circumstances(record)
    form = record["sizes"]["form"]
    widths = ", ".join(str(form["width"] * multiplier) for multiplier in form["multipliers"])
    yield (
        f"Widths {widths}, {form['res_blocks']} residual block{'s' * (form['res_blocks'] > 1)} a level, attention at levels "
        f"{', '.join(map(str, form['attention_levels']))} (0 is the finest) and in the middle, heads of {form['head_dim']} "
        f"channels, texts of {record['sizes']['text_length']} states of {form['text_dim']} dimensions. The same layers exist in "
        "diffusers, as it has them for DeepFloyd IF; its default blocks, those of Stable Diffusion, are other layers at the same "
        "widths."
    )
    yield table(
        ("network", "parameters", *(f"GFLOP of an image, {side}x{side}" for side in record["work"]["flops"])),
        [
            (name, f"{count:,}", *(f"{counts[name] / 1e9:.2f}" for counts in record["work"]["flops"].values()))
            for name, count in record["work"]["parameters"].items()
        ],
    )
    yield f"Not equal: {record['not_equal']['networks']}."
    yield f"Largest differences from diffusers in float32: {'; '.join(_differences(record))}."
    yield "### A training step"
    yield (
        "Noise, forward, backward and Adam, of v; bfloat16 is autocast. Groups are those of GroupNorm. Beside each opponent's "
        "time stands by how much ours is faster, median (range)."
    )
    yield _against(record["training"], "ms a step", lambda row: 1e3)
    yield f"### Drawing images in {record['sizes']['steps']} steps"
    yield "DPM-Solver++ 2M from the same noise, without guidance; with bfloat16 the weights are that, and z stays float32."
    yield _against(record["drawing"], "s an image", lambda row: 1 / row["batch_size"])
    yield "### Samplers alone"
    yield (
        f"{record['sizes']['sampler_steps']} steps with a network that takes no time. What is left are the sampler's own "
        f"sums, the noise levels and the checks: of ours with `dpmpp_2m`, at most {_largest_share(record):.1%} of a step of "
        "drawing above."
    )
    rows: list[tuple[str, ...]] = []
    for row in record["samplers"]:
        ours, theirs = (f"{1e3 * row['seconds_per_step'][who]['median']:.2f}" for who in ("ours", "diffusers"))
        passes = f"{row['passes']['ours']}, {row['passes']['diffusers']}"
        cells = (row["sampler"], f"`{row['scheduler']}`", _images(row), passes, ours, theirs)
        rows.append((*cells, _range(row["ratio"]["diffusers"])))
    head: tuple[str, ...] = (
        "sampler",
        "against",
        "images",
        "passes: ours, theirs",
        "ours, ms a step",
        "theirs, ms a step",
        FASTER,
    )
    yield table(head, rows)
    yield f"Not equal: {record['not_equal']['samplers']}."
    yield "### Guidance"
    yield "One guided output of ours: with the text and without as one batch, or as two passes, the second without any text."
    rows = []
    for row in record["guidance"]:
        one, two = (f"{1e3 * row['seconds'][name]['median']:.1f}" for name in ("one batch", "two passes"))
        rows.append((_images(row), row["dtype"], one, two, _range(row["ratio"]["two passes"])))
    yield table(("images", "dtype", "one batch, ms", "two passes, ms", "one batch is faster by: median (range)"), rows)
    yield "### Gradient checkpointing"
    yield (
        "A training step in float32, with checkpointing over without. Memory is that of all tensors that live at once in the "
        "forward and backward pass, gradients among them, weights and the optimiser's state not."
    )
    rows = []
    for row in record["checkpointing"]:
        for who, found in row["ratio"].items():
            before, after = (f"{row['peak_bytes'][name] / 2**20:.0f}" for name in (who, f"{who}, checkpointing"))
            rows.append((_images(row), who, before, after, f"{row['memory_ratio'][who]:.2f}", _range(found)))
    head = ("images", "network", "MiB without", "MiB with", "memory, ratio", "time, ratio: median (range)")
    yield table(head, rows)
    yield f"Not equal: {record['not_equal']['checkpointing']}."
    behind = list(_slower(record))
    yield f"Ours is slower in: {'; '.join(behind)}." if behind else "Ours is slower in none of these."


def _against(found: list[Record], unit: str, scale: Callable[[Record], float]) -> str:
    """A row for each measurement, a column for each opponent; scale(row) turns seconds into the unit."""
    rows = []
    for row in found:
        median = {name: _three_digits(scale(row) * seconds["median"]) for name, seconds in row["seconds"].items()}
        cells = (f"{median[name]}: {_range(ratio)}" for name, ratio in row["ratio"].items())
        rows.append((str(row["norm_groups"]), _images(row), row["dtype"], median["ours"], *cells))
    return table(("groups", "images", "dtype", f"ours, {unit}", *found[0]["ratio"]), rows)


def _differences(record: Record) -> Iterator[str]:
    """Of each kind, the largest over the numbers of groups."""
    for name in record["difference"][0]:
        if name != "norm_groups":
            yield f"{name} {max(row[name] for row in record['difference']):.1g}"


def _largest_share(record: Record) -> float:
    """What our sampler takes of a whole step of drawing, where it takes most of one."""
    alone = {
        _images(row): row["seconds_per_step"]["ours"]["median"]
        for row in record["samplers"]
        if row["sampler"] == "dpmpp_2m"
    }
    steps = record["sizes"]["steps"]
    return max(alone[_images(row)] * steps / float(row["seconds"]["ours"]["median"]) for row in record["drawing"])


def _slower(record: Record) -> Iterator[str]:
    """What an opponent does faster, by the median."""
    for kind, what in (("training", "training step"), ("drawing", "drawing")):
        for row in record[kind]:
            for name, found in row["ratio"].items():
                if found["median"] < 1:
                    where = f"{row['norm_groups']} groups, {_images(row)}, {row['dtype']}"
                    yield f"{what} against {name}, {where}: {_range(found)}"
    for row in record["samplers"]:
        found = row["ratio"]["diffusers"]
        if found["median"] < 1:
            yield f"sampler {row['sampler']} alone, {_images(row)}: {_range(found)}"


def _images(row: Record) -> str:
    return f"{row['batch_size']} of {row['image_size']}x{row['image_size']}"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _range(found: Record) -> str:
    return f"{found['median']:.2f} ({found['lowest']:.2f} to {found['highest']:.2f})"
