"""Curves lie where their values say, on round axes, with names that do not overlap."""

import itertools
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rasterformer.evaluation.svg_curve import (
    BOTTOM,
    HEIGHT,
    LABEL_DISTANCE,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    spread,
    svg_curve,
    ticks,
)


def test_points_stand_in_proportion_between_the_ends_of_the_axes():
    svg = svg_curve({"run": [(0, 8), (5, 6), (10, 4)]}, x_label="minutes", y_label="bits/dim")
    [points] = re.findall(r'points="([^"]*)"', svg)
    corners = [tuple(map(float, point.split(","))) for point in points.split()]
    assert corners == [
        (LEFT, TOP),
        (LEFT + (WIDTH - LEFT - RIGHT) / 2, TOP + (HEIGHT - TOP - BOTTOM) / 2),
        (WIDTH - RIGHT, HEIGHT - BOTTOM),
    ]


def test_axes_series_and_lines_are_named():
    svg = svg_curve({"ours": [(0, 8), (10, 3.456)]}, x_label="minutes", y_label="bits/dim", lines={"PNG": 5.87})
    texts = [element.text for element in ElementTree.fromstring(svg).iter("text")]
    assert {"minutes", "bits/dim", "ours 3.46", "PNG 5.87", "0", "10", "8"} <= set(texts)


def test_points_that_are_not_finite_are_left_out():
    svg = svg_curve({"a": [(0, 8), (1, math.nan), (2, 4)], "b": [(0, math.inf)]}, x_label="x", y_label="y")
    [points] = re.findall(r'points="([^"]*)"', svg)
    assert len(points.split()) == 2


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match=r"\['a'\] have no finite point"):
        svg_curve({"a": [(0, math.nan)]}, x_label="x", y_label="y")
    with pytest.raises(ValueError, match="'PNG' lies at inf"):
        svg_curve({"a": [(0, 1)]}, x_label="x", y_label="y", lines={"PNG": math.inf})


@given(low=st.floats(-1e6, 1e6), span=st.one_of(st.just(0.0), st.floats(1e-3, 1e6)))
def test_ticks_are_few_and_equally_spaced_and_enclose_the_values(low, span):
    marks = ticks(low, low + span)
    steps = [b - a for a, b in itertools.pairwise(marks)]
    tolerance = 1e-6 * max(steps)
    assert 2 <= len(marks) <= 8
    assert marks[0] <= low + tolerance and low + span <= marks[-1] + tolerance
    assert max(steps) - min(steps) <= tolerance
    multiples = [mark / steps[0] for mark in marks]  # as exact as a difference of two marks can be
    assert all(abs(k - round(k)) < 1e-4 + 1e-15 * k**2 for k in multiples)


@given(st.lists(st.floats(TOP, HEIGHT - BOTTOM), max_size=12))
def test_labels_keep_their_distance_and_their_order(positions):
    moved = spread(positions)
    for (_, one), (_, other) in itertools.pairwise(sorted(zip(positions, moved, strict=True))):
        assert abs(other - one) >= LABEL_DISTANCE - 1e-9
    assert all(position <= HEIGHT - BOTTOM for position in moved)
