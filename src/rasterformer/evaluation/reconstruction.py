"""What remains of images when they have been codes: how near they stay, and how many bits the codes are.

The codes are no likelihood of the pixels, since images change on the way: their bits are per image and per pixel, never
bits/dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from rasterformer.codecs.perceptual import PerceptualDistance
from rasterformer.codecs.vq.usage import CodeUsage
from rasterformer.data.imageset import ImageSet
from rasterformer.data.palette import label_colours
from rasterformer.data.png import image_grid
from rasterformer.errors import ConfigError, DataError
from rasterformer.evaluation.frechet import frechet_distance
from rasterformer.evaluation.likelihood import mean_interval
from rasterformer.evaluation.report import Card, Cards, Curve, Heading, Picture, Section, TableSection, Text
from rasterformer.evaluation.similarity import psnr, ssim
from rasterformer.interfaces import OnStep
from rasterformer.nn.efficientnet_lite import INPUT_SIDE, NUM_FEATURES, efficientnet_lite_features
from rasterformer.tokenizer import Tokenizer

SHOWN = 6  # images of each sheet
# name of a figure that every image has: (heading with the direction that is better, its value)
FIGURES = {
    "psnr_db": ("PSNR, dB ↑", "{:.2f}"),
    "ssim": ("SSIM ↑", "{:.4f}"),
    "l1_grey_levels": ("L1, grey levels ↓", "{:.2f}"),
    "perceptual": ("perceptual distance ↓", "{:.4f}"),
    "label_accuracy": ("share of labels right ↑", "{:.4f}"),
}
# what `to_dict` gives as it is
PLAIN = (
    *(
        "model",
        "tokenizer",
        "steps",
        "dataset",
        "split",
        "split_origin",
        "preprocessing",
        "data_fingerprint",
        "num_images",
    ),
    *("split_images", "image_size", "factor", "vocab_size", "codes_per_image", "perceptual", "fd_efflite0", "mean_iou"),
    *("share_used", "perplexity", "entropy_bits", "num_dead"),
)


@dataclass(frozen=True)
class Mean:
    """A figure that every image has: its mean, and a 95 % interval of it over images of this kind.

    Args:
        value: infinite for the PSNR of equal images.
        interval: see `likelihood.mean_interval`. None: there is one image, or the mean is infinite.
    """

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class ReconstructionReport:
    """What a tokenizer's reconstructions are worth, together with all that must be known to compare the figures.

    Args:
        model: where the tokenizer was loaded from.
        tokenizer: its fingerprint.
        steps: optimiser steps behind it.
        dataset, split, split_origin, preprocessing, data_fingerprint: of the images.
        num_images: N, the first ones of the split.
        split_images: how many the split has.
        image_size: side, pixels.
        factor: pixels of a code along each side.
        vocab_size: K.
        figures: names of FIGURES -> mean over images. PSNR, SSIM, L1 and perhaps a perceptual distance; of label maps the share
            of labels that are right.
        perceptual: which perceptual distance it is. None: not measured.
        fd_efflite0: Fréchet distance between originals and reconstructions, see `frechet.py`. None: not measured.
        mean_iou: intersection over union of the pixels of a label, of all images together; mean over the labels that occur in
            originals or reconstructions. None: no label maps.
        counts: K numbers, how often each code occurs, the most frequent first.
        share_used, perplexity, entropy_bits, num_dead: of the codes of these images, see `CodeUsage`.
        pictures: the worst, median and best reconstructions.
    """

    model: str
    tokenizer: str
    steps: int
    dataset: str
    split: str
    split_origin: str
    preprocessing: str
    data_fingerprint: str
    num_images: int
    split_images: int
    image_size: int
    factor: int
    vocab_size: int
    figures: Mapping[str, Mean]
    perceptual: str | None
    fd_efflite0: float | None
    mean_iou: float | None
    counts: tuple[int, ...] = field(repr=False)
    share_used: float
    perplexity: float
    entropy_bits: float
    num_dead: int
    pictures: tuple[Picture, ...] = field(repr=False, compare=False)

    @property
    def codes_per_image(self) -> int:
        """L."""
        return (self.image_size // self.factor) ** 2

    @property
    def bits_per_image(self) -> float:
        """L log2 K: the codes as they are."""
        return self.codes_per_image * math.log2(self.vocab_size)

    @property
    def entropy_bits_per_image(self) -> float:
        """L times the entropy of a code: the codes by an ideal entropy coder that knows how frequent each is, and no context."""
        return self.codes_per_image * self.entropy_bits

    @property
    def protocol(self) -> tuple[str, ...]:
        """How the figures were made, one sentence or two each."""
        return tuple(self._protocol())

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values: all but the pictures and the counts. An infinite figure is None."""
        pixels = self.image_size**2
        return {
            **{name: getattr(self, name) for name in PLAIN},
            "figures": {
                name: {
                    "mean": mean.value if math.isfinite(mean.value) else None,
                    "interval": None if mean.interval is None else list(mean.interval),
                }
                for name, mean in self.figures.items()
            },
            "interval_level": 0.95,
            "interval_method": "normal approximation on the mean over images",
            "code_bits_per_image": self.bits_per_image,
            "code_bits_per_image_at_entropy": self.entropy_bits_per_image,
            "code_bits_per_pixel": self.bits_per_image / pixels,
            "code_bits_per_pixel_at_entropy": self.entropy_bits_per_image / pixels,
            "protocol": list(self.protocol),
        }

    def table(self) -> Table:
        """Returns the report for a terminal."""
        table = Table(title=self._title(), show_header=False, title_justify="left", caption_justify="left")
        table.caption = "\n".join(self.protocol)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in self._rows():
            table.add_row(name, value)
        return table

    def html_sections(self) -> list[Section]:
        """Returns the report as sections for `report.page`."""
        return [
            Heading(self._title()),
            Cards(list(self._cards())),
            TableSection(("", ""), list(self._rows())),
            Heading("Reconstructions"),
            *self.pictures,
            Heading("Codebook"),
            Curve(
                {"codes": list(enumerate(self.counts, start=1))},
                x_label="code, the most frequent first",
                y_label="times used",
                lines={"all alike": sum(self.counts) / self.vocab_size},
                caption=f"How often each of the {self.vocab_size:,} codes occurs in these {self.num_images:,} images.",
            ),
            Heading("How the figures were made"),
            *map(Text, self.protocol),
        ]

    def _title(self) -> str:
        return f"{self.model}: reconstructions of {self.dataset}, {self.split}"

    def _rows(self) -> Iterator[tuple[str, str]]:
        for name, mean in self.figures.items():
            heading, template = FIGURES[name]
            yield heading, template.format(mean.value) + _interval(mean, template)
        if self.mean_iou is not None:
            yield "mean IoU ↑", f"{self.mean_iou:.4f}"
        if self.fd_efflite0 is not None:
            yield "FD-EffLite0 ↓", f"{self.fd_efflite0:.2f}"
        yield "codes used", f"{100 * self.share_used:.1f} % of {self.vocab_size:,}; {self.num_dead:,} never"
        yield "perplexity", f"{self.perplexity:.1f}  (entropy {self.entropy_bits:.3f} bits a code)"
        side = self.image_size // self.factor
        yield "codes", f"{side}x{side} an image, one for {self.factor}x{self.factor} pixels"
        for name, bits in (
            ("bits of codes", self.bits_per_image),
            ("bits at their entropy", self.entropy_bits_per_image),
        ):
            yield name, f"{bits:,.0f} an image, {bits / self.image_size**2:.4f} a pixel"
        part = "" if self.num_images == self.split_images else f", the first of {self.split_images:,}"
        yield "images", f"{self.num_images:,}{part}"
        yield "split", f"{self.split}: {self.split_origin}"
        yield "preprocessing", self.preprocessing
        yield "data", f"{self.dataset}, fingerprint {self.data_fingerprint[:12]}"
        yield "tokenizer", f"{self.tokenizer}, {self.steps:,} steps"

    def _cards(self) -> Iterator[Card]:
        for name, mean in self.figures.items():
            heading, template = FIGURES[name]
            yield Card(heading, template.format(mean.value), _interval(mean, template).strip(" ()"))
        if self.mean_iou is not None:
            yield Card("mean IoU ↑", f"{self.mean_iou:.3f}")
        if self.fd_efflite0 is not None:
            yield Card("FD-EffLite0 ↓", f"{self.fd_efflite0:.1f}", "to the originals; no FID")
        yield Card("codes used", f"{100 * self.share_used:.1f} %", f"perplexity {self.perplexity:.1f}")
        note = f"{self.entropy_bits_per_image:,.0f} at their entropy"
        yield Card("bits of codes an image", f"{self.bits_per_image:,.0f}", note)

    def _protocol(self) -> Iterator[str]:
        yield "Figures of images are means; in brackets the 95 % interval over images, normal approximation on the mean."
        if "psnr_db" in self.figures:
            yield "PSNR, SSIM and L1: of each reconstruction and its original, values 0..255 after rounding."
        if self.perceptual is not None:
            yield f"Perceptual distance: {self.perceptual}."
        if self.mean_iou is not None:
            yield "Mean IoU: over the labels that occur, pixels of all images together."
        if self.fd_efflite0 is not None:
            yield (
                f"FD-EffLite0: Fréchet distance between reconstructions and originals, {self.num_images:,} images each, on "
                f"{NUM_FEATURES:,} pooled features of EfficientNet-Lite0 (ImageNet), images resized bicubically to "
                f"{INPUT_SIDE}x{INPUT_SIDE}. It is biased upwards for few images, is no FID, and compares only between sets "
                "of the same number of images and the same originals."
            )
        yield (
            f"Bits of codes: {self.codes_per_image:,} codes of log2 {self.vocab_size:,} bits, and of their entropy in these "
            "images (too low where images are few). They are no bits/dim, since reconstructions differ from the images."
        )


