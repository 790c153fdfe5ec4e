"""The recorder: what is committed together, when a snapshot is due, and what is left when it cannot be written."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from atoll.errors import AggregationError, FencedError, InfrastructureError
from atoll.runtime import recorder as module
from atoll.runtime.events import Finish
from atoll.runtime.parts import Durability
from atoll.runtime.recorder import Recorder
from atoll.runtime.store import Artifact, Commit, LocalFiles, SnapshotRecord, SqliteJournal, StepRecord

ROWS = np.zeros(3, dtype=[("step", "i4")])


class Clock:
    """Wall time that moves by hand alone."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1e9)


@dataclass
class Planned:
    """As much of a coordinator as the recorder reads."""

    version: int = 0
    rows: list = field(default_factory=list)
    ledger: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(client_updates=40))

    def take_rows(self) -> list:
        rows, self.rows = self.rows, []
        return rows


@dataclass
class KeptTimeline:
    rows: list = field(default_factory=list)

    def keep(self, rows) -> None:
        self.rows.append(rows)

    def close(self) -> None: ...


class Bench:
    """A recorder over a real journal and real files."""

    def __init__(self, folder: Path, journal: SqliteJournal, durability: Durability, version: int = 0) -> None:
        self.journal, self.files = journal, LocalFiles(folder / "snapshots")
        self.coordinator, self.timeline = Planned(version), KeptTimeline()
        self.recorder = Recorder(journal, self.timeline, self.files, self.coordinator, durability)  # type: ignore

    def close(self, step: int, **metrics: float) -> None:
        """A step closes."""
        self.coordinator.version = step + 1
        self.recorder.step(StepRecord(step, step * 100, f"sum {step}", {"steps": step + 1}), metrics or {"loss": 0.5})

    def saved(self, version: int, *, also: tuple[str, ...] = ()) -> SnapshotRecord:
        """What an aggregator would answer: durable files, of which some are shared with earlier snapshots."""
        name = f"version-{version:08d}-epoch-1.safetensors"
        self.files.write(name, b"state")
        names = {name, *(f"version-{int(old):08d}-epoch-1.safetensors" for old in also)}
        return SnapshotRecord(version, name, {version: name}, dict.fromkeys(names, "sha"))

    def snapshot(self, version: int, *, also: tuple[str, ...] = (), seconds: float = 0.0) -> None:
        assert self.recorder.begin_snapshot(is_forced=True)
        self.recorder.snapshot(self.saved(version, also=also), seconds)

    def versions_of_files(self) -> list[int]:
        return [int(name.split("-")[1]) for name in self.files.names()]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def journal():
    with contextlib.closing(SqliteJournal(":memory:")) as made:
        made.claim()
        yield made


@pytest.fixture
def bench(tmp_path: Path, journal: SqliteJournal, clock: Clock) -> Bench:
    return Bench(tmp_path, journal, Durability())


# ---- facts --------------------------------------------------------------------------------------------------------


def test_the_last_evaluation_is_of_the_newest_version_whatever_comes_back_last(bench: Bench) -> None:
    for version, value in ((0, 0.5), (20, 0.7), (10, 0.6)):
        bench.recorder.evaluation(version, {"eval/auc": value})
    bench.recorder.flush(is_forced=True)
    assert bench.recorder.last_evaluation == {"eval/auc": 0.7}
    rows = [row[:3] for row in bench.journal.rows()]
    assert rows == [("eval/auc", 0, 0.5), ("eval/auc", 20, 0.7), ("eval/auc", 10, 0.6)]
    assert bench.journal.evaluations() == {0: {"eval/auc": 0.5}, 10: {"eval/auc": 0.6}, 20: {"eval/auc": 0.7}}


def test_who_goes_on_knows_the_last_evaluation_up_to_its_version(tmp_path, journal, clock) -> None:
    journal.commit(Commit(evaluations={0: {"eval/auc": 0.5}, 8: {"eval/auc": 0.6}, 12: {"eval/auc": 0.7}}))
    assert Bench(tmp_path, journal, Durability(), version=10).recorder.last_evaluation == {"eval/auc": 0.6}
    assert Bench(tmp_path, journal, Durability(), version=12).recorder.last_evaluation == {"eval/auc": 0.7}


