"""What a run is made of, as picklable factories: each process builds its own part from plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from atoll.aggregation import Aggregator, AggregatorState
from atoll.errors import AtollError, Interrupted
from atoll.messages import ModelVersion
from atoll.plan import Planner
from atoll.runtime.coordinator import CoordinatorSettings
from atoll.runtime.store import Artifact, Files, Journal, MetricRow

if TYPE_CHECKING:
    from atoll.evaluation import Evaluator
    from atoll.learner import Trainer

__all__ = ["Durability", "Outcome", "Parts", "Publisher", "RunResult", "TimelineFile"]


class TimelineFile(Protocol):
    """Keeps the timeline of the steps taken. One epoch writes one file, from the first row on."""

    def keep(self, rows: npt.NDArray[np.void]) -> None:
        """Appends timeline rows."""
        ...

    def close(self) -> None:
        """Puts the file in its place, whole."""
        ...


class Publisher(Protocol):
    """Where facts go: observes, never answers. Every call may be repeated without effect.

    Attributes:
        run_id: the service's name of the run, which making the publisher has found or made there.
    """

    run_id: str

    def publish(self, rows: Sequence[MetricRow]) -> None:
        """Sends metric rows; raises where the service does not take them."""
        ...

    def upload(self, artifact: Artifact, data: bytes) -> None:
        """Keeps a file under the artifact's place and name; raises where the service does not take it."""
        ...


@dataclass(frozen=True, slots=True)
class Durability:
    """How much a crash may cost, and when a silent process counts as dead.

    Attributes:
        snapshot_every_s: wall seconds between snapshots. They never take more than three parts in a hundred of the
            time: after a slow one the next one waits longer. 0: whenever a step has closed, whatever it costs.
        hang_s: wall seconds after which a process that owes an answer is replaced; None: twenty times its longest
            answer so far, and a minute at least.
        commit_every_s: wall seconds between commits of steps and rows without a snapshot.
    """

    snapshot_every_s: float = 5.0
    hang_s: float | None = None
    commit_every_s: float = 0.5


@dataclass(frozen=True)
class Parts:
    """Everything an executor needs; factories are picklable and cheap to carry.

    Attributes:
        settings: the coordinator's.
        durability: how often to save, how long to wait.
        make_planner: planner, in the coordinator's process.
        make_aggregator: aggregator at its beginning, or from a state; in its process.
        make_learner: learner, in every pool.
        make_evaluator: evaluator, in every pool, made when first asked.
        make_journal: the run's journal, in the coordinator's process.
        make_snapshot_files: where snapshots lie, in the aggregator's process and the coordinator's.
        make_artifact_files: where files for the tracking service lie, in the coordinator's process.
        make_timeline: by epoch, the file of the timeline; in the coordinator's process.
        make_publisher: publisher, in the tracker's process.
        encode_model: a version as the bytes of a safetensors file.
        name: of the run, unlike that of any other.
    """

    settings: CoordinatorSettings
    durability: Durability
    make_planner: Callable[[], Planner]
    make_aggregator: Callable[[AggregatorState | None], Aggregator]
    make_learner: Callable[[], Trainer]
    make_evaluator: Callable[[], Evaluator]
    make_journal: Callable[[], Journal]
    make_snapshot_files: Callable[[], Files]
    make_artifact_files: Callable[[], Files]
    make_timeline: Callable[[int], TimelineFile]
    make_publisher: Callable[[], Publisher]
    encode_model: Callable[[ModelVersion], bytes]
    name: str = ""


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
        wall_s: wall time from the first instruction to the last, summed over attempts.
        busy_s: wall time that pools spent in training and evaluation, summed over pools and attempts.
        pool_s: wall time that pools had a place, summed over pools and attempts; 0.0 inline.
        durable_s: wall time that snapshots and commits took, in the aggregator's and the coordinator's process.
        unpublished_rows: rows that the tracking service did not take; they stay in the journal.
        lost_pools: pools that died or hung and were replaced.
        attempts: how often the run was begun or taken up from a snapshot, as far as it was committed.
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
    pool_s: float = 0.0
    durable_s: float = 0.0
    unpublished_rows: int = 0
    lost_pools: int = 0
    attempts: int = 1
    extra: Mapping[str, Any] = field(default_factory=dict)


#: how one of several runs ended: its result, or what went wrong
Outcome = RunResult | AtollError | Interrupted
