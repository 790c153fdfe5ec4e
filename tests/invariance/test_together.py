"""Runs that share a thread end in the bits that each has alone, share it fairly, and do not take one another down."""

from __future__ import annotations

import dataclasses

import pytest
from toy import Toy, ToyLearner, toy_run

from atoll.errors import AggregationError, ClientWorkError, InfrastructureError, Interrupted
from atoll.runtime import RunResult, run_inline, run_inline_together
from atoll.timeline import AsyncSchedule, SyncSchedule

SCHEDULES = (AsyncSchedule(12, 3), SyncSchedule(6), AsyncSchedule(5, 5))


def runs(steps: int = 12) -> list[Toy]:
    return [toy_run(schedule, steps=steps) for schedule in SCHEDULES]


def fixed(result: RunResult) -> tuple:
    return result.model.dense.tobytes(), result.timeline_digest, result.plan_digest, result.client_updates


class Broken(ToyLearner):
    def train(self, block, versions):
        raise RuntimeError("no such sensor")


def broken(toy: Toy) -> Toy:
    toy.parts = dataclasses.replace(toy.parts, make_learner=Broken)
    return toy


@pytest.mark.parametrize("num_pools", [1, 3])
def test_each_ends_in_the_bits_that_it_has_alone(num_pools: int) -> None:
    alone, together = runs(), runs()
    expected = [run_inline(toy.parts) for toy in alone]
    found = run_inline_together([toy.parts for toy in together], num_pools=num_pools)
    assert [fixed(one) for one in found] == [fixed(one) for one in expected]
    assert [toy.science() for toy in together] == [toy.science() for toy in alone]


def test_they_advance_side_by_side() -> None:
    """No run waits for another one's end: whoever has used least of the thread is next."""
    seen: list[list[float]] = []
    run_inline_together(
        [toy.parts for toy in runs(steps=40)],
        on_progress=lambda figures: seen.append([one.get("step", 40) for one in figures]),
    )
    middle = [steps for steps in seen if max(steps) <= 39]
    assert sum(min(steps) > 0 for steps in middle) > len(middle) / 2


def test_one_that_fails_does_not_take_the_others_down() -> None:
    expected = run_inline(toy_run(SCHEDULES[0]).parts)
    good, bad = toy_run(SCHEDULES[0]), broken(toy_run(SCHEDULES[1]))
    first, second = run_inline_together([good.parts, bad.parts])
    assert isinstance(second, ClientWorkError)
    assert "no such sensor" in str(second)
    assert isinstance(first, RunResult)
    assert fixed(first) == fixed(expected)


def test_one_that_fails_before_its_first_call_does_not_take_the_others_down() -> None:
    def no_file(name: str, data: bytes) -> None:
        raise InfrastructureError("no space left")

    ended = toy_run(SCHEDULES[1])
    run_inline(ended.parts)
    files = ended.parts.make_artifact_files()
    files.write = no_file  # type: ignore[method-assign]
    ended.parts = dataclasses.replace(ended.parts, make_artifact_files=lambda: files)
    first, second = run_inline_together([toy_run(SCHEDULES[0]).parts, ended.parts])
    assert isinstance(first, RunResult)
    assert isinstance(second, InfrastructureError)


def test_the_one_that_failed_goes_on_alone_to_the_same_bits() -> None:
    schedule = SCHEDULES[1]
    expected = run_inline(toy_run(schedule).parts)
    toy = toy_run(schedule)
    healthy = toy.parts
    calls = 0

    class Later(ToyLearner):
        def train(self, block, versions):
            nonlocal calls
            calls += 1
            if calls > 6:
                raise AggregationError("a sum left its bounds")
            return super().train(block, versions)

    toy.parts = dataclasses.replace(healthy, make_learner=Later)
    good, bad = run_inline_together([toy_run(SCHEDULES[0]).parts, toy.parts])
    assert isinstance(good, RunResult)
    assert isinstance(bad, AggregationError)
    assert toy.journal.last_step >= 0, "what it had done is kept"
    assert fixed(run_inline(healthy)) == fixed(expected)


def test_a_stop_is_every_runs_stop() -> None:
    import os
    import signal

    sent = False

    def stop(figures: list[dict[str, float]]) -> None:
        nonlocal sent
        if not sent and max(one.get("step", 0) for one in figures) >= 5:
            sent = True
            os.kill(os.getpid(), signal.SIGTERM)

    toys = runs(steps=30)
    found = run_inline_together([toy.parts for toy in toys], on_progress=stop)
    assert all(isinstance(one, Interrupted) for one in found)
    expected = [run_inline(toy.parts) for toy in runs(steps=30)]
    assert [fixed(run_inline(toy.parts)) for toy in toys] == [fixed(one) for one in expected]
