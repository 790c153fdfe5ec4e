"""Who owes an answer for too long; the clock is a plain number."""

from __future__ import annotations

import pytest

from atoll.runtime.deadlines import Deadlines


def test_who_owes_nothing_is_never_overdue() -> None:
    deadlines = Deadlines(10.0)
    assert deadlines.overdue(1e9) == {}
    deadlines.sent("pool", 0.0)
    deadlines.answered("pool", 9.0)
    assert deadlines.overdue(1e9) == {}


def test_a_limit_that_was_set_counts_from_the_first_call() -> None:
    deadlines = Deadlines(10.0)
    deadlines.sent("pool", 0.0)
    assert deadlines.overdue(10.0) == {}
    assert deadlines.overdue(10.5).keys() == {"pool"}


def test_a_call_that_waits_behind_another_has_its_time_from_that_ones_answer() -> None:
    deadlines = Deadlines(10.0)
    deadlines.sent("pool", 0.0)
    deadlines.sent("pool", 1.0)
    assert deadlines.overdue(9.0) == {}
    deadlines.answered("pool", 9.0)
    assert deadlines.overdue(18.0) == {}, "it works on the second one since 9 s only"
    assert deadlines.overdue(19.5).keys() == {"pool"}
    deadlines.answered("pool", 19.6)
    assert deadlines.overdue(1e9) == {}


def test_a_second_call_gives_the_first_no_more_time() -> None:
    deadlines = Deadlines(10.0)
    deadlines.sent("pool", 0.0)
    deadlines.sent("pool", 9.9)
    assert deadlines.overdue(10.1).keys() == {"pool"}


def test_owners_are_told_apart() -> None:
    deadlines = Deadlines(10.0)
    for owner, now in ((0, 0.0), ("aggregator", 5.0), (1, 7.0)):
        deadlines.sent(owner, now)
    assert list(deadlines.overdue(12.0)) == [0]
    assert list(deadlines.overdue(16.0)) == [0, "aggregator"]
    assert list(deadlines.overdue(18.0)) == [0, "aggregator", 1]


def test_who_was_replaced_owes_nothing_and_a_late_answer_of_it_is_none() -> None:
    deadlines = Deadlines(10.0)
    deadlines.sent(0, 0.0)
    deadlines.sent(0, 0.0)
    deadlines.forget(0)
    assert deadlines.overdue(99.0) == {}
    deadlines.answered(0, 99.0)
    deadlines.forget(0)
    deadlines.sent(0, 100.0)
    assert deadlines.overdue(109.0) == {}
    assert list(deadlines.overdue(111.0)) == [0]


@pytest.mark.parametrize(("longest", "allowed"), [(0.0, 60.0), (1.0, 60.0), (3.0, 60.0), (4.0, 80.0), (30.0, 600.0)])
def test_without_a_limit_it_is_twenty_times_the_longest_and_a_minute_at_least(longest: float, allowed: float) -> None:
    deadlines = Deadlines(None)
    for owner, seconds in enumerate((longest, longest / 2)):
        deadlines.sent(owner, 100.0)
        deadlines.answered(owner, 100.0 + seconds)
    assert deadlines.allowed_s == allowed
    deadlines.sent("pool", 200.0)
    assert deadlines.overdue(200.0 + allowed) == {}
    assert deadlines.overdue(200.1 + allowed).keys() == {"pool"}


def test_waiting_in_line_does_not_make_a_call_long() -> None:
    """Two calls of 5 s each, sent together, are two calls of 5 s."""
    deadlines = Deadlines(None)
    deadlines.sent("pool", 0.0)
    deadlines.sent("pool", 0.0)
    deadlines.answered("pool", 5.0)
    deadlines.answered("pool", 10.0)
    assert deadlines.allowed_s == 100.0


def test_a_limit_that_was_set_does_not_grow() -> None:
    deadlines = Deadlines(10.0)
    deadlines.sent("pool", 0.0)
    deadlines.answered("pool", 9.0)
    assert deadlines.allowed_s == 10.0


def test_a_false_alarm_allows_more_the_next_time() -> None:
    """Work may honestly take longer than anything before: it must not be ended for ever."""
    deadlines = Deadlines(None)
    now = 0.0
    for allowed in (60.0, 120.0, 240.0):
        deadlines.sent("pool", now)
        assert deadlines.overdue(now + allowed) == {}
        assert deadlines.overdue(now + allowed + 1) == {"pool": allowed}
        now += 1000.0
        deadlines.forget_all()
    fixed = Deadlines(5.0)
    fixed.sent("pool", 0.0)
    assert fixed.overdue(6.0) == fixed.overdue(7.0) == {"pool": 5.0}, "what a person sets stays"
