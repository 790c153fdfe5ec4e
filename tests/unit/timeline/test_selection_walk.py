"""Without replacement, with as many tasks as clients that ever come: the last free one is found."""

from __future__ import annotations

import numpy as np
import pytest

from atoll.errors import PlanError
from atoll.population import Constant, Devices, DrawnSizes, Intervals, Population
from atoll.timeline import AsyncSchedule, Timeline

SECOND = 1_000_000


def some_never_come(size: int = 40) -> Population:
    """Two of three clients follow a trace; the third never comes: 27 of 40 do."""
    trace = Intervals(
        np.array([0, 5]) * SECOND, np.array([12, 9]) * SECOND, np.array([0, 1, 2, 2]), period_us=30 * SECOND
    )
    return Population(0, size, Devices(Constant(2.0)), DrawnSizes(), availability=trace)


@pytest.mark.parametrize("concurrency", [26, 27])
def test_everybody_who_comes_can_be_in_flight(concurrency: int) -> None:
    rows = Timeline(some_never_come(), AsyncSchedule(concurrency, 1, None, "without_replacement"), 3).advance(60).rows
    assert set((rows["client_id"] % 3).tolist()) <= {0, 1}


def test_one_more_than_ever_come_is_refused() -> None:
    timeline = Timeline(some_never_come(), AsyncSchedule(28, 1, None, "without_replacement"), 3)
    with pytest.raises(PlanError, match=r"population\.availability"):
        timeline.advance(1)
