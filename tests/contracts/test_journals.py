"""What every journal keeps: one truth, whole commits, one writer; on one disk, on a shared folder, in objects."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import AggregationError, FencedError, InfrastructureError
from atoll.runtime.store import (
    Artifact,
    Commit,
    Journal,
    LocalFiles,
    ObjectFiles,
    SharedJournal,
    SnapshotRecord,
    SqliteJournal,
    StepRecord,
)

KINDS = ("sqlite", "folder", "objects")
PROCESS_KINDS = ("sqlite", "folder")


class Store:
    """One run's store of one kind; every journal it opens is another process's view."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.url = f"memory://{uuid.uuid4().hex}/run"
        self._opened = ExitStack()

    @property
    def files(self) -> LocalFiles | ObjectFiles:
        return LocalFiles(self.folder / "log") if self.kind == "folder" else ObjectFiles(self.url)

    def open(self) -> Journal:
        if self.kind == "sqlite":
            return self._opened.enter_context(closing(SqliteJournal(self.folder / "journal.db")))
        return self._opened.enter_context(closing(SharedJournal(self.files, self.folder / "scratch")))

    def close(self) -> None:
        self._opened.close()
        memory = fsspec.filesystem("memory").store
        for name in [name for name in memory if name.startswith(self.url.removeprefix("memory:/"))]:
            del memory[name]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = Store(request.param, tmp_path)
    yield made
    made.close()


@pytest.fixture
def folder_store(tmp_path: Path) -> Iterator[Store]:
    made = Store("folder", tmp_path)
    yield made
    made.close()


def claimed(store: Store) -> Journal:
    journal = store.open()
    journal.claim()
    return journal


def step(number: int, sum_sha: str = "sum") -> StepRecord:
    return StepRecord(number, 10**12 + number, f"{sum_sha}-{number}", {"updates": 3.0 * number, "bytes": 0.1})


def rows_of(number: int, value: float = 1.0, timestamp_ms: int = 5) -> tuple:
    return ("train/loss", number, value, timestamp_ms), ("sim/hours", number, value / 2, timestamp_ms)


def snapshot_of(version: int, *shared: str) -> SnapshotRecord:
    own = f"version-{version}"
    files = dict(enumerate(shared)) | {version: own}
    return SnapshotRecord(version, own, files, {name: f"sha of {name}" for name in (*shared, own)})


def full_commit(number: int) -> Commit:
    return Commit(
        (step(number),),
        rows_of(number),
        {number + 1: {"test/accuracy": 0.1 * number}},
        (Artifact(f"file-{number}", None if number % 2 else "plots"),),
        snapshot_of(number + 1),
        {"wall_s": repr(0.1 * number), "Ü": "ü"},
    )


def seen(journal: Journal) -> dict[str, object]:
    """Everything that a reader can see."""
    return {
        "last_step": journal.last_step,
        "steps": [journal.step(number) for number in range(journal.last_step + 2)],
        "evaluations": journal.evaluations(),
        "snapshots": journal.snapshots(),
        "pending": journal.pending(1000),
        "oldest": journal.pending(1),
        "num_pending": journal.num_pending,
        "artifacts": journal.pending_artifacts(),
        "history": journal.history(),
        "rows": journal.rows(),
        "meta": {key: journal.get(key) for key in ("epoch", "wall_s", "Ü", "a", "is_comparable", "none")},
    }


WRITES: dict[str, Callable[[Journal], object]] = {
    "commit": lambda journal: journal.commit(full_commit(1)),
    "nothing": lambda journal: journal.commit(Commit()),
    "ack": lambda journal: journal.ack(2),
    "ack_artifact": lambda journal: journal.ack_artifact("file-0"),
    "keep_snapshots": lambda journal: journal.keep_snapshots(0),
    "keep_all": lambda journal: journal.keep_snapshots(5),
    "publish_again": lambda journal: journal.publish_again(),
}


# ---- one journal ----------------------------------------------------------------------------------------------------


