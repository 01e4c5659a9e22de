"""Speed of pixel diffusion against diffusers: training steps, drawing, samplers, guidance, gradient checkpointing.

    python -m benchmarks imagen_speed [--pairs 5]

diffusers' `UNet2DConditionModel` has our weights and its schedulers our noise levels; that outputs, gradients and drawn images
are the same is checked before anything is timed. Its default blocks, which users mostly meet, stand beside it. All take turns
in one process. Expected time: at most 10 minutes on one core.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.imagen_opponents import (
    SAME_METHOD,
    SCHEDULERS,
    Form,
    LibrarySchedule,
    Text,
    default_unet,
    library_unet,
    our_unet,
)
from benchmarks.opponents import versions
from benchmarks.record import RESULTS, circumstances, write_json
from benchmarks.timing import in_turn, ratio, spread
from rasterformer.autoregressive.noise import image_generators
from rasterformer.diffusion.gaussian import make_gaussian
from rasterformer.diffusion.samplers import PredictX0, Sampler, draw_images
from rasterformer.diffusion.thresholding import guided
from rasterformer.nn.denoiser_inputs import SINUSOIDS_PER_LOG_SNR
from rasterformer.nn.live_memory import peak_bytes
from rasterformer.nn.unet import Unet

PROCESS = make_gaussian("cosine")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LARGEST_DIFFERENCE = 1e-4  # float32; of images and outputs about 1, of gradients over the largest of their weight
EQUAL = (
    "image and batch size, dtype, threads, weights, texts, noise levels and steps; outputs, gradients and drawn images are "
    "compared in float32 before anything is timed, and nothing is timed where they differ"
)
NOT_EQUAL = {
    "networks": (
        "`channels last` is the same network of diffusers in that layout, which ours takes by itself with channels of a group "
        "from 4 on; the default blocks have weights of their own, other layers, and feed-forwards; ours learns its token for no "
        "text, diffusers is given it"
    ),
    "samplers": (
        "Heun's slopes are over the angle atan(sigma / alpha) in ours and over sigma / alpha in diffusers, so that its images "
        "differ; every other sampler draws the same images"
    ),
    "checkpointing": "ours computes everything of a block again, attention too; diffusers residual blocks of the two ways only",
}
GUIDANCE_SCALE = 5.0
Call = Callable[[], object]
Network = Callable[[Tensor, Tensor], Tensor]  # z [B, C, H, W] and log SNR [B] -> v [B, C, H, W]


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Args:
        form: the networks; its norm_groups are replaced.
        norm_groups: each is measured; the last one also stands where one is enough.
        images: batch and side of images, pixels.
        text_length: S of the texts' states.
        steps: of drawing whole images.
        sampler_steps: of samplers alone.
        guided: batch and side of images that are drawn with guidance.
        seconds: a measurement repeats a quick call for so long.
    """

    form: Form
    norm_groups: tuple[int, ...]
    images: tuple[tuple[int, int], ...]
    text_length: int
    steps: int
    sampler_steps: int
    guided: tuple[tuple[int, int], ...]
    seconds: float


FULL = Sizes(
    form=Form(
        width=64,
        multipliers=(1, 2, 2),
        res_blocks=1,
        attention_levels=(1, 2),
        head_dim=32,
        text_dim=384,
        norm_groups=8,
    ),
    norm_groups=(32, 8),  # of published models; of our recipes
    images=((16, 16), (4, 64)),
    text_length=32,
    steps=4,
    sampler_steps=20,
    guided=((1, 16), (16, 16), (1, 64)),
    seconds=0.3,
)
QUICK = dataclasses.replace(
    FULL,
    form=Form(width=8, multipliers=(1, 2), res_blocks=1, attention_levels=(1,), head_dim=8, text_dim=12, norm_groups=2),
    norm_groups=(8, 2),
    images=((2, 8),),
    text_length=5,
    steps=3,
    sampler_steps=4,
    guided=((2, 8),),
    seconds=0.0,
)


class Examples(NamedTuple):
    """What one training step looks at.

    Args:
        images, noise: [B, 3, H, W].
        step: int64 [B], place of each noise level in the tables of a scheduler with num_steps.
        num_steps: T; the time is (step + 1) / T.
        text: of the images, one of which has none.
    """

    images: Tensor
    noise: Tensor
    step: Tensor
    num_steps: int
    text: Text


