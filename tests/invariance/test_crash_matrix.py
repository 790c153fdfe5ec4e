"""A run is killed at every point of a commit, and ends in the same model, the same rows and the same files.

The child is a fork that kills itself with SIGKILL, so that nothing is cleaned up; journal, snapshots and timeline are
the real ones, on a disk; only nothing waits for the disk, since a process that is killed loses nothing that it gave to
the system. The tracking service is a table with MLflow's primary key: a row that came with another value or another
time would be there twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
import signal
import sqlite3
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.experiment.facts import TIMELINE_FILE, TimelineParquet
from atoll.messages import model_digest
from atoll.runtime import Parts, RunResult, dispatch, inline, publishing, recorder, run_inline
from atoll.runtime.parts import Durability
from atoll.runtime.publishing import Sending
from atoll.runtime.store import Artifact, Commit, LocalFiles, MetricRow, SqliteJournal, epoch_of
from atoll.timeline import AsyncSchedule, Schedule, SyncSchedule

sys.path.insert(0, str(Path(__file__).parent))
from toy import science, toy_run

SCHEDULES = {"async": AsyncSchedule(12, 3), "sync": SyncSchedule(4, 0.3)}
STEPS = 16
#: versions between snapshots: with 4, steps that are committed already are computed again
FINE, COARSE = 1, 4


@pytest.fixture(autouse=True)
def _nothing_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class QuickJournal(SqliteJournal):
    """As it is, without waiting for the disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._db.execute("PRAGMA synchronous=OFF")


# ---- the run ------------------------------------------------------------------------------------------------------


class Service:
    """A tracking service in a file of its own; a row is another one if anything of it differs."""

    run_id = "run"

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as db:
            db.execute("CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, place TEXT, data BLOB)")
            db.execute(
                "CREATE TABLE IF NOT EXISTS metrics "
                "(key TEXT, step INTEGER, value REAL, timestamp INTEGER, PRIMARY KEY (key, timestamp, step, value))"
            )

    @contextlib.contextmanager
    def _open(self):
        with contextlib.closing(sqlite3.connect(self.path)) as db, db:
            db.execute("PRAGMA synchronous=OFF")
            yield db

    def publish(self, rows) -> None:
        with self._open() as db:
            db.executemany("INSERT OR IGNORE INTO metrics VALUES (?, ?, ?, ?)", rows)

    def upload(self, artifact: Artifact, data: bytes) -> None:
        with self._open() as db:
            db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (artifact.name, artifact.place, data))

    def rows(self) -> list[MetricRow]:
        with self._open() as db:
            return db.execute("SELECT key, step, value, timestamp FROM metrics").fetchall()

    def files(self) -> dict[str, bytes]:
        with self._open() as db:
            return {f"{place}/{name}": data for name, place, data in db.execute("SELECT * FROM files")}


@dataclasses.dataclass(frozen=True)
class Place:
    """What a run leaves in a folder."""

    folder: Path
    schedule: Schedule
    #: the journal's kind; a broken one must be found out
    kind: type[QuickJournal] = QuickJournal

    def parts(self) -> Parts:
        return dataclasses.replace(
            toy_run(self.schedule, steps=STEPS).parts,
            durability=Durability(snapshot_every_s=0.0, commit_every_s=0.0),
            make_journal=lambda: self.kind(self.folder / "journal.db"),
            make_snapshot_files=self.snapshot_files,
            make_artifact_files=lambda: LocalFiles(self.folder / "files"),
            make_timeline=lambda epoch: TimelineParquet(self.folder, epoch),
            make_publisher=lambda: Service(self.folder / "service.db"),
        )

    def snapshot_files(self) -> LocalFiles:
        return LocalFiles(self.folder / "snapshots")

    def copy(self, name: str) -> Place:
        """As it lies there, with what a killed process left."""
        folder = self.folder.with_name(name)
        shutil.copytree(self.folder, folder)
        return dataclasses.replace(self, folder=folder)

    def timeline(self) -> np.ndarray:
        import pyarrow.parquet as pq

        table = pq.read_table(self.folder / TIMELINE_FILE, use_threads=False)
        return np.rec.fromarrays([table[name].to_numpy() for name in table.column_names], names=table.column_names)


