"""One of K values, by a softmax over K logits (paper, section 3.1: 256 values, one output matrix for all channels)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rasterformer.distributions.pmf import check_options, race, truncate
from rasterformer.interfaces import Distribution, SampleOptions


class Categorical(Distribution):
    """Softmax over `vocab_size` values; one symbol per position.

    Args:
        vocab_size: K.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.params_per_position = vocab_size
        self.symbols_per_position = 1
        self.noise_per_position = vocab_size

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """params: logits [..., K], x int64 [..., 1] -> nats [...]."""
        return self.symbol_log_prob(params, x).squeeze(-1)

    def symbol_log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """params: logits [..., K], x int64 [..., 1] -> nats [..., 1]."""
        logits = params if params.dtype == torch.float64 else params.float()
        rows, index = logits.reshape(-1, self.vocab_size), x.reshape(-1)
        return -F.cross_entropy(rows, index, reduction="none").reshape(x.shape)

    def sample(self, params: Tensor, noise: Tensor, *, options: SampleOptions) -> Tensor:
        """params: logits [..., K], noise [..., K] -> x int64 [..., 1].

        Raises:
            ConfigError: an option describes no distribution.
        """
        check_options(options)
        logits = params if params.dtype == torch.float64 else params.float()
        if options.temperature != 1.0:
            logits = logits / options.temperature
        return race(truncate(torch.softmax(logits, -1), options), noise)[..., None]

    def symbol_pmf(self, params: Tensor, prefix: Tensor) -> Tensor:
        """params: logits [..., K], prefix [..., 0] -> probabilities [..., K]."""
        assert prefix.shape[-1] == 0, f"a position has one symbol, but {prefix.shape[-1]} were given before it"
        logits = params if params.dtype == torch.float64 else params.float()
        return torch.softmax(logits, -1)
