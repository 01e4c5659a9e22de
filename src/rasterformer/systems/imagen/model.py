"""Imagen (Saharia et al. 2022, arXiv 2205.11487): a network that sees a noisy image and a text, and says what the image was.

One model is one stage: from text to a small image, or from a small image to a larger one; `System.upscalers` joins stages. The
noise is in `diffusion/gaussian.py`, drawing in `diffusion/samplers.py`, the networks are in `nn/`; here is what they are told and
what they learn from. `config.py` says which of it is the paper's. Read `forward` and `loss` first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rasterformer.autoregressive.noise import image_generators
from rasterformer.codecs.continuous import ContinuousCodec, to_numbers
from rasterformer.conditioning.check import check_label, check_text
from rasterformer.conditioning.resize import enlarge
from rasterformer.diffusion.edm import EdmPreconditioning, make_edm
from rasterformer.diffusion.gaussian import GaussianProcess, make_gaussian
from rasterformer.diffusion.image_denoiser import ImageDenoiser, Seen, predictor
from rasterformer.diffusion.image_options import ImageOptions
from rasterformer.diffusion.samplers import draw_images, normal
from rasterformer.errors import ConfigError, ShapeError
from rasterformer.interfaces import Cond, Loss, OnStep, SampleOptions
from rasterformer.nn.dit import DiT
from rasterformer.nn.efficient_unet import EfficientUnet
from rasterformer.nn.image_encoder import ImageEncoder
from rasterformer.nn.live_memory import meta_copy, peak_bytes
from rasterformer.nn.text_input import TextInput
from rasterformer.nn.unet import Unet
from rasterformer.recipe import TextConfig
from rasterformer.systems.imagen.config import Config
from rasterformer.tasks import SourceShape

CLASS_STD = 1.0  # of a class's token, as long as a text's after its norm


class Imagen(ImageDenoiser):
    """One stage: p(x | z_t, text, class, source).

    Args:
        config: what it is.
        image_size: side of the images, pixels.
        num_classes: classes to condition on; 0 for none.
        source: what the task's sources look like. None: there is no task.
        text: how texts are read. None: there are none.

    Attributes:
        network: a U-Net or a transformer, which knows nothing of processes.
    """

    def __init__(
        self,
        config: Config,
        image_size: int,
        *,
        num_classes: int = 0,
        source: SourceShape | None = None,
        text: TextConfig | None = None,
    ) -> None:
        super().__init__()
        self.config, self.num_classes, self.source = config, num_classes, source
        self.image_shape, self.multiple = (3, image_size, image_size), config.multiple
        self.has_null = config.drop_condition_prob > 0 and (num_classes > 0 or text is not None)
        self.preconditioning: EdmPreconditioning | None = None
        if config.schedule == "edm":
            self.process: GaussianProcess = make_edm()
            self.preconditioning = EdmPreconditioning(self.process)
        else:
            self.process = make_gaussian(config.schedule, shift=config.log_snr_shift)
        self.source_process = make_gaussian("linear") if config.source_noise > 0 else None
        self.most_source_noise = config.source_noise
        self.text_input, self.class_embedding = None, None
        if text is not None:
            is_bytes = text.encoder == "bytes"
            self.text_input = TextInput(config.text_width, dim=text.dim, length=text.length, is_bytes=is_bytes)
        if num_classes:
            self.class_embedding = nn.Embedding(num_classes, config.text_width)
            nn.init.normal_(self.class_embedding.weight, std=CLASS_STD)
        source_channels = 0 if source is None else source.channels + int(source.has_mask)
        told: dict[str, Any] = {
            "text_dim": None if text is None and not num_classes else config.text_width,
            "text_enters": config.text_enters,
            "image_channels": source_channels if config.source_enters != "tokens" else 0,
            "noised_image": config.source_noise > 0 and config.source_enters != "tokens",
            "dropout_prob": config.dropout_prob,
            "gradient_checkpointing": config.gradient_checkpointing,
        }
        self.encoder: ImageEncoder | None = None
        if source is not None and config.source_enters != "channels":
            self.encoder = ImageEncoder(
                source_channels,
                patch=config.patch,
                width=config.width,
                depth=config.encoder_depth,
                num_heads=config.width // config.head_dim,
            )
        self.network = _network(config, told, encoded_channels=0 if self.encoder is None else config.width)

    def forward(self, z: Tensor, t: Tensor, cond: Cond, seen: Seen | None) -> Tensor:
        """Says what noisy images were, or their noise, as `config.prediction` has it.

        Args:
            z: float [B, 3, H, W], images with the noise of t; H and W multiples of `multiple`.
            t: float [B], 0..1.
            cond: label, text, and whose of them are hidden.
            seen: what `see` made of the sources.

        Returns:
            float32 (float64 where the weights are) [B, 3, H, W].

        Raises:
            ConfigError: the condition is not what the model was trained with.
            ShapeError: z of another shape.
        """
        self._check(cond, seen, len(z))
        states, known = self._tokens(cond)
        told: dict[str, Any] = {"text": states, "text_known": known}
        if seen is not None and self.config.source_enters != "tokens":
            told |= {"image": seen.image, "image_log_snr": seen.log_snr}
        if self.encoder is not None:
            assert seen is not None, "checked above"
            told |= {"encoded": self.encoder(seen.image) if seen.encoded is None else seen.encoded}
        if self.preconditioning is not None:
            z = self.preconditioning.network_input(z, t)
        return self.network(z, self.process.log_snr(t), **told)

    def to_x0(self, output: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The image that an output stands for, [B, 3, H, W]."""
        if self.preconditioning is not None:
            return self.preconditioning.to_x0(output, z, t)
        assert self.config.prediction != "edm", "it has a preconditioning"
        return self.process.to_x0(output, z, t, self.config.prediction)

    def see(
        self, cond: Cond, size: tuple[int, int], *, level: Tensor | None, rng: Sequence[torch.Generator]
    ) -> Seen | None:
        """See `ImageDenoiser.see`. Small sources are enlarged by bilinear interpolation: no edge of a pixel stands out."""
        image = self._enlarged(cond, size)
        if image is None:
            return None
        if (level is None) != (self.source_process is None):
            kind = "needs" if level is None else "has no use for"
            raise ConfigError(f"this model {kind} a level of the noise on its sources (model.source_noise).")
        seen = self._noised(image, level, rng)
        return seen if self.encoder is None else seen._replace(encoded=self.encoder(seen.image))

    def loss(self, x: Tensor, cond: Cond, *, rng: torch.Generator | None) -> Loss:
        """The weighted squared error of what the network says, a mean over the values of an image. It is no likelihood.

        The times of a batch are evenly spaced, from a random offset (Kingma et al. 2021, VDM, appendix I.1). All that is random
        comes from `rng`, but for dropout.

        Args:
            x: float32 [B, 3, H, W], images in -1..1.
            cond: label, text, source; some labels and texts are hidden in training.
            rng: of times, noise, crops and what is hidden.
        """
        assert rng is not None, "times and noise are random"
        count, config = len(x), self.config
        level = None
        if self.source_process is not None:
            level = config.source_noise * torch.rand(count, generator=rng).to(x.device)
        streams = image_generators(int(torch.randint(2**62, (), generator=rng)), count)
        image = self._enlarged(cond, (x.shape[2], x.shape[3]))
        if config.crop is not None:
            x, image, cond = self._cropped(x, image, cond, config.crop, rng)
        seen = None if image is None else self._noised(image, level, streams)
        if self.training and self.has_null:
            dropped = (torch.rand(count, generator=rng) < config.drop_condition_prob).to(x.device)
            cond = replace(cond, dropped=dropped if cond.dropped is None else dropped | cond.dropped)
        even = (torch.arange(count) / count + torch.rand((), generator=rng)) % 1  # [B]
        noise = torch.randn(x.shape, generator=rng).to(x)
        if self.preconditioning is not None:
            t = self.preconditioning.training_times(torch.special.ndtri(even.clamp(1e-6, 1 - 1e-6))).to(x.device)
            target, weight = self.preconditioning.target(x, noise, t), torch.ones_like(t)
        else:
            assert config.prediction != "edm", "it has a preconditioning"
            t = even.to(x.device)
            target = self.process.target(x, noise, t, config.prediction)
            weight = self.process.weight(t, config.prediction, config.weighting)
        output = self.forward(self.process.diffuse(x, t, noise), t, cond, seen)
        error = (output - target).square().mean(1)  # [B, H, W]
        counted = (
            torch.ones_like(error) if cond.known is None else (~cond.known).to(error)
        )  # known pixels are not drawn
        pixels = counted.flatten(1).sum(1)
        mean = (error * counted).flatten(1).sum(1) / pixels.clamp_min(1)
        total = (weight * mean).mean()
        return Loss(
            total=total,
            nats=torch.full((count,), torch.nan, device=x.device),
            dims=3 * pixels.long(),
            bound="none",
            terms={"squared_error": mean.detach().mean()},
        )

    def sample(
        self,
        cond: Cond,
        batch_size: int,
        *,
        options: SampleOptions,
        rng: Sequence[torch.Generator],
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Draws x float32 [B, 3, H, W] at the model's size, sources without noise, by the defaults of `ImageOptions`.

        Raises:
            ConfigError: `options` are not plain: nothing here has a temperature.
        """
        if options != SampleOptions():
            raise ConfigError(
                "temperature, top_k and top_p are for models that draw symbols, and this one draws numbers."
            )
        device = next(self.parameters()).device
        z = normal(rng, torch.empty(batch_size, *self.image_shape, device=device))
        level = None if self.source_process is None else torch.zeros(batch_size, device=device)
        seen = self.see(cond, (z.shape[2], z.shape[3]), level=level, rng=rng)
        plain = ImageOptions()
        predict = predictor(self, cond, seen, plain)
        return draw_images(
            predict, self.process, z, steps=plain.num_steps, sampler=plain.sampler, rng=rng, on_step=on_step
        )

    def state_bytes(self, batch_size: int, size: tuple[int, int] | None = None) -> int:
        """Bytes of the most tensors that live at once in a forward pass, by running it without numbers."""
        run = meta_copy(self)._pass(batch_size, size)
        with torch.no_grad():
            return peak_bytes(run)

    def step_bytes(self, batch_size: int) -> int:
        """Bytes that a training step takes besides weights and optimiser, by running one without numbers, in float32."""
        side = self.image_shape[1] if self.config.crop is None else self.config.crop
        run = meta_copy(self).train()._pass(batch_size, (side, side))
        return peak_bytes(lambda: run().sum().backward())

    def _pass(self, batch_size: int, size: tuple[int, int] | None) -> Callable[[], Tensor]:
        """A forward pass of the network on inputs without numbers, of texts of the most tokens."""
        height, width = size or self.image_shape[1:]
        z, t = torch.empty(batch_size, 3, height, width, device="meta"), torch.empty(batch_size, device="meta")
        told: dict[str, Any] = {}
        if self.text_input is not None or self.class_embedding is not None:
            tokens = int(self.class_embedding is not None) + (0 if self.text_input is None else self.text_input.length)
            told["text"] = torch.empty(batch_size, tokens, self.config.text_width, device="meta")
        channels = 0 if self.source is None else self.source.channels + int(self.source.has_mask)
        image = torch.empty(batch_size, channels, height, width, device="meta")
        if channels and self.config.source_enters != "tokens":
            told |= {"image": image, "image_log_snr": t if self.config.source_noise > 0 else None}

        def run() -> Tensor:
            encoded = {} if self.encoder is None else {"encoded": self.encoder(image)}
            result: Tensor = self.network(z, t, **told, **encoded)
            return result

        return run

    def to_bfloat16(self) -> Imagen:
        """Returns a copy with all weights in bfloat16."""
        return copy.deepcopy(self).to(torch.bfloat16)

    def _tokens(self, cond: Cond) -> tuple[Tensor | None, Tensor | None]:
        """The class and the text as tokens [B, S, text_width], and which are known, bool [B, S]."""
        parts = []
        if self.class_embedding is not None:
            assert cond.label is not None, "checked"
            label = self.class_embedding(cond.label)[:, None]
            parts.append((label, torch.ones(label.shape[:2], dtype=torch.bool, device=label.device)))
        if self.text_input is not None:
            parts.append(self.text_input(cond))
        if not parts:
            return None, None
        states, known = (torch.cat(kind, 1) for kind in zip(*parts, strict=True))
        return states, known if cond.dropped is None else known & ~cond.dropped[:, None]

    def _enlarged(self, cond: Cond, size: tuple[int, int]) -> Tensor | None:
        """The condition's source without noise, float32 [B, C', *size], as the network sees it. None: the model takes none."""
        if cond.source is None or self.source is None:
            if cond.source is not None:
                raise ConfigError("source was given, but this model makes images from nothing. Leave it out.")
            if self.source is not None:
                raise ConfigError("source is missing: this model makes images from others.")
            return None
        scale = self.image_shape[1] // self.source.size
        height, width = cond.source.shape[2:]
        if (scale * height, scale * width) != size:
            raise ShapeError(
                f"source is {height}x{width} pixels, and the image {size[0]}x{size[1]}. Images of this model are {scale} times "
                f"as high and as wide as their sources: give a source of {size[0] / scale:g}x{size[1] / scale:g}."
            )
        image = to_numbers(enlarge(cond.source.cpu(), size, "bilinear").to(cond.source.device))
        if not self.source.has_mask:
            return image
        if cond.known is None:
            raise ConfigError("known is missing: which pixels of the source are those of the image, bool [B, H, W].")
        known = cond.known[:, None].to(image)
        return torch.cat([image * known, known], 1)

    def _noised(self, image: Tensor, level: Tensor | None, rng: Sequence[torch.Generator]) -> Seen:
        """Enlarged sources with the noise of times [B], one generator for each. None: they have none."""
        if level is None:
            return Seen(image, None)
        assert self.source_process is not None, "levels are of its noise"
        noised = self.source_process.diffuse(image, level, normal(rng, image))
        return Seen(noised, self.source_process.log_snr(level).float())

    def _cropped(
        self, x: Tensor, image: Tensor | None, cond: Cond, side: int, rng: torch.Generator
    ) -> tuple[Tensor, Tensor | None, Cond]:
        """The same random part of each image, of its enlarged source, and of what is known."""
        rows, cols = (torch.randint(n - side + 1, (len(x),), generator=rng).tolist() for n in x.shape[2:])

        def part(maps: Tensor) -> Tensor:
            corners = zip(maps, rows, cols, strict=True)
            return torch.stack([one[..., r : r + side, c : c + side] for one, r, c in corners])

        image = None if image is None else part(image)
        return part(x), image, cond if cond.known is None else replace(cond, known=part(cond.known))

    def _check(self, cond: Cond, seen: Seen | None, batch_size: int) -> None:
        if cond.codes is not None:
            raise ConfigError("codes were given, but this system takes classes, texts and images only. Leave them out.")
        if (seen is None) != (self.source is None):
            raise ConfigError(
                "seen is missing: this model makes images from others."
                if seen is None
                else "seen was given, but this model makes images from nothing. Leave it out."
            )
        check_label(cond.label, num_classes=self.num_classes, batch_size=batch_size)
        check_text(cond, takes_text=self.text_input is not None, batch_size=batch_size)
        if cond.dropped is not None and not self.has_null:
            if not self.num_classes and self.text_input is None:
                raise ConfigError("guidance needs a model of classes or texts, and this one has neither.")
            raise ConfigError(
                "guidance needs a model that has seen images without their condition, and this one has not. Train it with "
                "model.drop_condition_prob = 0.1."
            )


def _network(config: Config, told: Mapping[str, Any], *, encoded_channels: int) -> nn.Module:
    if config.denoiser == "transformer":
        return DiT(
            3,
            width=config.width,
            depth=config.depth,
            num_heads=config.width // config.head_dim,
            patch=config.patch,
            mlp_width=config.mlp_width,
            qk_norm=True,
            encoded_channels=encoded_channels,
            **told,
        )
    if config.denoiser == "efficient_unet":
        return EfficientUnet(
            3,
            width=config.width,
            multipliers=config.multipliers,
            res_blocks=config.res_blocks,
            num_heads=config.width * config.multipliers[-1] // config.head_dim,
            self_attention=config.self_attention,
            norm_groups=config.norm_groups,
            **told,
        )
    return Unet(
        3,
        width=config.width,
        multipliers=config.multipliers,
        res_blocks=config.res_blocks[0],
        attention_levels=config.attention_levels,
        head_dim=config.head_dim,
        norm_groups=config.norm_groups,
        **told,
    )


def build(
    config: Config,
    *,
    image_size: int,
    num_classes: int,
    source: SourceShape | None = None,
    text: TextConfig | None = None,
) -> tuple[ContinuousCodec, Imagen]:
    """Makes codec and network, with fresh weights from torch's current random state.

    Args:
        config: what the network is.
        image_size: side of the images, pixels.
        num_classes: classes to condition on; 0 for none.
        source: what the task's sources look like. None: there is no task.
        text: how texts are read. None: there are none.
    """
    return ContinuousCodec(image_size), Imagen(config, image_size, num_classes=num_classes, source=source, text=text)
