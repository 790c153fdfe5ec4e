"""How a run begins or goes on: from the newest snapshot that can be read, with everything after it done again."""

from __future__ import annotations

from dataclasses import dataclass

from atoll.errors import Problem, SpecError
from atoll.plan import Planner
from atoll.runtime.coordinator import Coordinator, Start
from atoll.runtime.parts import Parts, TimelineFile
from atoll.runtime.publishing import Publishing
from atoll.runtime.recorder import Recorder
from atoll.runtime.store import Commit, Files, Journal, SnapshotRecord, epoch_of

__all__ = ["POOL_KIND", "Attempt", "begin", "check_kind"]

#: meta key of the journal: on what kind of device a run trains
POOL_KIND = "pool_kind"


@dataclass(frozen=True)
class Attempt:
    """The coordinator's side of a run from one claim of its journal to the next."""

    coordinator: Coordinator
    recorder: Recorder
    publishing: Publishing
    timeline: TimelineFile
    artifact_files: Files


def begin(parts: Parts, journal: Journal, taken: SnapshotRecord | None, ready_pools: list[int]) -> Attempt:
    """Builds the coordinator's side in the state of `taken`, or of the beginning.

    The timeline is simulated again up to there, which is quick, instead of being stored: nothing can be out of step.

    Args:
        parts: the run.
        journal: claimed.
        taken: the snapshot that the aggregator took up.
        ready_pools: numbers of the pools that can take work.
    """
    start = _start_of(journal, taken)
    timeline = parts.make_timeline(journal.epoch)
    planner = _skip(parts.make_planner(), start.version, timeline)
    coordinator = Coordinator(planner, parts.settings, ready_pools, start)
    files = parts.make_snapshot_files()
    _delete_orphans(journal, files)
    recorder = Recorder(journal, timeline, files, coordinator, parts.durability)
    artifact_files = parts.make_artifact_files()
    return Attempt(coordinator, recorder, Publishing(journal, artifact_files), timeline, artifact_files)


def check_kind(journal: Journal, kind: str) -> None:
    """All attempts of a run train on one kind of device, which its journal keeps from the first pool on.

    Raises:
        SpecError: an earlier attempt had another kind.
    """
    known = journal.get(POOL_KIND)
    if not known:
        journal.commit(Commit(meta={POOL_KIND: kind}))
    elif known != kind:
        why = "bits are equal per kind of device, not across them"
        hint = "runtime.labels keeps workers on nodes of one kind"
        raise SpecError([Problem("client pools", repr(kind), f"{known!r}, as the run was begun", why, hint)])


def _start_of(journal: Journal, taken: SnapshotRecord | None) -> Start:
    if taken is None:
        return Start()
    record = journal.step(taken.version - 1)
    totals = {} if record is None else record.totals
    evaluations = {version: found for version, found in journal.evaluations().items() if version <= taken.version}
    return Start(taken.version, tuple(taken.version_files), totals, evaluations)


def _skip(planner: Planner, version: int, timeline: TimelineFile) -> Planner:
    """Pulls the windows that end before `version`; the one that ends there belongs to it, for its digests."""
    for _ in range(max(0, version - 1) // planner.settings.lookahead_steps):
        timeline.keep(planner.advance().rows)
    return planner


def _delete_orphans(journal: Journal, files: Files) -> None:
    """Removes files of earlier epochs that were written and never committed."""
    needed = {name for record in journal.snapshots() for name in record.hashes}
    for name in files.names():
        if name not in needed and 0 < epoch_of(name) < journal.epoch:
            files.delete(name)
