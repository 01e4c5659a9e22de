"""The softmax over K values against plain-loop formulas; its samples against its probabilities."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rasterformer.distributions import Categorical
from rasterformer.errors import ConfigError
from rasterformer.interfaces import SampleOptions

EMPTY = torch.empty(0, dtype=torch.int64)


def log_softmax_by_loop(logits: list[float]) -> list[float]:
    top = max(logits)
    total = math.log(math.fsum(math.exp(entry - top) for entry in logits)) + top
    return [entry - total for entry in logits]


def random_logits(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return 3 * torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def draws(distribution: Categorical, logits: Tensor, options: SampleOptions, count: int = 20_000) -> Tensor:
    """Counts of each value, int64 [K]."""
    uniform = torch.rand(count, len(logits), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = -torch.log1p(-uniform).float()
    x = distribution.sample(logits.expand(count, -1), noise, options=options)
    assert x.shape == (count, 1) and x.dtype == torch.int64
    return torch.bincount(x[:, 0], minlength=distribution.vocab_size)


def test_log_prob_equals_log_softmax() -> None:
    logits = random_logits(4, 7)
    for row in range(4):
        expected = torch.tensor(log_softmax_by_loop(logits[row].tolist()), dtype=torch.float64)
        got = Categorical(7).log_prob(logits[row].expand(7, -1), torch.arange(7)[:, None])
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_probabilities_of_all_values_sum_to_one(dtype: torch.dtype, tolerance: float) -> None:
    logits = torch.cat([random_logits(3, 256, dtype=dtype), 1e4 * random_logits(3, 256, dtype=dtype)])
    every = torch.arange(256).expand(6, -1)[..., None]
    total = Categorical(256).log_prob(logits[:, None].expand(-1, 256, -1), every).exp().sum(-1)
    assert float((total - 1).abs().max()) <= tolerance
    assert float((Categorical(256).symbol_pmf(logits, EMPTY.expand(6, 0)).sum(-1) - 1).abs().max()) <= tolerance


def test_uniform_logits_give_log_256_nats() -> None:
    x = torch.tensor([[0], [17], [255]])
    nats = -Categorical(256).log_prob(torch.full((3, 256), 5.0), x)
    torch.testing.assert_close(nats, torch.full((3,), math.log(256)))


def test_symbol_log_prob_and_symbol_pmf_agree_with_log_prob() -> None:
    logits, x = random_logits(2, 5, 9), torch.arange(10).view(2, 5, 1) % 9
    distribution = Categorical(9)
    by_symbol = distribution.symbol_log_prob(logits, x)
    assert by_symbol.shape == (2, 5, 1)
    torch.testing.assert_close(by_symbol.sum(-1), distribution.log_prob(logits, x))
    pmf = distribution.symbol_pmf(logits, EMPTY.expand(2, 5, 0))
    torch.testing.assert_close(pmf.gather(-1, x).log(), by_symbol)


def test_half_precision_logits_are_scored_in_float32() -> None:
    logits, x = random_logits(2, 256).bfloat16(), torch.tensor([[3], [200]])
    got = Categorical(256).log_prob(logits, x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, Categorical(256).log_prob(logits.float(), x), rtol=0, atol=0)


def test_gradients_are_finite_for_extreme_logits() -> None:
    logits = torch.tensor([[1e30, -1e30, 0.0], [-1e4, 1e4, -1e4], [0.0, 0.0, 0.0]], requires_grad=True)
    Categorical(3).log_prob(logits, torch.tensor([[1], [0], [2]])).sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_fit_the_softmax_of_logits_over_temperature(
    temperature: float, fit_p_value: Callable[[Tensor, Tensor], float]
) -> None:
    logits = random_logits(12) / 2
    expected = torch.tensor(log_softmax_by_loop((logits / temperature).tolist()), dtype=torch.float64).exp()
    assert fit_p_value(draws(Categorical(12), logits, SampleOptions(temperature)), expected) > 1e-4


@pytest.mark.parametrize("options", [SampleOptions(top_k=4), SampleOptions(top_p=0.8), SampleOptions(1.3, 6, 0.9)])
def test_samples_fit_the_truncated_softmax(
    options: SampleOptions, fit_p_value: Callable[[Tensor, Tensor], float]
) -> None:
    logits = random_logits(12) / 2
    probs = [math.exp(entry) for entry in log_softmax_by_loop((logits / options.temperature).tolist())]
    kept, reached = [], 0.0
    for value in sorted(range(12), key=lambda value: -probs[value]):
        if len(kept) == (options.top_k or 12) or reached >= (options.top_p or 2.0):
            break
        kept.append(value)
        reached += probs[value]
    assert 1 < len(kept) < 12
    expected = torch.tensor([p / reached if value in kept else 0.0 for value, p in enumerate(probs)])
    assert fit_p_value(draws(Categorical(12), logits, options), expected) > 1e-4


def test_a_low_temperature_takes_the_most_probable_value() -> None:
    counts = draws(Categorical(12), random_logits(12), SampleOptions(temperature=1e-3), count=100)
    assert int(counts.argmax()) == int(random_logits(12).argmax()) and int(counts.max()) == 100


def test_sampling_refuses_options_that_describe_no_distribution() -> None:
    with pytest.raises(ConfigError, match=r"temperature = -1\.0"):
        Categorical(3).sample(torch.zeros(1, 3), torch.ones(1, 3), options=SampleOptions(temperature=-1.0))