@functools.cache
def undisturbed(schedule: Schedule) -> tuple[RunResult, dict[tuple[str, int], float], np.ndarray]:
    toy = toy_run(schedule, steps=STEPS)
    result = run_inline(toy.parts)
    return result, toy.science(), toy.timeline()


def differences(place: Place, found: RunResult) -> list[str]:
    """What is otherwise than in a run that nothing disturbed."""
    expected, rows, timeline = undisturbed(place.schedule)
    service = Service(place.folder / "service.db")
    files = place.snapshot_files()
    with place.kind(place.folder / "journal.db") as journal:
        needed = {name for record in journal.snapshots() for name in record.hashes}
        kept = place.timeline()
        checks = {
            "model": model_digest(found.model) == model_digest(expected.model),
            "digests": (found.plan_digest, found.timeline_digest) == (expected.plan_digest, expected.timeline_digest),
            "metrics": found.metrics == expected.metrics,
            "ledger": (found.client_updates, found.mean_staleness, found.virtual_hours)
            == (expected.client_updates, expected.mean_staleness, expected.virtual_hours),
            "journal": not journal.damage(),
            "rows": science_or_none(journal) == rows,
            "a row twice in the service": max(Counter(row[:2] for row in service.rows()).values()) == 1,
            "rows of the service": sorted(service.rows()) == sorted(journal.rows()),
            "acknowledgements": journal.num_pending == 0 and not journal.pending_artifacts(),
            "uploads": service.files()
            == {f"checkpoints/version-{STEPS:06d}.safetensors": expected.model.dense.tobytes()},
            # three where the run was killed between its last commit and forgetting the oldest
            "snapshots": journal.snapshots()[0].version == STEPS and len(journal.snapshots()) in (2, 3),
            "files of snapshots": set(files.names()) == needed,
            "timeline": all(np.array_equal(kept[name], timeline[name]) for name in timeline.dtype.names),
            "beside the timeline": not list(place.folder.glob("*.tmp")),
        }
    return [name for name, is_right in checks.items() if not is_right]


def science_or_none(journal: SqliteJournal) -> dict[tuple[str, int], float] | None:
    try:
        return science(journal)
    except AssertionError:  # wall_* rows are missing
        return None


# ---- the killing --------------------------------------------------------------------------------------------------


