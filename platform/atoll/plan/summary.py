"""What a plan costs and whether it fits, known before any training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from atoll.errors import PlanError, Problem
from atoll.plan.planner import Window
from atoll.timeline import Outcome

__all__ = ["PlanSummary", "SummaryBuilder", "check_memory"]


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """Figures of the first `server_steps` steps of a plan.

    Attributes:
        server_steps: steps covered.
        client_updates: tasks whose delta is used.
        participations: client_updates plus those that failed or came to nothing.
        virtual_hours: simulated time until the last step closes.
        server_steps_per_hour: per virtual hour.
        mean_staleness: over all used tasks.
        p95_staleness: 95th percentile over all used tasks.
        steady_staleness: mean over the second half of the steps.
        wasted_share: device time of participations without effect, over all device time.
        uplink_bytes: client_updates times the size of a delta.
        downlink_bytes: participations times the size of a model.
        blocks: blocks of W lanes.
        occupancy: share of lane slots that hold a task, 0 … 1.
        depth: longest chain of blocks that must run one after another.
        mean_width: blocks over depth: how many could run at once on average.
        peak_live_versions: most model versions needed at one time.
        mean_examples: training examples per client update.
    """

    server_steps: int
    client_updates: int
    participations: int
    virtual_hours: float
    server_steps_per_hour: float
    mean_staleness: float
    p95_staleness: float
    steady_staleness: float
    wasted_share: float
    uplink_bytes: int
    downlink_bytes: int
    blocks: int
    occupancy: float
    depth: int
    mean_width: float
    peak_live_versions: int
    mean_examples: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class SummaryBuilder:
    """Adds up windows; memory grows by a few bytes per server step and never with the population.

    Args:
        num_steps: server steps to cover; later steps of the last window are left out.
        lanes: W.
        model_bytes: size of one model, float32.
    """

    def __init__(self, num_steps: int, lanes: int, model_bytes: int) -> None:
        self._num_steps, self._lanes, self._model_bytes = num_steps, lanes, model_bytes
        self._last_use = np.arange(num_steps + 1, dtype=np.int64)
        self._depth_of_version = np.zeros(num_steps + 2, dtype=np.int64)
        self._staleness_counts = np.zeros(1, dtype=np.int64)
        self._staleness_by_step = np.zeros(num_steps, dtype=np.float64)
        self._lanes_by_step = np.zeros(num_steps, dtype=np.int64)
        self._blocks = self._tasks_in_blocks = self._failed = self._examples = 0
        self._used_us = self._wasted_us = self._closed_us = 0

    def add(self, window: Window) -> None:
        """Adds a window; windows come in order."""
        for step_plan in window.steps:
            if step_plan.step >= self._num_steps:
                break
            self._failed += step_plan.num_failed
            self._used_us += step_plan.used_us
            self._wasted_us += step_plan.wasted_us
            self._closed_us = step_plan.closed_us
            self._staleness_by_step[step_plan.step] = step_plan.staleness_mean
            self._lanes_by_step[step_plan.step] = step_plan.num_lanes
            np.maximum.at(self._last_use, step_plan.start_versions, step_plan.step)
        rows = window.rows_until(self._num_steps)
        used = rows[rows["outcome"] == Outcome.USED]
        self._examples += int(used["num_examples"].sum(dtype=np.int64))
        counts = np.bincount(used["step"] - used["start_version"])
        if counts.size > self._staleness_counts.size:
            self._staleness_counts = np.pad(self._staleness_counts, (0, counts.size - self._staleness_counts.size))
        self._staleness_counts[: counts.size] += counts
        self._add_blocks(window)

    def _add_blocks(self, window: Window) -> None:
        """Blocks and their dependency depth; a block is ready when its newest start version exists."""
        depth = self._depth_of_version
        for block in window.blocks:
            if block.step.min() >= self._num_steps:
                continue
            self._blocks += 1
            self._tasks_in_blocks += block.num_lanes
            newest = min(int(block.start_version.max()), self._num_steps)
            needed_by = min(int(block.step.min()) + 1, self._num_steps + 1)
            depth[needed_by] = max(depth[needed_by], 1 + depth[newest])
            # Recovery may train a block again until its last step is closed: so long its versions are kept.
            last = min(int(block.step.max()), self._num_steps)
            np.maximum.at(self._last_use, block.start_version[block.start_version <= self._num_steps], last)
        first, end = window.first_step, min(window.end_step, self._num_steps) + 1
        depth[first : end + 1] = np.maximum.accumulate(depth[first : end + 1])

    def build(self) -> PlanSummary:
        """The figures of everything added so far."""
        used = int(self._lanes_by_step.sum())
        half = self._num_steps // 2
        steady = float(np.average(self._staleness_by_step[half:], weights=np.maximum(self._lanes_by_step[half:], 1e-9)))
        hours = self._closed_us / 3.6e9
        depth = int(self._depth_of_version.max())
        return PlanSummary(
            server_steps=self._num_steps,
            client_updates=used,
            participations=used + self._failed,
            virtual_hours=hours,
            server_steps_per_hour=self._num_steps / hours if hours else 0.0,
            mean_staleness=_mean(self._staleness_counts),
            p95_staleness=_percentile(self._staleness_counts, 0.95),
            steady_staleness=steady,
            wasted_share=self._wasted_us / max(self._wasted_us + self._used_us, 1),
            uplink_bytes=used * self._model_bytes,
            downlink_bytes=(used + self._failed) * self._model_bytes,
            blocks=self._blocks,
            occupancy=self._tasks_in_blocks / max(self._blocks * self._lanes, 1),
            depth=depth,
            mean_width=self._blocks / max(depth, 1),
            peak_live_versions=self._peak_live_versions(),
            mean_examples=self._examples / max(used, 1),
        )

    def _peak_live_versions(self) -> int:
        born = np.arange(self._num_steps + 1)
        change = np.zeros(self._num_steps + 3, dtype=np.int64)
        np.add.at(change, born, 1)
        np.add.at(change, self._last_use + 1, -1)
        return int(np.cumsum(change).max())


def _mean(counts: npt.NDArray[np.int64]) -> float:
    return float((counts * np.arange(counts.size)).sum() / max(counts.sum(), 1))


def _percentile(counts: npt.NDArray[np.int64], share: float) -> float:
    return float(np.searchsorted(np.cumsum(counts), share * counts.sum()))


def check_memory(summary: PlanSummary, *, model_bytes: int, block_bytes: int, budget_bytes: int, workers: int) -> None:
    """Refuses a plan whose live versions and working blocks cannot fit.

    Args:
        summary: the plan's figures.
        model_bytes: one model version.
        block_bytes: working memory of one block while it trains.
        budget_bytes: memory that the run may use.
        workers: blocks that train at once.

    Raises:
        PlanError: with the sum that does not fit.
    """
    versions_bytes = summary.peak_live_versions * model_bytes
    blocks_bytes = workers * block_bytes
    if versions_bytes + blocks_bytes <= budget_bytes:
        return
    raise PlanError(
        [
            Problem(
                "runtime.memory_bytes",
                f"{_size(versions_bytes + blocks_bytes)} needed: {summary.peak_live_versions} live model versions x "
                f"{_size(model_bytes)}, {workers} blocks x {_size(block_bytes)}",
                f"at most {_size(budget_bytes)}",
                why="every version is kept until the last step that a block from it serves is closed",
                hint="lower schedule.concurrency or runtime.lanes, raise schedule.buffer_goal, set "
                "schedule.max_staleness, take a smaller model, or more memory",
            )
        ]
    )


def _size(num_bytes: float) -> str:
    """In the largest binary unit that leaves a number ≥ 1."""
    if num_bytes < 2**10:
        return f"{num_bytes:.0f} bytes"
    exponent, unit = next((e, u) for e, u in ((30, "GiB"), (20, "MiB"), (10, "KiB")) if num_bytes >= 2**e)
    return f"{num_bytes / 2**exponent:.3f} {unit}"
