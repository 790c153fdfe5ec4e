"""The in-process executor: performs the coordinator's instructions in turn, without Ray, with the same bits."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from atoll.messages import ModelVersion
from atoll.runtime.actors import evaluate_version, train_block
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
    Record,
    StepsClosed,
    Train,
    Trained,
)
from atoll.runtime.parts import Parts, Publisher, RunResult
from atoll.runtime.publishing import Publishing
from atoll.runtime.recorder import Recorder

__all__ = ["run_inline"]

_log = logging.getLogger(__name__)
#: (calls that wait) → index of the one to do next
Pick = Callable[[Sequence[Train | Evaluate]], int]


def run_inline(
    parts: Parts,
    *,
    num_pools: int = 1,
    pick: Pick | None = None,
    on_progress: Callable[[dict[str, float]], None] | None = None,
) -> RunResult:
    """Runs to the end in this process and thread.

    Args:
        parts: the run.
        num_pools: pretended pools; changes how work is grouped, never a bit of the result.
        pick: which waiting call to do next; the first, if None. Tests shuffle with it.
        on_progress: called after every event with figures for a display.

    Raises:
        ClientWorkError: client code raised; carries its traceback.
        AggregationError: an exact sum left its bounds.

    Purity: the model and every metric outside `wall_*` are functions of the plan.
    """
    return _Inline(parts, num_pools, pick or (lambda waiting: 0), on_progress).run()


class _Inline:
    """One run's state: the actors of the Ray executor as plain objects."""

    def __init__(
        self,
        parts: Parts,
        num_pools: int,
        pick: Pick,
        on_progress: Callable[[dict[str, float]], None] | None,
    ) -> None:
        self._parts, self._pick, self._on_progress = parts, pick, on_progress
        self._learner = parts.make_learner()
        self._evaluator = parts.make_evaluator()
        self._aggregator = parts.make_aggregator()
        self._outbox = parts.make_outbox()
        self._publisher: Publisher = parts.make_publisher()
        self._coordinator = Coordinator(parts.make_planner(), parts.settings, num_pools)
        self._recorder = Recorder(self._outbox, self._coordinator)
        self._publishing = Publishing(self._outbox)
        self._versions: dict[int, ModelVersion] = {0: self._aggregator.model}
        self._waiting: list[Train | Evaluate] = []
        self._busy_s = 0.0
        self._end: Finish | None = None

    def run(self) -> RunResult:
        try:
            self._perform(self._coordinator.start())
            while self._end is None:
                call = self._waiting.pop(self._pick(self._waiting))
                for event in self._execute(call):
                    self._perform(self._coordinator.handle(event))
                self._recorder.flush()
                self._publishing.publish(self._publisher.publish)
                if self._on_progress is not None:
                    self._on_progress(self._recorder.progress())
            wall_s = self._recorder.wall_s
        finally:
            self._coordinator.give_up()
            self._recorder.flush(is_forced=True)
            left = self._publishing.drain(self._publisher.publish)
            self._outbox.close()
        ledger = self._coordinator.ledger
        return RunResult(
            model=self._versions[self._end.version],
            reason=self._end.reason,
            timeline_digest=self._end.timeline_digest,
            plan_digest=self._end.plan_digest,
            client_updates=ledger.client_updates,
            mean_staleness=ledger.mean_staleness,
            virtual_hours=self._recorder.last_step.get("sim/hours", 0.0),
            num_diverged=ledger.num_diverged,
            metrics=self._recorder.last_evaluation,
            wall_s=wall_s,
            busy_s=self._busy_s,
            unpublished_rows=left,
        )

    def _execute(self, call: Train | Evaluate) -> list[Event]:
        started = time.perf_counter()
        if isinstance(call, Evaluate):
            metrics = evaluate_version(self._evaluator, self._versions[call.version])
            busy_s = time.perf_counter() - started
            self._busy_s += busy_s
            return [Evaluated(call.call, call.version, metrics, busy_s)]
        closed: deque[Event] = deque()
        results = [train_block(self._learner, block, self._versions) for block in call.blocks]
        busy_s = time.perf_counter() - started
        self._busy_s += busy_s
        for result in results:
            self._note_closed(self._aggregator.handle(result), closed)
        return [Trained(call.call, busy_s), *closed]

    def _checkpoint(self, version: int) -> None:
        try:
            self._publisher.checkpoint(self._versions[version])
        except Exception as error:
            # Tracking observes, it never answers: the same as on Ray.
            _log.warning("tracking: %s; training goes on", error)

    def _note_closed(self, steps: Sequence, out: deque[Event]) -> None:  # type: ignore[type-arg]
        if steps:
            self._versions.update({step.model.version: step.model for step in steps})
            out.append(StepsClosed(tuple(steps)))

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
                    self._aggregator.hold_after(version)
                    closed: deque[Event] = deque()
                    self._note_closed(self._aggregator.close_full(), closed)
                    for event in closed:
                        todo.extend(self._coordinator.handle(event))
                case Forget(versions, live):
                    self._aggregator.forget(live)
                    for version in versions:
                        self._versions.pop(version, None)
                case Record(step, metrics):
                    self._recorder.record(step, metrics)
                case Checkpoint(version):
                    self._checkpoint(version)
                case Finish():
                    self._end = instruction