def main(arguments: list[str]) -> None:
    """Measures and writes benchmarks/results/imagen_speed.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks imagen_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each, in turn")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; needs --out")
    parser.add_argument("--out", type=Path, default=RESULTS / "imagen_speed.json", help="file to write")
    options = parser.parse_args(arguments)
    if options.pairs < 1:
        parser.error(f"--pairs {options.pairs} must be at least 1.")
    if options.quick and options.out == parser.get_default("out"):
        parser.error("--quick says nothing about speed and must not replace the results. Give --out FILE.")
    sizes, pairs = QUICK if options.quick else FULL, options.pairs
    forms = [dataclasses.replace(sizes.form, norm_groups=groups) for groups in sizes.norm_groups]
    record = {
        "quick": options.quick,
        "pairs": pairs,
        "work": work(forms[-1], sizes),
        "difference": [checked_difference(form, sizes) for form in forms],
        "training": [
            training(form, batch, side, dtype, sizes, pairs)
            for form in forms
            for batch, side in sizes.images
            for dtype in DTYPES
        ],
        "drawing": [
            drawing(form, batch, side, dtype, sizes, pairs)
            for form in forms
            for batch, side in sizes.images
            for dtype in DTYPES
        ],
        "samplers": [
            sampler_alone(sampler, batch, side, sizes, pairs)
            for sampler in get_args(Sampler)
            for batch, side in sizes.images
        ],
        "guidance": [
            guidance(forms[-1], batch, side, dtype, sizes, pairs) for batch, side in sizes.guided for dtype in DTYPES
        ],
        "checkpointing": [checkpointing(forms[-1], batch, side, sizes, pairs) for batch, side in sizes.images],
        "sizes": dataclasses.asdict(sizes),
        "equal": EQUAL,
        "not_equal": NOT_EQUAL,
        "opponents": versions("diffusers"),
        **circumstances(),
    }
    write_json(options.out, record)


def networks(form: Form) -> tuple[Unet, Any, Any]:
    """Ours, diffusers' with our weights, and its default blocks; nothing begins at zero, where a mistake would not show."""
    torch.manual_seed(0)
    ours = our_unet(form)
    with torch.no_grad():
        for weight in ours.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return ours, library_unet(ours, form), default_unet(form)


def texts(batch_size: int, sizes: Sizes) -> Text:
    """States of texts that are longer and shorter; of several, the first has none."""
    length = sizes.text_length
    lengths = torch.linspace(0, length, batch_size).round() if batch_size > 1 else torch.tensor([length])
    states = torch.randn(batch_size, length, sizes.form.text_dim)
    return Text(states, torch.arange(length) < lengths[:, None])


def examples(batch_size: int, side: int, sizes: Sizes) -> Examples:
    """Noise in place of images."""
    images, noise = torch.randn(2, batch_size, 3, side, side)
    steps = sizes.sampler_steps
    return Examples(images, noise, torch.randint(steps, (batch_size,)), steps, texts(batch_size, sizes))


def null_state(model: Unet) -> Tensor:
    """The token [1, D] that ours has before every text."""
    assert model.inputs.null_token is not None, "the network takes texts"
    return model.inputs.null_token.state


def our_network(model: Unet, text: Text) -> Network:
    """Ours as a function of z and log SNR."""
    return partial(model, text=text.states, text_known=text.known)


def library_network(model: Any, text: Text, null: Tensor) -> Network:
    """diffusers' as a function of z and log SNR, in the dtype of its weights, for z and v in float32."""
    given, dtype = text.with_null(null), model.dtype
    given["encoder_hidden_states"] = given["encoder_hidden_states"].to(dtype)

    def network(z: Tensor, log_snr: Tensor) -> Tensor:
        v: Tensor = model(z.to(dtype), SINUSOIDS_PER_LOG_SNR * log_snr, **given).sample
        return v.float()

    return network


def our_loss(network: Network, batch: Examples) -> Tensor:
    """The squared error of v, by our process."""
    t = (batch.step + 1) / batch.num_steps
    z = PROCESS.diffuse(batch.images, t, batch.noise)
    v = network(z, PROCESS.log_snr(t))
    return (v - PROCESS.target(batch.images, batch.noise, t, "v")).square().mean()


def library_loss(network: Network, schedule: LibrarySchedule, batch: Examples) -> Tensor:
    """The same by diffusers' scheduler."""
    z = schedule.scheduler.add_noise(batch.images, batch.noise, batch.step)
    v = network(z, schedule.told_log_snr[batch.step])
    target: Tensor = schedule.scheduler.get_velocity(batch.images, batch.noise, batch.step)
    return (v - target).square().mean()


