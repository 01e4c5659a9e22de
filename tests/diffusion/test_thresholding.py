"""Thresholding against its definition by a loop over sorted values; guidance by its formula and bit for bit at 1."""

import math

import pytest
import torch
from torch import Tensor

from rasterformer.diffusion.gaussian import make_gaussian
from rasterformer.diffusion.thresholding import PERCENTILE, clip_dynamic, clip_static, guided
from rasterformer.errors import ConfigError, ShapeError


def images(count: int, *, scale: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return scale * torch.randn(count, 3, 5, 7, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def by_definition(x0: Tensor, percentile: float, cap: float | None) -> tuple[list[float], list[list[float]]]:
    """s and clipped values of each image: sort, walk to the percentile, interpolate between its neighbours."""
    scales, results = [], []
    for image in x0:
        values = image.flatten().tolist()
        ranked = sorted(abs(value) for value in values)
        place = percentile / 100 * (len(ranked) - 1)
        below = int(place)
        above = min(below + 1, len(ranked) - 1)
        s = ranked[below] + (place - below) * (ranked[above] - ranked[below])
        s = max(s, 1.0)
        s = s if cap is None else min(s, cap)
        scales.append(s)
        results.append([max(-s, min(s, value)) / s for value in values])
    return scales, results


@pytest.mark.parametrize("percentile", [50.0, 95.0, PERCENTILE, 99.9, 100.0])
@pytest.mark.parametrize("cap", [None, 1.0, 1.5])
def test_dynamic_thresholding_is_its_definition_image_by_image(percentile: float, cap: float | None) -> None:
    x0 = torch.cat([images(2, scale=2.0), images(1, scale=0.2, seed=1), images(1, scale=9.0, seed=2)])
    scales, expected = by_definition(x0, percentile, cap)
    got = clip_dynamic(x0, percentile=percentile, cap=cap)
    torch.testing.assert_close(got.flatten(1), torch.tensor(expected), rtol=0, atol=1e-6)
    assert scales[2] == 1 and (cap == 1 or scales[0] > 1)
    assert float(got.abs().max()) <= 1


def test_the_default_is_the_papers_percentile_without_a_cap() -> None:
    x0 = torch.arange(1, 202, dtype=torch.float64).view(1, 3, 67, 1)  # 200 steps from 1 to 201: 99.5 % is 200
    assert float(clip_dynamic(x0).max()) == 1
    torch.testing.assert_close(clip_dynamic(x0), x0.clamp(max=200) / 200, rtol=0, atol=1e-15)


def test_images_within_range_stay_bit_for_bit() -> None:
    x0 = images(2).tanh()
    assert torch.equal(clip_dynamic(x0), x0) and torch.equal(clip_static(x0), x0)


def test_a_cap_of_one_is_static_thresholding_which_is_a_clip() -> None:
    x0 = images(2, scale=3.0)
    assert torch.equal(clip_dynamic(x0, cap=1.0), clip_static(x0))
    expected = [max(-1.0, min(1.0, value)) for value in x0.flatten().tolist()]
    assert clip_static(x0).flatten().tolist() == expected


def test_an_image_does_not_depend_on_its_batch() -> None:
    x0 = images(3, scale=2.0)
    together = clip_dynamic(x0)
    assert all(torch.equal(clip_dynamic(x0[k : k + 1]), together[k : k + 1]) for k in range(3))


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_guidance_of_scale_one_is_the_condition_bit_for_bit(rescale: float) -> None:
    both = images(6)
    assert torch.equal(guided(both, 1.0, rescale=rescale), both[:3])


@pytest.mark.parametrize("scale", [0.0, 1.35, 8.0, -2.0])
def test_guidance_is_its_formula(scale: float) -> None:
    both = images(4, dtype=torch.float64)
    torch.testing.assert_close(guided(both, scale), both[2:] + scale * (both[:2] - both[2:]), rtol=0, atol=1e-13)


def test_guidance_of_scale_zero_is_the_null_bit_for_bit() -> None:
    both = images(4)
    assert torch.equal(guided(both, 0.0), both[2:])


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_guidance_of_outputs_is_that_of_the_images_they_stand_for(prediction: str) -> None:
    process, both, z = make_gaussian("cosine"), images(4, dtype=torch.float64), images(2, seed=1, dtype=torch.float64)
    t = torch.tensor([0.2, 0.8], dtype=torch.float64)
    first = process.to_x0(guided(both, 5.0), z, t, prediction)  # type: ignore[arg-type]
    x0 = process.to_x0(both, torch.cat([z, z]), torch.cat([t, t]), prediction)  # type: ignore[arg-type]
    torch.testing.assert_close(first, guided(x0, 5.0), rtol=0, atol=1e-11)


@pytest.mark.parametrize("rescale", [0.25, 1.0])
def test_rescaled_guidance_is_its_definition_image_by_image(rescale: float) -> None:
    """Lin et al. 2023, equations 15 and 16, by loops."""
    both = images(4, dtype=torch.float64)
    got = guided(both, 6.0, rescale=rescale)

    def deviation(image: Tensor) -> float:
        values = image.flatten().tolist()
        mean = sum(values) / len(values)
        return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))

    for k in range(2):
        plain = both[2 + k] + 6.0 * (both[k] - both[2 + k])
        factor = rescale * deviation(both[k]) / deviation(plain) + 1 - rescale
        assert factor < 0.8
        torch.testing.assert_close(got[k], factor * plain, rtol=1e-6, atol=0)  # deviations are float32
    if rescale == 1:
        assert deviation(got[0]) == pytest.approx(deviation(both[0]), rel=1e-6)


def test_an_image_of_one_colour_is_not_rescaled() -> None:
    both = torch.full((2, 3, 4, 4), 0.5)
    both[1] = 0.25
    assert torch.equal(guided(both, 3.0, rescale=1.0), torch.full((1, 3, 4, 4), 1.0))


def test_arguments_out_of_range_and_tensors_that_do_not_fit_are_refused() -> None:
    x0 = images(2)
    for percentile in (0.0, 100.5):
        with pytest.raises(ConfigError, match=rf"percentile = {percentile} must lie in \(0, 100\]"):
            clip_dynamic(x0, percentile=percentile)
    with pytest.raises(ConfigError, match=r"cap = 0\.9 must be at least 1"):
        clip_dynamic(x0, cap=0.9)
    with pytest.raises(ConfigError, match="scale = inf must be a finite number"):
        guided(x0, math.inf)
    with pytest.raises(ConfigError, match=r"rescale = 1\.5 must lie in 0\.\.1"):
        guided(x0, 2.0, rescale=1.5)
    for bad in (x0[0], x0[None], x0.to(torch.uint8)):
        with pytest.raises(ShapeError, match=r"x0 is torch\.\w+ \[.*\]; expected floats \[B, C, H, W\]"):
            clip_dynamic(bad)
        with pytest.raises(ShapeError, match=r"both is torch\.\w+ \[.*\]; expected floats \[B, C, H, W\]"):
            guided(bad, 2.0)
    with pytest.raises(ShapeError, match=r"both has 3 rows\. Pass B rows with the condition"):
        guided(images(3), 2.0)
