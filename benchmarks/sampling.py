"""Speed of exact sampling: against transformers' ImageGPT and naive re-evaluation, by image size, in parallel; its memory.

    python -m benchmarks sampling [--pairs 5] [--trained FOLDER ...]

All contestants take turns in one process on the same threads, at equal width, depth, heads, feed-forward and dtype. Most
steps are timed at places spread evenly over the image, because a whole image of the opponent takes minutes with a batch.
`--trained` are models for parallel sampling, such as `rasterformer train modern-cat --data embedded:toonheads
--training.minutes 8 --out FOLDER` makes. Expected time: 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.opponents import ImageGPT, versions
from benchmarks.record import RESULTS, circumstances, write_json
from benchmarks.timing import in_turn, ratio, spread
from benchmarks.training_step import PAPER_FORM
from rasterformer.autoregressive.noise import NoiseStream, image_generators
from rasterformer.autoregressive.parallel import draw_in_parallel
from rasterformer.autoregressive.sample import begin, draw
from rasterformer.data import ImageSet
from rasterformer.interfaces import Autoregressive, Cond, SampleOptions
from rasterformer.loading import load
from rasterformer.recipe_file import recipe_to_dict
from rasterformer.recipe_images import open_recipe_images
from rasterformer.system import System
from rasterformer.systems.image_transformer.config import Config
from rasterformer.systems.image_transformer.model import build

OPTIONS = SampleOptions()
PLACES = 5  # where steps are timed: the middles of so many equal parts of the image
STEPS = {1: 40, 16: 8, 64: 4}  # images a batch -> steps at each place
IMAGE_SIZES = (32, 64, 128)
PARALLEL_WINDOWS = (8, 16, 32, 64)
PARALLEL_IMAGES = 10


def main(arguments: list[str]) -> None:
    """Measures and writes benchmarks/results/sampling.json, each section as soon as it is done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks sampling", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each, in turn")
    parser.add_argument(
        "--trained", type=Path, nargs="*", default=[], help="runs or model folders for parallel sampling"
    )
    parser.add_argument("--data", help="images to score those models on whose recipe names none")
    parser.add_argument("--only", nargs="*", help="measure these sections again and keep the others")
    options = parser.parse_args(arguments)
    if options.pairs < 1:
        parser.error(f"--pairs {options.pairs} must be at least 1.")
    pairs = options.pairs
    systems = [load(folder) for folder in options.trained]
    models = [(system, held_out_images(system, options.data)) for system in systems]
    dtypes = (torch.float32, torch.bfloat16)
    sections: dict[str, Callable[[], Any]] = {
        "image_gpt": lambda: [against_image_gpt(dtype, size, pairs) for dtype in dtypes for size in STEPS],
        "whole_images": lambda: whole_images(pairs),
        "naive": lambda: [against_naive(size, pairs) for size in STEPS],
        "grouped_heads": lambda: [grouped_heads(dtype, size, pairs) for dtype in dtypes for size in STEPS],
        "by_image_size": lambda: by_image_size(pairs),
        "memory": lambda: [
            memory(size, name_of(dtype), kind)
            for kind in ("drawing", "completing")
            for dtype in dtypes
            for size in IMAGE_SIZES
        ],
        "trained": lambda: [trained(system, held_out, pairs) for system, held_out in models],
    }
    unknown = set(options.only or ()) - set(sections)
    if unknown:
        parser.error(f"--only {' '.join(unknown)}: there are {', '.join(sections)}.")
    target = RESULTS / "sampling.json"
    record: dict[str, Any] = json.loads(target.read_text(encoding="utf-8")) if options.only and target.exists() else {}
    for name in options.only or sections:
        with torch.inference_mode():
            record[name] = sections[name]()
        record |= {"form": dataclasses.asdict(PAPER_FORM), "places": PLACES, "pairs": pairs} | circumstances()
        record["opponents"] = versions("transformers")
        record.setdefault("commits", {})[name] = record["commit"]
        write_json(target, record)


