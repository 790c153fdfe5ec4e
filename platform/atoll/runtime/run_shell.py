"""One run inside the coordinator's process: performs its instructions on pools, aggregator and tracker; recovers it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from atoll.errors import AtollError, ClientWorkError, FencedError
from atoll.messages import Block, ModelVersion
from atoll.runtime.bundles import Bundles
from atoll.runtime.calls import Calls
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
    RecordEvaluation,
    RecordStep,
    StepsClosed,
    SumsLost,
    Train,
    Trained,
    failed_call,
)
from atoll.runtime.losses import OBJECT_LOST, RollBack, answer, end_process, told
from atoll.runtime.opening import Attempt, begin
from atoll.runtime.parts import Outcome, Parts
from atoll.runtime.recorder import checkpoint_artifact, result_of
from atoll.runtime.session import RaySession
from atoll.runtime.shared import SharedPools, SharedTracker
from atoll.runtime.stopping import Patience
from atoll.runtime.store import Commit, Journal, SnapshotRecord

__all__ = ["RunShell"]

#: losses in a row, without a snapshot between, that a run bears
_MOST_ROLLBACKS = 10
#: at the start: how long all pools are waited for before those that are there begin
_ALL_POOLS_S = 60.0
#: how long an aggregator may take to start and to read its snapshot, and to hand over weights
_OPEN_S, _WEIGHTS_S = 600.0, 60.0
#: how long the end of a run waits for its last snapshot, and for the tracking service
_LAST_SNAPSHOT_S, _DRAIN_S, _DRAIN_INTERRUPTED_S = 30.0, 30.0, 3.0
_log = logging.getLogger(__name__)


class RunShell:
    """Makes attempts until one ends: each claims the journal, takes up the newest snapshot and does the rest again.

    A life is: opening (aggregator and pools prepare themselves), running, saving (the last snapshot), draining (what
    the tracking service has not taken yet), over. The aggregator is made anew in every attempt; pools and tracker are
    shared with other runs, whose failures do not reach this one.

    Args:
        number: names the run at pools and tracker.
        parts: the run.
        session: makes processes.
        calls: of this process.
    """

    def __init__(self, number: int, parts: Parts, session: RaySession, calls: Calls) -> None:
        self.number, self.parts = number, parts
        self._session, self._calls = session, calls
        self._pools: SharedPools
        self._tracker: SharedTracker
        self._journal: Journal
        self._epoch = 0
        self._patience = Patience("the aggregator process, or what it held,", _MOST_ROLLBACKS)
        #: owner of calls to the aggregator
        self._aggregator_name = f"aggregator {number}"
        self._aggregator: Any = None
        self._aggregator_place: tuple[str, int] | None = None
        self._state = "opening"
        self._bundles = Bundles(0)
        #: pools lost and not recorded yet; runs that share the pools
        self._lost_pools, self._num_sharing = 0, 1
        self._attempt: Attempt | None = None
        self._end: Finish | None = None
        #: whether the last snapshot was asked for, and until when the state lasts at most
        self._is_last_snapshot_asked, self._until = False, 0.0
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
                self._end_aggregator(self._aggregator_place)
                self._open()
        elif isinstance(error, RollBack) or (isinstance(error, AtollError) and not isinstance(error, FencedError)):
            self._fail(error)
        else:
            raise error

    def _fail(self, error: BaseException) -> None:
        """The first error is the one to tell; what there is becomes durable if that still works."""
        if self.outcome is None and isinstance(error, AtollError):
            self.outcome = error
        # Without an aggregator, one that was lost and could not be made anew, nothing more becomes durable.
        if self._attempt is None or self._aggregator is None or self._state != "running":
            self._finish()
        else:
            self._begin_to_end()

    def _open(self) -> None:
        """Claims the journal and asks aggregator, pools and tracker to prepare themselves."""
        self._journal.claim()
        self._epoch = self._journal.epoch
        self._state, self._attempt, self._end = "opening", None, None
        self._opened_at = time.monotonic()
        self._bundles = Bundles(len(self._pools))
        self._open_pools: set[int] = set()
        #: (snapshot taken up or None), once the aggregator is there
        self._taken: tuple[SnapshotRecord | None] | None = None
        self._pools.open(self)
        self._tracker.open(self)
        self._open_aggregator()

    def _open_aggregator(self) -> None:
        """Makes it anew; what it took up is known when it answers."""
        parts, journal, epoch = self.parts, self._journal, self.epoch
        self._aggregator = self._session.new_aggregator(
            parts.make_aggregator, parts.make_snapshot_files, journal.snapshots(), journal.epoch
        )

        def opened(ready: Any) -> None:
            if epoch != self.epoch or self.is_over:
                return
            with self.guarded():
                self._aggregator_place, taken, versions = answer(ready)
                try:
                    models = self._aggregator.models.options(num_returns=len(versions)).remote()
                except RayError as error:
                    raise told(error, "the aggregator process") from error
                made = models if isinstance(models, list) else [models]
                self._bundles.add(dict(zip(versions, made, strict=True)))
                self._taken = (taken,)
                self._begin_when_ready()

        self._calls.expect(self._aggregator.open.remote(), opened)

    def _begin_when_ready(self) -> None:
        """Workers import torch and open the data first, so that wall time measures the run; one is enough."""
        if self._state != "opening" or self._attempt is not None:
            return
        waited_s = time.monotonic() - self._opened_at
        if self._taken is None:
            if waited_s > _OPEN_S:
                raise RollBack(f"the aggregator process did not start within {_OPEN_S:.0f} s")
            return
        if len(self._open_pools) < len(self._pools) and not (self._open_pools and waited_s > _ALL_POOLS_S):
            return
        self._attempt = begin(self.parts, self._journal, self._taken[0], sorted(self._open_pools))
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
            if recorder.begin_snapshot(is_forced=self._state == "saving" and not self._is_last_snapshot_asked):
                self._is_last_snapshot_asked = self._state == "saving"
                self._save()
            recorder.lost_pools, self._lost_pools = recorder.lost_pools + self._lost_pools, 0
            if self._state != "draining":
                recorder.flush()
            self._publish()
            self.progress = recorder.progress()
            self._go_on_to_end()

    def _begin_to_end(self) -> None:
        """No more work: everything that there is becomes durable, then is published as far as the service takes it."""
        self._state, self._is_last_snapshot_asked = "saving", False
        self._until = time.monotonic() + _LAST_SNAPSHOT_S

    def _go_on_to_end(self) -> None:
        attempt, now = self._attempt, time.monotonic()
        if attempt is None:
            return
        if self._state == "saving":
            is_saved = self._is_last_snapshot_asked and not attempt.recorder.is_saving
            if is_saved or now > self._until:
                attempt.coordinator.give_up()
                attempt.recorder.flush(is_forced=True)
                attempt.timeline.close()
                self._state = "draining"
                self._until = now + (_DRAIN_S if self._end is not None else _DRAIN_INTERRUPTED_S)
                attempt.publishing.hurry()
        if self._state == "draining" and (attempt.publishing.is_drained() or now > self._until):
            if self._end is not None and self.outcome is None:
                model, end = self._model(self._end.version), self._end
                self.outcome = result_of(end, model, attempt.coordinator, attempt.recorder, self._journal)
            self._finish()

    def _finish(self) -> None:
        self._state = "over"
        self._bundles = Bundles(0)
        self._end_aggregator(None)  # in Ray's own way, which tells nobody of a death
        self._pools.close(self)

    def _model(self, version: int) -> ModelVersion:
        bundle: list[ModelVersion] = answer(self._bundles[version], f"the weights of version {version}", _WEIGHTS_S)
        return next(model for model in bundle if model.version == version)

    def _end_aggregator(self, place: tuple[str, int] | None) -> None:
        self._calls.forget(self._aggregator_name)
        if self._aggregator is not None:
            end_process(self._aggregator, place)
        self._aggregator, self._aggregator_place = None, None

    def overdue(self, owner: object, allowed_s: float) -> bool:
        """Starts again where it is this run's aggregator that is silent; False where it is not."""
        if owner != self._aggregator_name:
            return False
        self.failed(RollBack(f"the aggregator process gave no answer for more than {allowed_s:.0f} s (runtime.hang_s)"))
        return True

    # ---- events -----------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        # Where something has failed, only the steps that are there already are still of interest.
        is_wanted = self.outcome is None or isinstance(event, StepsClosed)
        if self._attempt is not None and self._state in ("running", "saving") and is_wanted:
            self._perform(self._attempt.coordinator.handle(event))

    def pool_ready(self, pool: int) -> None:
        """A pool can take this run's work."""
        with self.guarded():
            self._open_pools.add(pool)
            if self._attempt is None:
                self._begin_when_ready()
            else:
                self._handle(PoolReady(pool))

    def pool_lost(self, pool: int, *, is_out_of_memory: bool, is_work_to_blame: bool) -> None:
        """A pool is gone; what it had of this run is done again."""
        self._lost_pools += 1
        self._bundles.lost(pool)
        self._open_pools.discard(pool)
        with self.guarded():
            self._handle(PoolLost(pool, is_out_of_memory, is_work_to_blame))

    def tracker_lost(self, error: BaseException) -> None:
        """The tracker is gone; what was under way is sent again."""
        if self._attempt is not None and self._attempt.publishing.is_under_way:
            with self.guarded():
                self._attempt.publishing.failed(error)

    # ---- instructions -----------------------------------------------------------------------------------------------

    def _perform(self, instructions: list[Instruction]) -> None:
        attempt = self._attempt
        if attempt is None:
            raise AssertionError("instructions without an attempt")
        for instruction in instructions:
            match instruction:
                case Train(pool, call, blocks, versions):
                    self._train(pool, call, blocks, versions)
                case Evaluate(pool, call, version):
                    forget, bundles = self._bundles.send(pool, (version,))
                    evaluate = self._pools[pool].evaluate
                    reference = evaluate.remote(self.number, version, forget, *bundles, epoch=self.epoch)
                    self._pools.watch(pool, self, reference, partial(self._evaluated, call, version))
                case Expect(steps):
                    self._ask_aggregator(self._aggregator.expect.remote(steps, ()), answer)
                case HoldAfter(version):
                    self._close(self._aggregator.hold_after.options(num_returns=2).remote(version), ())
                case Forget(versions, live):
                    self._ask_aggregator(self._aggregator.expect.remote((), live), answer)
                    self._bundles.drop(versions)
                case RecordStep(record, metrics):
                    attempt.recorder.step(record, metrics)
                case RecordEvaluation(version, metrics):
                    attempt.recorder.evaluation(version, metrics)
                case Checkpoint(version):
                    artifact = checkpoint_artifact(version)
                    attempt.artifact_files.write(artifact.name, self.parts.encode_model(self._model(version)))
                    attempt.recorder.artifact(artifact)
                case Finish():
                    self._end = instruction
                    attempt.recorder.end(instruction)

    def _train(self, pool: int, call: int, blocks: tuple[Block, ...], versions: tuple[int, ...]) -> None:
        forget, bundles = self._bundles.send(pool, versions)
        train = self._pools[pool].train.options(num_returns=2)
        busy, sums = train.remote(self.number, blocks, forget, *bundles, epoch=self.epoch)

        def trained(busy_s: float | ClientWorkError) -> None:
            with self.guarded():
                if isinstance(busy_s, ClientWorkError):
                    self._handle(failed_call(call, busy_s))
                elif self._attempt is not None and self._state in ("running", "saving"):
                    self._attempt.recorder.busy_s += busy_s
                    self._close(self._aggregator.add.options(num_returns=2).remote(sums), blocks)
                    self._handle(Trained(call, busy_s))

        self._pools.watch(pool, self, busy, trained)

    def _evaluated(self, call: int, version: int, found: tuple[float, Any]) -> None:
        busy_s, metrics = found
        with self.guarded():
            if isinstance(metrics, ClientWorkError):
                self._handle(failed_call(call, metrics))
            elif self._attempt is not None:
                self._attempt.recorder.busy_s += busy_s
                self._handle(Evaluated(call, version, metrics, busy_s))

    # ---- aggregator ---------------------------------------------------------------------------------------------

    def _ask_aggregator(self, reference: Any, then: Callable[[Any], None]) -> None:
        epoch = self.epoch

        def answered(ready: Any) -> None:
            if epoch == self.epoch and self._state not in ("draining", "over"):
                with self.guarded():
                    then(ready)

        self._calls.ask(self._aggregator_name, reference, answered)

    def _close(self, returned: Any, blocks: tuple[Block, ...]) -> None:
        steps_ref, bundle_ref = returned

        def closed(ready: Any) -> None:
            try:
                steps = ray.get(ready)
            except (RayTaskError, RayError) as error:
                if blocks and isinstance(getattr(error, "cause", None), OBJECT_LOST):
                    self._handle(SumsLost(blocks))
                    return
                raise told(error, "the aggregator process") from error
            self._bundles.add({step.model.version: bundle_ref for step in steps})
            if steps:
                self._handle(StepsClosed(tuple(steps)))

        self._ask_aggregator(steps_ref, closed)

    def _save(self) -> None:
        attempt = self._attempt
        if attempt is None:
            return
        saved = self._aggregator.save.remote(attempt.coordinator.live_versions())
        self._ask_aggregator(saved, lambda ready: attempt.recorder.snapshot(*answer(ready)))

    # ---- tracking -----------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        attempt = self._attempt
        batch = None if attempt is None else attempt.publishing.take()
        if attempt is None or batch is None:
            return
        publishing = attempt.publishing

        def sent(error: BaseException | None) -> None:
            with self.guarded():  # a journal that cannot be written is this run's alone
                if error is None:
                    publishing.succeeded()
                else:
                    publishing.failed(error)

        self._tracker.send(self, batch, sent)
