"""From the journal to the tracking service: in batches, no oftener than once a second, never in the way of training."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from atoll.errors import InfrastructureError, SpecError
from atoll.runtime.parts import Publisher
from atoll.runtime.store import Artifact, Commit, Files, Journal, MetricRow

__all__ = ["Batch", "Publishing", "Sending"]

_BATCH_ROWS = 1000
_EVERY_S = 2.0
_BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 15.0)
#: tries after the first at the end of a run, some seconds in all: what is left is sent by resuming
_LAST_TRIES = 3
#: rows that wait for the tracking service before a warning says so, and every so many more
_ALARM_ROWS = 100_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """What goes to the tracking service in one call: rows, or one file; neither in the first, which finds the run."""

    last_id: int
    rows: Sequence[MetricRow]
    artifact: Artifact | None = None
    data: bytes = b""


class Sending:
    """The tracking service's side: opens the publisher when first asked, sends batches. May be repeated."""

    def __init__(self, make_publisher: Callable[[], Publisher]) -> None:
        self._make_publisher = make_publisher
        self._publisher: Publisher | None = None

    def send(self, batch: Batch) -> str:
        """Returns the service's id of the run; raises whatever the service raises, then nothing counts as sent."""
        if self._publisher is None:
            self._publisher = self._make_publisher()
        if batch.artifact is not None:
            self._publisher.upload(batch.artifact, batch.data)
        elif batch.rows:
            self._publisher.publish(batch.rows)
        return self._publisher.run_id


class Publishing:
    """Decides what is sent next and when; on failure backs off and keeps everything. One batch is under way at once.

    Args:
        journal: claimed.
        files: where files to be published lie.
    """

    def __init__(self, journal: Journal, files: Files) -> None:
        self._journal, self._files = journal, files
        self._every_s = _EVERY_S
        self._next = time.monotonic() + _EVERY_S
        self._failures = 0
        #: the service has the run
        self._is_begun = False
        self._under_way: Batch | None = None
        self._alarm = _ALARM_ROWS
        self._is_ending = False
        #: files that cannot be read: the others go before them
        self._unreadable: set[str] = set()

    @property
    def is_under_way(self) -> bool:
        """Whether a batch was taken that has not come back."""
        return self._under_way is not None

    def hurry(self) -> None:
        """The run ends: what is left goes at once, and oftener."""
        self._next, self._every_s, self._is_ending, self._failures = time.monotonic(), 0.0, True, 0

    def take(self) -> Batch | None:
        """The next batch, if one is due; tell `succeeded` or `failed` before the next."""
        if self._under_way is not None or time.monotonic() < self._next:
            return None
        if not self._is_begun:
            self._under_way = Batch(0, ())
            return self._under_way
        last_id, rows = self._journal.pending(_BATCH_ROWS)
        if rows:
            self._under_way = Batch(last_id, rows)
        elif files := self._journal.pending_artifacts():
            artifact = min(files, key=lambda file: file.name in self._unreadable)
            try:
                self._under_way = Batch(0, (), artifact, self._files.read(artifact.name))
            except InfrastructureError as error:  # whatever becomes of it, training goes on
                self._unreadable.add(artifact.name)
                self.failed(error)
        else:
            self._next = time.monotonic() + self._every_s
        return self._under_way

    def succeeded(self, run_id: str) -> None:
        """The batch was taken, for the run of this id: acknowledge it; a full one is followed by the next at once."""
        batch, self._under_way = self._under_way, None
        if batch is None:
            return
        if not self._is_begun:
            self._begun(run_id)
            self._next = time.monotonic()
            return
        if batch.artifact is not None:
            self._journal.ack_artifact(batch.artifact.name)
        else:
            self._journal.ack(batch.last_id)
        self._failures = 0
        is_full = batch.artifact is not None or len(batch.rows) == _BATCH_ROWS
        self._next = time.monotonic() + (0.0 if is_full else self._every_s)

    def _begun(self, run_id: str) -> None:
        known = self._journal.get("run_id")
        if known and known != run_id:
            self._journal.publish_again()  # the run that had the rows is not there any more
        if known != run_id:
            self._journal.commit(Commit(meta={"run_id": run_id}))
        self._is_begun, self._failures = True, 0

    def failed(self, error: BaseException) -> None:
        """The batch was not taken: wait longer each time.

        Raises:
            SpecError: the service will never take this run, and has never had it.
        """
        self._under_way = None
        if isinstance(error, SpecError) and not self._journal.get("run_id"):
            raise error
        wait_s = _BACK_OFF_S[min(self._failures, len(_BACK_OFF_S) - 1)]
        self._failures += 1
        self._next = time.monotonic() + wait_s
        if self._failures == 1:
            _log.warning("tracking: rows not taken (%s); they stay in the journal and are sent later", error)
        waiting = self._journal.num_pending
        if waiting >= self._alarm:
            _log.warning("tracking: %d rows wait in the journal for a service that does not take them", waiting)
            self._alarm = 2 * waiting

    def is_drained(self) -> bool:
        """Whether everything was taken, or, at the end, the service has refused often enough to leave the rest."""
        if self._is_ending and self._failures > _LAST_TRIES:
            return True
        is_idle = self._is_begun and self._under_way is None
        return is_idle and not self._journal.num_pending and not self._journal.pending_artifacts()