def test_everything_that_is_committed_comes_back_also_after_reopening(store):
    journal = claimed(store)
    assert (journal.last_step, journal.step(0), journal.pending(5), journal.snapshots()) == (-1, None, (0, []), [])
    for number in range(3):
        journal.commit(full_commit(number))
    expected = {
        "last_step": 2,
        "steps": [step(0), step(1), step(2), None],
        "evaluations": {number + 1: {"test/accuracy": 0.1 * number} for number in range(3)},
        "snapshots": [snapshot_of(3), snapshot_of(2), snapshot_of(1)],
        "pending": (6, [row for number in range(3) for row in rows_of(number)]),
        "oldest": (1, [rows_of(0)[0]]),
        "num_pending": 6,
        "artifacts": [Artifact("file-0", "plots"), Artifact("file-1", None), Artifact("file-2", "plots")],
        "history": {"sim/hours": [(n, 0.5) for n in range(3)], "train/loss": [(n, 1.0) for n in range(3)]},
        "rows": [row for number in range(3) for row in rows_of(number)],
        "meta": {"epoch": "1", "wall_s": "0.2", "Ü": "ü", "a": None, "is_comparable": None, "none": None},
    }
    assert seen(journal) == expected
    assert (journal.epoch, list(journal.damage())) == (1, [])
    journal.close()
    again = store.open()
    assert seen(again) == expected
    assert (again.epoch, again.claim(), again.epoch) == (0, 2, 2)


def test_several_steps_are_one_commit(store):
    journal = claimed(store)
    journal.commit(Commit(tuple(step(number) for number in range(4)), rows_of(3)))
    assert (store.open().last_step, journal.last_step, journal.step(2)) == (3, 3, step(2))


def test_the_first_row_evaluation_and_artifact_stand(store):
    journal = claimed(store)
    journal.commit(full_commit(0))
    journal.commit(
        Commit(
            (step(0),),
            (*rows_of(0, 7.0, 99), ("new", 0, 2.0, 99)),
            {1: {"test/accuracy": 9.0}, 2: {"test/accuracy": 0.2}},
            (Artifact("file-0", "elsewhere"),),
        )
    )
    assert journal.rows() == [*rows_of(0), ("new", 0, 2.0, 99)]
    assert journal.evaluations() == {1: {"test/accuracy": 0.0}, 2: {"test/accuracy": 0.2}}
    assert journal.pending_artifacts() == [Artifact("file-0", "plots")]


@pytest.mark.parametrize("steps", [(step(2), step(1, "other")), (step(2), step(2, "other"))], ids=["old", "own"])
def test_a_step_with_another_sum_is_refused_whole(store, steps):
    journal = claimed(store)
    journal.commit(Commit((step(0), step(1)), rows_of(1)))
    before = seen(journal)
    with pytest.raises(AggregationError, match=r"server step \d was committed with exact sum"):
        journal.commit(Commit(steps, rows_of(2), {2: {"a": 1.0}}, (Artifact("f", None),), snapshot_of(2), {"a": "b"}))
    assert seen(journal) == seen(store.open()) == before
    journal.commit(Commit((step(2),)))
    assert journal.last_step == 2


def test_a_run_that_gave_up_comparability_keeps_the_first_sum(store):
    journal = claimed(store)
    journal.commit(Commit((step(0),), meta={"is_comparable": "no"}))
    journal.commit(Commit((step(0, "other"), step(1))))
    assert (journal.step(0), journal.last_step) == (step(0), 1)


def test_a_value_that_is_not_a_number_adds_no_row(store):
    journal = claimed(store)
    journal.commit(Commit(rows=(("a", 0, float("nan"), 5), ("b", 0, float("inf"), 5))))
    assert journal.rows() == store.open().rows() == [("b", 0, float("inf"), 5)]


