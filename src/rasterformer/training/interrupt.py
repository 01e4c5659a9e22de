"""Ctrl-C and SIGTERM: the first asks the loop to stop after its step and save, the second stops at once.

Before the loop and after it the first one stops at once too.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


@contextlib.contextmanager
def saying_what_is_kept(folder: Path) -> Iterator[None]:
    """While entered, KeyboardInterrupt says how to go on: whether there is a run in the folder that can be resumed.

    Args:
        folder: of a run, or of a pipeline, whose runs are below it.
    """
    try:
        yield
    except KeyboardInterrupt:
        if any(folder.glob("recipe.yaml")) or any(folder.glob("*/recipe.yaml")):
            raise KeyboardInterrupt(f"what was saved is kept in {folder}: go on with --resume") from None
        raise KeyboardInterrupt("nothing was kept yet: start again without --resume") from None


class StopSignals:
    """While entered, `received` holds the name of the first SIGINT or SIGTERM; a second one raises KeyboardInterrupt.

    Does nothing outside the main thread, where Python delivers no signals.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
