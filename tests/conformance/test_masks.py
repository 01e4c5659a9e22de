"""In-painting, for every system that has it: a distribution over the unknown pixels, given the known ones, and draws from it.

Images of 2x2 pixels whose sub-pixels take two values, so that all fillings of the unknown pixels can be listed.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rasterformer.autoregressive.noise import image_generators
from rasterformer.autoregressive.parallel import draw_in_parallel
from rasterformer.autoregressive.sample import draw
from rasterformer.autoregressive.score import symbol_nats
from rasterformer.interfaces import Cond, SampleOptions

UNKNOWN = [(3,), (0,), (0, 3), (1, 2), (0, 2, 3)]  # raster indices of pixels


def fillings(codec, unknown: tuple[int, ...]) -> tuple[Tensor, Cond]:
    """All images that agree on the known pixels, uint8 [2^(3u), 3, 2, 2], and the condition that they share."""
    image = 255 * (torch.arange(12).view(3, 2, 2) * 7 % 5 % 2)  # 0 and 255
    count = 2 ** (3 * len(unknown))
    bits = torch.arange(count)[:, None] // 2 ** torch.arange(3 * len(unknown)) % 2
    images = image.repeat(count, 1, 1, 1).flatten(2)
    images[:, :, list(unknown)] = 255 * bits.view(count, 3, len(unknown))
    images = images.view(count, 3, 2, 2).to(torch.uint8)
    known = torch.ones(count, 4, dtype=torch.bool)
    known[:, list(unknown)] = False
    known = known.view(count, 2, 2)
    return images, Cond(source=images * known[:, None], known=known)


@torch.no_grad()
@pytest.mark.parametrize("unknown", UNKNOWN, ids=str)
def test_probabilities_of_all_fillings_sum_to_one_given_the_known_pixels(mask_case, few_levels, unknown) -> None:
    codec, model = mask_case.small().build(noise=1.0)
    small = few_levels(model, 2)
    images, cond = fillings(codec, unknown)
    x = codec.encode(images) // 255
    nats = symbol_nats(small, x, cond)
    log_prob = -nats.sum((1, 2))
    assert abs(float(log_prob.exp().sum()) - 1) <= 1e-12
    assert float(log_prob.max() - log_prob.min()) > 1, "a flat distribution would hide errors"
    assert not bool(nats[codec.positions_of(cond.known)].any())
    joint = small.distribution.log_prob(small(x, cond), x).sum(1).exp().sum()
    assert float(joint) < 0.999, "the sum can be another: that over known and unknown pixels together"


@torch.no_grad()
def test_what_lies_under_the_mask_is_not_seen(mask_case) -> None:
    _, model = mask_case.build()
    x, cond = torch.randint(0, 256, (2, *model.x_shape), generator=torch.Generator().manual_seed(1)), mask_case.cond(2)
    hidden = replace(cond, source=torch.where(cond.known[:, None], cond.source, 255 - cond.source))
    assert not torch.equal(hidden.source, cond.source)
    assert torch.equal(model(x, hidden), model(x, cond))
    first, second = (
        draw(model, each, 2, options=SampleOptions(), rng=image_generators(3, 2)) for each in (cond, hidden)
    )
    assert torch.equal(first, second)


@torch.no_grad()
def test_a_known_pixel_is_seen_by_all_positions_also_those_before_it(mask_case) -> None:
    """And a missing one is another thing than one of any value."""
    codec, model = mask_case.build()
    x, cond = torch.zeros(1, *model.x_shape, dtype=torch.int64), mask_case.cond(2).rows(slice(0, 1))
    before = model(x, cond)
    row, column = cond.known[0].nonzero()[-1].tolist()
    for channel in range(3):
        other = cond.source.clone()
        other[0, channel, row, column] += 97
        assert bool(((model(x, replace(cond, source=other)) - before).abs().amax(-1) > 1e-10).all())
    known = cond.known.clone()
    known[0, row, column] = False
    for value in (0, 128, 255):  # what a missing pixel could be mistaken for
        source = cond.source.clone()
        source[0, :, row, column] = value
        missing = model(x, Cond(source=source, known=known))
        assert bool(((missing - model(x, replace(cond, source=source))).abs().amax(-1) > 1e-10).all())
    assert codec.positions_of(cond.known).sum() > 0


@torch.no_grad()
def test_draws_keep_known_pixels_and_fit_the_enumerated_probabilities(mask_case, few_levels, fit_p_value) -> None:
    """3,000 draws of the 64 fillings of the first and the last pixel."""
    codec, model = mask_case.small().build(noise=0.3)
    small = few_levels(model, 2)
    images, cond = fillings(codec, (0, 3))
    x = codec.encode(images) // 255
    probs = (-symbol_nats(small, x, cond).sum((1, 2))).exp()
    many = cond.rows(torch.zeros(3000, dtype=torch.int64))
    drawn = draw(small, many, 3000, options=SampleOptions(), rng=image_generators(5, 3000))
    pixels = codec.decode(drawn * 255)
    known = many.known[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(pixels[known], images[:1].expand(3000, -1, -1, -1)[known])
    place = {image.numpy().tobytes(): k for k, image in enumerate(images)}
    counts = torch.bincount(torch.tensor([place[image.numpy().tobytes()] for image in pixels]), minlength=64)
    assert fit_p_value(counts, probs) > 1e-4


@torch.no_grad()
def test_draws_of_256_values_keep_known_pixels_exactly(mask_case) -> None:
    codec, model = mask_case.build()
    cond = mask_case.cond(4)
    images = codec.decode(model.sample(cond, 4, options=SampleOptions(), rng=image_generators(5, 4)))
    known = cond.known[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(images[known], cond.source[known])
    assert not torch.equal(images[~known], cond.source[~known])


def test_the_loss_is_over_the_unknown_dimensions(mask_case) -> None:
    codec, model = mask_case.build(noise=0.1)
    images = torch.randint(0, 256, (3, 3, 4, 4), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    known = torch.zeros(3, 4, 4, dtype=torch.bool)
    known[0, 1:], known[1, :, ::2] = True, True  # 4, 8 and 16 pixels unknown
    cond = Cond(source=images * known[:, None], known=known)
    x = codec.encode(images)
    loss = model.loss(x, cond, rng=None)
    assert loss.dims.tolist() == [12, 24, 48] and loss.bound == "exact"
    params = model(x, cond)
    each = -model.distribution.log_prob(params, x)  # [3, L]
    expected = torch.stack([each[k, ~codec.positions_of(known)[k]].sum() for k in range(3)])
    torch.testing.assert_close(loss.nats, expected.detach(), rtol=1e-10, atol=1e-10)
    assert loss.total.item() == pytest.approx(expected.sum().item() / 84, rel=1e-10)
    torch.testing.assert_close(symbol_nats(model, x, cond).sum((1, 2)), expected.detach(), rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("window", [2, 100])
def test_parallel_drawing_equals_single_steps(mask_case, window: int) -> None:
    codec, model = mask_case.build(noise=0.1)
    for k in range(2):
        cond = mask_case.cond(2).rows(slice(k, k + 1))
        expected = draw(model, cond, 1, options=SampleOptions(), rng=image_generators(11, 1))
        found = draw_in_parallel(model, cond, options=SampleOptions(), rng=image_generators(11, 1), window=window)
        assert torch.equal(found.x, expected)
        known = codec.positions_of(cond.known)
        assert torch.equal(expected[known], codec.encode(cond.source)[known])
