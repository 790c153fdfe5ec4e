"""The in-process executor: performs the coordinator's instructions in turn, without Ray, with the same bits."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from atoll.aggregation import Step
from atoll.errors import AtollError, ClientWorkError, FencedError, Interrupted
from atoll.messages import ModelVersion
from atoll.runtime.aggregating import DurableAggregator
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
    RecordEvaluation,
    RecordStep,
    StepsClosed,
    Train,
    Trained,
    failed_call,
)
from atoll.runtime.opening import begin
from atoll.runtime.parts import Outcome, Parts, RunResult
from atoll.runtime.publishing import Sending
from atoll.runtime.recorder import checkpoint_artifact, result_of
from atoll.runtime.stopping import StopSignal
from atoll.runtime.store import Journal
from atoll.runtime.work import evaluate_version, one_thread, train_blocks

if TYPE_CHECKING:
    from atoll.evaluation import Evaluator

__all__ = ["run_inline", "run_inline_together"]

#: how long the end of a run waits for the tracking service to take what is left
_DRAIN_S, _DRAIN_INTERRUPTED_S = 30.0, 3.0
#: (calls that wait) → index of the one to do next
Pick = Callable[[Sequence[Train | Evaluate]], int]


def run_inline(
    parts: Parts,
    *,
    num_pools: int = 1,
    pick: Pick | None = None,
    on_progress: Callable[[dict[str, float]], None] | None = None,
) -> RunResult:
    """`run_inline_together` of one run.

    Raises:
        As the outcomes of run_inline_together.
    """

    def note(found: list[dict[str, float]]) -> None:
        if on_progress is not None:
            on_progress(found[0])

    (outcome,) = run_inline_together([parts], num_pools=num_pools, pick=pick, on_progress=note)
    if not isinstance(outcome, RunResult):
        raise outcome
    return outcome


def run_inline_together(
    runs: Sequence[Parts],
    *,
    num_pools: int = 1,
    pick: Pick | None = None,
    on_progress: Callable[[list[dict[str, float]]], None] | None = None,
) -> list[Outcome]:
    """Runs all of `runs` to their ends in this process and thread, each from its journal's newest snapshot.

    The run that has used least time so far is next, so that they share the thread fairly.

    Args:
        runs: one or more.
        num_pools: pretended pools; changes how work is grouped, never a bit of the result.
        pick: which waiting call to do next; the first, if None. Tests shuffle with it.
        on_progress: called after every event with figures for a display, one mapping per run.

    Returns:
        Per run its result, or the error that ended it; the others go on without it.

        ClientWorkError: client code raised; carries its traceback. AggregationError: an exact sum left its bounds, or
        a step came out otherwise than it was committed. InfrastructureError: the journal or a snapshot cannot be
        written. Interrupted: Ctrl-C or SIGTERM; everything up to a step boundary is committed.

    Raises:
        FencedError: another process has taken a run over.

    Purity: the model and every metric outside `wall_*` are functions of the plan.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignal())
        choose = pick or (lambda waiting: 0)
        outcomes: dict[int, Outcome] = {}
        going: dict[int, _Inline] = {}
        for number, parts in enumerate(runs):
            with _ending(outcomes, number):
                journal = stack.enter_context(contextlib.closing(parts.make_journal()))
                journal.claim()
                begun = _Inline(parts, journal, num_pools, choose)
                begun.start()
                going[number] = begun  # only now: what failed at its start has nothing to go on with
        while going:
            number = min(going, key=lambda one: going[one].used_s)
            run = going[number]
            with _ending(outcomes, number):
                run.advance(stop)
                outcome = run.outcome()
                if outcome is not None:
                    outcomes[number] = outcome
            if number in outcomes:
                del going[number]
            elif on_progress is not None:
                on_progress([going[one].progress() if one in going else {} for one in range(len(runs))])
    return [outcomes[number] for number in range(len(runs))]


@contextlib.contextmanager
def _ending(outcomes: dict[int, Outcome], number: int) -> Iterator[None]:
    """An error of atoll ends the run that it comes from; a fence, or a bug, ends everything."""
    try:
        yield
    except FencedError:
        raise
    except AtollError as error:
        outcomes[number] = error


