"""The page to read first: the few contracts on which all parts of rasterformer meet.

Symbols, everywhere: B batch; C, H, W image; L positions in generation order; E symbols per position; P params per
position; K values a symbol can take; D width; N heads. Images at every border are uint8 [B, C, H, W], RGB.
Likelihoods are nats per image, [B]; only `evaluation` turns them into bits per dimension.
Randomness is passed in: every random call takes `rng`, one `torch.Generator` per image, so that image k of a batch
does not depend on the size of the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Cond:
    """What an image is conditioned on. Everything is optional; a model refuses what it does not know.

    Args:
        label: int64 [B], class index in 0..num_classes-1.
        source: uint8 [B, c, h, w], another image: the target reduced, in grey, with noise or with a part missing.
        known: bool [B, H, W], the pixels of the target that the source shows as they are; it is 0 everywhere else. The model
            is then a distribution over the other pixels.
        codes: int64 [B, S], tokens of a condition: of a map as large as the image, in raster order, or of coordinates.
        text: float [B, S, D], states of a frozen text encoder.
        text_tokens: int64 [B, S], bytes of a text (`nn/text_input.py`), which the model embeds itself; in place of `text`.
        text_known: bool [B, S], False at the padding of `text` or `text_tokens`.
        dropped: bool [B], images whose condition is hidden from the model (classifier-free guidance, Ho & Salimans 2022).
    """

    label: Tensor | None = None
    source: Tensor | None = None
    known: Tensor | None = None
    codes: Tensor | None = None
    text: Tensor | None = None
    text_tokens: Tensor | None = None
    text_known: Tensor | None = None
    dropped: Tensor | None = None

    def to(self, device: torch.device) -> Cond:
        """Returns the same condition on `device`."""
        return self._map(lambda part: part.to(device))

    def rows(self, index: slice | Tensor) -> Cond:
        """Returns the condition of some images of the batch."""
        return self._map(lambda part: part[index])

    def _map(self, change: Callable[[Tensor], Tensor]) -> Cond:
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return Cond(**{name: None if part is None else change(part) for name, part in parts.items()})


@dataclass(frozen=True)
class Batch:
    """Images uint8 [B, C, H, W] and what is known about them."""

    images: Tensor
    cond: Cond = field(default_factory=Cond)


@dataclass(frozen=True)
class Known:
    """Values that are given before drawing begins, and stay.

    Args:
        x: int64 [B, L, E]; what it holds elsewhere does not matter.
        where: bool [B, L], the positions that are given.
    """

    x: Tensor
    where: Tensor


@dataclass(frozen=True)
class Loss:
    """What a model says about a batch.

    Args:
        total: scalar to minimise.
        nats: float32 [B], negative log-likelihood of each image, detached.
        dims: int64 [B], dimensions that `nats` is over: those of an image that are not known.
        bound: whether `nats` is exact, an upper bound, or no likelihood at all.
        terms: named parts for the log, detached scalars.
    """

    total: Tensor
    nats: Tensor
    dims: Tensor
    bound: Literal["exact", "upper", "none"]
    terms: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleOptions:
    """How to draw. The defaults draw from the model's own distribution.

    Args:
        temperature: > 0; divides the logits. For a mixture of logistics it also multiplies the scales.
        top_k: keep the k most probable values of a symbol. None keeps all.
        top_p: keep the smallest set of values whose probability reaches p, 0 < p <= 1. None keeps all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


OnStep = Callable[[int, int], None]  # (positions done, positions in all)


