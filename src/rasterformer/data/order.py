"""The order in which training sees images: a pure function of the seed and of the sample's number since step 0.

Nothing is remembered between steps, so that a run resumed at step k goes on exactly as if it had never stopped. The
random words come from Philox, a counter-based generator: word g of a stream is computed directly from g.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rasterformer.data.imageset import ImageSet
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Batch

_ORDER, _FLIP = 1, 2  # streams; `codes.py` has 3 and 4
_WORDS_PER_COUNT = 4  # Philox 4x64


def training_batches(
    image_set: ImageSet, *, batch_size: int, seed: int, start_step: int, flip_prob: float, use_labels: bool
) -> Iterator[Batch]:
    """Yields the batches of steps start_step, start_step + 1, ... without end.

    Each image comes exactly once an epoch, in an order of its own for each epoch; batches run across epoch borders.

    Args:
        image_set: the images.
        batch_size: B, at least 1.
        seed: decides the order and the flips.
        start_step: number of the first batch, at least 0.
        flip_prob: probability of mirroring an image left to right, and its source with it.
        use_labels: put the classes into the condition.

    Raises:
        ConfigError: batch_size or start_step is too small, or flip_prob is not in 0..1.
        DataError: labels are asked for, but the data has no classes.
    """
    check_batches(batch_size, start_step, flip_prob)
    if use_labels:
        image_set.require_labels()

    def make(step: int) -> Batch:
        first = step * batch_size
        index = sample_index(first, batch_size, num_images=len(image_set), seed=seed)
        batch = image_set.batch(index, use_labels=use_labels)
        flip = flips(first, batch_size, flip_prob=flip_prob, seed=seed)
        source = batch.cond.source
        cond = batch.cond if source is None else replace(batch.cond, source=_mirrored(source, flip))
        return Batch(_mirrored(batch.images, flip), cond)

    return _immediate(make, start_step) if image_set.in_memory else _ahead(make, start_step)


def check_batches(batch_size: int, start_step: int, flip_prob: float) -> None:
    """Does nothing where `training_batches` can work with these.

    Raises:
        ConfigError: batch_size or start_step is too small, or flip_prob is not in 0..1.
    """
    if batch_size < 1 or start_step < 0:
        raise ConfigError(f"batch_size = {batch_size} must be at least 1, and start_step = {start_step} not negative.")
    if not 0.0 <= flip_prob <= 1.0:
        raise ConfigError(f"flip_prob = {flip_prob} must lie in 0..1.")


def sample_index(first: int, count: int, *, num_images: int, seed: int) -> Tensor:
    """Returns which images the samples first, first + 1, ... of a run are: int64 [count], each 0..num_images-1."""
    samples = np.arange(first, first + count)
    epochs, places = np.divmod(samples, num_images)
    index = np.empty(count, np.int64)
    for epoch in np.unique(epochs):
        of_epoch = epochs == epoch
        index[of_epoch] = _permutation(seed, int(epoch), num_images)[places[of_epoch]]
    return torch.from_numpy(index)


def flips(first: int, count: int, *, flip_prob: float, seed: int) -> Tensor:
    """Returns whether the samples first, first + 1, ... of a run are mirrored: bool [count]."""
    uniform = (random_words(seed, _FLIP, first, count) >> np.uint64(11)) * 2.0**-53
    return torch.from_numpy(uniform < flip_prob)


def _mirrored(images: Tensor, flip: Tensor) -> Tensor:
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_images: int) -> npt.NDArray[np.int64]:
    # sorting random words, and not Generator.permutation, whose result may change between versions of NumPy
    return np.argsort(random_words(seed, _ORDER, epoch * num_images, num_images), kind="stable")


def random_words(seed: int, stream: int, first: int, count: int) -> npt.NDArray[np.uint64]:
    """Returns words first, first + 1, ... of an endless random sequence: uint64 [count].

    Args:
        seed: any integer.
        stream: what the words are for; each stream has its own.
        first, count: which words.
    """
    key = np.array([seed % 2**64, stream], dtype=np.uint64)
    philox = np.random.Philox(key=key, counter=first // _WORDS_PER_COUNT)
    skip = first % _WORDS_PER_COUNT
    return philox.random_raw(skip + count)[skip:]


def _immediate(make: Callable[[int], Batch], step: int) -> Iterator[Batch]:
    while True:
        yield make(step)
        step += 1


def _ahead(make: Callable[[int], Batch], step: int) -> Iterator[Batch]:
    """Decodes the next batch while the caller works on this one."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(make, step)
        while True:
            batch = coming.result()
            step += 1
            coming = pool.submit(make, step)
            yield batch
