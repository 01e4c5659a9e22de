"""Position encodings against their formulas."""

import math

import pytest
import torch
from torch import Tensor

from rasterformer.nn.positions import LearnedPositions, rotary_angles, rotate, sinusoidal_positions

ROWS, COLS = torch.arange(12) // 4, torch.arange(12) % 4


@pytest.mark.parametrize("width", [4, 8, 14])
def test_sinusoids_follow_the_formula(width: int) -> None:
    scales = width // 4
    encoding = sinusoidal_positions(ROWS, COLS, width)
    assert encoding.shape == (12, width)
    for position in range(12):
        expected = []
        for coordinate in (position // 4, position % 4):
            angles = [coordinate * 10000 ** (-i / max(scales - 1, 1)) for i in range(scales)]
            expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        expected += [0.0] * (width - 4 * scales)
        assert encoding[position].tolist() == pytest.approx(expected, abs=1e-6)


def test_sinusoids_give_half_of_the_width_to_the_row_and_half_to_the_column() -> None:
    encoding = sinusoidal_positions(ROWS, COLS, 16)
    same_row, same_col = encoding[4:8], encoding[1::4]
    assert torch.equal(same_row[:, :8], same_row[:1, :8].expand(4, -1))
    assert torch.equal(same_col[:, 8:], same_col[:1, 8:].expand(3, -1))
    assert not torch.equal(encoding[0], encoding[1]) and not torch.equal(encoding[0], encoding[4])


def test_learned_positions_put_row_and_column_side_by_side() -> None:
    positions = LearnedPositions(ROWS, COLS, 7, summed=False)
    assert positions.row.weight.shape == (3, 3) and positions.col.weight.shape == (4, 4)
    for position, vector in enumerate(positions()):
        expected = torch.cat([positions.row.weight[position // 4], positions.col.weight[position % 4]])
        assert torch.equal(vector, expected)


def test_summed_learned_positions_add_full_width_tables_times_sqrt_d() -> None:
    positions = LearnedPositions(ROWS, COLS, 9, summed=True)
    for position, vector in enumerate(positions()):
        expected = 3 * (positions.row.weight[position // 4] + positions.col.weight[position % 4])
        torch.testing.assert_close(vector, expected)


def score(q: Tensor, k: Tensor, query: tuple[int, int], key: tuple[int, int]) -> float:
    """Dot product of two turned vectors at (row, column)."""
    rows, cols = torch.tensor([query[0], key[0]]), torch.tensor([query[1], key[1]])
    turned = rotate(torch.stack([q, k])[:, None], rotary_angles(rows, cols, len(q)).double())
    return float(turned[0, 0] @ turned[1, 0])


def test_rotary_scores_depend_on_row_and_column_offsets_only() -> None:
    q, k = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    at_home = score(q, k, (5, 7), (3, 1))
    assert score(q, k, (25, 17), (23, 11)) == pytest.approx(at_home, abs=1e-5)  # angles are float32
    assert score(q, k, (6, 7), (3, 1)) != pytest.approx(at_home, abs=1e-2)
    assert score(q, k, (5, 8), (3, 1)) != pytest.approx(at_home, abs=1e-2)
    assert score(q, k, (3, 1), (3, 1)) == pytest.approx(float(q @ k), abs=1e-5)


def test_rotary_turns_half_of_the_pairs_by_the_row_and_half_by_the_column() -> None:
    angles = rotary_angles(torch.tensor([2]), torch.tensor([3]), 8)
    assert angles[0].tolist() == pytest.approx([2.0, 2.0 / 10, 3.0, 3.0 / 10])


def test_rotate_turns_pairs_as_complex_numbers() -> None:
    x = torch.randn(3, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    angles = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    turned = rotate(x, angles)
    for position in range(3):
        for head in range(2):
            pairs = torch.complex(x[position, head, :4], x[position, head, 4:]) * torch.exp(1j * angles[position])
            torch.testing.assert_close(turned[position, head], torch.cat([pairs.real, pairs.imag]))
