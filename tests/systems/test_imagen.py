"""Imagen: its loss by the formulas and in the mean over times, crops, sources as they are seen, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from rasterformer.autoregressive.noise import image_generators
from rasterformer.codecs.continuous import to_numbers
from rasterformer.conditioning.resize import enlarge
from rasterformer.diffusion.image_denoiser import Seen
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Cond, SampleOptions
from rasterformer.recipe import TextConfig
from rasterformer.systems.imagen.config import Config
from rasterformer.systems.imagen.model import Imagen, build
from rasterformer.tasks import SourceShape

SIDE, SIGMA_DATA = 8, 0.5
TINY = Config(denoiser="transformer", width=16, depth=1, head_dim=8, mlp_width=8, text_width=8)
STATES = TextConfig(dim=6, length=4)
SMALLER, MASKED, GREY = SourceShape(3, 4, False), SourceShape(3, SIDE, True), SourceShape(1, SIDE, False)
KINDS: dict[str, dict[str, Any]] = {
    "eps": {"prediction": "eps"},
    "x0": {"prediction": "x0", "schedule": "linear"},
    "v": {"prediction": "v", "log_snr_shift": -1.0},
    "eps, min_snr": {"prediction": "eps", "weighting": "min_snr"},
    "x0, min_snr": {"prediction": "x0", "weighting": "min_snr"},
    "v, min_snr": {"prediction": "v", "schedule": "linear", "weighting": "min_snr"},
    "edm": {"prediction": "edm", "schedule": "edm"},
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(batch: int = 4, side: int = SIDE, *, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (batch, channels, side, side), generator=seeded(), dtype=torch.uint8)


def random_text(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, STATES.dim, generator=seeded(3))


def random_known(batch: int = 4) -> Tensor:
    return torch.rand(batch, SIDE, SIDE, generator=seeded(4)) < 0.4


def make(kind: type[Imagen] = Imagen, config: Config = TINY, **parts: Any) -> Imagen:
    """With weights that matter, in evaluation mode."""
    torch.manual_seed(0)
    model = kind(config, SIDE, **parts)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


@dataclass
class Asked:
    """What a network was asked."""

    z: Tensor
    t: Tensor
    cond: Cond
    seen: Seen | None


@dataclass(eq=False)
class Record:
    """All that a network was asked."""

    asked: list[Asked] = field(default_factory=list)


class Scripted(Imagen):
    """Says nothing, or a hundred at known pixels, and remembers what it was asked."""

    def forward(self, z: Tensor, t: Tensor, cond: Cond, seen: Seen | None) -> Tensor:
        self.__dict__.setdefault("record", Record()).asked.append(Asked(z, t, cond, seen))
        return torch.zeros_like(z) if cond.known is None else 100.0 * cond.known[:, None].expand_as(z)


def asked_of(model: Imagen) -> Asked:
    """The last time that it was asked."""
    return model.__dict__["record"].asked[-1]


# the loss


def log_snr(config: Config, t: float) -> float:
    """Of the two schedules, by their formulas."""
    if config.schedule == "cosine":
        angle = (t + 0.008) / 1.008 * math.pi / 2
        return math.log(math.tan(angle) ** -2 + math.exp(-15)) + config.log_snr_shift
    return -math.log(math.expm1(1e-4 + 10 * t * t)) + config.log_snr_shift


def weight_of(config: Config, t: float) -> float:
    """Of the squared error of what is said: 1, or min(SNR, 5) of the error of x0 (Hang et al. 2023)."""
    if config.weighting == "plain":
        return 1.0
    snr = math.exp(log_snr(config, t))
    # an error e of eps is one of sigma / alpha e of x0, and an error e of v is one of sigma e
    return min(snr, 5.0) * {"eps": 1 / snr, "x0": 1.0, "v": 1 / (1 + snr)}[config.prediction]


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_the_loss_is_that_of_the_formulas(name: str) -> None:
    """With the same random numbers: one offset of all times, noise, and nothing that is hidden."""
    config = replace(TINY, **KINDS[name])
    model, x, count = make(config=config), to_numbers(random_images()), 4
    rng = seeded(7)
    torch.randint(2**62, (), generator=rng)  # of the noise on sources
    offset = float(torch.rand((), generator=rng))
    noise = torch.randn(x.shape, generator=rng)
    expected = 0.0
    for k in range(count):
        place, eps = (k / count + offset) % 1, noise[k : k + 1]
        image = x[k : k + 1]
        if config.prediction == "edm":
            sigma = math.exp(-1.2 + 1.2 * NormalDist().inv_cdf(place))
            noisy, scale = image + sigma * eps, math.sqrt(1 + sigma**2)  # y = z / alpha, alpha = 1 / scale
            t = model.process.time(torch.tensor([-2 * math.log(sigma)], dtype=torch.float64)).float()
            said = model(noisy / scale, t, Cond(), None)
            both = sigma**2 + SIGMA_DATA**2
            denoised = SIGMA_DATA**2 / both * noisy + sigma * SIGMA_DATA / math.sqrt(both) * said
            error = (denoised - image).square().mean() * both / (sigma * SIGMA_DATA) ** 2
        else:
            snr = math.exp(log_snr(config, place))
            alpha, sigma = math.sqrt(snr / (1 + snr)), math.sqrt(1 / (1 + snr))
            said = model(alpha * image + sigma * eps, torch.tensor([place]), Cond(), None)
            target = {"eps": eps, "x0": image, "v": alpha * eps - sigma * image}[config.prediction]
            error = weight_of(config, place) * (said - target).square().mean()
        expected += float(error) / count
    loss = model.loss(x, Cond(), rng=seeded(7))
    assert float(loss.total) == pytest.approx(expected, rel=1e-4)
    assert loss.bound == "none" and bool(loss.nats.isnan().all()) and loss.dims.tolist() == [3 * SIDE * SIDE] * count


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_the_mean_of_the_loss_is_its_integral_over_all_times(name: str) -> None:
    """Of a network that says 0 the error is the target's square, whose mean over the noise is known."""
    config = replace(TINY, **KINDS[name])
    model, x = make(Scripted, config), torch.full((64, 3, SIDE, SIDE), 0.6)
    found = sum(float(model.loss(x, Cond(), rng=seeded(seed)).total) for seed in range(20)) / 20
    expected, points = 0.0, 20_000
    for k in range(points):
        place, square = (k + 0.5) / points, 0.6**2
        if config.prediction == "edm":
            sigma = math.exp(-1.2 + 1.2 * NormalDist().inv_cdf(place))
            mean = (sigma**2 * square + SIGMA_DATA**4) / (SIGMA_DATA**2 * (sigma**2 + SIGMA_DATA**2))
        else:
            snr = math.exp(log_snr(config, place))
            of_v = (snr + square) / (1 + snr)
            mean = weight_of(config, place) * {"eps": 1.0, "x0": square, "v": of_v}[config.prediction]
        expected += mean / points
    assert found == pytest.approx(expected, rel=0.02)


