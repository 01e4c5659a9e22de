"""The variational bound of a denoiser on given codes, summed over the levels of its process (Gu et al. 2022, section 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rasterformer.diffusion.denoiser import CodeDenoiser
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Cond


@torch.no_grad()
def bound_nats(model: CodeDenoiser, x: Tensor, cond: Cond, *, rng: Sequence[torch.Generator], levels: int) -> Tensor:
    """An unbiased estimate of the bound on -log p(x_0), all its terms included: prior, steps and the last step's likelihood.

    The T levels are cut in `levels` strata of consecutive levels; each image visits one level of each stratum, uniformly drawn,
    which stands for the stratum. Over all T of them only the noise of x_t is random. An image's estimate depends on its own
    generator and not on the batch.

    Args:
        model: evaluated `levels` times.
        x: x_0, int64 [B, L, 1].
        cond: of every image of the batch.
        rng: B generators, on the CPU.
        levels: number of strata, 1..T.

    Returns:
        nats of each code, float32 [B, L]; the expectation of an image's sum is at least its -log p(x_0).

    Raises:
        ShapeError: x has another shape or dtype, or there is not one generator per image.
        ConfigError: levels out of range.
    """
    process, steps = model.process, model.process.num_steps
    if x.shape[1:] != model.x_shape or x.dtype != torch.int64:
        raise ShapeError(f"x is {x.dtype} {list(x.shape)}; expected torch.int64 {['B', *model.x_shape]}.")
    if len(rng) != len(x):
        raise ShapeError(f"rng has {len(rng)} generators for {len(x)} images. Pass one per image.")
    if not 1 <= levels <= steps:
        raise ConfigError(f"levels = {levels} leaves 1..{steps}, the levels of the process.")
    x0 = x[..., 0]
    total = torch.full(x0.shape, process.prior_nats(), dtype=torch.float64, device=x.device)
    for stratum in range(levels):
        below, top = stratum * steps // levels, (stratum + 1) * steps // levels
        t = torch.stack([torch.randint(below + 1, top + 1, (), generator=one) for one in rng]).to(x.device)
        noise = [torch.rand(*x0.shape[1:], 2, dtype=torch.float64, generator=one) for one in rng]
        x_t = process.diffuse(x0, t, torch.stack(noise).to(x.device))
        logits = model(x_t, t, cond)
        log_x0 = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
        total += (top - below) * process.step_nats(log_x0, x0, x_t, t, t - 1)
    return total.float()
