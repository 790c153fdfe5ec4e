"""The event loop's compiled parts against plain Python: clients in flight, and slots in the order of their events."""

from __future__ import annotations

import numpy as np
import pytest

from atoll import rng
from atoll.population import Devices, Diurnal, DrawnSizes, HalfNormal, Population
from atoll.timeline import AsyncSchedule, Timeline, kernels


def test_clients_in_flight_are_as_in_a_set():
    """Few places and many clients, so that searches run into one another, also around the end."""
    busy, plain = np.full(41, -1, dtype=np.int64), set()
    clients = rng.integers(3, 60, np.arange(5000))
    for step, client in enumerate(clients.tolist()):
        if client in plain:
            kernels._forget(busy, client)
            plain.discard(client)
        elif len(plain) < 30:
            busy[kernels._find(busy, client)] = client
            plain.add(client)
        if step % 10 == 0:
            found = kernels.are_busy(busy, np.arange(60))
            assert set(np.flatnonzero(found).tolist()) == plain


@pytest.mark.parametrize("count", [1, 2, 5, 64, 100])
def test_the_tree_gives_the_lowest_slot_of_the_earliest_event(count):
    slots = kernels.new_slots(count, 1, -1, distinct=False)
    times = np.full(count, np.iinfo(np.int64).max)
    drawn = rng.integers(5, 7, np.arange(400))
    for step, slot in enumerate(rng.integers(4, count, np.arange(400)).tolist()):
        times[slot] = drawn[step]
        kernels._set(slots.tree, slot, times[slot])
        assert (slots.tree[1], kernels._first(slots.tree)) == (times.min(), times.argmin())


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("distinct", [True, False])
def test_reading_ahead_changes_no_slot(alike, distinct):
    """Also where so many events coincide that they cannot all be read ahead for, and where tasks are not drawn yet."""
    count = 5000
    slots = kernels.new_slots(count, 1, -1, distinct=distinct)
    for slot in range(count):
        kernels._set(slots.tree, slot, 7 if alike else int(rng.integers(6, 10**6, np.array(slot))))
    first, drawn = np.full(count, -2, dtype=np.int64), np.full((count, 2, 1, 3), -1, dtype=np.int64)
    before = [array.copy() for array in (slots.table, slots.tree, slots.busy, slots.now[:-2], first, drawn)]
    kernels._touch(*slots, first, drawn)
    for old, new in zip(before, (slots.table, slots.tree, slots.busy, slots.now[:-2], first, drawn), strict=True):
        np.testing.assert_array_equal(old, new)
    assert slots.tree[1] <= slots.now[-2]  # or the very next event would ask again


def test_with_many_slots_the_loop_gives_the_rows_of_the_window_engine():
    population = Population(1, 10**6, Devices(HalfNormal(600), dropout=0.1), DrawnSizes())
    assert kernels._MANY < 5000
    loop, window = (Timeline(population, AsyncSchedule(5000, 50), 2, engine=engine) for engine in ("heap", "window"))
    assert (loop.advance(300).rows == window.advance(300).rows).all()


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("size", [60, 10**6])
def test_where_clients_come_and_go_no_client_is_in_flight_twice(size, limit):
    """As many clients as 50 tasks can use, whose assumed order breaks all the time; and so many that it rarely does."""
    population = Population(1, size, Devices(HalfNormal(600), dropout=0.1), DrawnSizes(), Diurnal(12, 16, 4))
    rows = Timeline(population, AsyncSchedule(50, 5, limit, "without_replacement"), 2).advance(300).rows
    assert population.available(rows["client_id"], rows["start_us"]).all()
    order = np.lexsort((rows["start_us"], rows["client_id"]))
    ordered = rows[order]
    again = np.flatnonzero(np.diff(ordered["client_id"]) == 0)
    assert size > 60 or len(again) > 100
    assert (ordered["start_us"][again + 1] >= ordered["finish_us"][again]).all()
