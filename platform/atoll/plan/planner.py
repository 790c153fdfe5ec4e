"""The planner: turns a timeline into windows of blocks, resumable and prefix-stable, and gives the plan its digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from atoll.messages import Block
from atoll.plan.blocks import Weigh, cut_blocks
from atoll.timeline import Outcome, Timeline

__all__ = ["PlanSettings", "Planner", "StepPlan", "Window"]


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """What cuts the timeline into work.

    Attributes:
        lanes: W, lanes per block.
        lookahead_steps: server steps per window.
        identity: canonical text of everything else that decides bits (model shape, client work, grid, data, device
            class, profile table …); the plan digest starts with it.
    """

    lanes: int
    lookahead_steps: int
    identity: str


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One server step as the plan knows it ahead of training.

    Attributes:
        step: the server step, 0 first; it turns version `step` into version `step + 1`.
        closed_us: virtual time at which its buffer is full.
        fill_us: virtual time since the previous step closed.
        num_lanes: tasks whose deltas it sums, ≥ 1.
        divisor: Σ example weight over them.
        staleness_mean: mean staleness of them.
        staleness_p95: 95th percentile of it.
        num_failed: participations that ended without effect since the previous step closed.
        wasted_us: device time these spent.
        used_us: device time that the used tasks spent.
        start_versions: distinct start versions, ascending.
        start_weights: Σ weight per distinct start version (the mixing form of FedAsync needs it).
    """

    step: int
    closed_us: int
    fill_us: int
    num_lanes: int
    divisor: float
    staleness_mean: float
    staleness_p95: float
    num_failed: int
    wasted_us: int
    used_us: int
    start_versions: npt.NDArray[np.int32]
    start_weights: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive server steps and the blocks that serve them.

    Attributes:
        steps: one StepPlan each, consecutive.
        blocks: cover every used task of these steps once.
        rows: the window's timeline rows, failures included, in event order.
        offsets: int64 [len(steps) + 1], rows of each step.
        live_versions: start versions of tasks still in flight when the window ends; ascending.
        plan_digest: SHA-256 (hex) of the identity and of every block up to and with this window.
        timeline_sha_before: running SHA-256 over the timeline's identity and all rows before this window.
    """

    steps: tuple[StepPlan, ...]
    blocks: tuple[Block, ...]
    rows: npt.NDArray[np.void]
    offsets: npt.NDArray[np.int64]
    live_versions: npt.NDArray[np.int32]
    plan_digest: str
    timeline_sha_before: Any

    @property
    def first_step(self) -> int:
        """The window's first server step."""
        return self.steps[0].step

    @property
    def end_step(self) -> int:
        """One past the window's last server step."""
        return self.steps[-1].step + 1

    def rows_until(self, num_steps: int) -> npt.NDArray[np.void]:
        """The window's rows that belong to the run's first `num_steps` server steps."""
        index = min(max(num_steps - self.first_step, 0), len(self.steps))
        return self.rows[: self.offsets[index]]

    def timeline_digest(self, num_steps: int) -> str:
        """SHA-256 (hex) of the timeline's first `num_steps` server steps, first_step ≤ num_steps ≤ end_step."""
        if not self.first_step <= num_steps <= self.end_step:
            raise ValueError(f"timeline_digest({num_steps}): this window spans {self.first_step} to {self.end_step}")
        sha = self.timeline_sha_before.copy()
        sha.update(self.rows_until(num_steps).tobytes())
        return str(sha.hexdigest())


class Planner:
    """Pulls a timeline and cuts it window by window.

    The sequence of windows depends on the settings and the timeline alone: asking for more windows never changes the
    earlier ones (design.md 9.4).

    Args:
        timeline: a fresh timeline (no step taken yet).
        settings: lane width, window length, identity.
        weigh: weights by staleness and example count.
    """

    def __init__(self, timeline: Timeline, settings: PlanSettings, weigh: Weigh) -> None:
        self.settings = settings
        self._timeline = timeline
        self._weigh = weigh
        self._next_block_id = 0
        self._closed_us = 0
        self._num_steps = 0
        text = f"lanes={settings.lanes};lookahead={settings.lookahead_steps};{settings.identity};{timeline.identity}"
        self._timeline_sha = hashlib.sha256(timeline.identity.encode())
        self._plan_sha = hashlib.sha256(text.encode())

    @property
    def num_steps(self) -> int:
        """Server steps planned so far, a multiple of the window length."""
        return self._num_steps

    def advance(self) -> Window:
        """The next window. Raises what the timeline raises where no further step can be reached."""
        first = self._num_steps
        chunk = self._timeline.advance(self.settings.lookahead_steps)
        is_used = chunk.rows["outcome"] == Outcome.USED
        blocks = self._cut(chunk.rows[is_used])
        steps = []
        for index in range(chunk.num_steps):
            rows = chunk.rows[chunk.offsets[index] : chunk.offsets[index + 1]]
            steps.append(self._step_plan(first + index, int(chunk.closed_us[index]), rows))
        timeline_sha_before = self._timeline_sha.copy()
        self._timeline_sha.update(chunk.rows.tobytes())
        for block in blocks:
            for array in (block.task_id, block.client_id, block.start_version, block.step, block.weight):
                self._plan_sha.update(array.tobytes())
            self._plan_sha.update(b"|")
        self._next_block_id += len(blocks)
        self._num_steps += chunk.num_steps
        return Window(
            steps=tuple(steps),
            blocks=tuple(blocks),
            rows=chunk.rows,
            offsets=chunk.offsets,
            live_versions=self._timeline.live_versions().astype(np.int32),
            plan_digest=self._plan_sha.hexdigest(),
            timeline_sha_before=timeline_sha_before,
        )

    def _cut(self, rows: npt.NDArray[np.void]) -> list[Block]:
        settings = self.settings
        return cut_blocks(rows, settings.lanes, settings.lookahead_steps, self._weigh, self._next_block_id)

    def _step_plan(self, step: int, closed_us: int, rows: npt.NDArray[np.void]) -> StepPlan:
        is_used = rows["outcome"] == Outcome.USED
        used, failed = rows[is_used], rows[~is_used]
        staleness = step - used["start_version"].astype(np.int64)
        weight, example_weight = self._weigh(staleness, used["num_examples"].astype(np.int64))
        versions, where = np.unique(used["start_version"], return_inverse=True)
        fill_us, self._closed_us = closed_us - self._closed_us, closed_us
        return StepPlan(
            step=step,
            closed_us=closed_us,
            fill_us=fill_us,
            num_lanes=int(used.size),
            divisor=float(example_weight.sum()),
            staleness_mean=float(staleness.mean()),
            staleness_p95=float(np.percentile(staleness, 95)),
            num_failed=int(failed.size),
            wasted_us=int((failed["finish_us"] - failed["start_us"]).sum()),
            used_us=int((used["finish_us"] - used["start_us"]).sum()),
            start_versions=versions.astype(np.int32),
            start_weights=np.bincount(where, weights=weight, minlength=versions.size).astype(np.float64),
        )
