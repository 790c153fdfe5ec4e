"""The event loop: every asynchronous policy, one instant at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from atoll.population import Population
from atoll.timeline.records import ROW, Batch, join
from atoll.timeline.schedules import AsyncSchedule
from atoll.timeline.selection import END_US, SLOT_SHIFT, Selector

__all__ = ["HeapLoop"]

I64 = npt.NDArray[np.int64]

_BATCH_ROWS = 2**14
_CACHE_ROWS = 2**14  # tasks drawn together, so that temporaries stay in the second-level cache
_DRAWN = 2**17  # tasks drawn ahead, over all slots
_MOST_PLACES, _FEWEST_PLACES = 64, 8
_FEW = 4  # places drawn for slots whose tasks no longer hold, unless all slots are drawn along
_MOST_ATTEMPTS = 8
_ASKED = 3  # column of a drawn task


class HeapLoop:
    """Iterates over batches of the asynchronous timeline, without end.

    One instant at a time: arrivals by task id (each `buffer_goal`-th closes a step), then aborts for staleness, then
    starts. Every start sees the version made by all arrivals up to and including its instant.

    Tasks are drawn ahead in blocks, since single draws cost NumPy's overhead: where everybody is available, whatever
    the start; where clients come and go, under the assumption that each slot's tasks follow one another. An abort, or
    a client that is in flight already, breaks the assumption: then the slot's tasks are drawn again.

    Errors: PlanError while iterating, where nobody ever becomes available.
    """

    def __init__(self, population: Population, schedule: AsyncSchedule, seed: int, cluster: int = 0) -> None:
        from atoll.timeline import kernels

        self._kernels = kernels
        self._population = population
        self._schedule = schedule
        self._selector = Selector(population, seed, cluster)
        self._always = population.always_available
        count = schedule.concurrency
        limit = -1 if schedule.max_staleness is None else schedule.max_staleness
        distinct = schedule.sampling == "without_replacement"
        self._slots = kernels.new_slots(count, schedule.buffer_goal, limit, distinct=distinct)
        self._ordinals: I64 = self._slots.table[:-1, kernels.ORDINAL]
        self._ready: I64 = self._slots.table[:-1, kernels.READY]
        attempts = _attempts(count / population.num_members) if distinct and self._always else 1
        places = max(_FEWEST_PLACES, min(_MOST_PLACES, _DRAWN // (count * attempts)))
        columns = kernels.ALWAYS_COLUMNS if self._always else kernels.COLUMNS
        drawn = np.full((count, places, attempts, columns), -1, dtype=np.int64)
        self._first = np.full(count, -places, dtype=np.int64)
        self._drawn = drawn

    def __iter__(self) -> Iterator[Batch]:
        schedule, slots, kernels = self._schedule, self._slots, self._kernels
        wanted = 64
        while True:
            most = wanted + schedule.concurrency  # an instant is never cut
            rows = np.empty(most, dtype=ROW)
            ends, closed = np.empty((2, most // schedule.buffer_goal + 1), dtype=np.int64)
            wide, narrow = rows.view(np.int64).reshape(-1, 6), rows.view(np.int32).reshape(-1, 12)
            out = (self._always, wanted, wide, narrow, ends, closed)
            while why := kernels.advance(*slots, self._first, self._drawn, *out):
                self._help(why)
            num_rows, num_steps = kernels.take_counts(slots)
            # copies: a view would keep the whole block alive
            yield Batch(join([rows[:num_rows]]), ends[:num_steps].copy(), closed[:num_steps].copy())
            wanted = min(2 * wanted, _BATCH_ROWS)

    def pending(self) -> tuple[I64, I64]:
        """(start_us, finish_us) of the tasks that run or wait after the last batch."""
        table = self._slots.table[:-1]
        return table[:, self._kernels.START], table[:, self._kernels.FINISH]

    def pending_versions(self) -> npt.NDArray[np.int32]:
        """Start versions of the tasks that run after the last batch."""
        version = self._slots.table[:-1, self._kernels.VERSION]
        return version[version >= 0].astype(np.int32)

    def _help(self, why: int) -> None:
        """Draws tasks, or starts the one that was not foreseen."""
        kernels, slots = self._kernels, self._slots
        slot, now = kernels.next_slot(slots)
        if why == kernels.NEED:
            self._draw()
            if self._always or self._drawn[slot, 0, 0, _ASKED] == now:
                return
        task_id = (slot << SLOT_SHIFT) + int(self._ordinals[slot])
        client, start = self._selector.choose_free(task_id, now, lambda clients: kernels.are_busy(slots.busy, clients))
        columns = np.array([[client], [task_id], [start]])
        part = self._population.participation(columns[0], columns[1], columns[2], self._selector.cluster)
        finish, outcome, examples = part.finish_us[0], part.outcome[0], part.num_examples[0]
        kernels.start_next(*slots, client, start, int(finish), int(outcome), int(examples))

    def _draw(self) -> None:
        """Draws the tasks of all slots that have used half of theirs, or whose tasks do not hold."""
        first, drawn = self._first, self._drawn
        places = drawn.shape[1]
        place = self._ordinals - first
        low = place >= places // 2
        if self._always:
            slots = np.flatnonzero(low)
            self._draw_any_time(slots)
            first[slots] = self._ordinals[slots]
            return
        asked = drawn[np.arange(len(place)), np.minimum(place, places - 1), 0, _ASKED]
        slots = np.flatnonzero(low | (asked != self._ready))
        first[slots] = self._ordinals[slots]
        self._draw_one_after_another(slots, places if 4 * len(slots) >= len(place) else _FEW)

    def _draw_any_time(self, slots: I64) -> None:
        _, places, attempts, _ = self._drawn.shape
        per_block = max(1, _CACHE_ROWS // places)
        for begin in range(0, len(slots), per_block):
            some = slots[begin : begin + per_block, None]
            task_ids = (some << SLOT_SHIFT) + self._ordinals[some] + np.arange(places)
            for attempt in range(attempts):
                clients = self._selector.candidate(task_ids, attempt)
                draw = self._population.draw(clients, task_ids, self._selector.cluster)
                both = (draw.num_examples << 8) | draw.outcome
                self._drawn[some[:, 0], :, attempt] = np.stack((clients, draw.duration_us, both), axis=-1)

    def _draw_one_after_another(self, slots: I64, places: int) -> None:
        drawn = self._drawn
        drawn[slots, :, 0, _ASKED] = -1
        asked, task_ids = self._ready[slots], (slots << SLOT_SHIFT) + self._ordinals[slots]
        for place in range(places):
            clients, start = self._selector.earliest(task_ids + place, asked)
            ever = np.flatnonzero(start < END_US)
            slots, task_ids, asked, clients, start = (a[ever] for a in (slots, task_ids, asked, clients, start))
            part = self._population.participation(clients, task_ids + place, start, self._selector.cluster)
            both = (part.num_examples << 8) | part.outcome
            drawn[slots, place, 0] = np.stack((clients, part.finish_us, both, asked, start), axis=-1)
            asked = part.finish_us


def _attempts(crowding: float) -> int:
    """So many candidates that hardly ever all are in flight."""
    attempts = 1
    while crowding**attempts > 2e-4 and attempts < _MOST_ATTEMPTS:
        attempts += 1
    return attempts
