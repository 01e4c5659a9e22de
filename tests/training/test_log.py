"""The metrics file: what is kept on resuming, what a kill may leave behind; and words for durations."""

from pathlib import Path

import pytest

from rasterformer.errors import DataError
from rasterformer.training.log import MetricsLog, duration, read_metrics


def test_lines_are_read_back_as_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", after_step=0)
    log.write(step=1, loss=0.5)
    log.write(step=2, event="saved")
    assert read_metrics(log.path) == [{"step": 1, "loss": 0.5}, {"step": 2, "event": "saved"}]


def test_on_resuming_lines_of_later_steps_are_dropped(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", after_step=0)
    for step in (5, 10, 10, 15):
        log.write(step=step)
    resumed = MetricsLog(log.path, after_step=10)
    resumed.write(step=11)
    assert [line["step"] for line in read_metrics(log.path)] == [5, 10, 10, 11]


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]
    MetricsLog(path, after_step=1).write(step=2)
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: is no JSON"):
        read_metrics(path)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (12, "12 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (3600, "1 h 00 min")],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text
