"""How a diffusion model over codes draws: options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True)
class Denoising:
    """Options of diffusion models over codes.

    Args:
        steps: of a diffusion model: at most one pass of the network each; fewer are faster. Default: one for each level of
            noise of its training.
        order: of a diffusion model: which codes a step decides: each by itself (posterior), or a planned number of them, anywhere
            (random), where the network is sure (purity), or those it is surest of (confidence).
        purity_weight: of a diffusion model: sharpen what the network is sure of, 0 is off.
    """

    steps: int | None = None
    order: Literal["posterior", "random", "purity", "confidence"] = "posterior"
    purity_weight: float = 0.0
