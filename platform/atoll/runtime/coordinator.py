"""The coordinator: which block goes where and when, as a pure state machine.

Every decision here changes speed only. What a block is, and which blocks a step needs, is the plan's; so the same plan
ends in the same bits whatever pools there are, however often they die, and in whatever order they return.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from atoll.aggregation import Step
from atoll.errors import InfrastructureError
from atoll.messages import Block
from atoll.plan import Planner, Window
from atoll.runtime.events import (
    Checkpoint,
    Evaluate,
    Evaluated,
    Event,
    Expect,
    Finish,
    Forget,
    HoldAfter,
    Instruction,
    PoolLost,
    Record,
    StepsClosed,
    Train,
    Trained,
)
from atoll.runtime.ledger import Ledger

__all__ = ["Coordinator", "CoordinatorSettings", "Target"]

#: Calls that a pool may hold at once: one that runs and one that waits, to hide the round trip.
_CALLS_PER_POOL = 2
#: Wall seconds of work that make a call worth its overhead (references: a Ray call costs 5 ms of processor time).
_CALL_TARGET_S = 0.3
#: An evaluation in units of `_cost`: about as much as a block.
_EVALUATION_COST = 2000.0
#: Windows planned beyond the open one, so that blocks on old versions fill the pools while a step closes.
_WINDOWS_AHEAD = 2
#: A call that loses its pool this often ends the run: the work itself kills workers.
_MAX_LOSSES_PER_CALL = 5


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
    """

    stop_steps: int
    evaluate_every_steps: int
    checkpoint_every_steps: int
    target: Target | None
    model_bytes: int
    metric_names: tuple[str, ...]


@dataclass(slots=True)
class _Call:
    """Work given to a pool: blocks to train, or a version to evaluate."""

    pool: int
    blocks: tuple[Block, ...]
    version: int | None
    cost: float


