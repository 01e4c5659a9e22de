"""VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937) and VQGAN (Esser et al. 2021, arXiv 2012.09841): stage 1, the codes.

`build` makes the autoencoder, which is all that is needed to use codes. `TokenizerLoss` is what trains it, written out: the
losses of generator and discriminator, and how they are weighed. Networks, quantisers and distances are in `codecs/`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.codecs.perceptual import PerceptualDistance, make_perceptual
from rasterformer.codecs.vq.adversarial import (
    adaptive_weight,
    discriminator_ramp,
    generator_loss,
    hinge_discriminator_loss,
    vanilla_discriminator_loss,
)
from rasterformer.codecs.vq.autoencoder import Decoder, Encoder, VQAutoencoder
from rasterformer.codecs.vq.codec import network_input
from rasterformer.codecs.vq.discriminator import PatchDiscriminator
from rasterformer.codecs.vq.quantise import (
    FiniteScalarQuantiser,
    Quantiser,
    SimVectorQuantiser,
    VectorQuantiser,
)
from rasterformer.systems.vqgan.config import Config


def build(config: Config) -> VQAutoencoder:
    """Makes encoder, quantiser and decoder, with fresh weights from torch's current random state."""
    encoder, decoder = (
        kind(
            config.channels,
            config.z_channels,
            base_width=config.base_width,
            multipliers=config.multipliers,
            res_blocks=config.res_blocks,
            attention_levels=config.attention_levels,
            middle_attention=config.middle_attention,
            norm_groups=config.norm_groups,
            dropout_prob=config.dropout_prob,
        )
        for kind in (Encoder, Decoder)
    )
    assert isinstance(encoder, Encoder) and isinstance(decoder, Decoder), "in that order"
    return VQAutoencoder(
        encoder,
        decoder,
        build_quantiser(config),
        z_channels=config.z_channels,
        dim=config.dim,
    )


def build_quantiser(config: Config) -> Quantiser:
    """Makes the quantiser that the recipe names."""
    if config.quantiser == "fsq":
        assert config.fsq_levels is not None, "a configuration without is refused"
        return FiniteScalarQuantiser(config.fsq_levels)
    if config.quantiser == "sim":
        return SimVectorQuantiser(config.vocab_size, config.dim, beta=config.beta)
    return VectorQuantiser(
        config.vocab_size,
        config.dim,
        beta=config.beta,
        beta_on=config.beta_on,
        update="ema" if config.quantiser == "ema" else "gradient",
        normalise=config.normalise,
        estimator=config.estimator,
        decay=config.ema_decay,
        restart_after=config.restart_after,
        init=config.codebook_init,
    )


@dataclass(frozen=True)
class Encoded:
    """What the codebook learns from after a step.

    Args:
        z: float32 [B, D, h, w], the encoder's output, detached.
        codes: int64 [B, h, w].
    """

    z: Tensor
    codes: Tensor


