"""What is unknown in each kind of mask, and that something always is, and something never."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rasterformer.conditioning.masks import random_mask, rectangle_mask
from rasterformer.errors import ConfigError

KINDS = ("rectangles", "strokes", "border", "half")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(kind: str, size: int, seed: int = 0, *, most_rectangles: int = 2, most_strokes: int = 4) -> Tensor:
    most = {"most_rectangles": most_rectangles, "most_strokes": most_strokes}
    return random_mask(kind, size, generator(seed), **most)  # type: ignore[arg-type]


def bounds(part: Tensor) -> tuple[int, int, int, int]:
    """First row, rows, first column, columns of the smallest rectangle around the True pixels."""
    rows, cols = part.any(1).nonzero().flatten().tolist(), part.any(0).nonzero().flatten().tolist()
    return rows[0], rows[-1] - rows[0] + 1, cols[0], cols[-1] - cols[0] + 1


def is_full_rectangle(part: Tensor) -> bool:
    _, rows, _, cols = bounds(part)
    return int(part.sum()) == rows * cols


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [4, 5, 6, 7, 8, 33])
def test_something_is_known_and_something_is_not(kind: str, size: int) -> None:
    for seed in range(40):
        known = draw(kind, size, seed)
        assert known.dtype == torch.bool and known.shape == (size, size)
        assert known.any() and not known.all()


@pytest.mark.parametrize("kind", ["rectangles", "strokes"])
def test_something_stays_known_however_many_holes_are_drawn(kind: str) -> None:
    for seed in range(8):
        known = draw(kind, 4, seed, most_rectangles=1000, most_strokes=200)
        assert known.any() and not known.all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_alone_decides(kind: str) -> None:
    torch.manual_seed(0)
    first = draw(kind, 16, 7)
    torch.manual_seed(1)
    assert torch.equal(draw(kind, 16, 7), first)
    assert any(not torch.equal(draw(kind, 16, seed), first) for seed in range(10))


@pytest.mark.parametrize("size", [5, 8, 32])
def test_a_rectangle_has_sides_of_a_quarter_to_a_half(size: int) -> None:
    sides = set()
    for seed in range(300):
        unknown = ~draw("rectangles", size, seed, most_rectangles=1)
        _, rows, _, cols = bounds(unknown)
        assert is_full_rectangle(unknown)
        sides |= {rows, cols}
    assert sides == {side for side in range(size + 1) if size / 4 <= side <= size / 2}


def test_up_to_most_rectangles_are_drawn() -> None:
    """Three rectangles of at most a quarter of the image each; some masks need more than one, none more than three."""
    unknown = [~draw("rectangles", 16, seed, most_rectangles=3) for seed in range(200)]
    assert any(not is_full_rectangle(part) for part in unknown) and any(is_full_rectangle(part) for part in unknown)
    assert all(int(part.sum()) <= 3 * 64 for part in unknown) and any(int(part.sum()) > 2 * 64 for part in unknown)


@pytest.mark.parametrize("size", [5, 8, 32])
def test_the_border_is_all_outside_a_rectangle_of_half_to_seven_eighths(size: int) -> None:
    sides, corners = set(), set()
    for seed in range(400):
        known = draw("border", size, seed)
        top, rows, left, cols = bounds(known)
        assert is_full_rectangle(known)
        sides |= {rows, cols}
        corners |= {top == 0, left == 0}
    assert sides == {side for side in range(size + 1) if size / 2 <= side <= size * 7 / 8}
    assert corners == {True, False}


@pytest.mark.parametrize("size", [6, 7])
def test_each_of_the_four_halves_comes(size: int) -> None:
    cut = size // 2
    allowed = set()
    for part in (slice(0, cut), slice(cut, size)):
        for axis in (0, 1):
            known = torch.zeros(size, size, dtype=torch.bool)
            (known if axis else known.T)[part] = True
            allowed.add(tuple(known.flatten().tolist()))
    drawn = {tuple(draw("half", size, seed).flatten().tolist()) for seed in range(60)}
    assert drawn == allowed and len(drawn) == 4


def pieces(part: Tensor) -> int:
    """Number of parts that are connected by sides or corners."""
    left, count = {tuple(place) for place in part.nonzero().tolist()}, 0
    while left:
        count, pending = count + 1, [left.pop()]
        while pending:
            row, col = pending.pop()
            near = {(row + i, col + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            pending.extend(near)
    return count


def test_one_stroke_is_connected_and_as_thick_as_its_brush() -> None:
    """A brush of radius 2 to 4 covers some square of 2x2 pixels, and at most five segments of its width and length."""
    size = 32
    for seed in range(40):
        unknown = ~draw("strokes", size, seed, most_strokes=1)
        assert pieces(unknown) == 1
        assert int(unknown.sum()) <= 5 * (size / 3 + 1) * (size / 4 + 1) + 80  # 80: the round ends
        assert torch.nn.functional.avg_pool2d(unknown[None].float(), 2, stride=1).max() == 1


def test_up_to_most_strokes_are_drawn() -> None:
    counts = {pieces(~draw("strokes", 64, seed, most_strokes=3)) for seed in range(60)}
    assert counts == {1, 2, 3}


def test_a_rectangle_is_unknown_and_nothing_else() -> None:
    known = rectangle_mask(4, 6, 1, 2, 3, 1)
    assert (~known).nonzero().tolist() == [[1, 2], [2, 2], [3, 2]] and known.shape == (4, 6)
    assert not rectangle_mask(4, 6, 0, 0, 4, 6).any()


@pytest.mark.parametrize("place", [(-1, 0, 2, 2), (0, -1, 2, 2), (3, 0, 2, 2), (0, 5, 2, 2)])
def test_a_rectangle_out_of_the_image_is_refused(place: tuple[int, int, int, int]) -> None:
    with pytest.raises(ConfigError, match=rf"2x2 pixels at row {place[0]}, column {place[1]} reaches out .* of 4x6"):
        rectangle_mask(4, 6, *place)


@pytest.mark.parametrize(("rows", "cols"), [(0, 2), (2, 0), (-1, 2)])
def test_an_empty_rectangle_is_refused(rows: int, cols: int) -> None:
    with pytest.raises(ConfigError, match=rf"of {rows}x{cols} pixels at row 0, column 0 is empty"):
        rectangle_mask(4, 6, 0, 0, rows, cols)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="size = 3 is too small"):
        draw("half", 3)
    with pytest.raises(ConfigError, match="most_rectangles = 0 and most_strokes = 4"):
        draw("rectangles", 8, most_rectangles=0)
    with pytest.raises(ConfigError, match="most_rectangles = 2 and most_strokes = -1"):
        draw("strokes", 8, most_strokes=-1)
    with pytest.raises(ConfigError, match=r"kind = 'stroke' is no kind of mask\. Did you mean 'strokes'\?"):
        draw("stroke", 8)
