"""Which pool gets which block, and what happens to blocks whose pool died, hung, ran out of memory or raised.

Every decision here changes speed only: what a block is, and which blocks a step needs, is the plan's.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from atoll.errors import ClientWorkError, InfrastructureError
from atoll.messages import Block
from atoll.runtime.elastic import OpenWork
from atoll.runtime.events import Evaluate, Train

__all__ = ["Dispatcher"]

#: Calls of all runs that a pool should hold at once: one that runs and one that waits, to hide the round trip.
_CALLS_PER_POOL = 2
#: Wall seconds of work that make a call worth its overhead (references: a Ray call costs 5 ms of processor time), and
#: so few that two calls would cost more than pools that end a little apart.
_CALL_TARGET_S, _CALL_LEAST_S = 0.3, 0.015
#: An evaluation in units of `_cost`, until one has come back: about as much as a block.
_EVALUATION_COST = 2000.0
#: A block that loses its pool this often while it travels alone ends the run: the work itself kills workers.
_MAX_LOSSES_ALONE = 8
_LIKELY = (
    "The work itself ends the process, most likely for lack of memory; or it takes longer than runtime.hang_s allows."
)
#: Blocks that must come back in a row before one more may be resident again after memory ran out.
_CALM_BLOCKS = 50


@dataclass(slots=True)
class _Call:
    """Work given to a pool: blocks to train, or a version to evaluate."""

    pool: int
    blocks: tuple[Block, ...]
    version: int | None
    cost: float


class Dispatcher:
    """Open calls, blocks that are ready, and what is known of pools; no handle, no clock.

    A block that lost its pool travels alone from then on, so that the one that is to blame is found. When memory runs
    out, fewer blocks are resident at once, in the whole run; never other blocks, since W is part of the plan.

    Args:
        ready_pools: numbers of the pools that can take work.
        window_steps: server steps per window of the plan.
        max_failures: calls that may fail for their own sake before the run stops with the first error.
    """

    def __init__(self, ready_pools: Iterable[int], window_steps: int, max_failures: int) -> None:
        self._pools = set(ready_pools)
        self._calls_per_pool = _CALLS_PER_POOL
        self._window_steps, self._max_failures = window_steps, max_failures
        self._calls: dict[int, _Call] = {}
        self._next_call = 0
        self._ready: list[tuple[int, int, Block, float]] = []
        #: blocks that lost a pool or failed → how often they did so alone
        self._alone: dict[int, int] = {}
        #: evaluated version → how often its evaluation lost a pool
        self._lost_evaluations: dict[int, int] = {}
        #: blocks that may be resident at once; None: as many as the pools take
        self._most_resident: int | None = None
        self._calm = 0
        self._failures: list[ClientWorkError] = []
        #: wall seconds per unit of cost, a running mean; it sizes calls and decides no bit
        self._cost_s = 0.0
        #: of an evaluation, so that its pool gets so much less to train and the next step is not held up by it
        self._evaluation_cost = _EVALUATION_COST

    # ---- what others tell -----------------------------------------------------------------------------------------

    def add(self, block: Block) -> None:
        """All start versions of `block` exist."""
        window = min(block.step.tolist()) // self._window_steps
        heapq.heappush(self._ready, (window, block.block_id, block, _cost(block)))

    def share(self, num_runs: int) -> None:
        """So many runs share the pools: each holds fewer calls, at least one."""
        self._calls_per_pool = -(-_CALLS_PER_POOL // max(num_runs, 1))

    def pool_ready(self, pool: int) -> None:
        """`pool` can take work."""
        self._pools.add(pool)

    def pool_retired(self, pool: int) -> None:
        """`pool` gets no more work; its open calls will come back."""
        self._pools.discard(pool)

    def returned(self, call_id: int, busy_s: float) -> None:
        """A training call came back; one that was given up already is ignored."""
        call = self._calls.pop(call_id, None)
        if call is None:
            return
        for block in call.blocks:
            self._alone.pop(block.block_id, None)
        found = busy_s / call.cost
        self._cost_s = found if not self._cost_s else 0.8 * self._cost_s + 0.2 * found
        if self._most_resident is not None:
            self._calm += len(call.blocks)
            if self._calm >= _CALM_BLOCKS:
                self._most_resident, self._calm = self._most_resident + 1, 0

    def evaluated(self, call_id: int, busy_s: float = 0.0) -> bool:
        """An evaluation came back; False where it was given up already."""
        call = self._calls.pop(call_id, None)
        if call is None or call.version is None:
            return False
        if self._cost_s and busy_s:
            self._evaluation_cost = busy_s / self._cost_s
        self._lost_evaluations.pop(call.version, None)
        return True

    def pool_lost(self, pool: int, *, is_out_of_memory: bool, is_work_to_blame: bool = True) -> list[int]:
        """`pool` is gone; its blocks are ready again. Returns the versions whose evaluation is to be asked for again.

        Raises:
            InfrastructureError: a block, or an evaluation, has lost too many pools while it was alone.
        """
        self._pools.discard(pool)
        if is_out_of_memory:
            self._fewer_resident()
        lost = [call_id for call_id, call in self._calls.items() if call.pool == pool]
        # Only what ran can be to blame: calls run in the order in which they were sent.
        running = min(lost, default=None) if is_work_to_blame else None
        return [v for call_id in lost for v in self._give_up(call_id, is_to_blame=call_id == running)]

    def out_of_memory(self, call_id: int) -> list[int]:
        """A call did not fit; the pool lives. Otherwise as `pool_lost`."""
        if call_id not in self._calls:
            return []
        self._fewer_resident()
        return self._give_up(call_id, is_to_blame=True)

    def failed(self, call_id: int, error: ClientWorkError) -> list[int]:
        """Client code raised in this call: it is tried again, block by block. Otherwise as `pool_lost`.

        Raises:
            ClientWorkError: the first one, where the failure budget is used up.
        """
        if call_id not in self._calls:
            return []
        self._failures.append(error)
        if len(self._failures) > self._max_failures:
            raise self._failures[0]
        return self._give_up(call_id, is_to_blame=False)

    def _give_up(self, call_id: int, *, is_to_blame: bool) -> list[int]:
        call = self._calls.pop(call_id)
        if call.version is not None:
            times = self._lost_evaluations.get(call.version, 0) + is_to_blame
            self._lost_evaluations[call.version] = times
            if times >= _MAX_LOSSES_ALONE:
                what = f"the evaluation of version {call.version}: its worker was lost {times} times while it did this"
                raise InfrastructureError(f"{what}. {_LIKELY} Fewer workers per machine leave more memory to each.")
            return [call.version]
        for block in call.blocks:
            times = self._alone.get(block.block_id, 0) + (is_to_blame and len(call.blocks) == 1)
            self._alone[block.block_id] = times
            if times >= _MAX_LOSSES_ALONE:
                raise InfrastructureError(
                    f"block {block.block_id} ({block.num_lanes} lanes, server step {int(block.step.min())}, clients "
                    f"{block.client_id[:4].tolist()}…): its worker died {times} times while it held this block alone. "
                    f"{_LIKELY} W is part of the plan, so a smaller one is another run: "
                    f"runtime.lanes={max(1, block.num_lanes // 2)}"
                )
            self.add(block)
        return []

    def _fewer_resident(self) -> None:
        self._most_resident, self._calm = max(1, self._num_resident() // 2), 0

    # ---- what there is to do --------------------------------------------------------------------------------------

    @property
    def versions_in_evaluation(self) -> list[int]:
        """Versions that pools evaluate now."""
        return [call.version for call in self._calls.values() if call.version is not None]

    def open_work(self, num_evaluations: int = 0) -> OpenWork:
        """What pools have, and what they could have now, with so many evaluations that nobody has taken."""
        blocks = len(self._ready) + num_evaluations + sum(len(call.blocks) or 1 for call in self._calls.values())
        if not self._cost_s:
            return OpenWork(blocks, None)
        cost = sum(cost for *_, cost in self._ready) + num_evaluations * self._evaluation_cost
        return OpenWork(blocks, self._cost_s * (cost + sum(call.cost for call in self._calls.values())))

    def evaluate(self, version: int) -> Evaluate | None:
        """Gives the evaluation of `version` to a pool, if there is one."""
        if not self._pools:
            return None
        pool = min(sorted(self._pools), key=self._load)
        return Evaluate(pool, self._open(_Call(pool, (), version, self._evaluation_cost)), version)

    def train(self) -> Iterator[Train]:
        """Gives blocks to pools that have room."""
        while self._ready and self._room() > 0:
            free = [pool for pool in sorted(self._pools) if self._num_calls(pool) < self._calls_per_pool]
            if not free:
                return
            pool = min(free, key=self._load)
            taken = self._take_blocks(pool)
            if taken is None:
                return
            blocks, cost = taken
            versions = sorted(set().union(*(block.start_version.tolist() for block in blocks)))
            call = _Call(pool, blocks, None, cost)
            yield Train(pool, self._open(call), blocks, tuple(versions))

    def _take_blocks(self, pool: int) -> tuple[tuple[Block, ...], float] | None:
        """The next call and its cost: what is due first; of later windows only where there is little of that.

        As many as make a call worth its overhead, but no more than half of what is left of the pool's fair share, so
        that calls get smaller towards the end of a window and pools end together. What is small goes whole. None where
        the pool has its share already, say in an evaluation, and others will be through sooner.
        """
        last, limit = self._ready[0][0], 0.0
        # Until it is known what work costs, one block at a time: a long call would look like one that hangs.
        if self._cost_s:
            least = _CALL_LEAST_S / self._cost_s
            last, ready = self._due(least * len(self._pools))
            share = (ready + sum(map(self._load, self._pools))) / len(self._pools) - self._load(pool)
            if share <= 0:
                return None
            limit = min(share / 2 if share / 2 >= least else share, _CALL_TARGET_S / self._cost_s)
        room = self._room()
        _, _, block, taken = heapq.heappop(self._ready)
        blocks = [block]
        while (
            taken < limit
            and len(blocks) < room
            and blocks[0].block_id not in self._alone
            and self._ready
            and self._ready[0][0] <= last
            and self._ready[0][1] not in self._alone
        ):
            _, _, block, cost = heapq.heappop(self._ready)
            blocks.append(block)
            taken += cost
        return tuple(blocks), taken

    def _due(self, enough: float) -> tuple[int, float]:
        """(window, cost of the ready blocks up to it): the first, and as many more as it takes to cost `enough`."""
        costs: dict[int, float] = {}
        for window, _, _, cost in self._ready:
            costs[window] = costs.get(window, 0.0) + cost
        total, last = 0.0, 0
        for last in sorted(costs):
            total += costs[last]
            if total >= enough:
                break
        return last, total

    def _room(self) -> float:
        return float("inf") if self._most_resident is None else self._most_resident - self._num_resident()

    def _num_resident(self) -> int:
        return sum(len(call.blocks) for call in self._calls.values())

    def _open(self, call: _Call) -> int:
        call_id = self._next_call
        self._next_call += 1
        self._calls[call_id] = call
        return call_id

    def _load(self, pool: int) -> float:
        return sum(call.cost for call in self._calls.values() if call.pool == pool)

    def _num_calls(self, pool: int) -> int:
        return sum(call.pool == pool for call in self._calls.values())


def _cost(block: Block) -> float:
    """Work of a block in arbitrary units: its examples, and something for every lane."""
    return float(block.num_examples.sum()) + 8.0 * block.num_lanes
