"""The Tracker protocol, and the tracker that keeps everything in memory.

A tracker is the far end of the outbox: it may be slow, down, or asked twice for the same rows. Its promises are in the
protocol; the contract suite in `tests/contracts/test_trackers.py` holds every implementation to them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from atoll.errors import InfrastructureError
from atoll.tracking.rows import Row, RunInfo, check_run, check_tags, finite_rows

__all__ = [
    "PARENT_TAG",
    "RUN_KEY_TAG",
    "MemoryRun",
    "MemoryStore",
    "MemoryTracker",
    "RunStatus",
    "Tracker",
]

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
RUN_KEY_TAG = "fl.run_key"
PARENT_TAG = "mlflow.parentRunId"


class Tracker(Protocol):
    """Where a run's metrics, parameters and files go. One writer per run.

    Every method but `start` needs a started run. Input that breaks a rule of `atoll.tracking.rows` raises SpecError and
    nothing of it is stored; a store that cannot be reached raises InfrastructureError, and the same call may be made
    again.
    """

    def start(self, info: RunInfo) -> str:
        """Find the run by `info.run_key`, or create it; set it RUNNING; write its params and tags.

        A parameter that the run already has with another value keeps its first value (MLflow's rule); the new value
        goes into the tag `fl.changed.<name>`.

        Returns:
            The run id, equal for equal (experiment, run_key).
        """
        ...

    def publish(self, rows: Sequence[Row]) -> int:
        """Store rows; a service gets at most 1,000 per request. Idempotent: rows already stored are not added again.

        Returns:
            How many rows were left out because their value is not finite.
        """
        ...

    def artifact(self, local_path: Path, artifact_path: str | None = None) -> None:
        """Store a file, or a folder's content, under `artifact_path` (the root when None); overwrites."""
        ...

    def params(self, values: Mapping[str, str]) -> None:
        """Add parameters, as `start` does."""
        ...

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags; the last value stands."""
        ...

    def finish(self, status: RunStatus) -> None:
        """Close the run. `start` reopens it."""
        ...


@dataclass(slots=True)
class MemoryRun:
    """One run of a MemoryStore: `rows` is a set; `status` is RUNNING or what it finished with."""

    run_id: str
    info: RunInfo
    status: str = "RUNNING"
    rows: dict[Row, None] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)

    def history(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of one metric, ascending."""
        return sorted((row.step, row.value) for row in self.rows if row.key == key)


@dataclass(slots=True)
class MemoryStore:
    """Runs by id; several MemoryTrackers may share one."""

    runs: dict[str, MemoryRun] = field(default_factory=dict)
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def find_or_create(self, info: RunInfo) -> MemoryRun:
        """The run with `info`'s experiment and run key, created where missing."""
        for run in self.runs.values():
            if (run.info.experiment, run.info.run_key) == (info.experiment, info.run_key):
                return run
        run = MemoryRun(f"memory{next(self._ids):06d}", info)
        self.runs[run.run_id] = run
        return run


class MemoryTracker:
    """A Tracker that keeps everything in a MemoryStore: for tests, and for runs without a tracking store."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.store = store if store is not None else MemoryStore()
        self._run: MemoryRun | None = None

    @property
    def run(self) -> MemoryRun:
        """The started run."""
        if self._run is None:
            raise InfrastructureError("tracker used before start()")
        return self._run

    def start(self, info: RunInfo) -> str:
        """See Tracker."""
        check_run(info)
        self._run = self.store.find_or_create(info)
        self._run.status = "RUNNING"
        self._run.tags[RUN_KEY_TAG] = info.run_key
        if info.parent_run_id is not None:
            self._run.tags[PARENT_TAG] = info.parent_run_id
        self.tags(info.tags)
        self.params(info.params)
        return self._run.run_id

    def publish(self, rows: Sequence[Row]) -> int:
        """See Tracker."""
        kept, left_out = finite_rows(rows)
        self.run.rows.update(dict.fromkeys(kept))
        return left_out

    def artifact(self, local_path: Path, artifact_path: str | None = None) -> None:
        """See Tracker."""
        local = Path(local_path)
        prefix = f"{artifact_path}/" if artifact_path else ""
        files = [path for path in local.rglob("*") if path.is_file()] if local.is_dir() else [local]
        base = local if local.is_dir() else local.parent
        for path in files:
            self.run.artifacts[prefix + path.relative_to(base).as_posix()] = path.read_bytes()

    def params(self, values: Mapping[str, str]) -> None:
        """See Tracker."""
        check_run(RunInfo("e", "n", "k", params=values))
        for name, value in values.items():
            if self.run.params.setdefault(name, value) != value:
                self.run.tags[f"fl.changed.{name}"] = value

    def tags(self, values: Mapping[str, str]) -> None:
        """See Tracker."""
        check_tags(values)
        self.run.tags.update(values)

    def finish(self, status: RunStatus) -> None:
        """See Tracker."""
        self.run.status = status
