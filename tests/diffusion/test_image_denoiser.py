"""Guided predictions: what the network is asked, their formula by separate calls, and thresholds after all of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rasterformer.diffusion.image_denoiser import Seen, predictor
from rasterformer.diffusion.image_options import ImageOptions
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Cond
from rasterformer.recipe import TextConfig
from rasterformer.systems.imagen.config import Config
from rasterformer.systems.imagen.model import Imagen
from rasterformer.tasks import SourceShape

SIDE, COUNT = 4, 3
STATES, SOURCE = TextConfig(dim=6, length=5), SourceShape(3, SIDE, False)
PLAIN = ImageOptions(threshold="none")
PREDICTIONS: dict[str, dict[str, Any]] = {
    "eps": {"prediction": "eps"},
    "v": {"prediction": "v"},
    "edm": {"prediction": "edm", "schedule": "edm"},
}


class Counting(Imagen):
    """Remembers how many rows it was asked for, each time."""

    def forward(self, z: Tensor, t: Tensor, cond: Cond, seen: Seen | None) -> Tensor:
        self.__dict__.setdefault("rows", []).append(len(z))
        return super().forward(z, t, cond, seen)


def make(source: SourceShape | None = None, *, text: TextConfig | None = STATES, **changes: Any) -> Counting:
    """In float64, with weights that matter."""
    config = Config(
        **{"denoiser": "transformer", "width": 16, "depth": 1, "head_dim": 8, "mlp_width": 8, "text_width": 8} | changes
    )
    torch.manual_seed(0)
    model = Counting(config, SIDE, source=source, text=text).double()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return model.eval()


def text_of(length: int, seed: int = 3, *, known: int | None = None) -> Cond:
    """COUNT texts of so many tokens, of which the first are known."""
    states = torch.randn(COUNT, length, STATES.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Cond(text=states, text_known=(torch.arange(length) < (known or length)).expand(COUNT, -1))


RNG = torch.Generator().manual_seed(1)
Z = torch.randn(COUNT, 3, SIDE, SIDE, generator=RNG, dtype=torch.float64)
T = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
SEEN = Seen(torch.randn(COUNT, 3, SIDE, SIDE, generator=RNG, dtype=torch.float64), None)
NONE = torch.ones(COUNT, dtype=torch.bool)


@torch.no_grad()
@pytest.mark.parametrize("name", PREDICTIONS)
def test_without_guidance_the_network_is_asked_once_and_answers_bit_for_bit(name: str) -> None:
    model, cond = make(**PREDICTIONS[name]), text_of(3)
    found = predictor(model, cond, None, PLAIN)(Z, T)
    assert model.__dict__["rows"] == [COUNT]
    assert torch.equal(found, model.to_x0(model(Z, T, cond, None), Z, T))


@torch.no_grad()
@pytest.mark.parametrize("scale", [3.0, 0.0, -1.0])
@pytest.mark.parametrize("name", PREDICTIONS)
def test_guidance_is_that_of_two_separate_calls(name: str, scale: float) -> None:
    """null + w (given - null) of the network's outputs, and of the images that follow, which are linear in them."""
    model, cond = make(SOURCE, **PREDICTIONS[name]), text_of(3)
    found = predictor(model, cond, SEEN, replace(PLAIN, guidance_scale=scale))(Z, T)
    assert model.__dict__["rows"] == [2 * COUNT], "both at once"
    given, null = model(Z, T, cond, SEEN), model(Z, T, replace(cond, dropped=NONE), SEEN)
    expected = model.to_x0(null + scale * (given - null), Z, T)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    images = model.to_x0(null, Z, T) + scale * (model.to_x0(given, Z, T) - model.to_x0(null, Z, T))
    torch.testing.assert_close(found, images, rtol=1e-7, atol=1e-7)
    assert float((given - null).abs().min()) > 1e-9


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(3, 3), (2, 5), (5, 1)], ids=str)
def test_a_negative_text_takes_the_place_of_nothing(lengths: tuple[int, int]) -> None:
    """Texts of different lengths are padded; each is as by itself."""
    model, cond, negative = make(), text_of(lengths[0], known=max(1, lengths[0] - 1)), text_of(lengths[1], seed=4)
    found = predictor(model, cond, None, replace(PLAIN, guidance_scale=2.5), negative=negative)(Z, T)
    given, other = (model(Z, T, one, None) for one in (cond, negative))
    torch.testing.assert_close(found, model.to_x0(other + 2.5 * (given - other), Z, T), rtol=1e-9, atol=1e-9)
    null = predictor(model, cond, None, replace(PLAIN, guidance_scale=2.5))(Z, T)
    assert float((found - null).abs().max()) > 1e-3


