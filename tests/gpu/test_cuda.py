"""What must hold on a CUDA device too; skipped where there is none."""

from pathlib import Path

import pytest
import torch

from rasterformer.cli.main import main
from rasterformer.interfaces import Batch, Cond
from rasterformer.loading import load
from rasterformer.recipe_file import load_recipe
from rasterformer.system import System

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

RECIPES = {
    "paper": [],
    "block order": [("model.attention", "local_2d"), ("model.query_block", "[4, 4]"), ("model.flange", "[2, 2]")],
    "convolution": [("model.input", "neighbourhood"), ("model.mlp_kernel", "[2, 3]"), ("model.output", "residual")],
    "source": [("task.name", "inpaint"), ("model.encoder_depth", "1"), ("model.aligned_source", "true")],
}


def make(name: str) -> tuple[System, torch.Tensor, Cond]:
    system = System.create(load_recipe("tiny", RECIPES[name]))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in system.model.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=rng)
    system.model.eval()
    images = torch.randint(0, 256, (3, 3, 8, 8), generator=rng).to(torch.uint8)
    cond = system.with_source(Batch(images), first=0, purpose="test", seed=0).cond
    return system, system.codec.encode(images), cond


@torch.inference_mode()
@pytest.mark.parametrize("name", RECIPES)
def test_device_gives_the_numbers_of_the_processor(name: str) -> None:
    system, x, cond = make(name)
    expected = system.model(x, cond)
    found = system.model.cuda()(x.cuda(), cond.to(torch.device("cuda")))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)  # sums in another order, TF32 off


@torch.inference_mode()
@pytest.mark.parametrize("name", RECIPES)
def test_step_equals_forward(name: str) -> None:
    system, x, cond = make(name)
    model, x, cond = system.model.cuda(), x.cuda(), cond.to(torch.device("cuda"))
    params, state = model.begin(cond, len(x))
    steps = [params]
    for position in range(x.shape[1] - 1):
        params, state = model.step(x[:, position : position + 1], state)
        steps.append(params)
    torch.testing.assert_close(torch.cat(steps, 1), model(x, cond), rtol=1e-4, atol=1e-4)


def test_tiny_trains_and_its_run_is_loaded_onto_the_device(tmp_path: Path) -> None:
    assert main(["train", "tiny", "--out", str(tmp_path / "run"), "--training.precision", "bfloat16"]) == 0
    system = load(tmp_path / "run")
    assert system.device.type == "cuda"
    assert system.sample(2, as_tensor=True).shape == (2, 3, 8, 8)


def test_known_pixels_stay_on_the_device() -> None:
    system, _, cond = make("source")
    system.model.cuda()
    drawn = system.draw_from(cond, n=2)
    for image, source, known in zip(drawn, cond.source, cond.known, strict=True):
        assert torch.equal(image[:, :, known], source[:, known].expand(2, -1, -1))
