"""Orders, votes and what a worker may be sent."""

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rasterformer.errors import DataError
from rasterformer.study.store import Pair, Progress, Store

NewStudy = Callable[..., Path]


def test_every_worker_gets_every_pair_once(new_study: NewStudy) -> None:
    with Store(new_study(pairs=6, checks=2)) as store:
        for _ in range(3):
            token = store.join()
            for position in range(1, 9):
                assert store.vote(token, position, "left")
        votes = store.votes()
    for worker in (1, 2, 3):
        of_worker = [vote for vote in votes if vote.worker == worker]
        assert sorted(vote.pair for vote in of_worker) == list(range(1, 9))
        assert sum(vote.condition is None for vote in of_worker) == 2


def test_orders_and_sides_differ_between_workers_and_sides_are_even(new_study: NewStudy) -> None:
    with Store(new_study(pairs=40, checks=0)) as store:
        for _ in range(20):
            token = store.join()
            for position in range(1, 41):
                store.vote(token, position, "left")
        votes = store.votes()
    orders = {tuple(vote.pair for vote in votes if vote.worker == worker) for worker in range(1, 21)}
    assert len(orders) == 20
    left = sum(vote.real_side == "left" for vote in votes)
    assert abs(left - 400) < 5 * 200**0.5  # 800 fair coins: five standard deviations


def test_order_and_sides_survive_a_new_opening(new_study: NewStudy) -> None:
    path = new_study(pairs=8)
    with Store(path) as store:
        token = store.join()
        before = [store.image(token, position, "left") for position in (1, 2)]
        store.vote(token, 1, "right")
    with Store(path) as store:
        assert store.progress(token) == Progress(position=2, total=9)
        assert store.image(token, 2, "left") == before[1]


def test_only_images_of_the_open_and_the_next_pair_are_given(new_study: NewStudy) -> None:
    with Store(new_study(pairs=4, checks=0)) as store:
        token = store.join()
        store.vote(token, 1, "left")
        given = [position for position in range(7) if store.image(token, position, "right") is not None]
        assert given == [2, 3]
        for position in (2, 3, 4):
            store.vote(token, position, "left")
        assert all(store.image(token, position, "left") is None for position in range(7))
        assert store.image("nobody", 1, "left") is None


def test_sides_show_the_two_images_of_one_pair(new_study: NewStudy) -> None:
    with Store(new_study()) as store:
        token = store.join()
        sides = {"left": store.image(token, 1, "left"), "right": store.image(token, 1, "right")}
        store.vote(token, 1, "left")
        (vote,) = store.votes()
        pair = store.pairs()[vote.pair]
    other = "left" if vote.real_side == "right" else "right"
    assert sides[vote.real_side] == pair.real and sides[other] == pair.generated
    assert vote.fooled == (vote.real_side == "right")


def test_a_repeated_vote_neither_doubles_nor_changes_the_first(new_study: NewStudy) -> None:
    with Store(new_study()) as store:
        token = store.join()
        assert store.vote(token, 1, "left", claimed_ms=700)
        first = store.votes()
        assert store.vote(token, 1, "right", claimed_ms=900)
        assert store.votes() == first and first[0].choice == "left" and first[0].claimed_ms == 700


def test_votes_ahead_behind_the_end_and_of_nobody_are_refused(new_study: NewStudy) -> None:
    with Store(new_study(pairs=1, checks=0)) as store:
        token = store.join()
        assert not store.vote(token, 2, "left") and not store.vote(token, 0, "left")
        assert not store.vote("nobody", 1, "left")
        assert store.vote(token, 1, "left")
        assert not store.vote(token, 2, "left")
        assert len(store.votes()) == 1


def test_threads_and_a_second_opening_vote_at_once_without_loss(new_study: NewStudy) -> None:
    path = new_study(pairs=9, checks=1)
    with Store(path) as one, Store(path) as other:
        tokens = [one.join() for _ in range(4)]

        def work(store: Store) -> None:
            for position in range(1, 11):  # both stores send every vote
                for token in tokens:
                    assert store.vote(token, position, "left")

        threads = [threading.Thread(target=work, args=(store,)) for store in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        votes = one.votes()
    assert [(vote.worker, vote.position) for vote in votes] == [(w, p) for w in range(1, 5) for p in range(1, 11)]


def test_file_is_in_wal_mode_and_every_vote_is_synced(new_study: NewStudy) -> None:
    with Store(new_study()) as store:
        assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_a_failed_transaction_leaves_nothing_and_does_not_block(new_study: NewStudy) -> None:
    with Store(new_study()) as store:
        token = store.join()
        with pytest.raises(sqlite3.IntegrityError):
            store.vote(token, 1, "up")  # type: ignore[arg-type]
        assert store.votes() == [] and store.vote(token, 1, "left")


def test_an_existing_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    path.write_bytes(b"precious")
    with pytest.raises(DataError, match="study.db exists already"):
        Store.create(path, [Pair(b"", b"", None)], seconds=1)
    assert path.read_bytes() == b"precious"


def test_a_file_in_no_folder_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere.* cannot be written"):
        Store.create(tmp_path / "nowhere" / "study.db", [], seconds=1)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.db: no such file"):
        Store(tmp_path / "gone.db")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.db"
    path.write_text("This is a text of more than a hundred characters, " * 20)
    with pytest.raises(DataError, match=r"text\.db .*study"):
        Store(path)


@pytest.mark.parametrize("content", [True, False])
def test_another_database_is_refused(content: bool, tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    path.touch()
    if content:
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE study (secret, seconds)")
        db.close()
    with pytest.raises(DataError, match=r"other\.db is a database, but no study"):
        Store(path)
