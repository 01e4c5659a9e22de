"""The bound of a diffusion model of pixels and of a cascade: loops over known denoisers, its noise, what stages are told."""

import math
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm
from torch import Tensor, nn

from rasterformer.codecs.continuous import ContinuousCodec
from rasterformer.diffusion.gaussian import make_gaussian
from rasterformer.diffusion.gaussian_bound import SCALES
from rasterformer.diffusion.image_denoiser import ImageDenoiser, Seen
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.evaluation.pixel_bound import PixelBound, scorer_of
from rasterformer.interfaces import Cond, Loss
from rasterformer.recipe import DataConfig, Recipe, TextConfig, TrainingConfig
from rasterformer.recipe_file import load_recipe
from rasterformer.system import LEVELS, System
from rasterformer.systems.imagen.config import Config
from rasterformer.tasks import Inpaint, SuperResolution

SMALL: dict[str, Any] = {
    "width": 8, "multipliers": (1, 1), "res_blocks": (1, 1), "attention_levels": (1,), "norm_groups": 4, "head_dim": 8,
    "text_width": 8,
}  # fmt: skip
STD = 0.3  # of the pixels that a known denoiser expects, around their mean or their source's pixel


class Shrinking(ImageDenoiser):
    """The exact denoiser of pixels N(centre, STD^2): the centre is 0.1, or that of its area in the source, repeated."""

    def __init__(self, side: int, factor: int | None) -> None:
        super().__init__()
        self.num_classes, self.multiple, self.image_shape, self.factor = 0, 1, (3, side, side), factor
        self.process, self.source_process = make_gaussian("cosine"), None
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor, t: Tensor, cond: Cond, seen: Seen | None) -> Tensor:
        centre = torch.full_like(z, 0.1) if seen is None else seen.image
        alpha, sigma = (part[:, None, None, None] for part in (self.process.alpha(t), self.process.sigma(t)))
        return centre + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (z - alpha * centre)

    def to_x0(self, output: Tensor, z: Tensor, t: Tensor) -> Tensor:
        return output

    def see(self, cond: Cond, size: tuple[int, int], *, level: Tensor | None, rng: Any) -> Seen | None:
        assert (cond.source is None) is (self.factor is None) and level is None
        if cond.source is None or self.factor is None:
            return None
        large = cond.source.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)
        assert large.shape[2:] == size, "the source is of the stage before"
        return Seen(large.float() / 127.5 - 1, None)

    def state_bytes(self, batch_size: int, size: tuple[int, int] | None = None) -> int:
        raise NotImplementedError

    def step_bytes(self, batch_size: int) -> int:
        raise NotImplementedError

    def to_bfloat16(self) -> "Shrinking":
        raise NotImplementedError

    def loss(self, x: Tensor, cond: Cond, *, rng: torch.Generator | None) -> Loss:
        raise NotImplementedError

    def sample(self, cond: Cond, batch_size: int, **options: Any) -> Tensor:
        raise NotImplementedError


def known_stage(side: int, factor: int | None) -> System:
    task = None if factor is None else SuperResolution(factor)
    recipe = Recipe("imagen", Config(), DataConfig(image_size=side), TrainingConfig(), task=task)
    return System(recipe, ContinuousCodec(side), Shrinking(side, factor))


def known_cascade() -> System:
    """2x2 -> 4x4 -> 8x8."""
    return replace(known_stage(2, None), upscalers=(known_stage(4, 2), known_stage(8, 2)))


def images_of(count: int, side: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=rng)


def reduced(image: np.ndarray, side: int) -> np.ndarray:
    """Means of areas, rounded down, uint8 [3, side, side]."""
    area = image.shape[1] // side
    result = np.zeros((3, side, side), dtype=np.int64)
    for c, row, col in np.ndindex(3, side, side):
        part = image[c, row * area : (row + 1) * area, col * area : (col + 1) * area].astype(np.int64)
        result[c, row, col] = int(part.sum()) // area**2
    return result


