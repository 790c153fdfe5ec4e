"""Totals of a timeline: streaming and mergeable, so that a long one need not be held."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from atoll.population import Outcome
from atoll.timeline.records import Chunk

__all__ = ["TimelineStats", "stats"]

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TimelineStats:
    """Integer totals over some server steps; everything else is derived from them.

    Attributes:
        server_steps: number of steps.
        duration_us: virtual time they took.
        completions: tasks that ended, however they ended.
        outcomes: int64 [6], tasks per `population.Outcome`.
        busy_us: Σ (finish − start) over all tasks that ended.
        wasted_us: the part of busy_us that no server step used.
        used_examples: Σ num_examples of the used tasks.
        staleness_counts: int64 [max + 1], used tasks per staleness.
    """

    server_steps: int
    duration_us: int
    completions: int
    outcomes: I64
    busy_us: int
    wasted_us: int
    used_examples: int
    staleness_counts: I64

    def merge(self, other: TimelineStats) -> TimelineStats:
        """Totals of both parts; associative and commutative. Purity: pure."""
        width = max(len(self.staleness_counts), len(other.staleness_counts))
        counts = np.zeros(width, dtype=np.int64)
        for part in (self.staleness_counts, other.staleness_counts):
            counts[: len(part)] += part
        return replace(
            self,
            server_steps=self.server_steps + other.server_steps,
            duration_us=self.duration_us + other.duration_us,
            completions=self.completions + other.completions,
            outcomes=self.outcomes + other.outcomes,
            busy_us=self.busy_us + other.busy_us,
            wasted_us=self.wasted_us + other.wasted_us,
            used_examples=self.used_examples + other.used_examples,
            staleness_counts=counts,
        )

    @property
    def client_updates(self) -> int:
        """Tasks that contributed to a server step."""
        return int(self.outcomes[Outcome.USED])

    @property
    def failures(self) -> dict[str, int]:
        """Tasks per outcome other than USED, by lower-case name."""
        return {kind.name.lower(): int(self.outcomes[kind]) for kind in Outcome if kind != Outcome.USED}

    @property
    def mean_staleness(self) -> float:
        """Mean over used tasks; NaN without any."""
        total = int(self.staleness_counts.sum())
        weighted = int((self.staleness_counts * np.arange(len(self.staleness_counts))).sum())
        return weighted / total if total else float("nan")

    def staleness_quantile(self, q: float) -> int:
        """Smallest staleness that at least a share q in (0, 1] of the used tasks do not exceed; −1 without any."""
        cumulative = np.cumsum(self.staleness_counts)
        if not len(cumulative) or not cumulative[-1]:
            return -1
        return int(np.searchsorted(cumulative, q * cumulative[-1] * (1 - 1e-12)))

    @property
    def p95_staleness(self) -> int:
        """95th percentile of the staleness of used tasks."""
        return self.staleness_quantile(0.95)

    @property
    def duration_s(self) -> float:
        """Virtual seconds."""
        return self.duration_us * 1e-6

    @property
    def wasted_s(self) -> float:
        """Virtual client seconds whose result no step used."""
        return self.wasted_us * 1e-6

    @property
    def wasted_share(self) -> float:
        """wasted_us / busy_us; 0 where nothing ended."""
        return self.wasted_us / self.busy_us if self.busy_us else 0.0

    @property
    def mean_active_clients(self) -> float:
        """Client time of the tasks that ended per virtual time; approaches the concurrency from below as it runs."""
        return self.busy_us / self.duration_us if self.duration_us else 0.0

    @property
    def steps_per_hour(self) -> float:
        """Server steps per virtual hour; 0 without any time."""
        return self.server_steps * 3.6e9 / self.duration_us if self.duration_us else 0.0


def stats(chunk: Chunk) -> TimelineStats:
    """Totals of one chunk; `merge` adds up consecutive ones. Purity: pure."""
    rows = chunk.rows
    busy = rows["finish_us"] - rows["start_us"]
    used = rows["outcome"] == Outcome.USED
    staleness = rows["step"][used] - rows["start_version"][used]
    busy_us = int(busy.sum())
    return TimelineStats(
        server_steps=chunk.num_steps,
        duration_us=int(chunk.closed_us[-1]) - chunk.opened_us if chunk.num_steps else 0,
        completions=len(rows),
        outcomes=np.bincount(rows["outcome"], minlength=len(Outcome)).astype(np.int64),
        busy_us=busy_us,
        wasted_us=busy_us - int(busy[used].sum()),
        used_examples=int(rows["num_examples"][used].sum(dtype=np.int64)),
        staleness_counts=np.bincount(staleness).astype(np.int64),
    )