@torch.no_grad()
def evaluate_reconstruction(
    tokenizer: Tokenizer,
    images: ImageSet,
    *,
    limit: int | None,
    batch_size: int = 32,
    perceptual: PerceptualDistance | None,
    with_frechet: bool,
    on_progress: OnStep | None = None,
) -> ReconstructionReport:
    """Encodes and decodes images batch by batch and reports what remains of them; no more than one batch is kept.

    Args:
        tokenizer: in evaluation mode.
        images: the held-out images.
        limit: the first so many. None: all.
        batch_size: images at a time.
        perceptual: a distance on the tokenizer's device. None: not measured.
        with_frechet: also FD-EffLite0.
        on_progress: told (images done, images in all).

    Raises:
        ConfigError: limit or batch_size is below 1, or a perceptual or Fréchet distance of label maps is asked for.
        DataError: there are no images, or one where a Fréchet distance needs two.
        ShapeError: the images do not fit the tokenizer, or are smaller than a figure needs.
        MissingExtraError: torchmetrics, or the network of FD-EffLite0, is not installed.
    """
    count = _checked_count(tokenizer, images, limit, batch_size, perceptual=perceptual, with_frechet=with_frechet)
    usage, parts = CodeUsage(tokenizer.vocab_size), dict[str, list[Tensor]]()
    features: tuple[list[Tensor], list[Tensor]] = ([], [])  # of the reconstructions, of the originals
    confusion = torch.zeros(256, 256, dtype=torch.int64)  # [label of the original, label of the reconstruction]
    is_labels = tokenizer.recipe.model.pictures == "labels"
    device = tokenizer.autoencoder.last_layer.device
    for index in torch.arange(count).split(batch_size):
        originals = tokenizer.seen(images.images(index))
        codes = tokenizer.encode(originals)
        remade = tokenizer.decode(codes)
        usage.add(codes)
        if is_labels:
            found = {"label_accuracy": (remade[:, 0] == originals[:, 0]).double().mean((1, 2))}
            pairs = originals[:, 0].long() * 256 + remade[:, 0].long()
            confusion += torch.bincount(pairs.flatten(), minlength=256**2).unflatten(0, (256, 256))
        else:
            found = {
                "psnr_db": psnr(remade, originals),
                "ssim": ssim(remade, originals),
                "l1_grey_levels": (remade.double() - originals.double()).abs().mean((1, 2, 3)),
            }
        if perceptual is not None:
            seen = [pictures.to(device).float() / 127.5 - 1 for pictures in (remade, originals)]
            found["perceptual"] = perceptual(*seen).double().cpu()
        if with_frechet:
            for of_set, pictures in zip(features, (remade, originals), strict=True):
                of_set.append(efficientnet_lite_features(pictures.to(device)).cpu())
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
        if on_progress is not None:
            on_progress(int(index[-1]) + 1, count)
    figures = {name: torch.cat(values) for name, values in parts.items()}  # float64 [N] each
    return ReconstructionReport(
        model=tokenizer.origin,
        tokenizer=tokenizer.fingerprint,
        steps=tokenizer.steps,
        dataset=images.name,
        split=images.split,
        split_origin=images.split_origin,
        preprocessing=images.preprocessing,
        data_fingerprint=images.fingerprint,
        num_images=count,
        split_images=len(images),
        image_size=images.image_size,
        factor=tokenizer.factor,
        vocab_size=tokenizer.vocab_size,
        figures={name: _mean(values) for name, values in figures.items()},
        perceptual=None if perceptual is None else perceptual.name,
        fd_efflite0=frechet_distance(*map(torch.cat, features)) if with_frechet else None,
        mean_iou=_mean_iou(confusion) if is_labels else None,
        counts=tuple(usage.counts.sort(descending=True).values.tolist()),
        share_used=usage.share_used,
        perplexity=usage.perplexity,
        entropy_bits=usage.entropy_bits,
        num_dead=usage.num_dead,
        pictures=tuple(_pictures(tokenizer, images, next(iter(figures)), next(iter(figures.values())))),
    )


