"""The drain of the outbox: what fails stays, order stands, waiting grows. The clock is a plain number here."""

from __future__ import annotations

import pytest

from atoll.runtime import publishing
from atoll.runtime.publishing import BATCH_ROWS, Publishing


class Clock:
    """Monotonic time that moves by sleeping alone."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Queue:
    """An outbox in memory."""

    def __init__(self, rows: int) -> None:
        self.rows = [("key", number, 1.0, 0) for number in range(rows)]
        self.acked = 0
        self.acks: list[int] = []

    def pending(self, limit):
        found = self.rows[self.acked : self.acked + limit]
        return self.acked + len(found), found

    def ack(self, last_id: int) -> None:
        assert last_id > self.acked
        self.acked = last_id
        self.acks.append(last_id)


class Service:
    """Takes rows, unless told to fail the next calls."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.calls, self.taken = failures, 0, []

    def __call__(self, rows) -> None:
        self.calls += 1
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no route")
        self.taken.extend(rows)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(publishing, "time", made)
    return made


def test_batches_are_acknowledged_in_order(clock: Clock) -> None:
    outbox, service = Queue(2 * BATCH_ROWS + 1), Service()
    sender = Publishing(outbox)
    clock.now += 10
    sender.publish(service)
    assert outbox.acks == [BATCH_ROWS, 2 * BATCH_ROWS, 2 * BATCH_ROWS + 1]
    assert service.taken == outbox.rows


def test_not_before_its_time(clock: Clock) -> None:
    outbox, service = Queue(3), Service()
    sender = Publishing(outbox)
    sender.publish(service)
    assert service.calls == 0
    clock.now += 2.0
    sender.publish(service)
    assert service.calls == 1
    outbox.rows.append(("key", 3, 1.0, 0))
    clock.now += 1.9
    sender.publish(service)
    assert service.calls == 1
    clock.now += 0.2
    sender.publish(service)
    assert service.taken == outbox.rows


def test_failures_keep_rows_and_wait_longer_each_time(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    outbox, service = Queue(5), Service(failures=7)
    sender = Publishing(outbox)
    clock.now += 2.0
    waits = []
    for _ in range(7):
        assert sender.is_due()
        sender.publish(service)
        assert outbox.acked == 0
        began = clock.now
        while not sender.is_due():
            clock.now += 0.5
        waits.append(clock.now - began)
    assert waits == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    assert service.calls == 7
    sender.publish(service)
    assert service.taken == outbox.rows
    assert "no route" in caplog.text
    assert "stay in the outbox" in caplog.text


def test_a_success_forgets_the_failures(clock: Clock) -> None:
    outbox, service = Queue(1), Service(failures=3)
    sender = Publishing(outbox)
    for _ in range(4):
        clock.now += 30
        sender.publish(service)
    assert outbox.acks == [1]
    outbox.rows.append(("key", 1, 1.0, 0))
    service.failures = 1
    clock.now += 30
    sender.publish(service)
    clock.now += 1.0
    assert sender.is_due()


def test_a_failure_between_batches_keeps_the_rest(clock: Clock) -> None:
    outbox = Queue(BATCH_ROWS + 5)
    calls = []

    def send(rows) -> None:
        calls.append(len(rows))
        if len(calls) == 2:
            raise OSError("gone")

    sender = Publishing(outbox)
    clock.now += 2
    sender.publish(send)
    assert outbox.acks == [BATCH_ROWS]
    clock.now += 1
    sender.publish(send)
    assert calls == [BATCH_ROWS, 5, 5]
    assert outbox.acks == [BATCH_ROWS, BATCH_ROWS + 5]


def test_drain_tries_for_half_a_minute_then_says_what_is_left(clock: Clock) -> None:
    outbox, service = Queue(4), Service(failures=99)
    assert Publishing(outbox).drain(service) == 4
    assert sum(clock.slept) == pytest.approx(30, abs=5)
    assert service.calls == 6
    assert outbox.acked == 0


def test_drain_ends_as_soon_as_everything_is_taken(clock: Clock) -> None:
    outbox, service = Queue(4), Service(failures=2)
    assert Publishing(outbox).drain(service) == 0
    assert service.calls == 3
    assert sum(clock.slept) == 3.0


def test_what_ctrl_c_raises_is_not_a_failure_of_the_service(clock: Clock) -> None:
    def interrupted(rows) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Publishing(Queue(1)).drain(interrupted)