def bound_by_loops(image: np.ndarray, centre: np.ndarray, rng: torch.Generator, levels: int) -> float:
    """Nats of one stage's image [3, s, s], pixel by pixel: prior, integral over the log SNR, and six decoders of z_0."""
    process = make_gaussian("cosine")
    clean, noisy = process.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()

    def scales(log_snr: float) -> tuple[float, float]:
        return math.sqrt(1 / (1 + math.exp(-log_snr))), math.sqrt(1 / (1 + math.exp(log_snr)))

    def x0_of(z: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        return np.clip(centre + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (z - alpha * centre), -1, 1)

    x = image / 127.5 - 1
    alpha, sigma = scales(noisy)
    nats = float((0.5 * (alpha**2 * x**2 + sigma**2 - 1 - math.log(sigma**2))).sum())
    for level in range(levels):
        place = float(torch.rand((), dtype=torch.float64, generator=rng))
        alpha, sigma = scales(clean + (noisy - clean) * (level + place) / levels)
        eps = torch.randn(x.shape, generator=rng).double().numpy()
        z = alpha * x + sigma * eps
        missed = (alpha / sigma * (x - x0_of(z, alpha, sigma))) ** 2
        nats += 0.5 * (clean - noisy) / levels * float(missed.sum())
    alpha, sigma = scales(clean)
    z = alpha * x + sigma * torch.randn(x.shape, generator=rng).double().numpy()
    low, high = np.where(image == 0, -np.inf, x - 0.5 / 127.5), np.where(image == 255, np.inf, x + 0.5 / 127.5)
    logs = []
    for mean, std in [(z / alpha, sigma / alpha)] + [(x0_of(z, alpha, sigma), part * sigma / alpha) for part in SCALES]:
        with np.errstate(divide="ignore"):  # a decoder far away has a mass of 0 here: the others decide
            logs.append(float(np.log(norm.cdf((high - mean) / std) - norm.cdf((low - mean) / std)).sum()))
    return nats + math.log(len(logs)) - float(logsumexp(logs))


def stream_of(image: np.ndarray, stage: int) -> torch.Generator:
    digest = sha256(np.ascontiguousarray(image).tobytes() + bytes([stage])).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def test_the_bound_of_a_cascade_is_that_of_each_stage_given_the_true_image_before_it() -> None:
    images, levels = images_of(2, 8), 5
    got = PixelBound(known_cascade(), levels).stage_nats(images, Cond(), None)
    assert got.shape == (2, 3) and got.dtype == torch.float64
    for k, image in enumerate(images.numpy()):
        first, second = reduced(image, 2), reduced(image, 4)
        for stage, (part, centre) in enumerate(
            [
                (first, np.full(first.shape, 0.1)),
                (second, first.repeat(2, 1).repeat(2, 2) / 127.5 - 1),
                (image.astype(np.int64), second.repeat(2, 1).repeat(2, 2) / 127.5 - 1),
            ]
        ):
            expected = bound_by_loops(part, centre, stream_of(image, stage), levels)
            assert float(got[k, stage]) == pytest.approx(expected, rel=1e-3)  # drawn in float32
    total = known_cascade().image_nats(images, levels=levels)
    torch.testing.assert_close(total, got.sum(1), rtol=1e-12, atol=0)


def make(side: int, *, factor: int | None = None, **more: Any) -> System:
    """A real network with random weights; what it says is small, and not 0."""
    task = None if factor is None else SuperResolution(factor)
    own = {name: more.pop(name) for name in ("text", "task") if name in more}
    recipe = Recipe(
        "imagen",
        Config(**SMALL, source_noise=factor is not None),
        DataConfig(image_size=side),
        TrainingConfig(),
        **{"task": task, **own},
    )
    system = System.create(recipe, **more)
    system.model.eval()
    rng = torch.Generator().manual_seed(side)
    with torch.no_grad():
        for weight in system.model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=rng))
    return system


def cascade(*, text: Sequence[bool] = (True, True), classes: Sequence[int] = (0, 0)) -> System:
    """4x4 -> 8x8; which of the two read bytes of captions, and how many classes they know."""
    of_text = [TextConfig(encoder="bytes", length=8, dim=8) if has else None for has in text]
    base = make(4, text=of_text[0], num_classes=classes[0])
    return replace(base, upscalers=(make(8, factor=2, text=of_text[1], num_classes=classes[1]),))


def test_the_bound_is_a_function_of_the_image_alone() -> None:
    bound, images, texts = PixelBound(cascade(), 3), images_of(4, 8), ["a cat", "", "dog", "dog"]
    together = bound.stage_nats(images, Cond(), texts)
    assert torch.equal(together, bound.stage_nats(images, Cond(), texts))
    alone = torch.cat([bound.stage_nats(images[k : k + 1], Cond(), texts[k : k + 1]) for k in range(4)])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=0)  # sums of another size round differently
    order = torch.tensor([2, 0, 3, 1])
    turned = bound.stage_nats(images[order], Cond(), [texts[k] for k in order])
    torch.testing.assert_close(turned, together[order], rtol=1e-5, atol=0)
    twice = bound.stage_nats(images[:1].repeat(2, 1, 1, 1), Cond(), ["a cat", "a cat"])
    torch.testing.assert_close(twice[0], twice[1], rtol=1e-6, atol=0)


