"""How to draw from a discrete diffusion model: how many steps, which tokens in each of them, how far from the model's own."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from rasterformer.diffusion.discrete import DiscreteProcess
from rasterformer.distributions.pmf import check_options
from rasterformer.errors import ConfigError, did_you_mean
from rasterformer.interfaces import SampleOptions

Order = Literal["posterior", "random", "purity", "confidence"]


@dataclass(frozen=True)
class DiffusionOptions(SampleOptions):
    """The defaults draw from the model's own distribution: the whole reverse chain.

    `temperature`, `top_k` and `top_p` apply to p(x_0 | x_t); `top_p` is the truncation r of Gu et al. 2022, section 4.3. None
    and 1 keep all codes.

    Args:
        steps: of the way from noise to codes, at most one pass of the network each. None: as many as the process has levels, T.
            `posterior` takes 1..T of them, and makes no pass where a step decides nothing. The other orders take any number
            from 1 up: where there are more steps than masked codes, each decides one until none is left.
        order: which codes a step decides.
            `posterior`: each by itself, as the reverse chain of the process says; exact for any number of steps.
            `random`: a planned number of masked codes, anywhere. A process of nothing but masks only, as the next two.
            `purity`: the same number, places drawn in proportion to max p(x_0 | x_t) (Tang et al. 2022, Improved VQ-Diffusion).
            `confidence`: the same number, those whose drawn code is the most probable (Chang et al. 2022, MaskGIT, without
            the noise that it adds to them).
        purity_weight: r >= 0: p(x_0 | x_t) is sharpened to softmax((1 + r purity) log p), most where the network is sure
            (Tang et al. 2022). 0 is off.
        guidance_scale: s: log p(x_0 | x_t) is l_null + s (l_cond - l_null). 1 is no guidance and half the work.
    """

    steps: int | None = None
    order: Order = "posterior"
    purity_weight: float = 0.0
    guidance_scale: float = 1.0


def diffusion_options(options: SampleOptions) -> DiffusionOptions:
    """Returns the options as they are, or plain ones with the defaults of what they do not say."""
    if isinstance(options, DiffusionOptions):
        return options
    return DiffusionOptions(**{field.name: getattr(options, field.name) for field in fields(SampleOptions)})


def check_diffusion_options(options: DiffusionOptions, process: DiscreteProcess) -> None:
    """Refuses options that describe no way to draw from this process.

    Raises:
        ConfigError: temperature, top_k or top_p that describe no distribution; an unknown order; an order that reveals masks,
            where codes are also replaced; steps out of range; a guidance scale that is not finite; a negative purity weight.
    """
    check_options(options)
    if options.order not in get_args(Order):
        raise ConfigError(f"order = {options.order!r} is unknown.{did_you_mean(options.order, get_args(Order))}")
    if options.order != "posterior" and not process.masks_only:
        share = float((process.num_codes * process.replace).max())
        raise ConfigError(
            f"order = {options.order!r} reveals masks, but this model's process also replaces codes by others, up to "
            f"{share:.2g} of them, as schedule paper does. Use order posterior, or train with schedule release, linear or "
            "cosine, which take every order: posterior, random, purity, confidence."
        )
    most = process.num_steps if options.order == "posterior" else math.inf
    if options.steps is not None and not 1 <= options.steps <= most:
        allowed = f"lie in 1..{most}, the levels of the process" if options.order == "posterior" else "be at least 1"
        raise ConfigError(f"steps = {options.steps} must {allowed}, or None for {process.num_steps}.")
    if not math.isfinite(options.guidance_scale):
        raise ConfigError(f"guidance_scale = {options.guidance_scale} must be a finite number; 1 is no guidance.")
    if not (options.purity_weight >= 0 and math.isfinite(options.purity_weight)):
        raise ConfigError(f"purity_weight = {options.purity_weight} must be 0 (off) or a finite number above it.")
