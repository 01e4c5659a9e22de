"""A transformer that denoises images: patches, adaLN-Zero, attention to a text and to an encoded image (DiT).

After Peebles & Xie 2023 (arXiv 2212.09748), with attention to tokens beside it (as Chen et al. 2023, PixArt-alpha). What it is
told is in `denoiser_inputs`. Read `forward` first.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.errors import ConfigError, ShapeError
from rasterformer.nn.blocks import Activation, FeedForward
from rasterformer.nn.cross_attention import CrossAttention
from rasterformer.nn.denoiser_inputs import DenoiserInputs, NullToken, TextEnters, Tokens
from rasterformer.nn.grid_attention import GridAttention, begin_linear_maps, cell_places, check_patches
from rasterformer.nn.modulation import adaptive_norm
from rasterformer.nn.positions import rotary_angles, sinusoidal_positions
from rasterformer.nn.unet_blocks import run


class DiT(nn.Module):
    """Noisy image, noise level and conditions -> as many channels: noise, image or v, as it is trained.

    Patches of the noisy image, with those of an image to condition on at the same place, are tokens. Each layer is
    self-attention, attention to the conditions' tokens, and feed-forward; the vector (noise level, pooled text) scales and
    shifts what each of them takes, and scales what it adds by a gate that begins at zero. A place is known by sinusoids of its
    row and column at the entrance, and by turned queries and keys (`rotary_angles`), so images may have any size. Every result
    is zero at first, for the last map is.

    The encoded image is the part of a source that is not pixel beside pixel: what an encoder (of VQGAN, say) makes of a
    picture to vary or to follow. Its cells are tokens beside those of the text, and lie where they lie in the image.

    Args:
        channels: C of the image.
        width: D of the layers; even, a multiple of num_heads times 4.
        depth: layers.
        num_heads: N.
        patch: pixels along each side of a patch.
        mlp_width: inner width of the feed-forward.
        activation: of the feed-forward.
        qk_norm: normalise queries and keys, with learned scales.
        text_dim: of the text's states. None: there are no texts.
        text_enters: as `tokens` to attend to, `pooled` into the vector, or both.
        encoded_channels: of the cells of an encoded image to attend to; 0 for none.
        image_channels: C' of an image to condition on, concatenated to the noisy one; 0 for none.
        noised_image: that image has noise of its own, and its log SNR is told.
        dropout_prob: on what each part of a layer adds.
        gradient_checkpointing: keep only what layers take, and compute the rest again in the backward pass: less memory, a
            third more time, the same gradients.

    Raises:
        ConfigError: a width that heads do not divide; a patch below 1; `noised_image` without image_channels.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int,
        depth: int,
        num_heads: int,
        patch: int,
        mlp_width: int,
        activation: Activation = "gelu",
        qk_norm: bool = False,
        text_dim: int | None = None,
        text_enters: TextEnters = "both",
        encoded_channels: int = 0,
        image_channels: int = 0,
        noised_image: bool = False,
        dropout_prob: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_patches(width, num_heads=num_heads, patch=patch)
        self.patch, self.width, self.head_dim = patch, width, width // num_heads
        self.encoded_channels, self.gradient_checkpointing = encoded_channels, gradient_checkpointing
        self.inputs = DenoiserInputs(
            channels,
            image_channels=image_channels,
            noised_image=noised_image,
            num_sinusoids=width,
            vector_width=width,
            text_dim=text_dim,
            text_enters=text_enters,
            multiple=patch,
        )
        self.patch_in = nn.Linear((channels + image_channels) * patch**2, width)
        self.text_in = nn.Linear(text_dim, width) if text_dim is not None and self.inputs.shows_tokens else None
        self.null_cell = NullToken(encoded_channels) if encoded_channels else None
        self.encoded_in = (
            nn.Sequential(nn.Linear(encoded_channels, width), nn.LayerNorm(width)) if encoded_channels else None
        )
        self.layers = nn.ModuleList(
            DiTLayer(
                width,
                num_heads=num_heads,
                mlp_width=mlp_width,
                activation=activation,
                qk_norm=qk_norm,
                has_source=self.text_in is not None or self.encoded_in is not None,
                dropout_prob=dropout_prob,
            )
            for _ in range(depth)
        )
        self.modulation_out = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, channels * patch**2)
        begin_linear_maps(self)
        for zero in (self.modulation_out, self.patch_out, *(layer.modulation for layer in self.layers)):
            assert isinstance(zero, nn.Linear), "a layer's modulation is one"
            nn.init.zeros_(zero.weight)

    def forward(
        self,
        z: Tensor,
        log_snr: Tensor,
        *,
        text: Tensor | None = None,
        text_known: Tensor | None = None,
        image: Tensor | None = None,
        image_log_snr: Tensor | None = None,
        encoded: Tensor | None = None,
        encoded_known: Tensor | None = None,
    ) -> Tensor:
        """Returns what is predicted, float32 (float64 where the weights are) [B, C, H, W].

        Args:
            z: float [B, C, H, W], the noisy image; H and W multiples of the patch.
            log_snr: float [B], log of signal over noise, in powers.
            text: float [B, S, D], the text's states, normalised as `TextInput` does. None: no image has a text.
            text_known: bool [B, S], which of them there are. None: all. Where an image has none, that is as without a text.
            image: float [B, C', H, W], if and only if the network has image_channels.
            image_log_snr: float [B], that of the noise on it, if and only if the network has `noised_image`.
            encoded: float [B, encoded_channels, h, w], an encoder's cells, of any grid. None: no image has them.
            encoded_known: bool [B], whose there are. None: all.

        Raises:
            ShapeError: a tensor has another shape or dtype; H or W is no such multiple.
            ConfigError: one is missing, or given to a network that does not take it.
        """
        maps, vector, tokens = self.inputs(
            z, log_snr, text=text, text_known=text_known, image=image, image_log_snr=image_log_snr
        )
        patches = F.pixel_unshuffle(maps, self.patch)  # [B, channels * patch^2, h, w]
        grid = patches.shape[2], patches.shape[3]
        h = self.patch_in(patches.flatten(2).mT)  # [B, L, D]
        rows, cols = cell_places(grid, grid)
        h = h + sinusoidal_positions(rows, cols, self.width).to(h)
        angles = rotary_angles(rows, cols, self.head_dim).to(h.device)
        source = self._source(tokens, encoded, encoded_known, grid=grid, batch_size=len(z))
        step = partial(run, is_checkpointed=self.gradient_checkpointing)
        for layer in self.layers:
            h = step(layer, h, vector, angles, source)
        h = adaptive_norm(h, self.modulation_out(vector).unflatten(-1, (2, -1)))
        out = F.pixel_shuffle(self.patch_out(h).mT.unflatten(2, grid), self.patch)
        return out.to(torch.promote_types(out.dtype, torch.float32))

    def _source(
        self,
        text: Tokens | None,
        encoded: Tensor | None,
        encoded_known: Tensor | None,
        *,
        grid: tuple[int, int],
        batch_size: int,
    ) -> Tokens | None:
        """Tokens of the text and of the encoded image at the width of the layers, side by side."""
        self._check_encoded(encoded, encoded_known, batch_size)
        parts = []
        if self.text_in is not None:
            assert text is not None, "there is one where text_in is"
            parts.append(Tokens(self.text_in(text.states), text.known))
        if self.encoded_in is not None and self.null_cell is not None:
            cells = None if encoded is None else encoded.flatten(2).mT  # [B, hw, encoded_channels]
            known = None
            if cells is not None and encoded_known is not None:
                known = encoded_known[:, None].expand(-1, cells.shape[1])
            given = self.null_cell(cells, known, batch_size=batch_size)
            states = self.encoded_in(given.states)
            if encoded is not None:
                places = cell_places(encoded.shape[2:], grid)
                positions = F.pad(sinusoidal_positions(*places, self.width), (0, 0, 1, 0))  # the null cell lies nowhere
                states = states + positions.to(states)
            parts.append(Tokens(states, given.known))
        if not parts:
            return None
        states = torch.cat([part.states for part in parts], 1)
        if all(part.known is None for part in parts):
            return Tokens(states, None)
        masks = [
            part.states.new_ones(part.states.shape[:2], dtype=torch.bool) if part.known is None else part.known
            for part in parts
        ]
        return Tokens(states, torch.cat(masks, 1))

    def _check_encoded(self, encoded: Tensor | None, known: Tensor | None, batch_size: int) -> None:
        if encoded is None:
            if known is not None:
                raise ConfigError("encoded_known was given without encoded. Give both, or leave both out.")
            return
        if not self.encoded_channels:
            raise ConfigError(
                "encoded was given, but this network was made without an encoded image (encoded_channels). Leave it out."
            )
        if (
            encoded.ndim != 4
            or encoded.shape[:2] != (batch_size, self.encoded_channels)
            or not encoded.is_floating_point()
        ):
            raise ShapeError(
                f"encoded is {encoded.dtype} {list(encoded.shape)}; this network takes float [{batch_size}, "
                f"{self.encoded_channels}, rows, columns], as z has images."
            )
        if known is not None and (known.dtype != torch.bool or known.shape != (batch_size,)):
            raise ShapeError(
                f"encoded_known is {known.dtype} {list(known.shape)}; torch.bool [{batch_size}] is needed, as z has images."
            )