class Killer:
    """Ends this process at the n-th call."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self, *_: Any) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def hook(owner: type, name: str, *, before: Callable | None = None, after: Callable | None = None) -> None:
    """Calls `before` with the arguments, `after` with the result and the arguments."""
    original = getattr(owner, name)

    def hooked(*arguments: Any, **named: Any) -> Any:
        if before is not None:
            before(*arguments)
        result = original(*arguments, **named)
        if after is not None:
            after(result, *arguments)
        return result

    setattr(owner, name, hooked)


def before_snapshot_file(kill: Killer) -> None:
    hook(LocalFiles, "write", before=lambda files, name, data: epoch_of(name) and kill())


def amid_snapshot_bytes(kill: Killer) -> None:
    def write_half(files: LocalFiles, name: str, data: bytes) -> None:
        if epoch_of(name):
            half = Path(files.place) / f"{name}.7.tmp"
            half.parent.mkdir(exist_ok=True)
            half.write_bytes(data[: len(data) // 2])
            kill()
            half.unlink()

    hook(LocalFiles, "write", before=write_half)


def before_rename(kill: Killer) -> None:
    hook(Path, "replace", before=lambda path, target: epoch_of(path.name) and kill())


def after_rename(kill: Killer) -> None:
    hook(Path, "replace", after=lambda result, path, target: epoch_of(path.name) and kill())


def before_statement(begins: str) -> Callable[[Killer], None]:
    """Before the first statement of a commit with steps that begins so."""

    def install(kill: Killer) -> None:
        is_awaited = False

        def trace(statement: str) -> None:
            nonlocal is_awaited
            if is_awaited and statement.startswith(begins):
                is_awaited = False
                kill()

        def await_it(journal: SqliteJournal, commit: Commit) -> None:
            nonlocal is_awaited
            is_awaited = bool(commit.steps)

        hook(SqliteJournal, "__init__", after=lambda _, journal, *rest: journal._db.set_trace_callback(trace))
        hook(SqliteJournal, "commit", before=await_it)

    return install


def after_commit(kill: Killer) -> None:
    hook(SqliteJournal, "commit", after=lambda _, journal, commit: commit.steps and kill())


def after_forgetting(kill: Killer) -> None:
    hook(SqliteJournal, "keep_snapshots", after=lambda names, *_: names and kill())


def before(owner: type, name: str) -> Callable[[Killer], None]:
    return lambda kill: hook(owner, name, before=kill)


def after(owner: type, name: str) -> Callable[[Killer], None]:
    return lambda kill: hook(owner, name, after=kill)


SNAPSHOT_POINTS = {
    "before the snapshot file": before_snapshot_file,
    "in the middle of its bytes": amid_snapshot_bytes,
    "before its rename": before_rename,
    "after its rename": after_rename,
}
COMMIT_POINTS = {
    "before BEGIN": before_statement("BEGIN"),
    "before the step rows": before_statement("INSERT INTO steps"),
    "after the step rows": before_statement("INSERT OR IGNORE INTO outbox"),
    "before COMMIT": before_statement("COMMIT"),
    "after COMMIT": after_commit,
}
DELETING_POINTS = {
    "after snapshots were forgotten": after_forgetting,
    "after a file was deleted": after(LocalFiles, "delete"),
}
PUBLISHING_POINTS = {
    "before a batch is sent": before(Sending, "send"),
    "after it was sent": after(Sending, "send"),
    "before it is acknowledged": before(SqliteJournal, "ack"),
    "after it was acknowledged": after(SqliteJournal, "ack"),
}
LAST_POINTS = {
    "before a file is acknowledged": before(SqliteJournal, "ack_artifact"),
    "before the timeline closes": before(TimelineParquet, "close"),
    "while the timeline closes": after(TimelineParquet, "_write"),
    "after the timeline closed": after(TimelineParquet, "close"),
}
POINTS = SNAPSHOT_POINTS | COMMIT_POINTS | DELETING_POINTS | PUBLISHING_POINTS | LAST_POINTS


def hurry(cadence: int) -> None:
    """Publishes whenever there is something, trains in short calls; takes snapshots at multiples of `cadence`."""
    publishing._EVERY_S = 0.0
    dispatch._CALL_LEAST_S = 0.0
    recorder._MOST_COMMIT_SHARE = float("inf")  # however slow the disk is, a commit never waits for that
    # What a batch meets must not depend on threads: the next event waits until it was sent.
    hook(inline._Inline, "_publish", after=lambda _, run: run._sent is not None and wait([run._sent]))
    original = recorder.Recorder.begin_snapshot

    def begin_snapshot(self: recorder.Recorder, *, is_forced: bool = False) -> bool:
        return (is_forced or self.version % cadence == 0) and original(self, is_forced=is_forced)

    recorder.Recorder.begin_snapshot = begin_snapshot  # type: ignore[method-assign]


def dies(place: Place, point: str, times: int, cadence: int, change: Callable[[], None] = lambda: None) -> bool:
    """Runs in a fork that kills itself when it reaches `point` for the n-th time; whether it did."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: the child uses none of those
        child = os.fork()
    if not child:
        try:
            hurry(cadence)
            change()
            POINTS[point](Killer(times))
            run_inline(place.parts())
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), f"the child failed with status {status}"
    return status == signal.SIGKILL


