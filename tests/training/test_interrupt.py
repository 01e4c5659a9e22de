"""The first signal asks, the second stops; afterwards everything is as before."""

import os
import signal
import threading
from pathlib import Path

import pytest

from rasterformer.training.interrupt import StopSignals, saying_what_is_kept


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_stops(number: signal.Signals) -> None:
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number.name
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignals():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_nothing_is_touched() -> None:
    seen: list[object] = []

    def enter() -> None:
        with StopSignals() as signals:
            seen.extend([signal.getsignal(signal.SIGINT), signals.received])

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before, None]


@pytest.mark.parametrize("stage", ["", "base"])
def test_a_stop_says_whether_there_is_something_to_resume(tmp_path: Path, stage: str) -> None:
    """Of a run, and of a pipeline, whose runs are one folder below."""
    with pytest.raises(KeyboardInterrupt, match="^nothing was kept yet: start again without --resume$"):
        with saying_what_is_kept(tmp_path / "run"):
            raise KeyboardInterrupt
    place = tmp_path / "run" / stage
    place.mkdir(parents=True)
    (place / "recipe.yaml").touch()
    with pytest.raises(KeyboardInterrupt, match=f"^what was saved is kept in {tmp_path / 'run'}: go on with --resume$"):
        with saying_what_is_kept(tmp_path / "run"):
            raise KeyboardInterrupt