def test_a_step_is_committed_with_its_rows_and_the_walls(bench: Bench, clock: Clock) -> None:
    clock.now += 4
    bench.close(0, loss=0.25, norm=3.0)
    bench.coordinator.rows = [ROWS]
    bench.recorder.flush(is_forced=True)
    assert bench.journal.step(0) == StepRecord(0, 0, "sum 0", {"steps": 1})
    assert {(key, step): value for key, step, value, _ in bench.journal.rows()} == {
        ("loss", 1): 0.25,
        ("norm", 1): 3.0,
        ("wall_s", 1): 4.0,
        ("wall_updates_per_s", 1): 10.0,
    }
    assert {row[3] for row in bench.journal.rows()} == {1_004_000}
    assert bench.timeline.rows == [ROWS]


def test_values_that_are_no_numbers_are_left_out_and_counted_over_attempts(bench: Bench, tmp_path) -> None:
    bench.close(0, loss=math.nan, norm=math.inf, rate=1.0)
    bench.recorder.evaluation(1, {"eval/auc": math.nan})
    bench.recorder.flush(is_forced=True)
    assert {row[0] for row in bench.journal.rows()} == {"rate", "wall_s", "wall_updates_per_s"}
    assert bench.journal.get("left_out") == "3"
    again = Bench(tmp_path, bench.journal, Durability(), version=1)
    again.close(1, loss=-math.inf)
    again.recorder.flush(is_forced=True)
    assert bench.journal.get("left_out") == "4"


def test_nothing_left_out_is_not_worth_a_word(bench: Bench) -> None:
    bench.close(0)
    bench.recorder.flush(is_forced=True)
    assert bench.journal.get("left_out") is None


def test_wall_time_and_losses_count_on_from_what_earlier_attempts_committed(bench: Bench, clock, tmp_path) -> None:
    clock.now += 10
    bench.recorder.busy_s, bench.recorder.lost_pools = 7.5, 2
    bench.close(0)
    bench.recorder.flush(is_forced=True)
    clock.now += 90  # dies; nothing of this is committed, and the pause is no part of the run
    again = Bench(tmp_path, bench.journal, Durability(), version=1)
    assert (again.recorder.wall_s, again.recorder.busy_s, again.recorder.lost_pools) == (10.0, 7.5, 2)
    clock.now += 2.5
    again.close(1)
    again.recorder.flush(is_forced=True)
    walls = [value for key, _, value, _ in bench.journal.rows() if key == "wall_s"]
    assert walls == [10.0, 12.5]
    assert Bench(tmp_path, bench.journal, Durability()).recorder.wall_s == 12.5


def test_the_wall_stands_still_at_the_end(bench: Bench, clock: Clock) -> None:
    clock.now += 3
    bench.close(0)
    bench.recorder.end(Finish(1, "server steps done", "t", "p"))
    clock.now += 50  # the last snapshot, and a tracking service that is slow
    bench.recorder.flush(is_forced=True)
    assert bench.recorder.wall_s == 3.0
    assert bench.journal.get("wall_s") == "3.0"
    assert json.loads(bench.journal.get("ended") or "") == {"version": 1, "reason": "server steps done"}


def test_commits_wait_for_their_time(bench: Bench, clock: Clock) -> None:
    bench.close(0)
    clock.now += 0.4
    bench.recorder.flush()
    assert bench.journal.last_step == -1
    clock.now += 0.2
    bench.recorder.flush()
    assert bench.journal.last_step == 0
    bench.close(1)
    bench.recorder.flush()
    assert bench.journal.last_step == 0
    bench.recorder.flush(is_forced=True)
    assert bench.journal.last_step == 1


def test_artifacts_are_committed_to_be_published(bench: Bench) -> None:
    bench.recorder.artifact(Artifact("a.bin", "place"))
    bench.recorder.flush(is_forced=True)
    bench.recorder.flush(is_forced=True)
    assert bench.journal.pending_artifacts() == [Artifact("a.bin", "place")]


# ---- snapshots ----------------------------------------------------------------------------------------------------


