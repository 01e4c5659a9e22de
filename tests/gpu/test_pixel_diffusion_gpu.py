"""What must hold of diffusion of pixels on a CUDA device too; skipped where there is none.

All noise is made on the processor, so that both devices see the same and may differ by rounding only. Convolutions of float32
may be rounded to TF32 there, so networks are compared in float64 closely and in float32 roughly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from rasterformer.autoregressive.noise import image_generators
from rasterformer.diffusion.gaussian import GaussianSchedule, Prediction, make_gaussian
from rasterformer.diffusion.paste import fill_images
from rasterformer.diffusion.samplers import PredictX0, Sampler, draw_images
from rasterformer.diffusion.thresholding import clip_dynamic, guided
from rasterformer.nn.dit import DiT
from rasterformer.nn.efficient_unet import EfficientUnet
from rasterformer.nn.unet import Unet

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

DEVICE = torch.device("cuda")
CLOSE = 1e-3  # float64; but sinusoids of noise levels are float32, of angles up to 750
ROUGH = 3e-2  # float32, with TF32
TEXT = 6  # dimensions of a text's states
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "unet": lambda **given: Unet(
        3, width=8, multipliers=(1, 2), res_blocks=1, attention_levels=(1,), head_dim=8, text_dim=TEXT, norm_groups=2, **given
    ),
    "efficient_unet": lambda **given: EfficientUnet(
        3, image_channels=3, noised_image=True, width=8, multipliers=(1, 2), res_blocks=(1, 1), num_heads=2, text_dim=TEXT,
        norm_groups=2, **given,
    ),
    "dit": lambda **given: DiT(
        3, width=16, depth=2, num_heads=2, patch=2, mlp_width=32, text_dim=TEXT, encoded_channels=5, **given
    ),
}  # fmt: skip


def make(name: str, dtype: torch.dtype = torch.float64, **given: object) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network with weights that say something, and what it is told of four 8x8 images besides z."""
    torch.manual_seed(0)
    network = NETWORKS[name](**given).to(dtype)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, dtype=dtype))
    told = {
        "z": torch.randn(4, 3, 8, 8, dtype=dtype),
        "log_snr": torch.tensor([-9.0, -1.0, 2.0, 7.0], dtype=dtype),
        "text": torch.randn(4, 3, TEXT, dtype=dtype),
        "text_known": torch.arange(3) < torch.tensor([3, 0, 1, 2])[:, None],
    }
    if name == "efficient_unet":
        told |= {"image": torch.randn(4, 3, 8, 8, dtype=dtype), "image_log_snr": torch.arange(4).to(dtype)}
    if name == "dit":
        told |= {
            "encoded": torch.randn(4, 5, 2, 2, dtype=dtype),
            "encoded_known": torch.tensor([True, False, True, True]),
        }
    return network.eval(), told


def on_device(told: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(DEVICE) for name, tensor in told.items()}


def assert_near(found: Tensor, expected: Tensor, share: float) -> None:
    """Both up to a share of the largest number."""
    assert found.device.type == DEVICE.type
    largest = float(expected.abs().max())
    assert largest > 0
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=share * largest)


@torch.inference_mode()
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("dtype", "share"), [(torch.float64, CLOSE), (torch.float32, ROUGH)])
def test_outputs_are_those_of_the_processor(name: str, dtype: torch.dtype, share: float) -> None:
    network, told = make(name, dtype)
    expected = network(**told)
    assert_near(network.to(DEVICE)(**on_device(told)), expected, share)


@torch.inference_mode()
@pytest.mark.parametrize("name", NETWORKS)
def test_images_without_a_text_are_those_of_the_processor(name: str) -> None:
    network, told = make(name)
    told = {part: tensor for part, tensor in told.items() if not part.startswith("text")}
    expected = network(**told)
    assert_near(network.to(DEVICE)(**on_device(told)), expected, CLOSE)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_gradients_are_those_of_the_processor(name: str, gradient_checkpointing: bool) -> None:
    network, told = make(name, gradient_checkpointing=gradient_checkpointing)
    network.train()
    gradients = []
    for there in (told, on_device(told)):
        network.to(there["z"].device).zero_grad()
        network(**there).square().mean().backward()
        gradients.append(
            {part: weight.grad.clone() for part, weight in network.named_parameters() if weight.grad is not None}
        )
    expected, found = gradients
    assert found.keys() == expected.keys() and len(expected) > 10
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for part, gradient in expected.items():
        assert found[part].device.type == DEVICE.type
        torch.testing.assert_close(found[part].cpu(), gradient, rtol=CLOSE, atol=CLOSE * largest, msg=part)