def work(form: Form, sizes: Sizes) -> dict[str, Any]:
    """Parameters of each network, and operations of its forward pass of one image, by side. They do not depend on groups."""
    ours, library, default = networks(form)
    parameters = {"ours": _count(ours), "diffusers": _count(library), "diffusers, default blocks": _count(default)}
    operations: dict[str, dict[str, int]] = {}
    for side in sorted({side for _, side in sizes.images}):
        text, z, log_snr = texts(1, sizes), torch.randn(1, 3, side, side), torch.zeros(1)
        calls = {
            "ours": our_network(ours, text),
            "diffusers": library_network(library, text, null_state(ours)),
            "diffusers, default blocks": library_network(default, text, null_state(ours)),
        }
        operations[str(side)] = {name: flops(partial(call, z, log_snr)) for name, call in calls.items()}
    return {"parameters": parameters, "flops": operations}


@torch.no_grad()
def flops(call: Call) -> int:
    """Returns the floating-point operations of matrix products and convolutions; a multiplication and an addition are two."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def checked_difference(form: Form, sizes: Sizes) -> dict[str, Any]:
    """Compares networks, a training step and samplers in float32 at the first size, or exits."""
    batch_size, side = sizes.images[0]
    torch.manual_seed(0)
    found = step_difference(*networks(form)[:2], examples(batch_size, side, sizes))
    found |= {
        f"images, {sampler}": images_difference(form, sampler, batch_size, side, sizes) for sampler in SAME_METHOD
    }
    check(f"U-Net, {form.norm_groups} groups", found)
    return {"norm_groups": form.norm_groups, **found}


def step_difference(ours: Unet, library: Any, batch: Examples) -> dict[str, float]:
    """The largest differences of losses, of outputs, and of gradients over the largest gradient of the first layer."""
    schedule = LibrarySchedule("ancestral", PROCESS, batch.num_steps)
    both = our_network(ours, batch.text), library_network(library, batch.text, null_state(ours))
    log_snr = schedule.told_log_snr[batch.step]
    with torch.no_grad():
        outputs = [network(batch.noise, log_snr) for network in both]
    losses = our_loss(both[0], batch), library_loss(both[1], schedule, batch)
    for loss in losses:
        loss.backward()
    gradient, wanted = (model.conv_in.weight.grad for model in (ours, library))
    assert gradient is not None and wanted is not None, "a step goes back to the first layer"
    return {
        "output": _largest(outputs[0] - outputs[1]),
        "loss": abs(losses[0].item() - losses[1].item()),
        "gradient": _largest(gradient - wanted) / _largest(wanted),
    }


@torch.inference_mode()
def images_difference(form: Form, sampler: Sampler, batch_size: int, side: int, sizes: Sizes) -> float:
    """The largest difference of images drawn by the same network from the same noise."""
    ours, library, _ = networks(form)
    text, z = texts(batch_size, sizes), torch.randn(batch_size, 3, side, side)
    schedule = LibrarySchedule(sampler, PROCESS, sizes.sampler_steps)
    drawn = draw_ours(our_network(ours, text), z, sampler, sizes.sampler_steps)
    network = library_network(library, text, null_state(ours))
    return _largest(drawn - schedule.draw(network, z, image_generators(0, batch_size)))


def check(what: str, found: Mapping[str, float]) -> None:
    """Exits where something differs."""
    for name, difference in found.items():
        if not difference <= LARGEST_DIFFERENCE:
            sys.exit(
                f"{what}: {name} differs by {difference:.2g}, at most {LARGEST_DIFFERENCE} wanted. Nothing is timed."
            )


def training(form: Form, batch_size: int, side: int, dtype: str, sizes: Sizes, pairs: int) -> dict[str, Any]:
    """A training step: noise, forward, backward, Adam; bfloat16 is autocast."""
    ours, library, default = networks(form)
    last = copy.deepcopy(library).to(memory_format=torch.channels_last)
    batch = examples(batch_size, side, sizes)
    schedule = LibrarySchedule("ancestral", PROCESS, batch.num_steps)
    calls: dict[str, Call] = {
        "ours": TrainingStep(ours, partial(our_loss, our_network(ours, batch.text), batch), dtype)
    }
    for name, model, seen in (
        ("diffusers", library, batch),
        ("diffusers, channels last", last, in_channels_last(batch)),
        ("diffusers, default blocks", default, batch),
    ):
        network = library_network(model, batch.text, null_state(ours))
        calls[name] = TrainingStep(model, partial(library_loss, network, schedule, seen), dtype)
    where = {"norm_groups": form.norm_groups, "batch_size": batch_size, "image_size": side, "dtype": dtype}
    return where | compared(calls, pairs, sizes.seconds, f"training step, {_said(where)}")


def in_channels_last(batch: Examples) -> Examples:
    """The same numbers in another layout."""
    return batch._replace(
        images=batch.images.contiguous(memory_format=torch.channels_last),
        noise=batch.noise.contiguous(memory_format=torch.channels_last),
    )


class TrainingStep:
    """Forward, backward, Adam, again and again on the same examples.

    Args:
        model: is changed.
        loss: of the model, a scalar.
        dtype: bfloat16 is autocast.
    """

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor], dtype: str) -> None:
        self.model, self.loss, self.dtype = model.train(), loss, dtype
        self.optimizer = torch.optim.Adam(model.parameters())

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.backward()
        self.optimizer.step()

    def backward(self) -> None:
        """Makes the gradients."""
        with torch.autocast("cpu", DTYPES[self.dtype], enabled=self.dtype != "float32"):
            loss = self.loss()
        loss.backward()

    def peak_bytes(self) -> int:
        """Returns the most bytes that tensors of forward and backward pass take at once, gradients among them."""
        self.optimizer.zero_grad(set_to_none=True)
        return peak_bytes(self.backward)


def predictor(network: Network) -> PredictX0:
    """The image that a network's v stands for."""
    return lambda z, t: PROCESS.to_x0(network(z, PROCESS.log_snr(t)), z, t, "v")


