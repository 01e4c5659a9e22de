"""Options of drawing pixels: what is refused, with what was received, and what is not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from rasterformer.diffusion.image_options import ImageOptions, check_image_options
from rasterformer.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "dim"}, "sampler = 'dim' is unknown.*ddim"),
        ({"threshold": "dinamic"}, "threshold = 'dinamic' is unknown.*dynamic"),
        ({"steps": 0}, "steps = 0 is too few"),
        ({"upscaler_steps": -1}, "upscaler_steps = -1 is too few"),
        ({"variance": 1.5, "sampler": "ancestral"}, r"variance = 1\.5 must lie in 0\.\.1"),
        ({"variance": 0.5, "sampler": "dpmpp_2m"}, r"variance = 0\.5 is read by the ancestral sampler only, not by dpmpp_2m"),
        ({"guidance_scale": math.inf}, "guidance_scale = inf must be a finite number"),
        ({"upscaler_guidance_scale": math.nan}, "upscaler_guidance_scale = nan must be a finite number"),
        ({"guidance_rescale": 1.2, "guidance_scale": 3.0}, r"guidance_rescale = 1\.2 must lie in 0\.\.1"),
        ({"guidance_rescale": 0.5}, "a guidance scale of 1 adds nothing"),
        ({"threshold": "static", "percentile": 90.0}, "percentile and threshold_cap are of threshold = 'dynamic'"),
        ({"threshold": "none", "threshold_cap": 2.0}, "are of threshold = 'dynamic', not of 'none'"),
        ({"percentile": 0.0}, r"percentile = 0\.0 must lie in \(0, 100\]"),
        ({"percentile": 100.1}, r"percentile = 100\.1 must lie"),
        ({"threshold_cap": 0.9}, r"threshold_cap = 0\.9 must be at least 1"),
        ({"source_noise": 1.1}, r"source_noise = 1\.1 must lie in 0\.\.1"),
        ({"source_noise": -0.1}, r"source_noise = -0\.1 must lie"),
        ({"resamplings": 0}, "resamplings = 0 must be at least 1"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_options_that_describe_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_image_options(replace(ImageOptions(), **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps": 1, "upscaler_steps": 1, "resamplings": 5},
        {"sampler": "ancestral", "variance": 1.0},
        {"guidance_scale": -2.0, "guidance_rescale": 1.0},
        {"percentile": 100.0, "threshold_cap": 1.0},
        {"source_noise": 0.0},
        {"source_noise": 1.0, "threshold": "none"},
    ],
    ids=str,
)
def test_the_ends_of_every_range_are_allowed(changes: dict[str, Any]) -> None:
    check_image_options(replace(ImageOptions(), **changes))


def test_steps_have_a_default() -> None:
    assert ImageOptions().num_steps == 50 and ImageOptions(steps=7).num_steps == 7
