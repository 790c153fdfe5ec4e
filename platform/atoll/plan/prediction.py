"""How long a plan takes on pools that nobody has at hand: its blocks, scheduled in a model of the cluster's time.

Times are wall seconds since the run's first instruction. Nothing here decides a bit: a prediction reads a plan.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from atoll.messages import Block
from atoll.plan.planner import Window

__all__ = ["ClusterCosts", "Ending", "Prediction", "Predictor", "Traffic", "WorkCosts"]

#: calls that a pool holds at a time, and wall seconds of work that a call holds: as `runtime/dispatch.py` has them
_CALLS_PER_POOL, _CALL_LEAST_S, _CALL_MOST_S = 2, 0.015, 0.3
#: windows that the coordinator plans beyond the open one, as `runtime/coordinator.py` has it
_WINDOWS_AHEAD = 2
#: versions that are remembered before those that nobody needs any more are looked for
_MANY = 512


@dataclass(frozen=True, slots=True)
class WorkCosts:
    """Seconds that one pool spends on work.

    Attributes:
        block_s: per block, whatever is in it.
        update_s: per client update.
        example_s: per training example of a client, all epochs together.
        evaluation_s: per evaluation.
    """

    block_s: float
    update_s: float
    example_s: float
    evaluation_s: float

    def of(self, block: Block) -> float:
        """Of one block."""
        return self.block_s + self.update_s * block.num_lanes + self.example_s * int(block.num_examples.sum())


@dataclass(frozen=True, slots=True)
class ClusterCosts:
    """What Ray and the coordinator add; the defaults are measured on two cores of an Intel Xeon of 2023.

    Attributes:
        start_s: from the command to the first instruction: Ray, processes, imports.
        call_s: of a pool, per call: to take the work apart and put sums together.
        answer_s: of the coordinator, per call.
        answer_byte_s: of the coordinator, per byte of sums.
        step_s: of the coordinator, per server step.
        parameter_s: of the coordinator, per parameter and server step.
        bytes_per_s: bandwidth of the coordinator's node, in each direction.
        pools_per_node: pools that share one copy of a version.
    """

    start_s: float = 6.5
    call_s: float = 1.0e-3
    answer_s: float = 3.0e-3
    answer_byte_s: float = 1.0e-9
    step_s: float = 0.7e-3
    parameter_s: float = 5.0e-9
    bytes_per_s: float = 1.25e9
    pools_per_node: int = 8


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of a model, float32.

    Attributes:
        dense_bytes: everything that is not an embedding table.
        table_bytes: embedding tables.
        row_bytes: the rows of the tables that one example reads.
        is_sparse: whether a server step changes only the rows that its clients have read.
    """

    dense_bytes: int
    table_bytes: int = 0
    row_bytes: int = 0
    is_sparse: bool = True

    def sums(self, num_steps: int, num_examples: int) -> int:
        """Of a call that contributes to so many server steps: int64, of tables the rows read."""
        return 2 * (num_steps * self.dense_bytes + min(num_steps * self.table_bytes, num_examples * self.row_bytes))

    def version(self, num_examples: int) -> int:
        """Of a model version, for who has the one before; its step has seen so many examples."""
        changed = min(self.table_bytes, num_examples * self.row_bytes) if self.is_sparse else self.table_bytes
        return self.dense_bytes + changed

    @property
    def stepped_parameters(self) -> int:
        """Parameters that every server step goes through."""
        return (self.dense_bytes + (0 if self.is_sparse else self.table_bytes)) // 4


