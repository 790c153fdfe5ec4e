"""One plan, one model: whatever the number of pools, the order of completions, deaths, duplicates and stops."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random  # noqa: TID251

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.aggregation import Adam
from atoll.errors import ClientWorkError, InfrastructureError, Interrupted
from atoll.messages import model_digest
from atoll.runtime import Coordinator, RunResult, Target, run_inline
from atoll.runtime.aggregating import DurableAggregator
from atoll.runtime.events import (
    Checkpoint,
    Evaluate,
    Evaluated,
    Expect,
    Finish,
    Forget,
    HoldAfter,
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
from atoll.runtime.opening import begin
from atoll.timeline import AsyncSchedule, Schedule, SyncSchedule

sys.path.insert(0, str(Path(__file__).parent))
from toy import Toy, toy_run

SCHEDULES = [AsyncSchedule(12, 3), AsyncSchedule(5, 5), AsyncSchedule(9, 1), SyncSchedule(4, 0.3)]
schedules = st.sampled_from(SCHEDULES)


def reference(schedule: Schedule, **options) -> tuple[RunResult, dict]:
    toy = toy_run(schedule, **options)
    return run_inline(toy.parts), toy.science()


def assert_equal(found: RunResult, rows: dict, expected: RunResult, expected_rows: dict) -> None:
    assert model_digest(found.model) == model_digest(expected.model)
    assert (found.plan_digest, found.timeline_digest) == (expected.plan_digest, expected.timeline_digest)
    assert (found.reason, found.client_updates, found.metrics) == (
        expected.reason,
        expected.client_updates,
        expected.metrics,
    )
    assert (found.mean_staleness, found.virtual_hours) == (expected.mean_staleness, expected.virtual_hours)
    assert rows == expected_rows


@settings(max_examples=60, deadline=None)
@given(schedules, st.integers(1, 5), st.randoms(use_true_random=False))
def test_shuffled_completions_and_any_number_of_pools(schedule: Schedule, num_pools: int, shuffle) -> None:
    expected, rows = reference(schedule)
    toy = toy_run(schedule)
    found = run_inline(toy.parts, num_pools=num_pools, pick=lambda waiting: shuffle.randrange(len(waiting)))
    assert_equal(found, toy.science(), expected, rows)


class Stopped(Exception):
    """The process dies here: nothing is cleaned up."""


class HandDriven:
    """An executor whose every delay, loss and repetition is drawn at random; dies after `patience` events."""

    def __init__(self, toy: Toy, num_pools: int, shuffle, patience: int) -> None:
        self.toy, self.shuffle, self.patience, self.num_pools = toy, shuffle, patience, num_pools
        journal = toy.journal
        journal.claim()
        self.aggregator = DurableAggregator(
            toy.parts.make_aggregator, toy.parts.make_snapshot_files, journal.snapshots(), journal.epoch
        )
        attempt = begin(toy.parts, journal, self.aggregator.taken, list(range(num_pools)))
        self.coordinator: Coordinator = attempt.coordinator
        self.recorder = attempt.recorder
        self.learner, self.evaluator = toy.parts.make_learner(), toy.parts.make_evaluator()
        self.versions = {model.version: model for model in self.aggregator.take_models()}
        self.calls: list[Train | Evaluate] = []
        self.late: list = []
        self.troubles = self.failures = 0
        self.end: Finish | None = None

    def run(self) -> Finish:
        self.perform(self.coordinator.start())
        while self.end is None:
            self.patience -= 1
            if not self.patience:
                raise Stopped
            self.event()
            if self.shuffle.random() < 0.3:
                self.save()
            if self.shuffle.random() < 0.5:
                self.recorder.flush(is_forced=True)
        self.coordinator.give_up()
        self.save()
        self.recorder.flush(is_forced=True)
        return self.end

    def save(self) -> None:
        if self.coordinator.version and self.recorder.begin_snapshot(is_forced=True):
            self.recorder.snapshot(*self.aggregator.save(self.coordinator.live_versions()))

    def tell(self, event) -> None:
        self.perform(self.coordinator.handle(event))

    def close(self, steps) -> None:
        if steps:
            self.versions.update({step.model.version: step.model for step in steps})
            events = [StepsClosed((step,)) for step in steps]
            self.shuffle.shuffle(events)
            for event in events:
                self.tell(event)

    def perform(self, instructions) -> None:
        for instruction in instructions:
            match instruction:
                case Train() | Evaluate():
                    self.calls.append(instruction)
                case Expect(steps):
                    self.aggregator.expect(steps)
                case HoldAfter(version):
                    self.close(self.aggregator.hold_after(version))
                case Forget(dead, live):
                    self.aggregator.forget(live)
                    for version in dead:
                        del self.versions[version]
                case RecordStep(record, metrics):
                    self.recorder.step(record, metrics)
                case RecordEvaluation(version, metrics):
                    self.recorder.evaluation(version, metrics)
                case Finish():
                    self.end = instruction
                    self.recorder.end(instruction)
                case Checkpoint(version):
                    assert version in self.versions

    def event(self) -> None:
        if not self.calls:
            self.tell(PoolReady(self.shuffle.randrange(self.num_pools)))
            return
        if self.troubles < 4 and self.shuffle.random() < 0.25:
            self.troubles += 1
            self.trouble()
            return
        call = self.calls.pop(self.shuffle.randrange(len(self.calls)))
        if isinstance(call, Evaluate):
            metrics = self.evaluator.evaluate(self.versions[call.version]).metrics
            self.tell(Evaluated(call.call, call.version, metrics))
            return
        results = [self.learner.train(block, self.versions) for block in call.blocks]
        self.tell(Trained(call.call))
        if self.shuffle.random() < 0.1:
            self.tell(SumsLost(call.blocks))
            return
        self.late.extend(results)
        for result in [*results, self.shuffle.choice(self.late)]:
            self.close(self.aggregator.add(result))

    def trouble(self) -> None:
        call = self.shuffle.choice(self.calls)
        kind = self.shuffle.randrange(4)
        if kind < 2:
            self.calls = [other for other in self.calls if other.pool != call.pool]
            self.tell(PoolLost(call.pool, is_out_of_memory=kind == 1))
            if self.shuffle.random() < 0.5:
                self.tell(PoolReady(call.pool))
            return
        self.calls.remove(call)
        if kind == 2 or self.failures == self.toy.parts.settings.max_failures:
            self.tell(OutOfMemory(call.call))
        else:
            self.failures += 1
            self.tell(WorkFailed(call.call, ClientWorkError("flaky")))


@settings(max_examples=150, deadline=None)
@given(schedules, st.integers(1, 4), st.integers(0, 2**32), st.sampled_from(["sgd", "adam", "mixing"]))
def test_whatever_dies_whenever(schedule: Schedule, num_pools: int, seed: int, kind: str) -> None:
    """Pools die, run out of memory, fail; sums are lost, late or doubled; the whole process dies again and again."""
    shuffle = Random(seed)  # hundreds of draws a run: too many for hypothesis to hold and shrink
    options = {
        "optimizer": Adam(0.1) if kind == "adam" else None,
        "form": "mixing" if kind == "mixing" else "delta",
    }
    expected, rows = reference(schedule, **options)
    toy = toy_run(schedule, **options)
    for attempt in range(100):
        driven = HandDriven(toy, num_pools, shuffle, patience=shuffle.randrange(1, 40) if attempt < 20 else 10**6)
        try:
            end = driven.run()
        except Stopped:
            toy = toy_run(schedule, before=toy, **options)
            continue
        break
    assert model_digest(driven.versions[end.version]) == model_digest(expected.model)
    assert (end.plan_digest, end.timeline_digest) == (expected.plan_digest, expected.timeline_digest)
    assert toy.science() == rows
    assert not toy.journal.damage()
    ledger = driven.coordinator.ledger
    assert (ledger.client_updates, ledger.mean_staleness) == (expected.client_updates, expected.mean_staleness)


@settings(max_examples=20, deadline=None)
@given(schedules, st.integers(1, 3), st.integers(0, 2**32))
def test_a_target_stops_at_the_same_version(schedule: Schedule, num_pools: int, seed: int) -> None:
    shuffle = Random(seed)
    target = Target("loss", 20.0, is_falling=True)
    expected, rows = reference(schedule, target=target, steps=40)
    assert expected.reason == "target reached"
    assert 0 < expected.model.version < 40
    toy = toy_run(schedule, target=target, steps=40)
    for _ in range(3):
        driven = HandDriven(toy, num_pools, shuffle, patience=shuffle.randrange(1, 30))
        try:
            driven.run()
        except Stopped:
            toy = toy_run(schedule, target=target, steps=40, before=toy)
    found = run_inline(toy.parts, num_pools=num_pools, pick=lambda waiting: shuffle.randrange(len(waiting)))
    assert found.model.version == expected.model.version
    assert_equal(found, toy.science(), expected, rows)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("steps", [1, 4, 6, 8])
def test_a_longer_run_starts_with_the_shorter_one(schedule: Schedule, steps: int) -> None:
    """Rows of the short run are the first rows of the long one, metric by metric."""
    short, short_rows = reference(schedule, steps=steps, every=1)
    long = toy_run(schedule, steps=steps + 7, every=1)
    run_inline(long.parts)
    assert short.model.version == steps
    assert short_rows == {key: value for key, value in long.science().items() if key[1] <= steps}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("steps", [1, 4, 6, 8])
@pytest.mark.parametrize("every", [1, 4])
def test_extending_a_finished_run_equals_asking_for_it_at_first(schedule: Schedule, steps: int, every: int) -> None:
    expected, rows = reference(schedule, steps=15, every=every)
    short = toy_run(schedule, steps=steps, every=every)
    run_inline(short.parts)
    long = toy_run(schedule, steps=15, every=every, before=short)
    found = run_inline(long.parts)
    # The shorter run evaluated its last version; off the cadence that is one evaluation more, and nothing else.
    extra = {key for key in long.science() if key[1] == steps and key[0].startswith("eval/") and steps % every}
    assert_equal(found, {key: v for key, v in long.science().items() if key not in extra}, expected, rows)
    assert len(extra) <= 1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_finished_run_ends_again_at_once(schedule: Schedule) -> None:
    expected, rows = reference(schedule)
    toy = toy_run(schedule)
    run_inline(toy.parts)
    assert_equal(run_inline(toy.parts), toy.science(), expected, rows)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_an_extended_target_run(schedule: Schedule) -> None:
    """A run that reached its target goes on without it."""
    expected, rows = reference(schedule, steps=30)
    toy = toy_run(schedule, steps=30, target=Target("loss", 20.0, is_falling=True))
    assert run_inline(toy.parts).reason == "target reached"
    found = run_inline(toy_run(schedule, steps=30, before=toy).parts)
    assert_equal(found, toy.science(), expected, rows)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("broken", ["newest", "all", "missing"])
def test_a_snapshot_that_cannot_be_read(schedule: Schedule, broken: str, caplog) -> None:
    """The one before it is taken, or the beginning: the same bits, with more work."""
    expected, rows = reference(schedule, steps=15)
    toy = toy_run(schedule, steps=9)
    run_inline(toy.parts)
    kept = toy.journal.snapshots()
    assert len(kept) == 2
    for record in kept[:1] if broken == "newest" else kept:
        data = bytearray(toy.files.files[record.state_file])
        data[-1] ^= 1
        toy.files.files[record.state_file] = bytes(data) if broken != "missing" else b""
    found = run_inline(toy_run(schedule, steps=15, before=toy).parts)
    extra = {key for key in toy.science() if key == ("eval/loss", 9)}
    assert_equal(found, {key: v for key, v in toy.science().items() if key not in extra}, expected, rows)
    assert "an older one is taken" in caplog.text


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_timeline_kept_is_the_timeline_of_the_steps_taken(schedule: Schedule) -> None:
    toy = toy_run(schedule, steps=7)
    result = run_inline(toy.parts)
    rows = toy.timeline()
    assert result.client_updates == (rows["step"] >= 0).sum()
    assert rows["step"].max() == 6
    assert sorted(set(rows["step"][rows["step"] >= 0].tolist())) == list(range(7))
    longer = toy_run(schedule, steps=13, before=toy)
    run_inline(longer.parts)
    whole = toy_run(schedule, steps=13)
    run_inline(whole.parts)
    assert np.array_equal(longer.timeline(), whole.timeline())


def test_files_do_not_pile_up() -> None:
    toy = toy_run(AsyncSchedule(12, 3), steps=60)
    run_inline(toy.parts)
    records = toy.journal.snapshots()
    assert len(records) == 2
    needed = {name for record in records for name in record.hashes}
    snapshots = [name for name in toy.files.names() if name.startswith("version-000000") and "epoch" in name]
    assert set(snapshots) == needed
    assert len(needed) < 20


def test_work_that_kills_every_worker_ends_the_run() -> None:
    toy = toy_run(AsyncSchedule(4, 2))
    coordinator = Coordinator(toy.parts.make_planner(), toy.parts.settings, [0])
    (evaluation,) = (call for call in coordinator.start() if isinstance(call, Evaluate))
    coordinator.handle(Evaluated(evaluation.call, 0, {"eval/loss": 1.0}))

    def lose_it_again_and_again() -> None:
        for _ in range(12):
            coordinator.handle(PoolLost(0))
            coordinator.handle(PoolReady(0))

    with pytest.raises(InfrastructureError, match=r"died 8 times while it held this block alone.*runtime.lanes="):
        lose_it_again_and_again()


def test_an_evaluation_that_never_fits_ends_the_run() -> None:
    toy = toy_run(AsyncSchedule(4, 2))
    coordinator = Coordinator(toy.parts.make_planner(), toy.parts.settings, [0])
    calls = [call for call in coordinator.start() if isinstance(call, Evaluate)]
    for _ in range(7):
        calls = [call for call in coordinator.handle(OutOfMemory(calls[0].call)) if isinstance(call, Evaluate)]
    with pytest.raises(InfrastructureError, match="the evaluation of version 0: its worker was lost 8 times"):
        coordinator.handle(OutOfMemory(calls[0].call))


def test_out_of_memory_means_fewer_blocks_at_once_and_the_same_bits() -> None:
    toy = toy_run(AsyncSchedule(40, 20), lanes=2)
    coordinator = Coordinator(toy.parts.make_planner(), toy.parts.settings, range(4))
    first = [call for call in coordinator.start() if isinstance(call, Train)]
    resident = sum(len(call.blocks) for call in first)
    assert resident > 4
    again = [call for call in coordinator.handle(OutOfMemory(first[0].call)) if isinstance(call, Train)]
    assert not again, "the others must come back first"
    for call in first[1:]:
        again += [found for found in coordinator.handle(Trained(call.call)) if isinstance(found, Train)]
    assert 0 < sum(len(call.blocks) for call in again) <= resident // 2


def test_the_failure_budget() -> None:
    toy = toy_run(AsyncSchedule(4, 2))
    coordinator = Coordinator(toy.parts.make_planner(), toy.parts.settings, [0])
    calls = [call for call in coordinator.start() if isinstance(call, Train)]

    def fail_again_and_again() -> None:
        for number in range(5):
            calls.extend(coordinator.handle(WorkFailed(calls.pop(0).call, ClientWorkError(f"number {number}"))))
            assert number < toy.parts.settings.max_failures

    with pytest.raises(ClientWorkError, match="number 0"):
        fail_again_and_again()


def test_interrupted_keeps_everything(monkeypatch) -> None:
    expected, rows = reference(AsyncSchedule(12, 3), steps=20)
    toy = toy_run(AsyncSchedule(12, 3), steps=20)

    def stop(figures: dict[str, float]) -> None:
        if figures["step"] >= 5:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped at server step"):
        run_inline(toy.parts, on_progress=stop)
    assert toy.journal.snapshots()[0].version == toy.journal.last_step + 1 >= 5
    assert_equal(run_inline(toy.parts), toy.science(), expected, rows)