@torch.no_grad()
def test_a_negative_text_leads_away_from_nothing_that_is_hidden() -> None:
    """Of an image whose own condition is hidden the negative text is not."""
    model, cond, negative = make(), replace(text_of(3), dropped=NONE), text_of(2, seed=4)
    found = predictor(model, cond, None, replace(PLAIN, guidance_scale=2.0), negative=negative)(Z, T)
    given, other = (model(Z, T, one, None) for one in (cond, negative))
    torch.testing.assert_close(found, model.to_x0(2 * given - other, Z, T), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_guidance_does_not_hide_the_source() -> None:
    model, cond = make(SOURCE), text_of(3)
    guided = replace(PLAIN, guidance_scale=2.0)
    found = predictor(model, cond, SEEN, guided)(Z, T)
    null = model(Z, T, replace(cond, dropped=NONE), SEEN)
    blind = model(Z, T, replace(cond, dropped=NONE), Seen(torch.zeros_like(SEEN.image), None))
    assert float((null - blind).abs().min()) > 1e-9
    torch.testing.assert_close(found, model.to_x0(2 * model(Z, T, cond, SEEN) - null, Z, T), rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize(("percentile", "cap"), [(99.5, None), (80.0, None), (80.0, 1.3)])
def test_dynamic_thresholding_comes_after_guidance(percentile: float, cap: float | None) -> None:
    model, cond = make(), text_of(3)
    options = ImageOptions(guidance_scale=6.0, percentile=percentile, threshold_cap=cap)
    found = predictor(model, cond, None, options)(Z, T)
    raw = predictor(model, cond, None, replace(PLAIN, guidance_scale=6.0))(Z, T)
    for k in range(COUNT):
        s = max(1.0, float(np.percentile(raw[k].abs().numpy(), percentile)))
        s = s if cap is None else min(s, cap)
        assert s > 1.2, "nothing to be kept in range"
        torch.testing.assert_close(found[k], raw[k].clamp(-s, s) / s, rtol=1e-6, atol=1e-6)
    assert float(found.abs().max()) <= 1


@torch.no_grad()
def test_static_thresholding_clips() -> None:
    model, cond = make(), text_of(3)
    raw = predictor(model, cond, None, replace(PLAIN, guidance_scale=6.0))(Z, T)
    found = predictor(model, cond, None, ImageOptions(guidance_scale=6.0, threshold="static"))(Z, T)
    assert torch.equal(found, raw.clamp(-1, 1)) and float(raw.abs().max()) > 1


@torch.no_grad()
def test_rescaling_brings_back_the_deviation_of_the_output_with_the_condition() -> None:
    model, cond = make(), text_of(3)
    found = predictor(model, cond, None, replace(PLAIN, guidance_scale=5.0, guidance_rescale=0.6))(Z, T)
    given, null = model(Z, T, cond, None), model(Z, T, replace(cond, dropped=NONE), None)
    output = null + 5.0 * (given - null)
    factor = torch.stack([0.6 * given[k].std() / output[k].std() + 0.4 for k in range(COUNT)])[:, None, None, None]
    torch.testing.assert_close(found, model.to_x0(factor * output, Z, T), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_source_is_encoded_once_for_all_steps(scale: float) -> None:
    model = make(SOURCE, source_enters="both")
    assert model.encoder is not None
    asked: list[int] = []
    model.encoder.register_forward_hook(lambda *call: asked.append(len(call[1][0])))
    cond = replace(text_of(3), source=torch.arange(COUNT * 48).view(COUNT, 3, SIDE, SIDE).to(torch.uint8))
    seen = model.see(cond, (SIDE, SIDE), level=None, rng=[torch.Generator() for _ in range(COUNT)])
    assert seen is not None
    predict = predictor(model, cond, seen, replace(PLAIN, guidance_scale=scale))
    first, later = predict(Z, T), predict(Z, T / 2)
    assert asked == [COUNT]
    anew = predictor(model, cond, Seen(seen.image, None), replace(PLAIN, guidance_scale=scale))
    torch.testing.assert_close(first, anew(Z, T), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(later, anew(Z, T / 2), rtol=1e-9, atol=1e-9)
    assert asked[1:] == [COUNT if scale == 1.0 else 2 * COUNT] * 2


@torch.no_grad()
def test_guidance_by_nothing_is_refused() -> None:
    model = make(SOURCE, text=None)
    cond = Cond(source=torch.zeros(COUNT, 3, SIDE, SIDE, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="guidance needs a condition to be guided by"):
        predictor(model, cond, SEEN, replace(PLAIN, guidance_scale=2.0))(Z, T)


def test_rows_of_sources_keep_their_levels() -> None:
    seen = Seen(torch.arange(3).view(3, 1, 1, 1), torch.tensor([5.0, 6.0, 7.0]))
    rows = seen.rows(torch.tensor([2, 0, 2]))
    assert rows.image.flatten().tolist() == [2, 0, 2] and rows.log_snr is not None
    assert rows.log_snr.tolist() == [7.0, 5.0, 7.0] and rows.encoded is None
    assert Seen(seen.image, None).rows(slice(1)).log_snr is None
    encoded = seen._replace(encoded=10 * seen.image).rows(torch.tensor([1, 2])).encoded
    assert encoded is not None and encoded.flatten().tolist() == [10, 20]
