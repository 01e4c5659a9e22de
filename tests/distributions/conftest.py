"""What the tests of sampling share: how well counts fit probabilities."""

from collections.abc import Callable

import pytest
import scipy.stats
import torch
from torch import Tensor


@pytest.fixture
def fit_p_value() -> Callable[[Tensor, Tensor], float]:
    """counts int64 [K], probabilities [K] -> p of the chi-square test; cells with fewer than 5 expected are merged."""

    def p_value(counts: Tensor, probs: Tensor) -> float:
        total = int(counts.sum())
        expected = probs.double() * total
        assert int(counts[expected == 0].sum()) == 0, "a value of probability 0 was drawn"
        order = expected.argsort()
        rare = order[expected[order].cumsum(0) < 5]
        common = torch.ones(len(expected), dtype=torch.bool)
        common[rare] = False
        smallest = order[len(rare)]  # what is too rare alone is added to the next cell
        counts, expected = counts.double().clone(), expected.clone()
        counts[smallest] += counts[rare].sum()
        expected[smallest] += expected[rare].sum()
        if int(common.sum()) == 1:
            return 1.0
        return float(scipy.stats.chisquare(counts[common], expected[common] / expected[common].sum() * total).pvalue)

    return p_value
