"""A tiny exact learner in NumPy: the runtime's laws can be tested in milliseconds, thousands of times."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from atoll import rng
from atoll.aggregation import (
    Aggregator,
    AggregatorState,
    EqualWeight,
    PolynomialStaleness,
    Rule,
    ServerOptimizer,
    ServerSgd,
    Weighting,
)
from atoll.messages import Block, BlockResult, ModelVersion, PartialSum
from atoll.plan import Grid, Planner, PlanSettings, lookahead_steps
from atoll.population import Devices, HalfNormal, Population
from atoll.runtime import CoordinatorSettings, MetricRow, Parts, Target
from atoll.runtime.parts import Durability
from atoll.runtime.store import Artifact, SqliteJournal
from atoll.timeline import AsyncSchedule, Schedule, Timeline

SIZE = 3
METRICS = ("loss_sum", "delta_norm_sum", "delta_norm_sq_sum", "examples", "local_steps")
GRID = Grid.for_plan(delta_bound=64.0, weight_bound=64.0)


class ToyLearner:
    """delta = (start − a random point of the client) / 4: depends on the start version and on the task alone."""

    def train_all(self, blocks: Sequence[Block], versions: Mapping[int, ModelVersion]) -> list[BlockResult]:
        return [self.train(block, versions) for block in blocks]

    def train(self, block: Block, versions: Mapping[int, ModelVersion]) -> BlockResult:
        starts = np.stack([versions[int(v)].dense for v in block.start_version]).astype(np.float64)
        points = rng.uniform(7, block.task_id[:, None], np.arange(SIZE)) * 4 - 2
        deltas = ((starts - points) / 4).astype(np.float32)
        partials = []
        for step in np.unique(block.step):
            lanes = block.step == step
            total = (deltas[lanes].astype(np.float64) * block.weight[lanes, None]).sum(axis=0)
            partials.append(
                PartialSum(
                    step=int(step),
                    num_lanes=int(lanes.sum()),
                    num_diverged=0,
                    lost_weight=0,
                    dense=np.rint(total * GRID.scale).astype(np.int64),
                    tables=(),
                    metrics=np.full(len(METRICS), int(lanes.sum()) << 24, dtype=np.int64),
                )
            )
        return BlockResult((block.block_id,), tuple(partials))


class ToyEvaluation:
    def __init__(self, version: ModelVersion) -> None:
        self.metrics = {"eval/loss": float(np.square(version.dense, dtype=np.float64).sum())}


class ToyEvaluator:
    def evaluate(self, version: ModelVersion) -> ToyEvaluation:
        return ToyEvaluation(version)


class KeptJournal(SqliteJournal):
    """A journal in memory that outlives the run that closes it."""

    def __init__(self) -> None:
        super().__init__(":memory:")

    def close(self) -> None: ...

    def science(self) -> dict[tuple[str, int], float]:
        """What must be equal in every run: everything outside wall_* (design 9.3)."""
        return science(self)


def science(journal: SqliteJournal) -> dict[tuple[str, int], float]:
    rows = {(key, step): value for key, step, value, _ in journal.rows() if not key.startswith("wall_")}
    walls = [(key, step) for key, step, _, _ in journal.rows() if key.startswith("wall_")]
    steps = range(1, journal.last_step + 2)
    assert sorted(walls) == sorted((key, step) for key in ("wall_s", "wall_updates_per_s") for step in steps)
    return rows


class MemoryFiles:
    """Files in a dictionary."""

    place = "memory"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def write(self, name: str, data: bytes) -> None:
        self.files[name] = data

    def read(self, name: str) -> bytes:
        return self.files[name]

    def delete(self, name: str) -> None:
        self.files.pop(name, None)

    def names(self) -> list[str]:
        return sorted(self.files)


class MemoryTimeline:
    """The rows of the epoch that ended last."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []

    def keep(self, rows: np.ndarray) -> None:
        self.rows.append(rows)

    def close(self) -> None: ...


class NullPublisher:
    run_id = "run"

    def publish(self, rows: Sequence[MetricRow]) -> None: ...

    def upload(self, artifact: Artifact, data: bytes) -> None: ...


@dataclasses.dataclass
class Toy:
    """A run's parts and what it leaves behind."""

    parts: Parts
    journal: KeptJournal
    files: MemoryFiles
    timelines: list[MemoryTimeline]

    def science(self) -> dict[tuple[str, int], float]:
        return self.journal.science()

    def timeline(self) -> np.ndarray:
        return np.concatenate(self.timelines[-1].rows)


def toy_run(
    schedule: Schedule,
    *,
    steps: int = 12,
    lanes: int = 4,
    target: Target | None = None,
    every: int = 4,
    before: Toy | None = None,
    snapshot_every_s: float = 0.0,
    optimizer: ServerOptimizer | None = None,
    form: str = "delta",
) -> Toy:
    """Parts of a toy run; `before`: goes on with the journal and files of that one."""
    journal = KeptJournal() if before is None else before.journal
    files = MemoryFiles() if before is None else before.files
    timelines: list[MemoryTimeline] = [] if before is None else before.timelines
    is_async = isinstance(schedule, AsyncSchedule)
    per_step = schedule.buffer_goal if isinstance(schedule, AsyncSchedule) else schedule.cohort

    def make_planner() -> Planner:
        population = Population(3, 1000, Devices(HalfNormal(60.0), overhead_s=5.0, dropout=0.1))
        settings = PlanSettings(lanes, lookahead_steps(lanes, per_step, is_async=is_async), "toy")
        weigh = Weighting(PolynomialStaleness(), EqualWeight())
        return Planner(Timeline(population, schedule, 3), settings, weigh)

    def make_aggregator(state: AggregatorState | None) -> Aggregator:
        model = ModelVersion(0, np.full(SIZE, 5.0, dtype=np.float32))
        rule = Rule(optimizer or ServerSgd(1.0, 0.5), form=form)  # type: ignore[arg-type]
        return Aggregator(model if state is None else state, rule, GRID, steps)

    def make_timeline(epoch: int) -> MemoryTimeline:
        timelines.append(MemoryTimeline())
        return timelines[-1]

    parts = Parts(
        settings=CoordinatorSettings(steps, every, 0, target, SIZE * 4, METRICS),
        durability=Durability(snapshot_every_s),
        make_planner=make_planner,
        make_aggregator=make_aggregator,
        make_learner=ToyLearner,  # type: ignore[arg-type]
        make_evaluator=ToyEvaluator,  # type: ignore[arg-type]
        make_journal=lambda: journal,
        make_snapshot_files=lambda: files,
        make_artifact_files=lambda: files,
        make_timeline=make_timeline,
        make_publisher=NullPublisher,
        encode_model=lambda model: model.dense.tobytes(),
    )
    return Toy(parts, journal, files, timelines)
