"""Speed of a training step, forward and backward: local against dense causal attention, and the share of the peak.

    python -m benchmarks training_step [--pairs 5]

The paper's form (categorical, blocks of 256 with a memory of 256) against the same network with dense causal attention,
which is PyTorch's own kernel (`scaled_dot_product_attention(is_causal=True)`), and against networks of two libraries:
local-attention with the same window, x-transformers with dense flash attention; at 32x32 and at 64x64 pixels. All take turns
in one process. Expected time: 6 minutes on two cores with bfloat16 units.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.opponents import local_attention_network, training_step, versions, x_transformers_network
from benchmarks.record import RESULTS, circumstances, write_json
from benchmarks.timing import in_turn, ratio, spread
from rasterformer.interfaces import Batch
from rasterformer.nn.convolution import CausalConv2d
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.recipe_file import load_recipe
from rasterformer.system import System
from rasterformer.systems.image_transformer.config import Config
from rasterformer.systems.image_transformer.model import ImageTransformer
from rasterformer.training.likelihood import accumulate_gradients

PAPER_FORM = Config(
    distribution="categorical",
    attention="local_1d",
    block_length=256,
    memory_length=256,
    width=256,
    depth=4,
    num_heads=4,
    mlp_width=512,
    dropout_prob=0.0,
)
SIZES = {32: 4, 64: 1}  # pixels a side -> images a batch
PEAK_SIZES = (1024, 2048, 4096)
FLOP_RULE = (
    "2 per multiply-add; matrix products only: projections, feed-forward, input convolution, head, and attention over the "
    "keys that are really visible; times 3 for forward and backward. What is computed twice or masked away is not counted."
)


def main(arguments: list[str]) -> None:
    """Measures and writes benchmarks/results/training_step.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks training_step", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each, in turn")
    options = parser.parse_args(arguments)
    if options.pairs < 1:
        parser.error(f"--pairs {options.pairs} must be at least 1.")
    peak = matmul_peak()
    print(f"peak {peak / 1e12:.3f} TFLOP/s (bfloat16, square products)", flush=True)
    comparisons = [comparison(size, batch, options.pairs, peak) for size, batch in SIZES.items()]
    house = load_recipe("modern-dmol")
    house = dataclasses.replace(house, training=dataclasses.replace(house.training, precision="bfloat16"))
    system, batch_size = System.create(house), house.training.batch_size
    pixels = torch.randint(256, (batch_size, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    seconds = in_turn({"house": partial(step, system, Batch(pixels.to(torch.uint8)))}, options.pairs, seconds=1.0)[
        "house"
    ]
    record = {
        "peak_flops_per_second": peak,
        "peak_rule": f"best of several square bfloat16 products, n in {PEAK_SIZES}, in the same process",
        "flop_rule": FLOP_RULE,
        "dtype": "bfloat16 autocast",
        "pairs": options.pairs,
        "paper_form": dataclasses.asdict(PAPER_FORM),
        "comparisons": comparisons,
        "house": {
            "recipe": "modern-dmol",
            "batch_size": batch_size,
            "images_per_second": batch_size / statistics.median(seconds),
            "gigaflops_per_image": step_flops_per_image(system.model) / 1e9,
            "share_of_peak": share_of_peak(system, batch_size, seconds, peak),
        },
        "opponents": versions("local-attention", "x-transformers"),
        **circumstances(),
    }
    write_json(RESULTS / "training_step.json", record)


def comparison(size: int, batch_size: int, pairs: int, peak: float) -> dict[str, Any]:
    """All contestants at one image size, in turn."""
    forms = {"local": PAPER_FORM, "dense": dataclasses.replace(PAPER_FORM, attention="full")}
    systems = {name: System.create(_recipe(config, size)) for name, config in forms.items()}
    length = 3 * size * size
    networks = {
        "local-attention": local_attention_network(PAPER_FORM, length),
        "x-transformers": x_transformers_network(PAPER_FORM, length),
    }
    pixels = torch.randint(256, (batch_size, 3, size, size), generator=torch.Generator().manual_seed(0))
    batch, x = Batch(pixels.to(torch.uint8)), pixels.flatten(1)
    calls: dict[str, Callable[[], object]] = {name: partial(step, system, batch) for name, system in systems.items()}
    calls |= {name: partial(training_step, network, x) for name, network in networks.items()}
    seconds = in_turn(calls, pairs, seconds=1.0)
    models = {name: system.model for name, system in systems.items()} | networks
    found = {
        "image_size": size,
        "seq_len": length,
        "batch_size": batch_size,
        "contestants": {
            name: {
                "images_per_second": batch_size / statistics.median(seconds[name]),
                "seconds_per_step": spread(seconds[name]),
                "parameters": sum(p.numel() for p in model.parameters()),
                "ratio": ratio(seconds[name], seconds["local"]),
            }
            for name, model in models.items()
        },
    }
    for name, system in systems.items():
        found["contestants"][name]["share_of_peak"] = share_of_peak(system, batch_size, seconds[name], peak)
    for name, row in found["contestants"].items():
        print(f"{size}x{size}: local is {row['ratio']['median']:.2f} times as fast as {name}", flush=True)
    return found


def step(system: System, batch: Batch) -> None:
    """One forward and backward pass."""
    system.model.train()
    system.model.zero_grad(set_to_none=True)
    accumulate_gradients(system, batch)


def share_of_peak(system: System, batch_size: int, seconds: list[float], peak: float) -> float:
    """What part of the peak the counted products come to."""
    return step_flops_per_image(system.model) * batch_size / statistics.median(seconds) / peak


def step_flops_per_image(model: nn.Module) -> float:
    """Returns floating-point operations of forward and backward, by FLOP_RULE."""
    assert isinstance(model, ImageTransformer)
    length, pattern = model.x_shape[0], model.pattern
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear | CausalConv2d))
    if pattern.num_blocks == 1:
        visible = length * (length + 1) // 2
    else:
        visible = int(pattern.visible().flatten(0, 1)[:length].sum())
    attention = sum(
        2 * visible * layer.attention.num_heads * layer.attention.head_dim  # q k and p v
        for layer in model.layers
        if layer.attention is not None
    )
    return 3 * 2.0 * (length * weights + attention)


def matmul_peak() -> float:
    """Returns operations a second of the fastest square bfloat16 product."""
    best = 0.0
    for n in PEAK_SIZES:
        a, b = (torch.randn(n, n, generator=torch.Generator().manual_seed(k)).bfloat16() for k in range(2))
        for _ in range(6):
            start = time.perf_counter()
            torch.mm(a, b)
            best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def _recipe(config: Config, size: int) -> Recipe:
    return Recipe("image_transformer", config, DataConfig(image_size=size), TrainingConfig(precision="bfloat16"))