def test_acknowledgements_never_move_backwards(store):
    journal = claimed(store)
    for number in range(5):
        journal.commit(Commit((step(number),), rows_of(number)))
    last_id, rows = journal.pending(4)
    assert rows == [*rows_of(0), *rows_of(1)]
    journal.ack(last_id)
    journal.ack(last_id - 3)
    journal.commit(Commit((step(5),), rows_of(5)))
    journal.ack(1)
    assert (journal.num_pending, journal.pending(1)[1]) == (8, [rows_of(2)[0]])
    journal.close()
    again = store.open()
    assert (again.num_pending, again.pending(1)[1]) == (8, [rows_of(2)[0]])


def test_artifacts_are_acknowledged_by_name_and_publishing_can_start_again(store):
    journal = claimed(store)
    for number in range(3):
        journal.commit(full_commit(number))
    journal.ack_artifact("file-1")
    journal.ack_artifact("no such file")
    journal.ack(6)
    assert [artifact.name for artifact in journal.pending_artifacts()] == ["file-0", "file-2"]
    journal.publish_again()
    assert [artifact.name for artifact in store.open().pending_artifacts()] == ["file-0", "file-1", "file-2"]
    assert (journal.num_pending, store.open().num_pending) == (6, 6)
    journal.ack(2)
    journal.close()
    assert store.open().num_pending == 4


def test_keep_snapshots_returns_exactly_the_files_that_no_kept_snapshot_needs(store):
    journal = claimed(store)
    for number, record in enumerate([snapshot_of(1), snapshot_of(2, "version-1"), snapshot_of(3, "version-2")]):
        journal.commit(Commit((step(number),), snapshot=record))
    assert journal.keep_snapshots(3) == []
    assert journal.keep_snapshots(2) == []  # version-1 is needed by the snapshot of version 2
    assert journal.snapshots() == [snapshot_of(3, "version-2"), snapshot_of(2, "version-1")]
    assert journal.keep_snapshots(1) == ["version-1"]
    assert store.open().snapshots() == [snapshot_of(3, "version-2")]
    assert journal.keep_snapshots(0) == ["version-2", "version-3"]


# ---- one writer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_who_was_taken_over_can_do_nothing(store, write):
    old = claimed(store)
    old.commit(full_commit(0))
    new = store.open()
    assert new.claim() == 2
    before = seen(new)
    for _ in range(2):
        with pytest.raises(FencedError, match="another process took this run over"):
            write(old)
    old.close()
    assert seen(store.open()) == seen(new) == before
    new.commit(full_commit(1))
    assert new.last_step == 1


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_who_claimed_nothing_can_do_nothing(store, write):
    with pytest.raises(FencedError, match="claim"):
        write(store.open())
    claimed(store).commit(full_commit(0))
    before = seen(store.open())
    with pytest.raises(FencedError, match="claim"):
        write(store.open())
    assert seen(store.open()) == before


def test_claims_count_up_whoever_makes_them(store):
    journals = [store.open() for _ in range(4)]
    assert [journal.claim() for journal in journals for _ in range(2)] == list(range(1, 9))
    assert journals[0].claim() == 9
    journals[0].commit(full_commit(0))
    with pytest.raises(FencedError):
        journals[3].commit(full_commit(1))


@pytest.mark.parametrize("anew", [True, False], ids=["anew", "on"])
def test_who_takes_a_run_back_sees_what_all_see(store, anew):
    old = claimed(store)
    old.commit(full_commit(0))
    old.ack(1)
    old.ack_artifact("file-0")
    new = claimed(store)
    if anew:
        new.publish_again()
    with pytest.raises(FencedError):
        old.ack(2)
    assert old.claim() == 3
    assert seen(old) == seen(store.open())
    if anew:  # what was published to another tracking store counts for nothing
        assert (old.num_pending, len(old.pending_artifacts())) == (2, 1)


