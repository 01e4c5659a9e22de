"""Drawing by one stage and by a cascade: exact distributions, passes, known pixels, what each stage sees, and the bound."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rasterformer.autoregressive.noise import image_generators
from rasterformer.codecs.continuous import ContinuousCodec, to_numbers
from rasterformer.conditioning.resize import enlarge, reduce_area
from rasterformer.diffusion.gaussian import GaussianProcess, make_gaussian
from rasterformer.diffusion.image_denoiser import ImageDenoiser, Seen
from rasterformer.diffusion.image_options import ImageOptions
from rasterformer.diffusion.samplers import Sampler, normal
from rasterformer.drawing.stages import (
    Given,
    Told,
    draw_cascade,
    draw_stage,
    factors_of,
    image_nats,
    is_upscaler,
    multiple_of,
    passes_of,
    stage_generators,
    stage_options,
    stages_of,
)
from rasterformer.errors import ShapeError
from rasterformer.interfaces import Cond, Loss, OnStep, SampleOptions
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.imagen.config import Config
from rasterformer.tasks import SuperResolution

MEAN = torch.tensor([0.1, -0.2, 0.05])
COVARIANCE = torch.tensor([[0.06, 0.03, 0.0], [0.03, 0.05, -0.02], [0.0, -0.02, 0.04]])  # of the channels of a pixel
SHARE, REST = 0.8, 0.02  # of the source in what an upscaler draws, and the variance of the rest
RAW = ImageOptions(threshold="none")


class Exact(ImageDenoiser):
    """The true mean of the image under noise, where pixels are normal and independent: nothing is learned or missed.

    With a source, a pixel is `SHARE` of what the source shows there, whatever the noise on it, and `REST` of its own.
    """

    num_classes = 0

    def __init__(
        self,
        side: int,
        *,
        takes_source: bool = False,
        source_noise: bool = False,
        multiple: int = 1,
        covariance: Tensor = COVARIANCE,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.image_shape, self.multiple = (3, side, side), multiple
        self.process: GaussianProcess = make_gaussian("cosine")
        self.source_process, self.most_source_noise = make_gaussian("linear") if source_noise else None, 1.0
        self.takes_source, self.covariance, self.passes = takes_source, covariance, 0
        self.sources: list[tuple[Tensor, Seen]] = []

    def forward(self, z: Tensor, t: Tensor, cond: Cond, seen: Seen | None) -> Tensor:
        self.passes += 1
        mean, covariance = MEAN[:, None, None].expand_as(z), self.covariance
        if seen is not None:
            alpha = 1.0 if seen.log_snr is None else seen.log_snr.sigmoid().sqrt()[:, None, None, None]
            mean, covariance = SHARE * seen.image / alpha, REST * torch.eye(3)
        alpha, sigma = (part[:, None, None] for part in (self.process.alpha(t), self.process.sigma(t)))  # [B, 1, 1]
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(3))  # [B, 3, 3]
        return mean + torch.einsum("bij,bjhw->bihw", gain, z - alpha[..., None] * mean)

    def to_x0(self, output: Tensor, z: Tensor, t: Tensor) -> Tensor:
        return output

    def see(
        self, cond: Cond, size: tuple[int, int], *, level: Tensor | None, rng: Sequence[torch.Generator]
    ) -> Seen | None:
        if not self.takes_source:
            return None
        assert cond.source is not None and (level is None) == (self.source_process is None)
        image = to_numbers(enlarge(cond.source, size, "nearest"))
        seen = Seen(image, None)
        if level is not None and self.source_process is not None:
            noised = self.source_process.diffuse(image, level, normal(rng, image))
            seen = Seen(noised, self.source_process.log_snr(level))
        self.sources.append((cond.source, seen))
        return seen

    def state_bytes(self, batch_size: int, size: tuple[int, int] | None = None) -> int:
        return 1 << 20

    def step_bytes(self, batch_size: int) -> int:
        raise NotImplementedError("it is not trained")

    def to_bfloat16(self) -> Exact:
        return self

    def loss(self, x: Tensor, cond: Cond, *, rng: torch.Generator | None) -> Loss:
        raise NotImplementedError("it is not trained")

    def sample(
        self, cond: Cond, batch_size: int, *, options: SampleOptions, rng: Any, on_step: OnStep | None = None
    ) -> Tensor:
        raise NotImplementedError("stages are drawn from outside")


def system_of(side: int, model: Exact, factor: int | None = None) -> System:
    task = None if factor is None else SuperResolution(factor=factor)
    recipe = Recipe("imagen", Config(), DataConfig(image_size=side), TrainingConfig(), task=task)
    return System(recipe, ContinuousCodec(side), model)


def cascade(*, source_noise: bool = False, multiple: int = 1) -> System:
    """4x4 to 8x8 to 24x24 pixels."""
    base = system_of(4, Exact(4, multiple=multiple))
    first = system_of(8, Exact(8, takes_source=True, source_noise=source_noise, multiple=2), 2)
    return replace(base, upscalers=(first, system_of(24, Exact(24, takes_source=True), 3)))


def models_of(system: System) -> list[Exact]:
    models = [stage.model for stage in stages_of(system)]
    assert all(isinstance(model, Exact) for model in models)
    return models  # type: ignore[return-value]


def drawn_by(
    system: System,
    *,
    size: tuple[int, int] = (24, 24),
    options: ImageOptions = RAW,
    numbers: Iterable[int] = range(2),
    seed: int = 3,
    **more: Any,
) -> Tensor:
    told = [Told(Cond())] * len(stages_of(system))
    streams = streams_of(numbers, seed)
    return draw_cascade(system, models_of(system), told, size=size, options=options, streams=streams, **more)


def streams_of(numbers: Iterable[int], seed: int = 3) -> list[tuple[int, int]]:
    return [(seed, number) for number in numbers]


def random_images(batch: int, height: int, width: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, height, width), generator=rng, dtype=torch.uint8)


def random_known(batch: int, height: int, width: int) -> Tensor:
    known = torch.rand(batch, height, width, generator=torch.Generator().manual_seed(1)) < 0.5
    known[:, : height // 2] = True  # so that whole areas are known, too
    known[:, 1, 1] = False
    return known


def covariance_of(pixels: Tensor) -> Tensor:
    """[N, 3] -> [3, 3]."""
    centred = pixels - pixels.mean(0)
    return centred.T @ centred / len(pixels)


# ---- distributions that are known


@pytest.mark.parametrize(("sampler", "steps"), [("ancestral", 200), ("ddim", 160), ("dpmpp_2m", 50), ("heun", 50)])
def test_a_stage_draws_the_distribution_of_an_exact_denoiser(sampler: Sampler, steps: int) -> None:
    """6,144 pixels: 4 standard errors are 0.014 of a mean and 7 % of a variance; the rest is for the length of a step."""
    options = replace(RAW, sampler=sampler, steps=steps)
    rng = image_generators(1, 24)
    images = draw_stage(Exact(16), Told(Cond()), size=(16, 16), options=options, rng=rng)
    assert images.dtype == torch.uint8 and images.shape == (24, 3, 16, 16)
    pixels = to_numbers(images).permute(0, 2, 3, 1).reshape(-1, 3)
    torch.testing.assert_close(pixels.mean(0), MEAN, rtol=0, atol=0.014)
    torch.testing.assert_close(covariance_of(pixels), COVARIANCE, rtol=0, atol=0.12 * 0.06)


@pytest.mark.parametrize("source_noise", [None, 0.05])
def test_a_cascade_draws_the_distribution_of_its_stages(source_noise: float | None) -> None:
    """By the law of total variance, noise on sources included: t = 0.1 where nothing is said. It stays in -1..1."""
    base = system_of(4, Exact(4))
    system = replace(base, upscalers=(system_of(8, Exact(8, takes_source=True, source_noise=True), 2),))
    options = replace(RAW, steps=50, sampler="dpmpp_2m", source_noise=source_noise)
    images = to_numbers(drawn_by(system, size=(32, 32), options=options, numbers=range(12)))
    pixels = images.permute(0, 2, 3, 1).reshape(-1, 3)  # 12,288
    noise = math.expm1(1e-4 + 10 * (source_noise or 0.1) ** 2)  # sigma^2 / alpha^2 of the linear schedule
    expected = SHARE**2 * (COVARIANCE + noise * torch.eye(3)) + REST * torch.eye(3)
    torch.testing.assert_close(pixels.mean(0), SHARE * MEAN, rtol=0, atol=0.03)
    torch.testing.assert_close(covariance_of(pixels), expected, rtol=0, atol=0.12 * float(expected.max()))
    left, right = (to_pairs(images)[..., side] for side in (0, 1))  # of one pixel of the source
    both = (left - left.mean(0)).T @ (right - right.mean(0)) / len(left)
    torch.testing.assert_close(both, SHARE**2 * COVARIANCE, rtol=0, atol=0.15 * 0.06)


def to_pairs(images: Tensor) -> Tensor:
    """Pixels beside each other that show the same source pixel, [N, 3, 2]."""
    return images.unflatten(3, (-1, 2)).permute(0, 2, 3, 1, 4).reshape(-1, 3, 2)


def test_a_faint_variation_is_the_image_and_a_whole_one_forgets_it() -> None:
    images, others = (to_images_of(seed) for seed in (0, 1))
    rng = [image_generators(2, 2) for _ in range(6)]

    def vary(given: Tensor, strength: float) -> Tensor:
        options = replace(RAW, steps=10)
        stage, streams = Exact(8), rng.pop()
        return draw_stage(
            stage, Told(Cond()), size=(8, 8), options=options, rng=streams, given=Given(given, None, strength)
        ).int()

    faint, half = ((vary(images, strength) - images.int()).abs().float() for strength in (1e-4, 0.5))
    assert float(faint.max()) <= 8 and float(faint.mean()) < 2  # sigma is 0.0124 at t = 0: 1.6 levels
    assert float(half.mean()) > 5 * float(faint.mean())
    assert int((vary(images, 1.0) - vary(others, 1.0)).abs().max()) <= 1
    assert int((vary(images, 0.5) - vary(others, 0.5)).abs().max()) > 1


def to_images_of(seed: int) -> Tensor:
    """Two images of the distribution."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randn(2, 8, 8, 3, generator=rng) @ torch.linalg.cholesky(COVARIANCE).T + MEAN
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 3, 1, 2)


