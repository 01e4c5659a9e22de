"""Sources are what their task says, and depend on nothing but pixels and their own random stream."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rasterformer.conditioning.edges import canny_edges
from rasterformer.conditioning.luma import luma
from rasterformer.conditioning.sources import make_source, masked_source, source_generators, source_of_picture
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.tasks import Colourise, Denoise, Edges, Inpaint, Paired, SuperResolution, Task, source_shape

MADE = [
    SuperResolution(4),
    Inpaint(),
    Colourise(),
    Edges(),
    Denoise((5.0, 50.0)),
    Denoise((0.0, 0.0), jpeg_quality=(5, 60)),
    Denoise((5.0, 50.0), jpeg_quality=(5, 60)),
]


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def streams(*numbers: int, seed: int = 0) -> list[torch.Generator]:
    return source_generators(seed, numbers, purpose="test source")


def pillow_array(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


@pytest.mark.parametrize("task", MADE)
def test_sources_have_the_shape_that_the_task_announces(task: Task) -> None:
    cond, shape = make_source(task, random_images(3, 3, 16, 16), streams(0, 1, 2)), source_shape(task, 16)
    assert cond.source is not None and cond.source.dtype == torch.uint8 and cond.label is None
    assert cond.source.shape == (3, shape.channels, shape.size, shape.size)
    assert (cond.known is not None) == shape.has_mask


@pytest.mark.parametrize("task", MADE)
def test_a_source_depends_on_its_image_and_its_stream_alone(task: Task) -> None:
    images = random_images(4, 3, 16, 16)
    together = make_source(task, images, streams(0, 1, 2, 3))
    for k in range(4):
        alone = make_source(task, images[k : k + 1], streams(k))
        assert alone.source is not None and together.source is not None
        assert torch.equal(alone.source[0], together.source[k])
        if alone.known is not None and together.known is not None:
            assert torch.equal(alone.known[0], together.known[k])


@pytest.mark.parametrize("task", [task for task in MADE if not isinstance(task, SuperResolution | Colourise | Edges)])
def test_another_stream_makes_another_source(task: Task) -> None:
    images = random_images(1, 3, 16, 16).expand(6, 3, 16, 16)
    source = make_source(task, images, streams(*range(6))).source
    assert source is not None and len({tuple(one.flatten().tolist()) for one in source}) >= 3


@pytest.mark.parametrize("task", MADE)
def test_no_images_have_no_sources(task: Task) -> None:
    source = make_source(task, random_images(0, 3, 16, 16), []).source
    assert source is not None and len(source) == 0


def test_a_reduced_source_holds_the_means_of_areas_rounded_down() -> None:
    images = random_images(2, 3, 8, 8)
    source = make_source(SuperResolution(4), images, streams(0, 1)).source
    expected = np.floor(images.numpy().astype(np.float64).reshape(2, 3, 2, 4, 2, 4).mean((3, 5)))
    assert source is not None and np.array_equal(source.numpy(), expected)


def test_an_inpainting_source_shows_known_pixels_and_no_others() -> None:
    images = random_images(20, 3, 16, 16).clamp(min=1)
    cond = make_source(Inpaint(), images, streams(*range(20)))
    assert cond.source is not None and cond.known is not None
    for k, row, col in np.ndindex(20, 16, 16):
        expected = images[k, :, row, col].tolist() if cond.known[k, row, col] else [0, 0, 0]
        assert cond.source[k, :, row, col].tolist() == expected


def test_kinds_of_mask_are_equally_frequent_and_only_those_of_the_task() -> None:
    """A half hides exactly half; one rectangle hides at most a quarter: the two can be told apart."""
    task = Inpaint(masks=("half", "rectangles"), most_rectangles=1)
    known = make_source(task, random_images(400, 3, 8, 8), streams(*range(400))).known
    assert known is not None
    counts = Counter(["half" if int(one.sum()) == 32 else "rectangles" for one in known])
    assert abs(counts["half"] - 200) < 4 * 10  # four standard deviations of a fair coin thrown 400 times
    only = make_source(Inpaint(masks=("half",)), random_images(50, 3, 8, 8), streams(*range(50))).known
    assert only is not None and {int(one.sum()) for one in only} == {32}


def test_luma_is_pillows() -> None:
    images = random_images(8, 3, 64, 64)
    images[0, :, :, :] = torch.arange(64, dtype=torch.uint8)  # greys too
    for image, grey in zip(images, luma(images), strict=True):
        assert np.array_equal(grey[0].numpy(), np.asarray(pillow_array(image).convert("L")))


def test_the_source_of_colourising_is_luma() -> None:
    images = random_images(2, 3, 8, 8)
    source = make_source(Colourise(), images, streams(0, 1)).source
    assert source is not None and torch.equal(source, luma(images))


def test_the_source_of_edges_is_canny_with_the_options_of_the_task() -> None:
    images = random_images(2, 3, 16, 16)
    source = make_source(Edges(1.5, 0.3, 0.6), images, streams(0, 1)).source
    assert source is not None and torch.equal(source, canny_edges(images, sigma=1.5, low=0.3, high=0.6))
    assert not torch.equal(source, canny_edges(images)) and set(source.unique().tolist()) == {0, 255}


@pytest.mark.parametrize("task", [Colourise(), Edges(1.0), SuperResolution(2), Inpaint(), Denoise(), Paired("photos")])
def test_a_picture_is_shown_to_the_model_as_its_task_says(task: Task) -> None:
    pictures = random_images(2, 3, 12, 20)
    shown = source_of_picture(task, pictures)
    match task:
        case Colourise():
            assert torch.equal(shown, luma(pictures))
        case Edges():
            assert torch.equal(shown, canny_edges(pictures, sigma=1.0))
        case _:
            assert torch.equal(shown, pictures)
    assert shown.shape[1] == source_shape(task, 16).channels


@pytest.mark.parametrize("task", [Colourise(), Edges(), Denoise()])
def test_a_picture_of_another_shape_is_refused(task: Task) -> None:
    with pytest.raises(ShapeError, match=r"uint8 \[1, 1, 8, 8\]"):
        source_of_picture(task, random_images(1, 1, 8, 8))


def test_gaussian_noise_has_the_standard_deviation_of_its_range() -> None:
    """Grey 128 is far enough from both ends. Rounding adds a variance of 1/12; four standard errors, 2 * 3 * 64 * 64 values."""
    images = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    source = make_source(Denoise((12.0, 12.0)), images, streams(0)).source
    assert source is not None
    noise, count = source.double() - 128, source.numel()
    assert abs(float(noise.mean())) < 4 * 12 / count**0.5
    assert abs(float(noise.var()) / (12**2 + 1 / 12) - 1) < 4 * (2 / count) ** 0.5


def test_the_standard_deviation_is_drawn_uniformly_for_each_image() -> None:
    images = torch.full((300, 3, 16, 16), 128, dtype=torch.uint8)
    source = make_source(Denoise((4.0, 24.0)), images, streams(*range(300))).source
    assert source is not None
    drawn = (source.double() - 128).flatten(1).std(1).sort().values
    places = torch.linspace(4, 24, 300)
    assert (
        float((drawn - places).abs().max()) < 3.0
    )  # Kolmogorov's bound is 1.63 / sqrt(300) * 20 = 1.9, plus its error


def test_noise_is_clipped_and_not_wrapped() -> None:
    for level in (0, 255):
        images = torch.full((1, 3, 16, 16), level, dtype=torch.uint8)
        source = make_source(Denoise((20.0, 20.0)), images, streams(0)).source
        assert source is not None and float((source.float() - level).abs().max()) < 120
        assert 0.3 < float((source == level).double().mean()) < 0.7


def test_a_fixed_jpeg_quality_gives_that_jpeg() -> None:
    image = random_images(1, 3, 16, 16)
    source = make_source(Denoise((0.0, 0.0), jpeg_quality=(30, 30)), image, streams(0)).source
    file = io.BytesIO()
    pillow_array(image[0]).save(file, "JPEG", quality=30)
    assert source is not None and np.array_equal(source[0].permute(1, 2, 0).numpy(), np.asarray(Image.open(file)))


def test_the_jpeg_is_made_of_the_noisy_image() -> None:
    """Noise comes first in the stream, so that both tasks add the same."""
    image = random_images(1, 3, 16, 16)
    noisy = make_source(Denoise((30.0, 30.0)), image, streams(0)).source
    both = make_source(Denoise((30.0, 30.0), jpeg_quality=(40, 40)), image, streams(0)).source
    assert noisy is not None and both is not None
    after = make_source(Denoise((0.0, 0.0), jpeg_quality=(40, 40)), noisy, streams(0)).source
    assert after is not None and torch.equal(both, after)


def test_every_quality_of_the_range_comes() -> None:
    image = random_images(1, 3, 16, 16)
    source = make_source(Denoise((0.0, 0.0), (20, 23)), image.expand(60, 3, 16, 16), streams(*range(60))).source
    fixed = [make_source(Denoise((0.0, 0.0), (q, q)), image, streams(0)).source for q in (20, 21, 22, 23)]
    assert source is not None
    as_keys = {tuple(one.flatten().tolist()) for one in source}
    assert as_keys == {tuple(one.flatten().tolist()) for one in fixed if one is not None} and len(as_keys) == 4


def test_streams_depend_on_seed_purpose_and_number_alone() -> None:
    def words(seed: int, numbers: list[int] | range, purpose: str) -> list[int]:
        generators = source_generators(seed, numbers, purpose=purpose)
        return [int(torch.randint(2**62, (), generator=one)) for one in generators]

    training = words(3, range(20), "training source")
    assert words(3, [7, 2], "training source") == [training[7], training[2]]
    others = words(4, range(20), "training source") + words(3, range(20), "held-out source")
    assert len(set(training + others)) == 60


def test_a_users_mask_makes_the_same_condition() -> None:
    images, known = random_images(2, 3, 3, 5), torch.zeros(2, 3, 5, dtype=torch.bool)
    known[0, 1, 4] = True
    cond = masked_source(images, known)
    expected = torch.zeros_like(images)
    expected[0, :, 1, 4] = images[0, :, 1, 4]
    assert cond.source is not None and torch.equal(cond.source, expected)
    assert cond.known is not None and torch.equal(cond.known, known)


@pytest.mark.parametrize(
    "known",
    [
        torch.zeros(2, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 8, 7, dtype=torch.bool),
        torch.zeros(1, 8, 8, dtype=torch.bool),
        torch.zeros(2, 1, 8, 8, dtype=torch.bool),
    ],
)
def test_a_mask_of_another_shape_or_dtype_is_refused(known: Tensor) -> None:
    received = f"known is {known.dtype} {list(known.shape)}".replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(ShapeError, match=received + r"\. It must be torch.bool \[2, 8, 8\]"):
        masked_source(random_images(2, 3, 8, 8), known)


def test_a_mask_that_leaves_nothing_to_draw_is_refused() -> None:
    known = torch.ones(3, 8, 8, dtype=torch.bool)
    known[0, 0, 0] = False
    with pytest.raises(ConfigError, match=r"mask of image 1 says that every pixel is known \(2 of 3 masks do\)"):
        masked_source(random_images(3, 3, 8, 8), known)


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 8, 8), random_images(1, 1, 8, 8), random_images(3, 8, 8)])
def test_images_of_another_shape_or_dtype_are_refused(images: Tensor) -> None:
    received = f"images are {images.dtype} {list(images.shape)}".replace("[", r"\[").replace("]", r"\]")
    for call in (
        lambda: make_source(Colourise(), images, streams(0)),
        lambda: masked_source(images, torch.zeros(1, 8, 8, dtype=torch.bool)),
        lambda: luma(images),
    ):
        with pytest.raises(ShapeError, match=received + r"\. They must be torch.uint8 \[B, 3, H, W\]"):
            call()


def test_too_few_generators_are_refused() -> None:
    with pytest.raises(ShapeError, match="rng has 1 generators for 2 images"):
        make_source(Colourise(), random_images(2, 3, 8, 8), streams(0))


def test_random_masks_are_refused_for_images_that_are_not_square() -> None:
    with pytest.raises(ShapeError, match="images are 8x12 pixels"):
        make_source(Inpaint(), random_images(1, 3, 8, 12), streams(0))


def test_a_factor_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ShapeError, match="factor = 3 does not divide images of 8x8"):
        make_source(SuperResolution(3), random_images(1, 3, 8, 8), streams(0))


def test_paired_sources_are_not_made() -> None:
    with pytest.raises(ConfigError, match="task = paired .* second folder"):
        make_source(Paired("photos"), random_images(1, 3, 8, 8), streams(0))
