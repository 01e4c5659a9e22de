"""Statistics against loops in numpy, and constructed images whose place in the ranking is known."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from rasterformer.data.imageset import ImageSet
from rasterformer.errors import CheckpointError, ConfigError, DataError, ShapeError
from rasterformer.evaluation.surprise import (
    Scores,
    doubtful_labels,
    duplicates,
    label_margin,
    percentile,
    pixel_bits,
    rank,
    robust_z,
    score_images,
)
from rasterformer.interfaces import Cond

SIZE = 16


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def typical(count: int, *, seed: int = 0) -> Scores:
    """Images of about 3 bits per pixel, 1 bit/dim, which differ a little from one another."""
    level = 2.9 + 0.2 * random(count, 1, 1, seed=seed)
    return Scores((level + 0.4 * random(count, SIZE, SIZE, seed=seed + 1)).float())


def with_images(scores: Scores, *maps: Tensor) -> Scores:
    return Scores(torch.cat([scores.pixel_bits, torch.stack(maps).float()]))


def test_bits_of_a_pixel_are_the_sum_over_its_channels() -> None:
    nats = random(2, 3, 4, 5).float()
    expected = np.zeros((2, 4, 5))
    for b, c, y, x in np.ndindex(2, 3, 4, 5):
        expected[b, y, x] += nats[b, c, y, x].item() / math.log(2)
    np.testing.assert_allclose(pixel_bits(nats).numpy(), expected, rtol=1e-6)


def test_bits_per_dim_is_the_mean_over_sub_pixels() -> None:
    nats = random(3, 3, 4, 6)
    expected = nats.sum((1, 2, 3)) / (3 * 4 * 6 * math.log(2))
    torch.testing.assert_close(Scores(pixel_bits(nats)).bits_per_dim, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (11, 9), (5, 12)])
def test_patch_statistic_is_the_largest_window_mean(height: int, width: int) -> None:
    bits = random(2, height, width).float()
    window = (min(8, height), min(8, width))
    expected = [
        max(
            bits[b, y : y + window[0], x : x + window[1]].double().mean().item() / 3
            for y in range(height - window[0] + 1)
            for x in range(width - window[1] + 1)
        )
        for b in range(2)
    ]
    np.testing.assert_allclose(Scores(bits).patch_bits_per_dim.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("count", [10, 11, 40])
def test_robust_z_is_the_formula_with_median_and_mad(count: int) -> None:
    values, reference = random(7, seed=1), random(count, seed=2)
    median = np.median(reference.numpy())
    mad = np.median([abs(value - median) for value in reference.tolist()])
    np.testing.assert_allclose(
        robust_z(values, reference).numpy(), 0.6744898 * (values.numpy() - median) / mad, rtol=1e-6
    )


def test_robust_z_of_normal_values_has_unit_spread_whatever_a_few_outliers_do() -> None:
    reference = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.3 + 2
    clean = robust_z(reference, reference)
    assert clean.std().item() == pytest.approx(1, abs=0.02)
    dirty = torch.cat([reference, torch.full((200,), 50.0, dtype=torch.float64)])
    assert (robust_z(reference, dirty) - clean).abs().max().item() < 0.15


def test_percentile_counts_ties_half() -> None:
    reference = torch.tensor([1.0, 2.0, 2.0, 3.0])
    values = torch.tensor([0.0, 1.0, 2.0, 2.5, 3.0, 9.0])
    expected = [
        100 * np.mean([1.0 if r < v else 0.5 if r == v else 0.0 for r in reference.tolist()]) for v in values.tolist()
    ]
    assert percentile(values, reference).tolist() == expected


def test_noise_is_found_as_too_many_bits_and_a_flat_image_as_too_few() -> None:
    noisy, flat = torch.full((SIZE, SIZE), 20.0), torch.full((SIZE, SIZE), 0.1)
    images = with_images(typical(50, seed=5), noisy, flat)
    found = rank(images, typical(60), by="both")
    assert found.order[:2].tolist() == [50, 51]
    assert found.side(50) == "more bits than usual" and found.side(51) == "fewer bits than usual"
    assert found.percentile[50] == 100 and found.percentile[51] == 0
    assert rank(images, typical(60), by="high").order[0] == 50 and rank(images, typical(60), by="high").order[-1] == 51
    assert rank(images, typical(60), by="low").order[0] == 51 and rank(images, typical(60), by="low").order[-1] == 50


def test_a_local_damage_is_found_by_the_window_and_not_by_the_mean() -> None:
    """4 x 4 pixels with 3 bits more, while all others need a little less: the mean is the usual one."""
    reference = typical(60)
    damaged = torch.full((SIZE, SIZE), 3.2)
    damaged[4:8, 4:8] += 3
    damaged += 3 * reference.bits_per_dim.quantile(0.5).item() - damaged.mean()
    images = with_images(typical(50, seed=5), damaged)
    by_mean, by_window = (rank(images, reference, with_patches=patches) for patches in (False, True))
    assert by_mean.order[-1] == 50
    assert by_window.order[0] == 50 and by_window.side(50) == "more bits than usual"
    assert by_window.score[50] == by_window.patch_z[50]


def test_the_score_is_the_larger_of_the_two_statistics() -> None:
    images, reference = typical(30, seed=8), typical(30)
    for by, sign in (("both", None), ("high", 1), ("low", -1)):
        found = rank(images, reference, by=by)  # type: ignore[arg-type]
        for k in range(30):
            pair = [found.z[k].item(), found.patch_z[k].item()]
            scores = [abs(z) if sign is None else sign * z for z in pair]
            assert found.score[k].item() == max(scores)
            assert bool(found.needs_more[k]) == (pair[scores.index(max(scores))] > 0)
        assert found.score[found.order].tolist() == sorted(found.score.tolist(), reverse=True)


def test_an_unknown_side_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"by = 'hihg' is not known\. Did you mean 'high'\?"):
        rank(typical(3), typical(20), by="hihg")  # type: ignore[arg-type]


def test_a_small_or_constant_reference_is_refused() -> None:
    with pytest.raises(DataError, match="reference has 9 images; at least 10"):
        rank(typical(3), typical(9))
    with pytest.raises(DataError, match="12 images mostly need the same 2 bits/dim"):
        robust_z(random(3), torch.full((12,), 2.0))


def test_nats_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"shape \[3, 4, 4\]; float \[B, C, H, W\]"):
        pixel_bits(torch.zeros(3, 4, 4))
    with pytest.raises(ShapeError, match="torch.int64"):
        pixel_bits(torch.zeros(1, 3, 4, 4, dtype=torch.int64))


def test_label_margin_is_own_bits_less_the_best_other() -> None:
    class_bits, labels = 100 * random(6, 4), torch.tensor([0, 1, 2, 3, 1, 0])
    expected = [
        class_bits[n, label].item() - min(class_bits[n, k].item() for k in range(4) if k != label)
        for n, label in enumerate(labels.tolist())
    ]
    assert label_margin(class_bits, labels).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("bits", "labels"), [((5, 1), (5,)), ((5, 3), (4,)), ((5,), (5,))])
def test_margins_need_two_classes_and_a_label_each(bits: tuple[int, ...], labels: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=rf"class_bits have shape \[{', '.join(map(str, bits))}\]"):
        label_margin(torch.zeros(bits), torch.zeros(labels, dtype=torch.int64))


def test_labels_are_doubted_only_beyond_what_right_labels_show() -> None:
    """Margins up to +50 happen with right labels where classes are alike; below 0 the label is the best one anyway."""
    usual = torch.linspace(-150, 50, 201, dtype=torch.float64)
    assert doubtful_labels(torch.tensor([-10.0, 40.0, 49.5, 200.0]), usual).tolist() == [False, False, True, True]
    assert doubtful_labels(torch.tensor([-10.0, 1.0]), usual - 100).tolist() == [False, True]


def test_duplicates_are_groups_of_equal_pixels_across_batches() -> None:
    images = torch.randint(0, 256, (6, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[4], images[3], images[5] = images[0], images[1], images[0]
    assert duplicates([images[:2], images[2:]]) == [[0, 4, 5], [1, 3]]
    assert duplicates([images[:3]]) == []


@dataclass
class LevelModel:
    """Needs as many nats for a sub-pixel as its value is away from that of the class."""

    levels: tuple[int, ...] = (0,)

    def symbol_nats(self, images: Tensor, cond: Cond) -> Tensor:
        label = torch.zeros(len(images), dtype=torch.int64) if cond.label is None else cond.label
        distance = (images.float() - torch.tensor(self.levels)[label][:, None, None, None]).abs()
        return torch.where(images == 255, torch.nan, distance)


def image_set(*values: int) -> ImageSet:
    pixels = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4).contiguous()
    return ImageSet(
        "levels", "all", "every image", "none", 4, (), None, None, "0", True, (), len(values), pixels,
        tuple(f"{value}.png" for value in values),
    )  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_scores_do_not_depend_on_the_batch(batch_size: int) -> None:
    told: list[tuple[int, int]] = []
    scores = score_images(
        LevelModel(),
        image_set(1, 5, 9),
        batch_size=batch_size,
        on_progress=lambda done, total: told.append((done, total)),
    )
    torch.testing.assert_close(scores.bits_per_dim * math.log(2), torch.tensor([1.0, 5.0, 9.0], dtype=torch.float64))
    assert told[-1] == (3, 3) and scores.class_bits is None


def test_images_are_scored_under_their_class_or_else_the_most_probable_one() -> None:
    images, model = image_set(1, 90, 110), LevelModel((0, 100))
    labelled = score_images(model, images, num_classes=2, labels=torch.tensor([0, 1, 0]))
    torch.testing.assert_close(
        labelled.bits_per_dim * math.log(2), torch.tensor([1.0, 10.0, 110.0], dtype=torch.float64)
    )
    assert labelled.class_bits is not None
    nats = labelled.class_bits * math.log(2) / 48
    torch.testing.assert_close(nats, torch.tensor([[1.0, 99], [90, 10], [110, 10]], dtype=torch.float64))
    free = score_images(model, images, num_classes=2)
    torch.testing.assert_close(free.bits_per_dim * math.log(2), torch.tensor([1.0, 10.0, 10.0], dtype=torch.float64))


def test_limit_scores_the_first_images() -> None:
    assert len(score_images(LevelModel(), image_set(1, 2, 3), limit=2).pixel_bits) == 2
    with pytest.raises(ConfigError, match="limit = 0 must be at least 1"):
        score_images(LevelModel(), image_set(1), limit=0)
    with pytest.raises(ConfigError, match="batch_size = 0 must be at least 1"):
        score_images(LevelModel(), image_set(1), batch_size=0)


def test_a_likelihood_that_is_not_finite_names_the_image() -> None:
    with pytest.raises(CheckpointError, match=r"image '255\.png' of levels"):
        score_images(LevelModel(), image_set(1, 2, 255), batch_size=2)