class Ours:
    """A model that draws from a given position on, again and again.

    Args:
        model: the network.
        batch_size: B.
        position: that the state is brought to, with noise for symbols.
    """

    def __init__(self, model: Autoregressive, batch_size: int, position: int) -> None:
        length, symbols = model.x_shape
        self.model, self.batch_size, self.position = model, batch_size, position
        rng = torch.Generator().manual_seed(0)
        prefix = torch.randint(256, (batch_size, position, symbols), generator=rng)
        self.params, self.state = begin(model, Cond(), prefix)

    def draw(self, count: int) -> None:
        """The loop of `rasterformer.autoregressive.sample.draw`; the steps, all of one query block, are then taken back."""
        distribution, params, state = self.model.distribution, self.params, self.state
        rng = image_generators(0, self.batch_size)
        noise = NoiseStream(rng, distribution.noise_per_position, count, torch.device("cpu"))
        for step in range(count):
            x = distribution.sample(params[:, -1], noise.at(step)[:, 0], options=OPTIONS)
            params, state = self.model.step(x[:, None], state)
        self.model.rewind(state, self.position)


def places(length: int) -> list[int]:
    """Middles of equal parts."""
    return [round((k + 0.5) * length / PLACES) for k in range(PLACES)]


def steps_everywhere(model: Autoregressive, batch_size: int) -> Callable[[], None]:
    """Some steps at every place."""
    runners = [Ours(model, batch_size, place) for place in places(model.x_shape[0])]

    def run() -> None:
        for runner in runners:
            runner.draw(STEPS[batch_size])

    return run


def against_image_gpt(dtype: torch.dtype, batch_size: int, pairs: int) -> dict[str, Any]:
    """Seconds of a step of both."""
    model = network(PAPER_FORM, 32, dtype)
    length = model.x_shape[0]
    opponent = ImageGPT(PAPER_FORM, length, dtype)
    caches = [opponent.cache_at(place, batch_size) for place in places(length)]
    rng = torch.Generator().manual_seed(0)

    def opponent_steps() -> None:
        for cache in caches:
            opponent.draw(STEPS[batch_size], cache, batch_size, rng)
            cache.crop(-STEPS[batch_size])

    seconds = in_turn({"ours": steps_everywhere(model, batch_size), "opponent": opponent_steps}, pairs, seconds=0.1)
    per_step = {name: [s / (PLACES * STEPS[batch_size]) for s in found] for name, found in seconds.items()}
    return said(
        {
            "dtype": name_of(dtype),
            "batch_size": batch_size,
            "parameters": {"ours": parameters(model), "opponent": parameters(opponent.model)},
            "seconds_per_step": {name: spread(found) for name, found in per_step.items()},
            "ratio": ratio(seconds["opponent"], seconds["ours"]),
        },
        f"ImageGPT, {name_of(dtype)}, batch {batch_size}",
    )


def whole_images(pairs: int) -> dict[str, Any]:
    """One complete image of each at batch 1 in float32: the plain loop of both, and the opponent's own `generate`."""
    model = network(PAPER_FORM, 32, torch.float32)
    length = model.x_shape[0]
    opponent = ImageGPT(PAPER_FORM, length, torch.float32)
    rng = torch.Generator().manual_seed(0)
    seconds = in_turn(
        {
            "ours": lambda: draw(model, Cond(), 1, options=OPTIONS, rng=image_generators(0, 1)),
            "loop": lambda: opponent.draw(length, opponent.new_cache(), 1, rng),
            "generate": lambda: opponent.generate(length - 1),
        },
        pairs,
        seconds=0.1,
    )
    ratios = {name: ratio(seconds[name], seconds["ours"]) for name in ("loop", "generate")}
    return said(
        {"seconds": {name: spread(found) for name, found in seconds.items()}, "ratio": ratios},
        "whole image",
        "generate",
    )


