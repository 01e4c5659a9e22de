"""In-painting with a denoiser of whole images (Lugmayr et al. 2022, RePaint): any mask, known pixels stay.

At every step the known pixels are put in with the noise of that time. What was drawn beside them did not know them yet,
so a step may be taken back and drawn again: with noise added, on the way forward from s to t.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rasterformer.diffusion.gaussian import GaussianProcess, check_images, check_interpolation, per_image
from rasterformer.diffusion.samplers import PredictX0, checked, normal, times_of
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import OnStep


def renoise(process: GaussianProcess, z: Tensor, s: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Draws z_t from q(z_t | z_s), a function of the noise.

    It is a z_s + sqrt(sigma_t^2 - a^2 sigma_s^2) noise with a = alpha_t / alpha_s. Variances are subtracted, not
    deviations: sigma_t - a sigma_s is too little, and images fade (lucidrains/imagen-pytorch#293).

    Args:
        z: z_s, float [B, C, H, W].
        s, t: float [B], 0 <= s < t <= 1.
        noise: standard normal, [B, C, H, W].

    Returns:
        [B, C, H, W] of the dtype of z.

    Raises:
        ShapeError: z, noise or s of another shape.
        ConfigError: times that are not in this order and range.
    """
    check_images(s, z=z, noise=noise)
    scale, std = process.transition(s, t)
    return per_image(scale, z) * z + per_image(std, z) * noise


@torch.no_grad()
def fill_images(
    predict_x0: PredictX0,
    process: GaussianProcess,
    noise: Tensor,
    x: Tensor,
    known: Tensor,
    *,
    steps: int,
    rng: Sequence[torch.Generator],
    resamplings: int = 1,
    interpolation: float = 0.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draws the unknown pixels of images, by the ancestral sampler (Lugmayr et al. 2022, algorithm 1).

    Each step but the last, which has no way back, is drawn `resamplings` times. The paper also goes back over several
    steps at once, of 250; with few steps a single one is as long. The draw is not exact: it comes nearer to the
    denoiser's distribution given the known pixels with more steps and more resamplings.

    Args:
        predict_x0: the denoiser, (steps - 1) resamplings + 1 passes.
        process: turns times into noise levels.
        noise: standard normal, float [B, C, H, W]: where the unknown pixels begin.
        x: float [B, C, H, W], in -1..1; what it holds where it is not known does not matter.
        known: bool [B, H, W], the pixels that stay.
        steps: of time from 1 to 0, at least 1.
        rng: B generators, on the CPU.
        resamplings: how often a step is drawn, at least 1; the paper's is 10. 1: none is taken back.
        interpolation: variance of a step (`GaussianProcess.posterior`), 0..1.
        on_step: told (passes done, passes) after each of them.

    Returns:
        [B, C, H, W] of the dtype of noise, equal to x where it is known; not clipped elsewhere.

    Raises:
        ShapeError: noise, x or known of another shape or dtype; not one generator per image; a prediction of another
            shape.
        ConfigError: steps, resamplings or interpolation out of range.
    """
    denoise = checked(predict_x0, noise, rng)
    if x.shape != noise.shape or known.shape != (len(x), *x.shape[2:]) or known.dtype != torch.bool:
        raise ShapeError(
            f"x {list(x.shape)} and known {known.dtype} {list(known.shape)} do not fit noise {list(noise.shape)}; "
            f"expected {list(noise.shape)} and torch.bool {[len(noise), *noise.shape[2:]]}."
        )
    if resamplings < 1:
        raise ConfigError(f"resamplings = {resamplings} is too few. Use at least 1, which takes no step back.")
    check_interpolation(interpolation)
    path = times_of(steps, 1.0)
    passes, done = (steps - 1) * resamplings + 1, 0
    where, x = known[:, None], x.to(noise)
    clean = torch.where(where, x, 0.0)

    def times(t: float) -> Tensor:
        return torch.full((len(noise),), t, dtype=torch.float64)

    def put_in(z: Tensor, t: float) -> Tensor:
        return torch.where(where, process.diffuse(clean, times(t), normal(rng, z)), z)

    z = put_in(noise, path[0])
    for now, after in pairwise(path):
        for again in reversed(range(resamplings)):
            mean, std = process.posterior(
                z, denoise(z, times(now).to(z)), times(now), times(after), interpolation=interpolation
            )
            z = put_in(mean + per_image(std, z) * normal(rng, z), after)
            if again:
                z = renoise(process, z, times(after), times(now), normal(rng, z))
            done += 1
            if on_step is not None:
                on_step(done, passes)
    drawn = torch.where(where, x, denoise(z, times(path[-1]).to(z)))
    if on_step is not None:
        on_step(passes, passes)
    return drawn
