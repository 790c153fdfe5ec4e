"""One plan, one model: whatever the number of pools, the order of completions, deaths and duplicates."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import InfrastructureError
from atoll.messages import ModelVersion, model_digest
from atoll.runtime import Coordinator, RunResult, Target, run_inline
from atoll.runtime.events import (
    Evaluate,
    Evaluated,
    Expect,
    Finish,
    Forget,
    HoldAfter,
    PoolLost,
    Record,
    StepsClosed,
    Train,
    Trained,
)
from atoll.timeline import AsyncSchedule, Schedule, SyncSchedule

sys.path.insert(0, str(Path(__file__).parent))
from toy import toy_parts

SCHEDULES = [AsyncSchedule(12, 3), AsyncSchedule(5, 5), AsyncSchedule(9, 1), SyncSchedule(4, 0.3)]
schedules = st.sampled_from(SCHEDULES)


def reference(schedule: Schedule, **options) -> tuple[RunResult, dict]:
    parts, outbox = toy_parts(schedule, **options)
    return run_inline(parts), outbox.science()


@settings(max_examples=60, deadline=None)
@given(schedules, st.integers(1, 5), st.randoms(use_true_random=False))
def test_shuffled_completions_and_any_number_of_pools(schedule: Schedule, num_pools: int, shuffle) -> None:
    expected, rows = reference(schedule)
    parts, outbox = toy_parts(schedule)
    found = run_inline(parts, num_pools=num_pools, pick=lambda waiting: shuffle.randrange(len(waiting)))
    assert model_digest(found.model) == model_digest(expected.model)
    assert (found.plan_digest, found.timeline_digest) == (expected.plan_digest, expected.timeline_digest)
    assert outbox.science() == rows


@settings(max_examples=60, deadline=None)
@given(schedules, st.integers(1, 4), st.randoms(use_true_random=False))
def test_pools_die_and_results_come_twice(schedule: Schedule, num_pools: int, shuffle) -> None:
    """A hand-driven executor: pools die at random moments, results are delivered late, twice and out of order."""
    expected, rows = reference(schedule)
    parts, outbox = toy_parts(schedule)
    coordinator, aggregator = Coordinator(parts.make_planner(), parts.settings, num_pools), parts.make_aggregator()
    learner, evaluator = parts.make_learner(), parts.make_evaluator()
    versions: dict[int, ModelVersion] = {0: aggregator.model}
    calls: list[Train | Evaluate] = []
    late, deaths = [], 0
    todo = coordinator.start()
    end: Finish | None = None

    def close(steps) -> None:
        if steps:
            versions.update({step.model.version: step.model for step in steps})
            events = [StepsClosed((step,)) for step in steps]
            shuffle.shuffle(events)
            for event in events:
                todo.extend(coordinator.handle(event))

    while end is None:
        while todo:
            match todo.pop(0):
                case (Train() | Evaluate()) as call:
                    calls.append(call)
                case Expect(steps):
                    aggregator.expect(steps)
                case HoldAfter(version):
                    aggregator.hold_after(version)
                    close(aggregator.close_full())
                case Forget(dead, _):
                    for version in dead:
                        del versions[version]
                case Record(step, metrics):
                    outbox.commit([(key, step, value, 0) for key, value in metrics.items()])
                case Finish() as finish:
                    end = finish
        if end is not None:
            break
        if deaths < 4 and shuffle.random() < 0.2:
            dead_pool = shuffle.randrange(num_pools)
            lost = [call for call in calls if call.pool == dead_pool]
            if all(shuffle.random() < 0.5 for _ in lost[:1]):
                deaths += 1
                calls = [call for call in calls if call.pool != dead_pool]
                todo = coordinator.handle(PoolLost(dead_pool))
                continue
        call = calls.pop(shuffle.randrange(len(calls)))
        if isinstance(call, Evaluate):
            metrics = evaluator.evaluate(versions[call.version]).metrics
            todo.extend(coordinator.handle(Evaluated(call.call, call.version, metrics)))
            continue
        results = [learner.train(block, versions) for block in call.blocks]
        late.extend(results)
        todo.extend(coordinator.handle(Trained(call.call)))
        for result in [*results, shuffle.choice(late)]:
            close(aggregator.handle(result))
    assert model_digest(versions[end.version]) == model_digest(expected.model)
    assert outbox.science() == rows


@settings(max_examples=20, deadline=None)
@given(schedules, st.integers(1, 3), st.randoms(use_true_random=False))
def test_a_target_stops_at_the_same_version(schedule: Schedule, num_pools: int, shuffle) -> None:
    target = Target("loss", 20.0, is_falling=True)
    expected, rows = reference(schedule, target=target, steps=40)
    assert expected.reason == "target reached"
    assert 0 < expected.model.version < 40
    parts, outbox = toy_parts(schedule, target=target, steps=40)
    found = run_inline(parts, num_pools=num_pools, pick=lambda waiting: shuffle.randrange(len(waiting)))
    assert found.model.version == expected.model.version
    assert model_digest(found.model) == model_digest(expected.model)
    assert found.plan_digest == expected.plan_digest
    assert outbox.science() == rows


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("steps", [1, 5, 6])
def test_a_longer_run_starts_with_the_shorter_one(schedule: Schedule, steps: int) -> None:
    """Rows of the short run are the first rows of the long one, metric by metric."""
    short, short_rows = reference(schedule, steps=steps, every=1)
    long_parts, long_outbox = toy_parts(schedule, steps=steps + 7, every=1)
    run_inline(long_parts)
    assert short.model.version == steps
    assert short_rows == {key: value for key, value in long_outbox.science().items() if key[1] <= steps}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_timeline_kept_is_the_timeline_of_the_steps_taken(schedule: Schedule) -> None:
    parts, outbox = toy_parts(schedule, steps=7)
    result = run_inline(parts)
    rows = np.concatenate(outbox.timeline)
    assert result.client_updates == (rows["step"] >= 0).sum()
    assert rows["step"].max() == 6
    assert sorted(set(rows["step"][rows["step"] >= 0].tolist())) == list(range(7))


def test_work_that_kills_every_worker_ends_the_run() -> None:
    parts, _ = toy_parts(AsyncSchedule(4, 2))
    coordinator = Coordinator(parts.make_planner(), parts.settings, 1)
    coordinator.start()
    for _ in range(4):
        coordinator.handle(PoolLost(0))
    with pytest.raises(InfrastructureError, match="its worker died 5 times"):
        coordinator.handle(PoolLost(0))
