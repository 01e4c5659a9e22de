"""The section of `docs/results.md` on the speed of codes, from `codes_speed.json`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.markdown import circumstances, table

Record = dict[str, Any]


def codes_speed(record: Record) -> Iterator[str]:
    """Quantisers, the VQGAN autoencoder and drawing from the prior, each against a library."""
    versions = ", ".join(f"{name} {version}" for name, version in record["opponents"].items())
    yield "## Speed of codes"
    yield (
        f"What was measured: what makes codes and draws them, against libraries ({versions}). Equal: {record['equal']}. "
        f"{record['pairs']} rounds in turn in one process."
    )
    yield "```\npython -m benchmarks codes_speed\n```"
    yield circumstances(record)
    yield "### A training step of a quantiser, against vector-quantize-pytorch"
    yield "Forward, backward and the codebook's update (Adam, or moving averages), float32."
    rows: list[tuple[str, ...]] = []
    for grid in record["quantisers"]:
        for name, found in grid["kinds"].items():
            z = f"[{grid['batch_size']}, {found['dim']}, {grid['side']}, {grid['side']}]"
            rows.append((name, f"{found['vocab_size']:,}", z, f"{found['equal_codes']:.2%}", *_times(found)))
    head = ("ours, ms", "theirs, ms", "ours is faster by: median (range)")
    yield table(("quantiser", "codes", "z", "equal codes", *head), rows)
    yield f"Not equal: {record['not_equal']['quantisers']}."
    yield "### The autoencoder, against `VQModel` of diffusers"
    network = record["sizes"]["autoencoder"]
    yield (
        f"Widths {', '.join(str(network['base_width'] * m) for m in network['multipliers'])}, {network['res_blocks']} residual "
        f"block a level, {network['vocab_size']:,} codes of {network['dim']}, "
        f"{record['autoencoder'][0]['parameters'] / 1e6:.2f} M parameters. A training step is L1 and the quantiser's loss, "
        "forward, backward and Adam; images are encoded to codes, and decoded from codes. A group is one of GroupNorm."
    )
    rows = []
    for model in record["autoencoder"]:
        for found in model["steps"] + model["alone"]:
            size = f"{found['image_size']}x{found['image_size']}"
            cells = (str(model["norm_groups"]), size, str(found["batch_size"]), found["dtype"])
            rows.append((found.get("way", "training step"), *cells, *_times(found)))
    yield table(("", "groups", "images", "batch", "dtype", *head), rows)
    yield f"Not equal: {record['not_equal']['autoencoder']}."
    prior = record["prior"]
    form = record["sizes"]["prior"]
    yield f"### Drawing {prior['length']} codes, against minGPT without a cache and GPT-2 of transformers with one"
    yield (
        f"The paper's form of the prior: {form['depth']} layers, width {form['width']}, {form['num_heads']} heads, feed-forward "
        f"{form['mlp_width']}, {record['sizes']['codes']:,} codes, {prior['parameters'] / 1e6:.2f} M parameters, "
        f"{prior['dtype']}."
    )
    rows = []
    for row in prior["rows"]:
        for name, found in row["ratio"].items():
            ours, theirs = (row["seconds_per_image"][who]["median"] for who in ("ours", name))
            rows.append((name, str(row["batch_size"]), f"{ours:.3f}", f"{theirs:.3f}", _range(found)))
    yield table(("against", "batch", "ours, s an image", "theirs, s an image", head[2]), rows)
    yield f"Not equal: {record['not_equal']['prior']}."
    behind = list(_slower(record))
    yield f"Ours is slower in: {'; '.join(behind)}." if behind else "Ours is slower in none of these."


def _slower(record: Record) -> Iterator[str]:
    """What an opponent does faster, by the median."""
    for grid in record["quantisers"]:
        for name, found in grid["kinds"].items():
            if found["ratio"]["median"] < 1:
                yield f"{name}, z of {grid['side']}x{grid['side']}: {_range(found['ratio'])}"
    for model in record["autoencoder"]:
        for found in model["steps"] + model["alone"]:
            if found["ratio"]["median"] < 1:
                what = f"{found.get('way', 'training step')}, {model['norm_groups']} groups, {found['image_size']}x"
                yield f"{what}{found['image_size']}, {found['dtype']}: {_range(found['ratio'])}"
    for row in record["prior"]["rows"]:
        for name, found in row["ratio"].items():
            if found["median"] < 1:
                yield f"drawing against {name}, batch {row['batch_size']}: {_range(found)}"


def _times(found: Record) -> tuple[str, str, str]:
    ours, theirs = (f"{1e3 * found['seconds'][name]['median']:.2f}" for name in ("ours", "opponent"))
    return ours, theirs, _range(found["ratio"])


def _range(found: Record) -> str:
    return f"{found['median']:.2f} ({found['lowest']:.2f} to {found['highest']:.2f})"