def test_a_variation_keeps_as_much_of_the_image_as_the_noise_leaves() -> None:
    """The ancestral chain draws x' given z_s, so that E[x' | x] = m + G alpha (x - m), G that of the exact denoiser."""
    rng = torch.Generator().manual_seed(5)
    shape = (8, 16, 16, 3)
    pixels = torch.randn(shape, generator=rng) @ torch.linalg.cholesky(COVARIANCE).T + MEAN
    images = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 3, 1, 2)
    model = Exact(16)
    options = replace(RAW, sampler="ancestral", steps=40)
    varied = draw_stage(
        model, Told(Cond()), size=(16, 16), options=options, rng=image_generators(2, 8), given=Given(images, None, 0.2)
    )
    x, y = (to_numbers(each).permute(0, 2, 3, 1).reshape(-1, 3) for each in (images, varied))
    found = torch.linalg.lstsq(x - x.mean(0), y - y.mean(0)).solution.T
    time = torch.tensor([0.2])
    alpha, sigma = float(model.process.alpha(time)), float(model.process.sigma(time))
    expected = alpha**2 * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * torch.eye(3))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.08)  # 4 standard errors of 2,048 pixels
    torch.testing.assert_close(covariance_of(y), COVARIANCE, rtol=0, atol=0.16 * 0.06)