def cases() -> list[Any]:
    found = []
    for cadence in (FINE, COARSE):
        for name, schedule in SCHEDULES.items():
            for point in POINTS:
                if point in LAST_POINTS:
                    times = [1]
                elif point in DELETING_POINTS:  # where versions live long, files do too
                    times = [1, 2] if cadence == FINE or name == "sync" else []
                elif point in SNAPSHOT_POINTS:
                    times = [1, 3, 6] if cadence == FINE else [1, 3]
                else:
                    times = [1, 3, 6] if cadence == FINE else [3, 7]  # the seventh commit holds no snapshot
                for number in times:
                    found.append(
                        pytest.param(schedule, point, number, cadence, id=f"{name}-{cadence}-{point}-{number}")
                    )
    return found


@pytest.mark.parametrize(("schedule", "point", "times", "cadence"), cases())
def test_killed_once_and_killed_twice(tmp_path: Path, schedule: Schedule, point: str, times: int, cadence: int) -> None:
    once = Place(tmp_path / "once", schedule)
    once.folder.mkdir()
    assert dies(once, point, times, cadence), "the point is never reached"
    twice = once.copy("twice")
    assert differences(once, run_inline(once.parts())) == []
    assert dies(twice, point, 1, cadence) or point in DELETING_POINTS
    assert differences(twice, run_inline(twice.parts())) == []


# ---- what the matrix would notice ---------------------------------------------------------------------------------


class RowsOutside(QuickJournal):
    """Broken: rows have a transaction of their own."""

    def commit(self, commit: Commit) -> None:
        super().commit(dataclasses.replace(commit, rows=()))
        super().commit(Commit(rows=commit.rows))


class StepsOutside(QuickJournal):
    """Broken: a snapshot is committed before the steps below it."""

    def commit(self, commit: Commit) -> None:
        super().commit(Commit(snapshot=commit.snapshot))
        super().commit(dataclasses.replace(commit, snapshot=None))


class LastRowStands(QuickJournal):
    """Broken: a step that is computed again gets other `wall_*` rows."""

    def commit(self, commit: Commit) -> None:
        self._db.executemany("DELETE FROM outbox WHERE key = ? AND step = ?", [row[:2] for row in commit.rows])
        super().commit(commit)


def acknowledge_first() -> None:
    """Broken: rows count as published before they are sent."""
    hook(publishing.Publishing, "take", after=lambda batch, own: batch and own._journal.ack(batch.last_id))


@pytest.mark.parametrize(
    ("kind", "change", "point", "times", "cadence", "expected"),
    [
        (RowsOutside, None, "after COMMIT", 3, FINE, "rows"),
        (StepsOutside, None, "before the step rows", 3, FINE, "rows"),
        # while the last snapshot is older than the last commit: else no step is computed again
        (LastRowStands, None, "after COMMIT", 6, COARSE, "a row twice in the service"),
        (QuickJournal, acknowledge_first, "before a batch is sent", 3, FINE, "rows of the service"),
    ],
    ids=["rows outside", "steps outside", "last row stands", "acknowledged first"],
)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_broken_commit_is_noticed(tmp_path, schedule, kind, change, point, times, cadence, expected) -> None:
    place = Place(tmp_path / "run", schedule, kind)
    place.folder.mkdir()
    assert dies(place, point, times, cadence, change or (lambda: None))
    assert expected in differences(place, run_inline(place.parts()))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_run_that_nobody_kills_shows_no_difference(tmp_path: Path, schedule: Schedule) -> None:
    """Nor does one whose child came to its end: the comparison itself is sound."""
    place = Place(tmp_path / "run", schedule)
    place.folder.mkdir()
    assert not dies(place, "after COMMIT", 10**6, FINE)
    assert differences(place, run_inline(place.parts())) == []
