"""Images <-> codes, by a trained autoencoder; what pictures are to a network: colours, grey levels or labels."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rasterformer.codecs.vq.autoencoder import VQAutoencoder
from rasterformer.codecs.vq.used import UsedCodes, codebook_vectors
from rasterformer.errors import ShapeError
from rasterformer.interfaces import Codec

Pictures = Literal["rgb", "grey", "labels"]


def network_input(images: Tensor, pictures: Pictures, num_labels: int | None = None) -> Tensor:
    """What an encoder sees of images.

    Args:
        images: uint8 [B, 3, H, W]; grey levels and labels are in every channel, the first is read.
        pictures: what they are.
        num_labels: classes of labels.

    Returns:
        float32 in -1..1, [B, 3, H, W] or [B, 1, H, W]; of labels one-hot, [B, num_labels, H, W].

    Raises:
        ShapeError: another shape or dtype, or a label that is not below num_labels.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ShapeError(f"images are {images.dtype} {list(images.shape)}. They must be torch.uint8 [B, 3, H, W].")
    if pictures == "rgb":
        return images.expand(-1, 3, -1, -1).float() / 127.5 - 1
    if pictures == "grey":
        return images[:, :1].float() / 127.5 - 1
    assert num_labels is not None, "a configuration without is refused"
    labels = images[:, 0].long()
    if len(labels) and int(labels.max()) >= num_labels:
        raise ShapeError(
            f"a label map holds the label {int(labels.max())}, but the model knows {num_labels}: 0..{num_labels - 1}. Train one "
            "with a larger model.num_labels, or give maps of these labels."
        )
    return F.one_hot(labels, num_labels).permute(0, 3, 1, 2).float()


def to_pictures(output: Tensor, pictures: Pictures) -> Tensor:
    """What a decoder says, as images: float [B, c, H, W] -> uint8 [B, 3, H, W], clamped and rounded; of labels the likeliest."""
    if pictures == "labels":
        return output.argmax(1, keepdim=True).to(torch.uint8).expand(-1, 3, -1, -1)
    levels = ((output.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.expand(-1, 3, -1, -1)


class CodeCodec(Codec):
    """uint8 images <-> codes of a codebook in generation order; what the autoencoder cannot express is lost.

    Args:
        autoencoder: trained; it is not moved or changed.
        image_size: side of the square images, pixels; a multiple of the autoencoder's factor.
        pictures: what the images are.
        num_labels: classes of labels.
        order: int64 [L], raster index of the i-th generated code. None: raster order.
        used: int64 [K'], the tokenizer's numbers of the codes that occur, rising; codes are then numbered 0..K'-1 here,
            and others become the nearest of them. None: all codes, by the tokenizer's numbers.

    Attributes:
        used: what turns the tokenizer's numbers into those here. None: they are the same.

    Raises:
        ShapeError: image_size is no multiple of the factor, or used is not int64 [K'].
        DataError: used is empty, does not rise or holds what is no code.
    """

    lossless = False

    def __init__(
        self,
        autoencoder: VQAutoencoder,
        image_size: int,
        *,
        pictures: Pictures = "rgb",
        num_labels: int | None = None,
        order: Tensor | None = None,
        used: Tensor | None = None,
    ) -> None:
        factor = autoencoder.factor
        if image_size % factor:
            raise ShapeError(f"images of {image_size} pixels are no multiple of the tokenizer's factor {factor}.")
        self.autoencoder, self.pictures, self.num_labels = autoencoder, pictures, num_labels
        self.used = None if used is None else UsedCodes(used, codebook_vectors(autoencoder.quantiser))
        self.vocab_size: int = autoencoder.quantiser.vocab_size if self.used is None else len(self.used)
        self.image_shape = (3, image_size, image_size)
        self.grid = (image_size // factor, image_size // factor)
        self.x_shape = (self.grid[0] * self.grid[1], 1)
        self.order = torch.arange(self.x_shape[0]) if order is None else order
        self.rank = torch.empty_like(self.order)
        self.rank[self.order] = torch.arange(len(self.order))

    def encode(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> int64 [B, L, 1].

        Raises:
            ShapeError: another shape or dtype.
        """
        if images.shape[1:] != self.image_shape:
            raise ShapeError(
                f"images are {images.dtype} {list(images.shape)}; this model takes torch.uint8 "
                f"[B, {', '.join(map(str, self.image_shape))}]."
            )
        return self.to_x(self.codes(images))

    def decode(self, x: Tensor) -> Tensor:
        """int64 [B, L, 1] -> uint8 [B, 3, H, W].

        Raises:
            ShapeError: another shape.
        """
        if x.shape[1:] != self.x_shape:
            raise ShapeError(f"x is {list(x.shape)}; this codec takes [B, {self.x_shape[0]}, {self.x_shape[1]}].")
        return self.images(self.to_grid(x))

    def to_x(self, codes: Tensor) -> Tensor:
        """Codes on the grid, int64 [B, h, w] -> in generation order, [B, L, 1]."""
        return codes.flatten(1)[:, self.order.to(codes.device), None]

    def to_grid(self, x: Tensor) -> Tensor:
        """Codes in generation order, [B, L, 1] -> on the grid, [B, h, w]."""
        return x[:, self.rank.to(x.device), 0].unflatten(1, self.grid)

    def from_tokenizer(self, codes: Tensor) -> Tensor:
        """Codes by the tokenizer's numbers, any shape -> by the numbers used here."""
        return codes if self.used is None else self.used.compact(codes)

    def to_tokenizer(self, codes: Tensor) -> Tensor:
        """Codes by the numbers used here, any shape -> by the tokenizer's."""
        return codes if self.used is None else self.used.expand(codes)

    @torch.no_grad()
    def codes(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] of any size that is a multiple of the factor -> int64 [B, h, w], on the autoencoder's device."""
        device = self.autoencoder.last_layer.device
        seen = network_input(images.to(device), self.pictures, self.num_labels)
        return self.from_tokenizer(self.autoencoder.quantiser.nearest(self.autoencoder.encode(seen)))

    @torch.no_grad()
    def images(self, codes: Tensor) -> Tensor:
        """int64 [B, h, w], any size -> uint8 [B, 3, H, W]."""
        values = self.autoencoder.quantiser.lookup(self.to_tokenizer(codes.to(self.autoencoder.last_layer.device)))
        return to_pictures(self.autoencoder.decode(values), self.pictures)
