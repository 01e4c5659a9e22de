"""What every system must hold is tested on these small models; a new system adds its own to CONFIGS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

from rasterformer import registry
from rasterformer.codecs.continuous import ContinuousCodec
from rasterformer.diffusion.image_denoiser import ImageDenoiser
from rasterformer.distributions import Categorical, DiscretizedLogisticMixture
from rasterformer.interfaces import Autoregressive, Codec, Cond, Known, Loss, OnStep, SampleOptions
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.tasks import Colourise, Inpaint, SourceShape, SuperResolution, Task, source_shape
from rasterformer.tokenizer import Tokenizer

NUM_CODES = 5
SMALL = {"width": 12, "depth": 2, "num_heads": 2, "mlp_width": 16, "dropout_prob": 0.0}
DMOL = {"distribution": "dmol", "num_mixtures": 2}
MODERN = {
    "input": "neighbourhood",
    "norm_position": "pre",
    "norm": "rms",
    "activation": "swiglu",
    "output": "residual",
    "learned_start": True,
    "qk_norm": True,
    "num_kv_heads": 1,
}
ENCODER = {"encoder_depth": 1, "norm_position": "pre"}
MODERN_CODES = {
    "norm": "rms",
    "activation": "swiglu",
    "bias": False,
    "qk_norm": True,
    "positions": "none",
    "rotary": True,
    "width": 16,
    "num_kv_heads": 1,
    "shared_vocabulary": False,
}
# Channels of a source, and the factor by which it is smaller than the image.
Source = tuple[int, int]
# system -> name -> (fields of its Config, number of classes[, source]); all at 4x4 pixels or codes, where L is 48 or 16
CONFIGS: dict[str, dict[str, tuple[dict[str, Any], int] | tuple[dict[str, Any], int, Source]]] = {
    "image_transformer": {
        "cat-1d": ({"block_length": 7, "memory_length": 7}, 0),
        "cat-1d-memory-5": ({"block_length": 8, "memory_length": 5, "positions": "learned"}, 0),
        "cat-1d-classes": ({"block_length": 8, "memory_length": 8, "norm_position": "pre"}, 3),
        "cat-1d-no-memory": ({"block_length": 12, "memory_length": 0, "positions": "none"}, 0),
        "cat-full": ({"attention": "full", "norm_position": "pre", "positions": "learned_summed", "norm": "rms"}, 0),
        "cat-2d": ({"attention": "local_2d", "query_block": (2, 2), "flange": (1, 1)}, 0),
        "cat-2d-classes": (
            {"attention": "local_2d", "query_block": (2, 2), "flange": (2, 2), "num_kv_heads": 1, "qk_norm": True},
            3,
        ),
        "cat-2d-cells": (
            {"attention": "local_2d", "query_block": (2, 4), "flange": (1, 2), "block_unit": "cell"},
            0,
        ),
        "cat-modern": (
            {**MODERN, "neighbourhood": (3, 9), "mlp_kernel": (2, 5), "block_length": 20, "memory_length": 20}
            | {"attention_layers": (1,), "init": "zero_residual", "width": 16, "rotary": True},
            0,
        ),
        "cat-modern-classes": ({**MODERN, "attention": "full", "mlp_kernel": (2, 3), "activation": "gelu"}, 3),
        "dmol-linear": ({**DMOL, "input": "linear", "block_length": 5, "memory_length": 5}, 0),
        "dmol-linear-relu": (
            {**DMOL, "input": "linear_relu", "positions": "learned", "attention_width": 8}
            | {"block_length": 6, "memory_length": 9},
            0,
        ),
        "dmol-table-classes": ({**DMOL, "block_length": 5, "memory_length": 10, "learned_start": True}, 3),
        "dmol-2d": (
            {**DMOL, "input": "linear", "attention": "local_2d", "query_block": (2, 2), "flange": (1, 1)}
            | {"rotary": True, "width": 16, "num_kv_heads": 1},
            0,
        ),
        "dmol-2d-classes": (
            {**DMOL, "attention": "local_2d", "query_block": (2, 1), "flange": (2, 2), "norm_position": "pre"},
            3,
        ),
        "dmol-modern": (
            {**DMOL, **MODERN, "neighbourhood": (2, 3), "mlp_kernel": (2, 3), "block_length": 7, "memory_length": 7}
            | {"attention_layers": (0,), "width": 16, "rotary": True},
            0,
        ),
        "dmol-modern-classes": (
            {**DMOL, **MODERN, "block_length": 5, "memory_length": 5, "mlp_kernel": (1, 3)},
            3,
        ),
        "cat-modern-2d": (
            {**MODERN, "neighbourhood": (3, 9), "mlp_kernel": (2, 5), "attention": "local_2d", "query_block": (2, 2)}
            | {"flange": (2, 2), "attention_layers": (1,)},
            0,
        ),
        "dmol-modern-2d-cells": (
            {**DMOL, **MODERN, "neighbourhood": (3, 5), "mlp_kernel": (2, 3), "attention": "local_2d"}
            | {"query_block": (1, 2), "flange": (1, 1)},
            0,
        ),
        "cat-source": ({**ENCODER, "block_length": 7, "memory_length": 7, "encoder_depth": 2}, 0, (3, 2)),
        "cat-source-classes": (
            {
                **ENCODER,
                "attention": "full",
                "positions": "learned_summed",
                "rotary": True,
                "width": 16,
                "qk_norm": True,
            }
            | {"source_attention_layers": (1,), "encoder_kernel": (3, 3)},
            3,
            (3, 2),
        ),
        "cat-source-grey-aligned-2d": (
            {
                **ENCODER,
                **MODERN,
                "attention": "local_2d",
                "query_block": (2, 2),
                "flange": (1, 1),
                "aligned_source": True,
            }
            | {
                "encoder_attention": "local_2d",
                "encoder_block": (2, 2),
                "encoder_flange": (1, 1),
                "encoder_kernel": (3, 1),
            },
            0,
            (1, 1),
        ),
        "cat-source-rest": (
            {**ENCODER, **MODERN, "block_length": 7, "memory_length": 7, "source_rest": True, "shown_source": True},
            0,
            (3, 2),
        ),
        "cat-source-rest-2d": (
            {**ENCODER, "attention": "local_2d", "query_block": (2, 1), "flange": (1, 1), "source_rest": True}
            | {"encoder_depth": 0, "source_attention_layers": (0,)},
            0,
            (3, 2),
        ),
        "dmol-source-pixels-aligned": (
            {
                **DMOL,
                **MODERN,
                **ENCODER,
                "encoder_cell": "pixel",
                "aligned_source": True,
                "shown_source": True,
                "source_attention_layers": (),
            }
            | {"block_length": 5, "memory_length": 5, "encoder_depth": 0, "positions": "learned"},
            0,
            (3, 2),
        ),
        "dmol-source-channels-aligned": (
            {**DMOL, "input": "linear", "block_length": 5, "memory_length": 5, "aligned_source": True}
            | {**ENCODER, "num_kv_heads": 1},
            0,
            (3, 2),
        ),
    },
    "vqgan_transformer": {
        "codes": ({}, 0),
        "codes-classes": ({}, 3),
        "codes-modern": (MODERN_CODES, 0),
        "codes-modern-classes-hidden": ({**MODERN_CODES, "drop_condition_prob": 0.1}, 3),
        "codes-spiral": ({"order": "spiral_in", "rotary": True, "width": 16}, 0),
        "codes-subsample-classes": ({**MODERN_CODES, "order": "subsample"}, 3),
        "codes-coordinates": ({"coordinates": True, "num_coordinates": 6, "keep_prob": 0.9}, 0),
        "codes-condition": ({}, 0, (3, 2)),
        "codes-condition-aligned": ({**MODERN_CODES, "aligned_condition": True, "drop_condition_prob": 0.1}, 0, (3, 1)),
        "codes-condition-aligned-classes-spiral": (
            {"aligned_condition": True, "order": "spiral_in", "shared_vocabulary": False},
            3,
            (3, 1),
        ),
    },
}
# The same with sources of the image's size of which pixels are missing.
MASKED: dict[str, dict[str, tuple[dict[str, Any], int, Source]]] = {
    "image_transformer": {
        "cat-mask": ({**ENCODER, "block_length": 7, "memory_length": 7}, 0, (3, 1)),
        "cat-mask-2d-aligned": (
            {
                **ENCODER,
                **MODERN,
                "attention": "local_2d",
                "query_block": (2, 2),
                "flange": (2, 2),
                "aligned_source": True,
                "shown_source": True,
            }
            | {"encoder_kernel": (3, 3), "encoder_cell": "pixel", "loss_chunk": 10},
            0,
            (3, 1),
        ),
        "dmol-mask-aligned": (
            {**DMOL, **ENCODER, "input": "linear", "block_length": 5, "memory_length": 5, "aligned_source": True},
            0,
            (3, 1),
        ),
    }
}
CASES = [(system, name) for system, named in CONFIGS.items() for name in named]
# Diffusion of pixels: system -> name -> (fields of its Config, number of classes, texts, task); all at 8x8 pixels
UNET = {
    "width": 8,
    "multipliers": (1, 2),
    "res_blocks": (1, 1),
    "attention_levels": (1,),
    "norm_groups": 2,
    "head_dim": 8,
}
EFFICIENT = {name: value for name, value in UNET.items() if name != "attention_levels"} | {"denoiser": "efficient_unet"}
DIT = {"denoiser": "transformer", "width": 16, "depth": 2, "head_dim": 8, "mlp_width": 12}
STATES, BYTES = TextConfig(dim=6, length=4), TextConfig("bytes", dim=6, length=4)
DENOISERS: dict[str, dict[str, tuple[dict[str, Any], int, TextConfig | None, Task | None]]] = {
    "imagen": {
        "unet": (UNET, 0, None, None),
        "unet-eps-text": ({**UNET, "prediction": "eps", "weighting": "min_snr", "schedule": "linear"}, 0, STATES, None),
        "unet-classes-pooled-text": ({**UNET, "text_enters": "pooled"}, 3, STATES, None),
        "unet-bytes-tokens": ({**UNET, "text_enters": "tokens", "prediction": "x0"}, 0, BYTES, None),
        "unet-edm-grey": ({**UNET, "prediction": "edm", "schedule": "edm"}, 0, None, Colourise()),
        "efficient": ({**EFFICIENT, "log_snr_shift": -1.0}, 0, None, None),
        "efficient-upscale-text": ({**EFFICIENT, "source_noise": 1.0}, 0, STATES, SuperResolution(factor=2)),
        "efficient-never-without": ({**EFFICIENT, "self_attention": False, "drop_condition_prob": 0.0}, 3, None, None),
        "dit": (DIT, 0, None, None),
        "dit-text-classes-edm": ({**DIT, "prediction": "edm", "schedule": "edm"}, 3, STATES, None),
        "dit-upscale-both": ({**DIT, "source_enters": "both", "encoder_depth": 1, "source_noise": 1.0}, 0, None,
                             SuperResolution(factor=2)),
        "dit-mask-tokens-text": ({**DIT, "source_enters": "tokens", "encoder_depth": 1}, 0, STATES, Inpaint()),
    },
}  # fmt: skip
IMAGE_CASES = [(system, name) for system, named in DENOISERS.items() for name in named]


@dataclass(frozen=True)
class ImageCase:
    """One small diffusion model of pixels."""

    system: str
    fields: dict[str, Any]
    num_classes: int
    text: TextConfig | None
    task: Task | None
    side: int = 8

    def build(self, *, dtype: torch.dtype = torch.float64, noise: float = 0.3) -> tuple[ContinuousCodec, ImageDenoiser]:
        """With large random weights, so that any leak shows, in evaluation mode."""
        config = registry.config_class(self.system)(**{"text_width": 8, **self.fields})
        assert config.problems() == []
        torch.manual_seed(0)
        codec, model = registry.model_module(self.system).build(
            config, image_size=self.side, num_classes=self.num_classes, source=self.source_shape(), text=self.text
        )
        with torch.no_grad():
            for weight in model.parameters():
                weight += noise * torch.randn_like(weight)
        return codec, model.to(dtype).eval()

    def source_shape(self) -> SourceShape | None:
        """Of the model's sources."""
        return None if self.task is None else source_shape(self.task, self.side)

    def cond(self, batch_size: int, *, dtype: torch.dtype = torch.float64) -> Cond:
        """Classes 0, 1, 2, 0, ..., a text of two tokens and one of three in turn, a source, as far as the model takes them."""
        rng, index = _fixed(), torch.arange(batch_size)
        label = index % self.num_classes if self.num_classes else None
        known, source, parts = None, None, {}
        if self.text is not None:
            parts["text_known"] = torch.tensor([[True, True, False], [True, True, True]])[index % 2]
            if self.text.encoder == "bytes":
                parts["text_tokens"] = torch.randint(0, 256, (9, 3), generator=rng)[index % 9]
            else:
                parts["text"] = torch.randn(9, 3, self.text.dim, generator=rng, dtype=dtype)[index % 9]
        if (shape := self.source_shape()) is not None:
            sources = torch.randint(0, 256, (9, shape.channels, shape.size, shape.size), generator=rng)
            source = sources[index % 9].to(torch.uint8)
            if shape.has_mask:  # the pixels of a chessboard, and of the opposite one
                known = (torch.arange(shape.size)[:, None] + torch.arange(shape.size) + index[:, None, None]) % 2 == 0
                source = source * known[:, None]
        return Cond(label=label, source=source, known=known, **parts)

    def level(self, model: ImageDenoiser, batch_size: int, t: float = 0.3) -> Tensor | None:
        """Times of the noise on sources, where the model has any."""
        return None if model.source_process is None else torch.full((batch_size,), t, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """One small model's description."""

    system: str
    fields: dict[str, Any]
    num_classes: int
    source: Source | None = None
    side: int = 4  # pixels, or codes
    has_mask: bool = False

    @property
    def is_over_codes(self) -> bool:
        """Whether the model draws codes; a code stands for 2x2 pixels."""
        return self.system == "vqgan_transformer"

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""
        return 2 * self.side if self.is_over_codes else self.side

    def build(self, *, dtype: torch.dtype = torch.float64, noise: float = 0.3) -> tuple[Codec, Autoregressive]:
        """The model with large random weights, so that any leak shows, in evaluation mode."""
        fields = dict(self.fields)
        if (
            self.side == 2 and not self.is_over_codes
        ):  # the 2D blocks must tile, and 1D blocks be shorter than the image
            fields |= {
                "block_length": 2 if "num_mixtures" in fields else 5,
                "query_block": (1, 2) if fields.get("block_unit") == "cell" else (1, 1),
                "memory_length": min(fields.get("memory_length", 0), 3),
                "encoder_block": (1, 1),
            }
        config = registry.config_class(self.system)(**{**SMALL, **fields})
        assert config.problems() == []
        parts = {}
        if self.is_over_codes:
            source, tokenizer = self.source_shape(), _tokenizer()
            sizes = {"tokenizer": self.image_size} | ({} if source is None else {"condition_tokenizer": source.size})
            parts = {"tokenizers": {name: tokenizer.codec(size) for name, size in sizes.items()}}
        torch.manual_seed(0)
        codec, model = registry.model_module(self.system).build(
            config, image_size=self.image_size, num_classes=self.num_classes, source=self.source_shape(), **parts
        )
        model = model.to(dtype).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight += noise * torch.randn_like(weight)
        return codec, model

    def source_shape(self) -> SourceShape | None:
        """Of the model's sources."""
        if self.source is None:
            return None
        return SourceShape(self.source[0], self.image_size // self.source[1], self.has_mask)

    def cond(self, batch_size: int) -> Cond:
        """Classes 0, 1, 2, 0, ... and a source or its codes for each image, as far as the model takes them."""
        label = torch.arange(batch_size) % self.num_classes if self.num_classes else None
        if self.is_over_codes:
            return Cond(label=label, codes=self._condition_codes(batch_size))
        shape, source = self.source_shape(), None
        if shape is not None:
            sources = torch.randint(0, 256, (64, shape.channels, shape.size, shape.size), generator=_fixed())
            source = sources[torch.arange(batch_size) % 64].to(torch.uint8)
        known = None
        if shape is not None and shape.has_mask:  # the pixels of a chessboard, and of the opposite one
            square = torch.arange(shape.size)[:, None] + torch.arange(shape.size)
            known = (square + torch.arange(batch_size)[:, None, None]) % 2 == 0
        return Cond(label=label, source=source, known=known)

    def _condition_codes(self, batch_size: int) -> Tensor | None:
        shape, num_codes = self.source_shape(), NUM_CODES
        if self.fields.get("coordinates"):
            side, num_codes = self.side, self.fields["num_coordinates"]
        elif shape is not None:
            side = shape.size // 2
        else:
            return None
        codes = torch.randint(0, num_codes, (64, side * side), generator=_fixed())
        return codes[torch.arange(batch_size) % 64]

    def same_cond(self, batch_size: int) -> Cond:
        """The same condition for every image."""
        one = self.cond(max(1, self.num_classes)).rows(slice(-1, None))
        return one.rows(torch.zeros(batch_size, dtype=torch.int64))

    def small(self) -> Case:
        """The same at 2x2 pixels or codes, for enumeration."""
        return replace(self, side=2)

    @property
    def levels(self) -> int:
        """So many values are enumerated: 4,096 small images, or 625 grids of codes."""
        return NUM_CODES if self.is_over_codes else 2


def _fixed() -> torch.Generator:
    return torch.Generator().manual_seed(9)


@cache
def _tokenizer() -> Tokenizer:
    """Of 5 codes, f = 2, untrained."""
    config = registry.config_class("vqgan")(
        base_width=8, multipliers=(1, 1), res_blocks=1, attention_levels=(), middle_attention=False, z_channels=8,
        norm_groups=2, vocab_size=NUM_CODES, dim=4, perceptual="none", discriminator="none",
    )  # fmt: skip
    assert config.problems() == []
    return Tokenizer.create(Recipe("vqgan", config, DataConfig(image_size=8), TrainingConfig()))


@pytest.fixture(params=CASES, ids=[f"{system}-{name}" for system, name in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    system, name = request.param
    return Case(system, *CONFIGS[system][name])


@pytest.fixture(
    params=[case for case in CASES if case[0] != "vqgan_transformer" and len(CONFIGS[case[0]][case[1]]) == 3],
    ids=lambda case: case[1],
)
def source_case(request: pytest.FixtureRequest) -> Case:
    """Pixels from source images."""
    system, name = request.param
    return Case(system, *CONFIGS[system][name])


@pytest.fixture(
    params=[
        ("vqgan_transformer", name)
        for name, (fields, _, *source) in CONFIGS["vqgan_transformer"].items()
        if source or "coordinates" in fields
    ],
    ids=lambda case: case[1],
)
def codes_case(request: pytest.FixtureRequest) -> Case:
    """Codes from codes of a condition."""
    system, name = request.param
    return Case(system, *CONFIGS[system][name])


@pytest.fixture(params=[(system, name) for system in MASKED for name in MASKED[system]], ids=lambda case: case[1])
def mask_case(request: pytest.FixtureRequest) -> Case:
    system, name = request.param
    return Case(system, *MASKED[system][name], has_mask=True)


@pytest.fixture(params=IMAGE_CASES, ids=[f"{system}-{name}" for system, name in IMAGE_CASES])
def image_case(request: pytest.FixtureRequest) -> ImageCase:
    """A diffusion model of pixels."""
    system, name = request.param
    return ImageCase(system, *DENOISERS[system][name])


@pytest.fixture
def image_configs() -> dict[str, Any]:
    """All small diffusion models of pixels, by system."""
    return DENOISERS


@pytest.fixture
def small_configs() -> dict[str, dict[str, tuple[dict[str, Any], int]]]:
    """All small autoregressive models, by system."""
    return CONFIGS


class FewLevels(Autoregressive):
    """A model whose symbols take `levels` values, spread over all of theirs, so that all its images can be listed.

    The network is the unchanged model; it sees the spread values. Of categorical logits those of the spread values are
    kept; the mixture of logistics has its number of levels as a parameter.
    """

    def __init__(self, model: Autoregressive, levels: int) -> None:
        super().__init__()
        self.model = model
        self.num_classes, self.x_shape = model.num_classes, model.x_shape
        self.values = torch.arange(levels) * (model.distribution.vocab_size - 1) // (levels - 1)
        is_categorical = isinstance(model.distribution, Categorical)
        self.kept = self.values if is_categorical else slice(None)
        mixtures = model.distribution.params_per_position // 10
        self.distribution = Categorical(levels) if is_categorical else DiscretizedLogisticMixture(mixtures, levels)

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        params: Tensor = self.model(self.values[x], cond)[..., self.kept]
        return params

    def begin(self, cond: Cond, batch_size: int) -> tuple[Tensor, Any]:
        params, state = self.model.begin(cond, batch_size)
        return params[..., self.kept], state

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        params, state = self.model.step(self.values[x], state)
        return params[..., self.kept], state

    def state_bytes(self, batch_size: int) -> int:
        return self.model.state_bytes(batch_size)

    def known(self, cond: Cond) -> Known | None:
        known = self.model.known(cond)
        return None if known is None else Known(torch.searchsorted(self.values, known.x), known.where)

    def to_bfloat16(self) -> Autoregressive:
        raise NotImplementedError("enumeration needs exact numbers")

    def lookahead(self, state: Any) -> int:
        return self.model.lookahead(state)

    def rewind(self, state: Any, done: int) -> Any:
        return self.model.rewind(state, done)

    def loss(self, x: Tensor, cond: Cond, *, rng: torch.Generator | None) -> Loss:
        raise NotImplementedError("likelihoods of this model are taken from forward")

    def sample(
        self, cond: Cond, batch_size: int, *, options: SampleOptions, rng: Any, on_step: OnStep | None = None
    ) -> Tensor:
        raise NotImplementedError("samples of this model are taken by draw")

    def every_x(self) -> Tensor:
        """All images: int64 [levels^(L E), L, E]."""
        symbols = self.x_shape[0] * self.x_shape[1]
        levels = len(self.values)
        number = torch.arange(levels**symbols)[:, None]
        return (number // levels ** torch.arange(symbols) % levels).unflatten(1, self.x_shape)

    def index_of(self, x: Tensor) -> Tensor:
        """x [B, L, E] -> its place in `every_x`, int64 [B]."""
        symbols = x.flatten(1)
        return (symbols * len(self.values) ** torch.arange(symbols.shape[1])).sum(1)


@pytest.fixture
def few_levels() -> Callable[[Autoregressive, int], FewLevels]:
    return FewLevels


@pytest.fixture
def fit_p_value() -> Callable[[Tensor, Tensor], float]:
    """counts int64 [K], probabilities [K] -> p of the chi-square test; rare values are merged, 20 expected together."""

    def p_value(counts: Tensor, probs: Tensor) -> float:
        order = probs.argsort()
        expected = (probs[order] * counts.sum()).double()
        bins = (expected.cumsum(0) - expected / 2).div(20).floor()  # consecutive values of about 20 expected
        _, bins = bins.unique_consecutive(return_inverse=True)
        size = int(bins.max()) + 1
        assert size > 3, "too few bins for a test"
        wanted = torch.zeros(size, dtype=torch.float64).index_add_(0, bins, expected)
        found = torch.zeros(size, dtype=torch.float64).index_add_(0, bins, counts[order].double())
        return float(scipy.stats.chisquare(found, wanted * found.sum() / wanted.sum()).pvalue)

    return p_value