def against_naive(batch_size: int, pairs: int) -> dict[str, Any]:
    """One evaluation of the whole image per symbol, by the same network; its images go through one by one if it is quicker."""
    model = network(PAPER_FORM, 32, torch.float32)
    x = torch.randint(256, (1, *model.x_shape), generator=torch.Generator().manual_seed(0))
    seconds = in_turn(
        {"ours": steps_everywhere(model, batch_size), "naive": lambda: model(x, Cond())}, pairs, seconds=0.5
    )
    per_step = {
        "ours": [s / (PLACES * STEPS[batch_size]) for s in seconds["ours"]],
        "naive": [s * batch_size for s in seconds["naive"]],
    }
    return said(
        {
            "batch_size": batch_size,
            "seconds_per_step": {name: spread(found) for name, found in per_step.items()},
            "ratio": ratio(per_step["naive"], per_step["ours"]),
        },
        f"naive, batch {batch_size}",
    )


def grouped_heads(dtype: torch.dtype, batch_size: int, pairs: int) -> dict[str, Any]:
    """What one key-value head for all query heads saves."""
    config = dataclasses.replace(PAPER_FORM, num_kv_heads=1)
    seconds = in_turn(
        {
            "all": steps_everywhere(network(PAPER_FORM, 32, dtype), batch_size),
            "one": steps_everywhere(network(config, 32, dtype), batch_size),
        },
        pairs,
        seconds=0.1,
    )
    found = {"dtype": name_of(dtype), "batch_size": batch_size, "ratio": ratio(seconds["all"], seconds["one"])}
    return said(found, f"one key-value head, {name_of(dtype)}, batch {batch_size}")


