"""The `model:` section of a tokenizer's recipe: autoencoder, quantiser, and the loss that trains them. No torch here."""

from dataclasses import dataclass
from typing import Literal

SOURCES = ("edges", "colourise")  # tasks whose sources a tokenizer may be for: they depend on the image alone
SMALLEST_PERCEPTUAL = 32  # side of images whose perceptual distance can be measured, pixels


@dataclass(frozen=True)
class Config:
    """What the tokenizer is and how it learns. The defaults are the paper's f16 VQGAN with 1024 codes.

    With `perceptual: none` and `discriminator: none` it is a VQ-VAE.

    Args:
        pictures: what the images are: `rgb`, `grey` (one channel), or `labels` (semantic maps whose values are class indices).
        num_labels: classes of `labels`.
        base_width: channels at full resolution.
        multipliers: of base_width, one for each resolution, full resolution first; the factor f is 2^(their number - 1).
        res_blocks: residual blocks of each resolution; the decoder has one more.
        attention_levels: which resolutions attend, counted from 0 at full resolution.
        middle_attention: attend at the lowest resolution, between two residual blocks.
        z_channels: channels that the encoder ends with.
        norm_groups: of group normalisation.
        dropout_prob: inside residual blocks.
        quantiser: `nearest`: a codebook that learns by gradients (paper); `ema`: by moving averages (van den Oord et al. 2017,
            appendix A.1); `sim`: a frozen codebook under a learned linear map (SimVQ); `fsq`: rounding, no codebook (FSQ).
        vocab_size: number of codes; of `fsq` the product of its levels.
        dim: of a code; of `fsq` the number of its levels.
        fsq_levels: of each dimension of `fsq`.
        beta: weight of the codebook's or of the commitment term, see beta_on.
        beta_on: `commitment`: |sg(z) - e|^2 + beta |z - sg(e)|^2, the formula of both papers; `codebook`: beta on the first
            term, as in the code that all published VQGANs were trained by.
        normalise: compare and return codes of length 1; with few dimensions (8) most codes are then used (Yu et al. 2022).
        estimator: gradient through the quantiser: `straight_through` (paper) or `rotation` (Fifty et al. 2024).
        ema_decay: of `ema`.
        restart_after: a code that no vector of so many steps was nearest to starts again at a vector of the batch. None: never.
        codebook_init: `uniform` (paper) or `kmeans` of the first batches.
        pixel_loss: `l1` (paper) or `l2`; of `labels` it is the cross-entropy.
        pixel_weight: of it.
        perceptual: distance in a network's features: `efficientnet` (offline, extra `eval`), `lpips` (VGG16, from a file),
            `gradient` (no network: image gradients at several scales), or `none`.
        perceptual_weights: file of `lpips`, as `import-weights` writes it.
        perceptual_weight: of it.
        codebook_weight: of the quantiser's loss.
        discriminator: `patch` (paper) or `none`.
        discriminator_width, discriminator_layers: channels of its first layer, and layers that halve the resolution.
        discriminator_norm: `batch` (paper), `group`, `spectral` or `none`.
        discriminator_start: it learns from this batch on.
        adversarial_loss: `hinge` (paper's code) or `vanilla`.
        adversarial_start: it counts for the generator from this batch on; counted in batches. The paper starts both at once;
            a discriminator that has learned before it counts does less harm at the start.
        adversarial_ramp: batches over which it comes to count fully.
        adversarial_weight: of it.
        adaptive: multiply that weight by lambda, the ratio of gradients at the last layer (paper, equation 7).
        delta: of equation 7.
        largest_lambda: cap on lambda; 1e4 in the paper's code.
    """

    pictures: Literal["rgb", "grey", "labels"] = "rgb"
    num_labels: int | None = None
    base_width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    attention_levels: tuple[int, ...] = (4,)
    middle_attention: bool = True
    z_channels: int = 256
    norm_groups: int = 32
    dropout_prob: float = 0.0
    quantiser: Literal["nearest", "ema", "sim", "fsq"] = "nearest"
    vocab_size: int = 1024
    dim: int = 256
    fsq_levels: tuple[int, ...] | None = None
    beta: float = 0.25
    beta_on: Literal["commitment", "codebook"] = "codebook"
    normalise: bool = False
    estimator: Literal["straight_through", "rotation"] = "straight_through"
    ema_decay: float = 0.99
    restart_after: int | None = None
    codebook_init: Literal["uniform", "kmeans"] = "uniform"
    pixel_loss: Literal["l1", "l2"] = "l1"
    pixel_weight: float = 1.0
    perceptual: Literal["efficientnet", "lpips", "gradient", "none"] = "efficientnet"
    perceptual_weights: str | None = None
    perceptual_weight: float = 1.0
    codebook_weight: float = 1.0
    discriminator: Literal["patch", "none"] = "patch"
    discriminator_width: int = 64
    discriminator_layers: int = 3
    discriminator_norm: Literal["batch", "group", "spectral", "none"] = "batch"
    discriminator_start: int = 10_000
    adversarial_loss: Literal["hinge", "vanilla"] = "hinge"
    adversarial_start: int = 10_000
    adversarial_ramp: int = 0
    adversarial_weight: float = 0.8
    adaptive: bool = True
    delta: float = 1e-4
    largest_lambda: float = 1e4

    @property
    def factor(self) -> int:
        """f, pixels per code along each side."""
        return 1 << (len(self.multipliers) - 1)

    @property
    def channels(self) -> int:
        """Of what the encoder sees: 3, 1, or one for each label."""
        return {"rgb": 3, "grey": 1, "labels": self.num_labels or 0}[self.pictures]

    def fit_problems(self, *, task: str | None, image_size: int, has_text: bool = False) -> list[str]:
        """Returns what is wrong between the network and the recipe's task, by name, and the size of its images, pixels."""
        found = []
        if task is not None and task not in SOURCES:
            found.append(
                f"task.name = {task!r}: a tokenizer learns to reproduce its images, or their sources of the tasks "
                f"{' and '.join(SOURCES)}. For paired sources set data.path to their folder; else leave the task out."
            )
        if task is not None and self.pictures == "labels":
            found.append("model.pictures = 'labels' reads label maps as they are: leave the task out.")
        if image_size % self.factor:
            nearest = max(self.factor, image_size // self.factor * self.factor)
            found.append(
                f"data.image_size = {image_size} is no multiple of {self.factor}, the factor of model.multipliers = "
                f"{self.multipliers}. Use {nearest}, for example."
            )
        if self.perceptual != "none" and image_size < SMALLEST_PERCEPTUAL:
            found.append(
                f"model.perceptual = {self.perceptual!r} needs images of at least {SMALLEST_PERCEPTUAL} pixels, "
                f"data.image_size is {image_size}. Use none."
            )
        smallest = 3 * 2**self.discriminator_layers  # one patch
        if self.discriminator != "none" and image_size < smallest:
            found.append(
                f"model.discriminator_layers = {self.discriminator_layers} needs images of at least {smallest} pixels, "
                f"data.image_size is {image_size}. Use fewer layers, or model.discriminator = none."
            )
        return found

    def problems(self) -> list[str]:
        """Returns what is wrong, one sentence each, every field named."""
        found = []
        for name in ("base_width", "res_blocks", "z_channels", "norm_groups", "vocab_size", "dim"):
            if getattr(self, name) < 1:
                found.append(f"model.{name} = {getattr(self, name)} must be at least 1.")
        for name in ("discriminator_width", "discriminator_layers"):
            if getattr(self, name) < 1:
                found.append(f"model.{name} = {getattr(self, name)} must be at least 1.")
        if not self.multipliers or min(self.multipliers, default=0) < 1:
            found.append(f"model.multipliers = {self.multipliers} must be one or more numbers of at least 1.")
        if found:
            return found
        for multiplier in sorted({1, *self.multipliers}):
            if self.base_width * multiplier % self.norm_groups:
                found.append(
                    f"model.norm_groups = {self.norm_groups} does not divide the {self.base_width * multiplier} channels of "
                    f"model.base_width x {multiplier}. Use a divisor of model.base_width = {self.base_width}."
                )
        wrong = [level for level in self.attention_levels if not 0 <= level < len(self.multipliers)]
        if wrong:
            found.append(
                f"model.attention_levels has {wrong}, but resolutions are counted 0..{len(self.multipliers) - 1}."
            )
        if (self.pictures == "labels") != (self.num_labels is not None):
            found.append(
                f"model.num_labels = {self.num_labels} does not go with model.pictures = {self.pictures!r}: give it for "
                "labels, and null for anything else."
            )
        if self.num_labels is not None and not 2 <= self.num_labels <= 256:
            found.append(f"model.num_labels = {self.num_labels} must lie in 2..256.")
        if self.pictures == "labels" and (self.perceptual != "none" or self.discriminator != "none"):
            found.append(
                "model.pictures = 'labels' learns by cross-entropy alone: set perceptual and discriminator to none."
            )
        if (self.quantiser == "fsq") != (self.fsq_levels is not None):
            found.append(f"model.fsq_levels = {self.fsq_levels} goes with model.quantiser = 'fsq' and nothing else.")
        if self.quantiser in ("fsq", "sim"):
            unread = {
                "normalise": False,
                "restart_after": None,
                "codebook_init": "uniform",
                "estimator": "straight_through",
            }
            for name, default in unread.items():
                if getattr(self, name) != default:
                    found.append(
                        f"model.{name} = {getattr(self, name)} is not for model.quantiser = {self.quantiser!r}: set it to "
                        f"{'null' if default is None else default}."
                    )
        if self.fsq_levels is not None:
            product = 1
            for level in self.fsq_levels:
                product *= level
            if min(self.fsq_levels, default=0) < 2:
                found.append(f"model.fsq_levels = {self.fsq_levels} must be numbers of at least 2.")
            elif (product, len(self.fsq_levels)) != (self.vocab_size, self.dim):
                found.append(
                    f"model.fsq_levels = {self.fsq_levels} make {product} codes of {len(self.fsq_levels)} dimensions: set "
                    f"model.vocab_size = {product} and model.dim = {len(self.fsq_levels)}."
                )
        if self.quantiser == "ema" and self.beta_on == "codebook":
            found.append(
                "model.beta_on = 'codebook' weighs a term that model.quantiser = 'ema' does not have. Use commitment."
            )
        if self.discriminator_norm == "group" and self.discriminator_width % 32:
            found.append(
                f"model.discriminator_width = {self.discriminator_width} must be a multiple of 32, the groups of "
                "model.discriminator_norm = 'group'."
            )
        if (self.perceptual == "lpips") != (self.perceptual_weights is not None):
            found.append(
                f"model.perceptual_weights = {self.perceptual_weights} does not go with model.perceptual = "
                f"{self.perceptual!r}: lpips needs the file of its weights, the others have none."
            )
        if not 0.0 <= self.dropout_prob < 1.0:
            found.append(f"model.dropout_prob = {self.dropout_prob} must lie in 0..1, 1 excluded.")
        if not 0.0 < self.ema_decay < 1.0:
            found.append(f"model.ema_decay = {self.ema_decay} must lie between 0 and 1.")
        if self.restart_after is not None and self.restart_after < 1:
            found.append(f"model.restart_after = {self.restart_after} must be at least 1, or null.")
        for name in ("pixel_weight", "perceptual_weight", "codebook_weight", "adversarial_weight", "beta"):
            if getattr(self, name) < 0:
                found.append(f"model.{name} = {getattr(self, name)} must not be negative.")
        for name in ("discriminator_start", "adversarial_start", "adversarial_ramp"):
            if getattr(self, name) < 0:
                found.append(f"model.{name} = {getattr(self, name)} must not be negative.")
        if self.discriminator_start > self.adversarial_start:
            found.append(
                f"model.discriminator_start = {self.discriminator_start} is after model.adversarial_start = "
                f"{self.adversarial_start}: an untrained discriminator would count. Start it earlier, or at the same batch."
            )
        if self.delta <= 0 or self.largest_lambda <= 0:
            found.append(
                f"model.delta = {self.delta} and model.largest_lambda = {self.largest_lambda} must be above 0."
            )
        return found
