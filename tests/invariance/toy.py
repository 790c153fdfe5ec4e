"""A tiny exact learner in NumPy: the runtime's laws can be tested in milliseconds, thousands of times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from atoll import rng
from atoll.aggregation import Aggregator, EqualWeight, PolynomialStaleness, Rule, ServerSgd, Weighting
from atoll.messages import Block, BlockResult, ModelVersion, PartialSum
from atoll.plan import Grid, Planner, PlanSettings, lookahead_steps
from atoll.population import Devices, HalfNormal, Population
from atoll.runtime import CoordinatorSettings, MetricRow, Parts, Target
from atoll.timeline import AsyncSchedule, Schedule, Timeline

SIZE = 3
METRICS = ("loss_sum", "delta_norm_sum", "delta_norm_sq_sum", "examples", "local_steps")
GRID = Grid.for_plan(delta_bound=64.0, weight_bound=64.0)


class ToyLearner:
    """delta = (start − a random point of the client) / 4: depends on the start version and on the task alone."""

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


class MemoryOutbox:
    """Rows in a list; the first row of a (key, step) stands."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], float] = {}
        self.timeline: list[np.ndarray] = []

    def commit(self, rows: Sequence[MetricRow]) -> None:
        for key, step, value, _ in rows:
            assert (key, step) not in self.rows, f"{key} at step {step} twice"
            self.rows[key, step] = value

    def pending(self, limit: int) -> tuple[int, list[MetricRow]]:
        return 0, []

    def ack(self, last_id: int) -> None: ...

    def keep_timeline(self, rows: np.ndarray) -> None:
        self.timeline.append(rows)

    def close(self) -> None: ...

    def science(self) -> dict[tuple[str, int], float]:
        """What must be equal in every run: everything outside wall_* (design 9.3)."""
        return {key: value for key, value in self.rows.items() if not key[0].startswith("wall_")}


class NullPublisher:
    def publish(self, rows: Sequence[MetricRow]) -> None: ...

    def checkpoint(self, model: ModelVersion) -> None: ...


def toy_parts(
    schedule: Schedule, *, steps: int = 12, lanes: int = 4, target: Target | None = None, every: int = 4
) -> tuple[Parts, MemoryOutbox]:
    outbox = MemoryOutbox()
    is_async = isinstance(schedule, AsyncSchedule)
    per_step = schedule.buffer_goal if isinstance(schedule, AsyncSchedule) else schedule.cohort

    def make_planner() -> Planner:
        population = Population(3, 1000, Devices(HalfNormal(60.0), overhead_s=5.0, dropout=0.1))
        settings = PlanSettings(lanes, lookahead_steps(lanes, per_step, is_async=is_async), "toy")
        weigh = Weighting(PolynomialStaleness(), EqualWeight())
        return Planner(Timeline(population, schedule, 3), settings, weigh)

    def make_aggregator() -> Aggregator:
        model = ModelVersion(0, np.full(SIZE, 5.0, dtype=np.float32))
        return Aggregator(model, Rule(ServerSgd(1.0, 0.5)), GRID, steps)

    parts = Parts(
        settings=CoordinatorSettings(steps, every, 0, target, SIZE * 4, METRICS),
        make_planner=make_planner,
        make_aggregator=make_aggregator,
        make_learner=ToyLearner,  # type: ignore[arg-type]
        make_evaluator=ToyEvaluator,  # type: ignore[arg-type]
        make_outbox=lambda: outbox,
        make_publisher=NullPublisher,
    )
    return parts, outbox
