"""The way to the tracking service: what fails stays, order stands, waiting grows. The clock is a plain number here."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path

import pytest

from atoll.errors import FencedError, Problem, SpecError
from atoll.runtime import inline, publishing, run_inline
from atoll.runtime.publishing import Batch, Publishing, Sending
from atoll.runtime.store import Artifact, Commit, LocalFiles, MetricRow, SqliteJournal
from atoll.timeline import AsyncSchedule

sys.path.insert(0, str(Path(__file__).parents[2] / "invariance"))
from toy import NullPublisher, toy_run

FULL = 1000


class Clock:
    """Monotonic time that moves by hand alone."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Service:
    """Takes rows and files, unless told to fail the next calls."""

    run_id = "run"

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.calls = failures, 0
        self.rows: list[MetricRow] = []
        self.files: list[tuple[Artifact, bytes]] = []

    def publish(self, rows) -> None:
        self._may_fail()
        self.rows.extend(rows)

    def upload(self, artifact: Artifact, data: bytes) -> None:
        self._may_fail()
        self.files.append((artifact, data))

    def _may_fail(self) -> None:
        self.calls += 1
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no route")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(publishing, "time", made)
    return made


@pytest.fixture
def journal(tmp_path: Path):
    with contextlib.closing(SqliteJournal(":memory:")) as made:
        made.claim()
        yield made


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    return LocalFiles(tmp_path)


def write(journal: SqliteJournal, first: int, end: int) -> list[MetricRow]:
    rows = [("key", number, 1.0, 5) for number in range(first, end)]
    journal.commit(Commit(rows=tuple(rows)))
    return rows


def begun(journal: SqliteJournal, files: LocalFiles) -> Publishing:
    """A sender whose run the service has."""
    found = Publishing(journal, files)
    while found.take() is None:
        publishing.time.now += 1
    found.succeeded("run")
    return found


def pump(sender: Publishing, service: Service) -> int:
    """Sends what is due now, as the executors do; returns how many batches that were."""
    sending = Sending(lambda: service)
    number = 0
    while (batch := sender.take()) is not None:
        number += 1
        try:
            sender.succeeded(sending.send(batch))
        except ConnectionError as error:
            sender.failed(error)
    return number


def test_full_batches_follow_one_another_and_are_acknowledged_in_order(clock, journal, files) -> None:
    rows = write(journal, 0, 2 * FULL + 1)
    sender, service = begun(journal, files), Service()
    clock.now += 10
    left = []
    for size in (FULL, FULL, 1):
        batch = sender.take()
        assert batch is not None
        assert len(batch.rows) == size
        service.publish(batch.rows)
        sender.succeeded("run")
        left.append(journal.num_pending)
    assert left == [FULL + 1, 1, 0]
    assert service.rows == rows
    assert sender.take() is None


def test_one_batch_is_under_way_at_once(clock, journal, files) -> None:
    write(journal, 0, 2 * FULL)
    sender = begun(journal, files)
    clock.now += 10
    assert sender.take() is not None
    assert sender.is_under_way
    assert sender.take() is None
    assert journal.num_pending == 2 * FULL, "nothing counts as sent before the service has it"
    sender.succeeded("run")
    assert not sender.is_under_way
    assert sender.take() is not None


def test_not_before_its_time(clock, journal, files) -> None:
    rows, service = write(journal, 0, 3), Service()
    sender = Publishing(journal, files)
    assert pump(sender, service) == 0
    clock.now += 2.0
    assert pump(sender, service) == 2, "the run, then its rows"
    rows += write(journal, 3, 4)
    clock.now += 1.9
    assert pump(sender, service) == 0
    clock.now += 0.2
    assert pump(sender, service) == 1
    assert service.rows == rows


def test_the_run_is_begun_first_and_its_id_kept(clock, journal, files) -> None:
    write(journal, 0, 1)
    sender, service = Publishing(journal, files), Service(failures=1)
    sender.hurry()
    assert pump(sender, service) == 2
    assert journal.get("run_id") == "run"
    assert not sender.is_drained(), "the row was refused"
    clock.now += 1.0
    assert pump(sender, service) == 1
    assert sender.is_drained()


