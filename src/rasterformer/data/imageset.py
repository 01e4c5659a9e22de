"""ImageSet: images of one square size and what is known about them. Made by `open_images`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from rasterformer.errors import DataError, ShapeError
from rasterformer.interfaces import Batch, Cond


@final
@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """One split of a set of images, prepared for a model.

    Args:
        name: what was opened, for people.
        split: `train`, `test` or `all`.
        split_origin: how the split came about, one sentence.
        preprocessing: what was done to the images, one sentence.
        image_size: S, pixels.
        class_names: () where the data has no classes.
        labels: int64 [N], index into `class_names`. None: no classes.
        captions: one an image, "" where it has none. None: the data has no captions.
        fingerprint: sha256, hex, over names and sizes of the files, or over the pixels of arrays.
        lossless: whether the stored images are. None: mixed or not known.
        skipped: (name, reason) of every image or annotation that could not be used.
        pixels: uint8 [N, 3, S, S], or a function that decodes image k to uint8 [3, S, S].
        names: of the images, one each.
        sources: the partner of each image, for paired tasks. None: no second folder.
        empty_captions: how many images have a .txt for their caption that is empty.
        caption_hint: why there are no captions though a metadata file is there, one sentence. "": nothing is known.
    """

    name: str
    split: str
    split_origin: str
    preprocessing: str
    image_size: int
    class_names: tuple[str, ...]
    labels: Tensor | None
    captions: tuple[str, ...] | None
    fingerprint: str
    lossless: bool | None
    skipped: tuple[tuple[str, str], ...]
    num_images: int
    pixels: Tensor | Callable[[int], Tensor]
    names: tuple[str, ...]
    sources: ImageSet | None = None
    empty_captions: int = 0
    caption_hint: str = ""

    def __len__(self) -> int:
        return self.num_images

    def __repr__(self) -> str:
        return f"ImageSet({self.name!r}, split={self.split!r}, {len(self)} images, {self.image_size}x{self.image_size})"

    @property
    def in_memory(self) -> bool:
        """Whether all images, and their partners, are held decoded; otherwise each is decoded when it is asked for."""
        return isinstance(self.pixels, Tensor) and (self.sources is None or self.sources.in_memory)

    def images(self, index: Tensor | slice) -> Tensor:
        """Returns some of the images.

        Args:
            index: int64 [n], each 0..N-1, or a slice.

        Returns:
            uint8 [n, 3, S, S].

        Raises:
            ShapeError: index is not int64 [n].
            DataError: an image that was readable at first is so no longer.
        """
        if isinstance(index, Tensor):
            _check_index(index)
        if isinstance(self.pixels, Tensor):
            return self.pixels[index]
        numbers = range(len(self))[index] if isinstance(index, slice) else index.tolist()
        if not len(numbers):
            return torch.empty((0, 3, self.image_size, self.image_size), dtype=torch.uint8)
        return torch.stack([self.pixels(k) for k in numbers])

    def batch(self, index: Tensor, *, use_labels: bool) -> Batch:
        """Returns some of the images with their condition: their partners, where there are any, and their classes.

        Args:
            index: int64 [n].
            use_labels: put the classes into the condition.

        Raises:
            ShapeError: index is not int64 [n].
            DataError: labels are asked for, but the data has no classes.
        """
        if use_labels:
            self.require_labels()
        label = self.labels[index] if use_labels and self.labels is not None else None
        source = None if self.sources is None else self.sources.images(index)
        return Batch(self.images(index), Cond(label=label, source=source))

    def require_labels(self) -> None:
        """Does nothing where the images have classes.

        Raises:
            DataError: they have none.
        """
        if self.labels is None:
            raise DataError(
                f"data.use_labels = true, but {self.name!r} has no classes. Sort the images into one folder per class, "
                "or add a `label` to metadata.jsonl, or set data.use_labels to false."
            )

    def captions_of(self, index: Tensor) -> list[str]:
        """Returns the captions of images int64 [n]; "" where an image has none.

        Raises:
            DataError: no image has one.
        """
        if self.captions is None:
            empty, way_out = self.empty_captions, "or a `text` into metadata.jsonl; or leave the section out."
            if self.caption_hint:
                raise DataError(
                    f"the recipe has a section text, but {self.name!r}, {self.split}, has no captions: {self.caption_hint}"
                )
            raise DataError(
                f"the recipe has a section text, but {self.name!r}, {self.split}, has no captions"
                + (
                    f": its .txt files, {empty:,}, are all empty. Write a caption into each, {way_out}"
                    if empty
                    else f". Put a .txt file beside each image, {way_out}"
                )
            )
        return [self.captions[k] for k in index.tolist()]


def _check_index(index: Tensor) -> None:
    if index.ndim != 1 or index.dtype != torch.int64:
        raise ShapeError(f"index is {index.dtype} {list(index.shape)}. It must be int64 [n], numbers of images.")