class DiTLayer(nn.Module):
    """adaLN-Zero around self-attention, attention to a source where there is one, and feed-forward.

    Args:
        has_source: whether there is a source to attend to.

    The others are those of `DiT`.
    """

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        mlp_width: int,
        activation: Activation,
        qk_norm: bool,
        has_source: bool,
        dropout_prob: float,
    ) -> None:
        super().__init__()
        head_dim = width // num_heads
        self.attention = GridAttention(width, num_heads=num_heads, qk_norm=qk_norm)
        self.source_attention = None
        if has_source:
            self.source_attention = CrossAttention(
                width, num_heads=num_heads, num_kv_heads=num_heads, head_dim=head_dim, qk_norm=qk_norm, bias=True
            )
        self.feed_forward = FeedForward(
            width,
            mlp_width,
            activation=activation,
            grid=(1, 1),  # patches are seen one by one, wherever they lie
            kernel=(1, 1),
            is_causal=False,
        )
        self.modulation = nn.Linear(width, (3 if has_source else 2) * 3 * width)
        self.dropout = nn.Dropout(dropout_prob)

    def forward(self, h: Tensor, vector: Tensor, angles: Tensor, source: Tokens | None) -> Tensor:
        """h [B, L, D], vector [B, D], angles [L, head_dim / 2] -> [B, L, D]."""
        change = self.modulation(vector).unflatten(-1, (-1, 3, h.shape[-1]))  # [B, parts, scale shift gate, D]
        of_attention, *of_source, of_feed_forward = change.unbind(1)
        h = h + self._gated(self.attention(adaptive_norm(h, of_attention[:, :2]), angles), of_attention)
        if self.source_attention is not None:
            assert source is not None, "this layer attends to a source"
            normed = adaptive_norm(h, of_source[0][:, :2])
            h = h + self._gated(self.source_attention(normed, source.states, source.known), of_source[0])
        return h + self._gated(self.feed_forward(adaptive_norm(h, of_feed_forward[:, :2])), of_feed_forward)

    def _gated(self, change: Tensor, modulation: Tensor) -> Tensor:
        return self.dropout(change) * modulation[:, 2:]