def test_times_are_evenly_spaced_and_begin_anywhere() -> None:
    model, x = make(Scripted), to_numbers(random_images())
    offsets = []
    for seed in range(30):
        model.loss(x, Cond(), rng=seeded(seed))
        t = asked_of(model).t.sort().values
        assert torch.allclose(t.diff(), torch.full((3,), 0.25), atol=1e-6) and 0 <= float(t[0]) < 0.25
        offsets.append(float(t[0]))
    assert min(offsets) < 0.03 and max(offsets) > 0.22


@torch.no_grad()
def test_known_pixels_are_not_counted() -> None:
    """The network says a hundred at all of them, and 0 elsewhere."""
    model, images, known = make(Scripted, source=MASKED), random_images(), random_known()
    x = to_numbers(images)
    loss = model.loss(x, Cond(source=images * known[:, None], known=known), rng=seeded(7))
    rng = seeded(7)
    torch.randint(2**62, (), generator=rng)
    offset, noise = float(torch.rand((), generator=rng)), torch.randn(x.shape, generator=rng)
    expected = 0.0
    for k in range(4):
        snr = math.exp(log_snr(TINY, (k / 4 + offset) % 1))
        v = math.sqrt(snr / (1 + snr)) * noise[k] - math.sqrt(1 / (1 + snr)) * x[k]
        expected += float(v[:, ~known[k]].square().mean()) / 4
    assert float(loss.total) == pytest.approx(expected, rel=1e-4)
    assert loss.dims.tolist() == [3 * int((~one).sum()) for one in known]