@pytest.mark.parametrize("kind", PROCESS_KINDS)
def test_of_several_that_take_over_from_each_other_every_commit_that_returned_is_there(tmp_path, kind):
    returned: list[tuple[int, int]] = []

    def run(number: int) -> None:
        with closing(Store(kind, tmp_path)) as store:
            journal = store.open()
            for count in range(15):
                try:
                    if count % 3 == 0:
                        journal.claim()
                    journal.commit(Commit(rows=((f"writer-{number}", count, float(journal.epoch), 5),)))
                    returned.append((number, count))
                except FencedError:
                    pass

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with closing(Store(kind, tmp_path)) as store:
        journal = store.open()
        found = journal.rows()
        assert sorted((int(key[-1]), count) for key, count, _, _ in found) == sorted(returned)
        epochs = [epoch for _, _, epoch, _ in found]
        assert (epochs, list(journal.damage()), journal.get("epoch")) == (sorted(epochs), [], "20")


@pytest.mark.parametrize("kind", PROCESS_KINDS)
def test_several_can_make_one_journal_at_once(tmp_path, kind):
    barrier, epochs = threading.Barrier(4), []

    def run(attempt: int) -> None:
        with closing(Store(kind, tmp_path / str(attempt))) as store:
            barrier.wait(30)
            epochs.append((attempt, store.open().claim()))

    for attempt in range(10):
        (tmp_path / str(attempt)).mkdir()
        threads = [threading.Thread(target=run, args=(attempt,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(epochs) == [(attempt, epoch) for attempt in range(10) for epoch in range(1, 5)]


# ---- all journals are equal -----------------------------------------------------------------------------------------

SMALL = st.integers(0, 3)
COMMITS = st.builds(
    Commit,
    st.lists(st.builds(StepRecord, SMALL, SMALL, st.sampled_from("aab"), st.just({"n": 1.5})), max_size=2).map(tuple),
    st.lists(st.tuples(st.sampled_from("ab"), SMALL, st.floats(width=32), SMALL), max_size=4).map(tuple),
    st.dictionaries(SMALL, st.dictionaries(st.sampled_from("ab"), st.floats(0, 1)), max_size=2),
    st.lists(st.builds(Artifact, st.sampled_from("fg"), st.sampled_from([None, "p"])), max_size=2).map(tuple),
    st.none() | st.builds(snapshot_of, SMALL, st.sampled_from("xy")),
    st.dictionaries(st.sampled_from(["a", "wall_s"]), st.text(max_size=2), max_size=1),
)
CALLS = st.one_of(
    st.tuples(st.just("commit"), COMMITS),
    st.tuples(st.just("commit"), COMMITS),
    st.tuples(st.just("ack"), st.integers(0, 9)),
    st.tuples(st.just("ack_artifact"), st.sampled_from("fgh")),
    st.tuples(st.just("keep_snapshots"), SMALL),
    st.tuples(st.sampled_from(["claim", "publish_again", "reopen"])),
)


def replies(store: Store, calls: list[tuple]) -> list[object]:
    journal, found = claimed(store), []
    for name, *arguments in calls:
        if name == "reopen":
            journal.close()
            journal = store.open()
        else:
            try:
                found.append(getattr(journal, name)(*arguments))
            except (AggregationError, FencedError) as error:
                found.append(type(error))
        found.append(seen(journal))
    found.append(len(journal.damage()))
    journal.close()
    return [*found, seen(store.open())]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(CALLS, max_size=10))
def test_the_same_calls_get_the_same_answers(calls):
    found = []
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder, closing(Store(kind, Path(folder))) as store:
            found.append(replies(store, calls))
    assert found[0] == found[1] == found[2]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from("abc"), SMALL, SMALL), max_size=20), st.integers(1, 4))
def test_each_first_row_is_published_once(events, every):
    expected, published = {}, []
    with tempfile.TemporaryDirectory() as folder, closing(Store("objects", Path(folder))) as store:
        journal = claimed(store)
        for index, (key, number, value) in enumerate(events):
            expected.setdefault((key, number), float(value))
            journal.commit(Commit(rows=((key, number, value, index),)))
            if index % every == 0:
                last_id, rows = journal.pending(2)
                published += rows
                journal.ack(last_id)
        published += journal.pending(100)[1]
    assert sorted(((key, number), value) for key, number, value, _ in published) == sorted(expected.items())


