"""When clients start: policies of the one simulator, so that they are compared on the same devices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from atoll.errors import Problem, SpecError

__all__ = ["AsyncSchedule", "Sampling", "Schedule", "SyncSchedule"]

Sampling = Literal["with_replacement", "without_replacement"]

_SAMPLING = ("with_replacement", "without_replacement")


def _whole(place: str, value: int, low: int) -> list[Problem]:
    ok = isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**31
    return [] if ok else [Problem(place, repr(value), f"a whole number in [{low}, 2³¹)")]


def _sampling(value: str) -> list[Problem]:
    return [] if value in _SAMPLING else [Problem("schedule.sampling", repr(value), " or ".join(_SAMPLING))]


@dataclass(frozen=True)
class AsyncSchedule:
    """FedBuff: `concurrency` tasks in flight, replaced as they end; every `buffer_goal` arrivals make a step.

    An arrival that fills the buffer makes the next version before its successor starts, and all arrivals of an instant
    come before all starts of that instant: mean staleness is (concurrency − 1) / buffer_goal.

    Attributes:
        concurrency: C, ≥ 1.
        buffer_goal: K, ≥ 1.
        max_staleness: a running task is aborted right after the step that makes its staleness larger; None for never.
        sampling: without_replacement keeps one client from being in flight twice (needs C ≤ members).

    Errors: SpecError, all problems at once.
    """

    concurrency: int
    buffer_goal: int
    max_staleness: int | None = None
    sampling: Sampling = "with_replacement"

    def __post_init__(self) -> None:
        problems = _whole("schedule.concurrency", self.concurrency, 1)
        problems += _whole("schedule.buffer_goal", self.buffer_goal, 1)
        if self.max_staleness is not None:
            problems += _whole("schedule.max_staleness", self.max_staleness, 0)
        problems += _sampling(self.sampling)
        if problems:
            raise SpecError(problems)


@dataclass(frozen=True)
class SyncSchedule:
    """Rounds: ceil(cohort · (1 + over_selection)) tasks start together; the first `cohort` arrivals close the round.

    Drop-outs are replaced at once within the round; what still runs at the close is aborted; the next round starts at
    that instant.

    Attributes:
        cohort: arrivals wanted, ≥ 1.
        over_selection: extra share of tasks, ≥ 0.
        deadline_us: closes a round this long after its first start with what has arrived; None for no deadline. A round
            in which nothing has arrived by then is tried again with the next positions, on the same version.
        sampling: whether one client may be chosen twice in a round.

    Errors: SpecError, all problems at once.
    """

    cohort: int
    over_selection: float = 0.0
    deadline_us: int | None = None
    sampling: Sampling = "without_replacement"

    def __post_init__(self) -> None:
        problems = _whole("schedule.cohort", self.cohort, 1)
        if not (math.isfinite(self.over_selection) and self.over_selection >= 0):
            problems.append(Problem("schedule.over_selection", repr(self.over_selection), "a finite number ≥ 0"))
        if self.deadline_us is not None and not 1 <= self.deadline_us < 2**62:
            problems.append(Problem("schedule.deadline_us", repr(self.deadline_us), "microseconds ≥ 1, or null"))
        problems += _sampling(self.sampling)
        if problems:
            raise SpecError(problems)

    @property
    def num_selected(self) -> int:
        """Tasks that start together: ceil(cohort · (1 + over_selection))."""
        # 1.1 · 10 is 11.000000000000002 in binary: without the tolerance it would be 12
        return math.ceil(self.cohort * (1.0 + self.over_selection) - 1e-9)


Schedule = AsyncSchedule | SyncSchedule