def test_a_step_of_training_hides_as_many_conditions_as_the_recipe_says_and_none_elsewhere() -> None:
    config = replace(TINY, drop_condition_prob=0.3)
    model, x = make(Scripted, config, text=STATES), to_numbers(random_images())
    cond = Cond(text=random_text(), dropped=torch.tensor([True, False, False, False]))
    model.loss(x, cond, rng=seeded())
    assert asked_of(model).cond.dropped is cond.dropped, "in evaluation nothing more is hidden"
    model.train()
    hidden = torch.zeros(4)
    for seed in range(200):
        model.loss(x, cond, rng=seeded(seed))
        dropped = asked_of(model).cond.dropped
        assert dropped is not None
        hidden += dropped
    assert int(hidden[0]) == 200, "what was hidden before stays so"
    share = float(hidden[1:].sum()) / 600
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 600)


def test_a_model_without_a_condition_hides_none() -> None:
    model = make(Scripted).train()
    model.loss(to_numbers(random_images()), Cond(), rng=seeded())
    assert asked_of(model).cond.dropped is None


# crops


@torch.no_grad()
@pytest.mark.parametrize("shape", [MASKED, SMALLER, GREY], ids=["mask", "smaller", "grey"])
def test_image_source_and_mask_are_cropped_alike_and_each_image_elsewhere(shape: SourceShape) -> None:
    config, part = replace(TINY, crop=4), 4
    model, images, known = make(Scripted, config, source=shape), random_images(8), None
    cond = Cond(source=random_images(8, shape.size, channels=shape.channels))
    if shape.has_mask:
        known = random_known(8)
        cond = Cond(source=images * known[:, None], known=known)
    x = to_numbers(images)
    loss = model.loss(x, cond, rng=seeded(5))
    rng = seeded(5)
    torch.randint(2**62, (), generator=rng)
    rows, cols = (torch.randint(SIDE - part + 1, (8,), generator=rng).tolist() for _ in range(2))
    offset, noise = float(torch.rand((), generator=rng)), torch.randn(8, 3, part, part, generator=rng)
    assert len(set(zip(rows, cols, strict=True))) > 3
    asked, whole = asked_of(model), model.see(cond, (SIDE, SIDE), level=None, rng=image_generators(0, 8))
    assert whole is not None and asked.seen is not None
    for k, (row, col) in enumerate(zip(rows, cols, strict=True)):
        here = (..., slice(row, row + part), slice(col, col + part))
        snr = math.exp(log_snr(config, (k / 8 + offset) % 1))
        z = math.sqrt(snr / (1 + snr)) * x[k][here] + math.sqrt(1 / (1 + snr)) * noise[k]
        torch.testing.assert_close(asked.z[k], z, rtol=1e-4, atol=1e-4)
        assert torch.equal(asked.seen.image[k], whole.image[k][here])
        if known is not None:
            assert asked.cond.known is not None and torch.equal(asked.cond.known[k], known[k][here])
            assert int(loss.dims[k]) == 3 * int((~known[k][here]).sum())
    last = {(row, col) for row, col in zip(rows, cols, strict=True)}
    assert max(max(pair) for pair in last) == SIDE - part, "the last place occurs, too"


# sources


def noised(**changes: Any) -> Imagen:
    return make(Scripted, replace(TINY, **{"source_noise": 1.0} | changes), source=SMALLER)


@torch.no_grad()
def test_training_sees_sources_as_drawing_does_with_a_level_of_its_own_for_each_image() -> None:
    """The same source, level and generators give the same numbers, bit for bit."""
    model, source = noised(), random_images(side=4)
    model.loss(to_numbers(random_images()), Cond(source=source), rng=seeded(3))
    rng = seeded(3)
    level = torch.rand(4, generator=rng)
    streams = image_generators(int(torch.randint(2**62, (), generator=rng)), 4)
    expected, found = model.see(Cond(source=source), (SIDE, SIDE), level=level, rng=streams), asked_of(model).seen
    assert expected is not None and found is not None and found.log_snr is not None and expected.log_snr is not None
    assert torch.equal(found.image, expected.image) and torch.equal(found.log_snr, expected.log_snr)
    of_linear = [-math.log(math.expm1(1e-4 + 10 * float(t) ** 2)) for t in level]
    assert found.log_snr.tolist() == pytest.approx(of_linear, rel=1e-4) and len(set(of_linear)) == 4


