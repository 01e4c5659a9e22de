import copy

import pytest
import torch

from benchmarks.pixelcnn import PixelCNN, PixelCNNConfig
from rasterformer.codecs.pixels import PixelCodec
from rasterformer.interfaces import Cond

SIDE = 8
LENGTH = SIDE * SIDE


@pytest.fixture
def model() -> PixelCNN:
    """Large random weights, so that every dependence shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = PixelCNN(
            PixelCNNConfig(num_filters=6, depth=2, num_mixtures=2), PixelCodec(SIDE, is_joint=True)
        ).double()
        for conv in made.modules():
            if hasattr(conv, "gain"):
                conv.gain.data.mul_(3)
    return made.requires_grad_(False)


def pixels(count: int) -> torch.Tensor:
    return torch.randint(256, (count, LENGTH, 3), generator=torch.Generator().manual_seed(1))


def test_no_position_sees_itself_or_what_comes_after(model: PixelCNN) -> None:
    x = pixels(1)
    changed = x.repeat(LENGTH, 1, 1)
    changed[torch.arange(LENGTH), torch.arange(LENGTH)] = 255 - x[0]  # image i differs at position i
    difference = (model(changed, Cond()) - model(x, Cond())).abs().amax(-1)  # [changed position, position]
    assert (difference.tril() == 0).all()
    assert difference.diagonal(1)[torch.arange(1, LENGTH) % SIDE > 0].all()  # each sees its left neighbour


def test_every_neighbour_within_two_pixels_that_came_before_is_seen(model: PixelCNN) -> None:
    x = pixels(1)
    row, col = 5, 4
    for above, aside in [(0, -1), (0, -2), (1, -2), (1, -1), (1, 0), (1, 1), (1, 2), (2, -1), (2, 0), (2, 1)]:
        changed = x.clone()
        source = (row - above) * SIDE + col + aside
        changed[0, source] = 255 - x[0, source]
        difference = (model(changed, Cond()) - model(x, Cond()))[0, row * SIDE + col]
        assert difference.abs().max() > 0, (above, aside)


@pytest.mark.parametrize("lengths", [[1] * LENGTH, [5, 1, 30, 28], [LENGTH]])
def test_step_equals_forward_though_it_looks_at_the_rows_within_reach_only(model: PixelCNN, lengths: list[int]) -> None:
    assert model.reach < SIDE
    x = pixels(2)
    params, state = model.begin(Cond(), 2)
    found, first = [params], 0
    for count in lengths:
        params, state = model.step(x[:, first : first + count], state)
        found.append(params)
        first += count
    torch.testing.assert_close(torch.cat(found, 1), model(x, Cond()), rtol=0, atol=1e-12)


def test_loss_is_the_likelihood_per_dimension(model: PixelCNN) -> None:
    x = pixels(3)
    loss = model.loss(x, Cond(), rng=None)
    expected = -model.distribution.symbol_log_prob(model(x, Cond()), x).sum((1, 2))
    torch.testing.assert_close(loss.nats, expected)
    assert float(loss.total) == pytest.approx(float(expected.mean()) / (LENGTH * 3))


def test_weight_norm_makes_the_length_of_the_direction_irrelevant(model: PixelCNN) -> None:
    longer = copy.deepcopy(model)
    for conv in longer.modules():
        if hasattr(conv, "direction"):
            conv.direction.data.mul_(7)
    torch.testing.assert_close(longer(pixels(1), Cond()), model(pixels(1), Cond()))


def test_default_size_is_about_1_3_million_parameters() -> None:
    made = PixelCNN(PixelCNNConfig(), PixelCodec(32, is_joint=True))
    assert 1.2e6 < sum(p.numel() for p in made.parameters()) < 1.4e6
