"""The coordinator: which block goes where and when, as a pure state machine.

Every decision here changes speed only. What a block is, and which blocks a step needs, is the plan's; so the same plan
ends in the same bits whatever pools there are, however often they die, and in whatever order they return.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from atoll.aggregation import Step
from atoll.messages import Block
from atoll.plan import Planner, Window
from atoll.runtime.dispatch import Dispatcher
from atoll.runtime.elastic import OpenWork
from atoll.runtime.events import (
    Checkpoint,
    Evaluated,
    Event,
    Expect,
    Finish,
    Forget,
    HoldAfter,
    Instruction,
    OutOfMemory,
    PoolLost,
    PoolReady,
    PoolRetired,
    RecordEvaluation,
    RecordStep,
    StepsClosed,
    SumsLost,
    Trained,
    WorkFailed,
)
from atoll.runtime.ledger import Ledger
from atoll.runtime.store import StepRecord

__all__ = ["Coordinator", "CoordinatorSettings", "Start", "Target"]

#: Windows planned beyond the open one, so that blocks on old versions fill the pools while a step closes.
_WINDOWS_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Target:
    """Stop at the first evaluated version whose `metric` reaches `value`."""

    metric: str
    value: float
    is_falling: bool

    def is_reached(self, found: float) -> bool:
        """Whether `found` is at least as good as the target; NaN never is."""
        return found <= self.value if self.is_falling else found >= self.value


@dataclass(frozen=True, slots=True)
class CoordinatorSettings:
    """What the coordinator has to know besides the plan.

    Attributes:
        stop_steps: server steps at most.
        evaluate_every_steps: versions 0, n, 2n … and the last one are evaluated.
        checkpoint_every_steps: versions kept as artifacts; 0: the last one only.
        target: optional early stop.
        model_bytes: one model version.
        metric_names: the learner's metric sums.
        max_failures: calls that may fail for their own sake before the run stops.
    """

    stop_steps: int
    evaluate_every_steps: int
    checkpoint_every_steps: int
    target: Target | None
    model_bytes: int
    metric_names: tuple[str, ...]
    max_failures: int = 3


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run begins or goes on.

    Attributes:
        version: newest version there is; 0 at the beginning.
        alive: versions that there are weights for.
        totals: the ledger's, after the step that made `version`.
        evaluations: evaluated version ≤ `version` → metrics.
    """

    version: int = 0
    alive: tuple[int, ...] = (0,)
    totals: Mapping[str, float] = field(default_factory=dict)
    evaluations: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


