"""Images of a set in an order drawn once and for all, so that neighbours are no neighbours in a folder or a film."""

from __future__ import annotations

import dataclasses

import torch

from rasterformer.data.imageset import ImageSet


def mixed(images: ImageSet) -> ImageSet:
    """The same images in another order, their partners with them: so an image's neighbour is any other image."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    numbers = order.tolist()
    return dataclasses.replace(
        images,
        pixels=images.images(order),
        labels=None if images.labels is None else images.labels[order],
        captions=None if images.captions is None else tuple(images.captions[k] for k in numbers),
        names=tuple(images.names[k] for k in numbers),
        sources=None if images.sources is None else mixed(images.sources),
    )