def by_image_size(pairs: int) -> list[dict[str, Any]]:
    """Seconds of a step in the middle of images of growing size; the middles lie at the same place in their blocks."""
    found = []
    for batch_size in (1, 16):
        runners = {
            str(size): Ours(network(PAPER_FORM, size, torch.float32), batch_size, 3 * size * size // 2)
            for size in IMAGE_SIZES
        }
        seconds = in_turn(
            {size: lambda runner=runner: runner.draw(20) for size, runner in runners.items()},  # type: ignore[misc]
            pairs,
            seconds=0.05,
        )
        found.append(
            said(
                {
                    "batch_size": batch_size,
                    "seconds_per_step": {size: spread([s / 20 for s in values]) for size, values in seconds.items()},
                    "ratio": ratio(seconds["128"], seconds["32"]),
                },
                f"128x128 against 32x32, batch {batch_size}",
            )
        )
    return found


def memory(size: int, dtype: str, kind: Literal["drawing", "completing"], batch_size: int = 32) -> dict[str, Any]:
    """Growth of the process while 32 images are drawn, against the arithmetic of keys and values; in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        grown = pool.apply(memory_of_drawing, (size, dtype, kind, batch_size))
    window = PAPER_FORM.block_length + PAPER_FORM.memory_length
    item = 4 if dtype == "float32" else 2
    keys_and_values = PAPER_FORM.depth * 2 * window * PAPER_FORM.width * item * batch_size
    print(f"memory, {kind} {size}x{size}, {dtype}: {grown / keys_and_values:.2f} of the keys and values", flush=True)
    return {
        "kind": kind,
        "image_size": size,
        "dtype": dtype,
        "batch_size": batch_size,
        "bytes": grown,
        "keys_and_values": keys_and_values,
        "ratio": grown / keys_and_values,
    }


def memory_of_drawing(size: int, dtype: str, kind: Literal["drawing", "completing"], batch_size: int) -> int:
    """Peak of resident memory, less what was resident before.

    `drawing`: from the first position into the third query block, when all of the caches has been written; `completing`: over a
    prefix of all but 20 positions, and these.
    """
    model = network(PAPER_FORM, size, getattr(torch, dtype))
    length, known = model.x_shape[0], 0 if kind == "drawing" else model.x_shape[0] - 20

    def run(images: int, count: int) -> None:
        x = torch.ones(images, length, 1, dtype=torch.int64)
        params, state = begin(model, Cond(), x[:, :known])
        noise = NoiseStream(image_generators(0, images), 256, count, torch.device("cpu"))
        for step in range(count):
            x[:, known + step] = model.distribution.sample(params[:, -1], noise.at(step)[:, 0], options=OPTIONS)
            if known + step + 1 < length:
                params, state = model.step(x[:, known + step : known + step + 1], state)

    with torch.inference_mode():
        run(1, 20)  # what the first steps allocate once
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        before = _status("VmRSS")
        run(batch_size, 600 if kind == "drawing" else 20)
        return _status("VmHWM") - before


def held_out_images(system: System, data: str | None) -> ImageSet:
    """The test images of a model's recipe, or of `data` where it names none."""
    path = system.recipe.data.path or data
    if path is None:
        sys.exit(f"{system.origin}: the recipe names no data. Give --data.")
    return open_recipe_images(system.recipe, "test", path=path)


def trained(system: System, held_out: ImageSet, pairs: int) -> dict[str, Any]:
    """Parallel sampling and the cost of bfloat16, with a trained model."""
    model = system.model

    def one(k: int) -> Tensor:
        return draw(model, Cond(), 1, options=OPTIONS, rng=image_generators(0, 1, first=k))

    def parallel(k: int, window: int) -> Any:
        return draw_in_parallel(model, Cond(), options=OPTIONS, rng=image_generators(0, 1, first=k), window=window)

    images = [one(k) for k in range(PARALLEL_IMAGES)]
    windows = []
    for window in PARALLEL_WINDOWS:
        found = [parallel(k, window) for k in range(PARALLEL_IMAGES)]
        # image k of round k: rounds are the pairs
        seconds = in_turn(
            {"steps": _counted(one), "parallel": _counted(lambda k, window=window: parallel(k, window))},  # type: ignore[misc]
            pairs,
            seconds=0.01,
        )
        windows.append(
            said(
                {
                    "window": window,
                    "images": PARALLEL_IMAGES,
                    "identical": sum(torch.equal(a, b.x) for a, b in zip(images, found, strict=True)),
                    "positions_per_pass": spread([b.positions / b.passes for b in found]),
                    "seconds_per_image": {name: spread(values) for name, values in seconds.items()},
                    "ratio": ratio(seconds["steps"], seconds["parallel"]),
                },
                f"{held_out.name}: parallel, window {window}",
            )
        )
    chosen = held_out.images(slice(0, min(100, len(held_out))))
    exact = system.bits_per_dim(chosen)
    rounded = dataclasses.replace(system, model=model.to_bfloat16()).bits_per_dim(chosen)
    return {
        "model": recipe_to_dict(system.recipe)["model"],
        "steps": system.steps,
        "data": held_out.name,
        "scored_images": len(chosen),
        "bits_per_dim": exact.mean().item(),
        "bits_per_dim_bfloat16": rounded.mean().item(),
        "positions": model.x_shape[0],
        "windows": windows,
    }


def network(config: Config, size: int, dtype: torch.dtype) -> Autoregressive:
    """Fresh weights, in evaluation mode."""
    torch.manual_seed(0)
    model = build(config, image_size=size, num_classes=0)[1].eval()
    return model if dtype == torch.float32 else model.to_bfloat16()


def parameters(model: torch.nn.Module) -> int:
    """Their number."""
    return sum(p.numel() for p in model.parameters())


def name_of(dtype: torch.dtype) -> str:
    """Without the module."""
    return str(dtype).removeprefix("torch.")


def said(found: dict[str, Any], what: str, key: str | None = None) -> dict[str, Any]:
    """Prints the ratio and returns the record."""
    values = found["ratio"] if key is None else found["ratio"][key]
    print(f"{what}: {values['median']:.2f} ({values['lowest']:.2f} to {values['highest']:.2f})", flush=True)
    return found


def _counted(call: Callable[[int], Any]) -> Callable[[], Any]:
    """Calls with 0, 1, 2, ...: both contestants of a pair then draw the same image."""
    numbers = iter(range(10**6))
    return lambda: call(next(numbers))


def _status(field: str) -> int:
    """Bytes, from what the system says of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))
