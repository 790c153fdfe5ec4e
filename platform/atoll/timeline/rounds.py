"""Synchronous rounds: over-selection, replacement of drop-outs, deadlines."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from atoll import rng
from atoll.errors import PlanError, Problem
from atoll.population import NEVER, Outcome, Population
from atoll.timeline.records import ROW, Batch, Rows, join
from atoll.timeline.schedules import SyncSchedule
from atoll.timeline.selection import SLOT_SHIFT, never_available

__all__ = ["RoundLoop"]

I64 = npt.NDArray[np.int64]

_MAX_ASKED = 64
_BATCH_ROWS = 2**13
_MAX_TRIES = 100
_USED, _ABORTED = int(Outcome.USED), int(Outcome.ABORTED)


class _Tasks(NamedTuple):
    """Columns of tasks: position, client, start_us, finish_us, outcome, num_examples; int64, one element each."""

    position: I64
    client: I64
    start: I64
    finish: I64
    outcome: I64
    examples: I64


def _stream(seed: int, cluster: int, step: int, attempt: int = 0) -> int:
    path = ("round", step, cluster, attempt) if attempt else ("round", step, cluster)
    return rng.key(seed, *path)


class _Try:
    """Positions of one attempt at one round: a keyed permutation of the members, or draws with replacement."""

    def __init__(self, loop: RoundLoop, step: int, attempt: int, base: int, drawn: _Tasks | None) -> None:
        self._loop = loop
        self._step = step
        self._base = base
        self._stream = _stream(loop.seed, loop.cluster, step, attempt)
        self._drawn = drawn  # first places, as if they started at 0
        self._distinct = loop.schedule.sampling == "without_replacement"
        self._known_from = 0
        self._known = np.empty(0, dtype=np.int64)
        self._ahead: _Tasks | None = None
        self._ahead_next = 0
        self.cursor = 0

    def _clients(self, index: I64) -> I64:
        """Clients at consecutive places; replacements come one by one, so places are drawn well ahead."""
        if not len(index):
            return index
        first, stop = int(index[0]), int(index[-1]) + 1
        if first < self._known_from or stop > self._known_from + len(self._known):
            members = self._loop.population.num_members
            ahead = np.arange(first, max(stop, min(first + 256, members) if self._distinct else first + 256))
            if self._distinct:
                place = rng.permute(self._stream, ahead, members)
            else:
                place = rng.integers(self._stream, members, ahead)
            self._known_from, self._known = first, self._loop.population.client(place)
        return self._known[first - self._known_from : stop - self._known_from]

    def _tasks(self, index: I64, clients: I64, start: I64) -> _Tasks:
        population = self._loop.population
        position = index + self._base
        part = population.participation(clients, (self._step << SLOT_SHIFT) + position, start, self._loop.cluster)
        outcome = part.outcome.astype(np.int64)
        return _Tasks(position, clients, start, part.finish_us, outcome, part.num_examples)

    def _stop(self, count: int) -> int:
        wanted = self.cursor + count
        return min(wanted, self._loop.population.num_members) if self._distinct else wanted

    def take(self, count: int, now: int) -> _Tasks:
        """Up to `count` tasks that start at `now`, or wait for a candidate to check in; fewer where members run out."""
        population = self._loop.population
        if population.always_available:
            first, stop = self.cursor, self._stop(count)
            self.cursor = stop
            if self._drawn is not None and stop <= len(self._drawn.position):
                tasks = _Tasks(*(column[first:stop] for column in self._drawn))
                return tasks._replace(start=tasks.start + now, finish=tasks.finish + now)
            index = np.arange(first, stop)
            return self._tasks(index, self._clients(index), np.full(len(index), now))
        asked, limit = 2 * count + 6, _MAX_ASKED * count
        while True:
            index = np.arange(self.cursor, self._stop(min(asked, limit)))
            clients = self._clients(index)
            next_us = population.next_us(clients, np.full(len(index), now))
            if asked >= limit or len(index) < asked or int((next_us == now).sum()) >= count:
                break
            asked *= 4  # asking the full limit at once would cost the most in the usual case
        if not len(index):
            return self._tasks(index, clients, next_us)
        # available candidates have next_us == now: the earliest to check in come first, ties by position
        chosen = np.sort(np.argsort(next_us, kind="stable")[:count])
        there = int((next_us[chosen] == now).sum())
        self.cursor += int(chosen[-1]) + 1 if there == count else len(index)
        chosen = chosen[next_us[chosen] < NEVER // 2]
        return self._tasks(index[chosen], clients[chosen], next_us[chosen])

    def take_one(self, now: int) -> tuple[int, int, int, int, int, int] | None:
        """The next replacement as one row of `_Tasks`, or None where members ran out."""
        if not self._loop.population.always_available:
            tasks = self.take(1, now)
            return _row(tasks, 0) if len(tasks.position) else None
        if self._ahead is None or self._ahead_next == len(self._ahead.position):
            cursor = self.cursor
            self._ahead = self.take(64, 0)
            self.cursor = cursor
            self._ahead_next = 0
            if not len(self._ahead.position):
                return None
        position, client, _, duration, outcome, examples = _row(self._ahead, self._ahead_next)
        self._ahead_next += 1
        self.cursor += 1
        return position, client, now, now + duration, outcome, examples


def _row(tasks: _Tasks, i: int) -> tuple[int, int, int, int, int, int]:
    position, client, start, finish, outcome, examples = (int(column[i]) for column in tasks)
    return position, client, start, finish, outcome, examples


def _with_replacements(first: _Tasks, source: _Try, wanted: int, deadline: int) -> _Tasks:
    """All tasks of a round, the replacement of every failure before the close included (and perhaps some after it)."""
    failed = first.outcome != _USED
    failures = list(zip(first.finish[failed].tolist(), first.position[failed].tolist(), strict=True))
    heapq.heapify(failures)
    # the `wanted` smallest arrivals so far, negated: its top bounds the close from above
    earliest = (-np.sort(first.finish[~failed])[:wanted]).tolist()
    heapq.heapify(earliest)
    extra: list[tuple[int, int, int, int, int, int]] = []
    budget = 1000 * len(first.position) + 100_000
    while failures:
        bound = min(deadline, -earliest[0]) if len(earliest) == wanted else deadline
        now, _ = heapq.heappop(failures)
        if now >= bound:
            break
        row = source.take_one(now)
        if row is None:
            continue  # nobody left, or none of those asked ever comes back
        extra.append(row)
        if row[4] != _USED:
            heapq.heappush(failures, (row[3], row[0]))
        elif len(earliest) < wanted:
            heapq.heappush(earliest, -row[3])
        else:
            heapq.heappushpop(earliest, -row[3])
        if len(extra) > budget:
            rule = "clients that finish now and then"
            raise PlanError([Problem("population.devices", f"{budget} failures in one round", rule)])
    if not extra:
        return first
    columns = np.array(extra, dtype=np.int64).T
    return _Tasks(*(np.concatenate((a, b)) for a, b in zip(first, columns, strict=True)))


class RoundLoop:
    """Iterates over the rounds of a synchronous timeline, one batch each, without end.

    A round closes at the `cohort`-th arrival in the order (finish_us, position), or at its deadline, counted from the
    round's first start (arrivals at that very instant count), or when nobody is left running or to replace. What still
    runs is aborted at the close. A round without any arrival is tried again at its close, on the same version, with the
    positions going on and a fresh permutation; its rows belong to the step that closes at last.

    Unavailable members are skipped; where fewer than wanted of 64 per place are there, the places wait for the first of
    them to check in.

    Errors: PlanError while iterating, where nobody is ever available or no round can close.
    """

    def __init__(self, population: Population, schedule: SyncSchedule, seed: int, cluster: int = 0) -> None:
        self.population = population
        self.schedule = schedule
        self.seed = seed
        self.cluster = cluster

        self._drawn: list[_Tasks] = []  # of the coming rounds, the next one last
        self._spare = 0

    def __iter__(self) -> Iterator[Batch]:
        now, step, wanted = 0, 0, 1
        while True:
            rounds: list[Rows] = []
            closed: list[int] = []
            problem = None
            while not problem and sum(map(len, rounds)) < wanted:
                try:
                    rows, now = self._round(step, now)
                except PlanError as error:
                    problem = error  # only for those who ask for this round
                    break
                rounds.append(rows)
                closed.append(now)
                step += 1
            if rounds:
                yield Batch(join(rounds), np.cumsum([len(rows) for rows in rounds]), np.array(closed))
            if problem:
                raise problem
            wanted = min(2 * wanted, _BATCH_ROWS)

    def _round(self, step: int, now: int) -> tuple[Rows, int]:
        """(rows of the round, when it closes)."""
        pieces: list[Rows] = []
        base = 0
        for attempt in range(_MAX_TRIES + 1):
            drawn = self._draw(step) if attempt == 0 and self.population.always_available else None
            source = _Try(self, step, attempt, base, drawn)
            rows, now = self._run(source, step, now)
            pieces.append(rows)
            base += source.cursor
            if attempt == 0:
                self._spare = max(self._spare, source.cursor - self.schedule.num_selected)
            if (rows["outcome"] == _USED).any():
                return join(pieces), now
        hint = "lengthen schedule.deadline_s, or lower devices.dropout"
        rule = f"at least one arrival in {_MAX_TRIES} tries of a round"
        raise PlanError([Problem("schedule", f"no arrival in round {step}", rule, "", hint)])

    def _draw(self, step: int) -> _Tasks:
        """The first places of a round, drawn for many rounds together.

        Those selected, and as many spare ones as earlier rounds have needed at most.
        """
        if not self._drawn:
            members, distinct = self.population.num_members, self.schedule.sampling == "without_replacement"
            width = self.schedule.num_selected + self._spare
            width = min(width, members) if distinct else width
            steps = np.arange(step, step + max(1, _BATCH_ROWS // width))
            keys = [_stream(self.seed, self.cluster, number) for number in steps.tolist()]
            streams = np.array(keys, dtype=np.uint64)[:, None]
            position = np.broadcast_to(np.arange(width), (len(steps), width))
            places = rng.permute(streams, position, members) if distinct else rng.integers(streams, members, position)
            clients = self.population.client(places)
            draw = self.population.draw(clients, (steps[:, None] << SLOT_SHIFT) + position, self.cluster)
            columns = (
                position, clients, np.zeros_like(clients), draw.duration_us, draw.outcome.astype(np.int64),
                draw.num_examples,
            )  # fmt: skip
            self._drawn = [_Tasks(*values) for values in zip(*columns, strict=True)][::-1]
        return self._drawn.pop()

    def _run(self, source: _Try, step: int, now: int) -> tuple[Rows, int]:
        wanted = self.schedule.cohort
        first = source.take(self.schedule.num_selected, now)
        if not len(first.position):
            raise never_available()
        limit = self.schedule.deadline_us
        deadline = NEVER if limit is None else int(first.start.min()) + limit
        tasks = _with_replacements(first, source, wanted, deadline)
        order = np.lexsort((tasks.position, tasks.finish))
        tasks = _Tasks(*(column[order] for column in tasks))
        arrived = np.flatnonzero((tasks.outcome == _USED) & (tasks.finish <= deadline))
        if len(arrived) >= wanted:
            last = int(arrived[wanted - 1])
            close, num_ended = int(tasks.finish[last]), last + 1
        else:
            close = min(deadline, int(tasks.finish[-1]))
            num_ended = int(np.searchsorted(tasks.finish, close, side="right"))
        cut = np.flatnonzero(tasks.start[num_ended:] < close) + num_ended
        cut = cut[np.argsort(tasks.position[cut])]
        keep = np.concatenate((np.arange(num_ended), cut))
        rows = np.empty(len(keep), dtype=ROW)
        rows["task_id"] = (step << SLOT_SHIFT) + tasks.position[keep]
        rows["client_id"] = tasks.client[keep]
        rows["start_us"] = tasks.start[keep]
        rows["finish_us"] = np.minimum(tasks.finish[keep], close)
        rows["start_version"] = step
        rows["num_examples"] = tasks.examples[keep]
        rows["outcome"] = tasks.outcome[keep]
        rows["outcome"][num_ended:] = _ABORTED
        rows["step"] = np.where(rows["outcome"] == _USED, step, -1)
        return rows, close
