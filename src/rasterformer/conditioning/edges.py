"""Edges of images after Canny: a condition that keeps the shapes and leaves colours and texture to the model."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rasterformer.conditioning.luma import luma
from rasterformer.errors import ConfigError

TIE = 1e-9  # gradients closer than this are equal: far above rounding, far below one grey level


def canny_edges(images: Tensor, *, sigma: float = 2.0, low: float = 0.1, high: float = 0.2) -> Tensor:
    """Returns the edges of images, 255 on an edge and 0 elsewhere: thin lines, in 8-connected pieces.

    The luma, 0..1, is smoothed by a Gaussian; its gradient is Sobel's, not normalised, so that a sharp step of height h has
    about 4 h without smoothing and 1.6 h at sigma 2; the image goes on beyond its border as it is there. A pixel is kept
    where its gradient is larger than at the two points a pixel further up and down the gradient, interpolated between
    neighbours; of two equal pixels the brighter one is kept. A piece of kept pixels from `low` on is an edge where at least
    one of its pixels reaches `high`.

    Args:
        images: uint8 [B, 3, H, W].
        sigma: of the Gaussian, pixels, above 0.
        low: size of the gradient, above 0, from which an edge goes on.
        high: size of the gradient, `low` or more, at which an edge begins.

    Returns:
        uint8 [B, 1, H, W].

    Raises:
        ShapeError: images are of another shape or dtype.
        ConfigError: sigma or low is not above 0, or high is below low.

    Source: Canny 1986; sigma 2 on grey is VQGAN's. Thresholds are counted as in skimage.feature.canny, and have its defaults.
    """
    if not 0 < sigma < math.inf:
        raise ConfigError(f"sigma = {sigma} must be above 0 pixels and finite.")
    if not 0 < low <= high:
        raise ConfigError(f"low = {low} must be above 0 and not above high = {high}.")
    right, down = _sobel(_smooth(luma(images).double() / 255, sigma))
    size = torch.hypot(right, down)  # [B, 1, H, W]
    is_thin = _is_largest_along_gradient(size, right, down)
    edges = _connected_to(is_thin & (size >= high), is_thin & (size >= low))
    return edges.to(torch.uint8) * 255


def _smooth(grey: Tensor, sigma: float) -> Tensor:
    radius = math.ceil(4 * sigma)
    distance = torch.arange(-radius, radius + 1, dtype=grey.dtype, device=grey.device)
    weights = torch.exp(-(distance**2) / (2 * sigma**2))
    return _filter(grey, weights / weights.sum(), weights / weights.sum())


def _sobel(grey: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient towards the right and downwards."""
    smooth, step = grey.new_tensor([1.0, 2.0, 1.0]), grey.new_tensor([-1.0, 0.0, 1.0])
    return _filter(grey, smooth, step), _filter(grey, step, smooth)


def _filter(grey: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Correlates columns with `down` and rows with `right`; [B, 1, H, W] keeps its size."""
    vertical, horizontal = len(down) // 2, len(right) // 2
    padded = F.pad(grey, (horizontal, horizontal, vertical, vertical), mode="replicate")
    return F.conv2d(F.conv2d(padded, down.view(1, 1, -1, 1)), right.view(1, 1, 1, -1))


def _is_largest_along_gradient(size: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Where no gradient one pixel ahead or behind is larger, and the one ahead, which is brighter, is not equal either."""
    height, width = size.shape[2:]
    row_length = width + 2
    padded = F.pad(size, (1, 1, 1, 1)).flatten(1)  # [B, (H + 2)(W + 2)]
    rows, columns = torch.arange(1, height + 1, device=size.device), torch.arange(1, width + 1, device=size.device)
    here = rows[:, None] * row_length + columns  # [H, W]
    is_flat = right.abs() >= down.abs()
    across, along = right.sign().long(), down.sign().long() * row_length
    straight = torch.where(is_flat, across, along)  # from a pixel to its neighbour nearest to the gradient's direction
    oblique = across + along  # and to the next one on the other side of that direction
    share = torch.minimum(right.abs(), down.abs()) / torch.maximum(right.abs(), down.abs()).clamp_min(TIE)

    def at(steps: Tensor) -> Tensor:
        return padded.gather(1, (here + steps).flatten(1)).view_as(size)

    ahead = torch.lerp(at(straight), at(oblique), share)
    behind = torch.lerp(at(-straight), at(-oblique), share)
    return (size > ahead + TIE) & (size >= behind - TIE)


def _connected_to(seeds: Tensor, region: Tensor) -> Tensor:
    """Grows seeds within a region that holds them, step by step to the eight neighbours, until nothing is added."""
    while True:
        grown = (F.max_pool2d(seeds.float(), 3, stride=1, padding=1) > 0) & region
        if torch.equal(grown, seeds):
            return grown
        seeds = grown