def draw_ours(network: Network, z: Tensor, sampler: Sampler, steps: int) -> Tensor:
    """Draws from z by our sampler, with the random streams of images 0 to B - 1."""
    rng = image_generators(0, len(z))
    return draw_images(predictor(network), PROCESS, z, steps=steps, sampler=sampler, rng=rng)


def drawing(form: Form, batch_size: int, side: int, dtype: str, sizes: Sizes, pairs: int) -> dict[str, Any]:
    """Whole images by DPM-Solver++ 2M; in bfloat16 are the weights, while z stays float32."""
    ours, library, default = networks(form)
    for model in (ours, library, default):
        model.eval().to(DTYPES[dtype])
    last = copy.deepcopy(library).to(memory_format=torch.channels_last)
    text, z = texts(batch_size, sizes), torch.randn(batch_size, 3, side, side)
    schedule = LibrarySchedule("dpmpp_2m", PROCESS, sizes.steps)
    calls: dict[str, Call] = {"ours": partial(draw_ours, our_network(ours, text), z, "dpmpp_2m", sizes.steps)}
    for name, model, start in (
        ("diffusers", library, z),
        ("diffusers, channels last", last, z.contiguous(memory_format=torch.channels_last)),
        ("diffusers, default blocks", default, z),
    ):
        network = library_network(model, text, null_state(ours))
        calls[name] = partial(schedule.draw, network, start, image_generators(0, batch_size))
    where = {"norm_groups": form.norm_groups, "batch_size": batch_size, "image_size": side, "dtype": dtype}
    with torch.inference_mode():
        return where | compared(calls, pairs, sizes.seconds, f"drawing, {_said(where)}")


def sampler_alone(sampler: Sampler, batch_size: int, side: int, sizes: Sizes, pairs: int) -> dict[str, Any]:
    """What a sampler itself takes in a step, beside a network that takes nothing; and how often it asks the network."""
    z, steps = torch.randn(batch_size, 3, side, side), sizes.sampler_steps
    schedule = LibrarySchedule(sampler, PROCESS, steps)
    network = CountingNetwork()
    runs: dict[str, Call] = {
        "ours": partial(draw_ours, network, z, sampler, steps),
        "diffusers": lambda: schedule.draw(network, z, image_generators(0, batch_size)),
    }
    passes = {}
    with torch.inference_mode():
        for name, run in runs.items():
            network.passes = 0
            run()
            passes[name] = network.passes
        found = in_turn(runs, pairs, seconds=sizes.seconds)
    ratios = ratio(found["diffusers"], found["ours"])
    _say(f"{sampler} alone, batch {batch_size}, {side}x{side}, diffusers", ratios)
    return {
        "sampler": sampler,
        "scheduler": SCHEDULERS[sampler],
        "batch_size": batch_size,
        "image_size": side,
        "steps": steps,
        "passes": passes,
        "seconds_per_step": {name: spread([s / steps for s in values]) for name, values in found.items()},
        "ratio": {"diffusers": ratios},
    }


class CountingNetwork:
    """In place of a network: says z, and counts how often it is asked."""

    def __init__(self) -> None:
        self.passes = 0

    def __call__(self, z: Tensor, log_snr: Tensor) -> Tensor:
        self.passes += 1
        return z


