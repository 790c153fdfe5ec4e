"""How a run begins or goes on: state of the coordinator, windows that are skipped, files that nobody needs."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from atoll.runtime.events import Evaluate, Expect
from atoll.runtime.opening import Attempt, begin
from atoll.runtime.store import Commit, LocalFiles, SnapshotRecord, SqliteJournal, StepRecord
from atoll.timeline import AsyncSchedule

sys.path.insert(0, str(Path(__file__).parents[2] / "invariance"))
from toy import MemoryTimeline, Toy, toy_run

NAME = "version-{:08d}-epoch-{}.safetensors"


@pytest.fixture
def journal():
    with contextlib.closing(SqliteJournal(":memory:")) as made:
        yield made


def toy_with(files: LocalFiles) -> Toy:
    toy = toy_run(AsyncSchedule(12, 3), steps=40, lanes=12)
    return dataclasses.replace(toy, parts=dataclasses.replace(toy.parts, make_snapshot_files=lambda: files))


def committed(journal: SqliteJournal, version: int, epoch: int, also: tuple[int, ...] = ()) -> SnapshotRecord:
    """A snapshot of `version` in the journal, with the steps below it and evaluations around it."""
    files = {number: NAME.format(number, epoch) for number in (*also, version)}
    record = SnapshotRecord(version, files[version], files, dict.fromkeys(files.values(), "sha"))
    steps = range(journal.last_step + 1, version)
    totals = [{"client_updates": 3 * (step + 1)} for step in steps]
    records = [StepRecord(step, step, "sum", found) for step, found in zip(steps, totals, strict=True)]
    evaluated = {number: {"eval/loss": float(number)} for number in (version - 1, version, version + 1)}
    journal.commit(Commit(tuple(records), evaluations=evaluated, snapshot=record))
    return record


def open_it(toy: Toy, journal: SqliteJournal, taken: SnapshotRecord | None) -> tuple[Attempt, MemoryTimeline]:
    return begin(toy.parts, journal, taken, [0]), toy.timelines[-1]


def test_a_run_begins_at_version_0(tmp_path, journal) -> None:
    journal.claim()
    toy = toy_with(LocalFiles(tmp_path))
    attempt, timeline = open_it(toy, journal, None)
    assert attempt.coordinator.version == 0
    assert attempt.coordinator.live_versions() == (0,)
    assert attempt.coordinator.ledger.client_updates == 0
    assert timeline.rows == []
    assert attempt.recorder.last_evaluation == {}
    first = attempt.coordinator.start()
    assert [call.version for call in first if isinstance(call, Evaluate)] == [0]
    expected = [step.step for call in first if isinstance(call, Expect) for step in call.steps]
    assert expected == list(range(len(expected)))


def test_it_begins_there_also_where_the_journal_is_further(tmp_path, journal) -> None:
    """No snapshot could be read: evaluations and totals that are known are of no use before their version."""
    journal.claim()
    committed(journal, 8, 1)
    attempt, _ = open_it(toy_with(LocalFiles(tmp_path)), journal, None)
    assert (attempt.coordinator.version, attempt.coordinator.ledger.client_updates) == (0, 0)
    assert [call.version for call in attempt.coordinator.start() if isinstance(call, Evaluate)] == [0]


def test_it_goes_on_from_the_snapshot_that_was_taken_up(tmp_path, journal) -> None:
    journal.claim()
    older = committed(journal, 8, 1, also=(5, 6))
    committed(journal, 12, 1)
    attempt, _ = open_it(toy_with(LocalFiles(tmp_path)), journal, older)
    assert attempt.coordinator.version == 8
    assert attempt.coordinator.live_versions() == (5, 6, 8)
    assert attempt.coordinator.ledger.client_updates == 24, "totals after step 7, not after the last one"
    assert attempt.recorder.last_evaluation == {"eval/loss": 8.0}
    calls = attempt.coordinator.start()
    assert [call.version for call in calls if isinstance(call, Evaluate)] == [], "version 8 is evaluated already"


@pytest.mark.parametrize("version", range(1, 11))
def test_windows_that_end_before_the_version_are_skipped_and_kept(tmp_path, journal, version: int) -> None:
    """The window that ends at the version itself belongs to the run from there, for its digests."""
    journal.claim()
    toy = toy_with(LocalFiles(tmp_path))
    planner = toy.parts.make_planner()
    length = planner.settings.lookahead_steps
    assert 1 < length <= 5, "several windows, and several versions in each"
    attempt, timeline = open_it(toy, journal, committed(journal, version, 1))
    skipped = (version - 1) // length
    expected = [planner.advance().rows for _ in range(skipped)]
    assert len(timeline.rows) == skipped
    assert all(np.array_equal(found, rows) for found, rows in zip(timeline.rows, expected, strict=True))
    (first, *_) = [call for call in attempt.coordinator.start() if isinstance(call, Expect)]
    assert first.steps[0].step == skipped * length


def test_files_of_earlier_epochs_that_were_never_committed_are_deleted(tmp_path, journal) -> None:
    files = LocalFiles(tmp_path)
    for _ in range(3):
        journal.claim()
    record = committed(journal, 4, 1, also=(2,))
    newer = committed(journal, 6, 2)
    needed = {*record.hashes, *newer.hashes}
    orphans = {NAME.format(3, 1), NAME.format(7, 2), f"{NAME.format(7, 2)}.123.tmp"}
    others = {NAME.format(8, 3), f"{NAME.format(9, 3)}.5.tmp", NAME.format(5, 4), "version-000004.safetensors", "notes"}
    for name in needed | orphans | others:
        files.write(name, b"content") if not name.endswith(".tmp") else (tmp_path / name).write_bytes(b"half")
    open_it(toy_with(files), journal, newer)
    assert set(files.names()) == needed | others


def test_each_epoch_has_a_timeline_of_its_own(tmp_path, journal) -> None:
    toy = toy_with(LocalFiles(tmp_path))
    asked: list[int] = []

    def make(epoch: int) -> MemoryTimeline:
        asked.append(epoch)
        return MemoryTimeline()

    parts = dataclasses.replace(toy.parts, make_timeline=make)
    for _ in range(3):
        journal.claim()
        begin(parts, journal, None, [0])
    assert asked == [1, 2, 3]
