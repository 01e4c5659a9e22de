"""How many held-out images a model has seen in training: a figure on seen images is no held-out figure.

Only images whose pixels are all equal are found, after the preprocessing; re-compressed or shifted copies are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from torch import Tensor


def num_identical(held_out: Iterable[Tensor], training: Iterable[Tensor]) -> int:
    """Returns how many held-out images also occur, pixel for pixel, among the training images.

    Args:
        held_out: uint8 [B, C, H, W] each. An image that is held out twice counts twice.
        training: uint8 [B, C, H, W] each.
    """
    seen = set(image_digests(training))
    return sum(digest in seen for digest in image_digests(held_out))


def image_digests(batches: Iterable[Tensor]) -> Iterator[bytes]:
    """Yields 16 bytes for each image of uint8 [B, C, H, W], equal for images of equal shape and pixels."""
    for images in batches:
        shape = str(list(images.shape[1:])).encode()
        for image in images.contiguous().cpu().numpy():
            yield hashlib.blake2b(shape + image.tobytes(), digest_size=16).digest()
