"""The Gaussian process of Imagen in continuous time, z_t = alpha_t x + sigma_t eps, and its exact reverse.

A process is its log SNR as a function of time, 0 clean and 1 noise (Kingma et al. 2021, VDM, section 3). No network is
here and no randomness: predictions and noise are passed in. Read `samplers.py` next; `edm.py` has another way to ask a
network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rasterformer.errors import ConfigError, ShapeError, did_you_mean

Prediction = Literal["eps", "x0", "v"]
Weighting = Literal["plain", "min_snr"]
GaussianSchedule = Literal["cosine", "linear"]
MIN_SNR = 5.0  # gamma of Hang et al. 2023
COSINE_OFFSET = 0.008  # s of Nichol & Dhariwal 2021
COSINE_FLOOR = math.exp(-15)  # SNR that is left at t = 1


class GaussianProcess:
    """z_t = alpha_t x + sigma_t eps with alpha^2 + sigma^2 = 1, so that alpha^2 = sigmoid(log SNR).

    x and eps are float [B, C, H, W], of an image in -1..1; t and s are float [B] in 0..1. Levels are computed in
    float64 and come back in the dtype of what they meet. A tensor of times may lie on another device than the images.
    Times are checked where they lie on the CPU, and only there: to read numbers of a GPU is to wait for all it has to do.

    Args:
        log_snr: time, float64 [n] -> log(alpha^2 / sigma^2), float64 [n]; finite at both ends and strictly falling.
        time: its inverse between the two ends.

    Raises:
        ConfigError: at some of 1001 times in 0..1, log_snr is not finite, does not fall or is not inverted by `time`.
    """

    def __init__(self, log_snr: Callable[[Tensor], Tensor], time: Callable[[Tensor], Tensor]) -> None:
        _check_schedule(log_snr, time)
        self._log_snr = log_snr
        self._time = time

    def log_snr(self, t: Tensor) -> Tensor:
        """Returns log(alpha_t^2 / sigma_t^2), [B] of the dtype of t.

        Raises:
            ConfigError: a time out of range.
        """
        return self._checked(t).to(t.dtype)

    def alpha(self, t: Tensor) -> Tensor:
        """Returns what is left of the image, [B] of the dtype of t. Raises ConfigError on a time out of range."""
        return self._checked(t).sigmoid().sqrt().to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """Returns the deviation of the noise, [B] of the dtype of t. Raises ConfigError on a time out of range."""
        return self._checked(t).neg().sigmoid().sqrt().to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        """Returns the time of each log SNR, [B] of its dtype; 0 or 1 where it lies beyond the process's ends."""
        ends = self._log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64, device=log_snr.device))
        return self._time(log_snr.double().clamp(ends[0], ends[1])).clamp(0, 1).to(log_snr.dtype)

    def diffuse(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draws z_t from q(z_t | x), a function of the noise.

        Args:
            x: float [B, C, H, W], in -1..1.
            t: float [B].
            noise: standard normal, [B, C, H, W].

        Returns:
            [B, C, H, W] of the dtype of x.

        Raises:
            ShapeError: x, noise or t of another shape.
            ConfigError: a time out of range.
        """
        check_images(t, x=x, noise=noise)
        alpha, sigma = _alpha_sigma(self._checked(t), x)
        return alpha * x + sigma * noise

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The way forward q(z_t | z_s) = N(a z_s, std^2).

        a = alpha_t / alpha_s and std^2 = sigma_t^2 - a^2 sigma_s^2. The variance is computed as sigma_t^2 (1 - SNR_t /
        SNR_s), which is the same without the cancellation.

        Args:
            s, t: float [B], 0 <= s < t <= 1.

        Returns:
            a and std, float64 [B].

        Raises:
            ConfigError: times that are not in this order and range.
        """
        log_s, log_t = self._ordered(s, t)
        scale = (0.5 * (logsigmoid(log_t) - logsigmoid(log_s))).exp()
        return scale, (logsigmoid(-log_t).exp() * -torch.expm1(log_t - log_s)).sqrt()

    def posterior(
        self, z: Tensor, x0: Tensor, t: Tensor, s: Tensor, *, interpolation: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z_s | z_t, x) for any s < t, or of a wider step that Imagen interpolates to.

        With c = 1 - SNR_t / SNR_s the mean is alpha_s (z_t (1 - c) / alpha_t + c x); the variance is sigma_s^2 c at
        interpolation 0, the posterior's own, and c sigma_t^2 at 1, that of q(z_t | z_s); between them exponents mix the
        two (Saharia et al. 2022, appendix on the sampler; Nichol & Dhariwal 2021).

        Args:
            z: z_t, float [B, C, H, W].
            x0: x or a prediction of it, [B, C, H, W].
            t, s: float [B], 0 <= s < t <= 1.
            interpolation: gamma, 0..1.

        Returns:
            mean [B, C, H, W] and std [B], of the dtype of z and on its device.

        Raises:
            ShapeError: z, x0 or t of another shape.
            ConfigError: times that are not in this order and range; interpolation out of range.
        """
        check_images(t, z=z, x0=x0)
        check_interpolation(interpolation)
        log_s, log_t = self._ordered(s, t)
        c = -torch.expm1(log_t - log_s)
        # alpha_s (1 - c) / alpha_t, by logarithms: alpha_t is near 0 at t = 1
        of_z = (log_t - log_s + 0.5 * (logsigmoid(log_s) - logsigmoid(log_t))).exp()
        of_x = log_s.sigmoid().sqrt() * c
        log_variance = torch.lerp(logsigmoid(-log_s), logsigmoid(-log_t), interpolation) + c.log()
        mean = per_image(of_z, z) * z + per_image(of_x, z) * x0
        return mean, (0.5 * log_variance).exp().to(z)

    def target(self, x: Tensor, noise: Tensor, t: Tensor, prediction: Prediction) -> Tensor:
        """What a network should say: eps, x, or v = alpha eps - sigma x (Salimans & Ho 2022, section 4).

        Args:
            x, noise: float [B, C, H, W].
            t: float [B], as `diffuse` was given.
            prediction: `eps`, `x0` or `v`.

        Returns:
            [B, C, H, W] of the dtype of x.

        Raises:
            ShapeError: x, noise or t of another shape.
            ConfigError: an unknown prediction.
        """
        check_images(t, x=x, noise=noise)
        _check_name("prediction", prediction, get_args(Prediction))
        if prediction == "v":
            alpha, sigma = _alpha_sigma(self._log_snr(t.double()), x)
            return alpha * noise - sigma * x
        return noise if prediction == "eps" else x

    def to_x0(self, output: Tensor, z: Tensor, t: Tensor, prediction: Prediction) -> Tensor:
        """The image that a network's output stands for: (z - sigma eps) / alpha, x0, or alpha z - sigma v.

        Args:
            output: [B, C, H, W], of the network at z.
            z: z_t, float [B, C, H, W].
            t: float [B].
            prediction: what the network was trained to say.

        Returns:
            [B, C, H, W] of the dtype of z.

        Raises:
            ShapeError: output, z or t of another shape.
            ConfigError: an unknown prediction.
        """
        check_images(t, z=z, output=output)
        _check_name("prediction", prediction, get_args(Prediction))
        output = output.to(z.dtype)
        if prediction == "x0":
            return output
        alpha, sigma = _alpha_sigma(self._log_snr(t.double()), z)
        return alpha * z - sigma * output if prediction == "v" else (z - sigma * output) / alpha

    def to_eps(self, x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The noise (z - alpha x0) / sigma that lies between an image and z, [B, C, H, W] of the dtype of z.

        Raises:
            ShapeError: x0, z or t of another shape.
        """
        check_images(t, z=z, x0=x0)
        alpha, sigma = _alpha_sigma(self._log_snr(t.double()), z)
        return (z - alpha * x0) / sigma

    def weight(self, t: Tensor, prediction: Prediction, weighting: Weighting) -> Tensor:
        """The weight of the squared error of a network's output.

        `plain` is 1. `min_snr` is min(SNR, 5) of the error of x0, whatever the network says: of its own output that is
        min(SNR, 5) / SNR for eps and min(SNR, 5) / (SNR + 1) for v (Hang et al. 2023).

        Args:
            t: float [B].
            prediction: what the network says.
            weighting: `plain` or `min_snr`.

        Returns:
            [B] of the dtype of t.

        Raises:
            ConfigError: an unknown prediction or weighting.
        """
        _check_name("prediction", prediction, get_args(Prediction))
        _check_name("weighting", weighting, get_args(Weighting))
        if weighting == "plain":
            return torch.ones_like(t)
        snr = self._log_snr(t.double()).exp()
        over = {"eps": snr, "x0": torch.ones_like(snr), "v": snr + 1}[prediction]
        return (snr.clamp(max=MIN_SNR) / over).to(t.dtype)

    def _checked(self, t: Tensor) -> Tensor:
        """log SNR, float64 [B]."""
        if t.device.type == "cpu" and not bool(((t >= 0) & (t <= 1)).all()):  # of a GPU it would wait for all its work
            raise ConfigError(f"t = {t.tolist()} leaves 0..1. Pass times: 0 is the image, 1 is noise.")
        return self._log_snr(t.double())

    def _ordered(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if s.device.type == t.device.type == "cpu" and not bool(((s >= 0) & (s < t) & (t <= 1)).all()):  # as above
            raise ConfigError(f"s = {s.tolist()} and t = {t.tolist()} are no times of a step. Pass 0 <= s < t <= 1.")
        return self._log_snr(s.double()), self._log_snr(t.double())


def make_gaussian(schedule: GaussianSchedule, *, shift: float = 0.0) -> GaussianProcess:
    """The process of a named schedule.

    - `cosine`: SNR = cot((t + 0.008) / 1.008 pi / 2)^2 + e^-15, log SNR 8.77 to -15 (Nichol & Dhariwal 2021; Imagen's
      base and first super-resolution). Without what is added the log SNR at t = 1 is minus infinity, or what rounding
      makes of it; a hard clamp would not fall to the end, and at t = 0.99 the addition changes it by 0.0013.
    - `linear`: log SNR = -log(exp(1e-4 + 10 t^2) - 1), 9.21 to -10, near that of 1000 steps of beta from 1e-4 to 0.02
      (Ho et al. 2020; Imagen's second super-resolution). It needs no clamp.

    Args:
        schedule: its name.
        shift: added to the log SNR at all times, both ends included; `resolution_shift` says how much for larger
            images.

    Raises:
        ConfigError: an unknown schedule, or a shift that is not finite.
    """
    _check_name("schedule", schedule, get_args(GaussianSchedule))
    if not math.isfinite(shift):
        raise ConfigError(
            f"shift = {shift} must be a finite number, in units of log SNR; 0 is the schedule as published."
        )
    log_snr, time = (_cosine, _cosine_time) if schedule == "cosine" else (_linear, _linear_time)
    return GaussianProcess(lambda t: log_snr(t) + shift, lambda shifted: time(shifted - shift))


def resolution_shift(height: int, width: int, *, reference: int = 64) -> float:
    """The shift 2 log(reference / side) with which a schedule destroys large images as it does small ones.

    Neighbours average noise away: at n times the side, their mean has n^2 times the SNR (Hoogeboom et al. 2023, simple
    diffusion, section 3.1). Of an image that is not square, the side is the square root of its area.

    Raises:
        ConfigError: a side below 1.
    """
    if min(height, width, reference) < 1:
        raise ConfigError(f"{height}x{width} against {reference} is no pair of sizes. Pass sides of at least 1 pixel.")
    return 2 * math.log(reference) - math.log(height * width)


def _cosine(t: Tensor) -> Tensor:
    angle = (t + COSINE_OFFSET) / (1 + COSINE_OFFSET) * (math.pi / 2)
    return (angle.tan().pow(-2) + COSINE_FLOOR).log()


def _cosine_time(log_snr: Tensor) -> Tensor:
    angle = (log_snr.exp() - COSINE_FLOOR).clamp_min(0).rsqrt().atan()
    return angle / (math.pi / 2) * (1 + COSINE_OFFSET) - COSINE_OFFSET


def _linear(t: Tensor) -> Tensor:
    return -(1e-4 + 10 * t.square()).expm1().log()


def _linear_time(log_snr: Tensor) -> Tensor:
    return ((log_snr.neg().exp().log1p() - 1e-4) / 10).clamp_min(0).sqrt()


def per_image(number: Tensor, like: Tensor) -> Tensor:
    """Returns numbers [B] as [B, 1, 1, 1], of the dtype and on the device of the images `like`."""
    return number.to(like)[:, None, None, None]


def _alpha_sigma(log_snr: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    return per_image(log_snr.sigmoid().sqrt(), like), per_image(log_snr.neg().sigmoid().sqrt(), like)


def check_images(t: Tensor, **images: Tensor) -> None:
    """Refuses images that are not [B, C, H, W] of one shape, or times that are not [B]; raises ShapeError."""
    first = next(iter(images.values()))
    if first.dim() != 4 or t.shape != first.shape[:1] or any(image.shape != first.shape for image in images.values()):
        shapes = ", ".join(f"{name} {list(image.shape)}" for name, image in images.items())
        raise ShapeError(f"{shapes} and t {list(t.shape)} do not fit. Pass images [B, C, H, W] of one shape and t [B].")


def check_interpolation(interpolation: float) -> None:
    """Refuses a variance interpolation out of 0..1; raises ConfigError."""
    if not 0 <= interpolation <= 1:
        raise ConfigError(f"interpolation = {interpolation} must lie in 0..1: 0 is the posterior's own variance.")


def _check_name(argument: str, received: str, allowed: tuple[str, ...]) -> None:
    if received not in allowed:
        raise ConfigError(f"{argument} = {received!r} is unknown.{did_you_mean(received, allowed)}")


def _check_schedule(log_snr: Callable[[Tensor], Tensor], time: Callable[[Tensor], Tensor]) -> None:
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    values = log_snr(t)
    wrong = ~values.isfinite() | (values.diff(prepend=values[:1] + 1) >= 0)
    for at in t[wrong][:1].tolist():
        value = float(log_snr(torch.tensor([at], dtype=torch.float64)))
        raise ConfigError(f"log_snr is {value} at t = {at:.3f}. It must be finite in 0..1 and fall all the way.")
    for at, back in zip(t.tolist(), time(values).tolist(), strict=True):
        if not abs(at - back) < 1e-6:
            raise ConfigError(f"time is {back} at the log SNR of t = {at:.3f}. It must be the inverse of log_snr.")
