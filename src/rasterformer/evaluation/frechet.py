"""The Fréchet distance between two sets of images, on features of EfficientNet-Lite0: called FD-EffLite0, never FID.

FID is this distance on another network's features (Inception v3); figures of the two do not compare.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rasterformer.errors import ShapeError


@torch.inference_mode()
def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Returns |mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2) of the Gaussians fitted to two sets.

    Computed in float64. The square roots of the eigenvalues of S_a^1/2 S_b S_a^1/2 are the singular values of
    A B^T / sqrt((N - 1)(M - 1)), where A and B are the centred sets: no root of a matrix is taken, and covariances may be
    singular, as they are where N <= D. The value is biased upwards for few vectors (two samples of one distribution are not
    at 0), the more so the fewer they are: only distances between sets of equal N compare.

    Args:
        a: float [N, D], N >= 2.
        b: float [M, D], M >= 2.

    Raises:
        ShapeError: a is not float [N, D], b not float [M, D], or a set has fewer than 2 vectors.

    Source: Dowson & Landau 1982; Heusel et al. 2017, section 4 ("FID" on Inception features).
    """
    for name, features in (("a", a), ("b", b)):
        if features.ndim != 2 or not features.is_floating_point() or len(features) < 2:
            raise ShapeError(
                f"{name} has dtype {features.dtype} and shape {list(features.shape)}; float [N, D], N >= 2, is needed."
            )
    if a.shape[1] != b.shape[1]:
        raise ShapeError(f"a has shape {list(a.shape)}, b {list(b.shape)}; vectors of one length are needed.")
    mean_a, root_a = _mean_and_root(a)
    mean_b, root_b = _mean_and_root(b)
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * cross
    return max(float(distance), 0.0)  # rounding may leave a tiny negative number


def _mean_and_root(features: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean [D] and R [min(N, D), D] with R^T R = covariance."""
    features = features.double()
    mean = features.mean(dim=0)
    root = (features - mean) / math.sqrt(len(features) - 1)
    if root.shape[0] > root.shape[1]:
        root = torch.linalg.qr(root, mode="r").R
    return mean, root
