"""The coordinator's side of the journal: collects facts, commits them together, says when a snapshot is due."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping

from atoll.messages import ModelVersion, whole
from atoll.runtime.coordinator import Coordinator
from atoll.runtime.events import Finish
from atoll.runtime.gauges import Figures
from atoll.runtime.parts import Durability, RunResult, TimelineFile
from atoll.runtime.store import Artifact, Commit, Files, Journal, MetricRow, SnapshotRecord, StepRecord

__all__ = ["ENDED", "Recorder", "checkpoint_artifact", "result_of", "timestamp_ms"]

#: Snapshots, and commits without one, take at most these shares of the wall time; but a commit waits no longer than so.
_MOST_SNAPSHOT_SHARE, _MOST_COMMIT_SHARE, _COMMIT_AT_LEAST_EVERY_S = 0.03, 0.01, 5.0
#: Snapshots that are kept: the newest, and one to fall back on where it cannot be read.
_KEPT_SNAPSHOTS = 2
#: meta keys of the journal
ENDED, _WALL_S, _BUSY_S, _POOL_S, _DURABLE_S = "ended", "wall_s", "busy_s", "pool_s", "durable_s"
_ATTEMPTS, _LOST_POOLS, _LEFT_OUT = "attempts", "lost_pools", "left_out"


def timestamp_ms() -> int:
    """Wall clock in milliseconds, for MLflow's time axes only; never read by anything that decides."""
    return time.time_ns() // 1_000_000


