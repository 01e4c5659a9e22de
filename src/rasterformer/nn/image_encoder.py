"""A transformer encoder of images: pixels -> cells that a denoiser attends to (`encoded` of `dit`)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from rasterformer.errors import ConfigError, ShapeError
from rasterformer.nn.blocks import FeedForward
from rasterformer.nn.grid_attention import GridAttention, begin_linear_maps, cell_places, check_patches
from rasterformer.nn.positions import rotary_angles, sinusoidal_positions

FEED_FORWARD_RATIO = 4  # inner width over width


class ImageEncoder(nn.Module):
    """Patches of an image -> as many cells, each of which has seen the whole image.

    A place is known by sinusoids of its row and column at the entrance, and by turned queries and keys (`rotary_angles`), so
    images may have any size. The layers of Dosovitskiy et al. 2021 (ViT, equations 1 to 4), without a class token.

    Args:
        channels: C of the image.
        patch: pixels along each side of a patch.
        width: D of the layers and of the cells; a multiple of num_heads times 4.
        depth: layers, at least 1.
        num_heads: N.

    Raises:
        ConfigError: a width that heads do not divide; a patch or a depth below 1.
    """

    def __init__(self, channels: int, *, patch: int, width: int, depth: int, num_heads: int) -> None:
        super().__init__()
        check_patches(width, num_heads=num_heads, patch=patch)
        if depth < 1:
            raise ConfigError(f"depth = {depth}. An encoder has at least 1 layer, or cells would see one patch each.")
        self.channels, self.patch, self.width, self.head_dim = channels, patch, width, width // num_heads
        self.patch_in = nn.Linear(channels * patch**2, width)
        self.layers = nn.ModuleList(EncoderLayer(width, num_heads=num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        begin_linear_maps(self)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the cells, of about unit variance each.

        Args:
            images: float [B, C, H, W] in -1..1; H and W multiples of the patch.

        Returns:
            float [B, D, H / patch, W / patch].

        Raises:
            ShapeError: images have another rank, dtype or number of channels, or sides that are no multiples of the patch.
        """
        if images.ndim != 4 or images.shape[1] != self.channels or not images.is_floating_point():
            raise ShapeError(
                f"images are {images.dtype} {list(images.shape)}; this encoder takes float [B, {self.channels}, height, width]."
            )
        height, width = images.shape[2:]
        if height % self.patch or width % self.patch or not height or not width:
            raise ShapeError(
                f"images are {height}x{width} pixels; this encoder takes heights and widths that are multiples of {self.patch}. "
                "Crop or resize them."
            )
        patches = F.pixel_unshuffle(images.to(self.patch_in.weight.dtype), self.patch)  # [B, C * patch^2, h, w]
        grid = patches.shape[2:]
        places = cell_places(grid, grid)
        h = self.patch_in(patches.flatten(2).mT)  # [B, L, D]
        h = h + sinusoidal_positions(*places, self.width).to(h)
        angles = rotary_angles(*places, self.head_dim).to(h.device)
        for layer in self.layers:
            h = layer(h, angles)
        return self.norm(h).mT.unflatten(2, grid)


class EncoderLayer(nn.Module):
    """Self-attention, then a feed-forward, each of a LayerNorm of its input and added to that.

    The arguments are those of `ImageEncoder`.
    """

    def __init__(self, width: int, *, num_heads: int) -> None:
        super().__init__()
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = GridAttention(width, num_heads=num_heads, qk_norm=False)
        self.feed_forward = FeedForward(
            width,
            FEED_FORWARD_RATIO * width,
            activation="gelu",
            grid=(1, 1),  # patches are seen one by one, wherever they lie
            kernel=(1, 1),
            is_causal=False,
        )

    def forward(self, h: Tensor, angles: Tensor) -> Tensor:
        """h [B, L, D], angles [L, head_dim / 2] -> [B, L, D]."""
        h = h + self.attention(self.attention_norm(h), angles)
        return h + self.feed_forward(self.feed_forward_norm(h))
