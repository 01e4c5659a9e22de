"""Tiny image files that the tests of `data` are made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

WriteImage = Callable[..., Path]
WriteFolder = Callable[..., Path]


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _write_image(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def _write_folder(root: Path, names: list[str], *, size: int = 8) -> Path:
    for seed, name in enumerate(names):
        _write_image(root / name, _noise(size, size, seed))
    return root


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    """noise(height, width, seed) -> uint8 [height, width, 3]."""
    return _noise


@pytest.fixture
def write_image() -> WriteImage:
    """Writes uint8 [H, W, 3] or [H, W] in the format of the suffix."""
    return _write_image


@pytest.fixture
def write_folder() -> WriteFolder:
    """Writes one image of noise under each name, each with its own seed: 0, 1, 2, ..."""
    return _write_folder