class _Inline:
    """One run's state: the actors of the Ray executor as plain objects."""

    def __init__(self, parts: Parts, journal: Journal, num_pools: int, pick: Pick) -> None:
        self._parts, self._pick = parts, pick
        self._learner = parts.make_learner()
        one_thread()
        self._evaluator: Evaluator | None = None
        self._aggregator = DurableAggregator(
            parts.make_aggregator, parts.make_snapshot_files, journal.snapshots(), journal.epoch
        )
        self._journal = journal
        self._attempt = begin(parts, journal, self._aggregator.taken, list(range(num_pools)))
        self._coordinator, self._recorder = self._attempt.coordinator, self._attempt.recorder
        self._versions: dict[int, ModelVersion] = {model.version: model for model in self._aggregator.take_models()}
        self._waiting: list[Train | Evaluate] = []
        self._end: Finish | None = None
        #: sends in a thread of its own, so that a tracking service that does not answer holds nothing up
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="atoll-tracker")
        self._sending = Sending(parts.make_publisher)
        self._sent: Future[str] | None = None
        #: wall seconds that this run has had of the thread
        self.used_s = 0.0
        self._is_over = False

    def start(self) -> None:
        """What there is to do first."""
        with self._concluding():
            self._perform(self._coordinator.start())

    def advance(self, stop: StopSignal) -> None:
        """One call, or the end."""
        started = time.perf_counter()
        with self._concluding():
            if self._end is None and not stop.is_set:
                call = self._waiting.pop(self._pick(self._waiting))
                for event in self._execute(call):
                    self._perform(self._coordinator.handle(event))
                self._save()
                self._recorder.flush()
                self._publish()
            if self._end is not None or stop.is_set:
                self._conclude()
                self._is_over = True
        if self._is_over:
            self._sender.shutdown(wait=False, cancel_futures=True)
        self.used_s += time.perf_counter() - started

    @contextlib.contextmanager
    def _concluding(self) -> Iterator[None]:
        """Whatever goes wrong, what there is becomes durable as far as that still works."""
        try:
            yield
        except (FencedError, KeyboardInterrupt):
            self._sender.shutdown(wait=False, cancel_futures=True)
            raise
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                self._conclude()
            self._sender.shutdown(wait=False, cancel_futures=True)
            raise

    def progress(self) -> dict[str, float]:
        """Figures for a display."""
        return self._recorder.progress()

    def outcome(self) -> Outcome | None:
        """How it ended; None: it goes on."""
        if not self._is_over:
            return None
        if self._end is None:
            return Interrupted(f"stopped at server step {self._coordinator.version}")
        model = self._versions[self._end.version]
        return result_of(self._end, model, self._coordinator, self._recorder, self._journal)

    def _conclude(self) -> None:
        """Everything that there is becomes durable, then is published as far as the service takes it."""
        self._coordinator.give_up()
        self._save(is_forced=True)
        self._recorder.flush(is_forced=True)
        self._attempt.timeline.close()
        self._drain(_DRAIN_S if self._end is not None else _DRAIN_INTERRUPTED_S)

    def _execute(self, call: Train | Evaluate) -> Iterator[Event]:
        started = time.perf_counter()
        try:
            if isinstance(call, Evaluate):
                if self._evaluator is None:
                    self._evaluator = self._parts.make_evaluator()
                    one_thread()
                metrics = evaluate_version(self._evaluator, self._versions[call.version])
            else:
                results = train_blocks(self._learner, call.blocks, self._versions)
        except ClientWorkError as error:
            yield failed_call(call.call, error)
            return
        busy_s = time.perf_counter() - started
        self._recorder.busy_s += busy_s
        if isinstance(call, Evaluate):
            yield Evaluated(call.call, call.version, metrics, busy_s)
            return
        yield Trained(call.call, busy_s)
        for result in results:
            yield from self._closed(self._aggregator.add(result))

    def _closed(self, steps: Sequence[Step]) -> Iterator[Event]:
        if steps:
            self._versions.update({step.model.version: step.model for step in steps})
            yield StepsClosed(tuple(steps))

    def _perform(self, instructions: list[Instruction]) -> None:
        todo = deque(instructions)
        while todo:
            instruction = todo.popleft()
            match instruction:
                case Train() | Evaluate():
                    self._waiting.append(instruction)
                case Expect(steps):
                    self._aggregator.expect(steps)
                case HoldAfter(version):
                    for event in self._closed(self._aggregator.hold_after(version)):
                        todo.extend(self._coordinator.handle(event))
                case Forget(versions, live):
                    self._aggregator.forget(live)
                    for version in versions:
                        self._versions.pop(version, None)
                case RecordStep(record, metrics):
                    self._recorder.step(record, metrics)
                case RecordEvaluation(version, metrics):
                    self._recorder.evaluation(version, metrics)
                case Checkpoint(version):
                    artifact = checkpoint_artifact(version)
                    self._attempt.artifact_files.write(artifact.name, self._parts.encode_model(self._versions[version]))
                    self._recorder.artifact(artifact)
                case Finish():
                    self._end = instruction
                    self._recorder.end(instruction)

    def _save(self, *, is_forced: bool = False) -> None:
        if self._recorder.begin_snapshot(is_forced=is_forced):
            self._recorder.snapshot(*self._aggregator.save(self._coordinator.live_versions()))

    # ---- tracking -----------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        publishing = self._attempt.publishing
        if self._sent is not None:
            if not self._sent.done():
                return
            sent, self._sent = self._sent, None
            if (error := sent.exception()) is None:
                publishing.succeeded(sent.result())
            else:
                publishing.failed(error)
        batch = publishing.take()
        if batch is not None:
            self._sent = self._sender.submit(self._sending.send, batch)

    def _drain(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._attempt.publishing.hurry()
        while not self._attempt.publishing.is_drained() and time.monotonic() < until:
            self._publish()
            time.sleep(0.01)