class Recorder:
    """Facts of one attempt, committed now and then, when a snapshot is there, or when flushed.

    A row whose value is NaN or infinite is left out, and counted: a tracking store would make something else of it.

    Args:
        journal: claimed.
        timeline: this epoch's.
        snapshot_files: where snapshots lie; files that no snapshot needs are deleted after a commit.
        coordinator: read for totals.
        durability: how often to save.
    """

    def __init__(
        self,
        journal: Journal,
        timeline: TimelineFile,
        snapshot_files: Files,
        coordinator: Coordinator,
        durability: Durability,
    ) -> None:
        self._journal, self._timeline, self._files = journal, timeline, snapshot_files
        self._coordinator, self._durability = coordinator, durability
        self._started = self._committed = self._saved = time.perf_counter()
        self._wall_before_s = float(journal.get(_WALL_S) or 0.0)
        self.busy_s = float(journal.get(_BUSY_S) or 0.0)
        self.pool_s = float(journal.get(_POOL_S) or 0.0)
        self._pools_seen_s: float | None = None
        #: wall seconds spent on snapshots and commits
        self.durable_s = float(journal.get(_DURABLE_S) or 0.0)
        #: how often the run was begun or taken up, this time included
        self.attempts = int(journal.get(_ATTEMPTS) or 0) + 1
        self.lost_pools = int(journal.get(_LOST_POOLS) or 0)
        self._left_out = int(journal.get(_LEFT_OUT) or 0)
        self._saving_costs_s = self._commit_costs_s = 0.0
        self._is_saving = False
        self._snapshot: SnapshotRecord | None = None
        self._saved_version = coordinator.version
        self._steps: list[StepRecord] = []
        self._rows: list[MetricRow] = []
        self._evaluations: dict[int, Mapping[str, float]] = {}
        self._artifacts: list[Artifact] = []
        self._end: Finish | None = None
        self._ended_s: float | None = None
        known = journal.evaluations()
        self._evaluated_version = max((v for v in known if v <= coordinator.version), default=0)
        self.last_evaluation: dict[str, float] = known.get(self._evaluated_version, {})
        self.last_step: dict[str, float] = {}

    @property
    def wall_s(self) -> float:
        """Seconds that the run has taken, earlier attempts included as far as they were committed."""
        if self._ended_s is not None:
            return self._ended_s
        return self._wall_before_s + time.perf_counter() - self._started

    # ---- facts --------------------------------------------------------------------------------------------------

    def step(self, record: StepRecord, metrics: Mapping[str, float]) -> None:
        """A server step closed."""
        wall_s = self.wall_s
        values = {
            **metrics,
            "wall_s": wall_s,
            "wall_updates_per_s": self._coordinator.ledger.client_updates / max(wall_s, 1e-9),
        }
        self._steps.append(record)
        self.last_step = values
        self._add_rows(record.step + 1, values)

    def evaluation(self, version: int, metrics: Mapping[str, float]) -> None:
        """A version was evaluated."""
        # Pools evaluate side by side: an older version's metrics may come last.
        if version >= self._evaluated_version:
            self._evaluated_version, self.last_evaluation = version, dict(metrics)
        self._evaluations[version] = dict(metrics)
        self._add_rows(version, metrics)

    def artifact(self, artifact: Artifact) -> None:
        """A file of the run is durable and is to be published."""
        self._artifacts.append(artifact)

    def end(self, end: Finish) -> None:
        """The run is over."""
        self._end, self._ended_s = end, self.wall_s

    def pools_are(self, number: float) -> None:
        """So many client pools have had a place since the last call; of pools that runs share, a run's part."""
        wall_s = self.wall_s
        if self._pools_seen_s is not None:
            self.pool_s += number * (wall_s - self._pools_seen_s)
        self._pools_seen_s = wall_s

    def _add_rows(self, step: int, values: Mapping[str, float]) -> None:
        now = timestamp_ms()
        for key, value in values.items():
            if math.isfinite(value):
                self._rows.append((key, step, float(value), now))
            else:
                self._left_out += 1

    # ---- snapshots ----------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The newest version there is."""
        return self._coordinator.version

    @property
    def is_saving(self) -> bool:
        """Whether a snapshot was begun that is not committed yet."""
        return self._is_saving

    def begin_snapshot(self, *, is_forced: bool = False) -> bool:
        """Whether a snapshot is to be taken now; then `snapshot` is expected."""
        wait_s = self._durability.snapshot_every_s
        if wait_s:
            wait_s = max(wait_s, self._saving_costs_s / _MOST_SNAPSHOT_SHARE)
        is_due = time.perf_counter() - self._saved >= wait_s and self._coordinator.version > 0
        if self._is_saving or not (is_due or is_forced):
            return False
        self._is_saving = True
        return True

    def snapshot(self, record: SnapshotRecord, seconds: float) -> None:
        """A snapshot's files are durable; it is committed once all steps up to it are here."""
        self.durable_s += seconds
        if record.version == self._saved_version:
            self._is_saving, self._saved = False, time.perf_counter()
        else:
            self._snapshot, self._saving_costs_s = record, seconds

    # ---- commits ------------------------------------------------------------------------------------------------

    def flush(self, *, is_forced: bool = False) -> None:
        """Commits what there is, no oftener than `commit_every_s` unless forced or a snapshot waits.

        After a slow commit the next one waits longer: a disk may take 40 ms to make one durable.
        """
        snapshot = self._snapshot
        if snapshot is not None and snapshot.version > self._coordinator.version:
            snapshot = None  # the aggregator is ahead: the steps in between are on their way
        wait_s = max(self._durability.commit_every_s, self._commit_costs_s / _MOST_COMMIT_SHARE)
        is_due = time.perf_counter() - self._committed >= wait_s
        if not (is_forced or snapshot is not None or is_due):
            return
        for rows in self._coordinator.take_rows():
            self._timeline.keep(rows)
        if self._steps or self._rows or self._evaluations or self._artifacts or snapshot is not None or self._end:
            started = time.perf_counter()
            self._commit(snapshot)
            # One that was slow once, on a busy disk, is soon forgotten.
            found = min(time.perf_counter() - started, _MOST_COMMIT_SHARE * _COMMIT_AT_LEAST_EVERY_S)
            self._commit_costs_s = (self._commit_costs_s + found) / 2
        self._committed = time.perf_counter()

    def _commit(self, snapshot: SnapshotRecord | None) -> None:
        started = time.perf_counter()
        meta = {
            _WALL_S: repr(self.wall_s),
            _BUSY_S: repr(self.busy_s),
            _POOL_S: repr(self.pool_s),
            _DURABLE_S: repr(self.durable_s),
            _ATTEMPTS: str(self.attempts),
            _LOST_POOLS: str(self.lost_pools),
        }
        if self._left_out:
            meta[_LEFT_OUT] = str(self._left_out)
        if self._end is not None:
            meta[ENDED] = json.dumps({"version": self._end.version, "reason": self._end.reason})
        evaluations, artifacts = dict(self._evaluations), tuple(self._artifacts)
        self._journal.commit(Commit(tuple(self._steps), tuple(self._rows), evaluations, artifacts, snapshot, meta))
        self._steps, self._rows, self._evaluations, self._artifacts = [], [], {}, []
        if snapshot is not None:
            # Only now: what the journal refers to is never deleted, and a zombie is stopped by its epoch before this.
            for name in self._journal.keep_snapshots(_KEPT_SNAPSHOTS):
                self._files.delete(name)
            self._snapshot, self._is_saving, self._saved = None, False, time.perf_counter()
            self._saved_version = snapshot.version
            self._saving_costs_s += time.perf_counter() - started
        self.durable_s += time.perf_counter() - started

    def figures(self, sent_bytes: int, open_blocks: int) -> Figures:
        """For Prometheus."""
        return Figures(
            client_updates=self._coordinator.ledger.client_updates,
            server_steps=self._coordinator.version,
            busy_seconds=self.busy_s,
            pool_seconds=self.pool_s,
            sent_bytes=sent_bytes,
            pool_restarts=self.lost_pools,
            open_blocks=open_blocks,
            outbox_rows=self._journal.num_pending,
        )

    def progress(self) -> dict[str, float]:
        """Figures for a live display."""
        return {
            "step": float(self._coordinator.version),
            "stop": float(self._coordinator.stop_at),
            "saved_version": float(self._saved_version),
            "wall_s": self.wall_s,
            **self.last_step,
            **self.last_evaluation,
        }


def checkpoint_artifact(version: int) -> Artifact:
    """The file of a version that is kept for people."""
    return Artifact(f"version-{version:06d}.safetensors", "checkpoints")


def result_of(
    end: Finish, model: ModelVersion, coordinator: Coordinator, recorder: Recorder, journal: Journal
) -> RunResult:
    """How the run ended, from what was recorded."""
    ledger = coordinator.ledger
    return RunResult(
        model=whole(model),
        reason=end.reason,
        timeline_digest=end.timeline_digest,
        plan_digest=end.plan_digest,
        client_updates=ledger.client_updates,
        mean_staleness=ledger.mean_staleness,
        virtual_hours=ledger.virtual_hours,
        num_diverged=ledger.num_diverged,
        metrics=recorder.last_evaluation,
        wall_s=recorder.wall_s,
        busy_s=recorder.busy_s,
        pool_s=recorder.pool_s,
        durable_s=recorder.durable_s,
        unpublished_rows=journal.num_pending,
        lost_pools=recorder.lost_pools,
        attempts=recorder.attempts,
        extra=recorder.progress(),
    )
