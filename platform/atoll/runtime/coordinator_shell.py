"""Actor shell of the coordinator: performs its instructions on pools, aggregator and tracker, and recovers them."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError

from atoll.errors import ClientWorkError, FencedError, InfrastructureError
from atoll.messages import Block, ModelVersion
from atoll.runtime.deadlines import Deadlines
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
    OutOfMemory,
    PoolLost,
    PoolReady,
    RecordEvaluation,
    RecordStep,
    StepsClosed,
    SumsLost,
    Train,
    Trained,
    WorkFailed,
)
from atoll.runtime.losses import OBJECT_LOST, PROCESS_LOST, RollBack, answer, end_process, told
from atoll.runtime.opening import begin
from atoll.runtime.parts import Parts, RunResult
from atoll.runtime.recorder import checkpoint_artifact, result_of
from atoll.runtime.session import RaySession
from atoll.runtime.stopping import Patience
from atoll.runtime.store import Commit

__all__ = ["CoordinatorShell"]

_POLL_S = 0.25
#: losses in a row, without a snapshot between, that a run bears
_MOST_ROLLBACKS, _MOST_LOST_POOLS = 10, 100
#: at the start: how long all pools are waited for before those that are there begin
_ALL_POOLS_S = 60.0
_OPEN_S = 600.0
#: how long the end of a run waits for its last snapshot, and for the tracking service
_LAST_SNAPSHOT_S, _DRAIN_S, _DRAIN_INTERRUPTED_S = 30.0, 30.0, 3.0
_AGGREGATOR, _TRACKER = "aggregator", "tracker"
_log = logging.getLogger(__name__)


class CoordinatorShell:
    """Runs attempts until one ends: each claims the journal, takes up the newest snapshot and does the rest again.

    Pools survive from one attempt to the next; the aggregator is made anew.
    """

    def __init__(self, parts: Parts, pools: list[Any], tracker: Any, gpus_per_worker: float) -> None:
        self._parts, self._pools, self._tracker = parts, list(pools), tracker
        self._session = RaySession(len(pools), gpus_per_worker)
        #: owner → host and process id
        self._places: dict[str | int, tuple[str, int]] = {}
        self._is_open = [False] * len(pools)
        #: newest version known; pools lost and not recorded yet
        self._version, self._lost_pools = -1, 0
        self._pool_patience = Patience("a client pool", _MOST_LOST_POOLS)
        self._deadlines = Deadlines(parts.durability.hang_s)
        self._aggregator: Any = None
        self._is_stopped = False
        self._progress: dict[str, float] = {}

    def progress(self) -> dict[str, float]:
        """Figures for a display; runs beside `run`, and shows that this process is alive."""
        return self._progress

    def stop(self) -> None:
        """Asks `run` to end at the next step boundary."""
        self._is_stopped = True

    def run(self) -> RunResult | None:
        """The whole run; None where it was stopped."""
        # Here, not in the constructor: what that raises reaches the driver as text only, and the journal belongs to
        # the thread that opens it.
        patience = Patience("the aggregator process, or what it held,", _MOST_ROLLBACKS)
        with contextlib.closing(self._parts.make_journal()) as journal:
            self._journal = journal
            while True:
                try:
                    return self._attempt()
                except RollBack as loss:
                    self._end_process(_AGGREGATOR, self._aggregator)
                    saved = journal.snapshots()
                    patience.lost(saved[0].version if saved else 0, str(loss))
                    _log.warning("%s; the run goes on from its last snapshot", loss)

    def _attempt(self) -> RunResult | None:
        self._journal.claim()
        #: version → reference to the bundle that holds it; this process owns every reference
        self._bundles: dict[int, Any] = {}
        self._held: list[set[int]] = [set() for _ in self._pools]
        self._forget: list[list[int]] = [[] for _ in self._pools]
        self._life = [0] * len(self._pools)
        #: reference → what to do when it is ready
        self._pending: dict[Any, Callable[[Any], list[Event]]] = {}
        self._deadlines.forget_all()
        self._end: Finish | None = None
        for pool in range(len(self._pools)):
            self._open_pool(pool)
        self._open_tracker()
        taken = self._open_aggregator()
        self._wait_for_pools()
        ready = [pool for pool, is_open in enumerate(self._is_open) if is_open]
        attempt = begin(self._parts, self._journal, taken, ready)
        self._coordinator, self._recorder = attempt.coordinator, attempt.recorder
        self._publishing, self._artifact_files = attempt.publishing, attempt.artifact_files
        try:
            self._perform(self._coordinator.start())
            while self._end is None and not self._is_stopped:
                self._turn()
            self._conclude(attempt.timeline)
        except (RollBack, FencedError):
            raise
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                self._conclude(attempt.timeline)
            raise
        return self._result(self._end)

    def _result(self, end: Finish | None) -> RunResult | None:
        if end is None:
            return None
        return result_of(end, self._model(end.version), self._coordinator, self._recorder, self._journal)

    def _model(self, version: int) -> ModelVersion:
        bundle: list[ModelVersion] = answer(self._bundles[version], f"the weights of version {version}")
        return next(model for model in bundle if model.version == version)

    # ---- the loop -----------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._take_events(_POLL_S)
        self._replace_the_overdue()
        if self._recorder.begin_snapshot():
            self._save()
        self._version = self._coordinator.version
        self._recorder.lost_pools += self._lost_pools
        self._lost_pools = 0
        self._recorder.flush()
        self._publish()
        self._progress = self._recorder.progress()

    def _take_events(self, timeout_s: float) -> None:
        if not self._pending:
            time.sleep(timeout_s)
            return
        ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=timeout_s)
        if ready:
            more, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
            for reference in more:
                handler = self._pending.pop(reference, None)
                if handler is not None:
                    for event in handler(reference):
                        self._perform(self._coordinator.handle(event))

    def _replace_the_overdue(self) -> None:
        for owner, allowed_s in self._deadlines.overdue(time.monotonic()).items():
            text = f"no answer for more than {allowed_s:.0f} s (runtime.hang_s)"
            if owner == _AGGREGATOR:
                raise RollBack(f"the aggregator process gave {text}")
            if owner == _TRACKER:
                self._replace_tracker(InfrastructureError(f"the tracker process gave {text}"))
            elif isinstance(owner, int):
                for event in self._replace(owner, InfrastructureError(f"client pool {owner} gave {text}")):
                    self._perform(self._coordinator.handle(event))

    def _ask(self, owner: str | int, reference: Any, then: Callable[[Any], list[Event]]) -> None:
        """Calls `then` with the reference when it is ready; `owner` owes the answer from now on."""
        self._deadlines.sent(owner, time.monotonic())

        def answered(ready: Any) -> list[Event]:
            self._deadlines.answered(owner, time.monotonic())
            return then(ready)

        self._pending[reference] = answered

    def _conclude(self, timeline: Any) -> None:
        """Everything that there is becomes durable, then is published as far as the service takes it."""
        until, is_asked = time.monotonic() + _LAST_SNAPSHOT_S, False
        while time.monotonic() < until and not (is_asked and not self._recorder.is_saving):
            if self._recorder.begin_snapshot(is_forced=True):
                self._save()
                is_asked = True
            self._turn()
        self._coordinator.give_up()
        self._recorder.flush(is_forced=True)
        timeline.close()
        until = time.monotonic() + (_DRAIN_S if self._end is not None else _DRAIN_INTERRUPTED_S)
        self._publishing.hurry()
        while not self._publishing.is_drained() and time.monotonic() < until:
            self._publish()
            self._take_events(0.05)

    # ---- pools --------------------------------------------------------------------------------------------------

    def _open_pool(self, pool: int) -> None:
        self._is_open[pool] = False
        life, parts = self._life[pool], self._parts
        opened = self._pools[pool].open.remote(parts.make_learner, parts.make_evaluator, self._journal.epoch)

        def done(ready: Any) -> list[Event]:
            if self._life[pool] != life:
                return []
            try:
                self._places[pool] = ray.get(ready)
            except PROCESS_LOST as error:
                return self._replace(pool, error)
            except (RayTaskError, RayError) as error:
                raise told(error, "a client pool") from error
            self._is_open[pool] = True
            return [PoolReady(pool)]

        if pool in self._places:
            self._ask(pool, opened, done)
        else:
            # No deadline: on a cluster a new pool may wait for a place, and others do its work meanwhile.
            self._pending[opened] = done

    def _wait_for_pools(self) -> None:
        """Workers import torch and open the data first, so that wall time measures the run; one is enough."""
        began = time.monotonic()
        while not all(self._is_open):
            if any(self._is_open) and time.monotonic() - began > _ALL_POOLS_S:
                return
            ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=_POLL_S)
            for reference in ready:
                self._pending.pop(reference)(reference)
            for owner, allowed_s in self._deadlines.overdue(time.monotonic()).items():
                if isinstance(owner, int):
                    self._replace(owner, InfrastructureError(f"client pool {owner}: no answer for {allowed_s:.0f} s"))
            if self._is_stopped:
                return

    def _watch(self, pool: int, reference: Any, then: Callable[[Any], list[Event]]) -> None:
        """Runs `then` on the value of a pool's call, or replaces the pool where it died."""
        life = self._life[pool]

        def handle(ready: Any) -> list[Event]:
            if self._life[pool] != life:
                return []
            try:
                value = ray.get(ready)
            except PROCESS_LOST as error:
                return self._replace(pool, error)
            except (RayTaskError, RayError) as error:
                raise told(error, "weights that a client pool asked for") from error
            return then(value)

        self._ask(pool, reference, handle)

    def _replace(self, pool: int, error: BaseException) -> list[Event]:
        self._lost_pools += 1
        self._pool_patience.lost(self._version, error)
        self._life[pool] += 1
        self._deadlines.forget(pool)
        self._end_process(pool, self._pools[pool])
        self._pools[pool] = self._session.new_pool()
        self._held[pool], self._forget[pool] = set(), []
        self._open_pool(pool)
        is_memory, is_out_of_reach = isinstance(error, OutOfMemoryError), isinstance(error, ActorUnavailableError)
        return [PoolLost(pool, is_memory, not is_out_of_reach)]

    def _end_process(self, owner: str | int, actor: Any) -> None:
        # A process that was taken for dead must not end what its successor works with.
        self._journal.commit(Commit())
        end_process(actor, self._places.pop(owner, None))

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
                    epoch = self._journal.epoch
                    reference = self._pools[pool].evaluate.remote(version, forget, *bundles, epoch=epoch)
                    self._watch(pool, reference, partial(self._evaluated, call, version))
                case Expect(steps):
                    self._tell_aggregator(self._aggregator.expect.remote(steps, ()))
                case HoldAfter(version):
                    self._close(self._aggregator.hold_after.options(num_returns=2).remote(version), ())
                case Forget(versions, live):
                    self._tell_aggregator(self._aggregator.expect.remote((), live))
                    self._drop(versions)
                case RecordStep(record, metrics):
                    self._recorder.step(record, metrics)
                case RecordEvaluation(version, metrics):
                    self._recorder.evaluation(version, metrics)
                case Checkpoint(version):
                    self._checkpoint(version)
                case Finish():
                    self._end = instruction
                    self._recorder.end(instruction)

    def _train(self, pool: int, call: int, blocks: tuple[Block, ...], versions: tuple[int, ...]) -> None:
        forget, bundles = self._send(pool, versions)
        train = self._pools[pool].train.options(num_returns=2)
        busy, sums = train.remote(blocks, forget, *bundles, epoch=self._journal.epoch)

        def trained(busy_s: float | ClientWorkError) -> list[Event]:
            if isinstance(busy_s, ClientWorkError):
                return [_failure(call, busy_s)]
            self._recorder.busy_s += busy_s
            self._close(self._aggregator.add.options(num_returns=2).remote(sums), blocks)
            return [Trained(call, busy_s)]

        self._watch(pool, busy, trained)

    def _evaluated(self, call: int, version: int, found: tuple[float, Any]) -> list[Event]:
        busy_s, metrics = found
        if isinstance(metrics, ClientWorkError):
            return [_failure(call, metrics)]
        self._recorder.busy_s += busy_s
        return [Evaluated(call, version, metrics, busy_s)]

    def _drop(self, versions: tuple[int, ...]) -> None:
        for version in versions:
            self._bundles.pop(version, None)
            for pool, held in enumerate(self._held):
                if version in held:
                    held.discard(version)
                    self._forget[pool].append(version)

    def _checkpoint(self, version: int) -> None:
        artifact = checkpoint_artifact(version)
        self._artifact_files.write(artifact.name, self._parts.encode_model(self._model(version)))
        self._recorder.artifact(artifact)

    # ---- aggregator ---------------------------------------------------------------------------------------------

    def _open_aggregator(self) -> Any:
        """Makes it anew; returns the snapshot that it took up."""
        parts, journal = self._parts, self._journal
        self._aggregator = self._session.new_aggregator(
            parts.make_aggregator, parts.make_snapshot_files, journal.snapshots(), journal.epoch
        )
        try:
            self._places[_AGGREGATOR], taken, versions = ray.get(self._aggregator.open.remote(), timeout=_OPEN_S)
            models = self._aggregator.models.options(num_returns=len(versions)).remote()
        except (RayTaskError, RayError) as error:
            raise told(error, "the aggregator process") from error
        self._bundles.update(zip(versions, models if isinstance(models, list) else [models], strict=True))
        return taken

    def _tell_aggregator(self, reference: Any) -> None:
        """A call without a result; that it arrived matters all the same."""

        def heard(ready: Any) -> list[Event]:
            answer(ready)
            return []

        self._ask(_AGGREGATOR, reference, heard)

    def _close(self, returned: Any, blocks: tuple[Block, ...]) -> None:
        steps_ref, bundle_ref = returned

        def closed(ready: Any) -> list[Event]:
            try:
                steps = ray.get(ready)
            except RayTaskError as error:
                if isinstance(error.cause, OBJECT_LOST) and blocks:
                    return [SumsLost(blocks)]
                raise told(error, "the aggregator process") from error
            except RayError as error:
                raise told(error, "the aggregator process") from error
            self._bundles.update({step.model.version: bundle_ref for step in steps})
            return [StepsClosed(tuple(steps))] if steps else []

        self._ask(_AGGREGATOR, steps_ref, closed)

    def _save(self) -> None:
        def saved(ready: Any) -> list[Event]:
            self._recorder.snapshot(*answer(ready))
            return []

        self._ask(_AGGREGATOR, self._aggregator.save.remote(self._coordinator.live_versions()), saved)

    # ---- tracking -----------------------------------------------------------------------------------------------

    def _open_tracker(self) -> None:
        def opened(ready: Any) -> list[Event]:
            with contextlib.suppress(RayError):  # the first batch will find out
                self._places[_TRACKER] = ray.get(ready)
            return []

        self._pending[self._tracker.open.remote(self._parts.make_publisher)] = opened

    def _replace_tracker(self, error: BaseException) -> None:
        if self._publishing.is_under_way:
            self._publishing.failed(error)
        self._deadlines.forget(_TRACKER)
        self._end_process(_TRACKER, self._tracker)
        self._tracker = self._session.new_tracker()
        self._open_tracker()

    def _publish(self) -> None:
        batch = self._publishing.take()
        if batch is None:
            return
        tracker = self._tracker

        def sent(ready: Any) -> list[Event]:
            if tracker is not self._tracker:
                return []  # a late answer of one that was replaced
            try:
                ray.get(ready)
            except RayTaskError as error:
                self._publishing.failed(error.cause or error)
            except RayError as error:
                self._replace_tracker(error)
            else:
                self._publishing.succeeded()
            return []

        self._ask(_TRACKER, tracker.send.remote(batch), sent)


def _failure(call: int, error: ClientWorkError) -> Event:
    return OutOfMemory(call) if error.is_out_of_memory else WorkFailed(call, error)
