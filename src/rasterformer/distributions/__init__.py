"""Distributions over the symbols of one position: what a network's output means."""

from rasterformer.distributions.categorical import Categorical
from rasterformer.distributions.dmol import DiscretizedLogisticMixture

__all__ = ["Categorical", "DiscretizedLogisticMixture"]
