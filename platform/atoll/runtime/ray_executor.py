"""The Ray executor: a coordinator actor that performs the pure coordinator's instructions on pools and aggregator."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError, WorkerCrashedError

from atoll.errors import AtollError, InfrastructureError
from atoll.messages import ModelVersion
from atoll.runtime.actors import AggregatorShell
from atoll.runtime.coordinator import Coordinator
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
from atoll.runtime.parts import Parts, RunResult
from atoll.runtime.publishing import BATCH_ROWS, Publishing
from atoll.runtime.recorder import Recorder
from atoll.runtime.session import RaySession

__all__ = ["run_on_ray"]

_LOST = (RayActorError, OutOfMemoryError, WorkerCrashedError)
_MAX_LOST_POOLS = 100
_POLL_S = 0.25
_log = logging.getLogger(__name__)


def run_on_ray(
    parts: Parts, session: RaySession, *, on_progress: Callable[[dict[str, float]], None] | None = None
) -> RunResult:
    """Runs on the session's pools; the same bits as `run_inline`.

    Args:
        parts: the run.
        session: an entered session.
        on_progress: called several times a second with figures for a display.

    Raises:
        ClientWorkError, AggregationError: as inline.
        InfrastructureError: workers died more often than the run may recover from.
        KeyboardInterrupt: Ctrl-C; the coordinator has stopped and flushed its rows.
    """
    session.revive()
    shell = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0, max_concurrency=2)(CoordinatorShell)
    coordinator = shell.remote(parts, session.pools, session.tracker, session.gpus_per_worker)
    running = coordinator.run.remote()
    try:
        while True:
            done, _ = ray.wait([running], timeout=_POLL_S)
            if done:
                break
            if on_progress is not None:
                on_progress(ray.get(coordinator.progress.remote()))
        result: RunResult
        # Not the coordinator's replacements for what died: they end with it. `revive` makes lasting ones.
        result = ray.get(running)
    except KeyboardInterrupt:
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            coordinator.stop.remote()
            ray.wait([running], timeout=30)
        finally:
            signal.signal(signal.SIGINT, previous)
        raise
    except RayTaskError as error:
        if isinstance(error.cause, AtollError):
            raise error.cause from None
        if isinstance(error.cause, RayError):
            # Pools and tracker are replaced where they die; what is left is the aggregator, or an object it held.
            story = str(error.cause).strip().splitlines()[0]
            raise InfrastructureError(f"the aggregator process, or what it held, was lost: {story}") from error
        raise
    except RayActorError as error:
        raise InfrastructureError(f"the coordinator process died: {error}") from error
    finally:
        ray.kill(coordinator)
    if result is None:
        raise InfrastructureError("the run was stopped from outside")
    if on_progress is not None:
        on_progress(dict(result.extra))
    return result


class CoordinatorShell:
    """Actor shell of the Coordinator: performs instructions, feeds completions back as events."""

    def __init__(self, parts: Parts, pools: list[Any], tracker: Any, gpus_per_worker: float) -> None:
        self._parts, self._pools, self._tracker = parts, list(pools), tracker
        self._session = RaySession(len(pools), gpus_per_worker)
        #: version → reference to the bundle that holds it; this process owns every reference
        self._bundles: dict[int, Any] = {}
        self._held: list[set[int]] = [set() for _ in pools]
        self._forget: list[list[int]] = [[] for _ in pools]
        self._life = [0] * len(pools)
        #: reference → what to do when it is ready
        self._pending: dict[Any, Callable[[Any], list[Event]]] = {}
        self._busy_s, self._lost_pools = 0.0, 0
        self._is_publishing = self._is_stopped = False
        self._end: Finish | None = None
        self._progress: dict[str, float] = {}

    def progress(self) -> dict[str, float]:
        """Figures for a display; runs beside `run`."""
        return self._progress

    def stop(self) -> None:
        """Asks `run` to end at the next event."""
        self._is_stopped = True

    def run(self) -> RunResult | None:
        """The whole run; None where it was stopped."""
        # Here, not in the constructor: what a constructor raises reaches the driver as text only.
        parts = self._parts
        self._coordinator = Coordinator(parts.make_planner(), parts.settings, len(self._pools))
        self._aggregator = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(AggregatorShell).remote(
            parts.make_aggregator
        )
        self._bundles[0] = self._aggregator.model.remote()
        for pool in range(len(self._pools)):
            self._open_pool(pool)
        self._open_tracker()
        for reference, handler in list(self._pending.items()):
            # Workers import torch and open the data first, so that wall time measures the run.
            if self._pending.pop(reference, None) is not None:
                handler(reference)
        # Here, not in the constructor: the journal belongs to the thread that opens it, and this is `run`'s.
        self._outbox = self._parts.make_outbox()
        self._recorder = Recorder(self._outbox, self._coordinator)
        self._publishing = Publishing(self._outbox)
        try:
            self._perform(self._coordinator.start())
            while self._end is None and not self._is_stopped:
                self._turn()
            wall_s = self._recorder.wall_s
        finally:
            self._coordinator.give_up()
            self._recorder.flush(is_forced=True)
            left = self._publishing.drain(lambda rows: ray.get(self._tracker.publish.remote(rows)))
            self._wait_for_checkpoints()
            self._outbox.close()
        return None if self._end is None else self._result(self._end, wall_s, left)

    def _turn(self) -> None:
        ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=_POLL_S)
        if ready:
            more, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
            for reference in more:
                handler = self._pending.pop(reference, None)
                if handler is not None:
                    for event in handler(reference):
                        self._perform(self._coordinator.handle(event))
        self._recorder.flush()
        self._publish()
        self._progress = self._recorder.progress()

    # ---- pools --------------------------------------------------------------------------------------------------

    def _open_pool(self, pool: int) -> None:
        parts = self._parts
        opened = self._pools[pool].open.remote(parts.make_learner, parts.make_evaluator)
        self._held[pool], self._forget[pool] = set(), []
        self._watch(pool, opened, lambda value: [])

    def _watch(self, pool: int, reference: Any, then: Callable[[Any], list[Event]]) -> None:
        """Runs `then` on the value of a pool's call, or replaces the pool where it died."""
        life = self._life[pool]

        def handle(ready: Any) -> list[Event]:
            if self._life[pool] != life:
                return []
            try:
                value = ray.get(ready)
            except _LOST as error:
                return self._replace(pool, error)
            return then(value)

        self._pending[reference] = handle

    def _replace(self, pool: int, error: BaseException) -> list[Event]:
        self._lost_pools += 1
        if self._lost_pools > _MAX_LOST_POOLS:
            raise InfrastructureError(f"{self._lost_pools} client pools died in this run; the last: {error}")
        self._life[pool] += 1
        self._pools[pool] = self._session.new_pool()
        self._open_pool(pool)
        return [PoolLost(pool)]

    def _send(self, pool: int, versions: tuple[int, ...]) -> tuple[list[int], list[Any]]:
        """(versions to forget, bundles that the pool lacks), noting what it then holds."""
        missing = [version for version in versions if version not in self._held[pool]]
        bundles = list({id(self._bundles[v]): self._bundles[v] for v in missing}.values())
        self._held[pool].update(missing)
        forget, self._forget[pool] = self._forget[pool], []
        return forget, bundles

    # ---- instructions -------------------------------------------------------------------------------------------

    def _perform(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Train(pool, call, blocks, versions):
                    self._train(pool, call, blocks, versions)
                case Evaluate(pool, call, version):
                    forget, bundles = self._send(pool, (version,))
                    reference = self._pools[pool].evaluate.remote(version, forget, *bundles)
                    self._watch(pool, reference, partial(self._evaluated, call, version))
                case Expect(steps):
                    self._aggregator.expect.remote(steps, ())
                case HoldAfter(version):
                    self._close(self._aggregator.hold_after.options(num_returns=2).remote(version))
                case Forget(versions, live):
                    self._aggregator.expect.remote((), live)
                    for version in versions:
                        self._bundles.pop(version, None)
                        for pool, held in enumerate(self._held):
                            if version in held:
                                held.discard(version)
                                self._forget[pool].append(version)
                case Record(step, metrics):
                    self._recorder.record(step, metrics)
                case Checkpoint(version):
                    kept = self._tracker.checkpoint.remote(version, self._bundles[version])
                    self._pending[kept] = self._kept
                case Finish():
                    self._end = instruction

    def _train(self, pool: int, call: int, blocks: Any, versions: tuple[int, ...]) -> None:
        forget, bundles = self._send(pool, versions)
        busy, sums = self._pools[pool].train.options(num_returns=2).remote(blocks, forget, *bundles)

        def trained(busy_s: float) -> list[Event]:
            self._busy_s += busy_s
            self._close(self._aggregator.add.options(num_returns=2).remote(sums))
            return [Trained(call, busy_s)]

        self._watch(pool, busy, trained)

    def _close(self, returned: Any) -> None:
        steps_ref, bundle_ref = returned

        def closed(ready: Any) -> list[Event]:
            steps = ray.get(ready)
            self._bundles.update({step.model.version: bundle_ref for step in steps})
            return [StepsClosed(tuple(steps))] if steps else []

        self._pending[steps_ref] = closed

    def _evaluated(self, call: int, version: int, found: tuple[float, dict[str, float]]) -> list[Event]:
        busy_s, metrics = found
        self._busy_s += busy_s
        return [Evaluated(call, version, metrics, busy_s)]

    # ---- tracking -----------------------------------------------------------------------------------------------

    def _open_tracker(self) -> None:
        self._pending[self._tracker.open.remote(self._parts.make_publisher)] = self._kept

    def _kept(self, ready: Any) -> list[Event]:
        try:
            ray.get(ready)
        except RayActorError:
            self._tracker = self._session.new_tracker()
            self._open_tracker()
        except RayTaskError as error:
            _log.warning("tracking: %s; training goes on", error)
        return []

    def _publish(self) -> None:
        if self._is_publishing or not self._publishing.is_due():
            return
        last_id, rows = self._outbox.pending(BATCH_ROWS)
        if not rows:
            return
        self._is_publishing = True

        def published(ready: Any) -> list[Event]:
            self._is_publishing = False
            try:
                ray.get(ready)
            except RayActorError as error:
                self._publishing.failed(error)
                self._tracker = self._session.new_tracker()
                self._open_tracker()
            except RayTaskError as error:
                self._publishing.failed(error)
            else:
                self._publishing.succeeded(last_id)
            return []

        self._pending[self._tracker.publish.remote(rows)] = published

    def _wait_for_checkpoints(self) -> None:
        kept = [reference for reference, handler in self._pending.items() if handler == self._kept]
        if kept:
            ray.wait(kept, num_returns=len(kept), timeout=60)

    def _result(self, end: Finish, wall_s: float, left: int) -> RunResult:
        bundle: list[ModelVersion] = ray.get(self._bundles[end.version])
        ledger = self._coordinator.ledger
        return RunResult(
            model=next(model for model in bundle if model.version == end.version),
            reason=end.reason,
            timeline_digest=end.timeline_digest,
            plan_digest=end.plan_digest,
            client_updates=ledger.client_updates,
            mean_staleness=ledger.mean_staleness,
            virtual_hours=self._recorder.last_step.get("sim/hours", 0.0),
            num_diverged=ledger.num_diverged,
            metrics=self._recorder.last_evaluation,
            wall_s=wall_s,
            busy_s=self._busy_s,
            unpublished_rows=left,
            lost_pools=self._lost_pools,
            extra=self._recorder.progress(),
        )
