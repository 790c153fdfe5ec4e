"""From the outbox to the tracking service: in batches, no oftener than once a second, never in the way of training."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from atoll.runtime.parts import MetricRow, Outbox

__all__ = ["BATCH_ROWS", "Publishing"]

BATCH_ROWS = 1000
_EVERY_S = 2.0
_BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 15.0)
_log = logging.getLogger(__name__)


class Publishing:
    """Publishes pending rows; on failure backs off and keeps them."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._next = time.monotonic() + _EVERY_S
        self._failures = 0

    def is_due(self) -> bool:
        """Whether the next batch may go."""
        return time.monotonic() >= self._next

    def publish(self, send: Callable[[Sequence[MetricRow]], None]) -> None:
        """Sends what is pending if it is time; failures are logged and tried again later."""
        if self.is_due():
            self._send_all(send)

    def drain(self, send: Callable[[Sequence[MetricRow]], None]) -> int:
        """Sends everything at the end of a run, trying for about half a minute; returns the rows left."""
        for wait_s in (0.0, *_BACK_OFF_S):
            time.sleep(wait_s)
            if self._send_all(send):
                return 0
        return len(self._outbox.pending(10**9)[1])

    def succeeded(self, last_id: int) -> None:
        """A batch was taken: acknowledge it."""
        self._outbox.ack(last_id)
        self._failures = 0
        self._next = time.monotonic() + _EVERY_S

    def failed(self, error: BaseException) -> None:
        """A batch was not taken: wait longer each time."""
        wait_s = _BACK_OFF_S[min(self._failures, len(_BACK_OFF_S) - 1)]
        self._failures += 1
        self._next = time.monotonic() + wait_s
        _log.warning("tracking: rows not taken (%s); they stay in the outbox, next try in %.0f s", error, wait_s)

    def _send_all(self, send: Callable[[Sequence[MetricRow]], None]) -> bool:
        while True:
            last_id, rows = self._outbox.pending(BATCH_ROWS)
            if not rows:
                self._next = time.monotonic() + _EVERY_S
                return True
            try:
                send(rows)
            except Exception as error:
                # Whatever the service raises, training goes on: the outbox holds the rows.
                self.failed(error)
                return False
            self.succeeded(last_id)
