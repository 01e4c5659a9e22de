"""Scoring in parts: the same numbers whatever the memory allows at a time."""

import pytest
import torch
from torch import Tensor, nn

from rasterformer.autoregressive import score
from rasterformer.autoregressive.score import symbol_nats
from rasterformer.interfaces import Autoregressive, Cond
from rasterformer.systems.image_transformer.config import Config
from rasterformer.systems.image_transformer.model import build

FIELDS = {
    "categorical": Config(width=8, depth=1, num_heads=2, mlp_width=8, block_length=16, memory_length=16),
    "dmol": Config(width=8, depth=1, num_heads=2, mlp_width=8, block_length=16, distribution="dmol", num_mixtures=2),
}


def make(name: str, num_classes: int = 0) -> Autoregressive:
    """Of 4x4 pixels, float64, with weights that matter."""
    torch.manual_seed(0)
    _, model = build(FIELDS[name], image_size=4, num_classes=num_classes)
    model = model.double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return model


def random_x(model: Autoregressive, batch: int) -> Tensor:
    return torch.randint(0, 256, (batch, *model.x_shape), generator=torch.Generator().manual_seed(1))


def classes(num_classes: int, batch: int) -> Cond:
    return Cond(label=torch.arange(batch) % num_classes) if num_classes else Cond()


def sizes_given_to(model: nn.Module) -> list[int]:
    """A list that fills with the number of images of each pass."""
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    return sizes


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize(("images_at_a_time", "expected"), [(0.5, [1] * 5), (1, [1] * 5), (2.9, [2, 2, 1]), (100, [5])])
def test_images_are_scored_in_parts_with_the_same_numbers(
    name: str, num_classes: int, images_at_a_time: float, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image under its own class; 0.5 is less than the outputs of one image. Float64, 1e-12: only rounding differs."""
    model = make(name, num_classes)
    x, cond = random_x(model, 5), classes(num_classes, 5)
    whole = -model.distribution.symbol_log_prob(model(x, cond), x)
    sizes = sizes_given_to(model)
    of_one = model.x_shape[0] * model.distribution.params_per_position
    monkeypatch.setattr(score, "PARAMS_AT_A_TIME", int(images_at_a_time * of_one))
    nats = symbol_nats(model, x, cond)
    assert sizes == expected
    torch.testing.assert_close(nats, whole, rtol=1e-12, atol=1e-12)
    assert len({round(float(image), 6) for image in nats.sum((1, 2))}) == 5


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_no_images_have_no_numbers(name: str, num_classes: int) -> None:
    model = make(name, num_classes)
    nats = symbol_nats(model, random_x(model, 0), classes(num_classes, 0))
    assert nats.shape == (0, *model.x_shape) and nats.dtype == torch.float64
