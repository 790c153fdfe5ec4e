"""Availability against a microsecond-by-microsecond oracle, at ends, across the wrap, in any order of asking."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import SpecError
from atoll.population import NEVER, Always, Diurnal, Intervals

HOUR = 3_600_000_000


def make(rows, period):
    flat = [window for row in rows for window in row]
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
    return Intervals(np.array([a for a, _ in flat], int), np.array([b for _, b in flat], int), offsets, period)


@st.composite
def traces(draw):
    period = draw(st.integers(1, 24))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        marks = sorted(draw(st.sets(st.integers(0, period), max_size=8)))
        pairs = list(pairwise(marks))
        rows.append(pairs if draw(st.booleans()) else pairs[::2])  # pairs: windows that touch
    return rows, period


@settings(max_examples=150, deadline=None)
@given(traces())
def test_intervals_match_brute_force(trace):
    rows, period = trace
    law = make(rows, period)
    t = np.arange(3 * period)
    for client in range(2 * len(rows)):
        row = rows[client % len(rows)]
        open_at = np.array([any(a <= x % period < b for a, b in row) for x in range(6 * period)])
        ids = np.full(len(t), client)
        assert (law.available(0, ids, t) == open_at[: len(t)]).all()
        for x, until, following in zip(t, law.until_us(0, ids, t), law.next_us(0, ids, t), strict=True):
            if open_at.all():
                assert (until, following) == (NEVER, x)
            elif not open_at.any():
                assert (until, following) == (x, NEVER)
            else:
                assert until == x + int(np.argmin(open_at[x:]))
                assert following == x + int(np.argmax(open_at[x:]))


@settings(max_examples=40, deadline=None)
@given(traces(), st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_answers_do_not_depend_on_how_often_or_in_which_order_one_asks(trace, times):
    law = make(*trace)
    t = np.array(times)
    ids = t % 5
    together = law.next_us(0, ids, t)
    assert [int(law.next_us(0, ids[[i]], t[[i]])[0]) for i in reversed(range(len(t)))] == together[::-1].tolist()


def test_one_window_over_the_whole_period_never_ends():
    law = make([[(0, 5), (5, 10)]], 10)
    assert law.until_us(0, np.array([0]), np.array([123])).tolist() == [NEVER]


@pytest.mark.parametrize(
    ("rows", "period"),
    [
        ([[(3, 3)]], 10),
        ([[(-1, 3)]], 10),
        ([[(3, 11)]], 10),
        ([[(3, 6), (5, 8)]], 10),
        ([[(5, 8), (1, 2)]], 10),
        ([], 10),
    ],
)
def test_wrong_traces_are_refused(rows, period):
    with pytest.raises(SpecError, match="availability"):
        make(rows, period)


def test_diurnal_matches_the_clock():
    law = Diurnal(22, 8)
    ids = np.zeros(4, dtype=np.int64)
    t = np.array([21, 22, 29, 30]) * HOUR
    assert law.available(1, ids, t).tolist() == [False, True, True, False]
    assert law.until_us(1, ids, t).tolist() == [21 * HOUR, 30 * HOUR, 30 * HOUR, 30 * HOUR]
    assert law.next_us(1, ids, t).tolist() == [22 * HOUR, 22 * HOUR, 29 * HOUR, 46 * HOUR]
    # the window that began the day before still holds at the start of virtual time
    assert law.available(1, ids[:1], np.array([0])).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(-50, 50), st.floats(0.01, 30), st.floats(0, 12), st.integers(0, 10**12))
def test_diurnal_is_consistent(mean, hours, spread, t):
    law = Diurnal(mean, hours, spread)
    ids, at = np.arange(50), np.full(50, t)
    there, until, following = law.available(3, ids, at), law.until_us(3, ids, at), law.next_us(3, ids, at)
    assert ((until > at) == there).all()
    assert ((following == at) == there).all()
    assert law.available(3, ids, following).all()
    if hours < 24:
        assert not law.available(3, ids, until).any()
        assert law.available(3, ids[there], until[there] - 1).all()
    assert (law.available(3, ids, at + 24 * HOUR) == there).all()


def test_diurnal_phases_spread_over_clients():
    law = Diurnal(12, 1, 3)
    share = [law.available(5, np.arange(20_000), np.full(20_000, h * HOUR)).mean() for h in range(24)]
    assert sum(share) == pytest.approx(1, abs=0.02)
    assert np.argmax(share) in (12, 13)


def test_always():
    ids = np.arange(3)
    assert Always().available(0, ids, ids).all()
    assert Always().until_us(0, ids, ids).tolist() == [NEVER] * 3
    assert Always().next_us(0, ids, ids).tolist() == [0, 1, 2]


@pytest.mark.parametrize("arguments", [(float("nan"), 1), (1, 0), (1, -1), (1, 1, -1)])
def test_wrong_diurnals_are_refused(arguments):
    with pytest.raises(SpecError, match="availability"):
        Diurnal(*arguments)