def test_variations_of_a_cascade_begin_from_the_reduced_image() -> None:
    system, images = cascade(), random_images(2, 24, 24)
    options = replace(RAW, steps=3)
    drawn = drawn_by(system, options=options, given=Given(images, None, 0.3))
    base = draw_stage(
        Exact(4), Told(Cond()), size=(4, 4), options=options, rng=image_generators(3, 2),
        given=Given(reduce_area(images, 6), None, 0.3),
    )  # fmt: skip
    source, _ = models_of(system)[1].sources[-1]
    assert torch.equal(source, base) and drawn.shape == images.shape


# ---- what every stage is asked

FILLED = Given(random_images(2, 24, 12), random_known(2, 24, 12))


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpmpp_2m", "heun"])
@pytest.mark.parametrize("way", ["drawn", "varied", "filled", "filled again", "upscaled"])
def test_passes_are_as_many_as_is_said_and_progress_ends_with_them(sampler: Sampler, way: str) -> None:
    system = cascade(source_noise=True)
    options = replace(RAW, steps=3, upscaler_steps=5, sampler=sampler, resamplings=4 if way == "filled again" else 1)
    more: dict[str, Any] = {}
    if way == "varied":
        more["given"] = Given(FILLED.images, None, 0.4)
    elif way == "upscaled":
        more["source"] = random_images(2, 4, 2)
    elif way != "drawn":
        more["given"] = FILLED
    told: list[tuple[int, int]] = []
    drawn_by(system, size=(24, 12), options=options, on_step=lambda done, all_: told.append((done, all_)), **more)
    first = int(way == "upscaled")
    said = passes_of(system, options, is_filling=way.startswith("filled"), first_stage=first)
    assert [model.passes for model in models_of(system)] == [0] * first + said
    done = [at for at, _ in told]
    assert {total for _, total in told} == {sum(said)} and done == sorted(set(done))
    assert done[0] >= 1 and done[-1] == sum(said)
    if way == "filled again":
        assert said == [9, 17, 17]


