"""What is wrong with a task is said in a sentence each; the shape of its sources follows from it."""

from __future__ import annotations

import pytest

from rasterformer.tasks import (
    TASKS,
    Colourise,
    Denoise,
    Edges,
    Inpaint,
    Paired,
    SourceShape,
    SuperResolution,
    Task,
    source_shape,
    task_name,
)


@pytest.mark.parametrize(
    "task",
    [
        SuperResolution(),
        SuperResolution(2),
        SuperResolution(32),
        Inpaint(),
        Inpaint(masks=("half",), most_rectangles=1, most_strokes=1),
        Colourise(),
        Edges(),
        Edges(sigma=0.5, low=0.2, high=0.2),
        Denoise(),
        Denoise((0.0, 0.0), jpeg_quality=(1, 95)),
        Denoise((3.0, 3.0), jpeg_quality=(50, 50)),
        Paired("photos"),
        Paired("photos", source_size=1),
    ],
)
def test_a_task_that_can_be_done_has_no_problems(task: Task) -> None:
    assert task.problems(32) == []


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (SuperResolution(1), "task.factor = 1 must be at least 2."),
        (SuperResolution(0), "task.factor = 0 must be at least 2."),
        (
            SuperResolution(5),
            "task.factor = 5 does not divide data.image_size = 12. Use one of 2, 3, 4, 6, 12, or another data.image_size.",
        ),
        (Inpaint(masks=()), "task.masks is empty. Name at least one kind of mask."),
        (Inpaint(most_rectangles=0), "task.most_rectangles = 0 must be at least 1."),
        (Inpaint(most_strokes=-2), "task.most_strokes = -2 must be at least 1."),
        (Edges(sigma=0.0), "task.sigma = 0.0 must be above 0 pixels and finite."),
        (Edges(sigma=float("inf")), "task.sigma = inf must be above 0 pixels and finite."),
        (Edges(low=0.0), "task.low = 0.0 must be above 0 and not above task.high = 0.2."),
        (Edges(low=0.3), "task.low = 0.3 must be above 0 and not above task.high = 0.2."),
        (
            Denoise((-1.0, 5.0)),
            "task.gaussian_std = (-1.0, 5.0) must be two numbers, 0 or more, the smaller one first.",
        ),
        (Denoise((6.0, 5.0)), "task.gaussian_std = (6.0, 5.0) must be two numbers, 0 or more, the smaller one first."),
        (
            Denoise(jpeg_quality=(0, 50)),
            "task.jpeg_quality = (0, 50) must be two numbers in 1..95, the smaller one first.",
        ),
        (
            Denoise(jpeg_quality=(50, 96)),
            "task.jpeg_quality = (50, 96) must be two numbers in 1..95, the smaller one first.",
        ),
        (
            Denoise(jpeg_quality=(60, 50)),
            "task.jpeg_quality = (60, 50) must be two numbers in 1..95, the smaller one first.",
        ),
        (
            Denoise((0.0, 0.0)),
            "task.gaussian_std is 0 and task.jpeg_quality is null: the source would be the target. Set one.",
        ),
        (Paired(), "task.source_path is missing: the folder with the source images."),
        (
            Paired("photos", source_size=0),
            "task.source_size = 0 must divide data.image_size = 12, or be null, for the same size.",
        ),
        (
            Paired("photos", source_size=5),
            "task.source_size = 5 must divide data.image_size = 12, or be null, for the same size.",
        ),
    ],
)
def test_a_problem_is_one_sentence(task: Task, sentence: str) -> None:
    assert task.problems(12) == [sentence]


@pytest.mark.parametrize(
    ("task", "count"),
    [
        (Inpaint(masks=(), most_rectangles=0, most_strokes=0), 3),
        (Denoise((5.0, 1.0), jpeg_quality=(9, 1)), 2),
        (Paired(source_size=-1), 2),
        (Edges(-1.0, 0.5, 0.1), 2),
    ],
)
def test_all_problems_are_told_at_once(task: Task, count: int) -> None:
    assert len(set(task.problems(12))) == count


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        (SuperResolution(4), SourceShape(3, 8, False)),
        (SuperResolution(2), SourceShape(3, 16, False)),
        (Inpaint(), SourceShape(3, 32, True)),
        (Colourise(), SourceShape(1, 32, False)),
        (Edges(), SourceShape(1, 32, False)),
        (Denoise(), SourceShape(3, 32, False)),
        (Paired("photos"), SourceShape(3, 32, False)),
        (Paired("photos", source_size=16), SourceShape(3, 16, False)),
    ],
)
def test_the_shape_of_sources_for_targets_of_32_pixels(task: Task, shape: SourceShape) -> None:
    assert source_shape(task, 32) == shape


@pytest.mark.parametrize("name", TASKS)
def test_a_task_knows_the_name_it_is_called_by(name: str) -> None:
    assert task_name(TASKS[name]()) == name