@torch.no_grad()
@pytest.mark.parametrize("most", [1.0, 0.4])
def test_levels_of_training_are_uniform_up_to_the_most(most: float) -> None:
    model, x, source = noised(source_noise=most), to_numbers(random_images()), random_images(side=4)
    levels = []
    for seed in range(100):
        model.loss(x, Cond(source=source), rng=seeded(seed))
        seen = asked_of(model).seen
        assert seen is not None and seen.log_snr is not None and model.source_process is not None
        levels.append(model.source_process.time(seen.log_snr))
    counts = torch.histc(torch.cat(levels), bins=4, min=0, max=most)
    assert int(counts.sum()) == 400
    assert float(((counts - 100).square() / 100).sum()) < 21.1  # chi-square, 3 degrees of freedom, p > 1e-4


@torch.no_grad()
def test_noise_on_a_source_is_its_formula_and_belongs_to_the_image() -> None:
    model, source = noised(), torch.randint(0, 256, (4, 3, 4, 6), generator=seeded(), dtype=torch.uint8)
    level = torch.tensor([0.0, 0.1, 0.5, 1.0])
    seen = model.see(Cond(source=source), (SIDE, 12), level=level, rng=image_generators(1, 4))
    clean = make(source=SMALLER).see(Cond(source=source), (SIDE, 12), level=None, rng=image_generators(1, 4))
    assert seen is not None and clean is not None and clean.log_snr is None and seen.image.shape == (4, 3, SIDE, 12)
    for k, one in enumerate(image_generators(1, 4)):
        snr = math.exp(-math.log(math.expm1(1e-4 + 10 * float(level[k]) ** 2)))
        noise = torch.randn(3, SIDE, 12, generator=one)
        expected = math.sqrt(snr / (1 + snr)) * clean.image[k] + math.sqrt(1 / (1 + snr)) * noise
        torch.testing.assert_close(seen.image[k], expected, rtol=1e-4, atol=1e-4)
        alone = model.see(
            Cond(source=source[k : k + 1]), (SIDE, 12), level=level[k : k + 1], rng=image_generators(1, 1, first=k)
        )
        assert alone is not None and torch.equal(alone.image[0], seen.image[k])


