"""The Fréchet distance against closed forms and against scipy's root of a matrix."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch

from rasterformer.errors import ShapeError
from rasterformer.evaluation.frechet import frechet_distance


def gaussian(num: int, dims: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dims, dims, generator=rng, dtype=torch.float64)
    return torch.randn(num, dims, generator=rng, dtype=torch.float64) @ mixing + torch.randn(dims, generator=rng)


def corners(mean: list[float], std: list[float]) -> torch.Tensor:
    """All sign patterns: sample mean and (unbiased) covariance are exactly `mean` and diag(std^2)."""
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(mean))), dtype=torch.float64)
    scale = ((len(signs) - 1) / len(signs)) ** 0.5
    return torch.tensor(mean) + signs * scale * torch.tensor(std, dtype=torch.float64)


def reference(a: torch.Tensor, b: torch.Tensor) -> float:
    x, y = a.numpy(), b.numpy()
    cov_x, cov_y = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(cov_x @ cov_y).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x + cov_y - 2 * root))


def test_diagonal_gaussians_have_the_closed_form() -> None:
    a, b = corners([0, 1, 2, 3], [1, 2, 0.5, 0]), corners([1, 1, 0, 3], [3, 1, 0.5, 2])
    expected = (1 + 0 + 4 + 0) + (4 + 1 + 0 + 4)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("num_a", "num_b"), [(50, 50), (40, 70), (7, 90)])
def test_it_is_the_formula_with_scipys_root(num_a: int, num_b: int) -> None:
    a, b = gaussian(num_a, 6, 0), gaussian(num_b, 6, 1)
    assert frechet_distance(a, b) == pytest.approx(reference(a, b), rel=1e-9)


@pytest.mark.parametrize(("num_a", "num_b"), [(5, 5), (3, 40)])
def test_singular_covariances_have_the_formula_by_eigenvalues(num_a: int, num_b: int) -> None:
    a, b = gaussian(num_a, 12, 0), gaussian(num_b, 12, 1)
    values, vectors = np.linalg.eigh(np.cov(a.numpy().T))
    root_a = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cov_b = np.cov(b.numpy().T)
    cross = np.sqrt(np.linalg.eigvalsh(root_a @ cov_b @ root_a).clip(0)).sum()
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum().item()
    expected = mean + values.sum() + np.trace(cov_b) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)  # the reference squares rounding errors


@pytest.mark.parametrize(("num", "dims"), [(40, 5), (5, 40)])
def test_equal_sets_have_distance_zero_in_any_order(num: int, dims: int) -> None:
    a = gaussian(num, dims, 0)
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-9 * a.square().sum().item())


@pytest.mark.parametrize(("num", "dims"), [(40, 5), (5, 40)])
def test_a_rotation_and_a_shift_of_both_change_nothing(num: int, dims: int) -> None:
    a, b = gaussian(num, dims, 0), gaussian(num + 3, dims, 1)
    rotation = torch.linalg.qr(gaussian(dims, dims, 2)).Q
    expected = frechet_distance(a, b)
    assert frechet_distance(a @ rotation + 5, b @ rotation + 5) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_few_vectors_of_one_distribution_are_further_apart_than_many() -> None:
    rng = torch.Generator().manual_seed(0)
    distances = [
        frechet_distance(torch.randn(num, 10, generator=rng), torch.randn(num, 10, generator=rng))
        for num in (20, 200, 2000)
    ]
    assert distances[0] > 3 * distances[1] > 9 * distances[2] > 0


@pytest.mark.parametrize("wrong", [torch.zeros(1, 4), torch.zeros(5), torch.zeros(5, 4, dtype=torch.uint8)])
def test_wrong_features_are_refused(wrong: torch.Tensor) -> None:
    for pair in ((wrong, torch.zeros(5, 4)), (torch.zeros(5, 4), wrong)):
        with pytest.raises(ShapeError, match=str(list(wrong.shape)).replace("[", r"\[")):
            frechet_distance(*pair)


def test_features_of_two_lengths_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[5, 4\].*\[5, 3\]"):
        frechet_distance(torch.zeros(5, 4), torch.zeros(5, 3))
