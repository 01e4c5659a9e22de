"""A study in one SQLite file: pictures, the workers' own orders, votes. All SQL of the study is here.

A vote is one transaction that is on the disk when `vote` returns; a killed server loses none that it had acknowledged.
What a worker may be sent is decided here too (`image`); `server.py` only carries it.
"""

from __future__ import annotations

import hashlib
import hmac
import random
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rasterformer.errors import DataError

Side = Literal["left", "right"]
BUSY_SECONDS = 30.0  # how long a transaction waits for those of other processes
APPLICATION_ID = 0x52465331  # marks the file as a study: "RFS1"
SCHEMA = """
CREATE TABLE study (secret BLOB NOT NULL, seconds REAL NOT NULL, created_at TEXT NOT NULL);
CREATE TABLE condition (id INTEGER PRIMARY KEY, model TEXT NOT NULL, temperature REAL);
CREATE TABLE pair (
    id INTEGER PRIMARY KEY,
    condition INTEGER REFERENCES condition,  -- NULL: a check pair
    real BLOB NOT NULL,
    generated BLOB NOT NULL
);
CREATE TABLE worker (id INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE, joined_at TEXT NOT NULL);
CREATE TABLE trial (
    worker INTEGER NOT NULL REFERENCES worker,
    position INTEGER NOT NULL,
    pair INTEGER NOT NULL REFERENCES pair,
    real_side TEXT NOT NULL CHECK (real_side IN ('left', 'right')),
    PRIMARY KEY (worker, position)
);
CREATE TABLE vote (
    worker INTEGER NOT NULL,
    position INTEGER NOT NULL,
    choice TEXT NOT NULL CHECK (choice IN ('left', 'right')),
    claimed_ms INTEGER,
    received_at TEXT NOT NULL,
    PRIMARY KEY (worker, position),
    FOREIGN KEY (worker, position) REFERENCES trial
);
"""


@dataclass(frozen=True)
class Condition:
    """What made a generated image. A temperature of None was not stated."""

    model: str
    temperature: float | None


@dataclass(frozen=True)
class Pair:
    """A real and a generated image, PNG bytes each. A condition of None: a check pair, the second is plain noise."""

    real: bytes
    generated: bytes
    condition: Condition | None


@dataclass(frozen=True)
class Progress:
    """The position that a worker is to answer next, from 1; `total + 1` where all are answered."""

    position: int
    total: int


@dataclass(frozen=True)
class Vote:
    """One answer.

    Args:
        worker: number in the order of joining, from 1.
        position: place in the worker's own order, from 1.
        pair: number of the pair.
        condition: None: a check pair.
        real_side: where the real image was.
        choice: the side that the worker took for the real image.
        claimed_ms: time to answer in milliseconds as the worker's browser claims it. None: it claimed none.
        received_at: the server's clock, ISO 8601, UTC.
    """

    worker: int
    position: int
    pair: int
    condition: Condition | None
    real_side: Side
    choice: Side
    claimed_ms: int | None
    received_at: str

    @property
    def fooled(self) -> bool:
        """Whether the generated image was taken for the real one."""
        return self.choice != self.real_side