def test_each_stage_sees_the_images_of_the_one_before_as_in_training() -> None:
    """In 256 levels, at its own size, with noise of the level that is asked for, from its own random streams."""
    system = cascade(source_noise=True)
    options = replace(RAW, steps=2, source_noise=0.25)
    drawn = drawn_by(system, size=(24, 12), options=options, numbers=[5, 2])
    base, first, last = (Exact(4), Exact(8, takes_source=True, source_noise=True), Exact(24, takes_source=True))
    x = draw_stage(base, Told(Cond()), size=(4, 2), options=options, rng=stage_generators(streams_of([5, 2]), 0))
    streams = stage_generators(streams_of([5, 2]), 1)
    source, seen = models_of(system)[1].sources[-1]
    assert source.dtype == torch.uint8 and torch.equal(source, x)
    level = torch.full((2,), 0.25)
    expected = first.see(Cond(source=x), (8, 4), level=level, rng=stage_generators(streams_of([5, 2]), 1))
    assert expected is not None and torch.equal(seen.image, expected.image)
    assert seen.log_snr is not None and expected.log_snr is not None and torch.equal(seen.log_snr, expected.log_snr)
    x = draw_stage(first, Told(Cond(source=x)), size=(8, 4), options=options, rng=streams)
    assert torch.equal(models_of(system)[2].sources[-1][0], x)
    x = draw_stage(
        last, Told(Cond(source=x)), size=(24, 12), options=options, rng=stage_generators(streams_of([5, 2]), 2)
    )
    assert torch.equal(drawn, x)


def test_noise_on_sources_is_little_where_nothing_is_said() -> None:
    system = cascade(source_noise=True)
    drawn_by(system, options=replace(RAW, steps=1))
    seen = models_of(system)[1].sources[-1][1]
    assert seen.log_snr is not None
    assert seen.log_snr.tolist() == pytest.approx([-math.log(math.expm1(1e-4 + 0.1))] * 2, rel=1e-4)


def test_an_image_depends_on_its_number_and_not_on_its_batch() -> None:
    system, options = cascade(source_noise=True), replace(RAW, steps=2, sampler="ancestral")
    images = drawn_by(system, options=options, numbers=range(4))
    assert torch.equal(drawn_by(system, options=options, numbers=[3, 1]), images[[3, 1]])
    assert len({image.numpy().tobytes() for image in images}) == 4
    assert not torch.equal(drawn_by(system, options=options, numbers=range(4), seed=4), images)


def test_streams_of_stages_and_images_differ() -> None:
    drawn = {
        tuple(torch.rand(4, generator=one).tolist())
        for stage in range(3)
        for one in stage_generators(streams_of(range(5)), stage)
    }
    assert len(drawn) == 15
    again = [torch.rand(4, generator=one).tolist() for one in stage_generators(streams_of([4, 0]), 2)]
    assert again == [torch.rand(4, generator=stage_generators(streams_of([k]), 2)[0]).tolist() for k in (4, 0)]


# ---- known pixels


@pytest.mark.parametrize("size", [(24, 24), (24, 12), (12, 36)], ids=str)
def test_known_pixels_of_a_cascade_are_the_pictures_own_and_hidden_ones_are_never_seen(size: tuple[int, int]) -> None:
    images, known = random_images(2, *size), random_known(2, *size)
    options = replace(RAW, steps=3, resamplings=2)
    drawn = drawn_by(cascade(), size=size, options=options, given=Given(images, known))
    assert torch.equal(drawn.permute(0, 2, 3, 1)[known], images.permute(0, 2, 3, 1)[known])
    other = torch.where(known[:, None], images, 255 - images)
    assert torch.equal(drawn_by(cascade(), size=size, options=options, given=Given(other, known)), drawn)
    assert not torch.equal(drawn_by(cascade(), size=size, options=options, given=Given(255 - images, known)), drawn)


def test_a_reduced_pixel_is_known_where_its_whole_area_is() -> None:
    given = Given(random_images(2, 12, 6), random_known(2, 12, 6), 1.0)
    reduced = given.reduced(3)
    assert given.known is not None and reduced.known is not None and reduced.known.any()
    assert torch.equal(reduced.images, reduce_area(given.images, 3)) and given.reduced(1) is given
    for k in range(2):
        for row in range(4):
            for col in range(2):
                area = given.known[k, 3 * row : 3 * row + 3, 3 * col : 3 * col + 3]
                assert bool(reduced.known[k, row, col]) == all(area.flatten().tolist())


