"""Discretized mixture of logistics over the three channels of a pixel (Salimans et al. 2017, PixelCNN++, section 2.1).

A pixel v = (r, g, b) in 0..255 is put on the grid x = v / 127.5 - 1. Each of M mixture components has a weight pi and,
for each channel c, a mean mu_c, a log-scale s_c and a coefficient. The later channels' means move with the earlier ones:

    m_r = mu_r        m_g = mu_g + c0 x_r        m_b = mu_b + c1 x_r + c2 x_g

The probability of a value is the logistic distribution's mass between its two neighbours' midpoints, x -+ 1/255; the
lowest value takes all mass below its upper edge and the highest all mass above its lower edge. With a > b the scaled
edges, sigmoid(a) - sigmoid(b) = (1 - e^(b-a)) sigmoid(a) sigmoid(-b), so

    log P = log(1 - e^(b-a)) - softplus(-a) - softplus(b)

which is exact and needs no threshold. In float32 values and gradients are finite up to log-scales of 80.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rasterformer.distributions.pmf import check_options, inverse_cdf, truncate
from rasterformer.interfaces import Distribution, SampleOptions

MIN_LOG_SCALE = -7.0


class DiscretizedLogisticMixture(Distribution):
    """Mixture of discretized logistics; three symbols (r, g, b) per position, 10 parameters per mixture component.

    The P = 10 M parameters of a position are, one after the other: M logits, then means [3, M], log-scales [3, M] and raw
    coefficients [3, M], whose tanh are c0, c1, c2. Log-scales are clamped from below at -7.

    Args:
        num_mixtures: M.
        levels: values per channel, 256; smaller numbers serve enumeration in tests.
    """

    def __init__(self, num_mixtures: int, levels: int = 256) -> None:
        self.num_mixtures = num_mixtures
        self.vocab_size = levels
        self.params_per_position = 10 * num_mixtures
        self.symbols_per_position = 3
        self.noise_per_position = 4

    def split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """params [..., P] -> logits [..., M], means, log-scales, coefficients, each [..., 3, M], float32 or better."""
        params = params if params.dtype == torch.float64 else params.float()
        mixtures = self.num_mixtures
        logits, rest = params[..., :mixtures], params[..., mixtures:]
        means, log_scales, raw = rest.unflatten(-1, (3, 3, mixtures)).unbind(-3)  # each [..., 3, M]
        return logits, means, log_scales.clamp(min=MIN_LOG_SCALE), torch.tanh(raw)

    def to_grid(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Values 0..levels-1 -> -1..1."""
        return x.to(dtype) * (2 / (self.vocab_size - 1)) - 1

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """params [..., P], x int64 [..., 3] -> nats of the pixel [...]."""
        logits, component = self._component_log_prob(params, x)
        return torch.logsumexp(torch.log_softmax(logits, -1) + component.sum(-2), -1)

    def symbol_log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """params [..., P], x int64 [..., 3] -> log P(r), log P(g | r), log P(b | r, g) [..., 3]."""
        logits, component = self._component_log_prob(params, x)
        joint = torch.logsumexp(torch.log_softmax(logits, -1)[..., None, :] + component.cumsum(-2), -1)  # [..., 3]
        return torch.cat([joint[..., :1], joint.diff(dim=-1)], -1)

    def symbol_pmf(self, params: Tensor, prefix: Tensor) -> Tensor:
        """params [..., P], prefix int64 [..., e], e in 0..2 -> probabilities of channel e [..., K]."""
        logits, means, log_scales, coefficients = self.split(params)
        return self._pmf(logits, means, log_scales, coefficients, prefix)

    def sample(self, params: Tensor, noise: Tensor, *, options: SampleOptions) -> Tensor:
        """params [..., P], noise [..., 4] -> x int64 [..., 3].

        Draws the component, then channel after channel by the inverse logistic CDF; each channel is rounded to its grid
        before the next is conditioned on it, so that samples follow the distribution that was trained. Temperature
        divides the mixture logits and multiplies the scales. With top_k or top_p the channels are drawn from their
        truncated conditional probabilities instead.

        Raises:
            ConfigError: an option describes no distribution.
        """
        check_options(options)
        logits, means, log_scales, coefficients = self.split(params.double())
        logits = logits / options.temperature
        scales = torch.exp(log_scales) * options.temperature
        if options.top_k is not None or options.top_p is not None:
            prefix = torch.empty(*noise.shape[:-1], 0, dtype=torch.int64, device=params.device)
            for channel in range(3):
                pmf = truncate(self._pmf(logits, means, scales.log(), coefficients, prefix), options)
                prefix = torch.cat([prefix, inverse_cdf(pmf, noise[..., channel + 1])[..., None]], -1)
            return prefix

        component = inverse_cdf(torch.softmax(logits, -1), noise[..., 0])[..., None, None]  # [..., 1, 1]
        index = component.expand(*component.shape[:-2], 3, 1)
        means, scales, coefficients = (t.gather(-1, index)[..., 0] for t in (means, scales, coefficients))  # [..., 3]
        uniform = noise.double().clamp(2.0**-25, 1 - 2.0**-25)  # float32 noise lies on a grid of 2^-24
        logistic = torch.log(uniform) - torch.log1p(-uniform)
        drawn: list[Tensor] = []
        grid: list[Tensor] = []
        for channel in range(3):
            mean = means[..., channel] + self._shift(coefficients, grid, channel)
            value = mean + scales[..., channel] * logistic[..., channel + 1]
            top = self.vocab_size - 1
            drawn.append(torch.round((value + 1) * (top / 2)).clamp(0, top).long())
            grid.append(self.to_grid(drawn[-1], value.dtype))
        return torch.stack(drawn, -1)

    @staticmethod
    def _shift(coefficients: Tensor, grid: list[Tensor], channel: int) -> Tensor | float:
        """How far the known channels `grid` move the mean of the next; coefficients [..., 3] or [..., 3, M]."""
        if channel == 1:
            return coefficients.select(-1, 0) * grid[0]
        if channel == 2:
            return coefficients.select(-1, 1) * grid[0] + coefficients.select(-1, 2) * grid[1]
        return 0.0

    def _component_log_prob(self, params: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mixture logits [..., M] and log P(channel | earlier channels, component) [..., 3, M]."""
        logits, means, log_scales, coefficients = self.split(params)
        values = self.to_grid(x, means.dtype)
        red, green = values[..., 0, None], values[..., 1, None]
        c0, c1, c2 = coefficients.unbind(-2)
        shift = torch.stack([torch.zeros_like(c0), c0 * red, c1 * red + c2 * green], -2)
        return logits, self._log_mass(x.to(means.dtype)[..., None], means + shift, log_scales)

    def _log_mass(self, levels: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
        """log of the logistic's mass in the bin of a value 0..levels-1; all arguments broadcast.

        Distances are taken in levels, which floats hold exactly: neighbouring bins then share their edge to the last
        digit also where a scale is far below a level.
        """
        top = self.vocab_size - 1
        half = torch.exp(-log_scales) / top  # half a bin, in scales
        centre = (levels - (means + 1) * (top / 2)) * (2 * half)
        lowest, highest = levels == 0, levels == top
        width = torch.log(-torch.expm1(-2 * half))
        below = torch.where(highest, 0, F.softplus(-(centre + half)))
        above = torch.where(lowest, 0, F.softplus(centre - half))
        return torch.where(lowest | highest, 0, width) - below - above

    def _pmf(self, logits: Tensor, means: Tensor, log_scales: Tensor, coefficients: Tensor, prefix: Tensor) -> Tensor:
        channel = prefix.shape[-1]
        log_weights = torch.log_softmax(logits, -1)
        known = [self.to_grid(prefix[..., c], means.dtype)[..., None] for c in range(channel)]  # each [..., 1]
        by_component = coefficients.transpose(-1, -2)  # [..., M, 3]
        for c in range(channel):  # the known channels make some components more credible
            mean = means[..., c, :] + self._shift(by_component, known, c)
            value = prefix[..., c, None].to(mean.dtype)
            log_weights = log_weights + self._log_mass(value, mean, log_scales[..., c, :])
        mean = means[..., channel, :] + self._shift(by_component, known, channel)  # [..., M]
        levels = torch.arange(self.vocab_size, dtype=means.dtype, device=means.device)[:, None]  # [K, 1]
        mass = self._log_mass(levels, mean[..., None, :], log_scales[..., channel, None, :])  # [..., K, M]
        return torch.logsumexp(torch.log_softmax(log_weights, -1)[..., None, :] + mass, -1).exp()