@torch.inference_mode()
def test_bfloat16_on_the_device_is_near() -> None:
    network, told = make("unet", torch.float32)
    expected = network(**told)
    found = network.to(DEVICE, torch.bfloat16)(**on_device(told))
    assert found.dtype == torch.float32
    assert_near(found, expected, 0.1)


@pytest.mark.parametrize("schedule", get_args(GaussianSchedule))
@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_the_process_gives_the_numbers_of_the_processor(schedule: GaussianSchedule, prediction: Prediction) -> None:
    """Times may lie on either device."""
    process, rng = make_gaussian(schedule), torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 4, 3, 4, 4, generator=rng, dtype=torch.float64)
    t, s = torch.tensor([0.1, 0.4, 0.7, 1.0]), torch.tensor([0.0, 0.3, 0.1, 0.9])
    expected = everything(x, noise, t, s, schedule, prediction)
    for times in ((t, s), (t.to(DEVICE), s.to(DEVICE))):
        found = everything(x.to(DEVICE), noise.to(DEVICE), *times, schedule, prediction)
        for one, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(one.cpu(), wanted, rtol=1e-6, atol=1e-6)
            assert one.device.type == DEVICE.type
    assert process.time(process.log_snr(t).to(DEVICE)).device.type == DEVICE.type


def everything(
    x: Tensor, noise: Tensor, t: Tensor, s: Tensor, schedule: GaussianSchedule, prediction: Prediction
) -> list[Tensor]:
    """z_t, what a network should say, the image that this stands for, and a step of the reverse process."""
    process = make_gaussian(schedule)
    z = process.diffuse(x, t, noise)
    target = process.target(x, noise, t, prediction)
    mean, std = process.posterior(z, x, t, s, interpolation=0.3)
    return [z, target, process.to_x0(target, z, t, prediction), mean, std]


def guided_predictor(network: nn.Module, told: dict[str, Tensor]) -> PredictX0:
    """Guidance by one doubled batch and dynamic thresholding, as drawing has them."""
    process = make_gaussian("cosine")
    twice = {name: torch.cat([tensor, tensor]) for name, tensor in told.items() if name not in ("z", "log_snr")}
    twice["text_known"] = torch.cat([told["text_known"], torch.zeros_like(told["text_known"])])

    def predict_x0(z: Tensor, t: Tensor) -> Tensor:
        v = guided(network(z.repeat(2, 1, 1, 1), process.log_snr(t).repeat(2), **twice), 3.0, rescale=0.5)
        return clip_dynamic(process.to_x0(v, z, t, "v"))

    return predict_x0


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sampler", get_args(Sampler))
def test_drawn_images_are_those_of_the_processor(name: str, sampler: Sampler) -> None:
    network, told = make(name)
    drawn = []
    for there in (told, on_device(told)):
        predict_x0 = guided_predictor(network.to(there["z"].device), there)
        rng = image_generators(7, 4)
        drawn.append(draw_images(predict_x0, make_gaussian("cosine"), there["z"], steps=4, sampler=sampler, rng=rng))
    assert drawn[1].dtype == drawn[0].dtype
    assert_near(drawn[1], drawn[0], 10 * CLOSE)  # four guided passes


def test_filled_images_are_those_of_the_processor_and_known_pixels_stay() -> None:
    network, told = make("unet")
    process, known = make_gaussian("cosine"), torch.zeros(4, 8, 8, dtype=torch.bool)
    known[:, :4] = True
    x = torch.rand(4, 3, 8, 8, dtype=torch.float64) * 2 - 1
    filled = []
    for there in (told, on_device(told)):
        device = there["z"].device
        predict_x0: Any = guided_predictor(network.to(device), there)
        filled.append(
            fill_images(
                predict_x0,
                process,
                there["z"],
                x.to(device),
                known.to(device),
                steps=3,
                rng=image_generators(7, 4),
                resamplings=2,
            )
        )
    assert_near(filled[1], filled[0], 10 * CLOSE)
    assert torch.equal(filled[1].cpu()[:, :, :4], x[:, :, :4])