def test_another_caption_meets_the_same_noise() -> None:
    """With noise of its own, the prior's part of a model that hears nothing would differ; and what it says does."""
    images, texts = images_of(2, 8), (["a", "b"], ["x y z", ""])
    hears, deaf = (PixelBound(cascade(text=text), 2) for text in ((True, True), (False, False)))
    first, second = (hears.stage_nats(images, Cond(), text) for text in texts)
    assert not torch.isclose(first, second, rtol=1e-7).any()
    torch.testing.assert_close(first, second, rtol=0.05, atol=0)
    assert deaf.takes_captions is False
    seen = []
    model = hears.system.model
    model.register_forward_hook(lambda module, args, output: seen.append(args[0].clone()))
    for text in texts:
        hears.stage_nats(images, Cond(), text)
    half = len(seen) // 2
    assert half == 3 and all(torch.equal(a, b) for a, b in zip(seen[:half], seen[half:], strict=True))


def test_more_levels_estimate_the_same_bound_with_less_noise() -> None:
    """Many images of the same statistics: means agree within their errors, the spread of the difference is the noise's."""
    system, images = known_cascade(), images_of(300, 8, seed=3)
    few, some, many = (PixelBound(system, levels).stage_nats(images, Cond(), None).sum(1) for levels in (1, 4, 40))
    for other in (few, some):
        apart = other - many
        assert abs(float(apart.mean())) < 4.5 * float(apart.std()) / math.sqrt(300)
    assert float((some - many).std()) < 0.6 * float((few - many).std())


def test_each_stage_is_told_what_it_was_trained_with() -> None:
    images, label = images_of(2, 8), torch.tensor([1, 0])
    one_text = PixelBound(cascade(text=(False, True)), 2)
    assert one_text.takes_captions and one_text.stage_sizes == (4, 8)
    changed = [one_text.stage_nats(images, Cond(), [word, word]) for word in ("cat", "dog")]
    assert (
        torch.equal(changed[0][:, 0], changed[1][:, 0]) and not torch.isclose(*(part[:, 1] for part in changed)).any()
    )
    for classes, differs in (((2, 0), (True, False)), ((2, 2), (True, True))):
        bound = PixelBound(cascade(text=(False, False), classes=classes), 2)
        parts = [bound.stage_nats(images, Cond(label=given), None) for given in (label, 1 - label)]
        for stage, is_other in enumerate(differs):
            assert torch.equal(parts[0][:, stage], parts[1][:, stage]) is not is_other


def test_known_pixels_of_inpainting_do_not_count() -> None:
    system = make(8, task=Inpaint())
    images, known = images_of(2, 8), torch.zeros(2, 8, 8, dtype=torch.bool)
    known[:, 2:] = True
    cond = Cond(source=images * known[:, None], known=known)
    some = PixelBound(system, 4).stage_nats(images, cond, None)
    none = PixelBound(system, 4).stage_nats(images, Cond(source=torch.zeros_like(images), known=~known & known), None)
    assert bool((some > 0).all()) and bool((some < none / 2).all())  # a quarter of the dimensions is left


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"this model takes torch.uint8 \[B, 3, 8, 8\]"):
        PixelBound(cascade(), 2).stage_nats(images_of(1, 4), Cond(), [""])


def test_what_scores_a_model_is_itself_or_its_bound() -> None:
    exact = System.create(load_recipe("tiny", [("data.image_size", "4")]))
    assert scorer_of(exact) is exact
    with pytest.raises(ConfigError, match="levels = 3, but this model's likelihood is exact"):
        scorer_of(exact, levels=3)
    bounds = [scorer_of(known_cascade(), levels=levels) for levels in (None, 3)]
    assert [bound.levels for bound in bounds if isinstance(bound, PixelBound)] == [LEVELS, 3]
    with pytest.raises(ConfigError, match="levels = 0 must be at least 1"):
        scorer_of(known_cascade(), levels=0)


def test_a_cascade_that_begins_from_source_images_is_refused() -> None:
    begins = replace(known_stage(4, 2), upscalers=(known_stage(8, 2),))
    with pytest.raises(ConfigError, match="this cascade begins from source images"):
        PixelBound(begins, 2)
