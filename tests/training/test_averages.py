"""Averages of weights against closed forms."""

import pytest
import torch
from torch import nn

from rasterformer.training.averages import ExponentialMovingAverage, mean_of_weights


def set_to(model: nn.Module, value: float) -> None:
    for weight in model.parameters():
        nn.init.constant_(weight, value)


def test_ema_equals_its_closed_form() -> None:
    """After weights w_1..w_n: sum over s of (1 - d_s) w_s prod_{t > s} d_t, plus w_0 times all d."""
    model = nn.Linear(2, 2).double()
    set_to(model, 3.0)
    ema = ExponentialMovingAverage(model, 0.5)
    values = [float(step**2) for step in range(1, 31)]
    decays = [min(0.5, step / (step + 10)) for step in range(1, 31)]
    assert decays[8] < 0.5 == decays[10]  # the first steps forget faster
    for step, value in enumerate(values, 1):
        set_to(model, value)
        ema.update_(model, step)
    weights = [3.0, *values]
    shares = [1.0, *(1 - decay for decay in decays)]
    expected = 0.0
    for s, (weight, share) in enumerate(zip(weights, shares, strict=True)):
        expected += share * weight * torch.tensor(decays[s:], dtype=torch.float64).prod().item()
    for average in ema.model.parameters():
        assert average.flatten().tolist() == pytest.approx([expected] * average.numel(), rel=1e-12)


def test_ema_is_a_copy_in_evaluation_mode_that_needs_no_gradients() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    ema = ExponentialMovingAverage(model, 0.9)
    assert not ema.model.training and model.training
    assert not any(weight.requires_grad for weight in ema.model.parameters())
    assert all(weight.requires_grad for weight in model.parameters())
    set_to(model, 7.0)
    assert not any(bool((weight == 7.0).any()) for weight in ema.model.parameters())


def test_mean_of_weights_is_the_plain_mean_in_the_weights_dtype() -> None:
    states = [{"a": torch.tensor([value, -value]), "b": torch.tensor([[2 * value]])} for value in (1.0, 2.0, 6.0)]
    mean = mean_of_weights(states)
    assert mean["a"].tolist() == [3.0, -3.0] and mean["b"].tolist() == [[6.0]]
    assert mean["a"].dtype == torch.float32