@dataclass(frozen=True, slots=True)
class Ending:
    """When a run ends, and what it measures on the way.

    Attributes:
        server_steps: steps until the end; that a target ends a run earlier is not foreseen.
        evaluate_every_steps: versions 0, n, 2n … and the last one are evaluated.
        waits_for_evaluation: whether no step closes beyond an evaluated version until its metrics are known.
    """

    server_steps: int
    evaluate_every_steps: int
    waits_for_evaluation: bool = False

    def is_evaluated(self, version: int) -> bool:
        """Whether this version is."""
        return version % self.evaluate_every_steps == 0 or version == self.server_steps

    def next_evaluated(self, version: int) -> int:
        """The first evaluated version from this one on."""
        every = self.evaluate_every_steps
        return min(-(-version // every) * every, self.server_steps)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a run takes on `pools` pools.

    Attributes:
        pools: client pools, one per core or GPU.
        wall_s: from the first instruction to the last, as `Run.wall_s`.
        start_s: before that.
        pool_hours: pools times wall time, start included.
        occupancy: share of the pools' wall time that is client training or evaluation, 0 … 1.
        coordinator_share: share of the wall time in which the coordinator is at work, 0 … 1.
        bytes_moved: model versions to nodes and sums back.
    """

    pools: int
    wall_s: float
    start_s: float
    pool_hours: float
    occupancy: float
    coordinator_share: float
    bytes_moved: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class _Unit(NamedTuple):
    """One block, as the schedule sees it."""

    window: int
    block_id: int
    seconds: float
    examples: int
    #: server steps that it contributes to, before the run's end
    steps: frozenset[int]
    versions: frozenset[int]


#: what a call does: blocks, or the evaluation of this version
_What = list[_Unit] | int


class Predictor:
    """Schedules a plan's blocks on several numbers of pools, window by window; memory does not grow with the run.

    A block is ready when its newest start version exists; pools take what is due first, as calls of several blocks. A
    step closes when all its blocks are in and the step before it is closed. The coordinator does one thing at a time.

    Args:
        pools: numbers of pools, each ≥ 1.
        work: what client work costs.
        cluster: what everything else costs.
        traffic: what is moved.
        ending: how far the plan is followed.

    Purity: the same windows give the same predictions.
    """

    def __init__(
        self, pools: Sequence[int], work: WorkCosts, cluster: ClusterCosts, traffic: Traffic, ending: Ending
    ) -> None:
        self._work, self._ending = work, ending
        self._schedules = [_Schedule(number, work, cluster, traffic, ending) for number in pools]
        self._num_windows = 0

    def add(self, window: Window) -> None:
        """Adds a window; windows come in order, and those after the last step of the run are left out."""
        end = min(window.end_step, self._ending.server_steps)
        if window.first_step >= end:
            return
        units = [unit for block in window.blocks if (unit := self._unit(block)).steps]
        for schedule in self._schedules:
            schedule.add(units, end, len(window.steps), int(min(window.live_versions, default=end)))
        self._num_windows += 1

    def _unit(self, block: Block) -> _Unit:
        steps = frozenset(step for step in set(block.step.tolist()) if step < self._ending.server_steps)
        versions = frozenset(block.start_version.tolist())
        examples = int(block.num_examples.sum())
        return _Unit(self._num_windows, block.block_id, self._work.of(block), examples, steps, versions)

    def build(self) -> tuple[Prediction, ...]:
        """One per number of pools, in the order given; the windows added must reach the end of the run."""
        return tuple(schedule.end() for schedule in self._schedules)


class _Schedule:
    """The state of one cluster while it works through the plan."""

    def __init__(self, pools: int, work: WorkCosts, cluster: ClusterCosts, traffic: Traffic, ending: Ending) -> None:
        self._pools, self._work, self._cluster, self._traffic, self._ending = pools, work, cluster, traffic, ending
        #: calls under way: (end, number, pool, bytes of their sums, what they do)
        self._calls: list[tuple[float, int, int, int, _What]] = []
        self._num_calls = 0
        #: what the coordinator works off, in order: (end, the call's work) or (end, the version that it makes)
        self._desk: deque[tuple[float, _What | None, int]] = deque([(0.0, None, 0)])
        self._idle = list(range(pools - 1, -1, -1))
        #: per pool, when its next calls have been sent: as soon as the coordinator is through with the call before last
        self._sent_s = [[0.0] * _CALLS_PER_POOL for _ in range(pools)]
        #: per node, the versions sent to it, and when the last one of them is there
        self._held: list[set[int]] = [set() for _ in range(-(-pools // cluster.pools_per_node))]
        self._arrived_s = [0.0] * len(self._held)
        self._ready: list[_Unit] = []
        self._ready_s = 0.0
        self._waiting: dict[int, list[_Unit]] = {}
        #: per open step, its blocks that are not in yet, and the examples of all of them
        self._open: Counter[int] = Counter()
        self._examples: Counter[int] = Counter()
        self._to_evaluate: deque[int] = deque()
        self._version = self._planned = 0
        self._is_closing = False
        #: version from which on more of the plan is looked at
        self._pause_at = 0
        #: no version beyond this one is made
        self._hold_after = 0 if ending.waits_for_evaluation else ending.server_steps
        self._now_s = self._ended_s = 0.0
        #: until when the coordinator and both directions of its node's link are taken
        self._coordinator_s = self._out_s = self._in_s = 0.0
        self._busy_s = self._coordinator_busy_s = 0.0
        self._bytes = 0

    def add(self, units: Sequence[_Unit], end_step: int, lookahead: int, oldest: int) -> None:
        """Work up to `end_step`, then everything that happens before more of the plan is looked at.

        Args:
            units: of one window.
            end_step: one past its last step.
            lookahead: steps per window.
            oldest: the oldest version that later windows may need.
        """
        for unit in units:
            for step in unit.steps:
                self._open[step] += 1
                self._examples[step] += unit.examples // len(unit.steps)
            newest = max(unit.versions)
            if newest <= self._version:
                self._add_ready(unit)
            else:
                self._waiting.setdefault(newest, []).append(unit)
        self._planned = end_step
        is_all = end_step == self._ending.server_steps
        self._pause_at = end_step + 1 if is_all else end_step - _WINDOWS_AHEAD * lookahead
        self._forget(min(oldest, self._version))
        self._employ()
        self._run()

    def _forget(self, oldest: int) -> None:
        if len(self._examples) + max(map(len, self._held)) > _MANY:
            self._held = [{version for version in held if version >= oldest} for held in self._held]
            self._examples = Counter({step: number for step, number in self._examples.items() if step + 1 >= oldest})

    def end(self) -> Prediction:
        """The figures."""
        if self._version < self._ending.server_steps:
            raise ValueError(f"windows up to step {self._planned} for a run of {self._ending.server_steps} steps")
        wall_s, start_s = self._ended_s, self._cluster.start_s
        return Prediction(
            pools=self._pools,
            wall_s=wall_s,
            start_s=start_s,
            pool_hours=self._pools * (start_s + wall_s) / 3600,
            occupancy=self._busy_s / max(self._pools * wall_s, 1e-12),
            coordinator_share=min(1.0, self._coordinator_busy_s / max(wall_s, 1e-12)),
            bytes_moved=self._bytes,
        )

    # ---- events -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Everything that happens until the coordinator would plan further, or there is nothing to do."""
        desk, calls = self._desk, self._calls
        while self._version < self._pause_at and (desk or calls):
            if desk and (not calls or desk[0][0] <= calls[0][0]):
                self._now_s, what, version = desk.popleft()
                if what is None:
                    self._made(version)
                    self._employ()
                else:
                    self._answered(what)
                self._close()
            else:
                self._now_s, _, pool, num_bytes, what = heapq.heappop(calls)
                self._returned(pool, num_bytes, what)
                self._employ()

    def _made(self, version: int) -> None:
        """A version exists: blocks that waited for it are ready."""
        self._version, self._ended_s, self._is_closing = version, self._now_s, False
        for unit in self._waiting.pop(version, ()):
            self._add_ready(unit)
        if self._ending.is_evaluated(version):
            self._to_evaluate.append(version)

    def _returned(self, pool: int, num_bytes: int, what: _What) -> None:
        """A pool is through with a call; the coordinator will be as soon as the sums are there and it is free."""
        self._bytes += num_bytes
        self._in_s = max(self._in_s, self._now_s) + num_bytes / self._cluster.bytes_per_s
        seconds = self._cluster.answer_s + self._cluster.answer_byte_s * num_bytes
        self._sent_s[pool].append(self._work_off(seconds, self._in_s, what, -1))
        self._idle.append(pool)

    def _answered(self, what: _What) -> None:
        """The coordinator has the metrics of a version, or the sums of blocks."""
        if isinstance(what, list):
            for unit in what:
                for step in unit.steps:
                    self._open[step] -= 1
            return
        self._ended_s = self._now_s
        if what == self._hold_after < self._ending.server_steps:
            self._hold_after = self._ending.next_evaluated(what + 1)

    def _close(self) -> None:
        """Begins to close the next step where all is there that it takes."""
        step = self._version
        if self._is_closing or self._open[step] or step >= min(self._planned, self._hold_after):
            return
        del self._open[step]
        self._is_closing = True
        seconds = self._cluster.step_s + self._cluster.parameter_s * self._traffic.stepped_parameters
        self._work_off(seconds, self._now_s, None, step + 1)

    def _work_off(self, seconds: float, from_s: float, what: _What | None, version: int) -> float:
        """When the coordinator is through with what can begin at `from_s`; it does one thing at a time."""
        self._coordinator_s = max(self._coordinator_s, from_s) + seconds
        self._coordinator_busy_s += seconds
        self._desk.append((self._coordinator_s, what, version))
        return self._coordinator_s

    # ---- work -------------------------------------------------------------------------------------------------------

    def _add_ready(self, unit: _Unit) -> None:
        heapq.heappush(self._ready, unit)
        self._ready_s += unit.seconds

    def _employ(self) -> None:
        """Gives work to idle pools, evaluations first."""
        while self._idle and (self._to_evaluate or self._ready):
            pool = self._idle.pop()
            if self._to_evaluate:
                version = self._to_evaluate.popleft()
                self._call(pool, self._work.evaluation_s, {version}, 0, version)
            else:
                self._train(pool)

    def _train(self, pool: int) -> None:
        share = self._ready_s / self._pools
        limit = min(share / 2 if share / 2 >= _CALL_LEAST_S else share, _CALL_MOST_S)
        taken: list[_Unit] = []
        seconds, examples = 0.0, 0
        versions: set[int] = set()
        steps: set[int] = set()
        while self._ready and (seconds < limit or not taken):
            unit = heapq.heappop(self._ready)
            taken.append(unit)
            seconds, examples = seconds + unit.seconds, examples + unit.examples
            versions |= unit.versions
            steps |= unit.steps
        self._ready_s = max(self._ready_s - seconds, 0.0)
        self._call(pool, seconds, versions, self._traffic.sums(len(steps), examples), taken)

    def _call(self, pool: int, seconds: float, versions: set[int], num_bytes: int, what: _What) -> None:
        """A pool works: as soon as the call has been sent, and the versions that its node lacks are there."""
        node = pool // self._cluster.pools_per_node
        if missing := versions - self._held[node]:
            self._held[node] |= missing
            sent = sum(self._traffic.version(self._examples[version - 1]) for version in missing)
            self._bytes += sent
            self._arrived_s[node] = self._out_s = max(self._out_s, self._now_s) + sent / self._cluster.bytes_per_s
        begin_s = max(self._now_s, self._sent_s[pool].pop(0), self._arrived_s[node])
        self._busy_s += seconds
        end_s = begin_s + self._cluster.call_s + seconds
        heapq.heappush(self._calls, (end_s, self._num_calls, pool, num_bytes, what))
        self._num_calls += 1
