"""The nearest training source by a loop over all pairs."""

import pytest
import torch

from rasterformer.errors import ShapeError
from rasterformer.evaluation import memorisation as module
from rasterformer.evaluation.memorisation import memorisation, nearest_neighbours
from rasterformer.evaluation.similarity import ms_ssim


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [3, 7, 100])
def test_neighbours_are_those_of_a_loop(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SOURCE_CHUNK", 4)
    monkeypatch.setattr(module, "TRAINING_CHUNK", chunk)
    sources, training = random_images(9, 3, 2, 3), random_images(20, 3, 2, 3, seed=1)
    expected = []
    for source in sources:
        distances = [
            sum((int(a) - int(b)) ** 2 for a, b in zip(source.flatten(), t.flatten(), strict=True)) for t in training
        ]
        expected.append(distances.index(min(distances)))
    assert len(set(expected)) > 3
    found = nearest_neighbours(sources, training)
    assert found.dtype == torch.int64
    assert found.tolist() == expected


@pytest.mark.parametrize("chunk", [2, 100])
def test_the_first_of_equally_near_ones_is_taken(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRAINING_CHUNK", chunk)
    training = random_images(5, 3, 2, 2)[[0, 1, 2, 1, 2]]
    assert nearest_neighbours(training[[3, 4]], training).tolist() == [1, 2]


def test_memorisation_is_ms_ssim_in_percent_and_100_for_a_repeated_image() -> None:
    samples, partners = random_images(2, 3, 8, 8), random_images(2, 3, 8, 8, seed=1)
    partners[1] = samples[1]
    figures = memorisation(samples, partners)
    torch.testing.assert_close(figures, 100 * ms_ssim(samples, partners))
    assert figures[0].item() < 60
    assert figures[1].item() == pytest.approx(100, abs=1e-3)


def test_memorisation_refuses_images_of_two_sizes() -> None:
    with pytest.raises(ShapeError, match=r"\[2, 3, 8, 8\].*\[2, 3, 8, 9\]"):
        memorisation(random_images(2, 3, 8, 8), random_images(2, 3, 8, 9))


@pytest.mark.parametrize(
    "wrong", [torch.zeros(2, 3, 4, 4), random_images(3, 4, 4), torch.zeros(0, 3, 4, 4, dtype=torch.uint8)]
)
def test_wrong_images_are_refused(wrong: torch.Tensor) -> None:
    for pair in ((wrong, random_images(2, 3, 4, 4)), (random_images(2, 3, 4, 4), wrong)):
        with pytest.raises(ShapeError, match=str(list(wrong.shape)).replace("[", r"\[")):
            nearest_neighbours(*pair)


def test_sources_of_two_sizes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[2, 3, 4, 4\].*\[2, 3, 4, 5\]"):
        nearest_neighbours(random_images(2, 3, 4, 4), random_images(2, 3, 4, 5))