class TokenizerLoss(nn.Module):
    """The losses of stage 1 and their gradients (paper, section 3.1).

    Args:
        config: weights and kinds of the losses.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.discriminator = (
            None
            if config.discriminator == "none"
            else PatchDiscriminator(
                config.channels,
                base_width=config.discriminator_width,
                num_layers=config.discriminator_layers,
                norm=config.discriminator_norm,
            )
        )
        self.perceptual: PerceptualDistance | None = (
            None
            if config.perceptual == "none"
            else make_perceptual(config.perceptual, weights=config.perceptual_weights)
        )

    def reconstruction_loss(
        self, images: Tensor, seen: Tensor, reconstruction: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """What remains of the image: pixels and perception, means over all elements (paper, section 3.1: L_rec).

        Args:
            images: uint8 [B, 3, H, W].
            seen: float [B, c, H, W], what the encoder saw of them.
            reconstruction: float32 [B, c, H, W], what the decoder made.

        Returns:
            a scalar, and its parts for the log.
        """
        config = self.config
        if config.pictures == "labels":
            loss = F.cross_entropy(reconstruction, images[:, 0].long())
            return config.pixel_weight * loss, {"pixel_loss": float(loss.detach())}
        difference = seen - reconstruction
        pixel = difference.abs().mean() if config.pixel_loss == "l1" else difference.square().mean()
        total, parts = config.pixel_weight * pixel, {"pixel_loss": float(pixel.detach())}
        if self.perceptual is not None:
            distance = self.perceptual(_three_channels(seen), _three_channels(reconstruction)).mean()
            total = total + config.perceptual_weight * distance
            parts["perceptual_distance"] = float(distance.detach())
        return total, parts

    def accumulate_gradients(
        self, autoencoder: VQAutoencoder, images: Tensor, *, batch: int, share: float = 1.0
    ) -> tuple[dict[str, float], Encoded]:
        """Adds the gradients of one part of a batch to autoencoder and discriminator.

        total = L_rec + codebook_weight L_vq + lambda adversarial_weight ramp L_adv for the autoencoder (paper, equations 6 and
        7); the discriminator learns from the same reconstructions. L_rec and L_adv reach the autoencoder only through the
        reconstruction, so that their gradients are found there once; lambda and the total follow from them.

        Args:
            autoencoder: in training mode.
            images: uint8 [B, 3, H, W].
            batch: batches trained on so far: decides what counts yet.
            share: of this part in the whole batch.

        Returns:
            figures for the log, and what the codebook may learn from.
        """
        config = self.config
        seen = network_input(images, config.pictures, config.num_labels)
        z = autoencoder.encode(seen)
        quantised = autoencoder.quantiser(z)
        reconstruction = autoencoder.decode(quantised.values).float()

        loss, parts = self.reconstruction_loss(images, seen, reconstruction)
        (pull,) = torch.autograd.grad(loss, reconstruction)
        figures = {
            "reconstruction_loss": float(loss.detach()),
            **parts,
            "codebook_loss": float(quantised.loss.detach()),
        }
        count = discriminator_ramp(batch, start=config.adversarial_start, ramp=config.adversarial_ramp)
        if self.discriminator is not None and count > 0:
            self.discriminator.requires_grad_(False)  # it must not learn from what the generator wants
            adversarial = generator_loss(self.discriminator(reconstruction))
            (push,) = torch.autograd.grad(adversarial, reconstruction)
            self.discriminator.requires_grad_(True)
            weight = config.adversarial_weight * count
            if config.adaptive:
                # scalars whose gradients at the last layer are those of the two losses
                ratio = adaptive_weight(
                    (reconstruction * pull).sum(),
                    (reconstruction * push).sum(),
                    autoencoder.last_layer,
                    delta=config.delta,
                    largest=config.largest_lambda,
                )
                weight = weight * float(ratio)
                figures["lambda"] = float(ratio)
            pull = pull + weight * push
            figures["adversarial_loss"] = float(adversarial.detach())
        outputs, pulls = [reconstruction], [share * pull]
        if quantised.loss.requires_grad:  # rounding has no codebook to learn
            outputs.append(quantised.loss)
            pulls.append(torch.full_like(quantised.loss, share * config.codebook_weight))
        torch.autograd.backward(outputs, pulls)

        if self.discriminator is not None and batch >= config.discriminator_start:
            figures |= self._discriminator_step(seen, reconstruction.detach(), share)
        return figures, Encoded(z.detach().float(), quantised.codes)

    def _discriminator_step(self, seen: Tensor, reconstruction: Tensor, share: float) -> dict[str, float]:
        assert self.discriminator is not None, "there is one to train"
        real, fake = self.discriminator(seen), self.discriminator(reconstruction)
        is_hinge = self.config.adversarial_loss == "hinge"
        loss = hinge_discriminator_loss(real, fake) if is_hinge else vanilla_discriminator_loss(real, fake)
        (share * loss).backward()
        return {
            "discriminator_loss": float(loss.detach()),
            "logits_real": float(real.detach().mean()),
            "logits_fake": float(fake.detach().mean()),
        }


def _three_channels(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1)
