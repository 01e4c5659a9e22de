"""The process and the preconditioning of Karras et al. 2022 (EDM), in the coordinates of `gaussian.py`.

EDM's noisy image x + sigma_edm n is z_t / alpha_t here, with sigma_edm = sigma_t / alpha_t. Samplers, bounds and
in-painting therefore take its process like any other, and the preconditioning goes with any process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from rasterformer.diffusion.gaussian import GaussianProcess, check_images, per_image
from rasterformer.errors import ConfigError


def make_edm(*, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> GaussianProcess:
    """The process of EDM's noise levels: sigma_edm = (min^(1/rho) + t (max^(1/rho) - min^(1/rho)))^rho at time t.

    Evenly spaced times are then spaced as in Karras et al. 2022, equation 5, and the log SNR is -2 log(sigma_edm). Our
    samplers go from the last time above 0 to no noise, the paper's from t = 0.

    Args:
        sigma_min, sigma_max: noise at t = 0 and 1, in units of the image's -1..1.
        rho: 1 spaces levels evenly; the larger, the shorter the steps at low noise.

    Raises:
        ConfigError: not 0 < sigma_min < sigma_max, or rho not above 0; any of them not finite.
    """
    if not (0 < sigma_min < sigma_max < math.inf and 0 < rho < math.inf):
        raise ConfigError(
            f"sigma_min = {sigma_min}, sigma_max = {sigma_max} and rho = {rho} are no noise levels. "
            "Pass 0 < sigma_min < sigma_max and rho above 0."
        )
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return GaussianProcess(
        lambda t: -2 * rho * (low + t * (high - low)).log(),
        lambda log_snr: ((log_snr / (-2 * rho)).exp() - low) / (high - low),
    )


class Coefficients(NamedTuple):
    """Of Karras et al. 2022, table 1, each float64 [B]."""

    skip: Tensor
    out: Tensor
    into: Tensor
    noise: Tensor


@dataclass(frozen=True)
class EdmPreconditioning:
    """What a network sees and says, scaled to unit variance at every noise level (Karras et al. 2022, section 5).

    A denoiser is D = c_skip y + c_out F(c_in y, c_noise) with y = z_t / alpha_t and a network F. The error of F has the
    weight 1: EDM's weight of the image's error is 1 / c_out^2.

    Args:
        process: turns times into noise levels.
        sigma_data: standard deviation of the images, in units of their -1..1.
        p_mean, p_std: of log sigma_edm in training.

    Raises:
        ConfigError: sigma_data or p_std not above 0, or a number that is not finite.
    """

    process: GaussianProcess
    sigma_data: float = 0.5
    p_mean: float = -1.2
    p_std: float = 1.2

    def __post_init__(self) -> None:
        for name in ("sigma_data", "p_std"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)} must be a finite number above 0.")
        if not math.isfinite(self.p_mean):
            raise ConfigError(f"p_mean = {self.p_mean} must be a finite number.")

    def coefficients(self, t: Tensor) -> Coefficients:
        """Returns c_skip, c_out, c_in and c_noise of times [B].

        c_noise = log(sigma_edm) / 4 is the log SNR over -8: a network that is told the log SNR knows it.
        """
        log_sigma = -0.5 * self.process.log_snr(t.double())
        sigma, data = log_sigma.exp(), self.sigma_data
        both = (sigma.square() + data**2).sqrt()
        return Coefficients(data**2 / both.square(), sigma * data / both, 1 / both, log_sigma / 4)

    def network_input(self, z: Tensor, t: Tensor) -> Tensor:
        """Returns c_in z / alpha, what the network is given for z_t; [B, C, H, W] of the dtype of z.

        Raises:
            ShapeError: z or t of another shape.
            ConfigError: a time out of range.
        """
        check_images(t, z=z)
        scale = self.coefficients(t).into / self.process.alpha(t.double())
        return per_image(scale, z) * z

    def target(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Returns what F should say, (x - c_skip (x + sigma_edm noise)) / c_out; [B, C, H, W] of the dtype of x.

        It is computed as (sigma_edm x - sigma_data^2 noise) / (sigma_data sqrt(sigma_edm^2 + sigma_data^2)), without
        the cancellation.

        Raises:
            ShapeError: x, noise or t of another shape.
            ConfigError: a time out of range.
        """
        check_images(t, x=x, noise=noise)
        into = self.coefficients(t).into
        sigma = (-0.5 * self.process.log_snr(t.double())).exp()
        return per_image(sigma * into / self.sigma_data, x) * x - per_image(self.sigma_data * into, x) * noise

    def to_x0(self, output: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Returns D = c_skip z / alpha + c_out output, F's image; [B, C, H, W] of the dtype of z.

        Raises:
            ShapeError: output, z or t of another shape.
            ConfigError: a time out of range.
        """
        check_images(t, z=z, output=output)
        skip, out, _, _ = self.coefficients(t)
        return per_image(skip / self.process.alpha(t.double()), z) * z + per_image(out, z) * output.to(z.dtype)

    def training_times(self, normal: Tensor) -> Tensor:
        """Returns the times of log sigma_edm = p_mean + p_std normal, cut off at the process's ends.

        Args:
            normal: standard normal, float [B].
        """
        return self.process.time(-2 * (self.p_mean + self.p_std * normal))