def _checked_count(
    tokenizer: Tokenizer,
    images: ImageSet,
    limit: int | None,
    batch_size: int,
    *,
    perceptual: PerceptualDistance | None,
    with_frechet: bool,
) -> int:
    """How many images are to be measured."""
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} = {value} must be at least 1.")
    if tokenizer.recipe.model.pictures == "labels" and (perceptual is not None or with_frechet):
        raise ConfigError(
            f"{tokenizer.origin} is a tokenizer of label maps, which have neither a perceptual nor a Fréchet distance: leave "
            "both out."
        )
    count = len(images) if limit is None else min(limit, len(images))
    needed = 2 if with_frechet else 1
    if count < needed:
        raise DataError(f"{images.name}, {images.split}: {count} images; at least {needed} are needed.")
    return count


def _mean(values: Tensor) -> Mean:
    mean = values.mean().item()
    return Mean(mean, mean_interval(values) if math.isfinite(mean) else None)


def _interval(mean: Mean, template: str) -> str:
    return "" if mean.interval is None else "  ({} .. {})".format(*map(template.format, mean.interval))


def _mean_iou(confusion: Tensor) -> float:
    both = confusion.diagonal()
    either = confusion.sum(0) + confusion.sum(1) - both
    occurs = either > 0
    return (both[occurs].double() / either[occurs]).mean().item()


def _pictures(tokenizer: Tokenizer, images: ImageSet, name: str, values: Tensor) -> Iterator[Picture]:
    """The reconstructions with the lowest, middle and highest values, float64 [N], of the figure of that name."""
    order = values.argsort(stable=True)
    shown = min(SHOWN, len(order))
    middle = (len(order) - shown) // 2
    heading, template = FIGURES[name]
    for word, start in (("worst", 0), ("middle", middle), ("best", len(order) - shown)):
        index = order[start : start + shown]
        originals = tokenizer.seen(images.images(index))
        remade = tokenizer.reconstruct(originals)
        if tokenizer.recipe.model.pictures == "labels":
            originals, remade = label_colours(originals), label_colours(remade)
        low, high = (template.format(values[index[k]].item()) for k in (0, -1))
        yield Picture(
            image_grid(torch.cat([originals, remade], 2), columns=shown),
            f"The {word} {shown} by {heading.rstrip(' ↑')}: {low} to {high}. Original above, reconstruction below.",
            scale=max(1, 128 // images.image_size),
        )