def test_rows_of_what_is_given_and_told() -> None:
    rows = FILLED.rows(torch.tensor([1, 1]))
    assert rows.known is not None and FILLED.known is not None
    assert torch.equal(rows.images[0], FILLED.images[1]) and torch.equal(rows.known[1], FILLED.known[1])
    told = Told(Cond(label=torch.tensor([3, 4])), Cond(label=torch.tensor([5, 6]))).rows(slice(1, 2))
    assert told.negative is not None and told.cond.label is not None and told.negative.label is not None
    assert told.cond.label.tolist() == [4] and told.negative.label.tolist() == [6]


# ---- stages


def test_factors_and_multiples_are_those_of_all_stages() -> None:
    """A 4-pixel multiple at a sixth of the size, 2 pixels at a third."""
    system = cascade(multiple=4)
    assert factors_of(system) == [6, 3, 1] and multiple_of(system) == math.lcm(4 * 6, 2 * 3, 1)
    assert [is_upscaler(stage) for stage in stages_of(system)] == [False, True, True]
    assert factors_of(system.upscalers[0]) == [1] and multiple_of(system.upscalers[0]) == 2


def test_upscalers_have_steps_and_guidance_of_their_own() -> None:
    options = ImageOptions(steps=7, guidance_scale=5.0, guidance_rescale=0.4, source_noise=0.2)
    assert stage_options(options, 0) is options
    assert stage_options(options, 1) == replace(options, guidance_scale=1.0, guidance_rescale=0.0)
    own = replace(options, upscaler_steps=3, upscaler_guidance_scale=2.0)
    later = stage_options(own, 2)
    assert (later.steps, later.guidance_scale, later.guidance_rescale) == (3, 2.0, 0.4)


# ---- the bound


def exact_nats(image: Tensor, mean: Tensor, std: float) -> float:
    """Of 256 levels, pixels and channels independent: the mass of a normal distribution between their borders."""
    law, level = torch.distributions.Normal(mean.double(), std), image.double()
    low = torch.where(image == 0, 0.0, law.cdf((level - 0.5) / 127.5 - 1))
    high = torch.where(image == 255, 1.0, law.cdf((level + 0.5) / 127.5 - 1))
    return -float((high - low).log().sum())


def test_the_bound_of_an_exact_denoiser_is_nearly_its_likelihood() -> None:
    """With independent channels, whose likelihood is a product. In 100 levels, 0.1 nats of a number are noise."""
    variance, rng = 0.05, torch.Generator().manual_seed(3)
    x = (torch.randn(3, 3, 8, 8, generator=rng) * variance**0.5 + MEAN[:, None, None]).clamp(-1, 1)
    images = ((x + 1) * 127.5).round().to(torch.uint8)
    found = image_nats(system_of(8, Exact(8, covariance=variance * torch.eye(3))), images, [Cond()], levels=100)
    assert found.dtype == torch.float64 and found.shape == (3,)
    exact = sum(exact_nats(image, MEAN[:, None, None], variance**0.5) for image in images)
    assert -0.02 < (float(found.sum()) - exact) / (3 * 192) < 0.1


def test_the_bound_belongs_to_the_image_and_adds_up_over_stages() -> None:
    system, images = cascade(), random_images(3, 24, 24)
    conds = [Cond()] * 3
    nats = image_nats(system, images, conds, levels=2)
    sources = [model.sources[-1][0] for model in models_of(system)[1:]]
    assert torch.equal(sources[0], reduce_area(reduce_area(images, 3), 2)) and torch.equal(
        sources[1], reduce_area(images, 3)
    )
    for k in range(3):
        alone = image_nats(system, images[k : k + 1], conds, levels=2)
        torch.testing.assert_close(alone, nats[k : k + 1], rtol=1e-5, atol=1e-3)
    base = image_nats(replace(system, upscalers=()), reduce_area(images, 6), [Cond()], levels=2)
    shorter = replace(system, upscalers=system.upscalers[:1])
    two = image_nats(shorter, reduce_area(images, 3), conds[:2], levels=2)
    assert bool((base < two).all()) and bool((two < nats).all())


def test_pixels_that_are_known_are_not_counted_in_the_bound() -> None:
    system, images = system_of(8, Exact(8)), random_images(2, 8, 8)
    known = torch.zeros(2, 8, 8, dtype=torch.bool)
    known[:, :6] = True
    whole = image_nats(system, images, [Cond()], levels=4)
    part = image_nats(system, images, [Cond(known=known)], levels=4)
    assert bool((part < 0.5 * whole).all()) and bool((part > 0).all())


def test_a_bound_of_another_size_is_refused() -> None:
    with pytest.raises(ShapeError):
        image_nats(cascade(), random_images(1, 23, 23), [Cond()] * 3, levels=1)
