"""What every diffusion system of pixels must hold: who sees what, images of their own, files, gradients, bfloat16, memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rasterformer.autoregressive.noise import image_generators
from rasterformer.checkpoint import read_model, save_model_folder
from rasterformer.diffusion.gaussian_bound import image_bound
from rasterformer.diffusion.image_denoiser import ImageDenoiser, Seen, predictor
from rasterformer.diffusion.image_options import ImageOptions
from rasterformer.diffusion.samplers import draw_images, normal
from rasterformer.interfaces import Cond
from rasterformer.nn.live_memory import peak_bytes

SIDE = 8


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noisy(batch: int, *, dtype: torch.dtype = torch.float64, size: tuple[int, int] = (SIDE, SIDE)) -> Tensor:
    return torch.randn(batch, 3, *size, generator=seeded(1), dtype=dtype)


def random_images(batch: int) -> Tensor:
    return torch.randint(0, 256, (batch, 3, SIDE, SIDE), generator=seeded(), dtype=torch.uint8)


def times(batch: int, t: float = 0.6, *, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.full((batch,), t, dtype=dtype)


def seen_by(image_case, model: ImageDenoiser, cond: Cond, *, dtype: torch.dtype = torch.float64) -> Seen | None:
    """Sources of a batch, with noise from generators 0, 1, ... where the model has any."""
    if cond.source is None:
        return None
    count = len(cond.source)
    seen = model.see(cond, (SIDE, SIDE), level=image_case.level(model, count), rng=image_generators(2, count))
    assert seen is not None
    return Seen(seen.image.to(dtype), None if seen.log_snr is None else seen.log_snr.to(dtype))


def moved(one: Tensor, other: Tensor) -> float:
    """The least change of a value."""
    return float((one - other).abs().min())


@torch.no_grad()
def test_every_value_depends_on_every_pixel_and_on_the_level(image_case) -> None:
    """One row for each noisy pixel, changed there. What is tiny after a few convolutions is not zero in float64."""
    _, model = image_case.build()
    if image_case.fields.get("self_attention") is False:
        pytest.skip("convolutions see as far as they reach")
    z, count = noisy(1), SIDE * SIDE
    cond = image_case.cond(1)
    seen = seen_by(image_case, model, cond)
    before = model(z, times(1), cond, seen)
    assert before.shape == z.shape
    rows = torch.zeros(count, dtype=torch.int64)
    changed = z.repeat(count, 1, 1, 1)
    each = torch.arange(count)
    changed[each, :, each // SIDE, each % SIDE] += 1.0
    after = model(changed, times(count), cond.rows(rows), None if seen is None else seen.rows(rows))
    assert moved(after, before) > 1e-12
    assert moved(model(z, times(1, 0.5), cond, seen), before) > 1e-12


@torch.no_grad()
def test_every_part_of_the_condition_reaches_every_value(image_case) -> None:
    _, model = image_case.build()
    cond, z = image_case.cond(2), noisy(2)
    seen = seen_by(image_case, model, cond)
    before = model(z, times(2), cond, seen)
    others = []
    if cond.label is not None:
        others.append(replace(cond, label=(cond.label + 1) % image_case.num_classes))
    if cond.text is not None:
        others += [
            replace(cond, text=cond.text + (torch.arange(3) == place)[:, None] * torch.arange(6)) for place in (0, 1)
        ]
    if cond.text_tokens is not None:
        others += [replace(cond, text_tokens=cond.text_tokens ^ (torch.arange(3) == place).long()) for place in (0, 1)]
    for other in others:
        assert moved(model(z, times(2), other, seen), before) > 1e-12
    if seen is not None and image_case.fields.get("self_attention") is not False:
        for pixel in ((0, 0), (3, 5), (7, 7)):
            image = seen.image.clone()
            image[:, 0, pixel[0], pixel[1]] += 1.0
            assert moved(model(z, times(2), cond, Seen(image, seen.log_snr)), before) > 1e-12
    if seen is not None and seen.log_snr is not None:
        assert moved(model(z, times(2), cond, Seen(seen.image, seen.log_snr + 1)), before) > 1e-12


@torch.no_grad()
def test_padding_means_nothing_and_a_text_means_the_same_beside_a_longer_one(image_case) -> None:
    """The first text knows two of its three tokens."""
    if image_case.text is None:
        pytest.skip("it reads no texts")
    _, model = image_case.build()
    cond, z = image_case.cond(2), noisy(2)
    seen = seen_by(image_case, model, cond)
    both = model(z, times(2), cond, seen)
    name = "text" if cond.text is not None else "text_tokens"
    given = getattr(cond, name).clone()
    given[0, 2] += 1
    torch.testing.assert_close(model(z, times(2), replace(cond, **{name: given}), seen), both, rtol=0, atol=0)
    alone = cond.rows(slice(1))
    short = replace(alone, text_known=alone.text_known[:, :2], **{name: getattr(alone, name)[:, :2]})
    found = model(z[:1], times(1), short, None if seen is None else seen.rows(slice(1)))
    torch.testing.assert_close(found, both[:1], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_hidden_condition_is_the_same_whatever_it_was_and_not_an_empty_text(image_case) -> None:
    if not (image_case.text or image_case.num_classes) or image_case.fields.get("drop_condition_prob") == 0.0:
        pytest.skip("nothing can be hidden")
    _, model = image_case.build()
    cond, z = image_case.cond(4), noisy(1).repeat(4, 1, 1, 1)
    seen = seen_by(image_case, model, cond)
    seen = None if seen is None else seen.rows(torch.zeros(4, dtype=torch.int64))
    shown = model(z, times(4), cond, seen)
    hidden = model(z, times(4), replace(cond, dropped=torch.tensor([True, True, True, False])), seen)
    torch.testing.assert_close(hidden[1:3], hidden[:1].repeat(2, 1, 1, 1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(hidden[3], shown[3], rtol=1e-9, atol=1e-9)
    assert moved(hidden[:3], shown[:3]) > 1e-12


def test_a_gradient_reaches_every_parameter(image_case) -> None:
    """In training, of four images of which the condition of two is hidden where that can be."""
    codec, model = image_case.build()
    model.train()
    cond = image_case.cond(4)
    if image_case.text is not None or image_case.num_classes:
        may_hide = image_case.fields.get("drop_condition_prob") != 0.0
        cond = replace(cond, dropped=torch.tensor([True, False, False, True])) if may_hide else cond
    loss = model.loss(codec.encode(random_images(4)).double(), cond, rng=seeded())
    loss.total.backward()
    assert loss.bound == "none" and bool(loss.nats.isnan().all())
    unmoved = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    allowed = "bytes.words" if image_case.text is not None and image_case.text.encoder == "bytes" else None
    assert [name for name in unmoved if allowed is None or allowed not in name] == []
    assert all(bool(weight.grad.isfinite().all()) for weight in model.parameters() if weight.grad is not None)


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(image_case) -> None:
    _, model = image_case.build()
    cond, images = image_case.cond(3), random_images(3)
    drawn, bound = everything(image_case, model, cond, images)
    for k in range(3):
        one, nats = everything(image_case, model, cond.rows(slice(k, k + 1)), images[k : k + 1], first=k)
        torch.testing.assert_close(one[0], drawn[k], rtol=1e-4, atol=1e-4)  # noise and levels are float32
        torch.testing.assert_close(nats[0], bound[k], rtol=1e-4, atol=1e-4)


def everything(
    image_case, model: ImageDenoiser, cond: Cond, images: Tensor, *, first: int = 0, seed: int = 3
) -> tuple[Tensor, Tensor]:
    """Samples in two steps, and the bound of images."""
    rng, weights = image_generators(seed, len(images), first=first), next(model.parameters())
    seen = None
    if cond.source is not None:
        seen = model.see(cond, (SIDE, SIDE), level=image_case.level(model, len(images)), rng=rng)
        assert seen is not None
        seen = Seen(seen.image.to(weights), seen.log_snr)
    predict = predictor(model, cond, seen, ImageOptions())
    z = normal(rng, torch.empty(len(images), 3, SIDE, SIDE)).to(weights)
    drawn = draw_images(predict, model.process, z, steps=2, sampler="ancestral", rng=rng)
    return drawn, image_bound(predict, model.process, images, rng=rng, strata=2, known=cond.known).nats


@torch.no_grad()
def test_a_saved_model_draws_and_scores_the_same_bit_for_bit_and_so_does_a_seed(image_case, tmp_path: Path) -> None:
    _, model = image_case.build(dtype=torch.float32)
    save_model_folder(tmp_path / "m", config={"recipe": {}, "num_classes": 0}, state=model.state_dict(), card="a test")
    _, other = image_case.build(dtype=torch.float32, noise=0.0)
    cond, images = image_case.cond(2, dtype=torch.float32), random_images(2)
    first, again = (everything(image_case, model, cond, images) for _ in range(2))
    before = everything(image_case, other, cond, images)
    other.load_state_dict(read_model(tmp_path / "m").tensors["model"])
    for found in (again, everything(image_case, other, cond, images)):
        assert torch.equal(found[0], first[0]) and torch.equal(found[1], first[1])
    assert not torch.equal(before[0], first[0]), "a fresh model says the same"
    assert not torch.equal(everything(image_case, model, cond, images, seed=4)[0], first[0])
    assert first[0].shape == (2, *model.image_shape) and float(first[0].abs().max()) <= 1


@torch.no_grad()
def test_a_rounded_models_output_is_near_the_originals_and_leaves_it_alone(image_case) -> None:
    """Within 2^-3 of the largest output: a few dozen roundings to bfloat16, 2^-8 each, through normalisations."""
    _, model = image_case.build(dtype=torch.float32, noise=0.1)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    cond, z, t = image_case.cond(2, dtype=torch.float32), noisy(2, dtype=torch.float32), times(2, dtype=torch.float32)
    seen = seen_by(image_case, model, cond, dtype=torch.float32)
    expected, copy = model(z, t, cond, seen), model.to_bfloat16()
    rounded = copy(z, t, cond, seen)
    assert rounded.dtype == expected.dtype == torch.float32 and not copy.training
    assert 0 < float((rounded - expected).abs().max()) <= 2**-3 * max(1.0, float(expected.abs().max()))
    assert copy.state_bytes(2) <= model.state_bytes(2)
    for weight in copy.parameters():
        weight.zero_()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


@torch.no_grad()
def test_a_pass_holds_no_more_than_is_said_of_it(image_case) -> None:
    """Texts, sources and all. Said is what the network holds; beside it there are a few numbers for each pixel and token."""
    _, model = image_case.build(dtype=torch.float32)
    cond, z = image_case.cond(3, dtype=torch.float32), noisy(3, dtype=torch.float32)
    seen, t = seen_by(image_case, model, cond, dtype=torch.float32), times(3, dtype=torch.float32)
    held, said = peak_bytes(lambda: model(z, t, cond, seen)), model.state_bytes(3)
    assert 0.5 * said < held <= said + 4 * z.nbytes
    assert model.state_bytes(3, (2 * SIDE, SIDE)) > 1.5 * said
