"""The likelihood of codes: nats per code of held-out images, and what they cost in bits. Never a likelihood of pixels.

Of an autoregressive model it is exact; of a diffusion model an estimate of an upper bound, and the report says so wherever the
figure stands.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from rich.table import Table
from torch import Tensor

from rasterformer.codecs.vq.usage import CodeUsage
from rasterformer.codecs.vq.used import UsedCodes
from rasterformer.data.imageset import ImageSet
from rasterformer.errors import CheckpointError, ConfigError, DataError
from rasterformer.evaluation.likelihood import WithSource, mean_interval
from rasterformer.interfaces import Batch, Cond, OnStep
from rasterformer.tokenizer import Tokenizer

MEANINGS = {"exact": "exact likelihood", "upper": "upper bound, estimated, on the negative log-likelihood"}
SAYS_NOTHING = "more than knowing nothing would cost: the model is not trained enough to say anything"
WithText = Callable[[Cond, list[str]], Cond]


class CodeScorer(Protocol):
    """What is measured: a `System` over codes."""

    def code_nats(self, images: Tensor, cond: Cond | None = None, *, levels: int | None = None) -> Tensor:
        """uint8 [B, 3, H, W] -> nats of each code, float32 [B, h, w]; of a diffusion model an unbiased estimate of a bound.

        The noise of such an estimate belongs to the image: another condition meets the same noise, so that their difference is
        the condition's, and other images meet other noise, so that the spread over images holds that of the noise too.
        `levels` is how many levels of noise are drawn for each image; None: the nats are exact.
        """


@dataclass(frozen=True)
class CodeLikelihoodReport:
    """What a model over codes says about held-out images.

    Args:
        nats_per_code: mean over all codes: exact, or an estimate of an upper bound.
        interval: 95 %, over images and, of an estimate, the noise that was drawn for them together; normal approximation on the
            mean. None: one image only.
        shuffled_nats_per_code: the same with the class, source and text of another image, half the set away. None: there is
            none of them.
        unigram_nats_per_code: entropy of the codes of these images, taken one by one: what a coder without a model would need.
        uniform_nats_per_code: ln K of the codes that the model numbers, what knowing nothing costs.
        bound: whether `nats_per_code`, the shuffled figure and `bits_per_pixel` are exact or upper bounds.
        levels: levels of noise drawn for each image to estimate a bound. None: the figures are exact.
        replaced_share: of these images' codes, those that the model does not number, as they do not occur in its training; the
            nearest that do are scored in their place. None: it numbers all codes.
        codes_per_image: L.
        bits_per_pixel: of an image's codes, as an entropy coder driven by the model would store them. The image that they decode
            to is not the original.
        num_images, split_images: scored, and there.
        task: what the sources were made by. None: no sources.
        window: rows and columns of codes that the model sees, where that is less than the image: each window is then scored by
            itself. None: the whole image.
        tokenizer: its fingerprint.
        dataset, split, split_origin, preprocessing, data_fingerprint: of the images.
        images_per_second: tokenizing included.
        model: its name or folder.
    """

    nats_per_code: float
    interval: tuple[float, float] | None
    shuffled_nats_per_code: float | None
    unigram_nats_per_code: float
    uniform_nats_per_code: float
    bound: Literal["exact", "upper"]
    levels: int | None
    replaced_share: float | None
    codes_per_image: int
    bits_per_pixel: float
    num_images: int
    split_images: int
    task: str | None
    window: tuple[int, int] | None
    tokenizer: str
    dataset: str
    split: str
    split_origin: str
    preprocessing: str
    data_fingerprint: str
    images_per_second: float
    model: str

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values: the fields, and what is measured."""
        meaning = "exact" if self.bound == "exact" else "upper bound, estimated"
        return {
            **asdict(self),
            "likelihood_of": f"{self._codes}, {meaning}; not of pixels",
            "interval_level": 0.95,
            "interval_over": self._spread,
        }

    def table(self) -> Table:
        """Returns the report for a terminal."""
        table = Table(title=f"{self.model} on {self.dataset}, {self.split}", show_header=False, title_justify="left")
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in self._rows():
            table.add_row(name, value)
        return table

    @property
    def _codes(self) -> str:
        if self.replaced_share is None:
            return "codes"
        return f"codes after replacement of {self.replaced_share:.2%} of them"

    @property
    def _spread(self) -> str:
        return "images" if self.bound == "exact" else "images and the noise drawn for them"

    def _rows(self) -> Iterator[tuple[str, str]]:
        given = "" if self.task is None else f" given the source, {self.task}"
        meaning = f"{MEANINGS[self.bound]} of {self._codes}{given}; none of pixels"
        yield "nats/code", f"{self.nats_per_code:.4f}  ({meaning})"
        if says_nothing(self.nats_per_code, self.uniform_nats_per_code):
            yield "what it says", SAYS_NOTHING
        if self.levels is not None:
            yield "estimated from", f"{self.levels} levels of noise, drawn for each image"
        if self.interval is None:
            yield "95 % interval", "none: one image only"
        else:
            low, high = self.interval
            yield "95 % interval", f"{low:.4f} .. {high:.4f}  (over {self._spread}, normal approximation on the mean)"
        if self.shuffled_nats_per_code is not None:
            both = "" if self.bound == "exact" else ", of two upper bounds under the same noise"
            yield (
                "condition of another",
                f"{self.shuffled_nats_per_code:.4f} nats/code: what the condition is worth is the difference{both}",
            )
        yield (
            "codes one by one",
            f"{self.unigram_nats_per_code:.4f} nats/code; knowing nothing: {self.uniform_nats_per_code:.4f}",
        )
        if self.replaced_share is not None:
            yield (
                "codes replaced",
                f"{self.replaced_share:.2%}: those that do not occur in training; the nearest that do are scored instead",
            )
        if self.window is not None:
            yield "windows", f"images are cut into {self.window[0]}x{self.window[1]} codes, each scored by itself"
        bits = self.nats_per_code / math.log(2) * self.codes_per_image
        estimated = "" if self.bound == "exact" else "  (upper bound, estimated)"
        yield "bits/image", f"{bits:,.1f} for {self.codes_per_image:,} {self._codes}{estimated}"
        yield (
            "bits/pixel",
            f"{self.bits_per_pixel:.4f} for the {self._codes}, from which the image returns only as its reconstruction"
            f"{estimated}",
        )
        part = "" if self.num_images == self.split_images else f", the first of {self.split_images:,}"
        yield "images", f"{self.num_images:,}{part}"
        yield "split", f"{self.split}: {self.split_origin}"
        yield "preprocessing", self.preprocessing
        yield "data", f"{self.dataset}, fingerprint {self.data_fingerprint[:12]}; tokenizer {self.tokenizer}"
        yield "speed", f"{self.images_per_second:,.1f} images/s"