# ---- damage ---------------------------------------------------------------------------------------------------------


def test_missing_steps_are_named(store):
    journal = claimed(store)
    journal.commit(Commit((step(0), step(3))))
    assert list(journal.damage()) == ["2 of the steps 0 to 3 are missing"]


def test_a_snapshot_without_its_steps_is_named(store):
    journal = claimed(store)
    journal.commit(Commit((step(0),), snapshot=snapshot_of(2)))
    assert list(journal.damage()) == ["a snapshot of version 2 without the steps that made it"]


def test_a_sqlite_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "journal.db"
    path.write_bytes(b"hello, this is not a database at all" * 300)
    with pytest.raises(InfrastructureError, match=r"journal .*journal\.db: opening failed"):
        SqliteJournal(path)


@pytest.mark.parametrize("how", ["truncated", "garbage"])
def test_a_damaged_sqlite_file_is_found(tmp_path, how):
    path = tmp_path / "journal.db"
    with SqliteJournal(path) as journal:
        journal.claim()
        journal.commit(Commit(tuple(step(number) for number in range(2000))))
    size = path.stat().st_size
    with path.open("r+b") as file:
        if how == "truncated":
            file.truncate(size // 2)
        else:
            file.seek(size // 2)
            file.write(b"\xa5" * 8192)
    try:
        with SqliteJournal(path) as journal:
            found = journal.damage()
    except InfrastructureError as error:  # SQLite notices some damage on opening
        found = [str(error)]
    assert found


def test_the_sqlite_journal_is_an_ordinary_database(tmp_path):
    with SqliteJournal(tmp_path / "journal.db") as journal:
        journal.claim()
        journal.commit(full_commit(0))
        with closing(sqlite3.connect(journal.path)) as db:
            assert db.execute("SELECT count(*) FROM outbox").fetchone() == (2,)


def damaged(data: bytes, how: str) -> bytes:
    if how == "old epoch":
        return data.replace(b'"epoch":1', b'"epoch":0')
    return {"truncated": data[: len(data) // 2], "garbage": b"\xff\x00garbage", "empty": b"", "a list": b"[1]"}[how]


@pytest.mark.parametrize("number", [3, 6], ids=["middle", "last"])
@pytest.mark.parametrize("how", ["truncated", "garbage", "empty", "a list", "old epoch"])
@pytest.mark.parametrize("store", ["folder", "objects"], indirect=True)
def test_a_damaged_record_is_named_and_nothing_is_written_after_it(store, how, number):
    journal = claimed(store)
    for index in range(5):
        journal.commit(full_commit(index))
    name = f"commit-{number:012d}.json"
    store.files.write(name, damaged(store.files.read(name), how))
    assert any(name in text for text in journal.damage())
    again = store.open()
    assert again.last_step == number - 3
    assert any(name in text for text in again.damage())
    with pytest.raises(InfrastructureError, match=f"{name} is not the record"):
        again.claim()


@pytest.mark.parametrize("store", ["folder", "objects"], indirect=True)
def test_a_byte_that_changed_later_is_found(store):
    journal = claimed(store)
    journal.commit(full_commit(0))
    journal.commit(full_commit(1))
    name = "commit-000000000002.json"
    store.files.write(name, store.files.read(name).replace(b"train/loss", b"train/lass"))
    assert any("commit-000000000003.json" in text and "previous" in text for text in journal.damage())


@pytest.mark.parametrize("store", ["folder", "objects"], indirect=True)
def test_a_hole_in_the_log_is_named_and_never_filled(store):
    journal = claimed(store)
    for number in range(4):
        journal.commit(full_commit(number))
    store.files.delete("commit-000000000003.json")
    assert any("commit-000000000003.json is missing" in text for text in journal.damage())
    again = store.open()
    with pytest.raises(InfrastructureError, match=r"000003\.json is missing, commit-000000000005\.json is there"):
        again.claim()
    assert "commit-000000000003.json" not in store.files.names()


# ---- a log whose store fails ----------------------------------------------------------------------------------------


class Failing(LocalFiles):
    """A folder whose next creation goes wrong in one way."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.how, self.held = "", (("", b""))

    def create(self, name: str, data: bytes) -> None:
        how, self.how = self.how, ""
        if how == "late":
            self.held = (name, data)
        elif how != "refused":
            super().create(name, data)
        if how == "crash":
            raise KeyboardInterrupt
        if how == "asked twice":
            raise FileExistsError(name)
        if how:
            raise InfrastructureError("no answer")


@pytest.fixture
def failing(folder_store) -> Iterator[tuple[Failing, SharedJournal]]:
    files = Failing(folder_store.folder / "log")
    with SharedJournal(files, folder_store.folder / "scratch") as journal:
        journal.claim()
        journal.commit(full_commit(0))
        yield files, journal


@pytest.mark.parametrize("how", ["lost", "asked twice"])
def test_a_lost_answer_is_recognised(failing, folder_store, how):
    files, journal = failing
    files.how = how
    journal.commit(full_commit(1))
    assert seen(journal) == seen(folder_store.open())
    assert (journal.last_step, len(files.names())) == (1, 3)


def test_a_store_that_refuses_leaves_nothing_and_the_journal_goes_on(failing, folder_store):
    files, journal = failing
    before = seen(journal)
    files.how = "refused"
    with pytest.raises(InfrastructureError, match="no answer"):
        journal.commit(full_commit(1))
    assert seen(journal) == seen(folder_store.open()) == before
    journal.commit(full_commit(1))
    assert journal.last_step == 1


@pytest.mark.parametrize("then", [1, 2], ids=["same", "another"])
def test_a_record_that_arrives_late_counts(failing, folder_store, then):
    files, journal = failing
    files.how = "late"
    with pytest.raises(InfrastructureError, match="no answer"):
        journal.commit(full_commit(1))
    journal.ack(2)
    journal.ack_artifact("file-0")
    files.create(*files.held)
    journal.commit(full_commit(then))
    assert journal.last_step == then
    assert (journal.step(1), journal.num_pending) == (step(1), 2 * then)
    assert seen(journal) == seen(folder_store.open())


def test_a_crash_after_the_record_exists_loses_nothing(failing, folder_store):
    files, journal = failing
    files.how = "crash"
    with pytest.raises(KeyboardInterrupt):
        journal.commit(full_commit(1))
    again = claimed(folder_store)
    assert (again.last_step, again.rows()) == (1, [*rows_of(0), *rows_of(1)])


def test_a_full_disk_under_the_log(failing, folder_store, monkeypatch):
    files, journal = failing
    before = seen(journal)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(InfrastructureError, match=r"000003\.json: writing failed: .*No space left"):
            journal.commit(full_commit(1))
    assert seen(journal) == seen(folder_store.open()) == before
    journal.commit(full_commit(1))
    assert files.names() == sorted(os.listdir(folder_store.folder / "log"))


def test_the_index_is_gone_after_closing(folder_store):
    claimed(folder_store).close()
    assert not any((folder_store.folder / "scratch").iterdir())


def test_a_full_disk_under_sqlite_commits_nothing_and_the_journal_goes_on(tmp_path):
    with SqliteJournal(tmp_path / "journal.db") as journal:
        journal.claim()
        journal.commit(full_commit(0))
        before = seen(journal)
        pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
        journal._db.execute(f"PRAGMA max_page_count={pages + 1}")
        large = Commit((step(1),), tuple((f"key-{index}", 1, 1.0, 5) for index in range(2000)), meta={"a": "b"})
        with pytest.raises(InfrastructureError, match=r"committing failed: .*full.* Nothing of it was written"):
            journal.commit(large)
        assert seen(journal) == before
        journal._db.execute(f"PRAGMA max_page_count={pages + 10_000}")
        journal.commit(large)
        assert (journal.last_step, len(journal.rows()), journal.damage()) == (1, 2002, [])


# ---- processes that are killed, and such that come back -------------------------------------------------------------

CHILD = """
import os, signal, sys, time
from pathlib import Path
from atoll.errors import FencedError
from atoll.runtime.store import Commit, LocalFiles, SharedJournal, SqliteJournal, StepRecord
kind, folder, point, stop = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
files = LocalFiles(folder / "log")
journal = SqliteJournal(folder / "journal.db") if kind == "sqlite" else SharedJournal(files, folder / "scratch")

def at(here, step):
    if here == point and step == 2:
        os.kill(os.getpid(), signal.SIGSTOP)

link, current = os.link, -1
def stopping_link(*arguments):
    at("before create", current)
    link(*arguments)
    at("after create", current)
os.link = stopping_link

journal.claim()
try:
    for step in range(journal.last_step + 1, stop):
        current = step
        at("before commit", step)
        journal.commit(Commit((StepRecord(step, step, "s"),), (("a", step, step, 5), ("b", step, step, 5)),
                              {step: {"m": 1.0}}, meta={"step": str(step)}))
        print(step, flush=True)
        at("before ack", step)
        journal.ack(journal.pending(1000)[0])
        at("after ack", step)
except FencedError:
    sys.exit(3)
"""


def start(store: Store, point: str = "", stop: int = 10**9) -> subprocess.Popen[str]:
    store.folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", CHILD, store.kind, str(store.folder), point, str(stop)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def assert_whole(journal: Journal) -> None:
    last = journal.last_step
    assert list(journal.damage()) == []
    assert [journal.step(number) is not None for number in range(last + 1)] == [True] * (last + 1)
    assert journal.rows() == [(key, number, float(number), 5) for number in range(last + 1) for key in "ab"]
    assert list(journal.evaluations()) == list(range(last + 1))
    assert journal.get("step") == str(last)


@pytest.mark.parametrize("kind", PROCESS_KINDS)
def test_killed_at_any_moment_every_commit_is_whole(tmp_path, kind):
    with closing(Store(kind, tmp_path)) as store:
        for until in (5, 31, 58):
            with start(store) as child:
                said = -1
                while said < until:
                    said = int(child.stdout.readline())
                os.kill(child.pid, signal.SIGKILL)
                said = max([said, *(int(line) for line in child.stdout.read().split("\n")[:-1])])
            journal = store.open()
            assert said <= journal.last_step <= said + 1
            assert_whole(journal)


def wait_stopped(child: subprocess.Popen[str]) -> None:
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)


@pytest.mark.parametrize("kind", PROCESS_KINDS)
def test_who_is_stopped_and_comes_back_finds_the_run_taken_over(tmp_path, kind):
    points = ["before commit", "before ack", "after ack"]
    points += ["before create", "after create"] if kind == "folder" else []
    stores = [Store(kind, tmp_path / point) for point in points]
    children = [start(store, point, 5) for store, point in zip(stores, points, strict=True)]
    for store, point, child in zip(stores, points, children, strict=True):
        with child, closing(store):
            wait_stopped(child)
            journal = claimed(store)
            assert journal.last_step == (1 if point in ("before commit", "before create") else 2)
            for number in range(journal.last_step + 1, 5):
                rows = tuple((key, number, float(number), 5) for key in "ab")
                meta = {"step": str(number)}
                journal.commit(Commit((StepRecord(number, number, "s"),), rows, {number: {"m": 1.0}}, meta=meta))
            before = seen(journal)
            os.kill(child.pid, signal.SIGCONT)
            assert child.wait(60) == 3, f"{point}: the old process did not stop as fenced"
            after = store.open()
            assert seen(after) == seen(journal) == before
            assert_whole(after)
