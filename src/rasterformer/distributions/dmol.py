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

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rasterformer.distributions.pmf import check_options, race, truncate
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
        self.noise_per_position = 3 * levels

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
        channel = prefix.shape[-1]
        log_weights = torch.log_softmax(logits, -1)
        known = [self.to_grid(prefix[..., c], means.dtype)[..., None] for c in range(channel)]  # each [..., 1]
        for c in range(channel):  # the known channels make some components more credible
            mean, level = means[..., c, :] + self._shift(coefficients, known, c), prefix[..., c, None].to(means.dtype)
            log_weights = log_weights + self._log_mass(level, mean, log_scales[..., c, :])
        mass = self._mass(
            means[..., channel, :] + self._shift(coefficients, known, channel), log_scales[..., channel, :]
        )
        return (mass @ torch.softmax(log_weights, -1)[..., None])[..., 0]

    def sample(self, params: Tensor, noise: Tensor, *, options: SampleOptions) -> Tensor:
        """params [..., P], noise [..., 3 K] -> x int64 [..., 3].

        Draws channel after channel from its probabilities given the channels before it, so samples follow the very
        distribution that is trained and scored. Temperature divides the mixture logits and multiplies the scales.

        Raises:
            ConfigError: an option describes no distribution.
        """
        check_options(options)
        logits, means, log_scales, coefficients = self.split(params)
        if options.temperature != 1.0:
            logits, log_scales = logits / options.temperature, log_scales + math.log(options.temperature)
        weights = torch.softmax(logits, -1)[..., None]  # [..., M, 1]
        clocks = noise.unflatten(-1, (3, -1))
        drawn: list[Tensor] = []
        known: list[Tensor] = []
        for channel in range(3):
            mean = means[..., channel, :] + self._shift(coefficients, known, channel)
            mass = self._mass(mean, log_scales[..., channel, :])  # [..., K, M]
            value = race(truncate((mass @ weights)[..., 0], options), clocks[..., channel, :])
            drawn.append(value)
            if channel < 2:
                known.append(self.to_grid(value, means.dtype)[..., None])
                of_value = mass.gather(-2, value[..., None, None].expand(*value.shape, 1, self.num_mixtures))
                weights = weights * of_value.transpose(-1, -2)
                weights = weights / weights.sum(-2, keepdim=True)
        return torch.stack(drawn, -1)

    @staticmethod
    def _shift(coefficients: Tensor, known: list[Tensor], channel: int) -> Tensor | float:
        """How far the known channels, each [..., 1] on the grid, move the means of `channel`: [..., M]."""
        c0, c1, c2 = coefficients.unbind(-2)
        if channel == 1:
            return c0 * known[0]
        return c1 * known[0] + c2 * known[1] if channel == 2 else 0.0

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

    def _mass(self, means: Tensor, log_scales: Tensor) -> Tensor:
        """The logistic's mass in every bin: means, log_scales [..., M] -> [..., K, M].

        The same formula as `_log_mass`, without its logarithm: sigmoid(a) sigmoid(-b) (1 - e^(b - a)) for a bin's upper edge a
        and lower edge b, in scales.
        """
        top = self.vocab_size - 1
        width = 2 / top * torch.exp(-log_scales)[..., None, :]  # of a bin, in scales
        edges = torch.arange(top, dtype=means.dtype, device=means.device) + 0.5
        edges = (edges[:, None] - (means[..., None, :] + 1) * (top / 2)) * width  # [..., K - 1, M]
        below, above = torch.sigmoid(edges), torch.sigmoid(-edges)
        inner = below[..., 1:, :] * above[..., :-1, :] * -torch.expm1(-width)
        return torch.cat([below[..., :1, :], inner, above[..., -1:, :]], -2)
