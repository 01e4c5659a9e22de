"""Codebook usage against known distributions, over many batches."""

import math

import pytest
import torch

from rasterformer.codecs.vq.usage import CodeUsage
from rasterformer.errors import ConfigError, DataError


def test_counts_are_those_of_all_batches() -> None:
    rng = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 7, (2, 3, 4), generator=rng) for _ in range(5)]
    usage = CodeUsage(9)
    for codes in batches:
        usage.add(codes)
    every = [code for codes in batches for code in codes.flatten().tolist()]
    assert usage.counts.dtype == torch.int64
    assert usage.counts.tolist() == [every.count(code) for code in range(9)]
    assert usage.num_dead == 9 - len(set(every))
    assert usage.share_used == pytest.approx(len(set(every)) / 9)


def test_equally_likely_codes_have_their_number_as_perplexity() -> None:
    usage = CodeUsage(16)
    usage.add(torch.arange(8).repeat(5))
    assert usage.perplexity == pytest.approx(8)
    assert usage.entropy_bits == pytest.approx(3)
    assert (usage.share_used, usage.num_dead) == (0.5, 8)


def test_entropy_is_minus_the_mean_log_probability() -> None:
    usage = CodeUsage(4)
    usage.add(torch.tensor([[[0, 0, 0, 0, 0, 1, 1, 3]]]))
    probs = [5 / 8, 2 / 8, 1 / 8]
    nats = -sum(p * math.log(p) for p in probs)
    assert usage.perplexity == pytest.approx(math.exp(nats))
    assert usage.entropy_bits == pytest.approx(nats / math.log(2))


def test_perplexity_of_an_epoch_is_not_the_mean_of_its_batches() -> None:
    usage = CodeUsage(4)
    for code in range(4):
        usage.add(torch.full((1, 2, 2), code))  # each batch alone has perplexity 1
    assert usage.perplexity == pytest.approx(4)


def test_summary_names_each_figure() -> None:
    usage = CodeUsage(4)
    usage.add(torch.tensor([0, 1]))
    expected = {"share_used": 0.5, "perplexity": 2.0, "entropy_bits": 1.0, "num_dead": 2}
    assert usage.summary() == pytest.approx(expected)


def test_nothing_added_or_everything_forgotten() -> None:
    usage = CodeUsage(3)
    expected = {"share_used": 0.0, "perplexity": 1.0, "entropy_bits": 0.0, "num_dead": 3}
    assert usage.summary() == expected
    usage.add(torch.tensor([2, 0]))
    assert usage.summary() != expected
    usage.reset()
    usage.add(torch.zeros(0, 2, 2, dtype=torch.int64))
    assert usage.summary() == expected and usage.counts.tolist() == [0, 0, 0]


@pytest.mark.parametrize("codes", [[0, 4], [-1, 3]])
def test_codes_outside_the_codebook_are_refused(codes: list[int]) -> None:
    usage = CodeUsage(4)
    with pytest.raises(DataError, match=f"codes go from {codes[0]} to {codes[1]}; this codebook has 0 to 3"):
        usage.add(torch.tensor(codes))
    assert usage.counts.tolist() == [0, 0, 0, 0]


def test_a_codebook_without_codes_is_refused() -> None:
    with pytest.raises(ConfigError, match="vocab_size = 0 is below 1"):
        CodeUsage(0)
