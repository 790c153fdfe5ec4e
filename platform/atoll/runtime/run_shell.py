"""One run inside the coordinator's process: performs its instructions on pools, aggregator and tracker; recovers it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from atoll.aggregation import AggregatorState, Step
from atoll.errors import AtollError, ClientWorkError, FencedError
from atoll.messages import Block
from atoll.runtime.aggregating import DurableAggregator
from atoll.runtime.bundles import Bundles
from atoll.runtime.elastic import OpenWork
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
    PoolReady,
    PoolRetired,
    RecordEvaluation,
    RecordStep,
    StepsClosed,
    SumsLost,
    Train,
    Trained,
    failed_call,
)
from atoll.runtime.gauges import Figures
from atoll.runtime.losses import SUMS_LOST, RollBack, told
from atoll.runtime.opening import Attempt, begin, check_kind
from atoll.runtime.packing import packed
from atoll.runtime.parts import Outcome, Parts
from atoll.runtime.recorder import checkpoint_artifact, result_of
from atoll.runtime.shared import SharedPools, SharedTracker
from atoll.runtime.stopping import Patience
from atoll.runtime.store import Commit, Journal

__all__ = ["RunShell"]

#: losses in a row, without a snapshot between, that a run bears
_MOST_ROLLBACKS = 10
#: at the start: how long all pools are waited for before those that are there begin
_ALL_POOLS_S = 20.0
#: how long sums may take from the node of the pool that made them
_SUMS_S = 60.0
#: how long the end of a run waits for the tracking service
_DRAIN_S, _DRAIN_INTERRUPTED_S = 30.0, 3.0
_log = logging.getLogger(__name__)


class RunShell:
    """Makes attempts until one ends: each claims the journal, takes up the newest snapshot and does the rest again.

    A life is: opening (the pools prepare themselves), running, draining (what the tracking service has not taken yet),
    over. The aggregator is in this process, so that a closed step, and what may start from it, costs no message; it is
    made anew in every attempt. Pools and tracker are shared with other runs, whose failures do not reach this one.

    Args:
        number: names the run at pools and tracker.
        parts: the run.
    """

    def __init__(self, number: int, parts: Parts) -> None:
        self.number, self.parts = number, parts
        self._pools: SharedPools
        self._tracker: SharedTracker
        self._journal: Journal
        self._epoch = 0
        self._patience = Patience("what the run held in Ray", _MOST_ROLLBACKS)
        self._aggregator: DurableAggregator | None = None
        self._state = "opening"
        self._bundles = Bundles(0)
        #: pools lost and not recorded yet; runs that share the pools
        self._lost_pools, self._num_sharing = 0, 1
        self._attempt: Attempt | None = None
        self._end: Finish | None = None
        #: until when the tracking service is waited for
        self._until = 0.0
        self.is_stopped = False
        #: how it ended: a result, what went wrong, or None where it was stopped
        self.outcome: Outcome | None = None
        self.progress: dict[str, float] = {}

    # ---- what others see ------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Of the journal; another one in every attempt."""
        return self._epoch

    @property
    def version(self) -> int:
        """Newest version known."""
        return self._attempt.coordinator.version if self._attempt is not None else 0

    @property
    def is_over(self) -> bool:
        """Whether there is an outcome, and nothing more to do."""
        return self._state == "over"

    @property
    def is_training(self) -> bool:
        """Whether it may still have work for the pools."""
        return self._state in ("opening", "running")

    def open_work(self) -> OpenWork:
        """What pools could do for this run at the same time now."""
        if self._attempt is None or self._state != "running":
            return OpenWork(0, None)
        return self._attempt.coordinator.open_work()

    def figures(self) -> Figures | None:
        """For Prometheus; None while there is no attempt."""
        blocks, sent_bytes = self.open_work().blocks, self._bundles.sent_bytes
        return None if self._attempt is None else self._attempt.recorder.figures(sent_bytes, blocks)

    def check(self) -> None:
        """Raises FencedError where another coordinator has taken this run over."""
        if self.is_over or not self._epoch:
            return
        try:
            self._journal.commit(Commit())
        except FencedError:
            raise
        except AtollError:
            return  # a journal that cannot be written is told when there is something to write

    def share(self, num_runs: int) -> None:
        """So many runs share the pools now."""
        self._num_sharing = num_runs
        if self._attempt is not None:
            self._attempt.coordinator.share(num_runs)

    def start(self, pools: SharedPools, tracker: SharedTracker) -> None:
        """The first attempt."""
        self._pools, self._tracker = pools, tracker
        with self.guarded():
            self._journal = self.parts.make_journal()
            self._open()

    def close(self) -> None:
        """Lets the journal go."""
        if self._epoch:
            self._journal.close()

    # ---- attempts ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Losses of this run are made good, and its errors end it alone; a fence ends everything."""
        try:
            yield
        except FencedError:
            raise
        except (RollBack, AtollError) as error:
            self.failed(error)

    def failed(self, error: BaseException) -> None:
        """A loss of what this run held: from its last snapshot again. Any other error of atoll: it is over.

        Raises:
            BaseException: a bug; FencedError.
        """
        if self.is_over:
            return
        if isinstance(error, RollBack) and self.outcome is None:
            with self.guarded():
                saved = self._journal.snapshots()
                self._patience.lost(saved[0].version if saved else 0, str(error))
                _log.warning("%s; the run goes on from its last snapshot", error)
                self._open()
        elif isinstance(error, RollBack) or (isinstance(error, AtollError) and not isinstance(error, FencedError)):
            self._fail(error)
        else:
            raise error

    def _fail(self, error: BaseException) -> None:
        """The first error is the one to tell; what there is becomes durable if that still works."""
        if self.outcome is None and isinstance(error, AtollError):
            self.outcome = error
        if self._attempt is None or self._aggregator is None or self._state != "running":
            self._finish()
        else:
            with self.guarded():
                self._begin_to_end()

    def _open(self) -> None:
        """Claims the journal, takes up the newest snapshot and asks pools and tracker to prepare themselves."""
        # Gone first: where the journal cannot be claimed, nothing more becomes durable.
        self._aggregator, self._attempt, self._end = None, None, None
        self._journal.claim()
        self._epoch = self._journal.epoch
        self._state = "opening"
        self._opened_at = time.monotonic()
        self._bundles = Bundles(len(self._pools), self._bundles.sent_bytes)
        self._open_pools: set[int] = set()
        self._pools.open(self)
        self._tracker.open(self)
        #: the pool that was asked for the state at version 0, where there is no snapshot
        self._asked_pool: int | None = None
        if self._journal.snapshots():
            self._take_up(None)  # the pools prepare themselves meanwhile

    def _take_up(self, beginning: AggregatorState | None) -> None:
        """The newest snapshot, or the beginning."""
        if self._state != "opening" or self._aggregator is not None:
            return
        records = self._journal.snapshots()
        parts = self.parts
        self._aggregator = DurableAggregator(
            parts.make_aggregator, parts.make_snapshot_files, records, self._epoch, beginning
        )
        self._bundles.add(self._aggregator.take_models())

    def _ask_for_beginning(self) -> None:
        """One of the open pools makes the first weights: a custom module needs torch for them, and pools have it."""
        if self._state != "opening" or self._aggregator is not None or self._asked_pool is not None:
            return
        if self._open_pools:
            self._asked_pool = pool = min(self._open_pools)

            def made(state: AggregatorState) -> None:
                with self.guarded():
                    self._take_up(state)
                    self._begin_when_ready()

            self._pools.watch(pool, self, self._pools[pool].beginning.remote(self.parts.make_aggregator), made)

    def _begin_when_ready(self) -> None:
        """Workers import torch and open the data first, so that wall time measures the run; one is enough."""
        if self._state != "opening" or self._attempt is not None or self._aggregator is None:
            return
        waited_s = time.monotonic() - self._opened_at
        if len(self._open_pools) < self._pools.num_awaited and not (self._open_pools and waited_s > _ALL_POOLS_S):
            return
        self._attempt = begin(self.parts, self._journal, self._aggregator.taken, sorted(self._open_pools))
        self._state = "running"
        self.share(self._num_sharing)
        self._perform(self._attempt.coordinator.start())

    # ---- the loop -------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """What the clock asks for: snapshots, commits, batches for the tracking service; the end, step by step."""
        with self.guarded():
            if self._state == "opening":
                if self.is_stopped:
                    self._finish()
                else:
                    self._begin_when_ready()
                return
            if self._attempt is None or self.is_over:
                return
            if self._state == "running" and (self._end is not None or self.is_stopped):
                self._begin_to_end()
            recorder = self._attempt.recorder
            recorder.pools_are(self._pools.num_placed / max(self._num_sharing, 1))
            recorder.lost_pools, self._lost_pools = recorder.lost_pools + self._lost_pools, 0
            if self._state == "running":
                self._save()
                recorder.flush()
            self._publish()
            self.progress = recorder.progress()
            self._go_on_to_end()

    def _begin_to_end(self) -> None:
        """No more work: everything that there is becomes durable, then is published as far as the service takes it."""
        attempt = self._attempt
        if attempt is None:
            return
        self._state = "draining"
        attempt.coordinator.give_up()
        self._save(is_forced=True)
        attempt.recorder.flush(is_forced=True)
        attempt.timeline.close()
        self._until = time.monotonic() + (_DRAIN_S if self._end is not None else _DRAIN_INTERRUPTED_S)
        attempt.publishing.hurry()

    def _go_on_to_end(self) -> None:
        attempt, end = self._attempt, self._end
        if attempt is None or self._state != "draining":
            return
        if attempt.publishing.is_drained() or time.monotonic() > self._until:
            if end is not None and self.outcome is None:
                model = self._bundles[end.version]
                self.outcome = result_of(end, model, attempt.coordinator, attempt.recorder, self._journal)
            self._finish()

    def _finish(self) -> None:
        self._state = "over"
        self._bundles, self._aggregator = Bundles(0), None
        self._pools.close(self)

    # ---- events -----------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if self._attempt is not None and self._state == "running":
            self._perform(self._attempt.coordinator.handle(event))

    def pool_ready(self, pool: int) -> None:
        """A pool can take this run's work."""
        with self.guarded():
            check_kind(self._journal, self._pools.kind)
            self._open_pools.add(pool)
            if self._attempt is None:
                self._ask_for_beginning()
                self._begin_when_ready()
            else:
                self._handle(PoolReady(pool))

    def pool_lost(self, pool: int, *, is_out_of_memory: bool, is_work_to_blame: bool) -> None:
        """A pool is gone; what it had of this run is done again."""
        self._lost_pools += 1
        self._bundles.lost(pool)
        self._open_pools.discard(pool)
        with self.guarded():
            if pool == self._asked_pool:
                self._asked_pool = None
                self._ask_for_beginning()
            self._handle(PoolLost(pool, is_out_of_memory, is_work_to_blame))

    def pool_retired(self, pool: int) -> None:
        """A pool gets no more work."""
        self._open_pools.discard(pool)
        with self.guarded():
            self._handle(PoolRetired(pool))

    def pool_gone(self, pool: int) -> None:
        """A pool that was retired has ended."""
        self._bundles.lost(pool)

    def tracker_lost(self, error: BaseException) -> None:
        """The tracker is gone; what was under way is sent again."""
        if self._attempt is not None and self._attempt.publishing.is_under_way:
            with self.guarded():
                self._attempt.publishing.failed(error)

    # ---- instructions -----------------------------------------------------------------------------------------------

    def _perform(self, instructions: list[Instruction]) -> None:
        attempt, aggregator = self._attempt, self._aggregator
        if attempt is None or aggregator is None:
            raise AssertionError("instructions without an attempt")
        # Pools wait for their work, nobody waits for the rest.
        todo = deque(sorted(instructions, key=lambda one: not isinstance(one, Train | Evaluate)))
        while todo:
            instruction = todo.popleft()
            match instruction:
                case Train(pool, call, blocks, versions):
                    self._train(pool, call, blocks, versions)
                case Evaluate(pool, call, version):
                    forget, bundles = self._bundles.send(pool, (version,))
                    evaluate = self._pools[pool].evaluate
                    reference = evaluate.remote(self.number, version, forget, *bundles, epoch=self.epoch)
                    self._pools.watch(pool, self, reference, partial(self._evaluated, call, version))
                case Expect(steps):
                    aggregator.expect(steps)
                case HoldAfter(version):
                    for event in self._closed(aggregator.hold_after(version)):
                        todo.extend(attempt.coordinator.handle(event))
                case Forget(versions, live):
                    aggregator.forget(live)
                    self._bundles.drop(versions)
                case RecordStep(record, metrics):
                    attempt.recorder.step(record, metrics)
                case RecordEvaluation(version, metrics):
                    attempt.recorder.evaluation(version, metrics)
                case Checkpoint(version):
                    artifact = checkpoint_artifact(version)
                    attempt.artifact_files.write(artifact.name, self.parts.encode_model(self._bundles[version]))
                    attempt.recorder.artifact(artifact)
                case Finish():
                    self._end = instruction
                    attempt.recorder.end(instruction)

    def _train(self, pool: int, call: int, blocks: tuple[Block, ...], versions: tuple[int, ...]) -> None:
        forget, bundles = self._bundles.send(pool, versions)
        train = self._pools[pool].train.options(num_returns=2)
        busy, sums = train.remote(self.number, packed(blocks), forget, *bundles, epoch=self.epoch)
        self._pools.watch(pool, self, busy, partial(self._trained, call, blocks, sums))

    def _trained(self, call: int, blocks: tuple[Block, ...], sums: Any, busy_s: float | ClientWorkError) -> None:
        with self.guarded():
            if isinstance(busy_s, ClientWorkError):
                self._handle(failed_call(call, busy_s))
            elif self._attempt is not None and self._aggregator is not None and self._state == "running":
                self._attempt.recorder.busy_s += busy_s
                self._handle(Trained(call, busy_s))
                try:
                    result = ray.get(sums, timeout=_SUMS_S)
                except SUMS_LOST:
                    self._handle(SumsLost(blocks))
                    return
                except (RayTaskError, RayError) as error:
                    raise told(error, "the sums of a call") from error
                for event in self._closed(self._aggregator.add(result)):
                    self._handle(event)

    def _evaluated(self, call: int, version: int, found: tuple[float, Any]) -> None:
        busy_s, metrics = found
        with self.guarded():
            if isinstance(metrics, ClientWorkError):
                self._handle(failed_call(call, metrics))
            elif self._attempt is not None and self._state == "running":
                self._attempt.recorder.busy_s += busy_s
                self._handle(Evaluated(call, version, metrics, busy_s))

    # ---- aggregator ---------------------------------------------------------------------------------------------

    def _closed(self, steps: Sequence[Step]) -> Iterator[Event]:
        if steps:
            self._bundles.add(step.model for step in steps)
            yield StepsClosed(tuple(steps))

    def _save(self, *, is_forced: bool = False) -> None:
        attempt, aggregator = self._attempt, self._aggregator
        if attempt is not None and aggregator is not None and attempt.recorder.begin_snapshot(is_forced=is_forced):
            attempt.recorder.snapshot(*aggregator.save(attempt.coordinator.live_versions()))

    # ---- tracking -----------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        attempt = self._attempt
        batch = None if attempt is None else attempt.publishing.take()
        if attempt is None or batch is None:
            return
        publishing = attempt.publishing

        def sent(said: str | BaseException) -> None:
            with self.guarded():  # a journal that cannot be written is this run's alone
                if isinstance(said, str):
                    publishing.succeeded(said)
                else:
                    publishing.failed(said)

        self._tracker.send(self, batch, sent)
