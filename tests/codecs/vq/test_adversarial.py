"""Adversarial losses against values worked out by hand, and lambda against gradients known in closed form."""

import math

import pytest
import torch
from torch import Tensor, nn

from rasterformer.codecs.vq.adversarial import (
    adaptive_weight,
    discriminator_ramp,
    generator_loss,
    hinge_discriminator_loss,
    vanilla_discriminator_loss,
)

REAL = torch.tensor([[2.0, 0.5], [-1.0, 1.0]])
FAKE = torch.tensor([-3.0, 0.0, 0.5])


def test_hinge_by_hand() -> None:
    """max(0, 1 - real): 0, 0.5, 2, 0; max(0, 1 + fake): 0, 1, 1.5."""
    assert hinge_discriminator_loss(REAL, FAKE).item() == pytest.approx((2.5 / 4 + 2.5 / 3) / 2)


def test_hinge_is_exactly_zero_beyond_the_margin_and_so_is_its_gradient() -> None:
    real, fake = torch.tensor([1.5, 40.0], requires_grad=True), torch.tensor([-1.5, -40.0], requires_grad=True)
    loss = hinge_discriminator_loss(real, fake)
    loss.backward()
    assert loss.item() == 0 and real.grad is not None and fake.grad is not None
    assert not real.grad.any() and not fake.grad.any()


def test_hinge_pulls_only_what_is_within_the_margin() -> None:
    real, fake = REAL.clone().requires_grad_(True), FAKE.clone().requires_grad_(True)
    hinge_discriminator_loss(real, fake).backward()
    assert real.grad is not None and fake.grad is not None
    assert real.grad[0].tolist() == [0.0, -1 / 8] and real.grad[1, 0].item() == -1 / 8
    torch.testing.assert_close(fake.grad, torch.tensor([0.0, 1 / 6, 1 / 6]))


def test_vanilla_is_the_cross_entropy_of_telling_real_from_fake() -> None:
    def sigmoid(logit: float) -> float:
        return 1 / (1 + math.exp(-logit))

    said_real = [-math.log(sigmoid(logit)) for logit in REAL.flatten().tolist()]
    said_fake = [-math.log(1 - sigmoid(logit)) for logit in FAKE.tolist()]
    expected = (sum(said_real) / 4 + sum(said_fake) / 3) / 2
    assert vanilla_discriminator_loss(REAL, FAKE).item() == pytest.approx(expected)
    assert vanilla_discriminator_loss(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(math.log(2))


def test_the_generator_wants_fakes_to_look_real() -> None:
    fake = FAKE.clone().requires_grad_(True)
    loss = generator_loss(fake)
    loss.backward()
    assert loss.item() == pytest.approx(2.5 / 3)
    torch.testing.assert_close(fake.grad, torch.full((3,), -1 / 3))


@pytest.mark.parametrize("loss", [hinge_discriminator_loss, vanilla_discriminator_loss])
def test_losses_are_float32_whatever_the_discriminator_computes_in(loss) -> None:  # type: ignore[no-untyped-def]
    half = loss(REAL.bfloat16(), FAKE.bfloat16())  # these values are exact in bfloat16
    assert half.dtype == generator_loss(FAKE.bfloat16()).dtype == torch.float32
    assert half.item() == pytest.approx(loss(REAL, FAKE).item(), abs=1e-7)


def linear_losses(last_layer: Tensor, reconstruction: float, adversarial: float) -> tuple[Tensor, Tensor]:
    """Two losses of a generator h -> h w with h = (3, 4), whose gradients in w have lengths 5 |factor|."""
    drawn = torch.tensor([3.0, 4.0]) @ last_layer
    return reconstruction * drawn, adversarial * drawn


@pytest.mark.parametrize(("reconstruction", "adversarial"), [(2.0, 0.5), (-2.0, 0.5), (0.1, -7.0), (0.0, 1.0)])
def test_lambda_is_the_ratio_of_the_lengths_of_the_gradients(reconstruction: float, adversarial: float) -> None:
    last_layer = nn.Parameter(torch.tensor([0.3, -0.2]))
    losses = linear_losses(last_layer, reconstruction, adversarial)
    expected = 5 * abs(reconstruction) / (5 * abs(adversarial) + 0.25)
    assert adaptive_weight(*losses, last_layer, delta=0.25).item() == pytest.approx(expected, rel=1e-6)


def test_lambda_of_a_generator_and_a_discriminator_of_one_layer_each() -> None:
    """Fakes x = h w; L2 loss against t has 2 h^T (h w - t) / n, the critic x v has -h^T 1 v^T / m as gradient in w."""
    rng = torch.Generator().manual_seed(0)
    h, t, v = (torch.randn(*shape, generator=rng) for shape in ((5, 3), (5, 4), (4, 1)))
    w = nn.Parameter(torch.randn(3, 4, generator=rng))
    fake = h @ w
    value = adaptive_weight((fake - t).square().mean(), generator_loss(fake @ v), w, delta=0)
    of_reconstruction = 2 * h.T @ (h @ w.detach() - t) / 20
    of_generator = -h.T @ torch.ones(5, 1) @ v.T / 5
    expected = of_reconstruction.square().sum().sqrt() / of_generator.square().sum().sqrt()
    torch.testing.assert_close(value, expected)


def test_with_lambda_both_losses_pull_equally_hard() -> None:
    """And the graphs are still there to be differentiated, with lambda as a constant."""
    last_layer = nn.Parameter(torch.tensor([0.3, -0.2]))
    reconstruction, adversarial = linear_losses(last_layer, 2.0, 0.5)
    weight = adaptive_weight(reconstruction, adversarial, last_layer, delta=0)
    assert not weight.requires_grad and last_layer.grad is None
    (reconstruction + weight * adversarial).backward()
    torch.testing.assert_close(last_layer.grad, 2 * torch.tensor([6.0, 8.0]))


def test_lambda_is_bounded_where_the_adversarial_gradient_vanishes() -> None:
    last_layer = nn.Parameter(torch.tensor([0.3, -0.2]))
    losses = linear_losses(last_layer, 2.0, 0.0)
    assert adaptive_weight(*losses, last_layer).item() == 1e4  # 10 / 1e-4 is above it
    assert adaptive_weight(*losses, last_layer, largest=7.0).item() == 7
    assert adaptive_weight(*losses, last_layer, delta=0.01).item() == pytest.approx(1000)


def test_lambda_does_not_exist_without_gradients() -> None:
    last_layer = nn.Parameter(torch.tensor([0.3, -0.2]))
    losses = linear_losses(last_layer, 2.0, 0.5)
    with torch.no_grad(), pytest.raises(AssertionError, match="ratio of gradients"):
        adaptive_weight(*losses, last_layer)


def test_the_ramp_begins_at_start_and_ends_ramp_batches_later() -> None:
    values = [discriminator_ramp(batches, start=10, ramp=4) for batches in (0, 9, 10, 11, 12, 13, 14, 15, 10**6)]
    assert values == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]


def test_a_ramp_of_zero_is_a_step() -> None:
    assert [discriminator_ramp(batches, start=10, ramp=0) for batches in (0, 9, 10, 11)] == [0, 0, 1, 1]
    assert discriminator_ramp(0, start=0, ramp=0) == 1
