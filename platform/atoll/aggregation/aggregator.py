"""The aggregator: buffers of exact sums per server step, closed in order; a pure state machine, no ray, no I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from atoll.aggregation.exact import add_partials
from atoll.aggregation.optimizers import ServerOptimizer, State
from atoll.errors import AggregationError
from atoll.messages import BlockResult, ModelVersion, PartialSum, RowSum, Table, VersionedTable
from atoll.plan import METRIC_EXPONENT, Grid, StepPlan

__all__ = ["Aggregator", "AggregatorState", "Rule", "Step", "metric_values"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
#: Bytes of a table up to which every version has a copy: that is cheaper than to look up what changed.
_MOST_COPIED = 1 << 20
#: Elements handled at a time where the intermediate results of a whole array would not fit into the cache.
_CACHED = 1 << 14


@dataclass(frozen=True, slots=True)
class Rule:
    """How a full buffer becomes the next version.

    Attributes:
        optimizer: descends the mean delta.
        normalizer: "mean" divides by Σ example weight (K under equal weights: FedBuff, FedAvg); "sum" does not
            divide (the convention of the FedBuff authors' simulator; equal to "mean" with K times the rate).
        form: "delta" takes start − local; "mixing" takes current − local, FedAsync's averaging of models
            (Xie et al., arXiv 1903.03934).
        divergence_shrinks_divisor: under example weights a diverged task's weight leaves the divisor; under equal
            weights the divisor stays K (design.md 9.2).
    """

    optimizer: ServerOptimizer
    normalizer: Literal["mean", "sum"] = "mean"
    form: Literal["delta", "mixing"] = "delta"
    divergence_shrinks_divisor: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One closed server step.

    Attributes:
        plan: what the plan knew of it.
        model: the version that it made, `plan.step + 1`.
        num_diverged: tasks that were zeroed.
        update_norm: L2 norm of new − old weights.
        metrics: int64 [M], exact sums of the learner's metrics over its tasks, on the metric grid.
        sum_sha: SHA-256 (hex) of the step's exact sum: computed again, the step must have the same.
    """

    plan: StepPlan
    model: ModelVersion
    num_diverged: int
    update_norm: float
    metrics: I64
    sum_sha: str


@dataclass(frozen=True, slots=True)
class AggregatorState:
    """What an aggregator goes on from. Buffers of open steps are not part of it: their blocks are trained again.

    Attributes:
        version: the newest version.
        models: it, and the older versions that a task may still start from.
        optimizer: the server optimizer's state, one entry per parameter array.
    """

    version: int
    models: Mapping[int, ModelVersion]
    optimizer: tuple[State, ...]


@dataclass(slots=True)
class _Buffer:
    """Exact sum of one server step that is not closed yet; `seen`: block → (blocks it came with, checksum)."""

    total: PartialSum | None = None
    seen: dict[int, tuple[tuple[int, ...], int]] = field(default_factory=dict)

    @property
    def num_lanes(self) -> int:
        return 0 if self.total is None else self.total.num_lanes

    def add(self, block_ids: tuple[int, ...], partial: PartialSum) -> None:
        """Adds a partial sum, or drops one that is here already."""
        mark = (block_ids, _checksum(partial))
        known = [self.seen[block_id] for block_id in block_ids if block_id in self.seen]
        if not known:
            self.seen.update(dict.fromkeys(block_ids, mark))
            if self.total is None:
                # Arrays that came through an object store are read-only.
                partial = replace(partial, dense=partial.dense.copy(), metrics=partial.metrics.copy())
                self.total = partial
            else:
                self.total = add_partials(self.total, partial)
        elif len(known) < len(block_ids):
            raise AggregationError(
                f"server step {partial.step}: blocks {block_ids} came together, but some of them are summed already. "
                "They cannot be taken apart again: send them in the groups that they were sent in first."
            )
        elif known[0][0] == block_ids and known[0] != mark:
            raise AggregationError(
                f"blocks {block_ids}, server step {partial.step}: delivered twice with different bits. A worker is not "
                "deterministic: check that all have the same software, device class and thread count."
            )


class Aggregator:
    """Weights, optimizer state and buffers of one cluster.

    Guarantees: results may arrive in any order, more than once, and late: the sequence of versions is the same. A
    duplicate of a block is dropped; one with other bits raises. Steps close in order. `handle` is synchronous and
    touches nothing but this object.

    Args:
        start: version 0, or the state to go on from.
        rule: how a buffer becomes a version.
        grid: the plan's grid.
        stop_steps: server steps of the run; sums of later steps are dropped.
    """

    def __init__(self, start: ModelVersion | AggregatorState, rule: Rule, grid: Grid, stop_steps: int) -> None:
        self._rule, self._grid, self._stop_steps = rule, grid, stop_steps
        #: versions that a mixing step or the next snapshot may still need: start version → weights
        self._kept: dict[int, ModelVersion]
        self._states: list[State]
        if isinstance(start, AggregatorState):
            self._states = list(start.optimizer)
            self._kept = {version: _sharing(model, rule) for version, model in start.models.items()}
            self.model = self._kept[start.version]
        else:
            self._states = [rule.optimizer.init(array) for array in (start.dense, *map(np.asarray, start.tables))]
            self.model = _sharing(start, rule)
            self._kept = {start.version: self.model}
        self._plans: dict[int, StepPlan] = {}
        self._buffers: dict[int, _Buffer] = {}
        self._limit = stop_steps

    def expect(self, steps: Iterable[StepPlan]) -> None:
        """Tells which steps come and how many lanes fill each; needed before a step can close."""
        self._plans.update({p.step: p for p in steps if self.model.version <= p.step < self._stop_steps})

    def hold_after(self, step: int) -> None:
        """Closes no step beyond version `step` until a later `hold_after` (a target is being evaluated)."""
        self._limit = min(step, self._stop_steps)

    def handle(self, result: BlockResult) -> list[Step]:
        """Adds one block's sums; returns the steps that this closes, in order, often none.

        Raises:
            AggregationError: overflow; too many lanes for a step; a duplicate block with different bits.
        """
        for partial in result.partials:
            if self.model.version <= partial.step < self._stop_steps:
                self._buffers.setdefault(partial.step, _Buffer()).add(result.block_ids, partial)
        return self.close_full()

    def close_full(self) -> list[Step]:
        """Closes every step that is full, in order, as far as `hold_after` allows."""
        closed = []
        while self.model.version < self._limit:
            plan = self._plans.get(self.model.version)
            buffer = self._buffers.get(self.model.version)
            if plan is None or buffer is None or buffer.total is None or buffer.num_lanes < plan.num_lanes:
                break
            if buffer.num_lanes > plan.num_lanes:
                raise AggregationError(
                    f"server step {plan.step}: {buffer.num_lanes} lanes arrived; the plan has {plan.num_lanes}."
                )
            closed.append(self._close(plan, buffer.total))
        return closed

    def forget(self, live_versions: Collection[int]) -> None:
        """Drops kept versions that nothing can start from any more.

        Kept are `live_versions`, what announced steps start from, and every version newer than all of `live_versions`:
        whoever names them has not heard of those yet, and tasks still in flight may have started there.
        """
        live = {*live_versions, self.model.version}
        newest_known = max(live_versions, default=-1)
        if self._rule.form == "mixing":
            for plan in self._plans.values():
                live.update(plan.start_versions.tolist())
        self._kept = {v: model for v, model in self._kept.items() if v in live or v > newest_known}

    def state(self) -> AggregatorState:
        """What another aggregator can go on from, together with the versions saved before (see `saved`)."""
        models = {**self._kept, self.model.version: self.model}
        return AggregatorState(self.model.version, models, tuple(self._states))

    def saved(self, versions: Collection[int]) -> None:
        """These versions are durable: memory lets go of those that no step here needs."""
        if self._rule.form == "delta":
            self._kept = {v: model for v, model in self._kept.items() if v not in versions}

    def _close(self, plan: StepPlan, total: PartialSum) -> Step:
        divisor = plan.divisor
        if self._rule.divergence_shrinks_divisor:
            divisor -= total.lost_weight * 2.0**-METRIC_EXPONENT
        if self._rule.normalizer == "sum":
            divisor = 1.0
        scale = 1.0 / (self._grid.scale * divisor) if divisor > 0 else 0.0
        # FedAsync steps at every arrival: a step whose task diverged has nothing to mix with, and stays where it is.
        drift = None if total.num_diverged == total.num_lanes else self._mixing_drift(plan, divisor)
        extra: Sequence[F32 | None] = drift or [None] * (1 + len(self.model.tables))
        dense, norm_sq = self._apply(0, self.model.dense, _mean(total.dense, scale), extra[0], plan.step)
        tables = []
        for index, (table, row_sum) in enumerate(zip(self.model.tables, total.tables, strict=True), start=1):
            new, square = self._apply_rows(index, table, row_sum, scale, extra[index], plan.step)
            tables.append(new)
            norm_sq += square
        self.model = ModelVersion(plan.step + 1, dense, tuple(tables))
        self._kept[self.model.version] = self.model
        del self._buffers[plan.step], self._plans[plan.step]
        norm = float(np.sqrt(norm_sq))
        return Step(plan, self.model, total.num_diverged, norm, total.metrics, _sum_sha(total))

    def _apply(self, index: int, old: F32, mean: F32, extra: F32 | None, step: int) -> tuple[F32, float]:
        """Next weights of one array and the squared norm of its change."""
        if extra is not None:
            mean += extra
        new, self._states[index] = self._rule.optimizer.step(old, mean, self._states[index], step)
        return new, _distance_sq(new, old)

    def _apply_rows(
        self, index: int, old: Table, row_sum: RowSum, scale: float, extra: F32 | None, step: int
    ) -> tuple[Table, float]:
        """As `_apply`, of one table; by its changed rows alone where the optimizer leaves the others as they are."""
        if not self._rule.optimizer.is_sparse or extra is not None:
            table = np.asarray(old)
            mean = np.zeros_like(table)
            mean[row_sum.rows] = row_sum.values * scale
            return self._apply(index, table, mean, extra, step)
        before = old[row_sum.rows]
        rows, _ = self._rule.optimizer.step(before, _mean(row_sum.values, scale), (), step)
        square = _distance_sq(rows, before)
        if isinstance(old, VersionedTable):
            return old.stepped(row_sum.rows, rows), square
        new = old.copy()
        new[row_sum.rows] = rows
        return new, square

    def _mixing_drift(self, plan: StepPlan, divisor: float) -> list[F32] | None:
        """Σ weight · (current − start) / divisor: what turns start − local into current − local."""
        if self._rule.form == "delta":
            return None
        current = (self.model.dense, *map(np.asarray, self.model.tables))
        totals = [np.zeros(array.shape, dtype=np.float64) for array in current]
        for version, weight in zip(plan.start_versions.tolist(), plan.start_weights.tolist(), strict=True):
            start = self._kept.get(version)
            if start is None:
                raise AggregationError(f"server step {plan.step}: start version {version} is no longer kept.")
            pairs = zip(current, (start.dense, *map(np.asarray, start.tables)), strict=True)
            for total, (now, then) in zip(totals, pairs, strict=True):
                total += weight * (now.astype(np.float64) - then)
        return [(total / divisor).astype(np.float32) for total in totals]


def _mean(total: I64, scale: float) -> F32:
    """Total · scale in float64, as float32; without a float64 array of that size."""
    mean = np.empty(total.shape, dtype=np.float32)
    np.multiply(total, scale, out=mean, dtype=np.float64, casting="unsafe")
    return mean


def _distance_sq(one: F32, other: F32) -> float:
    """Squared L2 norm of one − other (C-contiguous, of one shape), in float64; a part at a time stays in the cache."""
    one, other = one.reshape(-1), other.reshape(-1)
    parts = (slice(begin, begin + _CACHED) for begin in range(0, one.size, _CACHED))
    return float(sum(np.square(one[part] - other[part], dtype=np.float64).sum() for part in parts))


def _sharing(model: ModelVersion, rule: Rule) -> ModelVersion:
    """The model with large tables in memory that its successors share, where steps change single rows."""
    if not rule.optimizer.is_sparse or rule.form == "mixing":
        return model
    tables = tuple(
        VersionedTable(table) if isinstance(table, np.ndarray) and table.nbytes > _MOST_COPIED else table
        for table in model.tables
    )
    return replace(model, tables=tables)


def _sum_sha(total: PartialSum) -> str:
    """SHA-256 (hex) of a step's exact sum."""
    sha = hashlib.sha256(f"{total.step};{total.num_lanes};{total.num_diverged};{total.lost_weight};".encode())
    for array in (total.dense, total.metrics, *(part for table in total.tables for part in (table.rows, table.values))):
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def _checksum(partial: PartialSum) -> int:
    """A wrapping sum over everything: one pass, enough to notice a worker that is not deterministic."""
    arrays = [partial.dense, partial.metrics]
    for table in partial.tables:
        arrays += [table.rows, table.values]
    return hash(tuple(int(array.sum()) for array in arrays))


def metric_values(step: Step, names: tuple[str, ...]) -> Mapping[str, float]:
    """The step's metric sums as floats, by name."""
    return {name: float(value) * 2.0**-METRIC_EXPONENT for name, value in zip(names, step.metrics, strict=True)}
