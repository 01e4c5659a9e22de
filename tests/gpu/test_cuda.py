"""What must hold on a CUDA device too; skipped where there is none."""

from pathlib import Path

import pytest
import torch

from rasterformer.cli.main import main
from rasterformer.interfaces import Cond
from rasterformer.recipe_file import load_recipe
from rasterformer.system import System, load

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

RECIPES = {
    "paper": [],
    "block order": [("model.attention", "local_2d"), ("model.query_block", "[4, 4]"), ("model.flange", "[2, 2]")],
    "convolution": [("model.input", "neighbourhood"), ("model.mlp_kernel", "[2, 3]"), ("model.output", "residual")],
}


def make(name: str) -> tuple[System, torch.Tensor]:
    system = System.create(load_recipe("tiny", RECIPES[name]))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in system.model.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=rng)
    system.model.eval()
    return system, system.codec.encode(torch.randint(0, 256, (3, 3, 8, 8), generator=rng).to(torch.uint8))


@torch.inference_mode()
@pytest.mark.parametrize("name", RECIPES)
def test_device_gives_the_numbers_of_the_processor(name: str) -> None:
    system, x = make(name)
    expected = system.model(x, Cond())
    found = system.model.cuda()(x.cuda(), Cond())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)  # sums in another order, TF32 off


@torch.inference_mode()
@pytest.mark.parametrize("name", RECIPES)
def test_step_equals_forward(name: str) -> None:
    system, x = make(name)
    model, x = system.model.cuda(), x.cuda()
    params, state = model.begin(Cond(), len(x))
    steps = [params]
    for position in range(x.shape[1] - 1):
        params, state = model.step(x[:, position : position + 1], state)
        steps.append(params)
    torch.testing.assert_close(torch.cat(steps, 1), model(x, Cond()), rtol=1e-4, atol=1e-4)


def test_tiny_trains_and_its_run_is_loaded_onto_the_device(tmp_path: Path) -> None:
    assert main(["train", "tiny", "--out", str(tmp_path / "run"), "--training.precision", "bfloat16"]) == 0
    system = load(tmp_path / "run")
    assert system.device.type == "cuda"
    assert system.sample(2, as_tensor=True).shape == (2, 3, 8, 8)
