"""What is counted, and how sure it is said to be."""

import csv
import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from PIL import Image
from scipy.stats import binomtest  # type: ignore[import-untyped]

from rasterformer.cli.main import main
from rasterformer.errors import ConfigError, DataError
from rasterformer.study.report import Report, count_votes, table_rows, wilson_interval, write_csv, write_html
from rasterformer.study.store import Condition, Side, Store, Vote

NewStudy = Callable[..., Path]
A, B = Condition("a", 1.0), Condition("a", 0.8)


def votes_of(worker: int, condition: Condition | None, fooled: Iterable[bool]) -> list[Vote]:
    sides: tuple[Side, Side] = ("left", "right")
    return [
        Vote(worker, position, position, condition, sides[position % 2], sides[(position + wrong) % 2], 900, "2026")
        for position, wrong in enumerate(fooled, start=1)
    ]


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (1, 3), (741, 2500), (1, 1)])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_wilson_interval_is_scipys(successes: int, trials: int, confidence: float) -> None:
    expected = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    received = wilson_interval(successes, trials, confidence=confidence)
    assert received == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_of_a_worked_example() -> None:
    # ends are where |share - p| = z sqrt(p (1 - p) / n), Wilson's own definition
    low, high = wilson_interval(30, 100)
    for end in (low, high):
        assert abs(0.3 - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / 100))


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (4, 3), (-1, 3)])
def test_wilson_interval_refuses_impossible_counts(successes: int, trials: int) -> None:
    with pytest.raises(ConfigError, match=f"successes = {successes} must be 0 to trials = {trials}"):
        wilson_interval(successes, trials)


def test_wilson_interval_refuses_certainty() -> None:
    with pytest.raises(ConfigError, match="confidence = 1.0"):
        wilson_interval(1, 2, confidence=1.0)


def test_share_and_errors_are_those_of_the_definitions() -> None:
    fooled = {1: [True, False, False, False], 2: [True, True, False, False], 3: [False] * 4}
    votes = [vote for worker, wrong in fooled.items() for vote in votes_of(worker, A, wrong)]
    (found,) = count_votes(votes).everybody
    shares = [sum(wrong) / 4 for wrong in fooled.values()]
    assert (found.workers, found.votes, found.fooled, found.share) == (3, 12, 3, 0.25)
    assert found.worker_error == pytest.approx(statistics.stdev(shares) / math.sqrt(3))
    assert found.binomial_error == pytest.approx(math.sqrt(0.25 * 0.75 / 12))
    assert found.interval == wilson_interval(3, 12)


def test_conditions_are_counted_apart_and_checks_not_at_all() -> None:
    votes = votes_of(1, A, [True, True]) + votes_of(1, B, [False]) + votes_of(1, None, [True] * 2)
    found = {fooled.condition: (fooled.fooled, fooled.votes) for fooled in count_votes(votes).everybody}
    assert found == {A: (2, 2), B: (0, 1)}
    assert all(fooled.worker_error is None for fooled in count_votes(votes).everybody)


@pytest.mark.parametrize(
    ("checks", "is_excluded"),
    [
        ([True, True], False),  # all wrong, but only two
        ([True, False, False], True),  # 67 % right
        ([True, False, False, False, False], False),  # 80 % right
        ([True, True, False, False, False], True),  # 60 % right
        ([False] * 5, False),
    ],
)
def test_a_worker_fails_with_less_than_80_percent_of_at_least_three_checks(
    checks: list[bool], is_excluded: bool
) -> None:
    votes = votes_of(1, A, [False] * 4) + votes_of(2, A, [True] * 4) + votes_of(2, None, checks)
    report = count_votes(votes)
    assert report.excluded == ({2} if is_excluded else set())
    assert report.everybody[0].share == 0.5
    assert report.attentive[0].share == (0 if is_excluded else 0.5)


