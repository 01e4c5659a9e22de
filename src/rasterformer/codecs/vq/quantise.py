"""Quantisers: what makes codes of an encoder's vectors, and vectors of codes.

`VectorQuantiser` is the learned codebook of VQ-VAE and VQGAN with its later mends, `SimVectorQuantiser` one frozen
codebook behind a learned linear map, `FiniteScalarQuantiser` a grid without a codebook. All compute in float32,
whatever autocast says: bfloat16 loses codes. None changes in `forward`; what is not learned by gradient moves in
`update_`, which the training loop calls after a good step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.codecs.vq.ranks import drawn, shared, shuffled, summed
from rasterformer.errors import ConfigError, ShapeError, did_you_mean

BetaOn = Literal["commitment", "codebook"]
Update = Literal["gradient", "ema"]
Estimator = Literal["straight_through", "rotation"]
Init = Literal["uniform", "kmeans"]

SMOOTHING = 1e-5  # of cluster sizes
KMEANS_VECTORS, KMEANS_ITERATIONS = 16384, 10
DISTANCES_AT_ONCE = 2**24  # 64 MiB of float32


@dataclass(frozen=True)
class Quantised:
    """What a quantiser makes of z.

    Args:
        values: float32 [B, D, h, w], exactly `lookup(codes)`; its gradient goes to z by the quantiser's estimator.
        codes: int64 [B, h, w].
        loss: float32 scalar, the auxiliary loss as weighted by the quantiser.
        terms: the named parts of the loss, detached; they sum to it.
    """

    values: Tensor
    codes: Tensor
    loss: Tensor
    terms: dict[str, Tensor]


class Quantiser(nn.Module, ABC):
    """z float [B, D, h, w] <-> codes int64 [B, h, w] in 0..K-1.

    Attributes:
        vocab_size: K.
        dim: D.
    """

    vocab_size: int
    dim: int

    @abstractmethod
    def forward(self, z: Tensor) -> Quantised:
        """Quantises z [B, D, h, w]. Never changes a buffer: neither validation nor a bad step moves the codebook.

        Raises:
            ShapeError: z has another shape.
        """

    @abstractmethod
    def nearest(self, z: Tensor) -> Tensor:
        """z [B, D, h, w] -> codes int64 [B, h, w].

        Raises:
            ShapeError: z has another shape.
        """

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """codes int64 [B, h, w] in 0..K-1 -> values float32 [B, D, h, w].

        Raises:
            ShapeError: codes have another shape or dtype.
        """

    @property
    @abstractmethod
    def needs_initialising(self) -> bool:
        """Whether `initialise_` has to be called before the first step."""

    @abstractmethod
    def initialise_(self, z: Tensor, *, rng: torch.Generator) -> None:
        """Sets the codebook from z [B, D, h, w] of the untrained encoder, the same on all ranks."""

    @abstractmethod
    def update_(self, z: Tensor, codes: Tensor, *, rng: torch.Generator) -> int:
        """Moves what gradients do not move; called by all ranks after a step whose loss was finite.

        Args:
            z: float [B, D, h, w] of that step.
            codes: int64 [B, h, w] of that step.
            rng: random stream for restarts.

        Returns:
            the number of codes restarted; 0 where there is nothing to do.
        """


class VectorQuantiser(Quantiser):
    """The nearest entry of a learned codebook (van den Oord et al. 2017, equations 1 to 3; Esser et al. 2021, section 3.1).

    The defaults are the papers'. The published VQGANs were trained with `beta_on="codebook"`, a slip of their code.

    Args:
        vocab_size: K.
        dim: D.
        beta: weight of one of the two losses, each a mean over all elements; the other's is 1.
        beta_on: the loss with weight beta: `commitment`, |z - sg(e)|^2, or `codebook`, |sg(z) - e|^2.
        update: `gradient` learns the codebook by its loss; `ema` has no such loss, an entry follows the mean of the vectors
            it was nearest to (van den Oord et al., appendix A.1, with Laplace smoothing of the cluster sizes).
        normalise: compare directions: z and entries are scaled to length 1 (Yu et al. 2022), and so are values.
        estimator: gradient to z: `straight_through`, the identity, or `rotation` (see `rotated`).
        decay: of the moving averages per update.
        restart_after: an entry unused for so many updates becomes a random z of the batch. None: never.
        init: `uniform` in [-1/K, 1/K], or `kmeans` of z (see `initialise_`).

    Raises:
        ConfigError: sizes below 1, a negative beta, a decay outside [0, 1), restart_after below 1, an unknown choice, or
            beta on the codebook loss where there is none.
    """

    codebook: Tensor
    cluster_sizes: Tensor
    cluster_sums: Tensor
    unused_updates: Tensor
    is_initialised: Tensor

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        beta: float = 0.25,
        beta_on: BetaOn = "commitment",
        update: Update = "gradient",
        normalise: bool = False,
        estimator: Estimator = "straight_through",
        decay: float = 0.99,
        restart_after: int | None = None,
        init: Init = "uniform",
    ) -> None:
        super().__init__()
        _check_sizes(vocab_size, dim, beta)
        _check_choice("beta_on", beta_on, get_args(BetaOn))
        _check_choice("update", update, get_args(Update))
        _check_choice("estimator", estimator, get_args(Estimator))
        _check_choice("init", init, get_args(Init))
        if not 0 <= decay < 1:
            raise ConfigError(f"decay = {decay} is not in [0, 1). The usual value is 0.99.")
        if restart_after is not None and restart_after < 1:
            raise ConfigError(
                f"restart_after = {restart_after} updates is below 1. Leave it out to never restart codes."
            )
        if update == "ema" and beta_on == "codebook":
            raise ConfigError("beta_on = 'codebook' weighs a loss that update = 'ema' does not have. Use 'commitment'.")
        self.vocab_size, self.dim = vocab_size, dim
        self.normalise, self.estimator = normalise, estimator
        self.update, self.decay, self.restart_after = update, decay, restart_after
        self.commitment_weight = beta if beta_on == "commitment" else 1.0
        self.codebook_weight = beta if beta_on == "codebook" else 1.0
        codebook = self._scaled(torch.empty(vocab_size, dim).uniform_(-1 / vocab_size, 1 / vocab_size))
        if update == "gradient":
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
            self.register_buffer("cluster_sizes", torch.ones(vocab_size))  # N_i
            self.register_buffer("cluster_sums", codebook.clone())  # m_i
        if restart_after is not None:
            self.register_buffer("unused_updates", torch.zeros(vocab_size, dtype=torch.int64))
        self.register_buffer("is_initialised", torch.tensor(False) if init == "kmeans" else None)

    def forward(self, z: Tensor) -> Quantised:
        """As `Quantiser.forward`; terms are `commitment` and, for `gradient`, `codebook`."""
        with _float32(z):
            vectors, entries = self._vectors(z), self._scaled(self.codebook)
            codes = _nearest(vectors, entries)
            chosen = F.embedding(codes, entries)  # [B, h, w, D]
            loss = commitment = self.commitment_weight * (vectors - chosen.detach()).square().mean()
            terms = {"commitment": commitment.detach()}
            if self.update == "gradient":
                codebook = self.codebook_weight * (vectors.detach() - chosen).square().mean()
                loss, terms = commitment + codebook, {**terms, "codebook": codebook.detach()}
            carrier = vectors if self.estimator == "straight_through" else rotated(vectors, chosen)
            return Quantised(_channels_first(_with_gradient_of(chosen, carrier)), codes, loss, terms)

    def nearest(self, z: Tensor) -> Tensor:
        """As `Quantiser.nearest`."""
        with _float32(z):
            return _nearest(self._vectors(z), self._scaled(self.codebook))

    def lookup(self, codes: Tensor) -> Tensor:
        """As `Quantiser.lookup`."""
        _check_codes(codes)
        with _float32(codes):
            return _channels_first(F.embedding(codes, self._scaled(self.codebook)))

    @property
    def needs_initialising(self) -> bool:
        """True from construction with `kmeans` until `initialise_`, or until a checkpoint of after it is loaded."""
        return self.is_initialised is not None and not bool(self.is_initialised)

    def initialise_(self, z: Tensor, *, rng: torch.Generator) -> None:
        """Lloyd's k-means on up to 16384 of the vectors of all ranks (or K, if more); an empty cluster takes a random vector.

        Raises:
            ConfigError: there are fewer vectors than codes.
        """
        with torch.no_grad(), _float32(z):
            sample = drawn(self._vectors(z).flatten(0, 2), max(KMEANS_VECTORS, self.vocab_size), rng=rng)
            if len(sample) < self.vocab_size:
                raise ConfigError(
                    f"init = 'kmeans' was given {len(sample)} vectors for {self.vocab_size} codes and needs one per code. "
                    "Use a larger batch, a smaller codebook, or init = 'uniform'."
                )
            centres = sample[: self.vocab_size]
            for _ in range(KMEANS_ITERATIONS):
                counts, sums = _clusters(sample, _nearest(sample, centres), self.vocab_size)
                random = shuffled(sample, rng=rng)[: self.vocab_size]
                centres = self._scaled(torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], random))
            self._place_(torch.arange(self.vocab_size, device=z.device), shared(centres.contiguous()))
            if self.is_initialised is not None:
                self.is_initialised.fill_(True)

    def update_(self, z: Tensor, codes: Tensor, *, rng: torch.Generator) -> int:
        """As `Quantiser.update_`: moving averages, then restarts. Several ranks together do what one does with all batches.

        If more entries are dead than there are vectors, the rest has its turn in the next updates.

        Raises:
            ShapeError: z or codes have another shape, or shapes that do not belong together.
        """
        _check_codes(codes)
        if len(z) != len(codes) or z.shape[2:] != codes.shape[1:]:
            raise ShapeError(f"z is {list(z.shape)} and codes are {list(codes.shape)}: not of the same batch and grid.")
        with torch.no_grad(), _float32(z):
            vectors = self._vectors(z).flatten(0, 2)  # [B h w, D]
            if self.update == "gradient" and self.restart_after is None:
                return 0
            counts, sums = _clusters(vectors, codes.flatten(), self.vocab_size)
            counts = summed(counts)
            if self.update == "ema":
                self._follow_(counts, summed(sums))
            if self.restart_after is None:
                return 0
            self.unused_updates.add_(1).masked_fill_(counts > 0, 0)
            dead = (self.unused_updates >= self.restart_after).nonzero().flatten()
            if not len(dead):
                return 0
            fresh = drawn(vectors, len(dead), rng=rng)
            self._place_(dead[: len(fresh)], fresh)
            return len(fresh)

    def _follow_(self, counts: Tensor, sums: Tensor) -> None:
        self.cluster_sizes.lerp_(counts, 1 - self.decay)
        self.cluster_sums.lerp_(sums, 1 - self.decay)
        total = self.cluster_sizes.sum()
        smooth = (self.cluster_sizes + SMOOTHING) / (total + self.vocab_size * SMOOTHING) * total
        moved = self._scaled(self.cluster_sums / smooth[:, None])
        # A size that has decayed to nothing says nothing about where its entry belongs.
        self.codebook.copy_(torch.where(self.cluster_sizes[:, None] > SMOOTHING, moved, self.codebook))

    def _place_(self, entries: Tensor, vectors: Tensor) -> None:
        """Makes entries int64 [n] be vectors [n, D], each as if it had been nearest to that one vector and no other."""
        self.codebook[entries] = vectors
        if self.update == "ema":
            self.cluster_sizes[entries] = 1.0
            self.cluster_sums[entries] = vectors
        if self.restart_after is not None:
            self.unused_updates[entries] = 0

    def _vectors(self, z: Tensor) -> Tensor:
        """z [B, D, h, w] -> float32 [B, h, w, D], of length 1 where that is asked for."""
        return self._scaled(_channels_last(z, self.dim))

    def _scaled(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors.float(), dim=-1) if self.normalise else vectors.float()


class SimVectorQuantiser(Quantiser):
    """The nearest of a frozen random codebook behind one learned linear map (SimVQ, Zhu et al. 2024, arXiv 2411.02038).

    The map moves all entries at once, so none is left behind. Loss: |sg(z) - C W|^2 + beta |z - sg(C W)|^2.

    Args:
        vocab_size: K.
        dim: D.
        beta: weight of the commitment loss.

    Raises:
        ConfigError: sizes below 1 or a negative beta.
    """

    codebook: Tensor

    def __init__(self, vocab_size: int, dim: int, *, beta: float = 0.25) -> None:
        super().__init__()
        _check_sizes(vocab_size, dim, beta)
        self.vocab_size, self.dim, self.beta = vocab_size, dim, beta
        self.register_buffer("codebook", torch.randn(vocab_size, dim) * dim**-0.5)  # C, entries of length 1 on average
        self.map = nn.Linear(dim, dim, bias=False)  # W

    def forward(self, z: Tensor) -> Quantised:
        """As `Quantiser.forward`; terms are `commitment` and `codebook`."""
        with _float32(z):
            vectors, entries = _channels_last(z, self.dim), self.map(self.codebook)
            codes = _nearest(vectors, entries)
            chosen = F.embedding(codes, entries)  # [B, h, w, D]
            commitment = self.beta * (vectors - chosen.detach()).square().mean()
            codebook = (vectors.detach() - chosen).square().mean()
            terms = {"commitment": commitment.detach(), "codebook": codebook.detach()}
            values = _channels_first(_with_gradient_of(chosen, vectors))
            return Quantised(values, codes, commitment + codebook, terms)

    def nearest(self, z: Tensor) -> Tensor:
        """As `Quantiser.nearest`."""
        with _float32(z):
            return _nearest(_channels_last(z, self.dim), self.map(self.codebook))

    def lookup(self, codes: Tensor) -> Tensor:
        """As `Quantiser.lookup`."""
        _check_codes(codes)
        with _float32(codes):
            return _channels_first(F.embedding(codes, self.map(self.codebook)))

    @property
    def needs_initialising(self) -> bool:
        """False."""
        return False

    def initialise_(self, z: Tensor, *, rng: torch.Generator) -> None:
        """Nothing to do."""

    def update_(self, z: Tensor, codes: Tensor, *, rng: torch.Generator) -> int:
        """Nothing to do: 0."""
        return 0


class FiniteScalarQuantiser(Quantiser):
    """Each channel bounded and rounded to a few levels; the codebook is their product (FSQ, Mentzer et al. 2023, appendix A.1).

    Channel i takes the values -(L_i // 2) / (L_i // 2) ... in steps of 1 / (L_i // 2); the first is the fastest digit of a
    code. There is nothing to learn and no loss.

    Args:
        levels: L_i, number of levels of each channel.

    Raises:
        ConfigError: no channel, or one with fewer than two levels.
    """

    num_levels: Tensor
    half_widths: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ConfigError(f"levels = {list(levels)}: give at least one channel, and each at least 2 levels.")
        self.levels = tuple(levels)
        self.vocab_size, self.dim = math.prod(levels), len(levels)
        basis = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("num_levels", torch.tensor(levels), persistent=False)
        self.register_buffer("half_widths", torch.tensor(levels) // 2, persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        """z float [..., D] -> what is rounded, float32 [..., D]: within half a level of the outermost ones."""
        levels = self.num_levels.float()
        half = (levels - 1) * (1 - 1e-3) / 2
        offset = (1 - self.num_levels % 2) / 2  # an even number of levels lies half a level off the centre
        return torch.tanh(z.float() + torch.tan(offset / half)) * half - offset

    def forward(self, z: Tensor) -> Quantised:
        """As `Quantiser.forward`; values have the gradient of `bound`, in units of values. The loss is 0, without terms."""
        with _float32(z):
            bounded = self.bound(_channels_last(z, self.dim))
            codes = self._codes(bounded)
            values = _with_gradient_of(self._values(codes), bounded / self.half_widths)
            return Quantised(_channels_first(values), codes, bounded.new_zeros(()), {})

    def nearest(self, z: Tensor) -> Tensor:
        """As `Quantiser.nearest`, in bounded space."""
        with torch.no_grad(), _float32(z):
            return self._codes(self.bound(_channels_last(z, self.dim)))

    def lookup(self, codes: Tensor) -> Tensor:
        """As `Quantiser.lookup`."""
        _check_codes(codes)
        return _channels_first(self._values(codes))

    @property
    def needs_initialising(self) -> bool:
        """False."""
        return False

    def initialise_(self, z: Tensor, *, rng: torch.Generator) -> None:
        """Nothing to do."""

    def update_(self, z: Tensor, codes: Tensor, *, rng: torch.Generator) -> int:
        """Nothing to do: 0."""
        return 0

    def _codes(self, bounded: Tensor) -> Tensor:
        return ((bounded.detach().round().long() + self.half_widths) * self.basis).sum(-1)

    def _values(self, codes: Tensor) -> Tensor:
        digits = codes[..., None] // self.basis % self.num_levels  # [B, h, w, D]
        return (digits - self.half_widths).float() / self.half_widths


def rotated(z: Tensor, q: Tensor) -> Tensor:
    """(|q| / |z|) R z, which is q, where R is the rotation in the plane of z and q that takes z/|z| to q/|q|.

    R and the scale are constants to autograd, so that the gradient to z is (|q| / |z|) R^T times that to the result: it
    keeps its angle to the vector (rotation trick, Fifty et al. 2024, arXiv 2410.06424).

    Args:
        z: [..., D].
        q: [..., D].
    """
    z_hat, q_hat = F.normalize(z, dim=-1).detach(), F.normalize(q, dim=-1).detach()
    r = F.normalize(z_hat + q_hat, dim=-1)
    # R = I - 2 r r^T + 2 q_hat z_hat^T
    turned = z - 2 * r * (r * z).sum(-1, keepdim=True) + 2 * q_hat * (z_hat * z).sum(-1, keepdim=True)
    scale = (q.square().sum(-1, keepdim=True) / z.square().sum(-1, keepdim=True).clamp_min(1e-12)).sqrt()
    return scale.detach() * turned


def _with_gradient_of(values: Tensor, carrier: Tensor) -> Tensor:
    """Exactly values, with the gradient of carrier: v + (c - sg(c)) has no rounding, where c + sg(v - c) has."""
    return values.detach() + (carrier - carrier.detach())


def _nearest(vectors: Tensor, entries: Tensor) -> Tensor:
    """float32 [..., D] and [K, D] -> int64 [...], the entry at the least squared distance; the first of equals."""
    with torch.no_grad():
        squares = entries.square().sum(-1)  # |z|^2 is the same for all entries
        chunks = vectors.reshape(-1, vectors.shape[-1]).split(max(1, DISTANCES_AT_ONCE // len(entries)))
        codes = [torch.addmm(squares, chunk, entries.T, alpha=-2).argmin(-1) for chunk in chunks]
        return torch.cat(codes).view(vectors.shape[:-1])


def _clusters(vectors: Tensor, codes: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """[M, D], int64 [M] -> how many vectors each code has, float32 [K], and their sums, [K, D]."""
    counts = torch.bincount(codes, minlength=vocab_size).float()
    return counts, vectors.new_zeros(vocab_size, vectors.shape[1]).index_add_(0, codes, vectors)


def _float32(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)


def _channels_last(z: Tensor, dim: int) -> Tensor:
    """z [B, D, h, w] -> float32 [B, h, w, D]."""
    if z.ndim != 4 or z.shape[1] != dim:
        raise ShapeError(f"z is {list(z.shape)}; this quantiser takes [B, {dim}, h, w].")
    return z.permute(0, 2, 3, 1).float()


def _channels_first(values: Tensor) -> Tensor:
    return values.permute(0, 3, 1, 2)  # [B, D, h, w]


def _check_codes(codes: Tensor) -> None:
    if codes.ndim != 3 or codes.dtype != torch.int64:
        raise ShapeError(f"codes are {codes.dtype} {list(codes.shape)}; a quantiser takes torch.int64 [B, h, w].")


def _check_sizes(vocab_size: int, dim: int, beta: float) -> None:
    if vocab_size < 1 or dim < 1:
        raise ConfigError(f"vocab_size = {vocab_size} codes of dim = {dim}: both must be at least 1.")
    if beta < 0:
        raise ConfigError(f"beta = {beta} is negative. The papers use 0.25.")


def _check_choice(name: str, received: str, allowed: tuple[str, ...]) -> None:
    if received not in allowed:
        raise ConfigError(f"{name} = {received!r} is not known.{did_you_mean(received, allowed)}")
