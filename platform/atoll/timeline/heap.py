"""The event loop: every asynchronous policy, one event at a time, from a binary heap."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from atoll.population import NEVER, Outcome, Population
from atoll.timeline.records import ROW, Batch
from atoll.timeline.schedules import AsyncSchedule
from atoll.timeline.selection import SLOT_SHIFT, Selector

__all__ = ["HeapLoop"]

I64 = npt.NDArray[np.int64]

_BATCH_ROWS = 4096
_USED, _INTERRUPTED, _STALE = int(Outcome.USED), int(Outcome.INTERRUPTED), int(Outcome.STALE)


class _Draws:
    """First candidate and draw of each slot's coming ordinals, in blocks, since single draws cost NumPy's overhead."""

    def __init__(self, selector: Selector, concurrency: int) -> None:
        self._selector = selector
        self._width = max(8, min(64, 2**17 // concurrency))
        self._first = np.zeros(concurrency, dtype=np.int64)
        self._columns = np.zeros((concurrency, self._width, 4), dtype=np.int64)
        self._fill(np.arange(concurrency))

    def _fill(self, slots: I64) -> None:
        ordinals = self._first[slots][:, None] + np.arange(self._width)
        task_ids = (slots[:, None] << SLOT_SHIFT) + ordinals
        clients = self._selector.candidate(task_ids, 0)
        draw = self._selector.population.draw(clients, task_ids, self._selector.cluster)
        columns = (clients, draw.duration_us, draw.outcome, draw.num_examples)
        self._columns[slots] = np.stack(columns, axis=-1)

    def take(self, slot: int, ordinals: list[int]) -> list[int]:
        """[client, duration_us, outcome, num_examples] of the slot's current ordinal; ordinals never go back."""
        position = ordinals[slot] - self._first.item(slot)
        if position >= self._width:
            # whoever has used half of its block is refilled along: few large draws instead of many small ones
            current = np.array(ordinals, dtype=np.int64)
            slots = np.flatnonzero(current - self._first >= self._width // 2)
            self._first[slots] = current[slots]
            self._fill(slots)
            position = 0
        drawn: list[int] = self._columns[slot, position].tolist()
        return drawn


class HeapLoop:
    """Iterates over batches of the asynchronous timeline, without end.

    One instant at a time: arrivals by task id (each `buffer_goal`-th closes a step), then aborts for staleness, then
    starts. Every start sees the version made by all arrivals up to and including its instant.

    Errors: PlanError while iterating, where nobody ever becomes available.
    """

    def __init__(self, population: Population, schedule: AsyncSchedule, seed: int, cluster: int = 0) -> None:
        self._population = population
        self._schedule = schedule
        self._selector = Selector(population, seed, cluster)
        self._always = population.always_available
        self._distinct = schedule.sampling == "without_replacement"
        count = schedule.concurrency
        self._draws = _Draws(self._selector, count)
        self._ordinal = [0] * count
        # client, start_us, finish_us, outcome, num_examples of the slot's current task
        self._task: list[tuple[int, int, int, int, int]] = [(0, 0, 0, 0, 0)] * count
        self._version_of = [-1] * count
        self._running: list[tuple[int, int]] = []
        self._waiting: list[tuple[int, int]] = []
        self._started: deque[tuple[int, list[int]]] = deque()
        self._busy: set[int] = set()
        self._arrived = 0
        self._rows: list[tuple[int, ...]] = []
        self._ends: list[int] = []
        self._closed: list[int] = []

    def __iter__(self) -> Iterator[Batch]:
        for slot in range(self._schedule.concurrency):
            self._select(slot, 0)
        wanted = 64
        while True:
            now = min(queue[0][0] for queue in (self._running, self._waiting) if queue)
            freed = self._arrivals(now)
            freed += self._aborts(now)
            for slot in sorted(freed):
                self._ordinal[slot] += 1
                self._select(slot, now)
            while self._waiting and self._waiting[0][0] == now:
                _, task_id = heapq.heappop(self._waiting)
                self._begin(task_id >> SLOT_SHIFT, task_id)
            if len(self._rows) >= wanted:
                yield self._flush()
                wanted = min(2 * wanted, _BATCH_ROWS)

    def pending(self) -> tuple[I64, I64]:
        """(start_us, finish_us) of the tasks that run or wait after the last batch."""
        tasks = np.array(self._task, dtype=np.int64)
        return tasks[:, 1], tasks[:, 2]

    def pending_versions(self) -> npt.NDArray[np.int32]:
        """Start versions of the tasks that run after the last batch."""
        version = np.array(self._version_of, dtype=np.int32)
        return version[version >= 0]

    def _flush(self) -> Batch:
        batch = Batch(
            np.array(self._rows, dtype=ROW),
            np.array(self._ends, dtype=np.int64),
            np.array(self._closed, dtype=np.int64),
        )
        self._rows, self._ends, self._closed = [], [], []
        return batch

    def _emit(self, slot: int, finish: int, step: int, outcome: int) -> None:
        client, start, _, _, examples = self._task[slot]
        task_id = slot << SLOT_SHIFT | self._ordinal[slot]
        self._rows.append((task_id, client, start, finish, self._version_of[slot], step, examples, outcome))
        self._version_of[slot] = -1
        if self._distinct:
            self._busy.discard(client)

    def _arrivals(self, now: int) -> list[int]:
        goal, limit = self._schedule.buffer_goal, self._schedule.max_staleness
        freed = []
        while self._running and self._running[0][0] == now:
            _, task_id = heapq.heappop(self._running)
            slot = task_id >> SLOT_SHIFT
            if task_id != slot << SLOT_SHIFT | self._ordinal[slot] or self._version_of[slot] < 0:
                continue  # aborted earlier
            outcome = self._task[slot][3]
            version = self._arrived // goal
            if outcome == _USED and limit is not None and version - self._version_of[slot] > limit:
                continue  # a step of this very instant made it too stale: `_aborts` finds it
            freed.append(slot)
            self._emit(slot, now, version if outcome == _USED else -1, outcome)
            if outcome == _USED:
                self._arrived += 1
                if self._arrived % goal == 0:
                    self._ends.append(len(self._rows))
                    self._closed.append(now)
        return freed

    def _aborts(self, now: int) -> list[int]:
        limit = self._schedule.max_staleness
        if limit is None:
            return []
        oldest = self._arrived // self._schedule.buffer_goal - limit
        stale: list[int] = []
        while self._started and self._started[0][0] < oldest:
            version, slots = self._started.popleft()
            stale += [slot for slot in slots if self._version_of[slot] == version]
        stale = sorted(set(stale))
        for slot in stale:
            self._emit(slot, now, -1, _STALE)
        return stale

    def _select(self, slot: int, now: int) -> None:
        task_id = slot << SLOT_SHIFT | self._ordinal[slot]
        client, duration, outcome, examples = self._draws.take(slot, self._ordinal)
        start, finish = now, now + duration
        until = NEVER if self._always else int(self._population.until_us(np.array([client]), np.array([now]))[0])
        if until > now and not (self._distinct and client in self._busy):
            if finish > until:
                finish, outcome = until, _INTERRUPTED
        else:
            client, start = self._selector.choose_free(task_id, now, self._busy)
            part = self._population.participation(
                np.array([client]), np.array([task_id]), np.array([start]), self._selector.cluster
            )
            finish, outcome, examples = int(part.finish_us[0]), int(part.outcome[0]), int(part.num_examples[0])
        self._task[slot] = (client, start, finish, outcome, examples)
        if self._distinct:
            self._busy.add(client)
        if start == now:
            self._begin(slot, task_id)
        else:
            heapq.heappush(self._waiting, (start, task_id))

    def _begin(self, slot: int, task_id: int) -> None:
        version = self._arrived // self._schedule.buffer_goal
        self._version_of[slot] = version
        heapq.heappush(self._running, (self._task[slot][2], task_id))
        if self._schedule.max_staleness is not None:
            if not self._started or self._started[-1][0] != version:
                self._started.append((version, []))
            self._started[-1][1].append(slot)