class Coordinator:
    """Takes events, returns instructions; owns no handle, no clock and no weights.

    Args:
        planner: fresh; windows are pulled as steps close, so memory does not grow with the run.
        settings: when to stop, evaluate and keep.
        num_pools: client pools, numbered from 0, ≥ 1.
    """

    def __init__(self, planner: Planner, settings: CoordinatorSettings, num_pools: int) -> None:
        self._planner, self._settings = planner, settings
        self.ledger = Ledger(settings.model_bytes, settings.metric_names)
        self.version = 0
        self._windows: list[Window] = []
        self._rows: list[npt.NDArray[np.void]] = []
        self._num_pools = num_pools
        self._calls: dict[int, _Call] = {}
        self._next_call = 0
        self._waiting: list[tuple[int, int, int, Block]] = []
        self._ready: list[tuple[int, int, Block]] = []
        #: how many planned blocks, not trained yet, start from each version
        self._uses: Counter[int] = Counter()
        self._early: dict[int, Step] = {}
        self._to_evaluate: list[tuple[int, int]] = []
        self._evaluated: set[int] = set()
        self._losses: dict[int, int] = {}
        self._alive: set[int] = {0}
        #: start versions of tasks that no window holds yet: in flight when the last window ends
        self._in_flight: tuple[int, ...] = (0,)
        #: wall seconds per unit of cost, a running mean; it sizes calls and decides no bit
        self._cost_s = 0.0
        self._stop_at = settings.stop_steps
        self._is_target_reached = False
        self.is_finished = False

    # ---- life ---------------------------------------------------------------------------------------------------

    def start(self) -> list[Instruction]:
        """The first instructions: plan, evaluate version 0, train what starts on it."""
        out: list[Instruction] = []
        if self._settings.target is not None:
            out.append(HoldAfter(self._next_evaluation(1)))
        self._to_evaluate.append((0, 0))
        return self._advance(out)

    def handle(self, event: Event) -> list[Instruction]:
        """What to do about `event`."""
        out: list[Instruction] = []
        if self.is_finished:
            return out
        match event:
            case Trained(call, busy_s):
                self._returned(call, busy_s)
            case StepsClosed(steps):
                # Replies of the aggregator may overtake one another: take steps in order only.
                self._early.update({step.plan.step: step for step in steps})
                while self.version in self._early:
                    self._closed(self._early.pop(self.version), out)
            case Evaluated(call, version, metrics, _):
                if self._calls.pop(call, None) is not None:
                    self._judge(version, dict(metrics), out)
            case PoolLost(pool):
                self._lost(pool)
        return self._advance(out)

    # ---- events -------------------------------------------------------------------------------------------------

    def _returned(self, call_id: int, busy_s: float) -> None:
        call = self._calls.pop(call_id, None)
        if call is None:
            return
        for block in call.blocks:
            self._uses.subtract(_versions_of(block))
            self._losses.pop(block.block_id, None)
        found = busy_s / call.cost
        self._cost_s = found if not self._cost_s else 0.8 * self._cost_s + 0.2 * found

    def _closed(self, step: Step, out: list[Instruction]) -> None:
        self.version = step.model.version
        self._alive.add(self.version)
        out.append(Record(self.version, self.ledger.add(step)))
        every = self._settings.evaluate_every_steps
        if self.version % every == 0 or self.version == self._settings.stop_steps:
            heapq.heappush(self._to_evaluate, (self.version, self.version))
        keep = self._settings.checkpoint_every_steps
        if keep and self.version % keep == 0 and self.version != self._settings.stop_steps:
            out.append(Checkpoint(self.version))

    def _judge(self, version: int, metrics: dict[str, float], out: list[Instruction]) -> None:
        self._evaluated.add(version)
        out.append(Record(version, metrics))
        target = self._settings.target
        if target is None:
            return
        if target.is_reached(metrics[f"eval/{target.metric}"]):
            self._stop_at, self._is_target_reached = version, True
        else:
            out.append(HoldAfter(self._next_evaluation(version + 1)))

    def _lost(self, pool: int) -> None:
        for call_id in [call_id for call_id, call in self._calls.items() if call.pool == pool]:
            call = self._calls.pop(call_id)
            if call.version is not None:
                heapq.heappush(self._to_evaluate, (call.version, call.version))
            for block in call.blocks:
                self._losses[block.block_id] = self._losses.get(block.block_id, 0) + 1
                if self._losses[block.block_id] >= _MAX_LOSSES_PER_CALL:
                    raise InfrastructureError(
                        f"block {block.block_id} (server step {int(block.step.min())}, "
                        f"clients {block.client_id[:4].tolist()}…): its worker died {_MAX_LOSSES_PER_CALL} times. "
                        "The work itself seems to end the process: out of memory? Lower runtime.lanes or the model."
                    )
                self._push_ready(block)

    # ---- decisions ----------------------------------------------------------------------------------------------

    def _advance(self, out: list[Instruction]) -> list[Instruction]:
        """Finishes, or plans further and gives work to whoever has room."""
        if self._is_over():
            out.append(Checkpoint(self._stop_at))
            out.append(self._finish())
            return out
        self._plan_ahead(out)
        self._release_windows()
        while self._waiting and self._waiting[0][0] <= self.version:
            self._push_ready(heapq.heappop(self._waiting)[3])
        self._forget(out)
        self._dispatch(out)
        return out

    def _is_over(self) -> bool:
        """Whether the last version is there and every evaluation up to it has come back."""
        if self.version < self._stop_at or self._stop_at not in self._evaluated:
            return False
        asked = [version for version, _ in self._to_evaluate]
        asked += [call.version for call in self._calls.values() if call.version is not None]
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
                if block.step.min() >= self._settings.stop_steps:
                    continue
                self._uses.update(_versions_of(block))
                entry = (int(block.start_version.max()), int(block.step.min()), block.block_id, block)
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
        window = next(w for w in self._windows if w.first_step <= self._stop_at <= w.end_step)
        self._rows.append(window.rows_until(self._stop_at))
        return Finish(
            version=self._stop_at,
            reason="target reached" if self._is_target_reached else "server steps done",
            timeline_digest=window.timeline_digest(self._stop_at),
            plan_digest=window.plan_digest,
        )

    def _forget(self, out: list[Instruction]) -> None:
        """Drops the versions that no planned block, no task in flight and no evaluation can still ask for."""
        needed = {self.version, *self._in_flight, *(version for version, _ in self._to_evaluate)}
        needed.update(call.version for call in self._calls.values() if call.version is not None)
        old = [version for version in self._alive if version < self._planner.num_steps]
        dead = tuple(sorted(v for v in old if v not in needed and not self._uses[v]))
        if dead:
            self._alive.difference_update(dead)
            out.append(Forget(dead, tuple(sorted(self._alive))))

    def _dispatch(self, out: list[Instruction]) -> None:
        while self._to_evaluate:
            pool = min(range(self._num_pools), key=self._load)
            _, version = heapq.heappop(self._to_evaluate)
            out.append(Evaluate(pool, self._open(_Call(pool, (), version, _EVALUATION_COST)), version))
        while self._ready:
            free = [pool for pool in range(self._num_pools) if self._num_calls(pool) < _CALLS_PER_POOL]
            if not free:
                return
            pool = min(free, key=self._load)
            blocks = self._take_blocks()
            versions = sorted({version for block in blocks for version in _versions_of(block)})
            call = _Call(pool, blocks, None, sum(map(_cost, blocks)))
            out.append(Train(pool, self._open(call), blocks, tuple(versions)))

    def _take_blocks(self) -> tuple[Block, ...]:
        """The next call: blocks of the oldest window only, so that what is due first is not held up by what is not.

        As many as make a call worth its overhead, but no more than half a pool's fair share of what is ready.
        """
        window = self._ready[0][0]
        ready = sum(_cost(entry[2]) for entry in self._ready if entry[0] == window)
        limit = ready / (_CALLS_PER_POOL * self._num_pools)
        if self._cost_s:
            limit = min(limit, _CALL_TARGET_S / self._cost_s)
        blocks = [heapq.heappop(self._ready)[2]]
        taken = _cost(blocks[0])
        while taken < limit and self._ready and self._ready[0][0] == window:
            blocks.append(heapq.heappop(self._ready)[2])
            taken += _cost(blocks[-1])
        return tuple(blocks)

    def _open(self, call: _Call) -> int:
        call_id = self._next_call
        self._next_call += 1
        self._calls[call_id] = call
        return call_id

    def _load(self, pool: int) -> float:
        return sum(call.cost for call in self._calls.values() if call.pool == pool)

    def _num_calls(self, pool: int) -> int:
        return sum(call.pool == pool for call in self._calls.values())

    def _push_ready(self, block: Block) -> None:
        window = int(block.step.min()) // self._planner.settings.lookahead_steps
        heapq.heappush(self._ready, (window, block.block_id, block))

    def _next_evaluation(self, version: int) -> int:
        every = self._settings.evaluate_every_steps
        return min(-(-version // every) * every, self._settings.stop_steps)


def _cost(block: Block) -> float:
    """Work of a block in arbitrary units: its examples, and something for every lane."""
    return float(block.num_examples.sum()) + 8.0 * block.num_lanes


def _versions_of(block: Block) -> list[int]:
    """Distinct start versions of a block's lanes."""
    found: list[int] = np.unique(block.start_version).tolist()
    return found