def says_nothing(nats_per_code: float, uniform_nats_per_code: float) -> bool:
    """Whether a figure, exact or a bound, lies above what knowing nothing costs: the report then says `SAYS_NOTHING`.

    Args:
        nats_per_code: of the model.
        uniform_nats_per_code: ln K.
    """
    return nats_per_code > uniform_nats_per_code


def evaluate_codes(
    system: CodeScorer,
    tokenizer: Tokenizer,
    image_set: ImageSet,
    *,
    model: str,
    use_labels: bool,
    task: str | None,
    window: tuple[int, int] | None = None,
    bound: Literal["exact", "upper"] = "exact",
    levels: int | None = None,
    used: UsedCodes | None = None,
    with_source: WithSource,
    with_text: WithText | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    on_progress: OnStep | None = None,
) -> CodeLikelihoodReport:
    """Scores the codes of a set batch by batch.

    Args:
        system: anything with `code_nats`.
        tokenizer: that the system sees images through.
        image_set: the held-out images.
        model: name or folder of the system, for the report.
        use_labels: condition on the classes of the images.
        task: what the images' sources are made by. None: they have none.
        window: of the model, where it is smaller than the image. None: it sees the whole.
        bound: what the nats of `system` are.
        levels: levels of noise that it draws for each image to estimate an upper bound. None: nats are exact.
        used: the codes that it numbers. None: all of the tokenizer's.
        with_source: adds the sources to a batch whose first image has this number.
        with_text: adds captions to the condition of as many images. None: the system takes none.
        limit: score the first so many images. None: all.
        batch_size: images scored together.
        on_progress: called with (images scored, images in all) after each batch.

    Raises:
        ConfigError: limit, batch_size or levels is below 1, or levels are given for exact nats or not for a bound.
        DataError: there are no images, or `with_text` is given and they have no captions.
        CheckpointError: the nats of an image are not finite.
    """
    for name, value in (("limit", limit), ("batch_size", batch_size), ("levels", levels)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} = {value} must be at least 1.")
    if (levels is None) != (bound == "exact"):
        raise ConfigError(
            f"bound = {bound!r} with levels = {levels}: an upper bound has levels of noise, exact nats none."
        )
    count = len(image_set) if limit is None else min(limit, len(image_set))
    if count == 0:
        raise DataError(f"{image_set.name}, {image_set.split}: there are no images to score.")
    nats_of = partial(system.code_nats, levels=levels)
    parts, shuffled, replaced = [], [], 0.0
    usage = CodeUsage(tokenizer.vocab_size if used is None else len(used))
    began = time.perf_counter()

    def batch_of(index: Tensor) -> Batch:
        batch = with_source(image_set.batch(index, use_labels=use_labels), int(index[0]))
        return batch if with_text is None else replace(batch, cond=with_text(batch.cond, image_set.captions_of(index)))

    for index in torch.arange(count).split(batch_size):
        batch = batch_of(index)
        parts.append(nats_of(batch.images, batch.cond).double().mean((1, 2)))
        codes = tokenizer.encode(batch.images)
        if used is not None:
            replaced += used.share_replaced(codes) * len(index) / count
            codes = used.compact(codes)
        usage.add(codes)
        cond = batch.cond
        if count > 1 and any(part is not None for part in (cond.label, cond.source, cond.text, cond.text_tokens)):
            # half the set away: neighbours are of one class, or of one film
            other = batch_of((index + count // 2) % count).cond
            shuffled.append(nats_of(batch.images, other).double().mean((1, 2)))
        if on_progress is not None:
            on_progress(int(index[-1]) + 1, count)
    per_image = torch.cat(parts)
    if not bool(torch.isfinite(per_image).all()):
        worst = int((~torch.isfinite(per_image)).nonzero()[0])
        raise CheckpointError(
            f"{model} gives image {worst} of {image_set.name}, {image_set.split}, {per_image[worst].item()} nats per code. Its "
            "training has diverged or its weights are damaged: use an earlier checkpoint."
        )
    mean, num_codes = float(per_image.mean()), (image_set.image_size // tokenizer.factor) ** 2
    return CodeLikelihoodReport(
        nats_per_code=mean,
        interval=mean_interval(per_image),
        shuffled_nats_per_code=float(torch.cat(shuffled).mean()) if shuffled else None,
        unigram_nats_per_code=usage.entropy_bits * math.log(2),
        uniform_nats_per_code=math.log(usage.vocab_size),
        bound=bound,
        levels=levels,
        replaced_share=None if used is None else replaced,
        codes_per_image=num_codes,
        bits_per_pixel=mean / math.log(2) * num_codes / image_set.image_size**2,
        num_images=count,
        split_images=len(image_set),
        task=task,
        window=window,
        tokenizer=tokenizer.fingerprint,
        dataset=image_set.name,
        split=image_set.split,
        split_origin=image_set.split_origin,
        preprocessing=image_set.preprocessing,
        data_fingerprint=image_set.fingerprint,
        images_per_second=count / max(time.perf_counter() - began, 1e-9),
        model=model,
    )
