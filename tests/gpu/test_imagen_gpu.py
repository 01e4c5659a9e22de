"""A cascade on a CUDA device: it draws and scores what the processor says, but for rounding, and can be trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rasterformer.interfaces import Cond
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.imagen.config import Config
from rasterformer.tasks import SuperResolution, Task

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

DEVICE = torch.device("cuda")
BYTES = TextConfig("bytes", dim=8, length=8)
UNET = Config(
    width=8, multipliers=(1, 2), res_blocks=(1, 1), attention_levels=(1,), norm_groups=2, head_dim=8, text_width=8
)
DRAWN: dict[str, Any] = {"steps": 3, "text": "red", "as_tensor": True}
SAME = 3  # grey levels of 256, in the mean: float32 with TF32, over a few steps


def stage(side: int, config: Config, task: Task | None = None) -> System:
    system = System.create(Recipe("imagen", config, DataConfig(image_size=side), TrainingConfig(), task, BYTES))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in system.model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape))
    system.model.eval()
    return system


def cascade() -> System:
    upscaler = stage(16, replace(UNET, denoiser="efficient_unet", source_noise=0.3), SuperResolution(factor=2))
    return replace(stage(8, UNET), upscalers=(upscaler,))


def random_images(*shape: int) -> Tensor:
    return torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def assert_same(one: Any, other: Any) -> None:
    one, other = (part if isinstance(part, Tensor) else torch.cat(part) for part in (one, other))
    assert one.device.type == "cpu" and one.shape == other.shape
    assert float((one.float() - other.float()).abs().mean()) < SAME


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_cascade_draws_there_what_it_draws_here(precision: str) -> None:
    here, there = cascade(), cascade().to(DEVICE)
    how: dict[str, Any] = {**DRAWN, "guidance_scale": 2.0, "negative": "blue", "precision": precision}
    assert_same(there.sample(2, **how), here.sample(2, **how))


def test_pictures_are_filled_in_varied_and_enlarged_there_as_here() -> None:
    here, there, images = cascade(), cascade().to(DEVICE), random_images(16, 16)
    known = torch.arange(16)[:, None].expand(16, 16) < 7
    assert_same(there.restore(images, known=[known] * 2, **DRAWN), here.restore(images, known=[known] * 2, **DRAWN))
    assert_same(there.complete(images, known=known, **DRAWN), here.complete(images, known=known, **DRAWN))
    assert torch.equal(there.complete(images.to(DEVICE), known=known, **DRAWN)[:, 0, :, :7], images[:, :, :7])
    assert_same(there.vary(images, strength=0.4, **DRAWN), here.vary(images, strength=0.4, **DRAWN))
    small = random_images(9, 13)
    assert_same(there.upscale(small, **DRAWN), here.upscale(small, **DRAWN))


def test_the_bound_there_is_the_bound_here() -> None:
    here, there, images = cascade(), cascade().to(DEVICE), random_images(16, 16)
    nats = [system.image_nats(images, captions=["red", ""], levels=3) for system in (here, there)]
    torch.testing.assert_close(nats[1].cpu(), nats[0], rtol=0.02, atol=0)


def test_a_step_of_training_has_a_finite_loss_and_reaches_all_weights() -> None:
    for system, source in ((stage(8, UNET), None), (cascade().upscalers[0], random_images(8, 8))):
        system.to(DEVICE).model.train()
        cond = replace(
            system.with_text(Cond(), ["red", "blue"], 2), source=None if source is None else source.to(DEVICE)
        )
        x = system.codec.encode(random_images(system.image_size, system.image_size)).to(DEVICE)
        with torch.autocast("cuda", torch.bfloat16):
            loss = system.model.loss(x, cond, rng=torch.Generator().manual_seed(0))
        loss.total.backward()
        assert bool(loss.total.isfinite())
        missed = [name for name, weight in system.model.named_parameters() if weight.grad is None]
        assert missed == []
