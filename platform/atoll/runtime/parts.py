"""What a run is made of, as picklable factories: each process builds its own part from plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from atoll.aggregation import Aggregator
from atoll.evaluation import Evaluator
from atoll.learner import Learner
from atoll.messages import ModelVersion
from atoll.plan import Planner
from atoll.runtime.coordinator import CoordinatorSettings

__all__ = ["MetricRow", "Outbox", "Parts", "Publisher", "RunResult"]

#: (key, step, value, timestamp in milliseconds)
MetricRow = tuple[str, int, float, int]


class Outbox(Protocol):
    """Durable queue of metric rows beside the coordinator; the first row of a (key, step) stands."""

    def commit(self, rows: Sequence[MetricRow]) -> None:
        """Adds rows in one transaction."""
        ...

    def pending(self, limit: int) -> tuple[int, list[MetricRow]]:
        """(id of the last row returned, rows not yet acknowledged, oldest first)."""
        ...

    def ack(self, last_id: int) -> None:
        """Rows up to `last_id` have been published."""
        ...

    def keep_timeline(self, rows: npt.NDArray[np.void]) -> None:
        """Appends timeline rows to the run's Parquet file."""
        ...

    def close(self) -> None:
        """Flushes and closes the files."""
        ...


class Publisher(Protocol):
    """Where facts go: observes, never answers. Every call may be repeated without effect."""

    def publish(self, rows: Sequence[MetricRow]) -> None:
        """Sends metric rows; raises where the service does not answer."""
        ...

    def checkpoint(self, model: ModelVersion) -> None:
        """Keeps a model version as an artifact."""
        ...


@dataclass(frozen=True)
class Parts:
    """Everything an executor needs; factories are picklable and cheap to carry.

    Attributes:
        settings: the coordinator's.
        make_planner: planner, in the coordinator's process.
        make_aggregator: aggregator, in its process.
        make_learner: learner, in every pool.
        make_evaluator: evaluator, in every pool, made when first asked.
        make_outbox: outbox, in the coordinator's process.
        make_publisher: publisher, in the tracker's process.
    """

    settings: CoordinatorSettings
    make_planner: Callable[[], Planner]
    make_aggregator: Callable[[], Aggregator]
    make_learner: Callable[[], Learner]
    make_evaluator: Callable[[], Evaluator]
    make_outbox: Callable[[], Outbox]
    make_publisher: Callable[[], Publisher]


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        model: the final version.
        reason: why it stopped.
        timeline_digest: of the steps taken.
        plan_digest: of the windows that hold them.
        client_updates: tasks used.
        mean_staleness: over them.
        virtual_hours: simulated time of the last step.
        num_diverged: tasks zeroed.
        metrics: values of the last evaluation.
        wall_s: wall time from the first instruction to the last.
        busy_s: wall time that pools spent in training and evaluation, summed.
        unpublished_rows: rows that the tracking service did not take; they stay in the outbox.
        lost_pools: pools that died and were replaced.
    """

    model: ModelVersion
    reason: str
    timeline_digest: str
    plan_digest: str
    client_updates: int
    mean_staleness: float
    virtual_hours: float
    num_diverged: int
    metrics: Mapping[str, float]
    wall_s: float
    busy_s: float
    unpublished_rows: int = 0
    lost_pools: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