class Codec(ABC):
    """Images <-> x, the symbols a model works on.

    Attributes:
        image_shape: (C, H, W).
        x_shape: (L, E).
        vocab_size: K, or None where x is continuous.
        lossless: decode(encode(images)) == images.
    """

    image_shape: tuple[int, int, int]
    x_shape: tuple[int, int]
    vocab_size: int | None
    lossless: bool

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> int64 [B, L, E]. Raises ShapeError on any other shape or dtype."""

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """int64 [B, L, E] -> uint8 [B, C, H, W]. Raises ShapeError on any other shape."""


class Distribution(ABC):
    """p(x_i | params_i) of the E symbols at one position.

    Sampling is a deterministic function of noise that is drawn beforehand: image k then does not depend on the batch it is
    drawn in, and an autoregressive sample is a fixed point that can be searched for in parallel.

    Attributes:
        params_per_position: P.
        symbols_per_position: E.
        noise_per_position: R, standard exponential numbers that `sample` consumes at one position.
        vocab_size: K.
    """

    params_per_position: int
    symbols_per_position: int
    noise_per_position: int
    vocab_size: int

    @abstractmethod
    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """params [..., P], x int64 [..., E] -> nats, float32 or better [...]."""

    @abstractmethod
    def symbol_log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """The same, symbol by symbol: log p(x_e | x_<e) [..., E]. Sums over E to `log_prob`."""

    @abstractmethod
    def sample(self, params: Tensor, noise: Tensor, *, options: SampleOptions) -> Tensor:
        """params [..., P], noise float32 [..., R], standard exponential, above 0 -> x int64 [..., E]."""

    @abstractmethod
    def symbol_pmf(self, params: Tensor, prefix: Tensor) -> Tensor:
        """params [..., P], prefix int64 [..., e] with e < E -> probabilities of the next symbol [..., K]."""


class ImageModel(nn.Module, ABC):
    """A generative model over x. `num_classes` is 0 for an unconditional model."""

    num_classes: int

    @abstractmethod
    def loss(self, x: Tensor, cond: Cond, *, rng: torch.Generator | None) -> Loss:
        """x int64 [B, L, E] -> Loss. `rng` drives what is random in the loss (None where nothing is)."""

    @abstractmethod
    def sample(
        self,
        cond: Cond,
        batch_size: int,
        *,
        options: SampleOptions,
        rng: Sequence[torch.Generator],
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Draws x int64 [B, L, E]; `rng` has one generator per image."""


class Autoregressive(ImageModel):
    """p(x) = prod_i p(x_i | x_<i, cond) in generation order, over the positions that the condition does not give.

    Attributes:
        distribution: turns params into probabilities.
        x_shape: (L, E).
    """

    distribution: Distribution
    x_shape: tuple[int, int]

    @abstractmethod
    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        """x int64 [B, L, E] -> params [B, L, P]; params[:, i] depends only on x[:, :i] and cond."""

    @abstractmethod
    def begin(self, cond: Cond, batch_size: int) -> tuple[Tensor, Any]:
        """Returns params [B, 1, P] of position 0 and the state that `step` carries on."""

    @abstractmethod
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Takes the next n >= 1 positions, x int64 [B, n, E]; returns params [B, n, P] of the n positions after them.

        params[:, j] equals `forward` at the position after the j-th one given. After the last position of the image
        there is none, so a step that reaches the end returns n - 1 of them. The state is updated in place and returned.
        """

    @abstractmethod
    def known(self, cond: Cond) -> Known | None:
        """The positions whose values the condition gives: they are certain, and no likelihood counts them. None: none."""

    @abstractmethod
    def state_bytes(self, batch_size: int) -> int:
        """Bytes that `begin` allocates for a batch and keeps: nothing is added to them later."""

    @abstractmethod
    def to_bfloat16(self) -> Autoregressive:
        """Returns a copy that computes its layers and keeps its caches in bfloat16; its params stay float32.

        It is a rounded model: its likelihoods are its own and differ a little from the original's.
        """

    @abstractmethod
    def lookahead(self, state: Any) -> int:
        """How many positions can be given to `step` now, and all but the first of them be taken back by `rewind`.

        At least 1 before the end of the image, where it is 0.
        """

    @abstractmethod
    def rewind(self, state: Any, done: int) -> Any:
        """Takes back what the last `step` was given after the first `done` positions; that step began before them.

        The state is updated in place and returned.
        """