def guidance(form: Form, batch_size: int, side: int, dtype: str, sizes: Sizes, pairs: int) -> dict[str, Any]:
    """A guided output of ours: with and without the text as one batch, and as two passes, the second without any text."""
    model = networks(form)[0].eval()
    text, z, log_snr = texts(batch_size, sizes), torch.randn(batch_size, 3, side, side), torch.zeros(batch_size)
    with torch.inference_mode():
        difference = _largest(at_once(model, z, log_snr, text) - one_by_one(model, z, log_snr, text))
        where = {"batch_size": batch_size, "image_size": side, "dtype": dtype}
        check(f"guidance, {_said(where)}", {"output": difference})
        model = model.to(DTYPES[dtype])
        calls: dict[str, Call] = {
            "one batch": partial(at_once, model, z, log_snr, text),
            "two passes": partial(one_by_one, model, z, log_snr, text),
        }
        found = in_turn(calls, pairs, seconds=sizes.seconds)
    ratios = ratio(found["two passes"], found["one batch"])
    _say(f"guidance, {_said(where)}, two passes", ratios)
    return where | {
        "difference": difference,
        "seconds": {name: spread(values) for name, values in found.items()},
        "ratio": {"two passes": ratios},
    }


def at_once(model: Unet, z: Tensor, log_snr: Tensor, text: Text) -> Tensor:
    """Guided v [B, C, H, W] of one batch of 2 B images."""
    known = torch.cat([text.known, torch.zeros_like(text.known)])
    both = model(z.repeat(2, 1, 1, 1), log_snr.repeat(2), text=text.states.repeat(2, 1, 1), text_known=known)
    return guided(both, GUIDANCE_SCALE)


def one_by_one(model: Unet, z: Tensor, log_snr: Tensor, text: Text) -> Tensor:
    """The same of two batches of B images."""
    given = model(z, log_snr, text=text.states, text_known=text.known)
    return guided(torch.cat([given, model(z, log_snr)]), GUIDANCE_SCALE)


def checkpointing(form: Form, batch_size: int, side: int, sizes: Sizes, pairs: int) -> dict[str, Any]:
    """Time and memory of a training step in float32, with gradient checkpointing and without."""
    ours, library, _ = networks(form)
    our_light, library_light = our_unet(form, gradient_checkpointing=True), copy.deepcopy(library)
    our_light.load_state_dict(ours.state_dict())
    library_light.enable_gradient_checkpointing()
    batch = examples(batch_size, side, sizes)
    schedule = LibrarySchedule("ancestral", PROCESS, batch.num_steps)
    steps: dict[str, TrainingStep] = {}
    for name, model in {"ours": ours, "ours, checkpointing": our_light}.items():
        steps[name] = TrainingStep(model, partial(our_loss, our_network(model, batch.text), batch), "float32")
    for name, model in {"diffusers": library, "diffusers, checkpointing": library_light}.items():
        network = library_network(model, batch.text, null_state(ours))
        steps[name] = TrainingStep(model, partial(library_loss, network, schedule, batch), "float32")
    memory = {name: step.peak_bytes() for name, step in steps.items()}
    found = in_turn(steps, pairs, seconds=sizes.seconds)
    ratios = {who: ratio(found[f"{who}, checkpointing"], found[who]) for who in ("ours", "diffusers")}
    where = {"batch_size": batch_size, "image_size": side, "dtype": "float32"}
    for who, times in ratios.items():
        _say(f"checkpointing, {_said(where)}, {who}: more time", times)
    return where | {
        "norm_groups": form.norm_groups,
        "peak_bytes": memory,
        "memory_ratio": {who: memory[f"{who}, checkpointing"] / memory[who] for who in ("ours", "diffusers")},
        "seconds": {name: spread(values) for name, values in found.items()},
        "ratio": ratios,
    }


def compared(calls: Mapping[str, Call], pairs: int, seconds: float, what: str) -> dict[str, Any]:
    """Times `ours` and all others in turn."""
    found = in_turn(calls, pairs, seconds=seconds)
    ratios = {name: ratio(values, found["ours"]) for name, values in found.items() if name != "ours"}
    for name, times in ratios.items():
        _say(f"{what}, {name}", times)
    return {"seconds": {name: spread(values) for name, values in found.items()}, "ratio": ratios}


def _count(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def _said(where: Mapping[str, Any]) -> str:
    groups = f"{where['norm_groups']} groups, " if "norm_groups" in where else ""
    return f"{groups}batch {where['batch_size']}, {where['image_size']}x{where['image_size']}, {where['dtype']}"


def _say(what: str, found: Mapping[str, Any]) -> None:
    print(f"{what}: {found['median']:.2f} ({found['lowest']:.2f} to {found['highest']:.2f})", flush=True)