def test_a_run_that_the_service_has_lost_is_sent_again_from_its_first_row(clock, journal, files) -> None:
    rows = write(journal, 0, 3)
    sender = begun(journal, files)
    sender.hurry()
    pump(sender, Service())
    assert journal.num_pending == 0
    again, service = Publishing(journal, files), Service()
    service.run_id = "another"
    again.hurry()
    pump(again, service)
    assert service.rows == rows
    assert journal.get("run_id") == "another"


def test_what_can_never_be_taken_is_an_error_only_before_the_service_had_the_run(clock, journal, files) -> None:
    refusal = SpecError([Problem("tracking.experiment", "'gone'", "an experiment that was not deleted")])
    with pytest.raises(SpecError, match="gone"):
        Publishing(journal, files).failed(refusal)
    begun(journal, files).failed(refusal)
    Publishing(journal, files).failed(refusal)


def test_nothing_to_send_is_looked_for_at_the_same_pace(clock, journal, files) -> None:
    sender, service = begun(journal, files), Service()
    clock.now += 2.0
    assert pump(sender, service) == 0
    write(journal, 0, 1)
    assert pump(sender, service) == 0
    clock.now += 2.0
    assert pump(sender, service) == 1


def test_failures_keep_rows_and_wait_longer_each_time(clock, journal, files, caplog) -> None:
    rows, service = write(journal, 0, 5), Service(failures=7)
    sender = begun(journal, files)
    clock.now += 2.0
    waits = []
    for _ in range(7):
        assert pump(sender, service) == 1
        assert journal.num_pending == 5
        began = clock.now
        while sender.take() is None:
            clock.now += 0.5
        waits.append(clock.now - began)
        sender._under_way = None  # taken only to see whether one was due
    assert waits == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    assert service.calls == 7
    assert pump(sender, service) == 1
    assert service.rows == rows
    assert caplog.text.count("no route") == 1, "told once"
    assert "they stay in the journal and are sent later" in caplog.text


def test_a_success_forgets_the_failures(clock, journal, files) -> None:
    service, sender = Service(failures=3), begun(journal, files)
    write(journal, 0, 1)
    for _ in range(4):
        clock.now += 30
        pump(sender, service)
    assert journal.num_pending == 0
    write(journal, 1, 2)
    service.failures = 1
    clock.now += 30
    assert pump(sender, service) == 1
    clock.now += 0.9
    assert pump(sender, service) == 0
    clock.now += 0.1
    assert pump(sender, service) == 1


def test_a_failure_between_batches_keeps_the_rest(clock, journal, files) -> None:
    rows = write(journal, 0, FULL + 5)
    service, sender = Service(), begun(journal, files)
    clock.now += 2
    assert sender.take() is not None
    service.publish(rows[:FULL])
    sender.succeeded("run")
    service.failures = 1
    assert pump(sender, service) == 1
    assert journal.num_pending == 5
    clock.now += 1
    assert pump(sender, service) == 1
    assert service.rows == rows
    assert journal.num_pending == 0


def test_files_go_after_rows_one_by_one_and_are_acknowledged_by_name(clock, journal, files) -> None:
    artifacts = (Artifact("b.bin", "place"), Artifact("a.bin", None))
    for artifact in artifacts:
        files.write(artifact.name, artifact.name.encode())
    rows = (("key", 0, 1.0, 5),)
    journal.commit(Commit(rows=rows, artifacts=artifacts))
    service, sender = Service(), begun(journal, files)
    sender.hurry()
    assert not sender.is_drained()
    assert pump(sender, service) == 3
    assert service.rows == list(rows)
    assert service.files == [(artifact, artifact.name.encode()) for artifact in artifacts]
    assert sender.is_drained()


def test_a_file_that_was_not_taken_comes_again(clock, journal, files) -> None:
    files.write("a.bin", b"content")
    journal.commit(Commit(artifacts=(Artifact("a.bin", None),)))
    service, sender = Service(failures=1), begun(journal, files)
    sender.hurry()
    assert pump(sender, service) == 1
    assert [artifact.name for artifact in journal.pending_artifacts()] == ["a.bin"]
    clock.now += 1
    assert pump(sender, service) == 1
    assert [data for _, data in service.files] == [b"content"]


