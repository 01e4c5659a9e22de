"""How well images agree with conditions: what was given is found again in what was drawn, without a trained network.

An `Agreement` is computed for samples and their own conditions, and for samples and the conditions of other images: if both are
equal, the condition is not obeyed. Originals and reconstructions say how much the measure itself can see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rasterformer.conditioning.edges import canny_edges
from rasterformer.conditioning.luma import luma
from rasterformer.conditioning.resize import reduce_area
from rasterformer.data.imageset import ImageSet
from rasterformer.evaluation.likelihood import mean_interval
from rasterformer.tasks import Edges, SuperResolution

NEIGHBOURHOOD = 5  # pixels, of the local features
FITTED_IMAGES, FITTED_PIXELS = 400, 100_000  # of the training images, at most
VOID = 11  # CamVid's label of what was not labelled
DARKER = 100  # grey levels below the mean training image: the mouse; chosen on training images


@dataclass(frozen=True)
class Agreement:
    """A measure.

    Args:
        name: with its unit.
        how: one sentence for people.
        higher_is_better: whether larger values mean more agreement.
        of: images uint8 [N, 3, H, W] and sources uint8 [N, c, h, w] -> float64 [N].
    """

    name: str
    how: str
    higher_is_better: bool
    of: Callable[[Tensor, Tensor], Tensor]

    def compared(self, images: Tensor, sources: Tensor) -> dict[str, Any]:
        """Agreement with each image's own source, and with that of the next image: means and the paired difference."""
        own, other = self.of(images, sources), self.of(images, sources.roll(1, 0))
        gain = own - other if self.higher_is_better else other - own
        interval = mean_interval(gain)
        return {
            "own": float(own.mean()),
            "other": float(other.mean()),
            "gain": float(gain.mean()),
            "interval": None if interval is None else list(interval),
        }


def reduced_difference(task: SuperResolution) -> Agreement:
    """Of super-resolution: the sample reduced as sources are made, beside its source."""

    def of(images: Tensor, sources: Tensor) -> Tensor:
        reduced = reduce_area(images, task.factor)
        return (reduced.double() - sources.double()).abs().mean((1, 2, 3))

    how = "mean absolute difference between the sample, reduced by areas as sources are made, and the source"
    return Agreement("difference, grey levels", how, False, of)


def edge_f1(task: Edges) -> Agreement:
    """Of edges: those of the sample, found as in training, beside the given ones."""

    def of(images: Tensor, sources: Tensor) -> Tensor:
        found = canny_edges(images, sigma=task.sigma, low=task.low, high=task.high) > 0
        return tolerant_f1(found, sources > 0)

    how = (
        "F1 of the edges found in the sample (Canny, as in training) and the given ones; an edge pixel counts as found where the "
        "other map has one at most 1 pixel away"
    )
    return Agreement("F1 of edges", how, True, of)


def tolerant_f1(found: Tensor, given: Tensor) -> Tensor:
    """F1 of edge maps, bool [N, 1, H, W], with a tolerance of one pixel in eight directions -> float64 [N].

    The harmonic mean of the share of found pixels near a given one, and of given pixels near a found one; 1 where both maps
    are empty.
    """

    def share(these: Tensor, those: Tensor) -> Tensor:
        near = F.max_pool2d(those.double(), 3, stride=1, padding=1) > 0
        count = these.sum((1, 2, 3)).double()
        return torch.where(count > 0, (these & near).sum((1, 2, 3)) / count.clamp(min=1), 0.0)

    precision, recall = share(found, given), share(given, found)
    both = precision + recall
    is_empty = ~(found.any(3).any(2).any(1) | given.any(3).any(2).any(1))
    return torch.where(is_empty, 1.0, 2 * precision * recall / both.clamp(min=1e-12))


def label_accuracy(training: ImageSet) -> Agreement:
    """Of label maps: a logistic regression from local colours to labels, fitted on real training images."""
    sources = _sources_of(training)
    features, index = fitted_pixels(training.images(slice(FITTED_IMAGES)))
    labels = sources.images(slice(FITTED_IMAGES))[:, 0].flatten()[index].long()
    seen = labels != VOID
    scale = Standardised.of(features[seen])
    weights = logistic_regression(scale(features[seen]), labels[seen], num_classes=int(labels[seen].max()) + 1)

    def of(images: Tensor, sources: Tensor) -> Tensor:
        predicted = (scale(local_features(images)) @ weights).argmax(-1)  # [N, H, W]
        given = sources[:, 0].long()
        counted = given != VOID
        right: Tensor = (predicted == given) & counted
        return right.sum((1, 2)) / counted.sum((1, 2)).clamp(min=1).double()

    how = (
        "share of pixels whose label a logistic regression finds in the sample (quadratic in colour, mean and spread of "
        f"{NEIGHBOURHOOD}x{NEIGHBOURHOOD} pixels; no position; fitted on real training images), unlabelled pixels not counted"
    )
    return Agreement("labels right", how, True, of)


