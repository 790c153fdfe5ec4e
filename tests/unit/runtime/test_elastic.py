"""How many client pools the open work can keep busy."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from atoll.runtime.elastic import OpenWork, Sizing, together

WORKS = st.builds(OpenWork, st.integers(0, 50), st.none() | st.floats(0.0, 5.0))


@given(works=st.lists(WORKS, min_size=1, max_size=20), least=st.integers(1, 5), more=st.integers(0, 20))
def test_always_between_its_bounds_and_never_under_what_is_wanted_now(works: list[OpenWork], least: int, more: int):
    sizing = Sizing(least, least + more)
    for now, work in enumerate(works):
        wanted = sizing.wanted(work, float(now))
        assert least <= wanted <= least + more
        if work.seconds is not None:
            assert wanted >= min(work.blocks, int(work.seconds / 0.015), least + more)


def test_grows_at_once_and_shrinks_after_ten_seconds() -> None:
    sizing = Sizing(1, 8)
    assert sizing.wanted(OpenWork(20, 3.0), 0.0) == 8
    assert sizing.wanted(OpenWork(2, 3.0), 1.0) == 8, "a step's end"
    assert sizing.wanted(OpenWork(4, 3.0), 9.0) == 8
    assert sizing.wanted(OpenWork(1, 3.0), 10.5) == 4, "the most of the last ten seconds"
    assert sizing.wanted(OpenWork(1, 3.0), 25.0) == 1


def test_small_work_is_not_worth_more_pools() -> None:
    sizing = Sizing(1, 8)
    assert sizing.wanted(OpenWork(100, 0.004), 0.0) == 1
    assert sizing.wanted(OpenWork(100, 0.05), 1.0) == 4
    assert sizing.wanted(OpenWork(2, 50.0), 20.0) == 2, "no more than there are blocks"


def test_what_nobody_knows_the_cost_of_is_counted_after_two_seconds() -> None:
    sizing = Sizing(1, 8)
    assert sizing.wanted(OpenWork(0, None), 0.0) == 1
    assert sizing.wanted(OpenWork(6, None), 5.0) == 1
    assert sizing.wanted(OpenWork(6, None), 6.9) == 1
    assert sizing.wanted(OpenWork(6, None), 7.1) == 6, "the first block takes long: it is large"


def test_work_of_several_runs_is_added() -> None:
    assert together([OpenWork(3, 1.0), OpenWork(4, None), OpenWork(1, 0.5)]) == OpenWork(8, 1.5)
    assert together([OpenWork(3, None)]) == OpenWork(3, None)
    assert together([]) == OpenWork(0, None)
