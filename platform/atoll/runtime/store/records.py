"""What a run keeps so that it can go on after anything dies: frozen records, and the protocol of its journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Artifact", "Commit", "Journal", "MetricRow", "SnapshotRecord", "StepRecord"]

#: (key, step, value, timestamp in milliseconds)
MetricRow = tuple[str, int, float, int]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One committed server step.

    Attributes:
        step: the server step, ≥ 0.
        closed_us: virtual time at which its buffer was full.
        sum_sha: SHA-256 of the step's exact sum: a step that is computed again must have the same.
        totals: running totals after this step, plain numbers: what a run that goes on from here counts on from.
    """

    step: int
    closed_us: int
    sum_sha: str
    totals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """Where the state of one model version lies.

    Attributes:
        version: the model version to go on from.
        state_file: holds the server optimizer's state.
        version_files: version → file, for every version that a task may still start from, `version` included; each
            version is stored once and shared by the snapshots that need it.
        hashes: file → SHA-256 of its bytes, for every file named above.
    """

    version: int
    state_file: str
    version_files: Mapping[int, str]
    hashes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file of the run that the tracking service is to keep under `place` (None: the root)."""

    name: str
    place: str | None


@dataclass(frozen=True, slots=True)
class Commit:
    """What one transaction writes: all of it or nothing.

    Attributes:
        steps: consecutive server steps.
        rows: metric rows with their timestamps; the first row of a (key, step) stands.
        evaluations: evaluated version → metrics; the first stands.
        artifacts: files to publish.
        snapshot: made durable before this commit; every step below its version is committed here or earlier.
        meta: values to set.
    """

    steps: tuple[StepRecord, ...] = ()
    rows: tuple[MetricRow, ...] = ()
    evaluations: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    artifacts: tuple[Artifact, ...] = ()
    snapshot: SnapshotRecord | None = None
    meta: Mapping[str, str] = field(default_factory=dict)


class Journal(Protocol):
    """The truth about one run. One object belongs to one thread.

    Reading needs nothing. Writing needs `claim`, which fences whoever claimed before: from then on its commits raise
    FencedError. After a crash every commit that returned is there whole, and no other is there in part.
    """

    @property
    def epoch(self) -> int:
        """The epoch that this object claimed; 0 before."""
        ...

    def claim(self) -> int:
        """Takes the run over: a new epoch, higher than every earlier one."""
        ...

    def commit(self, commit: Commit) -> None:
        """Writes `commit` in one transaction.

        Raises:
            FencedError: another process claimed the run since.
            AggregationError: a step is there already with another exact sum; nothing is written.
            InfrastructureError: the disk is full, or the store does not answer; nothing is written.
        """
        ...

    def get(self, key: str) -> str | None:
        """A meta value."""
        ...

    @property
    def last_step(self) -> int:
        """The highest committed step; −1 when there is none."""
        ...

    def step(self, step: int) -> StepRecord | None:
        """One committed step."""
        ...

    def evaluations(self) -> dict[int, dict[str, float]]:
        """Evaluated version → metrics, versions ascending."""
        ...

    def snapshots(self) -> list[SnapshotRecord]:
        """Every snapshot that is kept, newest first."""
        ...

    def keep_snapshots(self, number: int) -> list[str]:
        """Forgets all snapshots but the `number` newest; returns the files that none of those needs."""
        ...

    def pending(self, limit: int) -> tuple[int, list[MetricRow]]:
        """(id of the last row returned, the oldest rows that are not acknowledged)."""
        ...

    def ack(self, last_id: int) -> None:
        """Rows up to `last_id` are published. Never moves backwards; FencedError as for `commit`."""
        ...

    def pending_artifacts(self) -> list[Artifact]:
        """Files not yet published, oldest first."""
        ...

    def ack_artifact(self, name: str) -> None:
        """The file is published; FencedError as for `commit`."""
        ...

    def publish_again(self) -> None:
        """Nothing counts as published any more: another tracking store begins from the first row."""
        ...

    @property
    def num_pending(self) -> int:
        """Rows that are not acknowledged."""
        ...

    def history(self) -> dict[str, list[tuple[int, float]]]:
        """(step, value) per metric, steps ascending: the input of plots and reports."""
        ...

    def damage(self) -> Sequence[str]:
        """What is wrong with the journal, one sentence each; empty if nothing is."""
        ...

    def close(self) -> None:
        """Closes; the object is of no use afterwards."""
        ...
