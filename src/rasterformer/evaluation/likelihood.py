"""From a model's nats to a figure that can be quoted: bits per dimension with interval, data, split and what it means.

Scoring is the model's part: `autoregressive/score.py`, exact for every sub-pixel, or `pixel_bound.py`, an upper bound for whole
images. Both make the same report, so that models of either kind can be compared on the same images. Image files to compare with
are in `image_codecs.py`.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import torch
from rich.table import Table
from torch import Tensor

from rasterformer.data.imageset import ImageSet
from rasterformer.errors import CheckpointError, ConfigError, DataError, ShapeError
from rasterformer.evaluation.image_codecs import file_bits_per_dim
from rasterformer.evaluation.overlap import num_identical
from rasterformer.interfaces import Batch, Cond, OnStep

RAW_BITS_PER_DIM = 8.0  # of pixels stored as they are
NORMAL_975 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
WithSource = Callable[[Batch, int], Batch]
MEANINGS = {"exact": "exact likelihood", "upper": "upper bound, estimated, on the negative log-likelihood"}


class Scorer(Protocol):
    """What `evaluate_likelihood` needs of a system whose likelihood is exact."""

    def symbol_nats(self, images: Tensor, cond: Cond) -> Tensor:
        """uint8 [B, C, H, W] -> nats, float [B, C, H, W], of every sub-pixel given those generated before it."""


class BoundScorer(ABC):
    """What `evaluate_likelihood` needs of a model that gives whole images an upper bound, the sum over its stages.

    Attributes:
        levels: of noise, drawn for each image and stage to estimate the bound.
        stage_sizes: side of the images of each stage, pixels; the last one is that of the images scored.
        takes_captions: whether a stage was trained with captions.
    """

    levels: int
    stage_sizes: tuple[int, ...]
    takes_captions: bool

    @abstractmethod
    def stage_nats(self, images: Tensor, cond: Cond, captions: Sequence[str] | None) -> Tensor:
        """uint8 [B, C, H, W], their condition, and a caption of each where any are taken -> nats, float [B, stages].

        The noise belongs to the image: another condition, or another batch, meets the same noise.
        """


@dataclass(frozen=True)
class StageShare:
    """A stage's part of a bound.

    Args:
        image_size: side of the images that the stage makes, pixels.
        bits_per_dim: its bits over the dimensions of the last stage's images: the shares' sum is the bound.
        own_bits_per_dim: its bits over the dimensions of its own images.
    """

    image_size: int
    bits_per_dim: float
    own_bits_per_dim: float


@dataclass(frozen=True)
class LikelihoodReport:
    """A likelihood together with everything that must be known to compare it.

    Args:
        bits_per_dim: total bits of all images / total dimensions.
        interval: 95 % interval of `bits_per_dim` over images of this kind: see `ratio_interval`. None: there is one image only.
        nats_per_image: mean.
        num_images: how many were scored, the first ones of the split.
        split_images: how many the split has.
        num_dims: dimensions (sub-pixels) of an image.
        task: what the images are given their sources by: then the figure is that of p(image | source). None: no source.
        given: what else each image is given: `class`, `caption`; both held out, as the image is.
        unknown_share: of all dimensions, those that the figure is over: the others are known from the source.
        bound: whether the figure is exact or an estimate of an upper bound.
        levels: of noise, drawn for each image and stage to estimate the bound. None: the figure is exact.
        stages: each stage's part of the bound, the first one first. None: the figure is exact.
        per_channel: bits/dim of R, G and B, each given what was generated before. None: the model gives no parts.
        dataset, split, split_origin, preprocessing, data_fingerprint: of the images.
        lossless_data: whether the stored images are lossless. None: mixed or not known.
        baselines: bits/dim of lossless image files of the same images.
        overlap_with_training: scored images that are also training images, pixel for pixel. None: not looked for.
        images_per_second: of scoring alone.
        dtype: that the model computed in.
        model: its name or folder.
    """

    bits_per_dim: float
    interval: tuple[float, float] | None
    nats_per_image: float
    num_images: int
    split_images: int
    num_dims: int
    task: str | None
    given: tuple[str, ...]
    unknown_share: float
    bound: Literal["exact", "upper"]
    levels: int | None
    stages: tuple[StageShare, ...] | None
    per_channel: tuple[float, ...] | None
    dataset: str
    split: str
    split_origin: str
    preprocessing: str
    data_fingerprint: str
    lossless_data: bool | None
    baselines: dict[str, float]
    overlap_with_training: int | None
    images_per_second: float
    dtype: str
    model: str

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the figure must not be quoted as it stands, one sentence each."""
        found = []
        if self.bits_per_dim > RAW_BITS_PER_DIM:
            found.append("Worse than storing the pixels as they are (8 bits/dim): hardly trained.")
        if self.lossless_data is False:
            found.append("The images were stored with loss (JPEG): the figure is not comparable with published ones.")
        if self.lossless_data is None:
            found.append("Some images may be lossy (JPEG): the figure is not comparable with published ones.")
        if self.overlap_with_training:
            found.append(f"{self.overlap_with_training:,} of the scored images are training images too.")
        if self.dtype not in ("float32", "float64"):
            found.append(f"Scored in {self.dtype}: a figure to publish needs float32.")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values: the fields, what the interval is, and the warnings."""
        return {
            **asdict(self),
            "likelihood_of": f"pixels, {MEANINGS[self.bound]}",
            "interval_level": 0.95,
            "interval_method": f"normal approximation on the mean over {self._spread}",
            "warnings": list(self.warnings),
        }

    def table(self) -> Table:
        """Returns the report for a terminal."""
        table = Table(title=f"{self.model} on {self.dataset}, {self.split}", show_header=False, title_justify="left")
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in self._rows():
            table.add_row(name, value)
        for warning in self.warnings:
            table.add_row("warning", warning, style="yellow")
        return table

    @property
    def _spread(self) -> str:
        return "images" if self.bound == "exact" else "images and the noise drawn for them"

    @property
    def _given(self) -> str:
        own = ", ".join(f"its {name}" for name in self.given)
        source = "" if self.task is None else f"the source, {self.task}"
        both = " and ".join(part for part in (own, source) if part)
        return f" given {both}" if both else ""

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "bits/dim", f"{self.bits_per_dim:.4f}  ({MEANINGS[self.bound]}{self._given})"
        if self.levels is not None:
            each = "image and stage" if self.stages is not None and len(self.stages) > 1 else "image"
            yield "estimated from", f"{self.levels} levels of noise, drawn for each {each}, without guidance"
        if self.stages is not None and len(self.stages) > 1:
            sides = [f"{one.image_size}x{one.image_size}" for one in self.stages]
            shares = "  ".join(f"{side} {one.bits_per_dim:.4f}" for side, one in zip(sides, self.stages, strict=True))
            own = "  ".join(f"{side} {one.own_bits_per_dim:.4f}" for side, one in zip(sides, self.stages, strict=True))
            yield (
                "sum over stages",
                f"{shares}  (bits/dim of the {sides[-1]} image; each stage is given the true image before it)",
            )
            yield "each stage alone", f"{own}  (bits/dim of its own image)"
        if self.interval is None:
            yield "95 % interval", "none: one image only"
        else:
            low, high = self.interval
            yield "95 % interval", f"{low:.4f} .. {high:.4f}  (over {self._spread}, normal approximation on the mean)"
        if self.per_channel is not None:
            names = ("R", "G", "B") if len(self.per_channel) == 3 else map(str, range(len(self.per_channel)))
            figures = zip(names, self.per_channel, strict=True)
            yield "per channel", "  ".join(f"{name} {figure:.4f}" for name, figure in figures)
        yield "nats/image", f"{self.nats_per_image:,.2f}"
        part = "" if self.unknown_share == 1 else f", of which {100 * self.unknown_share:.1f} % are unknown and counted"
        yield "dimensions", f"{self.num_dims:,} an image{part}"
        for name, figure in self.baselines.items():
            yield name, f"{figure:.4f} bits/dim"
        part = "" if self.num_images == self.split_images else f", the first of {self.split_images:,}"
        yield "images", f"{self.num_images:,}{part}"
        yield "split", f"{self.split}: {self.split_origin}"
        yield "preprocessing", self.preprocessing
        yield "data", f"{self.dataset}, fingerprint {self.data_fingerprint[:12]}"
        if self.overlap_with_training is not None:
            yield "seen in training", f"{self.overlap_with_training:,} images, pixel for pixel"
        yield "speed", f"{self.images_per_second:,.1f} images/s in {self.dtype}"


def bits_per_dim(nats: Tensor, num_dims: int | Tensor) -> Tensor:
    """Returns float64 [N], bits per dimension of each image.

    Args:
        nats: float [N], negative log-likelihood of each image.
        num_dims: dimensions (sub-pixels) of an image, or of each, int64 [N].

    Raises:
        ShapeError: nats are not float [N].
        ConfigError: num_dims is below 1.
    """
    if nats.ndim != 1 or not nats.is_floating_point():
        raise ShapeError(f"nats have dtype {nats.dtype} and shape {list(nats.shape)}; float [N] is needed.")
    smallest = int(num_dims.min()) if isinstance(num_dims, Tensor) else num_dims
    if smallest < 1:
        raise ConfigError(f"num_dims = {smallest} must be at least 1.")
    return nats.double() / (num_dims * math.log(2))


def num_dims(batch: Batch) -> Tensor:
    """Returns int64 [B], the dimensions of each image that are not known beforehand."""
    all_dims = torch.full((len(batch.images),), math.prod(batch.images.shape[1:]))
    if batch.cond.known is None:
        return all_dims
    return all_dims - batch.images.shape[1] * batch.cond.known.flatten(1).sum(1).cpu()


def mean_interval(values: Tensor) -> tuple[float, float] | None:
    """Returns mean -+ 1.96 standard errors of float64 [N]: a 95 % interval by the normal approximation.

    None where N is 1, which says nothing about the spread.
    """
    if len(values) == 1:
        return None
    mean = values.mean().item()
    half = NORMAL_975 * (values.std(correction=1) / math.sqrt(len(values))).item()
    return mean - half, mean + half


def ratio_interval(total: Tensor, dims: Tensor) -> tuple[float, float] | None:
    """Returns a 95 % interval of sum(total) / sum(dims) over images of this kind: the ratio -+ 1.96 standard errors.

    Source: Cochran 1977, Sampling Techniques, equation 6.13, whose residuals total - ratio * dims make it `mean_interval`
    where all images have as many dimensions. None where there is one image.

    Args:
        total: float64 [N], bits of each image.
        dims: [N], dimensions of each image.
    """
    ratio, mean = total.sum() / dims.sum(), dims.double().mean()
    return mean_interval(ratio + (total - ratio * dims) / mean)


def likelihood_report(
    nats: Tensor,
    image_set: ImageSet,
    *,
    num_dims: int,
    dims: Tensor | None = None,
    task: str | None = None,
    given: tuple[str, ...] = (),
    model: str,
    dtype: str,
    seconds: float,
    levels: int | None = None,
    stage_nats: Mapping[int, Tensor] | None = None,
    channel_nats: Tensor | None = None,
    baselines: Mapping[str, float] | None = None,
    overlap_with_training: int | None = None,
) -> LikelihoodReport:
    """Returns the report on the first N images of a set.

    Args:
        nats: float [N], negative log-likelihood of each image, or an upper bound on it.
        image_set: whose first N images these are.
        num_dims: dimensions (sub-pixels) of an image.
        dims: int64 [N], those of each image that are not known from its source. None: all.
        task: what the sources were made by. None: the images have no sources.
        given: what else each image was given, `class` or `caption`.
        model: its name or folder.
        dtype: that the model computed in.
        seconds: that scoring took.
        levels: of noise, drawn to estimate an upper bound. None: nats are exact.
        stage_nats: of a bound: side of a stage's images -> its part of `nats`, float [N]. None: nats are exact.
        channel_nats: float [N, C], the parts of `nats` that belong to each channel, all of num_dims / C dimensions.
            None: not known.
        baselines: bits/dim of the same images by other means. None: none.
        overlap_with_training: how many of the images are training images too. None: not looked for.

    Raises:
        ShapeError: nats are not float [N], or channel_nats not [N, C].
        ConfigError: num_dims is below 1.
        DataError: there are no images.
        CheckpointError: the nats of an image are not finite.
    """
    counted = torch.full((len(nats),), num_dims) if dims is None else dims
    figures = bits_per_dim(nats, counted) if len(nats) else nats
    if len(nats) == 0:
        raise DataError(f"{image_set.name}, {image_set.split}: there are no images to score.")
    if not bool(torch.isfinite(figures).all()):
        worst = int((~torch.isfinite(figures)).nonzero()[0])
        raise CheckpointError(
            f"{model} gives image {worst} of {image_set.name}, {image_set.split}, {nats[worst].item()} nats. "
            "Its training has diverged or its weights are damaged: use an earlier checkpoint."
        )
    per_channel = None
    if channel_nats is not None:
        shape = list(channel_nats.shape)
        if len(shape) != 2 or shape[0] != len(nats) or num_dims % shape[1]:
            raise ShapeError(f"channel_nats have shape {shape}; [{len(nats)}, C] with C dividing {num_dims} is needed.")
        of_channel = counted.sum().double() / channel_nats.shape[1]
        per_channel = tuple((channel_nats.double().sum(0) / of_channel / math.log(2)).tolist())
    stages = None
    if stage_nats is not None:
        in_all, last = counted.sum().double() * math.log(2), list(stage_nats)[-1]
        shares = {size: (part.double().sum() / in_all).item() for size, part in stage_nats.items()}
        stages = tuple(StageShare(size, share, share * (last / size) ** 2) for size, share in shares.items())
    return LikelihoodReport(
        bits_per_dim=(nats.double().sum() / counted.sum() / math.log(2)).item(),
        interval=ratio_interval(nats.double() / math.log(2), counted),
        nats_per_image=nats.double().mean().item(),
        num_images=len(nats),
        split_images=len(image_set),
        num_dims=num_dims,
        task=task,
        given=given,
        unknown_share=counted.double().mean().item() / num_dims,
        bound="exact" if levels is None else "upper",
        levels=levels,
        stages=stages,
        per_channel=per_channel,
        dataset=image_set.name,
        split=image_set.split,
        split_origin=image_set.split_origin,
        preprocessing=image_set.preprocessing,
        data_fingerprint=image_set.fingerprint,
        lossless_data=image_set.lossless,
        baselines=dict(baselines or {}),
        overlap_with_training=overlap_with_training,
        images_per_second=len(nats) / max(seconds, 1e-9),
        dtype=dtype,
        model=model,
    )


@torch.inference_mode()
def evaluate_likelihood(
    system: Scorer | BoundScorer,
    image_set: ImageSet,
    *,
    model: str,
    dtype: str,
    use_labels: bool = False,
    task: str | None = None,
    with_source: WithSource | None = None,
    training_set: ImageSet | None = None,
    with_baselines: bool = True,
    limit: int | None = None,
    batch_size: int = 16,
    on_progress: OnStep | None = None,
) -> LikelihoodReport:
    """Scores a set batch by batch and reports its bits/dim; no more than one batch of the model's output is kept.

    Args:
        system: anything with `symbol_nats`; or what gives an upper bound, see `pixel_bound.scorer_of`.
        image_set: the held-out images, with captions where the system takes some.
        model: name or folder of the system, for the report.
        dtype: that the system computes in, for the report.
        use_labels: condition on the classes of the images.
        task: what the images' sources are made by. None: they have none.
        with_source: adds the sources to a batch whose first image has this number. None: nothing is added.
        training_set: its images are compared with the scored ones. None: the overlap is not looked for.
        with_baselines: also measure PNG and WebP of the same images.
        limit: score the first so many images. None: all.
        batch_size: images scored together.
        on_progress: called with (images scored, images in all) after each batch.

    Raises:
        ConfigError: limit or batch_size is below 1.
        DataError: there are no images, or no captions for a system that takes some.
        ShapeError: the system's nats do not have the shape of the images, or not one value for each image and stage.
        CheckpointError: the nats of an image are not finite.
    """
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} = {value} must be at least 1.")
    num_images = len(image_set) if limit is None else min(limit, len(image_set))
    if num_images == 0:
        raise DataError(f"{image_set.name}, {image_set.split}: there are no images to score.")
    bound = system if isinstance(system, BoundScorer) else None
    takes_captions = bound is not None and bound.takes_captions
    parts: list[Tensor] = []  # float64 [B, C] each, of a bound [B, stages]
    dims: list[Tensor] = []  # int64 [B] each
    seconds = 0.0
    for first in range(0, num_images, batch_size):
        index = torch.arange(first, min(first + batch_size, num_images))
        batch = image_set.batch(index, use_labels=use_labels)
        batch = batch if with_source is None else with_source(batch, first)
        captions = image_set.captions_of(index) if takes_captions else None
        dims.append(num_dims(batch))
        start = time.perf_counter()
        if isinstance(system, BoundScorer):
            parts.append(_stage_nats(system, batch, captions))
        else:
            parts.append(_channel_nats(system, batch))
        seconds += time.perf_counter() - start
        if on_progress is not None:
            on_progress(first + len(index), num_images)
    nats = torch.cat(parts)  # [N, C], of a bound [N, stages]
    overlap = None
    if training_set is not None:
        overlap = num_identical(_batches(image_set, num_images), _batches(training_set, len(training_set)))
    return likelihood_report(
        nats.sum(dim=1),
        image_set,
        num_dims=3 * image_set.image_size**2,
        dims=torch.cat(dims),
        task=task,
        given=(*(["class"] if use_labels else []), *(["caption"] if takes_captions else [])),
        model=model,
        dtype=dtype,
        seconds=seconds,
        levels=None if bound is None else bound.levels,
        stage_nats=None if bound is None else dict(zip(bound.stage_sizes, nats.T, strict=True)),
        channel_nats=nats if bound is None else None,
        baselines=file_bits_per_dim(_batches(image_set, num_images)) if with_baselines else None,
        overlap_with_training=overlap,
    )


def _channel_nats(system: Scorer, batch: Batch) -> Tensor:
    """float64 [B, C], the exact nats of each channel."""
    nats = system.symbol_nats(batch.images, batch.cond)
    if nats.shape != batch.images.shape:
        raise ShapeError(
            f"symbol_nats gave shape {list(nats.shape)} for images of {list(batch.images.shape)}; "
            "one value for each sub-pixel is needed."
        )
    return nats.double().sum(dim=(2, 3)).cpu()


def _stage_nats(system: BoundScorer, batch: Batch, captions: Sequence[str] | None) -> Tensor:
    """float64 [B, stages], the bound on the nats of each stage."""
    nats = system.stage_nats(batch.images, batch.cond, captions)
    expected = (len(batch.images), len(system.stage_sizes))
    if nats.shape != expected:
        raise ShapeError(
            f"stage_nats gave shape {list(nats.shape)}; {list(expected)}, one value for each image and stage, is needed."
        )
    return nats.double().cpu()


def _batches(image_set: ImageSet, num_images: int) -> Iterator[Tensor]:
    """Images uint8 [B, 3, S, S] for passes without a model, a few hundred at a time."""
    for start in range(0, num_images, 256):
        yield image_set.images(slice(start, min(start + 256, num_images)))
