"""The coordinator's side of tracking: rows into the outbox, progress for whoever watches."""

from __future__ import annotations

import time
from collections.abc import Mapping

from atoll.runtime.coordinator import Coordinator
from atoll.runtime.parts import MetricRow, Outbox

__all__ = ["Recorder", "timestamp_ms"]

_COMMIT_EVERY_S = 0.5


def timestamp_ms() -> int:
    """Wall clock in milliseconds, for MLflow's time axes only; never read by anything that decides."""
    return time.time_ns() // 1_000_000


class Recorder:
    """Collects metric rows and commits them to the outbox twice a second, or when flushed.

    Args:
        outbox: durable queue.
        coordinator: read for totals.
    """

    def __init__(self, outbox: Outbox, coordinator: Coordinator) -> None:
        self._outbox, self._coordinator = outbox, coordinator
        self._started = self._committed = time.perf_counter()
        self._rows: list[MetricRow] = []
        self._evaluated_version = 0
        self.last_evaluation: dict[str, float] = {}
        self.last_step: dict[str, float] = {}

    @property
    def wall_s(self) -> float:
        """Seconds since the run started."""
        return time.perf_counter() - self._started

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queues the metrics of a server step or of an evaluated version."""
        values = dict(metrics)
        if any(key.startswith("eval/") for key in values):
            # Pools evaluate side by side: an older version's metrics may come last.
            if step >= self._evaluated_version:
                self._evaluated_version, self.last_evaluation = step, values
        else:
            values["wall_s"] = self.wall_s
            values["wall_updates_per_s"] = self._coordinator.ledger.client_updates / max(self.wall_s, 1e-9)
            self.last_step = values
        now = timestamp_ms()
        self._rows.extend((key, step, value, now) for key, value in values.items())

    def flush(self, *, is_forced: bool = False) -> None:
        """Commits queued rows and finished timeline rows to disk, at most twice a second unless forced."""
        if not is_forced and time.perf_counter() - self._committed < _COMMIT_EVERY_S:
            return
        self._committed = time.perf_counter()
        for timeline_rows in self._coordinator.take_rows():
            self._outbox.keep_timeline(timeline_rows)
        rows, self._rows = self._rows, []
        if rows:
            self._outbox.commit(rows)

    def progress(self) -> dict[str, float]:
        """Figures for a live display."""
        return {
            "step": float(self._coordinator.version),
            "wall_s": self.wall_s,
            **self.last_step,
            **self.last_evaluation,
        }