def test_a_snapshot_that_is_ahead_waits_for_the_steps_below_it(bench: Bench) -> None:
    """The aggregator closes steps sooner than the coordinator hears of them."""
    bench.close(0)
    bench.snapshot(3)
    bench.recorder.flush(is_forced=True)
    assert (bench.journal.last_step, bench.journal.snapshots()) == (0, [])
    bench.close(1)
    bench.recorder.flush(is_forced=True)
    assert (bench.journal.last_step, bench.journal.snapshots()) == (1, [])
    assert bench.recorder.is_saving
    assert not bench.recorder.begin_snapshot(is_forced=True), "one at once"
    bench.close(2)
    bench.recorder.flush()  # a snapshot that can be committed waits for no cadence
    assert (bench.journal.last_step, [record.version for record in bench.journal.snapshots()]) == (2, [3])
    assert not bench.recorder.is_saving
    assert not bench.journal.damage()


def test_a_snapshot_is_taken_every_so_often_and_never_of_the_beginning(bench: Bench, clock: Clock) -> None:
    clock.now += 60
    assert not bench.recorder.begin_snapshot(), "version 0 is made anew as quickly"
    bench.close(0)
    assert bench.recorder.begin_snapshot()
    assert not bench.recorder.begin_snapshot(), "one at once"
    bench.recorder.snapshot(bench.saved(1), 0.01)
    bench.recorder.flush()
    bench.close(1)
    clock.now += 4.9
    assert not bench.recorder.begin_snapshot()
    assert bench.recorder.begin_snapshot(is_forced=True)
    bench.recorder.snapshot(bench.saved(2), 0.01)
    bench.recorder.flush()
    bench.close(2)
    clock.now += 5.0
    assert bench.recorder.begin_snapshot()


@pytest.mark.parametrize(("seconds", "wait_s"), [(0.1, 5.0), (0.3, 10.0), (6.0, 200.0)])
def test_snapshots_take_three_parts_in_a_hundred_of_the_time_at_most(bench, clock, seconds, wait_s) -> None:
    bench.close(0)
    bench.snapshot(1, seconds=seconds)
    bench.recorder.flush()
    bench.close(1)
    clock.now += wait_s * 0.999
    assert not bench.recorder.begin_snapshot()
    clock.now += wait_s * 0.002
    assert bench.recorder.begin_snapshot()


def test_committing_and_deleting_count_as_time_of_a_snapshot(bench, clock, monkeypatch) -> None:
    commit = bench.journal.commit

    def slow(found: Commit) -> None:
        clock.now += 0.6
        commit(found)

    monkeypatch.setattr(bench.journal, "commit", slow)
    bench.close(0)
    bench.snapshot(1, seconds=0.3)
    bench.recorder.flush()
    bench.close(1)
    clock.now += 29.9
    assert not bench.recorder.begin_snapshot()
    clock.now += 0.2
    assert bench.recorder.begin_snapshot()


def test_at_every_step_whatever_it_costs(tmp_path, journal, clock) -> None:
    bench = Bench(tmp_path, journal, Durability(snapshot_every_s=0.0))
    for step in range(3):
        bench.close(step)
        assert bench.recorder.begin_snapshot()
        bench.recorder.snapshot(bench.saved(step + 1), 60.0)
        bench.recorder.flush()
    assert [record.version for record in journal.snapshots()] == [3, 2]


def test_a_version_that_is_saved_already_is_not_committed_again(bench: Bench, clock: Clock) -> None:
    bench.close(0)
    bench.snapshot(1)
    bench.recorder.flush()
    clock.now += 6
    assert bench.recorder.begin_snapshot()
    bench.recorder.snapshot(bench.saved(1), 0.0)
    bench.recorder.flush()
    assert not bench.recorder.is_saving
    assert len(bench.journal.snapshots()) == 1
    assert not bench.recorder.begin_snapshot(), "its time counts from here"


def test_two_snapshots_are_kept_with_the_files_that_they_need(bench: Bench) -> None:
    for version, also in ((1, ()), (2, ()), (3, ("1",)), (4, ("1",)), (5, ())):
        bench.close(version - 1)
        bench.snapshot(version, also=also)
        bench.recorder.flush()
        kept = [record.version for record in bench.journal.snapshots()]
        assert kept == [version, version - 1][: min(version, 2)]
        needed = {name for record in bench.journal.snapshots() for name in record.hashes}
        assert set(bench.files.names()) == needed
    assert bench.versions_of_files() == [1, 4, 5], "version 1 is needed by the one before the newest"


