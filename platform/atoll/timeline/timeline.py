"""The resumable timeline: server steps on demand, equal however they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from atoll.errors import PlanError, Problem
from atoll.population import Outcome, Population, identity
from atoll.timeline.heap import HeapLoop
from atoll.timeline.records import ROW, Batch, Chunk, Rows, join
from atoll.timeline.rounds import RoundLoop
from atoll.timeline.schedules import AsyncSchedule, Schedule, SyncSchedule
from atoll.timeline.window import WindowEngine

__all__ = ["Engine", "Timeline"]

I64 = npt.NDArray[np.int64]
Engine = Literal["auto", "heap", "window"]


def _check(population: Population, schedule: Schedule) -> None:
    problems = []
    members = population.num_members
    if schedule.sampling == "without_replacement":
        place, value = ("concurrency", schedule.concurrency) if isinstance(schedule, AsyncSchedule) else (
            "cohort", schedule.cohort)  # fmt: skip
        if value > members:
            why = "no client may take part twice at once"
            hint = "lower it, or set sampling: with_replacement"
            problems.append(Problem(f"schedule.{place}", str(value), f"at most {members} clients", why, hint))
    if problems:
        raise PlanError(problems)


_Source = HeapLoop | WindowEngine | RoundLoop


def _engine(population: Population, schedule: Schedule, seed: int, cluster: int, engine: Engine) -> _Source:
    if isinstance(schedule, SyncSchedule):
        return RoundLoop(population, schedule, seed, cluster)
    simple = schedule.max_staleness is None and schedule.sampling == "with_replacement"
    if engine == "window" and not simple:
        raise ValueError("the window engine needs sampling with replacement and no max_staleness")
    if engine == "heap" or not simple:
        return HeapLoop(population, schedule, seed, cluster)
    return WindowEngine(population, schedule, seed, cluster)


class Timeline:
    """Who starts on which version, who ends when, and which server step uses it: decided before any training.

    Prefix-stable: any way of cutting the same number of steps into `advance` calls gives the same rows and digest, and
    a longer timeline starts with the shorter one. Nothing decided at virtual time t reads anything that ends after t.

    Args:
        population: who exists.
        schedule: `AsyncSchedule` or `SyncSchedule`.
        seed: of the selection of clients.
        cluster: names an independent timeline over its own part of the population.
        engine: `auto` takes the vectorised engine where it applies; both engines give identical rows.

    Errors: PlanError where the schedule needs more distinct clients than there are; ValueError where `engine` is
        `window` and does not apply.
    """

    def __init__(
        self, population: Population, schedule: Schedule, seed: int, cluster: int = 0, engine: Engine = "auto"
    ) -> None:
        _check(population, schedule)
        self._population = population
        self._schedule = schedule
        self._source = _engine(population, schedule, seed, cluster, engine)
        self._batches: Iterator[Batch] = iter(self._source)
        self._rows: Rows = np.empty(0, dtype=ROW)
        self._ends: I64 = np.empty(0, dtype=np.int64)
        self._closed: I64 = np.empty(0, dtype=np.int64)
        self._num_steps = 0
        self._num_rows = 0
        self._now_us = 0
        self._row_hash = hashlib.sha256()
        #: canonical text of schedule, population, seed and cluster: what the timeline is a function of
        self.identity = identity(("timeline-1", schedule, population, seed, cluster))
        self._step_hash = hashlib.sha256(self.identity.encode())

    @property
    def num_steps(self) -> int:
        """Server steps given out so far."""
        return self._num_steps

    @property
    def num_rows(self) -> int:
        """Rows given out so far."""
        return self._num_rows

    @property
    def now_us(self) -> int:
        """When the last step given out closed; 0 before the first."""
        return self._now_us

    def steps_at_hand(self, most_rows: int) -> int:
        """Steps that `advance` has ready, as many as have at most `most_rows` rows."""
        return int(np.searchsorted(self._ends, most_rows, side="right"))

    def advance(self, num_steps: int) -> Chunk:
        """The next `num_steps` server steps (≥ 0).

        Errors: PlanError where steps stop coming: nobody available, or no task ever arrives.
        """
        if num_steps < 0:
            raise ValueError(f"num_steps is {num_steps}, need ≥ 0")
        self._fetch(num_steps)
        cut = int(self._ends[num_steps - 1]) if num_steps else 0
        # an own copy: a view would keep the engine's whole batch alive
        rows = join([self._rows[:cut]]) if cut < len(self._rows) else self._rows
        rows.setflags(write=False)
        offsets = np.concatenate((np.zeros(1, dtype=np.int64), self._ends[:num_steps]))
        closed = self._closed[:num_steps].copy()
        chunk = Chunk(self._num_steps, rows, offsets, closed, self._now_us)
        self._row_hash.update(rows.view(np.uint8).data)
        self._step_hash.update(np.stack((offsets[1:] + self._num_rows, closed), axis=1).astype("<i8").tobytes())
        self._rows, self._ends, self._closed = self._rows[cut:], self._ends[num_steps:] - cut, self._closed[num_steps:]
        self._num_steps += num_steps
        self._num_rows += cut
        self._now_us = int(closed[-1]) if num_steps else self._now_us
        return chunk

    def digest(self) -> str:
        """SHA-256 (hex) over schedule, population, seed, cluster and every row and step so far; cut-independent."""
        total = self._step_hash.copy()
        total.update(self._row_hash.digest())
        return total.hexdigest()

    def live_versions(self) -> npt.NDArray[np.int32]:
        """Start versions that tasks ending after the last step given out may still have, ascending, ≤ num_steps.

        Versions newer than num_steps do not exist yet and are not listed; an older one that is missing here is never
        asked for again.
        """
        if isinstance(self._source, RoundLoop):
            return np.empty(0, dtype=np.int32)
        if not self._num_steps:
            self._fetch(1)
        versions = np.concatenate((self._rows["start_version"], self._source.pending_versions()))
        return np.unique(versions[versions <= self._num_steps])

    @property
    def in_flight(self) -> int:
        """Tasks running once all events of the last closed step's instant are over; 0 between synchronous rounds."""
        if isinstance(self._source, RoundLoop):
            return 0
        if not self._num_steps:
            self._fetch(1)
        start, finish = self._source.pending()
        start = np.concatenate((self._rows["start_us"], start))
        finish = np.concatenate((self._rows["finish_us"], finish))
        return int(((start <= self._now_us) & (finish > self._now_us)).sum())

    def _fetch(self, num_steps: int) -> None:
        if len(self._ends) >= num_steps:
            return
        rows, ends, closed = [self._rows], [self._ends], [self._closed]
        base, have, barren = len(self._rows), len(self._ends), 0
        concurrency = getattr(self._schedule, "concurrency", 0)
        while have < num_steps:
            batch = next(self._batches)
            rows.append(batch.rows)
            ends.append(batch.ends + base)
            closed.append(batch.closed_us)
            base += len(batch.rows)
            have += len(batch.ends)
            barren = 0 if (batch.rows["outcome"] == Outcome.USED).any() else barren + len(batch.rows)
            if barren > 100_000 + 20 * concurrency:
                hint = "lower devices.dropout or raise devices.timeout_s, schedule.max_staleness or the availability"
                rule = "tasks that arrive"
                raise PlanError([Problem("schedule", f"{barren} tasks in a row failed", rule, "no step closes", hint)])
        self._rows = join(rows)
        self._ends = np.concatenate(ends)
        self._closed = np.concatenate(closed)
