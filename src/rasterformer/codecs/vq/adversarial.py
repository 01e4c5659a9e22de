"""The adversarial part of a codec's loss: what discriminator and generator minimise, and how much the latter counts.

`real` and `fake` are what a discriminator says about patches of images and of reconstructions, float of any shape, large
for images. The discriminator itself is in `discriminator.py`; the whole loss is written out in the system that trains.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Returns (mean max(0, 1 - real) + mean max(0, 1 + fake)) / 2, a scalar; 0 where all is told apart by a margin of 1.

    Source: Lim & Ye 2017, "Geometric GAN"; with the half of VQGAN's code.
    """
    return (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()) / 2


def vanilla_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Returns (mean log(1 + exp(-real)) + mean log(1 + exp(fake))) / 2, a scalar: the cross-entropy of logits.

    Source: Goodfellow et al. 2014, equation 1, which the VQGAN paper writes; with the half of VQGAN's code.
    """
    return (F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()) / 2


def generator_loss(fake: Tensor) -> Tensor:
    """Returns -mean fake, a scalar, for both discriminator losses."""
    return -fake.float().mean()


def adaptive_weight(
    reconstruction_loss: Tensor,
    adversarial_loss: Tensor,
    last_layer: Tensor,
    *,
    delta: float = 1e-4,
    largest: float = 1e4,
) -> Tensor:
    """Returns lambda = |grad_L reconstruction| / (|grad_L adversarial| + delta): both then pull the last layer equally hard.

    Both graphs are kept, so that the sum of the losses can still be differentiated.

    Args:
        reconstruction_loss: scalar; pixels and perception, without the codebook's terms.
        adversarial_loss: scalar, `generator_loss`.
        last_layer: L, the weight of the decoder's last convolution. Both losses depend on it, with gradients enabled.
        delta: keeps lambda finite. The paper has 1e-6, its code 1e-4.
        largest: lambda is at most this.

    Returns:
        float32 scalar in 0..largest, without a gradient.

    Source: Esser et al. 2021, equation 7.
    """
    assert torch.is_grad_enabled(), "lambda is a ratio of gradients: it does not exist where they are disabled"
    (reconstruction,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (adversarial,) = torch.autograd.grad(adversarial_loss, last_layer, retain_graph=True)
    ratio = reconstruction.float().norm() / (adversarial.float().norm() + delta)
    return ratio.clamp(0, largest).detach()


def discriminator_ramp(batches: int, *, start: int, ramp: int) -> float:
    """Returns how much the adversarial loss counts, 0..1: 0 up to `start`, then in a straight line to 1 at `start + ramp`.

    Args:
        batches: batches trained on so far; a batch counts once, however many optimisers step on it.
        start: batches before the adversarial loss counts.
        ramp: batches from 0 to 1. 0: the whole weight from `start` on (the paper's code).
    """
    if batches < start:
        return 0.0
    return 1.0 if ramp == 0 else min((batches - start) / ramp, 1.0)
