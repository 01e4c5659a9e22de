"""The discriminator of image patches (Isola et al. 2017) that VQGAN is trained against."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from rasterformer.errors import ConfigError, ShapeError, did_you_mean
from rasterformer.nn.feature_maps import group_norm

DiscriminatorNorm = Literal["batch", "group", "spectral", "none"]


class PatchDiscriminator(nn.Module):
    """One logit, real or reconstructed, for each of many overlapping patches (70x70 pixels with three layers).

    4x4 convolutions padded by 1: num_layers of stride 2, one of stride 1, one of stride 1 to a single channel. Leaky ReLU
    of slope 0.2 between them. Width doubles from layer to layer up to 8 times base_width. Weights begin as N(0, 0.02),
    scales of a norm as N(1, 0.02).

    Args:
        in_channels: C of the images.
        base_width: channels after the first convolution.
        num_layers: convolutions of stride 2.
        norm: after every convolution but the first and the last: `batch` (paper; in training it mixes the images of a
            batch), `group` (32 groups, each image by itself), `none`; `spectral` divides the weight of every convolution by
            its largest singular value instead (Miyato et al. 2018).

    Raises:
        ConfigError: num_layers below 1, an unknown norm, or 32 groups that do not divide a width.
    """

    def __init__(
        self, in_channels: int, *, base_width: int = 64, num_layers: int = 3, norm: DiscriminatorNorm = "batch"
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ConfigError(f"num_layers = {num_layers}. A discriminator has at least 1.")
        if norm not in get_args(DiscriminatorNorm):
            raise ConfigError(f"norm = {norm!r} is not known.{did_you_mean(norm, get_args(DiscriminatorNorm))}")
        self.in_channels = in_channels
        self.smallest_side = 3 * 2**num_layers  # the convolutions of stride 2 halve, each of stride 1 takes one cell
        has_norm = norm in ("batch", "group")
        widths = [base_width * min(2**n, 8) for n in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, base_width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for n in range(1, num_layers + 1):
            stride = 2 if n < num_layers else 1
            layers.append(nn.Conv2d(widths[n - 1], widths[n], 4, stride=stride, padding=1, bias=not has_norm))
            if has_norm:
                layers.append(nn.BatchNorm2d(widths[n]) if norm == "batch" else group_norm(widths[n], 32))
            layers.append(nn.LeakyReLU(0.2))
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
                if norm == "spectral":
                    spectral_norm(layer)
            elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.normal_(layer.weight, 1.0, 0.02)
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Returns a logit for each patch, above zero for real.

        Args:
            images: float [B, C, H, W] in -1..1.

        Returns:
            float [B, 1, h, w], h = H // 2^num_layers - 2.

        Raises:
            ShapeError: images have another rank, dtype or number of channels, or are too small for a single patch.
        """
        if images.ndim != 4 or images.shape[1] != self.in_channels or not images.is_floating_point():
            raise ShapeError(
                f"images are {images.dtype} {list(images.shape)}; this discriminator takes float "
                f"[B, {self.in_channels}, height, width]."
            )
        if min(images.shape[2:]) < self.smallest_side:
            raise ShapeError(
                f"images are {images.shape[2]}x{images.shape[3]} pixels; this discriminator takes sides of at least "
                f"{self.smallest_side}. Use larger images, or fewer layers."
            )
        return self.layers(images)