class Store:
    """An open study. Threads may share it, and processes may open the same file.

    Args:
        path: file that `Store.create` made.

    Raises:
        DataError: there is no such file, it is no study, or it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"{path}: no such file. `rasterformer study create` makes a study.")
        try:
            self._db = _connect(path)
        except sqlite3.Error as error:
            raise DataError(f"{path} cannot be opened as a study: {error}.") from error
        self._lock = threading.Lock()
        try:
            (application,) = self._db.execute("PRAGMA application_id").fetchone()
            if application != APPLICATION_ID:
                raise DataError(f"{path} is a database, but no study. `rasterformer study create` makes one.")
            self.seconds: float
            self._secret, self.seconds = self._db.execute("SELECT secret, seconds FROM study").fetchone()
        except sqlite3.Error as error:
            self._db.close()
            raise DataError(f"{path} is no study: {error}. `rasterformer study create` makes one.") from error
        except DataError:
            self._db.close()
            raise

    @classmethod
    def create(cls, path: Path, pairs: Sequence[Pair], *, seconds: float) -> Store:
        """Makes a new study, and opens it.

        Args:
            path: a file that does not exist.
            pairs: in any order; each worker gets an order of their own.
            seconds: how long a pair is shown.

        Raises:
            DataError: the file exists already, or cannot be written.
        """
        try:
            path.open("xb").close()
        except FileExistsError as error:
            raise DataError(f"{path} exists already and is left as it is; give another file name.") from error
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror or error}.") from error
        try:
            db = _connect(path)
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.executescript(f"BEGIN IMMEDIATE; {SCHEMA}")
                db.execute("INSERT INTO study VALUES (?, ?, ?)", (secrets.token_bytes(32), seconds, _now()))
                conditions = list(dict.fromkeys(pair.condition for pair in pairs if pair.condition is not None))
                ids = {condition: number for number, condition in enumerate(conditions, start=1)}
                db.executemany(
                    "INSERT INTO condition VALUES (?, ?, ?)",
                    [(number, condition.model, condition.temperature) for condition, number in ids.items()],
                )
                db.executemany(
                    "INSERT INTO pair (condition, real, generated) VALUES (?, ?, ?)",
                    [(ids[pair.condition] if pair.condition else None, pair.real, pair.generated) for pair in pairs],
                )
                db.execute("COMMIT")
            finally:
                db.close()
        except sqlite3.Error as error:
            path.unlink()
            raise DataError(f"{path} cannot be written: {error}.") from error
        return cls(path)

    def close(self) -> None:
        """Closes the file; what was voted is in it."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def join(self) -> str:
        """Adds a worker with an order and sides of their own, and returns the token that is their key.

        Order and sides are drawn from a keyed hash of the token: the token alone, which the worker knows, tells nothing.
        """
        token = secrets.token_urlsafe(24)
        rng = random.Random(hmac.digest(self._secret, token.encode(), hashlib.sha256))
        with self._transaction() as db:
            worker = db.execute("INSERT INTO worker (token, joined_at) VALUES (?, ?)", (token, _now())).lastrowid
            order = [pair for (pair,) in db.execute("SELECT id FROM pair ORDER BY id")]
            rng.shuffle(order)
            db.executemany(
                "INSERT INTO trial VALUES (?, ?, ?, ?)",
                [(worker, position, pair, rng.choice(("left", "right"))) for position, pair in enumerate(order, 1)],
            )
        return token

    def tokens(self) -> list[str]:
        """Returns the tokens of all workers, in the order of joining."""
        with self._transaction() as db:
            return [token for (token,) in db.execute("SELECT token FROM worker ORDER BY id")]

    def progress(self, token: str) -> Progress | None:
        """Returns how far a worker is, or None where the token is nobody's."""
        with self._transaction() as db:
            found = _worker(db, token)
        return found and found[1]

    def image(self, token: str, position: int, side: Side) -> bytes | None:
        """Returns the PNG bytes of one side of the worker's open pair or the one after it; None for any other."""
        with self._transaction() as db:
            found = _worker(db, token)
            if found is None or not 0 <= position - found[1].position <= 1:
                return None
            row = db.execute(
                "SELECT CASE real_side WHEN ? THEN real ELSE generated END"
                " FROM trial JOIN pair ON pair.id = trial.pair WHERE worker = ? AND position = ?",
                (side, found[0], position),
            ).fetchone()
        content: bytes | None = row and row[0]
        return content

    def vote(self, token: str, position: int, choice: Side, *, claimed_ms: int | None = None) -> bool:
        """Records the answer to the worker's open pair.

        Args:
            token: the worker's.
            position: in the worker's own order, from 1.
            choice: the side taken for the real image.
            claimed_ms: time to answer as the worker's browser claims it.

        Returns:
            True where the position has a vote now, and on the disk: this one, or the first one where it had one
            already, which stays as it was. False where the position is not open yet, or the token is nobody's.
        """
        with self._transaction() as db:
            found = _worker(db, token)
            if found is None or not 1 <= position <= min(found[1].position, found[1].total):
                return False
            if position == found[1].position:
                row = (found[0], position, choice, claimed_ms, _now())
                db.execute("INSERT INTO vote VALUES (?, ?, ?, ?, ?)", row)
        return True

    def votes(self) -> list[Vote]:
        """Returns all votes, by worker and position."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT vote.worker, vote.position, pair.id, model, temperature, real_side, choice, claimed_ms,"
                " received_at FROM vote JOIN trial USING (worker, position) JOIN pair ON pair.id = trial.pair"
                " LEFT JOIN condition ON condition.id = pair.condition ORDER BY vote.worker, vote.position"
            ).fetchall()
        return [
            Vote(worker, position, pair, None if model is None else Condition(model, temperature), *answer)
            for worker, position, pair, model, temperature, *answer in rows
        ]

    def pairs(self) -> dict[int, Pair]:
        """Returns all pairs by their numbers."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT pair.id, real, generated, model, temperature"
                " FROM pair LEFT JOIN condition ON condition.id = pair.condition ORDER BY pair.id"
            ).fetchall()
        return {
            number: Pair(real, generated, None if model is None else Condition(model, temperature))
            for number, real, generated, model, temperature in rows
        }


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode=rw",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,  # transactions are opened and closed here, by name
        check_same_thread=False,  # `Store` has a lock
    )
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    return db


def _worker(db: sqlite3.Connection, token: str) -> tuple[int, Progress] | None:
    row = db.execute(
        "SELECT id, (SELECT count(*) FROM vote WHERE worker = id), (SELECT count(*) FROM trial WHERE worker = id)"
        " FROM worker WHERE token = ?",
        (token,),
    ).fetchone()
    return None if row is None else (row[0], Progress(row[1] + 1, row[2]))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
