"""The order of training is a pure function of seed and step."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from rasterformer.data import open_images, training_batches
from rasterformer.data.order import flips, sample_index
from rasterformer.errors import ConfigError, DataError


@pytest.fixture
def image_set(tmp_path: Path):
    np.savez(
        tmp_path / "x.npz",
        images=np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8),
        labels=np.arange(7),
    )
    return open_images(str(tmp_path / "x.npz"), image_size=4)


def batches(image_set, count: int, **options: object):
    values = {"batch_size": 3, "seed": 0, "start_step": 0, "flip_prob": 0.5, "use_labels": True} | options
    return list(islice(training_batches(image_set, **values), count))


@pytest.mark.parametrize("num_images", [1, 7, 100])
def test_each_image_comes_exactly_once_an_epoch(num_images: int) -> None:
    index = sample_index(0, 5 * num_images, num_images=num_images, seed=3).reshape(5, num_images)
    assert torch.equal(index.sort(dim=1).values, torch.arange(num_images).expand(5, -1))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(sample_index(epoch * 100, 100, num_images=100, seed=seed).tolist())
        for epoch in range(5)
        for seed in range(5)
    }
    assert len(orders) == 25


@pytest.mark.parametrize("first", [0, 1, 5, 6, 7, 8, 700, 2**33 + 5])
@pytest.mark.parametrize("count", [1, 4, 20])
def test_order_and_flips_do_not_depend_on_how_the_samples_are_cut_into_batches(first: int, count: int) -> None:
    together = sample_index(first, count, num_images=7, seed=1)
    alone = [int(sample_index(g, 1, num_images=7, seed=1)) for g in range(first, first + count)]
    assert together.tolist() == alone
    mirrored = flips(first, count, flip_prob=0.5, seed=1)
    assert mirrored.tolist() == [bool(flips(g, 1, flip_prob=0.5, seed=1)) for g in range(first, first + count)]


def test_permutations_are_uniform() -> None:
    index = sample_index(0, 3 * 6000, num_images=3, seed=0).reshape(6000, 3)
    counts = torch.bincount(index[:, 0] * 3 + index[:, 1])
    observed = counts[counts > 0].double()
    chi_square = ((observed - 1000) ** 2 / 1000).sum()
    assert len(observed) == 6 and chi_square < 25.7  # 5 degrees of freedom, p = 1e-4


@pytest.mark.parametrize("flip_prob", [0.0, 0.3, 1.0])
def test_flips_have_their_probability(flip_prob: float) -> None:
    share = flips(0, 10_000, flip_prob=flip_prob, seed=5).double().mean().item()
    assert abs(share - flip_prob) <= 4 * (flip_prob * (1 - flip_prob) / 10_000) ** 0.5


def test_flips_are_independent_of_the_order() -> None:
    first = sample_index(0, 20_000, num_images=2, seed=0)
    both = (first * 2 + flips(0, 20_000, flip_prob=0.5, seed=0)).bincount()
    assert ((both - 5000.0) ** 2 / 5000).sum() < 21.1  # 3 degrees of freedom, p = 1e-4


def test_batch_holds_the_images_of_its_samples_mirrored_where_flipped(image_set) -> None:
    for step, batch in enumerate(batches(image_set, 6)):
        index = sample_index(3 * step, 3, num_images=7, seed=0)
        mirrored = flips(3 * step, 3, flip_prob=0.5, seed=0)
        assert batch.cond.label is not None and torch.equal(batch.cond.label, index)
        for row, (k, mirror) in enumerate(zip(index.tolist(), mirrored.tolist(), strict=True)):
            image = image_set.images(torch.tensor([k]))[0]
            assert torch.equal(batch.images[row], image.flip(2) if mirror else image)


@pytest.mark.parametrize("start_step", [1, 2, 3, 7])
def test_resuming_gives_the_same_batches(image_set, start_step: int) -> None:
    whole = batches(image_set, 10)[start_step:]
    for expected, resumed in zip(whole, batches(image_set, 10 - start_step, start_step=start_step), strict=True):
        assert torch.equal(expected.images, resumed.images)
        assert expected.cond.label is not None and torch.equal(expected.cond.label, resumed.cond.label)


def test_images_decoded_ahead_come_in_the_same_batches(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, [f"{k}.png" for k in range(5)])
    held = open_images(str(tmp_path), image_size=8)
    lazy = open_images(str(tmp_path), image_size=8, max_memory_bytes=0)
    for a, b in zip(batches(held, 5, use_labels=False), batches(lazy, 5, use_labels=False), strict=True):
        assert torch.equal(a.images, b.images)


def test_unconditional_batches_have_no_labels(image_set) -> None:
    assert batches(image_set, 1, use_labels=False)[0].cond.label is None


@pytest.mark.parametrize(
    ("options", "received"),
    [
        ({"batch_size": 0}, "batch_size = 0"),
        ({"start_step": -1}, "start_step = -1"),
        ({"flip_prob": 1.5}, "flip_prob = 1.5"),
    ],
)
def test_impossible_options_are_refused_at_once(image_set, options, received: str) -> None:
    values = {"batch_size": 3, "seed": 0, "start_step": 0, "flip_prob": 0.0, "use_labels": False} | options
    with pytest.raises(ConfigError, match=received):
        training_batches(image_set, **values)


def test_labels_are_refused_at_once_where_there_are_none(tmp_path: Path, write_folder) -> None:
    images = open_images(str(write_folder(tmp_path, ["a.png"])), image_size=8)
    with pytest.raises(DataError, match="data.use_labels = true"):
        training_batches(images, batch_size=1, seed=0, start_step=0, flip_prob=0.0, use_labels=True)
