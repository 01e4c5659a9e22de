"""Which images of a folder does a model not expect? Exact likelihoods, compared with those of images it should expect.

A foreign but simple picture needs *fewer* bits than a proper one (Nalisnick et al. 2019, "Do deep generative models know
what they don't know?"), so both sides count. A local damage hardly moves the mean over an image, so the most surprising
window of 8 x 8 pixels is a second statistic. Colours are in `heat_map.py`, the page is in `surprise_page.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from rasterformer.data.imageset import ImageSet
from rasterformer.errors import CheckpointError, ConfigError, DataError, ShapeError, did_you_mean
from rasterformer.evaluation.likelihood import Scorer
from rasterformer.evaluation.overlap import image_digests
from rasterformer.interfaces import Cond, OnStep

By = Literal["high", "low", "both"]
WINDOW = 8  # pixels
MIN_REFERENCE = 10  # images; median and MAD of fewer say little
NORMAL_MAD = 0.6744897501960817  # median absolute deviation of the standard normal distribution
RARE = 0.99  # an image's label is doubted where this share of the reference has a smaller margin


@dataclass(frozen=True)
class Scores:
    """What a model says about N images.

    Args:
        pixel_bits: float32 [N, H, W], bits of each pixel given those before it, summed over its C channels.
        num_channels: C.
        class_bits: float64 [N, K], bits of the whole image under each class. None: a model without classes.
    """

    pixel_bits: Tensor
    num_channels: int = 3
    class_bits: Tensor | None = None

    @property
    def bits_per_dim(self) -> Tensor:
        """float64 [N], of the whole image."""
        return self.pixel_bits.double().mean((1, 2)) / self.num_channels

    @property
    def patch_bits_per_dim(self) -> Tensor:
        """float64 [N], of the window of 8 x 8 pixels (the image, where it is smaller) that needs most bits."""
        height, width = self.pixel_bits.shape[1:]
        window = (min(WINDOW, height), min(WINDOW, width))
        means = avg_pool2d(self.pixel_bits.double()[:, None], window, stride=1)  # [N, 1, H - 7, W - 7]
        return means.amax((1, 2, 3)) / self.num_channels


@dataclass(frozen=True)
class Ranking:
    """How unusual each of N images is against a reference.

    Args:
        bits_per_dim: float64 [N].
        percentile: float64 [N], 0..100: share of the reference with fewer bits/dim, ties counted half.
        z: float64 [N], robust z of bits/dim, see `robust_z`.
        patch_z: float64 [N], the same of the most surprising window.
        score: float64 [N], what the images are ranked by.
        needs_more: bool [N], whether the statistic that decided lies above the reference's median.
        order: int64 [N], numbers of the images, the most surprising first.
    """

    bits_per_dim: Tensor
    percentile: Tensor
    z: Tensor
    patch_z: Tensor
    score: Tensor
    needs_more: Tensor
    order: Tensor

    def side(self, index: int) -> str:
        """Says to which side an image is unusual."""
        return "more bits than usual" if self.needs_more[index] else "fewer bits than usual"


def pixel_bits(nats: Tensor) -> Tensor:
    """Returns bits per pixel, float32 [B, H, W].

    Args:
        nats: float [B, C, H, W], of every sub-pixel given those before it.

    Raises:
        ShapeError: nats are not float [B, C, H, W].
    """
    if nats.ndim != 4 or not nats.is_floating_point():
        raise ShapeError(f"nats have dtype {nats.dtype} and shape {list(nats.shape)}; float [B, C, H, W] is needed.")
    return (nats.double().sum(1) / math.log(2)).float()


def robust_z(values: Tensor, reference: Tensor) -> Tensor:
    """Returns z = 0.6745 (value - median) / MAD, with median and median absolute deviation of the reference: float64 [N].

    For normal values 0.6745 / MAD is one over the standard deviation; a few outliers in the reference move neither.

    Args:
        values: float [N].
        reference: float [M].

    Raises:
        DataError: the reference has fewer than 10 values, or more than half of them are equal, so that MAD is 0.
    """
    if len(reference) < MIN_REFERENCE:
        raise DataError(
            f"The reference has {len(reference)} images; at least {MIN_REFERENCE} are needed to know what is usual. "
            "Give a folder with more of them (--reference)."
        )
    reference = reference.double()
    middle = reference.quantile(0.5)
    deviation = (reference - middle).abs().quantile(0.5)
    if deviation == 0:
        raise DataError(
            f"The reference's {len(reference)} images mostly need the same {middle.item():g} bits/dim, so there is no "
            "spread to compare with. Give a folder with different images (--reference)."
        )
    return NORMAL_MAD * (values.double() - middle) / deviation


def percentile(values: Tensor, reference: Tensor) -> Tensor:
    """Returns how many percent of the reference lie below each value, ties counted half: float64 [N].

    Args:
        values: float [N].
        reference: float [M].
    """
    ordered = reference.double().sort().values
    below = torch.searchsorted(ordered, values.double(), side="left")
    not_above = torch.searchsorted(ordered, values.double(), side="right")
    return 50.0 * (below + not_above) / len(reference)


def rank(images: Scores, reference: Scores, *, by: By = "both", with_patches: bool = True) -> Ranking:
    """Ranks images by how far they lie from the reference.

    The score is the larger of two, for the whole image and for its most surprising window: of z (`high`: images that
    need more bits than usual first), of -z (`low`), or of |z| (`both`).

    Args:
        images: of the folder, N.
        reference: of images that the model should expect, best such that it was not trained on.
        by: which side is surprising.
        with_patches: use both statistics; otherwise the whole image alone.

    Raises:
        ConfigError: by is not known.
        DataError: the reference has too few images, or they do not differ.
    """
    if by not in get_args(By):
        raise ConfigError(f"by = {by!r} is not known.{did_you_mean(by, get_args(By))}")
    bits = images.bits_per_dim
    z = robust_z(bits, reference.bits_per_dim)
    patch_z = robust_z(images.patch_bits_per_dim, reference.patch_bits_per_dim)
    used = torch.stack([z, patch_z] if with_patches else [z])  # [2, N] or [1, N]
    distance = {"high": used, "low": -used, "both": used.abs()}[by]
    score, which = distance.max(0)
    deciding = used.gather(0, which[None])[0]
    return Ranking(
        bits,
        percentile(bits, reference.bits_per_dim),
        z,
        patch_z,
        score,
        deciding > 0,
        score.argsort(descending=True, stable=True),
    )


def label_margin(class_bits: Tensor, labels: Tensor) -> Tensor:
    """Returns by how many bits the image is shorter under the best other class than under its own: float64 [N].

    Above 0, another class makes the image 2^margin times as probable.

    Args:
        class_bits: float64 [N, K], bits of the image under each class, K >= 2.
        labels: int64 [N].

    Raises:
        ShapeError: class_bits are not [N, K] with K >= 2, or labels not [N].
    """
    if class_bits.ndim != 2 or class_bits.shape[1] < 2 or labels.shape != class_bits.shape[:1]:
        raise ShapeError(
            f"class_bits have shape {list(class_bits.shape)} and labels {list(labels.shape)}; [N, K] with K >= 2 and [N] "
            "are needed."
        )
    own = class_bits.gather(1, labels[:, None])[:, 0]
    others = class_bits.scatter(1, labels[:, None], torch.inf).amin(1)
    return own - others


def doubtful_labels(margin: Tensor, reference_margin: Tensor) -> Tensor:
    """Returns where another class is much more probable: bool [N].

    That is where the margin is above 0 and above that of 99 % of the reference, whose labels are taken to be right: classes
    that the model can hardly tell apart then raise no alarm.

    Args:
        margin: float64 [N], see `label_margin`.
        reference_margin: float64 [M].
    """
    return (margin > 0) & (percentile(margin, reference_margin) > 100 * RARE)


def duplicates(batches: Iterable[Tensor]) -> list[list[int]]:
    """Returns the groups of images with equal pixels, each a list of two or more numbers, in their order.

    Args:
        batches: uint8 [B, C, H, W] each.
    """
    groups: dict[bytes, list[int]] = {}
    for number, digest in enumerate(image_digests(batches)):
        groups.setdefault(digest, []).append(number)
    return [group for group in groups.values() if len(group) > 1]


@torch.inference_mode()
def score_images(
    system: Scorer,
    image_set: ImageSet,
    *,
    num_classes: int = 0,
    labels: Tensor | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    on_progress: OnStep | None = None,
) -> Scores:
    """Scores the images of a set, under every class where the model has classes.

    Args:
        system: anything with `symbol_nats`.
        image_set: the images.
        num_classes: K of the model, 0 for one without classes.
        labels: int64 [N], the model's index of the class of each image. None: unknown; each image is scored under the class
            that makes it most probable.
        limit: score the first so many images. None: all.
        batch_size: images scored together.
        on_progress: called with (images scored, images in all).

    Raises:
        ConfigError: limit or batch_size is below 1.
        CheckpointError: the nats of an image are not finite.
    """
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} = {value} must be at least 1.")
    num_images = len(image_set) if limit is None else min(limit, len(image_set))
    chosen_bits, class_bits = [], []
    for first in range(0, num_images, batch_size):
        rows = slice(first, min(first + batch_size, num_images))
        images = image_set.images(rows)
        conds = [Cond(label=torch.full((len(images),), k)) for k in range(num_classes)] or [Cond()]
        bits = torch.stack([pixel_bits(system.symbol_nats(images, cond)).cpu() for cond in conds])  # [K, B, H, W]
        totals = bits.double().sum((2, 3)).T  # [B, K]
        if not bool(torch.isfinite(totals).all()):
            worst = first + int((~torch.isfinite(totals)).nonzero()[0, 0])
            raise CheckpointError(
                f"The model gives image {image_set.names[worst]!r} of {image_set.name} a likelihood that is not finite. "
                "Its training has diverged or its weights are damaged: use an earlier checkpoint."
            )
        label = totals.argmin(1) if labels is None else labels[rows]
        chosen_bits.append(bits[label, torch.arange(len(images))])
        class_bits.append(totals)
        if on_progress is not None:
            on_progress(rows.stop, num_images)
    return Scores(torch.cat(chosen_bits), num_channels=3, class_bits=torch.cat(class_bits) if num_classes else None)
