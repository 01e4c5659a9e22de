"""Consistency and diversity against loops over every value."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

from rasterformer.errors import ConfigError, ShapeError
from rasterformer.evaluation.consistency import consistency, diversity, grey_levels, pairwise_ms_ssim
from rasterformer.evaluation.similarity import ms_ssim


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


SAMPLES = random_images(3, 2, 3, 8, 4)
SOURCES = random_images(3, 3, 4, 2, seed=1)


def test_consistency_by_area_is_its_definition() -> None:
    figures = consistency(SAMPLES, SOURCES, 2, "area")
    assert figures.dtype == torch.float64 and figures.shape == (3, 2)
    for i, j in itertools.product(range(3), range(2)):
        squares = []
        for c, row, column in itertools.product(range(3), range(4), range(2)):
            area = SAMPLES[i, j, c, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            mean = sum(area.flatten().tolist()) // 4
            squares.append(((mean - int(SOURCES[i, c, row, column])) / 255) ** 2)
        assert figures[i, j].item() == pytest.approx(sum(squares) / 24, rel=1e-12)


def test_consistency_by_bicubic_reduction_is_that_of_pillow() -> None:
    figures = consistency(SAMPLES, SOURCES, 2, "bicubic")
    for i, j in itertools.product(range(3), range(2)):
        picture = Image.fromarray(SAMPLES[i, j].permute(1, 2, 0).numpy()).resize((2, 4), Image.Resampling.BICUBIC)
        difference = np.asarray(picture, np.float64) - SOURCES[i].permute(1, 2, 0).numpy()
        assert figures[i, j].item() == pytest.approx(((difference / 255) ** 2).mean(), rel=1e-12)


def test_samples_that_reduce_to_the_source_are_consistent() -> None:
    enlarged = SOURCES.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert consistency(enlarged[:, None], SOURCES, 2, "area").max().item() == 0


def test_grey_levels_are_the_root_of_the_mean_square() -> None:
    flat = torch.full((1, 1, 3, 4, 4), 100, dtype=torch.uint8)
    darker = torch.full((1, 3, 2, 2), 90, dtype=torch.uint8)
    figures = consistency(flat, darker, 2, "bicubic")
    assert figures.item() == pytest.approx(100 / 255**2)
    assert grey_levels(figures) == pytest.approx(10)
    assert grey_levels(torch.tensor([0.0, 2 * (30 / 255) ** 2])) == pytest.approx(30)


def test_diversity_is_the_mean_rms_difference_of_pairs() -> None:
    samples = random_images(2, 3, 3, 4, 5)
    for i in range(2):
        values = samples[i].double()
        pairs = [math.sqrt(((values[a] - values[b]) ** 2).mean()) for a, b in ((0, 1), (0, 2), (1, 2))]
        assert diversity(samples)[i].item() == pytest.approx(sum(pairs) / 3, rel=1e-12)


def test_diversity_of_equal_samples_is_zero() -> None:
    assert diversity(SAMPLES[:, :1].repeat(1, 3, 1, 1, 1)).tolist() == [0, 0, 0]


def test_pairwise_ms_ssim_is_the_mean_over_pairs() -> None:
    samples = random_images(2, 3, 3, 6, 6)
    samples[0, 1] = samples[0, 0]
    expected = sum(ms_ssim(samples[:, a], samples[:, b]) for a, b in ((0, 1), (0, 2), (1, 2))) / 3
    torch.testing.assert_close(pairwise_ms_ssim(samples), expected)


@pytest.mark.parametrize(
    ("samples", "sources", "factor"),
    [
        (SAMPLES, SOURCES[:2], 2),
        (SAMPLES, SOURCES.float(), 2),
        (SAMPLES, SOURCES, 4),
        (SAMPLES, SOURCES[:, :1], 2),
    ],
)
def test_sources_that_do_not_fit_are_refused(samples: torch.Tensor, sources: torch.Tensor, factor: int) -> None:
    with pytest.raises(ShapeError, match=str(list(sources.shape)).replace("[", r"\[")):
        consistency(samples, sources, factor, "area")


def test_a_factor_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ShapeError, match="factor = 3"):
        consistency(SAMPLES, SOURCES, 3, "area")


@pytest.mark.parametrize("wrong", [SAMPLES[0], SAMPLES.float(), SAMPLES[:, :, :2], SAMPLES[:, :0]])
def test_wrong_samples_are_refused(wrong: torch.Tensor) -> None:
    pattern = str(list(wrong.shape)).replace("[", r"\[")
    for measure in (diversity, pairwise_ms_ssim):
        with pytest.raises(ShapeError, match=pattern):
            measure(wrong)
    with pytest.raises(ShapeError, match=pattern):
        consistency(wrong, SOURCES, 2, "area")


@pytest.mark.parametrize("measure", [diversity, pairwise_ms_ssim])
def test_one_sample_has_no_diversity(measure) -> None:
    with pytest.raises(ShapeError, match=r"\[3, 1, 3, 8, 4\].*n >= 2"):
        measure(SAMPLES[:, :1])


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(ConfigError, match="reduce = 'lanczos'"):
        consistency(SAMPLES, SOURCES, 2, "lanczos")
