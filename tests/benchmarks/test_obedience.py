"""How samples are compared with their conditions: each measure on images whose agreement is known by construction."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from benchmarks.mixing import mixed
from benchmarks.obedience import (
    Agreement,
    centroid,
    correlation,
    depth_correlation,
    edge_f1,
    label_accuracy,
    local_features,
    logistic_regression,
    pose_distance,
    reduced_difference,
    ridge_regression,
    tolerant_f1,
)
from rasterformer.conditioning.edges import canny_edges
from rasterformer.data.imageset import ImageSet
from rasterformer.tasks import Edges, SuperResolution


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image_set(pixels: Tensor, sources: Tensor | None = None) -> ImageSet:
    names = tuple(f"{k}.png" for k in range(len(pixels)))
    partner = None if sources is None else image_set(sources)
    return ImageSet(
        "made", "train", "made", "none", pixels.shape[2], (), None, None, "0", True, (), len(pixels), pixels, names, partner
    )  # fmt: skip


def test_own_and_other_are_told_apart_in_the_direction_that_is_better() -> None:
    values = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)

    def distance(images: Tensor, sources: Tensor) -> Tensor:
        return (images.double() - sources.double()).abs().mean((1, 2, 3))

    found = Agreement("distance", "", False, distance).compared(values, values)
    assert found["own"] == 0.0 and found["other"] == pytest.approx((3 + 1 + 1 + 1) / 4)
    assert found["gain"] == pytest.approx(1.5) and found["interval"][0] < 1.5 < found["interval"][1]
    assert Agreement("likeness", "", True, distance).compared(values, values)["gain"] == pytest.approx(-1.5)


def test_f1_counts_what_lies_within_a_pixel() -> None:
    """Against loops over all pairs of pixels."""
    rng = generator()
    found, given = (torch.rand(5, 1, 7, 6, generator=rng) < p for p in (0.1, 0.05))

    def share(these: Tensor, those: Tensor) -> float:
        spots = [tuple(spot) for spot in those.nonzero().tolist()]
        near = [any(max(abs(r - a), abs(c - b)) <= 1 for a, b in spots) for r, c in these.nonzero().tolist()]
        return sum(near) / len(near) if near else 0.0

    for k, value in enumerate(tolerant_f1(found, given).tolist()):
        precision, recall = share(found[k, 0], given[k, 0]), share(given[k, 0], found[k, 0])
        harmonic = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        assert value == pytest.approx(harmonic)


def test_f1_of_maps_without_edges_is_1_and_of_one_without_is_0() -> None:
    empty, full = torch.zeros(1, 1, 4, 4, dtype=torch.bool), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    assert [tolerant_f1(a, b).item() for a, b in product((empty, full), repeat=2)] == [1.0, 0.0, 0.0, 1.0]


def test_an_image_agrees_fully_with_its_own_edges_and_reduction() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), generator=generator(), dtype=torch.uint8).repeat_interleave(4, 2)
    images = images.repeat_interleave(4, 3)
    task = Edges()
    edges = canny_edges(images, sigma=task.sigma, low=task.low, high=task.high)
    assert edge_f1(task).of(images, edges).tolist() == [1.0, 1.0]
    assert edge_f1(task).compared(images, edges)["other"] < 1.0
    reduced = images[:, :, ::4, ::4]
    assert reduced_difference(SuperResolution(4)).of(images, reduced).tolist() == [0.0, 0.0]
    assert reduced_difference(SuperResolution(4)).of(images, (reduced // 2)).tolist() == pytest.approx(
        (reduced.double() - reduced // 2).mean((1, 2, 3)).tolist()
    )


def test_features_are_colour_mean_spread_their_products_and_1() -> None:
    image = torch.randint(0, 256, (1, 3, 6, 7), generator=generator(), dtype=torch.uint8)
    found = local_features(image)
    assert found.shape == (1, 6, 7, 55)
    for row, column in ((0, 0), (3, 3), (5, 2)):
        colour = image[0, :, row, column].double() / 255
        around = image[0, :, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3].flatten(1).double() / 255
        first = [*colour.tolist(), *around.mean(1).tolist(), *around.std(1, correction=0).tolist()]
        products = [first[a] * first[b] for a in range(9) for b in range(a, 9)]
        assert found[0, row, column].tolist() == pytest.approx([1.0, *first, *products], abs=1e-6)


def test_ridge_regression_is_at_the_minimum() -> None:
    features, target = (
        torch.randn(size, generator=generator(k), dtype=torch.float64) for k, size in enumerate(((50, 4), (50,)))
    )
    weights = ridge_regression(features, target, penalty=0.1).requires_grad_()
    (((features @ weights - target) ** 2).mean() + 0.1 * (weights**2).sum()).backward()
    assert weights.grad is not None and weights.grad.abs().max() < 1e-12


def test_logistic_regression_is_at_the_minimum() -> None:
    features = torch.randn(200, 3, generator=generator(), dtype=torch.float64)
    labels = torch.randint(0, 4, (200,), generator=generator())
    weights = logistic_regression(features, labels, num_classes=4, penalty=0.01).requires_grad_()
    nats = -(features @ weights).log_softmax(1)[torch.arange(200), labels].mean()
    (nats + 0.01 * (weights**2).sum()).backward()
    assert weights.grad is not None and weights.grad.abs().max() < 1e-4  # found in float32


def test_correlation_is_pearsons() -> None:
    a, b = (torch.randn(3, 20, generator=generator(k), dtype=torch.float64) for k in range(2))
    for k, value in enumerate(correlation(a, b).tolist()):
        assert value == pytest.approx(torch.corrcoef(torch.stack([a[k], b[k]]))[0, 1].item())
    assert correlation(a[:1], torch.ones(1, 20, dtype=torch.float64)).item() == 0.0


def test_labels_that_follow_from_colour_are_found_and_void_is_not_counted() -> None:
    """Blocks of red, green and blue; the labels say which, and a quarter of the pixels are void."""
    labels = torch.randint(0, 3, (12, 4, 4), generator=generator()).repeat_interleave(4, 1).repeat_interleave(4, 2)
    images = (torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2) * 200).to(torch.uint8)
    maps = labels.to(torch.uint8)[:, None].expand(-1, 3, -1, -1).clone()
    maps[:, :, :8, :8] = 11
    measure = label_accuracy(image_set(images, maps))
    assert measure.of(images, maps).min() > 0.99
    wrong = maps.clone()
    wrong[:, :, 8:] = (wrong[:, :, 8:] + 1) % 3  # of the 192 counted pixels, 128
    assert measure.of(images, wrong).tolist() == pytest.approx([64 / 192] * 12, abs=0.01)


def test_depth_that_follows_from_colour_is_found_beside_what_all_images_have_in_common() -> None:
    places = torch.rand(30, 4, 4, generator=generator()).repeat_interleave(4, 1).repeat_interleave(4, 2)
    images = (places[:, None] * 255).to(torch.uint8).expand(-1, 3, -1, -1)
    ground = torch.linspace(0, 100, 16)[None, :, None]
    maps = (ground + 100 * places).to(torch.uint8)[:, None].expand(-1, 3, -1, -1)
    found = depth_correlation(image_set(images, maps)).compared(images, maps)
    assert found["own"] > 0.95 and abs(found["other"]) < 0.2 and found["interval"][0] > 0.5


def test_a_dark_animal_is_found_where_the_skeleton_is() -> None:
    images = torch.full((16, 3, 32, 32), 220, dtype=torch.uint8)
    poses = torch.zeros(16, 3, 32, 32, dtype=torch.uint8)
    for k in range(16):
        row, column = divmod(k, 4)
        place = slice(8 * row, 8 * row + 6), slice(8 * column, 8 * column + 6)
        images[k, :, *place] = 10
        poses[k, 1, *place] = 255
    measure = pose_distance(image_set(images, poses))
    assert measure.of(images, poses).tolist() == [0.0] * 16
    assert measure.of(images[:1], poses[1:2]).item() == pytest.approx(8.0)
    assert measure.of(images[:1], poses[4:5]).item() == pytest.approx(8.0)


def test_the_centroid_of_nothing_is_the_middle() -> None:
    masks = torch.zeros(2, 3, 5, dtype=torch.bool)
    masks[1, 0, 4] = masks[1, 1, 0] = True
    assert centroid(masks).tolist() == [[1.0, 2.0], [0.5, 2.0]]


def test_mixing_keeps_images_with_their_partners_labels_and_names() -> None:
    pixels = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    first = replace(image_set(pixels, 255 - pixels), labels=torch.arange(20))
    second = mixed(first)
    values = second.images(slice(None))[:, 0, 0, 0]
    assert sorted(values.tolist()) == list(range(20)) != values.tolist()
    assert second.sources is not None and second.labels is not None
    assert torch.equal(second.sources.images(slice(None))[:, 0, 0, 0], 255 - values)
    assert torch.equal(second.labels, values.long())
    assert second.names == tuple(f"{k}.png" for k in values.tolist())
    assert torch.equal(mixed(first).images(slice(None)), second.images(slice(None)))
