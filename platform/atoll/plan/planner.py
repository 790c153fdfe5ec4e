"""The planner: turns a timeline into windows of blocks, resumable and prefix-stable, and gives the plan its digest."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from atoll.messages import Block
from atoll.plan.blocks import Weigh, cut_windows
from atoll.plan.steps import StepPlan, Used, step_plans
from atoll.timeline import Outcome, Timeline

__all__ = ["PlanSettings", "Planner", "StepPlan", "Window"]

_ROWS_AHEAD = 2**13  # rows planned together


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


class _Draft(NamedTuple):
    """A window without its digests."""

    steps: tuple[StepPlan, ...]
    blocks: tuple[Block, ...]
    rows: npt.NDArray[np.void]
    offsets: npt.NDArray[np.int64]
    live_versions: npt.NDArray[np.int32]


class Planner:
    """Pulls a timeline and cuts it window by window.

    The sequence of windows depends on the settings and the timeline alone: asking for more windows never changes the
    earlier ones (design.md 9.4).

    Args:
        timeline: a fresh timeline (no step taken yet); the planner takes from it more than it has planned.
        settings: lane width, window length, identity.
        weigh: weights by staleness and example count.
    """

    def __init__(self, timeline: Timeline, settings: PlanSettings, weigh: Weigh) -> None:
        self.settings = settings
        self._timeline = timeline
        self._weigh = weigh
        self._next_block_id = 0
        self._ahead: deque[_Draft] = deque()
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
        if not self._ahead:
            self._plan_ahead()
        drafted = self._ahead.popleft()
        timeline_sha_before = self._timeline_sha.copy()
        self._timeline_sha.update(drafted.rows.view(np.uint8).data)
        for block in drafted.blocks:
            for array in (block.task_id, block.client_id, block.start_version, block.step, block.weight):
                self._plan_sha.update(array.data)
            self._plan_sha.update(b"|")
        self._num_steps += len(drafted.steps)
        return Window(*drafted, self._plan_sha.hexdigest(), timeline_sha_before)

    def _plan_ahead(self) -> None:
        """Drafts the windows that the timeline has simulated already, one at least: many cost little more than one."""
        ahead = self.settings.lookahead_steps
        num_windows = max(1, self._timeline.steps_at_hand(_ROWS_AHEAD) // ahead)
        chunk = self._timeline.advance(num_windows * ahead)
        is_used = chunk.rows["outcome"] == Outcome.USED
        rows = chunk.rows.take(np.flatnonzero(is_used))
        staleness = rows["step"].astype(np.int64) - rows["start_version"]
        used = Used(rows, *self._weigh(staleness, rows["num_examples"].astype(np.int64)))
        busy_us = chunk.rows["finish_us"] - chunk.rows["start_us"]
        steps = step_plans(
            chunk.first_step, chunk.opened_us, chunk.closed_us, chunk.offsets, is_used, busy_us, used
        )  # fmt: skip
        cut = cut_windows(used, chunk.first_step, num_windows, ahead, self.settings.lanes, self._next_block_id)
        self._next_block_id += sum(len(blocks) for blocks in cut)
        cuts = chunk.offsets[::ahead]
        alive = _alive(chunk.rows["start_version"], cuts[1:], chunk.first_step, ahead, self._timeline.live_versions())
        for index, blocks in enumerate(cut):
            first = index * ahead
            own = slice(cuts[index], cuts[index + 1])
            offsets = chunk.offsets[first : first + ahead + 1] - cuts[index]
            plans = tuple(steps[first : first + ahead])
            self._ahead.append(_Draft(plans, tuple(blocks), chunk.rows[own], offsets, alive[index]))


def _alive(
    version: npt.NDArray[np.int32],
    ends: npt.NDArray[np.int64],
    first_step: int,
    ahead: int,
    last: npt.NDArray[np.int32],
) -> list[npt.NDArray[np.int32]]:
    """Start versions in flight after each window: of rows that come later, and those alive after the last (`last`)."""
    if not last.size:
        return [last] * len(ends)  # synchronous rounds leave nothing
    known = np.union1d(version, last)
    # the last row that starts from each version; those still alive come after all rows
    until = np.zeros(known.size, dtype=np.int64)
    np.maximum.at(until, np.searchsorted(known, version), np.arange(len(version)))
    until[np.searchsorted(known, last)] = len(version)
    steps = first_step + ahead * np.arange(1, len(ends) + 1)
    return [known[(until >= end) & (known <= step)] for end, step in zip(ends, steps, strict=True)]