@torch.no_grad()
def test_an_enlarged_source_has_no_steps() -> None:
    """A ramp stays one, with steps a quarter as high, and a flat colour stays flat, at a size that is not square."""
    model = make(source=SourceShape(3, SIDE // 4, False))
    ramp = (torch.arange(4) * 40 + 20).to(torch.uint8)
    flat = torch.full((1, 3, 4, 2), 77, dtype=torch.uint8)
    across, down = ramp.expand(1, 3, 4, 4).contiguous(), ramp[:, None].expand(1, 3, 4, 4).contiguous()
    for source, side in ((across, 3), (down, 2)):
        seen = model.see(Cond(source=source), (16, 16), level=None, rng=[seeded()])
        assert seen is not None
        steps = seen.image.diff(dim=side) * 127.5
        assert float(steps.min()) > -1e-3 and float(steps.max()) < 11.5  # 10 a pixel; nearest pixels have steps of 40
        assert float(seen.image.diff(dim=5 - side).abs().max()) == 0
    seen = model.see(Cond(source=flat), (16, 8), level=None, rng=[seeded()])
    assert seen is not None and torch.equal(seen.image, to_numbers(torch.full((1, 3, 16, 8), 77).to(torch.uint8)))


@torch.no_grad()
def test_a_masked_source_shows_what_is_known_and_where_that_is() -> None:
    model, images, known = make(source=MASKED), random_images(), random_known()
    seen = model.see(Cond(source=images, known=known), (SIDE, SIDE), level=None, rng=image_generators(0, 4))
    assert seen is not None and seen.image.shape == (4, 4, SIDE, SIDE)
    assert torch.equal(seen.image[:, 3], known.float())
    shown = seen.image[:, :3].permute(0, 2, 3, 1)
    assert torch.equal(shown[known], to_numbers(images).permute(0, 2, 3, 1)[known]) and not shown[~known].any()


@torch.no_grad()
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_noise_is_put_on_the_part_of_a_source_that_a_step_looks_at(schedule: Literal["cosine", "linear"]) -> None:
    """The source enlarged and cropped, then as much noise as the part has pixels, from each image's own generator."""
    model, source, part = noised(crop=4, schedule=schedule), random_images(6, 4), 4
    model.loss(to_numbers(random_images(6)), Cond(source=source), rng=seeded(3))
    rng = seeded(3)
    level = torch.rand(6, generator=rng)
    streams = image_generators(int(torch.randint(2**62, (), generator=rng)), 6)
    rows, cols = (torch.randint(SIDE - part + 1, (6,), generator=rng).tolist() for _ in range(2))
    clean, found = to_numbers(enlarge(source, 2, "bilinear")), asked_of(model).seen
    assert found is not None and found.log_snr is not None and len(set(zip(rows, cols, strict=True))) > 3
    for k, (row, col) in enumerate(zip(rows, cols, strict=True)):
        snr = 1 / math.expm1(1e-4 + 10 * float(level[k]) ** 2)
        noise = torch.randn(3, part, part, generator=streams[k])
        shown = clean[k, :, row : row + part, col : col + part]
        expected = math.sqrt(snr / (1 + snr)) * shown + math.sqrt(1 / (1 + snr)) * noise
        torch.testing.assert_close(found.image[k], expected, rtol=1e-4, atol=1e-4)
        assert float(found.log_snr[k]) == pytest.approx(math.log(snr), rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("shape", "given", "size", "wanted"),
    [
        (SMALLER, (8, 8), (8, 8), "2 times .* 4x4"),
        (SMALLER, (4, 4), (8, 12), "2 times .* 4x6"),
        (SMALLER, (4, 4), (16, 16), "2 times .* 8x8"),
        (SMALLER, (4, 3), (8, 7), "2 times .* 4x3.5"),
        (GREY, (4, 4), (8, 8), "1 times .* 8x8"),
    ],
    ids=str,
)
def test_a_source_of_another_size_is_refused(
    shape: SourceShape, given: tuple[int, int], size: tuple[int, int], wanted: str
) -> None:
    """A model that enlarges and is given the image itself would be told all that it is to draw."""
    model, cond = make(source=shape), Cond(source=torch.zeros(1, shape.channels, *given, dtype=torch.uint8))
    sizes = rf"source is {given[0]}x{given[1]} pixels, and the image {size[0]}x{size[1]}\..*{wanted}\."
    with pytest.raises(ShapeError, match=sizes):
        model.see(cond, size, level=None, rng=[seeded()])
    if size == (SIDE, SIDE):
        with pytest.raises(ShapeError, match=sizes):
            model.loss(torch.zeros(1, 3, *size), cond, rng=seeded())


@torch.no_grad()
def test_what_the_encoder_makes_of_a_source_is_made_once_and_is_what_a_pass_would_make() -> None:
    model = make(config=replace(TINY, source_enters="both"), source=SMALLER)
    cond = Cond(source=random_images(2, 4))
    seen = model.see(cond, (SIDE, SIDE), level=None, rng=image_generators(0, 2))
    assert seen is not None and seen.encoded is not None and model.encoder is not None
    z, t = torch.randn(2, 3, SIDE, SIDE, generator=seeded(1)), torch.tensor([0.2, 0.7])
    assert torch.equal(model(z, t, cond, seen), model(z, t, cond, Seen(seen.image, None)))
    other = seen._replace(encoded=seen.encoded.flip(0))
    assert float((model(z, t, cond, other) - model(z, t, cond, seen)).abs().max()) > 1e-4


def test_the_encoder_of_sources_learns() -> None:
    model = make(config=replace(TINY, source_enters="both"), source=SMALLER).train()
    model.loss(to_numbers(random_images()), Cond(source=random_images(side=4)), rng=seeded()).total.backward()
    assert model.encoder is not None
    assert all(weight.grad is not None and weight.grad.any() for weight in model.encoder.parameters())


SOURCE = Cond(source=random_images(1, 4))


@pytest.mark.parametrize(
    ("parts", "cond", "level", "message"),
    [
        ({}, SOURCE, None, "source was given, but this model makes images from nothing"),
        ({"source": SMALLER}, Cond(), None, "source is missing"),
        ({"source": SMALLER}, SOURCE, torch.ones(1), "has no use for a level of the noise"),
        ({"source": SMALLER, "config": replace(TINY, source_noise=1.0)}, SOURCE, None, "needs a level of the noise"),
        ({"source": MASKED}, Cond(source=random_images(1)), None, "known is missing"),
    ],
    ids=["given", "missing", "level", "no level", "no mask"],
)
def test_sources_that_do_not_fit_are_refused(
    parts: dict[str, Any], cond: Cond, level: Tensor | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**parts).see(cond, (SIDE, SIDE), level=level, rng=[seeded()])


def test_a_model_without_a_source_sees_nothing() -> None:
    assert make().see(Cond(), (SIDE, SIDE), level=None, rng=[seeded()]) is None


# the network's condition

ONE = torch.zeros(1, 3, SIDE, SIDE)
TIME = torch.tensor([0.5])
SEEN = Seen(ONE, None)
LABELLED: dict[str, Any] = {"num_classes": 3}


@torch.no_grad()
@pytest.mark.parametrize(
    ("parts", "cond", "seen", "message"),
    [
        ({}, Cond(codes=torch.zeros(1, 4).long()), None, "codes were given, but this system takes classes, texts"),
        ({}, Cond(), SEEN, "seen was given, but this model makes images from nothing"),
        ({"source": SMALLER}, Cond(), None, "seen is missing"),
        ({}, Cond(label=torch.zeros(1).long()), None, "label was given, but this model was trained without classes"),
        (LABELLED, Cond(), None, "label is missing: this model was trained with 3 classes"),
        (LABELLED, Cond(label=torch.tensor([3])), None, r"label = \[3\] must have one class index in 0\.\.2"),
        ({}, Cond(text=random_text(1)), None, "text was given, but this model was trained without texts"),
        ({"text": STATES}, Cond(), None, "text is missing"),
        ({"text": STATES}, Cond(text=random_text(2)), None, "text has 2 entries for 1 images"),
        ({"text": STATES}, Cond(text_tokens=torch.zeros(1, 3).long()), None, "text was given as bytes"),
        ({}, Cond(dropped=torch.tensor([True])), None, "guidance needs a model of classes or texts, and this one has"),
        (
            {**LABELLED, "config": replace(TINY, drop_condition_prob=0.0)},
            Cond(label=torch.zeros(1).long(), dropped=torch.tensor([True])),
            None,
            "has seen images without their condition, and this one has not",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_conditions_that_do_not_fit_are_refused(
    parts: dict[str, Any], cond: Cond, seen: Seen | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**parts)(ONE, TIME, cond, seen)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 3, SIDE, 7), (1, 4, SIDE, SIDE), (3, SIDE, SIDE)], ids=str)
def test_images_of_another_shape_are_refused(shape: Sequence[int]) -> None:
    with pytest.raises(ShapeError):
        make()(torch.zeros(shape), TIME, Cond(), None)


@torch.no_grad()
def test_other_sizes_than_those_of_training_are_drawn() -> None:
    model = make()
    wide = torch.randn(1, 3, 6, 14, generator=seeded())
    said = model(wide, TIME, Cond(), None)
    assert said.shape == wide.shape and float(said.std()) > 0
    assert float((model(wide + (torch.arange(14) == 13), TIME, Cond(), None) - said)[..., 0].abs().max()) > 0


def test_options_for_symbols_are_refused_by_its_own_sampler() -> None:
    with pytest.raises(ConfigError, match="temperature, top_k and top_p are for models that draw symbols"):
        make().sample(Cond(), 1, options=SampleOptions(temperature=0.5), rng=[seeded()])


def test_its_own_sampler_tells_its_steps_and_shows_sources_nearly_as_they_are() -> None:
    model, told = noised(), list[tuple[int, int]]()
    source = random_images(1, 4)
    drawn = model.sample(
        Cond(source=source),
        1,
        options=SampleOptions(),
        rng=[seeded()],
        on_step=lambda done, steps: told.append((done, steps)),
    )
    assert drawn.shape == (1, 3, SIDE, SIDE) and told == [(k, 50) for k in range(1, 51)]
    clean = make(source=SMALLER).see(Cond(source=source), (SIDE, SIDE), level=None, rng=[seeded()])
    seen = asked_of(model).seen
    assert clean is not None and seen is not None and 0 < float((seen.image - clean.image).abs().max()) < 0.05


def test_build_makes_the_codec_of_the_same_size_and_fresh_weights() -> None:
    torch.manual_seed(3)
    codec, model = build(TINY, image_size=SIDE, num_classes=2, text=STATES)
    assert codec.image_shape == model.image_shape == (3, SIDE, SIDE) and model.num_classes == 2
    torch.manual_seed(3)
    again = build(TINY, image_size=SIDE, num_classes=2, text=STATES)[1].state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.state_dict().items())
    assert not model(ONE, TIME, Cond(label=torch.tensor([1]), text=random_text(1)), None).any(), "it begins by saying 0"
