"""What a network over noisy images is, and how its guided, thresholded prediction is asked for.

The process is in `gaussian.py`, samplers are in `samplers.py`. `predictor` makes what samplers, in-painting and the bound take.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from rasterformer.conditioning.guidance import followed_by, with_and_without
from rasterformer.diffusion.gaussian import GaussianProcess
from rasterformer.diffusion.image_options import ImageOptions
from rasterformer.diffusion.samplers import PredictX0
from rasterformer.diffusion.thresholding import clip_dynamic, clip_static, guided
from rasterformer.interfaces import Cond, ImageModel


class Seen(NamedTuple):
    """A source image as the network sees it beside the noisy one.

    Args:
        image: float32 [B, C', H, W], enlarged to the noisy image's size, in -1..1; of in-painting with a channel more, 1 where a
            pixel is known.
        log_snr: float32 [B], of the noise on it. None: it has none.
        encoded: float [B, D, h, w], cells that the network's own encoder makes of the image, once for all steps of drawing. None:
            it has no encoder, or a pass makes them itself.
    """

    image: Tensor
    log_snr: Tensor | None
    encoded: Tensor | None = None

    def rows(self, index: slice | Tensor) -> Seen:
        """The sources of some images of the batch."""
        log_snr, encoded = (None if part is None else part[index] for part in self[1:])
        return Seen(self.image[index], log_snr, encoded)


class ImageDenoiser(ImageModel):
    """p(x | z_t): one network for all levels of noise, and all sizes of images.

    Attributes:
        process: the forward process.
        image_shape: (C, H, W) of the images it was made for.
        multiple: what height and width must be multiples of.
        source_process: the noise on sources. None: they have none.
        most_source_noise: the time up to which there was noise on sources in training.
    """

    process: GaussianProcess
    image_shape: tuple[int, int, int]
    multiple: int
    source_process: GaussianProcess | None
    most_source_noise: float

    @abstractmethod
    def forward(self, z: Tensor, t: Tensor, cond: Cond, seen: Seen | None) -> Tensor:
        """What the network says of z float [B, C, H, W] at times t [B], with classes and texts of `cond`: float32 [B, C, H, W].

        `seen` is what `see` makes of the condition's source; None where there is none.
        """

    @abstractmethod
    def to_x0(self, output: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The image that an output stands for, [B, C, H, W]. It is linear in the output."""

    @abstractmethod
    def see(
        self, cond: Cond, size: tuple[int, int], *, level: Tensor | None, rng: Sequence[torch.Generator]
    ) -> Seen | None:
        """The condition's source as the network sees it.

        Args:
            cond: of B images.
            size: height and width of the images, pixels.
            level: float [B], times of the noise on the sources. None: they have none. For models with a source_process, only.
            rng: one generator per image, of that noise.

        Returns:
            None where the model takes no source.

        Raises:
            ConfigError: a source is missing, or given to a model that takes none; or the level is.
            ShapeError: a source that would not be enlarged by as much as in training.
        """

    @abstractmethod
    def state_bytes(self, batch_size: int, size: tuple[int, int] | None = None) -> int:
        """Bytes of the most tensors that live at once in a forward pass of a batch of images of `size`. None: as trained."""

    @abstractmethod
    def step_bytes(self, batch_size: int) -> int:
        """Bytes that a training step of a batch takes besides weights and optimiser, in float32; bfloat16 takes less."""

    @abstractmethod
    def to_bfloat16(self) -> ImageDenoiser:
        """Returns a copy that computes its layers in bfloat16; what it says stays float32."""


def predictor(
    model: ImageDenoiser, cond: Cond, seen: Seen | None, options: ImageOptions, *, negative: Cond | None = None
) -> PredictX0:
    """Makes (z_t, t) -> x0 of a network and a condition: guided, and kept in -1..1.

    Guidance acts on what the network says (eps or v in which it is the same; Saharia et al. 2022, section 2.2), thresholding on
    the image that follows (section 2.3).

    Args:
        model: the network.
        cond: classes and texts of B images.
        seen: their sources; guidance does not hide them.
        options: guidance and thresholding.
        negative: what guidance leads away from, in place of nothing, of B images.

    Raises:
        ConfigError: guidance by nothing.
    """
    is_guided = options.guidance_scale != 1.0
    cond = replace(cond, source=None, known=None)  # they are in `seen`
    if is_guided:  # each image twice: with its condition, and without it or with the other one
        if negative is None:
            cond = with_and_without(cond, _count(cond))
        else:
            cond = followed_by(cond, replace(negative, source=None, known=None))
        if seen is not None:
            seen = seen.rows(torch.arange(len(seen.image), device=seen.image.device).repeat(2))

    def predict(z: Tensor, t: Tensor) -> Tensor:
        if is_guided:
            outputs = model(z.repeat(2, 1, 1, 1), t.repeat(2), cond, seen)
            output = guided(outputs, options.guidance_scale, rescale=options.guidance_rescale)
        else:
            output = model(z, t, cond, seen)
        x0 = model.to_x0(output, z, t)
        if options.threshold == "dynamic":
            return clip_dynamic(x0, percentile=options.percentile, cap=options.threshold_cap)
        return clip_static(x0) if options.threshold == "static" else x0

    return predict


def _count(cond: Cond) -> int:
    """Of its images; 0 where it has no parts."""
    return next((len(part) for part in vars(cond).values() if part is not None), 0)
