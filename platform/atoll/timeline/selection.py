"""Who starts an asynchronous task: keyed candidates, the first that is there, else the first to check in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from atoll import rng
from atoll.errors import PlanError, Problem
from atoll.population import NEVER, Population

__all__ = ["END_US", "MAX_ATTEMPTS", "SLOT_SHIFT", "Selector", "never_available"]

I64 = npt.NDArray[np.int64]
#: which of the clients are in flight
Busy = Callable[[I64], npt.NDArray[np.bool_]]

MAX_ATTEMPTS = 64
"""Candidates asked per task before it waits."""

SLOT_SHIFT = 32
"""task_id = slot << SLOT_SHIFT | ordinal in slot."""

END_US = NEVER // 2
"""A start from here on never comes."""

#: members looked at together when every candidate is busy
_WALK_MEMBERS = 1024


def never_available() -> PlanError:
    """The error for a population in which nobody asked will ever be available again."""
    hint = "widen population.availability, or check the trace for empty rows"
    return PlanError([Problem("population.availability", "", "clients that become available", "", hint)])


@dataclass(frozen=True)
class Selector:
    """Chooses a client per task, keyed by (seed, "select", cluster), task id and attempt.

    At virtual time t up to 64 candidates are asked in order; the first that is available starts at t. Where none is,
    the slot waits for the first of them to check in: the earliest next window, ties by attempt. A waiting slot is
    not in flight.
    """

    population: Population
    seed: int
    cluster: int = 0

    def candidate(self, task_ids: I64, attempt: I64 | int) -> I64:
        """Client ids of the given attempts; task_ids and attempt broadcast. Purity: pure."""
        stream = rng.key(self.seed, "select", self.cluster)
        index = rng.integers(stream, self.population.num_members, task_ids, attempt)
        return self.population.client(index)

    def choose(self, task_ids: I64, t_us: I64) -> tuple[I64, I64]:
        """(client ids, start_us ≥ t_us) with replacement; one element per task.

        Errors: PlanError where no candidate of a task ever becomes available.
        Purity: pure.
        """
        clients, starts = self.earliest(task_ids, t_us)
        if starts.size and starts.max() >= END_US:
            raise never_available()
        return clients, starts

    def earliest(self, task_ids: I64, t_us: I64) -> tuple[I64, I64]:
        """As `choose`, but the start is END_US or later where no candidate ever becomes available. Purity: pure."""
        clients = self.candidate(task_ids, 0)
        if self.population.always_available:
            return clients, t_us.copy()
        starts = self.population.next_us(clients, t_us)
        asked = 1
        # twice as many each time: few rounds at night, few candidates too many by day
        while asked < MAX_ATTEMPTS and (todo := np.flatnonzero(starts > t_us)).size:
            candidates = self.candidate(task_ids[todo][:, None], np.arange(asked, 2 * asked))
            next_us = self.population.next_us(candidates, t_us[todo][:, None])
            best, row = np.argmin(next_us, axis=1), np.arange(todo.size)
            sooner = next_us[row, best] < starts[todo]
            row, best = row[sooner], best[sooner]
            clients[todo[sooner]], starts[todo[sooner]] = candidates[row, best], next_us[row, best]
            asked *= 2
        return clients, starts

    def choose_free(self, task_id: int, t_us: int, is_busy: Busy) -> tuple[int, int]:
        """(client id, start_us) of one task, skipping the clients that are busy.

        Where no candidate is both free and ever available again, the members after the last one are walked instead.

        Errors: PlanError where nobody free ever becomes available.
        Purity: pure.
        """
        asked = self.candidate(np.array(task_id), np.arange(MAX_ATTEMPTS))
        free = asked[~is_busy(asked)]
        next_us = self.population.next_us(free, np.full(free.shape, t_us))
        if not free.size or next_us.min() >= END_US:
            return self._walk(task_id, t_us, is_busy)
        first = int(np.argmin(next_us))
        return int(free[first]), int(next_us[first])

    def _walk(self, task_id: int, t_us: int, is_busy: Busy) -> tuple[int, int]:
        """The first member after the last candidate that is not busy and will be available, and when."""
        members = self.population.num_members
        stream = rng.key(self.seed, "select", self.cluster)
        last = int(rng.integers(stream, members, np.array(task_id), MAX_ATTEMPTS - 1))
        for begin in range(0, members, _WALK_MEMBERS):
            steps = np.arange(begin + 1, min(begin + _WALK_MEMBERS, members) + 1)
            clients = self.population.client((last + steps) % members)
            clients = clients[~is_busy(clients)]
            next_us = self.population.next_us(clients, np.full(clients.shape, t_us))
            there = np.flatnonzero(next_us < END_US)
            if there.size:
                return int(clients[there[0]]), int(next_us[there[0]])
        raise never_available()
