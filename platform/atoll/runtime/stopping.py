"""Ctrl-C and SIGTERM as a wish to stop at the next step boundary, and patience with what dies again and again."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from atoll.errors import InfrastructureError

__all__ = ["Patience", "StopSignal"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """While entered, the first Ctrl-C or SIGTERM only sets `is_set`; a second one raises KeyboardInterrupt at once.

    Outside the main thread, where Python delivers no signals, it never sets.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True
        print("atoll: stopping at the next step boundary; once more to stop at once", file=sys.stderr)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class Patience:
    """Counts losses without progress in between.

    Args:
        what: what is lost, for the message.
        limit: losses in a row that are borne.
    """

    def __init__(self, what: str, limit: int) -> None:
        self._what, self._limit = what, limit
        self._progress, self._losses = -1, 0

    def lost(self, progress: int, error: BaseException | str) -> None:
        """One more loss; `progress` grows as the run gets on.

        Raises:
            InfrastructureError: the limit is passed.
        """
        if progress > self._progress:
            self._progress, self._losses = progress, 0
        self._losses += 1
        if self._losses > self._limit:
            raise InfrastructureError(
                f"{self._what} was lost {self._losses} times without a step committed in between; the last time: "
                f"{error}. What is committed is kept: atoll resume RUN goes on once the cause is gone."
            )