class Coordinator:
    """Takes events, returns instructions; owns no handle, no clock and no weights.

    Args:
        planner: windows are pulled as steps close, so memory does not grow with the run; it has given out the windows
            that end before `start.version`, and no other.
        settings: when to stop, evaluate and keep.
        ready_pools: numbers of the client pools that can take work now.
        start: where to go on from.
    """

    def __init__(
        self,
        planner: Planner,
        settings: CoordinatorSettings,
        ready_pools: Iterable[int],
        start: Start | None = None,
    ) -> None:
        self._planner, self._settings = planner, settings
        self._start = start = start or Start()
        self.ledger = Ledger(settings.model_bytes, settings.metric_names, start.totals)
        self.version = start.version
        self._dispatcher = Dispatcher(ready_pools, planner.settings.lookahead_steps, settings.max_failures)
        self._windows: list[Window] = []
        self._rows: list[npt.NDArray[np.void]] = []
        self._waiting: list[tuple[int, int, int, Block]] = []
        #: how many planned blocks whose last step is not closed yet start from each version
        self._uses: Counter[int] = Counter()
        #: step → start versions of the blocks of which it is the last step
        self._last_uses: dict[int, list[list[int]]] = {}
        self._early: dict[int, Step] = {}
        self._to_evaluate: list[int] = []
        self._alive: set[int] = set(start.alive)
        #: start versions of tasks that no window holds yet: in flight when the last window ends
        self._in_flight: tuple[int, ...] = start.alive
        self._stop_at = settings.stop_steps
        self._is_target_reached = False
        self.is_finished = False

    @property
    def stop_at(self) -> int:
        """Version at which the run ends, as far as is known."""
        return self._stop_at

    def open_work(self) -> OpenWork:
        """What could be done at the same time now."""
        return self._dispatcher.open_work(len(self._to_evaluate))

    def share(self, num_runs: int) -> None:
        """So many runs share the pools now."""
        self._dispatcher.share(num_runs)

    # ---- life ---------------------------------------------------------------------------------------------------

    def start(self) -> list[Instruction]:
        """The first instructions: plan, evaluate what was not evaluated yet, train what starts on what there is."""
        out: list[Instruction] = []
        version, known = self.version, self._start.evaluations
        due = {*range(0, version + 1, self._settings.evaluate_every_steps)}
        if version == self._settings.stop_steps:
            due.add(version)
        self._to_evaluate = sorted(due & self._alive - known.keys())
        target = self._settings.target
        if target is not None:
            out.append(HoldAfter(self._next_evaluation(version + (version in known))))
            if version in known and version in due and target.is_reached(known[version][f"eval/{target.metric}"]):
                self._stop_at, self._is_target_reached = version, True
        return self._advance(out, is_start=True)

    def handle(self, event: Event) -> list[Instruction]:
        """What to do about `event`."""
        out: list[Instruction] = []
        if self.is_finished:
            return out
        again: list[int] = []
        match event:
            case Trained(call, busy_s):
                self._dispatcher.returned(call, busy_s)
            case StepsClosed(steps):
                # Replies of the aggregator may overtake one another: take steps in order only.
                self._early.update({step.plan.step: step for step in steps if step.plan.step >= self.version})
                while self.version in self._early:
                    self._closed(self._early.pop(self.version), out)
            case Evaluated(call, version, metrics, busy_s):
                if self._dispatcher.evaluated(call, busy_s):
                    self._judge(version, dict(metrics), out)
            case PoolLost(pool, is_out_of_memory, is_to_blame):
                lost = self._dispatcher.pool_lost
                again = lost(pool, is_out_of_memory=is_out_of_memory, is_work_to_blame=is_to_blame)
            case PoolReady(pool):
                self._dispatcher.pool_ready(pool)
            case PoolRetired(pool):
                self._dispatcher.pool_retired(pool)
            case SumsLost(blocks):
                for block in blocks:
                    if block.step.max() >= self.version:
                        self._dispatcher.add(block)
            case OutOfMemory(call):
                again = self._dispatcher.out_of_memory(call)
            case WorkFailed(call, error):
                again = self._dispatcher.failed(call, error)
        for version in again:
            heapq.heappush(self._to_evaluate, version)
        return self._advance(out)

    # ---- events -------------------------------------------------------------------------------------------------

    def _closed(self, step: Step, out: list[Instruction]) -> None:
        self.version = step.model.version
        self._alive.add(self.version)
        for versions in self._last_uses.pop(step.plan.step, ()):
            self._uses.subtract(versions)
            for version in versions:
                if not self._uses[version]:
                    del self._uses[version]
        metrics = self.ledger.add(step)
        record = StepRecord(step.plan.step, step.plan.closed_us, step.sum_sha, self.ledger.totals())
        out.append(RecordStep(record, metrics))
        every = self._settings.evaluate_every_steps
        if self.version % every == 0 or self.version == self._settings.stop_steps:
            heapq.heappush(self._to_evaluate, self.version)
        keep = self._settings.checkpoint_every_steps
        if keep and self.version % keep == 0 and self.version != self._settings.stop_steps:
            out.append(Checkpoint(self.version))

    def _judge(self, version: int, metrics: dict[str, float], out: list[Instruction]) -> None:
        out.append(RecordEvaluation(version, metrics))
        target = self._settings.target
        if target is None:
            return
        if target.is_reached(metrics[f"eval/{target.metric}"]):
            self._stop_at, self._is_target_reached = version, True
        else:
            out.append(HoldAfter(self._next_evaluation(version + 1)))

    # ---- decisions ----------------------------------------------------------------------------------------------

    def _advance(self, out: list[Instruction], *, is_start: bool = False) -> list[Instruction]:
        """Finishes, or plans further and gives work to whoever has room."""
        self._plan_ahead(out)
        if self._is_over():
            out.append(Checkpoint(self._stop_at))
            out.append(self._finish())
            return out
        self._release_windows()
        while self._waiting and self._waiting[0][0] <= self.version:
            self._dispatcher.add(heapq.heappop(self._waiting)[3])
        self._forget(out)
        if is_start:
            # clients first: an evaluation begins with loading what it needs
            out.extend(self._dispatcher.train())
        while self._to_evaluate and (call := self._dispatcher.evaluate(self._to_evaluate[0])) is not None:
            heapq.heappop(self._to_evaluate)
            out.append(call)
        out.extend(self._dispatcher.train())
        return out

    def _is_over(self) -> bool:
        """Whether the last version is there and every evaluation up to it has come back."""
        if self.version < self._stop_at:
            return False
        asked = [*self._to_evaluate, *self._dispatcher.versions_in_evaluation]
        return all(version > self._stop_at for version in asked)

    def _plan_ahead(self, out: list[Instruction]) -> None:
        length = self._planner.settings.lookahead_steps
        horizon = min(self.version + 1 + _WINDOWS_AHEAD * length, self._settings.stop_steps)
        while self._planner.num_steps < horizon:
            window = self._planner.advance()
            self._windows.append(window)
            self._in_flight = tuple(window.live_versions.tolist())
            out.append(Expect(window.steps))
            for block in window.blocks:
                self._take_up(block)

    def _take_up(self, block: Block) -> None:
        steps = block.step.tolist()  # lists: blocks are small, and a NumPy call costs more than a pass over one
        first, last = min(steps), max(steps)
        if last < self.version:
            return
        # Counted beyond the last step too: a longer run, asked for later, goes on from these versions.
        versions = sorted(set(block.start_version.tolist()))
        self._uses.update(versions)
        self._last_uses.setdefault(last, []).append(versions)
        if first < self._settings.stop_steps:
            entry = (versions[-1], first, block.block_id, block)
            heapq.heappush(self._waiting, entry)

    def take_rows(self) -> list[npt.NDArray[np.void]]:
        """Timeline rows of the steps closed since the last call, in event order: the part of the timeline to keep."""
        rows, self._rows = self._rows, []
        return rows

    def give_up(self) -> None:
        """The run ends here: the rows of the steps closed in open windows are to be kept too."""
        if not self.is_finished:
            self._rows += [window.rows_until(self.version) for window in self._windows]
            self.is_finished = True

    def _release_windows(self) -> None:
        while self._windows and self._windows[0].end_step < self.version:
            self._rows.append(self._windows.pop(0).rows)

    def _finish(self) -> Finish:
        self.is_finished = True
        while self._windows[0].end_step < self._stop_at:
            self._rows.append(self._windows.pop(0).rows)
        window = self._windows[0]
        self._rows.append(window.rows_until(self._stop_at))
        return Finish(
            version=self._stop_at,
            reason="target reached" if self._is_target_reached else "server steps done",
            timeline_digest=window.timeline_digest(self._stop_at),
            plan_digest=window.plan_digest,
        )

    def live_versions(self) -> tuple[int, ...]:
        """Versions that a snapshot of this moment, or of a version closed since, needs; ascending."""
        return tuple(sorted(self._alive))

    def _forget(self, out: list[Instruction]) -> None:
        """Drops the versions that no open block, no task in flight and no evaluation can still ask for."""
        needed = {self.version, *self._in_flight, *self._to_evaluate, *self._dispatcher.versions_in_evaluation}
        old = [version for version in self._alive if version < self._planner.num_steps]
        dead = tuple(sorted(v for v in old if v not in needed and v not in self._uses))
        if dead:
            self._alive.difference_update(dead)
            out.append(Forget(dead, tuple(sorted(self._alive))))

    def _next_evaluation(self, version: int) -> int:
        every = self._settings.evaluate_every_steps
        return min(-(-version // every) * every, self._settings.stop_steps)