def test_the_share_of_right_checks_can_be_chosen() -> None:
    votes = votes_of(1, A, [True]) + votes_of(1, None, [True, True, False, False])
    assert count_votes(votes, checks_right=0.5).excluded == set()
    with pytest.raises(ConfigError, match="checks_right = 1.5"):
        count_votes(votes, checks_right=1.5)


def test_rows_are_percentages() -> None:
    rows = table_rows(count_votes(votes_of(1, Condition("m", None), [True, False])).everybody)
    assert rows == [("m", "not stated", "1", "2", "50.0", "± 35.4", "9.5 to 90.5")]


@pytest.fixture
def answered(new_study: NewStudy) -> Path:
    """Two conditions of two pairs and three checks; worker 1 is always right, worker 2 always wrong."""
    path = new_study(pairs=4, checks=3)
    with Store(path) as store:
        for worker in (1, 2):
            token = store.join()
            for position in range(1, 8):
                pair_real = {pair.real for pair in store.pairs().values()}
                real_side: Side = "left" if store.image(token, position, "left") in pair_real else "right"
                wrong: Side = "right" if real_side == "left" else "left"
                store.vote(token, position, real_side if worker == 1 else wrong, claimed_ms=500 + position)
    return path


def test_csv_has_every_vote_and_no_token(answered: Path, tmp_path: Path) -> None:
    with Store(answered) as store:
        report = count_votes(store.votes())
        tokens = store.tokens()
    write_csv(tmp_path / "votes.csv", report)
    text = (tmp_path / "votes.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 14 and not any(token in text for token in tokens)
    assert {row["worker_failed_checks"] for row in rows if row["worker"] == "2"} == {"1"}
    assert all(row["fooled"] == str(int(row["worker"] == "2")) for row in rows)
    assert sorted(row["temperature"] for row in rows if row["worker"] == "1") == [
        "",
        "",
        "",
        "0.9",
        "0.9",
        "1.0",
        "1.0",
    ]
    assert all(row["browser_claimed_ms"] == str(500 + int(row["position"])) for row in rows)


def test_page_has_both_tables_and_the_pictures(answered: Path, tmp_path: Path) -> None:
    with Store(answered) as store:
        write_html(tmp_path / "page.html", count_votes(store.votes()), store.pairs(), seconds=store.seconds)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "1 of 2 workers" in page and page.count("<table>") == 2 and page.count("<img") == 2


@pytest.mark.parametrize("write", [write_csv, lambda path, report: write_html(path, report, {}, seconds=1.5)])
def test_a_file_that_cannot_be_written_is_named(write: Callable[[Path, Report], None], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="votes.out cannot be written"):
        write(tmp_path / "file" / "votes.out", count_votes(()))


def test_command_prints_figures_with_and_without_failed_workers(
    answered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["study", "report", str(answered), "--csv", str(tmp_path / "v.csv"), "--html", str(tmp_path / "p.html")]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "without workers who failed the check pairs (1)" in shown and "all workers" in shown
    assert "2 workers, 14 votes" in shown and "50.0 ± 50.0" in shown
    assert (tmp_path / "v.csv").is_file() and (tmp_path / "p.html").is_file()


def test_command_says_that_nobody_has_voted(new_study: NewStudy, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "report", str(new_study())]) == 0
    assert "Nobody has voted yet." in capsys.readouterr().out


def test_create_command_says_what_it_did(
    real: Path, generated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study.db"
    (tmp_path / "theirs").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs/a.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "theirs/b.png")
    words = [
        "study",
        "create",
        str(real),
        str(generated),
        str(tmp_path / "theirs"),
        "--pairs",
        "2",
        "--checks",
        "1",
        "--out",
        str(out),
    ]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "runs/a, temperature 0.9: 2 pairs of 8x8 pixels" in shown and "grid.png" in shown
    assert "theirs, temperature not stated: 2 pairs" in shown
    assert "7 real images were larger" in shown and "7 pairs a worker, 1 of them checks" in shown
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