def depth_correlation(training: ImageSet) -> Agreement:
    """Of depth: a linear regression from local colours to how much nearer a pixel is than usual at its place."""
    maps = _sources_of(training).images(slice(FITTED_IMAGES))[:, 0].double()
    usual = maps.mean(0)  # [H, W]: ground and sky, which all images have in common
    features, index = fitted_pixels(training.images(slice(FITTED_IMAGES)))
    target = (maps - usual).flatten()[index]
    scale = Standardised.of(features)
    weights = ridge_regression(scale(features), target)

    def of(images: Tensor, sources: Tensor) -> Tensor:
        predicted = scale(local_features(images)) @ weights
        return correlation(predicted.flatten(1), (sources[:, 0].double() - usual).flatten(1))

    how = (
        "correlation over pixels between the given depth, less the mean depth at that place in training images, and what a "
        f"ridge regression finds of it in the sample (quadratic in colour, mean and spread of {NEIGHBOURHOOD}x{NEIGHBOURHOOD} "
        "pixels; no position; fitted on real training images)"
    )
    return Agreement("correlation with depth", how, True, of)


def pose_distance(training: ImageSet) -> Agreement:
    """Of poses of a dark animal on a bright ground: from the middle of what is dark to the middle of the drawn skeleton."""
    usual = luma(training.images(slice(FITTED_IMAGES)))[:, 0].double().mean(0)

    def of(images: Tensor, sources: Tensor) -> Tensor:
        darker = (usual - luma(images)[:, 0].double()) > DARKER
        drawn = sources.amax(1) > 0
        distance: Tensor = (centroid(darker) - centroid(drawn)).norm(dim=1)
        return distance

    how = (
        f"distance between the centroids of the pixels that are more than {DARKER} grey levels darker than in the mean training "
        "image, and of the given skeleton"
    )
    return Agreement("distance, pixels", how, False, of)


def centroid(masks: Tensor) -> Tensor:
    """Mean (row, column) of the true pixels of bool [N, H, W] -> float64 [N, 2]; the middle of the image where there are none."""
    rows, columns = (torch.arange(size, dtype=torch.float64) for size in masks.shape[1:])
    count = masks.sum((1, 2)).double()
    means = (
        torch.stack([(masks.sum(2) * rows).sum(1), (masks.sum(1) * columns).sum(1)], 1) / count.clamp(min=1)[:, None]
    )
    return torch.where(count[:, None] > 0, means, torch.stack([rows.mean(), columns.mean()]))


def local_features(images: Tensor) -> Tensor:
    """Colour, mean and spread around each pixel, their products of two, and 1: uint8 [N, 3, H, W] -> float64 [N, H, W, 55]."""
    colour = images.double() / 255

    def around(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2, count_include_pad=False)

    mean = around(colour)
    spread = (around(colour**2) - mean**2).clamp(min=0).sqrt()
    first = torch.cat([colour, mean, spread], 1)  # [N, 9, H, W]
    one, other = torch.triu_indices(9, 9)
    return torch.cat([torch.ones_like(first[:, :1]), first, first[:, one] * first[:, other]], 1).permute(0, 2, 3, 1)


def fitted_pixels(images: Tensor) -> tuple[Tensor, Tensor]:
    """The features of pixels drawn from all images, float64 [n, 55], and their places in the flattened [N, H, W]."""
    pixels = len(images) * images.shape[2] * images.shape[3]
    index = torch.randperm(pixels, generator=torch.Generator().manual_seed(0))[:FITTED_PIXELS].sort().values
    parts, before = [], 0
    for group in images.split(32):
        features = local_features(group).flatten(0, 2)
        inside = index[(index >= before) & (index < before + len(features))] - before
        parts.append(features[inside])
        before += len(features)
    return torch.cat(parts), index


@dataclass(frozen=True)
class Standardised:
    """Features less their mean and divided by their spread; the constant first one stays."""

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Standardised:
        """From float64 [n, D]."""
        mean, spread = features.mean(0), features.std(0)
        mean[0], spread[0] = 0.0, 1.0
        return cls(mean, spread.clamp(min=1e-6))

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.spread


def ridge_regression(features: Tensor, target: Tensor, *, penalty: float = 1e-3) -> Tensor:
    """The weights [D] that minimise mean (features @ w - target)^2 + penalty |w|^2."""
    count, width = features.shape
    gram = features.T @ features / count + penalty * torch.eye(width, dtype=features.dtype)
    weights: Tensor = torch.linalg.solve(gram, features.T @ target / count)
    return weights


def logistic_regression(features: Tensor, labels: Tensor, *, num_classes: int, penalty: float = 1e-4) -> Tensor:
    """The weights [D, K] that minimise mean cross-entropy + penalty |w|^2, by at most 60 steps of L-BFGS."""
    weights = torch.zeros(features.shape[1], num_classes, dtype=torch.float32, requires_grad=True)
    narrow = features.float()
    search = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        value = F.cross_entropy(narrow @ weights, labels) + penalty * weights.square().sum()
        value.backward()
        return value

    search.step(loss)
    return weights.detach().double()


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, of each row of float64 [N, n] -> [N]; 0 where a row is constant."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norms: Tensor = a.norm(dim=1) * b.norm(dim=1)
    return (a * b).sum(1) / norms.clamp(min=1e-12)


def _sources_of(training: ImageSet) -> ImageSet:
    assert training.sources is not None, "the task is paired"
    return training.sources
