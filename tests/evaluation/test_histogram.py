import re

from rasterformer.evaluation.histogram import Histograms


def areas(drawing: str) -> list[float]:
    """Of the reference's and the folder's outline, by the shoelace formula."""
    found = []
    for points in re.findall(r'points="([^"]*)"', drawing):
        corners = [tuple(map(float, point.split(","))) for point in points.split()]
        pairs = zip(corners, corners[1:] + corners[:1], strict=True)
        found.append(abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairs)) / 2)
    return found


def test_both_outlines_are_shares_and_so_have_the_same_area() -> None:
    drawing = Histograms([1.0, 1.1, 1.3, 2.0], [0.5, 1.0] * 50 + [9.0], "bits", "").element()
    reference, folder = areas(drawing)
    assert abs(reference / folder - 1) < 0.01


def test_round_numbers_between_the_ends_are_named() -> None:
    drawing = Histograms([1.0, 1.5], [0.3, 12.0], "bits", "").element()
    assert re.findall(r'text-anchor="middle">([\d.]+)<', drawing) == ["0.5", "1", "2", "5", "10"]


def test_equal_values_and_odd_texts_are_drawn() -> None:
    drawing = Histograms([1.0, 1.0], [1.0], "a < b", "<script>").element()
    assert "a &lt; b" in drawing and "&lt;script&gt;" in drawing and "<script" not in drawing
    assert len(areas(drawing)) == 2
