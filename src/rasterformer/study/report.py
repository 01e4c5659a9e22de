"""What a study found: how often generated images were taken for real ones, and how sure that is.

% fooled of a condition is the share of its pairs (check pairs do not count) in which a worker, asked for the real image,
chose the generated one. 50 % is what guessing gives: nobody can tell them apart.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from PIL import Image

from rasterformer.data.png import image_grid
from rasterformer.errors import ConfigError, DataError
from rasterformer.evaluation.report import Card, Cards, Heading, Picture, Section, TableSection, Text, write_page
from rasterformer.study.store import Condition, Pair, Vote

CHECKS_RIGHT = 0.8  # a worker with a smaller share of right answers to check pairs is left out ...
CHECKS_ANSWERED = 3  # ... if there are at least so many of them
SHOWN = 12  # pictures in each of the page's sheets


@dataclass(frozen=True)
class Fooled:
    """How often workers were fooled by one condition.

    Args:
        condition: what made the generated images.
        workers: how many answered.
        votes: number of answers.
        fooled: number of answers that took the generated image for the real one.
        worker_error: standard error of the share over workers. None: fewer than two workers.
        binomial_error: standard error of the share if all votes were independent.
        interval: Wilson's 95 % interval of the share, if all votes were independent.
    """

    condition: Condition
    workers: int
    votes: int
    fooled: int
    worker_error: float | None
    binomial_error: float
    interval: tuple[float, float]

    @property
    def share(self) -> float:
        return self.fooled / self.votes


@dataclass(frozen=True)
class Report:
    """What `count_votes` found.

    Args:
        everybody: each condition, over all workers.
        attentive: each condition, without the workers in `excluded`.
        excluded: numbers of the workers that failed the check pairs.
        checks_right: the share of right answers to check pairs below which they failed.
        votes: all votes, of check pairs too.
    """

    everybody: tuple[Fooled, ...]
    attentive: tuple[Fooled, ...]
    excluded: frozenset[int]
    checks_right: float
    votes: tuple[Vote, ...]

    @property
    def workers(self) -> int:
        """Number of workers that answered at least once."""
        return len({vote.worker for vote in self.votes})


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the score interval of a probability.

    Args:
        successes: 0 to trials.
        trials: at least 1.
        confidence: between 0 and 1.

    Raises:
        ConfigError: there are no trials, more successes than trials, or confidence is not between 0 and 1.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ConfigError(f"successes = {successes} must be 0 to trials = {trials}, and there must be trials.")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence = {confidence} must be between 0 and 1.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / trials
    centre = p + z**2 / (2 * trials)
    spread = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def count_votes(votes: Sequence[Vote], *, checks_right: float = CHECKS_RIGHT) -> Report:
    """Returns % fooled of each condition, over all workers and without those who failed the check pairs.

    Args:
        votes: of one study.
        checks_right: a worker who answered at least 3 check pairs, and a smaller share of them right, failed.

    Raises:
        ConfigError: checks_right is not between 0 and 1.
    """
    if not 0 <= checks_right <= 1:
        raise ConfigError(f"checks_right = {checks_right} must be between 0 and 1.")
    checks = defaultdict(list)
    for vote in votes:
        if vote.condition is None:
            checks[vote.worker].append(not vote.fooled)
    excluded = frozenset(
        worker
        for worker, right in checks.items()
        if len(right) >= CHECKS_ANSWERED and sum(right) / len(right) < checks_right
    )
    return Report(_conditions(votes, ()), _conditions(votes, excluded), excluded, checks_right, tuple(votes))


def _conditions(votes: Iterable[Vote], excluded: Collection[int]) -> tuple[Fooled, ...]:
    answers: dict[Condition, dict[int, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for vote in votes:
        if vote.condition is not None and vote.worker not in excluded:
            answers[vote.condition][vote.worker].append(vote.fooled)
    ordered = sorted(answers, key=lambda condition: (condition.model, -(condition.temperature or math.inf)))
    return tuple(_fooled(condition, list(answers[condition].values())) for condition in ordered)


def _fooled(condition: Condition, of_workers: list[list[bool]]) -> Fooled:
    num_workers, votes = len(of_workers), sum(map(len, of_workers))
    fooled = sum(map(sum, of_workers))
    share = fooled / votes
    worker_error = None
    if num_workers > 1:
        # Of a ratio of means (Cochran, Sampling Techniques, 1977, section 6.4); where all workers have answered equally
        # many pairs, it is the standard deviation of their shares over the square root of their number.
        squares = sum((sum(answers) - share * len(answers)) ** 2 for answers in of_workers)
        worker_error = math.sqrt(squares * num_workers / (num_workers - 1)) / votes
    binomial_error = math.sqrt(share * (1 - share) / votes)
    interval = wilson_interval(fooled, votes)
    return Fooled(condition, num_workers, votes, fooled, worker_error, binomial_error, interval)


HEADER = ("model", "temperature", "workers", "votes", "% fooled", "binomial", "Wilson 95 %")


def table_rows(conditions: Iterable[Fooled]) -> list[tuple[str, ...]]:
    """Returns the figures as text, one row below `HEADER` for each condition."""
    return [
        (
            found.condition.model,
            "not stated" if found.condition.temperature is None else f"{found.condition.temperature:g}",
            str(found.workers),
            str(found.votes),
            f"{100 * found.share:.1f}" + ("" if found.worker_error is None else f" ± {100 * found.worker_error:.1f}"),
            f"± {100 * found.binomial_error:.1f}",
            "{:.1f} to {:.1f}".format(*(100 * end for end in found.interval)),
        )
        for found in conditions
    ]


def rule(report: Report) -> str:
    """Returns in one sentence who was left out, and why."""
    return (
        f"{len(report.excluded)} of {report.workers} workers answered at least {CHECKS_ANSWERED} check pairs (noise beside "
        f"a real image) and fewer than {100 * report.checks_right:g} % of them right."
    )


def write_csv(path: Path, report: Report) -> None:
    """Writes all votes, one a line; workers are numbers.

    Raises:
        DataError: the file cannot be written there.
    """
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(
        ("worker", "position", "pair", "is_check", "model", "temperature", "real_side", "choice", "fooled",
         "browser_claimed_ms", "received_at", "worker_failed_checks")
    )  # fmt: skip
    for vote in report.votes:
        model, temperature = (
            ("", None) if vote.condition is None else (vote.condition.model, vote.condition.temperature)
        )
        writer.writerow(
            (vote.worker, vote.position, vote.pair, int(vote.condition is None), model, temperature, vote.real_side,
             vote.choice, int(vote.fooled), vote.claimed_ms, vote.received_at, int(vote.worker in report.excluded))
        )  # fmt: skip
    try:
        path.write_text(stream.getvalue(), encoding="utf-8", newline="")
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}. Give a file in a folder that exists."
        ) from error


def write_html(path: Path, report: Report, pairs: dict[int, Pair], *, seconds: float) -> None:
    """Writes a page with the figures and the generated images that fooled most and fewest workers.

    Args:
        path: the file to write or replace.
        report: what was counted.
        pairs: number -> pair, as `Store.pairs` gives them.
        seconds: how long a pair was shown.

    Raises:
        DataError: the file cannot be written there.
    """
    sections: list[Section] = [
        Cards(
            (
                Card("workers", str(report.workers), f"{len(report.excluded)} of them failed the check pairs"),
                Card("votes", f"{len(report.votes):,}", "check pairs included"),
                Card("a pair was shown for", f"{seconds:g} s", "both images enlarged to 128x128"),
            )
        ),
        Heading("How often the generated image was taken for the real one"),
        Text(
            "Workers saw a real and a generated image and were asked for the real one. % fooled is the share of pairs in "
            "which they chose the generated one; 50 % is what guessing gives. Check pairs do not count."
        ),
        TableSection(HEADER, table_rows(report.attentive), "Without the workers who failed the check pairs."),
        Text(rule(report)),
        TableSection(HEADER, table_rows(report.everybody), "All workers."),
        Text(
            "± behind % fooled is the standard error over workers (none where one worker answered). The binomial "
            "standard error and Wilson's interval (Wilson 1927) take all votes as independent; where workers differ, the "
            "error over workers is the honest one."
        ),
        *_pictures(report, pairs),
    ]
    write_page(path, "Which image is real?", sections, summary="A human study of real and generated images.")


def _pictures(report: Report, pairs: dict[int, Pair]) -> list[Section]:
    answers: dict[int, list[bool]] = defaultdict(list)
    for vote in report.votes:
        if vote.condition is not None and vote.worker not in report.excluded:
            answers[vote.pair].append(vote.fooled)
    order = sorted(answers, key=lambda pair: (-sum(answers[pair]) / len(answers[pair]), pair))
    if not order:
        return []
    most, fewest = order[:SHOWN], order[::-1][:SHOWN]
    return [
        Heading("Generated images"),
        Picture(_sheet([pairs[pair].generated for pair in most]), "They fooled the largest share of workers."),
        Picture(_sheet([pairs[pair].generated for pair in fewest]), "They fooled the smallest share of workers."),
    ]


def _sheet(pictures: list[bytes]) -> torch.Tensor:
    images = [np.asarray(Image.open(io.BytesIO(picture), formats=("PNG",))) for picture in pictures]
    return image_grid(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), columns=3, gap=4)  # [3, rows, columns]
