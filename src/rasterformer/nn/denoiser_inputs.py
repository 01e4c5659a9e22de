"""What a denoiser of images is told besides the noisy image: how noisy it is, a text, another image. The same for all networks.

Everything is checked here, once. How a network uses it is in `unet`, `efficient_unet` and `dit`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.errors import ConfigError, ShapeError
from rasterformer.nn.cross_attention import CrossAttention
from rasterformer.nn.modulation import sinusoids

TextEnters = Literal["tokens", "pooled", "both"]

# Log SNRs lie within about -10..10; their sinusoids are taken over 1000 numbers, as those of 1000 steps (Ho et al. 2020).
SINUSOIDS_PER_LOG_SNR = 50.0
POOLING_HEAD_DIM = 64


class Tokens(NamedTuple):
    """A condition as a sequence.

    Args:
        states: [B, S, D].
        known: bool [B, S], which of them there are, the first always. None: all.
    """

    states: Tensor
    known: Tensor | None


class NetworkInputs(NamedTuple):
    """What `DenoiserInputs` made of its arguments, in the dtype of the weights.

    Args:
        maps: [B, C + C', H, W], the noisy image and on further channels the other one.
        vector: [B, E], all that is said of the image as a whole, after SiLU.
        tokens: of the text. None: the network's attention does not see it.
    """

    maps: Tensor
    vector: Tensor
    tokens: Tokens | None


class NullToken(nn.Module):
    """A learned token before those of a condition, so that there is always something to attend to.

    A condition of which nothing is known, and none at all, are this token alone: the same thing.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.state = nn.Parameter(torch.randn(1, dim))  # as long as states that come from a LayerNorm

    def forward(self, states: Tensor | None, known: Tensor | None, *, batch_size: int) -> Tokens:
        """states [B, S, D] or None, known bool [B, S] or None: all -> [B, 1 + S, D] and bool [B, 1 + S] or None."""
        null = self.state.expand(batch_size, -1, -1)
        if states is None:
            return Tokens(null, None)
        together = torch.cat([null, states.to(null.dtype)], 1)
        return Tokens(together, None if known is None else F.pad(known, (1, 0), value=True))


class AttentionPooling(nn.Module):
    """A sequence as one vector: what a learned query finds in it (Saharia et al. 2022, section 2.5 and appendix D.3.1).

    Args:
        dim: D of the sequence.
        width: E of the vector.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, dim))
        heads = max(1, dim // POOLING_HEAD_DIM)
        self.attention = CrossAttention(dim, num_heads=heads, num_kv_heads=heads, head_dim=POOLING_HEAD_DIM, bias=True)
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, width)

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens of B images -> [B, E]."""
        query = self.query.expand(len(tokens.states), -1, -1)
        return self.out(self.norm(self.attention(query, tokens.states, tokens.known)[:, 0]))


class NumberEmbedding(nn.Module):
    """A number, as sinusoids -> linear map -> SiLU -> linear map.

    Args:
        num_sinusoids: of the number; even.
        width: E of the vector.
    """

    def __init__(self, num_sinusoids: int, width: int) -> None:
        super().__init__()
        self.num_sinusoids = num_sinusoids
        self.up, self.down = nn.Linear(num_sinusoids, width), nn.Linear(width, width)

    def forward(self, value: Tensor) -> Tensor:
        """value [B] -> [B, E]."""
        return self.down(F.silu(self.up(sinusoids(value, self.num_sinusoids).to(self.up.weight.dtype))))


class DenoiserInputs(nn.Module):
    """Noisy images and their conditions -> maps, a vector and tokens.

    The vector is the sum of the embeddings of the noise level, of that of the other image, and of the pooled text.

    Args:
        channels: C of the noisy image.
        image_channels: C' of the other image (a small one enlarged, what is known of an image and where); 0 for none.
        noised_image: the other image has noise of its own, whose level is said (Saharia et al. 2022, section 2.4: noise
            conditioning augmentation).
        num_sinusoids: of each log SNR; even.
        vector_width: E.
        text_dim: D of the text's states; they have one length, as `TextInput` makes them. None: there are no texts.
        text_enters: `tokens`: the network's attention sees them. `pooled`: they become part of the vector. Or both.
        multiple: what height and width must be multiples of.

    Raises:
        ConfigError: `noised_image` without image_channels.
    """

    def __init__(
        self,
        channels: int,
        *,
        image_channels: int,
        noised_image: bool,
        num_sinusoids: int,
        vector_width: int,
        text_dim: int | None,
        text_enters: TextEnters,
        multiple: int,
    ) -> None:
        super().__init__()
        if noised_image and not image_channels:
            raise ConfigError(
                "noised_image = True, but image_channels = 0: there is no image to have noise. Give it channels."
            )
        self.channels, self.image_channels, self.multiple = channels, image_channels, multiple
        self.text_dim = text_dim
        self.shows_tokens = text_dim is not None and text_enters != "pooled"
        self.noise = NumberEmbedding(num_sinusoids, vector_width)
        self.image_noise = NumberEmbedding(num_sinusoids, vector_width) if noised_image else None
        self.null_token = None if text_dim is None else NullToken(text_dim)
        self.pooling = None
        if text_dim is not None and text_enters != "tokens":
            self.pooling = AttentionPooling(text_dim, vector_width)

    def forward(
        self,
        z: Tensor,
        log_snr: Tensor,
        *,
        text: Tensor | None,
        text_known: Tensor | None,
        image: Tensor | None,
        image_log_snr: Tensor | None,
    ) -> NetworkInputs:
        """Checks and embeds.

        Args:
            z: float [B, C, H, W], the noisy image.
            log_snr: float [B], log of signal over noise, in powers: of z.
            text: float [B, S, D]. None: no image has one.
            text_known: bool [B, S]. None: all. An image may know nothing of its text; it then has none.
            image: float [B, C', H, W], if and only if there are image_channels.
            image_log_snr: float [B], if and only if `noised_image`.

        Raises:
            ShapeError: a tensor has another shape or dtype; height or width is no multiple of `multiple`.
            ConfigError: one is missing, or given to a network that does not take it.
        """
        dtype = self.noise.up.weight.dtype
        maps = self._maps(z, image).to(dtype)
        _check_numbers("log_snr", log_snr, len(z))
        vector = self.noise(SINUSOIDS_PER_LOG_SNR * log_snr)
        if self.image_noise is None:
            _refuse("image_log_snr", image_log_snr, "an image that has noise (noised_image)")
        else:
            level = _need("image_log_snr", image_log_snr, "how noisy the image is (noised_image)")
            _check_numbers("image_log_snr", level, len(z))
            vector = vector + self.image_noise(SINUSOIDS_PER_LOG_SNR * level)
        tokens = self._tokens(text, text_known, len(z))
        if self.pooling is not None and tokens is not None:
            vector = vector + self.pooling(tokens)
        return NetworkInputs(maps, F.silu(vector), tokens if self.shows_tokens else None)

    def _maps(self, z: Tensor, image: Tensor | None) -> Tensor:
        if z.ndim != 4 or z.shape[1] != self.channels or not z.is_floating_point():
            raise ShapeError(
                f"z is {z.dtype} {list(z.shape)}; this network takes float [B, {self.channels}, height, width]."
            )
        height, width = z.shape[2:]
        if height % self.multiple or width % self.multiple or not height or not width:
            raise ShapeError(
                f"z has {height}x{width} pixels; this network takes heights and widths that are multiples of {self.multiple}. "
                "Crop or resize the images."
            )
        if not self.image_channels:
            _refuse("image", image, "an image beside the noisy one (image_channels)")
            return z
        image = _need("image", image, f"one of {self.image_channels} channels beside the noisy one")
        wanted = (len(z), self.image_channels, height, width)
        if image.shape != wanted or not image.is_floating_point():
            raise ShapeError(
                f"image is {image.dtype} {list(image.shape)}; float {list(wanted)} is needed, as z has pixels."
            )
        return torch.cat([z, image.to(z.dtype)], 1)

    def _tokens(self, text: Tensor | None, known: Tensor | None, batch_size: int) -> Tokens | None:
        if self.text_dim is None or self.null_token is None:
            _refuse("text", text, "texts (text_dim)")
        elif text is not None and (
            text.ndim != 3 or text.shape[::2] != (batch_size, self.text_dim) or not text.is_floating_point()
        ):
            raise ShapeError(
                f"text is {text.dtype} {list(text.shape)}; this network takes float [{batch_size}, S, {self.text_dim}], as z has "
                "images."
            )
        if known is not None and text is None:
            raise ConfigError("text_known was given without text. Give both, or leave both out.")
        if known is not None and text is not None and (known.dtype != torch.bool or known.shape != text.shape[:2]):
            raise ShapeError(
                f"text_known is {known.dtype} {list(known.shape)}; torch.bool {list(text.shape[:2])} is needed, as text has "
                "tokens."
            )
        return None if self.null_token is None else self.null_token(text, known, batch_size=batch_size)


def _check_numbers(name: str, numbers: Tensor, batch_size: int) -> None:
    if numbers.shape != (batch_size,) or not numbers.is_floating_point():
        raise ShapeError(
            f"{name} is {numbers.dtype} {list(numbers.shape)}; float [{batch_size}] is needed, one number for each image of z."
        )


def _need(name: str, given: Tensor | None, what: str) -> Tensor:
    if given is None:
        raise ConfigError(f"{name} is missing: this network is told {what}.")
    return given


def _refuse(name: str, given: Tensor | None, what: str) -> None:
    if given is not None:
        raise ConfigError(f"{name} was given, but this network was made without {what}. Leave it out.")
