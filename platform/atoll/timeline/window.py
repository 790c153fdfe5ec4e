"""The vectorised asynchronous engine: each slot is a renewal process of its own, so whole windows are drawn at once.

With sampling by replacement and no staleness limit, when a slot's tasks start and end does not depend on other slots;
only the versions do, and those follow from sorting the window. State is a few numbers per slot, however large N.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from atoll.population import Outcome, Population
from atoll.timeline.records import ROW, Batch, Rows, join
from atoll.timeline.schedules import AsyncSchedule
from atoll.timeline.selection import SLOT_SHIFT, Selector

__all__ = ["WindowEngine"]

I64 = npt.NDArray[np.int64]

_CACHE_ROWS = 2**14  # rows drawn together, so that temporaries stay in the second-level cache
_WINDOW_ROWS = 2**17  # completions per window once the timeline is under way
_USED = int(Outcome.USED)


def _event_order(finish: I64, task_id: I64) -> I64:
    """Indices that sort by (finish, task_id)."""
    order = _order(finish)
    ordered = finish[order]
    same = ordered[1:] == ordered[:-1]
    if same.any():
        tied = np.zeros(len(order), dtype=np.bool_)
        tied[1:] |= same
        tied[:-1] |= same
        members = order[tied]
        order[tied] = members[np.lexsort((task_id[members], finish[members]))]
    return order


def _order(times: I64) -> I64:
    """Indices that sort the times, ties in any order: one fast sort of packed keys."""
    count = len(times)
    if not count:
        return np.empty(0, dtype=np.int64)
    low = int(times.min())
    bits = max(1, (count - 1).bit_length())
    if (int(times.max()) - low).bit_length() + bits > 62:
        return np.argsort(times)
    packed = times - low
    packed <<= bits
    packed |= np.arange(count)
    packed.sort()
    packed &= (1 << bits) - 1
    return packed


class WindowEngine:
    """Iterates over batches of the asynchronous timeline, without end: the same rows as `HeapLoop`.

    Needs `sampling: with_replacement` and no max_staleness.

    Errors: PlanError while iterating, where nobody ever becomes available.
    """

    def __init__(self, population: Population, schedule: AsyncSchedule, seed: int, cluster: int = 0) -> None:
        self._population = population
        self._selector = Selector(population, seed, cluster)
        self._goal = schedule.buffer_goal
        self._ordinal = np.zeros(schedule.concurrency, dtype=np.int64)
        self._frontier = np.zeros(schedule.concurrency, dtype=np.int64)  # when the slot's last drawn task ends
        self._drawn: list[Rows] = []  # not yet given out; version −1 until the start lies in a finished window
        self._mean_us = 1.0
        self._arrived = 0

    def __iter__(self) -> Iterator[Batch]:
        count = len(self._frontier)
        self._draw(np.arange(count), 1)
        self._mean_us = max(1.0, float(self._frontier.mean()))
        target = max(1024, 4 * count)
        span, horizon = self._mean_us * target / count, 0
        while True:
            horizon += max(1, int(span))
            self._extend(horizon)
            batch = self._close(horizon)
            rows = len(batch.rows)
            target = min(2 * target, max(_WINDOW_ROWS, 2 * count))
            # only the size of windows follows the rate; the rows do not depend on it
            span *= min(4.0, max(0.25, target / max(rows, 1)))
            if rows:
                yield batch

    def pending(self) -> tuple[I64, I64]:
        """(start_us, finish_us) of the tasks drawn and not yet yielded."""
        rows = join(self._drawn)
        return rows["start_us"], rows["finish_us"]

    def pending_versions(self) -> npt.NDArray[np.int32]:
        """Start versions of the tasks drawn and not yet yielded, where known already."""
        version = np.concatenate([rows["start_version"] for rows in self._drawn])
        return version[version >= 0]

    def _extend(self, horizon: int) -> None:
        """Draws tasks until every slot's last one ends at the horizon or later."""
        while True:
            slots = np.flatnonzero(self._frontier < horizon)
            if not slots.size:
                return
            width = 1
            if self._population.always_available:
                gap = horizon - float(self._frontier[slots].mean())
                width = max(1, min(math.ceil(gap / self._mean_us), 4 * _WINDOW_ROWS // slots.size))
            per_block = max(1, _CACHE_ROWS // width)
            for first in range(0, slots.size, per_block):
                self._draw(slots[first : first + per_block], width)

    def _draw(self, slots: I64, width: int) -> None:
        """The next `width` tasks of each slot."""
        ordinals = self._ordinal[slots][:, None] + np.arange(width)
        task_id = ((slots[:, None] << SLOT_SHIFT) + ordinals).reshape(-1)
        if self._population.always_available:
            client = self._selector.candidate(task_id, 0)
            draw = self._population.draw(client, task_id, self._selector.cluster)
            duration = draw.duration_us.reshape(ordinals.shape)
            ends = self._frontier[slots][:, None] + np.cumsum(duration, axis=1)
            start, finish = (ends - duration).reshape(-1), ends.reshape(-1)
            outcome, examples = draw.outcome, draw.num_examples
        else:
            client, start = self._selector.choose(task_id, self._frontier[slots])
            part = self._population.participation(client, task_id, start, self._selector.cluster)
            finish, outcome, examples = part.finish_us, part.outcome, part.num_examples
            ends = finish[:, None]
        self._ordinal[slots] += width
        self._frontier[slots] = ends[:, -1]
        rows = np.empty(len(task_id), dtype=ROW)
        rows["task_id"], rows["client_id"], rows["start_us"], rows["finish_us"] = task_id, client, start, finish
        rows["start_version"], rows["num_examples"], rows["outcome"] = -1, examples, outcome
        self._drawn.append(rows)

    def _close(self, horizon: int) -> Batch:
        """Everything that ends at the horizon or before."""
        drawn = join(self._drawn)
        finish = np.ascontiguousarray(drawn["finish_us"])
        done = finish <= horizon
        ready, later = np.flatnonzero(done), np.flatnonzero(~done)
        finish = finish.take(ready)
        order = _event_order(finish, drawn["task_id"][ready])
        # `take` copies whole rows, indexing by an array field by field
        rows, finish, rest = drawn.take(ready.take(order)), finish.take(order), drawn.take(later)
        used = rows["outcome"] == _USED
        arrivals = finish[used]
        for part in (rows, rest):
            self._set_versions(part, arrivals, horizon)
        rank = np.cumsum(used) + (self._arrived - 1)
        step, place = np.divmod(rank, self._goal)
        rows["step"] = np.where(used, step, -1)
        self._drawn = [rest]
        self._arrived += len(arrivals)
        ends = np.flatnonzero(used & (place == self._goal - 1)) + 1
        return Batch(rows, ends, finish[ends - 1])

    def _set_versions(self, rows: Rows, arrivals: I64, horizon: int) -> None:
        """Versions of the tasks that start in this window: as many steps as the arrivals up to then closed."""
        fresh = np.flatnonzero((rows["start_version"] < 0) & (rows["start_us"] <= horizon))
        start = rows["start_us"][fresh]
        order = _order(start)  # a search for ascending numbers runs through the cache
        before = np.searchsorted(arrivals, start[order], side="right") + self._arrived
        rows["start_version"][fresh[order]] = before // self._goal
