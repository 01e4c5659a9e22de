"""What must hold of diffusion over codes on a CUDA device too; skipped where there is none.

All noise is made on the processor, so that both devices see the same and may differ by rounding only.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from rasterformer.autoregressive.noise import image_generators
from rasterformer.diffusion.bound import bound_nats
from rasterformer.diffusion.discrete import make_process
from rasterformer.diffusion.draw import draw_codes
from rasterformer.diffusion.options import DiffusionOptions
from rasterformer.interfaces import Cond, Known
from rasterformer.loading import load
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.vq_diffusion.config import Config
from rasterformer.systems.vq_diffusion.model import VQDiffusion
from rasterformer.systems.vqgan.config import Config as TokenizerConfig
from rasterformer.tokenizer import Tokenizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

DEVICE = torch.device("cuda")
GRID, CODES, TEXT = (4, 4), 12, TextConfig("bytes", length=6, dim=8)
SMALL = Config(num_steps=10, width=32, depth=2, num_heads=4, mlp_width=64)
MODELS: dict[str, dict[str, Any]] = {
    "paper": {},
    "classes": {"num_classes": 3, "config": replace(SMALL, mlp="convolution")},
    "text": {"text": TEXT},
    "masks only, any level": {
        "config": replace(
            SMALL, schedule="cosine", step_embedding="sinusoidal", rotary=True, qk_norm=True, activation="swiglu"
        )
    },
}
ORDERS: tuple[Literal["posterior", "random", "purity", "confidence"], ...] = (
    "posterior",
    "random",
    "purity",
    "confidence",
)


def make(name: str) -> tuple[VQDiffusion, Cond]:
    """A model with weights that say something, and a condition for four images."""
    torch.manual_seed(0)
    parts = {"config": SMALL, **MODELS[name]}
    model = VQDiffusion(parts.pop("config"), GRID, CODES, **parts)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape))
    cond = Cond()
    if "num_classes" in parts:
        cond = Cond(label=torch.tensor([0, 2, 1, 1]))
    if "text" in parts:
        known = torch.arange(6) < torch.tensor([6, 2, 4, 3])[:, None]
        cond = Cond(text_tokens=torch.randint(0, 256, (4, 6)), text_known=known)
    return model.eval(), cond


def random_codes(batch: int = 4) -> Tensor:
    return torch.randint(0, CODES, (batch, GRID[0] * GRID[1], 1), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("schedule", ["paper", "release", "linear", "cosine"])
def test_the_process_gives_the_numbers_of_the_processor(schedule: Any) -> None:
    process, rng = make_process(schedule, CODES, 10), torch.Generator().manual_seed(0)
    x0, t = random_codes()[..., 0], torch.tensor([1, 4, 7, 10])
    s = torch.tensor([0, 3, 2, 5])
    noise = torch.rand(*x0.shape, 2, dtype=torch.float64, generator=rng)
    log_x0 = torch.randn(*x0.shape, CODES, generator=rng).log_softmax(-1)
    x_t = process.diffuse(x0, t, noise)
    there = [part.to(DEVICE) for part in (x0, t, s, noise, log_x0, x_t)]
    assert torch.equal(process.diffuse(there[0], there[1], there[3]).cpu(), x_t)
    found = process.posterior(there[4], there[5], there[1], there[2]).cpu()
    torch.testing.assert_close(found.exp(), process.posterior(log_x0, x_t, t, s).exp(), rtol=1e-4, atol=1e-6)
    nats = process.step_nats(there[4], there[0], there[5], there[1], there[2]).cpu()
    torch.testing.assert_close(nats, process.step_nats(log_x0, x0, x_t, t, s), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_close_to_those_of_the_processor(name: str) -> None:
    model, cond = make(name)
    x_t, t = random_codes()[..., 0], torch.tensor([1, 4, 7, 10])
    x_t[:, ::3] = model.process.mask_index
    expected = model(x_t, t, cond)
    found = model.to(DEVICE)(x_t.to(DEVICE), t.to(DEVICE), cond.to(DEVICE))
    assert found.device.type == DEVICE.type
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)  # sums in another order, TF32 off


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_has_the_loss_and_the_gradients_of_the_processor(name: str) -> None:
    model, cond = make(name)
    model.train()
    steps = []
    for device in (torch.device("cpu"), DEVICE):
        there, rng = model.to(device), torch.Generator().manual_seed(5)
        there.zero_grad()
        loss = there.loss(random_codes().to(device), cond.to(device), rng=rng)
        loss.total.backward()
        gradients = {n: None if p.grad is None else p.grad.cpu().clone() for n, p in there.named_parameters()}
        steps.append((loss.total.detach().cpu(), loss.nats.cpu(), gradients))
    (total, nats, gradients), (found_total, found_nats, found) = steps
    torch.testing.assert_close(found_total, total, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found_nats, nats, rtol=1e-3, atol=1e-3)
    for weight, gradient in gradients.items():
        assert (gradient is None) == (found[weight] is None), weight
        if gradient is not None:
            largest = float(gradient.abs().max())
            torch.testing.assert_close(found[weight], gradient, rtol=1e-2, atol=1e-3 * largest + 1e-6, msg=weight)


@pytest.mark.parametrize("name", MODELS)
def test_the_bound_is_that_of_the_processor(name: str) -> None:
    model, cond = make(name)
    x = random_codes()
    expected = bound_nats(model, x, cond, rng=image_generators(3, 4), levels=5)
    found = bound_nats(model.to(DEVICE), x.to(DEVICE), cond.to(DEVICE), rng=image_generators(3, 4), levels=5)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("steps", [None, 4])
def test_images_drawn_are_those_of_the_processor_but_for_rounding(order: Any, steps: int | None) -> None:
    """The same noise: a code differs only where two clocks ring within the rounding of the logits, hardly ever."""
    schedule: Literal["paper", "cosine"] = (
        "paper" if order == "posterior" else "cosine"
    )  # the other orders reveal masks
    torch.manual_seed(0)
    model = VQDiffusion(replace(SMALL, schedule=schedule), GRID, CODES).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    options, count = DiffusionOptions(steps=steps, order=order, top_p=0.9), 64
    where = torch.rand(count, GRID[0] * GRID[1], generator=torch.Generator().manual_seed(1)) < 0.3
    known = Known(random_codes(count), where)
    drawn = [
        draw_codes(model.to(device), Cond(), count, options=options, rng=image_generators(7, count), known=known).cpu()
        for device in (torch.device("cpu"), DEVICE)
    ]
    assert torch.equal(drawn[1][where], known.x[where])
    assert len(drawn[0].unique()) > 2 and int(drawn[1].max()) < CODES
    same = (drawn[0] == drawn[1]).all(1).double().mean()
    assert float(same) >= 0.9


def test_guidance_and_variations_run_on_the_device() -> None:
    model, cond = make("classes")
    start, options = random_codes(), DiffusionOptions(guidance_scale=3.0)
    drawn = [
        draw_codes(
            model.to(device), cond.to(device), 4, options=options, rng=image_generators(2, 4), start=(start, 5)
        ).cpu()
        for device in (torch.device("cpu"), DEVICE)
    ]
    assert float((drawn[0] == drawn[1]).double().mean()) >= 0.9


def test_a_system_that_drops_codes_draws_and_scores_on_the_device(tmp_path: Path) -> None:
    config = TokenizerConfig(
        base_width=8, multipliers=(1, 1), res_blocks=1, attention_levels=(), middle_attention=False, z_channels=4,
        norm_groups=4, vocab_size=CODES, dim=4, perceptual="none", discriminator="none",
    )  # fmt: skip
    data, training = DataConfig(image_size=8), TrainingConfig()
    tokenizer = Tokenizer.create(Recipe("vqgan", config, data, training))
    recipe = Recipe("vq_diffusion", replace(SMALL, tokenizer="run"), data, training)
    system = System.create(recipe, tokenizers={"tokenizer": tokenizer}, used_codes=torch.tensor([1, 2, 5, 11]))
    system.save(tmp_path)
    images = torch.randint(0, 256, (3, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    expected = system.code_nats(images, levels=10)
    on_device = load(tmp_path)
    assert on_device.device.type == DEVICE.type
    torch.testing.assert_close(on_device.code_nats(images, levels=10), expected, rtol=1e-2, atol=1e-2)
    assert on_device.sample(2, as_tensor=True).shape == (2, 3, 8, 8)
    mask = torch.ones(8, 8, dtype=torch.bool)
    mask[2:6, 2:6] = False
    filled = on_device.complete(images, known=mask, n=2, as_tensor=True)
    assert torch.equal(filled[..., mask].cpu(), images[:, None].expand(-1, 2, -1, -1, -1)[..., mask])