def test_a_file_that_cannot_be_read_stops_nothing(clock, journal, files, caplog) -> None:
    """A store that is out of reach for a while is no reason to end a run; rows go on."""
    journal.commit(Commit(artifacts=(Artifact("a.bin", None),)))
    service, sender = Service(), begun(journal, files)
    sender.hurry()
    assert pump(sender, service) == 0
    assert "a.bin: reading failed" in caplog.text
    assert not sender.is_drained()
    rows = write(journal, 0, 1)
    clock.now += 1
    assert pump(sender, service) == 1
    assert service.rows == rows
    files.write("a.bin", b"content")
    clock.now += 15
    assert pump(sender, service) == 1
    assert [data for _, data in service.files] == [b"content"]
    assert sender.is_drained()


def test_in_a_hurry_nothing_waits_for_its_turn(clock, journal, files) -> None:
    service, sender = Service(), begun(journal, files)
    write(journal, 0, 1)
    sender.hurry()
    assert pump(sender, service) == 1
    write(journal, 1, 2)
    assert not sender.is_drained()
    assert pump(sender, service) == 1
    assert sender.is_drained()


def test_what_is_under_way_is_not_drained(clock, journal, files) -> None:
    sender = begun(journal, files)
    write(journal, 0, 1)
    sender.hurry()
    sender.take()
    journal.ack(1)
    assert not sender.is_drained()
    sender.succeeded("run")
    assert sender.is_drained()


def test_many_rows_that_wait_are_told_of_at_a_growing_distance(clock, journal, files, caplog, monkeypatch) -> None:
    monkeypatch.setattr(publishing, "_ALARM_ROWS", 10)
    sender, service = begun(journal, files), Service(failures=99)
    told = []
    for number in range(45):
        write(journal, number, number + 1)
        clock.now += 30
        pump(sender, service)
        if "rows wait in the journal" in caplog.text:
            told.append(number + 1)
            caplog.clear()
    assert told == [10, 20, 40]


def test_who_was_taken_over_acknowledges_nothing(tmp_path, clock, files) -> None:
    with SqliteJournal(tmp_path / "j.db") as old, SqliteJournal(tmp_path / "j.db") as new:
        old.claim()
        write(old, 0, 3)
        sender = begun(old, files)
        sender.hurry()
        assert sender.take() is not None
        new.claim()
        with pytest.raises(FencedError):
            sender.succeeded("run")
        assert new.num_pending == 3


def test_the_service_is_opened_by_the_first_batch_and_again_only_where_that_failed() -> None:
    made = []

    def make() -> Service:
        made.append(None)
        if len(made) == 1:
            raise ConnectionError("down")
        return Service()

    sending = Sending(make)
    assert not made
    with pytest.raises(ConnectionError):
        sending.send(Batch(1, ()))
    for _ in range(3):
        sending.send(Batch(1, ()))
    assert len(made) == 2


class Refusing(NullPublisher):
    def publish(self, rows) -> None:
        raise ConnectionError("down for good")


def test_the_end_of_a_run_waits_so_long_then_says_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline, "_DRAIN_S", 0.05)
    toy = toy_run(AsyncSchedule(4, 2), steps=3)
    result = run_inline(dataclasses.replace(toy.parts, make_publisher=Refusing))
    assert result.reason == "server steps done"
    assert result.unpublished_rows == toy.journal.num_pending == len(toy.journal.rows()) > 0


def test_the_end_of_a_run_waits_no_longer_than_needed() -> None:
    toy, service = toy_run(AsyncSchedule(4, 2), steps=3), Service(failures=0)
    result = run_inline(dataclasses.replace(toy.parts, make_publisher=lambda: service))
    assert result.unpublished_rows == 0
    assert service.rows == toy.journal.rows()
    assert [artifact.name for artifact, _ in service.files] == ["version-000003.safetensors"]
    assert result.wall_s < inline._DRAIN_S / 10