def test_files_are_deleted_after_the_commit_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in (1, 2):
        bench.close(version - 1)
        bench.snapshot(version)
        bench.recorder.flush()
    bench.close(2)
    bench.snapshot(3)
    seen: list[list[int]] = []
    commit = bench.journal.commit

    def look(found: Commit) -> None:
        seen.append(bench.versions_of_files())
        commit(found)
        seen.append(bench.versions_of_files())

    monkeypatch.setattr(bench.journal, "commit", look)
    bench.recorder.flush()
    assert seen == [[1, 2, 3], [1, 2, 3]]
    assert bench.versions_of_files() == [2, 3]


# ---- what cannot be written ---------------------------------------------------------------------------------------


def test_a_full_disk_stops_loudly_and_nothing_is_half_there(tmp_path: Path, clock: Clock) -> None:
    with SqliteJournal(tmp_path / "journal.db") as journal:
        journal.claim()
        bench = Bench(tmp_path, journal, Durability())
        for version in (1, 2):
            bench.close(version - 1)
            bench.snapshot(version)
            bench.recorder.flush()
        rows, snapshots = journal.rows(), journal.snapshots()
        pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
        journal._db.execute(f"PRAGMA max_page_count = {pages}")
        bench.close(2, **{f"metric/{number:04d}": 1.0 for number in range(2000)})
        bench.recorder.evaluation(3, {"eval/auc": 0.5})
        bench.snapshot(3)
        with pytest.raises(InfrastructureError, match=r"full.*Nothing of it was written.*atoll resume RUN"):
            bench.recorder.flush(is_forced=True)
        assert (journal.last_step, journal.rows(), journal.snapshots()) == (1, rows, snapshots)
        assert journal.evaluations() == {}
        assert bench.versions_of_files() == [1, 2, 3], "nothing was deleted for a commit that is not there"
        journal._db.execute("PRAGMA max_page_count = 1000000")
        bench.recorder.flush(is_forced=True)
        assert journal.last_step == 2
        assert len(journal.rows()) == len(rows) + 2003
        assert bench.versions_of_files() == [2, 3]
        assert not journal.damage()


def test_a_zombie_commits_nothing_and_deletes_nothing(tmp_path: Path, clock: Clock) -> None:
    with SqliteJournal(tmp_path / "journal.db") as old, SqliteJournal(tmp_path / "journal.db") as new:
        old.claim()
        bench = Bench(tmp_path, old, Durability())
        for version in (1, 2):
            bench.close(version - 1)
            bench.snapshot(version)
            bench.recorder.flush()
        new.claim()
        bench.close(2)
        bench.snapshot(3)
        with pytest.raises(FencedError):
            bench.recorder.flush(is_forced=True)
        assert new.last_step == 1
        assert bench.versions_of_files() == [1, 2, 3]


def test_a_step_that_comes_out_otherwise_stops_the_run(bench: Bench) -> None:
    bench.close(0)
    bench.recorder.flush(is_forced=True)
    bench.recorder.step(StepRecord(0, 0, "another sum"), {})
    with pytest.raises(AggregationError, match="server step 0 was committed with exact sum"):
        bench.recorder.flush(is_forced=True)


def test_after_slow_commits_the_next_one_waits_longer_but_not_for_ever(
    bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = bench.journal.commit

    def waits(seconds: float) -> list[float]:
        """Wall time between the starts of commits that take `seconds` each, once they have settled."""
        moments: list[float] = []

        def slow(what: Commit) -> None:
            moments.append(clock.now)
            clock.now += seconds
            commit(what)

        monkeypatch.setattr(bench.journal, "commit", slow)
        for _ in range(1000):
            clock.now += 0.1
            bench.close(bench.coordinator.version)
            bench.recorder.flush()
        return np.diff(moments)[8:].round(1).tolist()

    quick, slow, hopeless = waits(0.0), waits(0.02), waits(1.0)
    assert set(quick) <= {0.5, 0.6}
    assert all(1.9 < found < 2.3 for found in slow)
    assert all(5.9 < found < 6.2 for found in hopeless)
