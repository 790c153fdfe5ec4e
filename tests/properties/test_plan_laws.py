"""Laws of the plan: every task once, no circular waiting, prefix-stable, cheap versions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.aggregation import EqualWeight, PolynomialStaleness, Weighting
from atoll.errors import PlanError
from atoll.plan import Grid, Planner, PlanSettings, SummaryBuilder, Window, check_memory, lookahead_steps
from atoll.population import Constant, Devices, DrawnSizes, HalfNormal, Population
from atoll.timeline import AsyncSchedule, Outcome, Schedule, SyncSchedule, Timeline

WEIGH = Weighting(PolynomialStaleness(), EqualWeight())

schedules = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 40)).map(
        lambda pair: AsyncSchedule(concurrency=max(pair), buffer_goal=min(pair))
    ),
    st.builds(SyncSchedule, cohort=st.integers(1, 30), over_selection=st.sampled_from([0.0, 0.3])),
)


def planner(schedule: Schedule, lanes: int, seed: int = 1) -> Planner:
    sizes = DrawnSizes("log_normal", 20.0, 1.0)
    population = Population(seed, 5000, Devices(HalfNormal(60.0), overhead_s=5.0, dropout=0.1), sizes)
    per_step = schedule.buffer_goal if isinstance(schedule, AsyncSchedule) else schedule.cohort
    ahead = lookahead_steps(lanes, per_step, is_async=isinstance(schedule, AsyncSchedule))
    return Planner(Timeline(population, schedule, seed), PlanSettings(lanes, ahead, "test"), WEIGH)


def pull(source: Planner, num_steps: int) -> list[Window]:
    windows = []
    while source.num_steps < num_steps:
        windows.append(source.advance())
    return windows


@settings(max_examples=40, deadline=None)
@given(schedules, st.sampled_from([1, 4, 16, 32]))
def test_every_used_task_is_in_one_block_and_blocks_never_wait_in_a_circle(schedule: Schedule, lanes: int) -> None:
    next_id = 0
    for window in pull(planner(schedule, lanes), 25):
        used = window.rows[window.rows["outcome"] == Outcome.USED]
        planned = np.concatenate([block.task_id for block in window.blocks])
        np.testing.assert_array_equal(np.sort(planned), np.sort(used["task_id"]))
        for block in window.blocks:
            assert block.block_id == next_id
            next_id += 1
            assert 1 <= block.num_lanes <= lanes
            assert block.start_version.max() <= block.step.min(), "needs a version that waits for this block"
            assert (np.diff(block.num_examples) <= 0).all(), "longest first"
            np.testing.assert_allclose(block.weight, (1.0 + block.step - block.start_version) ** -0.5)
        lanes_per_step = np.bincount(np.concatenate([block.step for block in window.blocks]) - window.first_step)
        assert lanes_per_step.tolist() == [step.num_lanes for step in window.steps]


@settings(max_examples=25, deadline=None)
@given(schedules, st.sampled_from([4, 32]), st.integers(1, 50), st.integers(0, 50))
def test_a_longer_plan_starts_with_the_shorter_one(schedule: Schedule, lanes: int, short: int, more: int) -> None:
    """A run of `short` steps and the first `short` steps of a longer run agree in every digest (design 9.4)."""
    alone, longer = pull(planner(schedule, lanes), short), pull(planner(schedule, lanes), short + more)
    last = longer[len(alone) - 1]
    assert last.plan_digest == alone[-1].plan_digest
    assert last.timeline_digest(short) == alone[-1].timeline_digest(short)


@settings(max_examples=10, deadline=None)
@given(schedules)
def test_another_seed_is_another_plan(schedule: Schedule) -> None:
    one, two = (pull(planner(schedule, 8, seed), 3)[-1] for seed in (1, 2))
    assert one.plan_digest != two.plan_digest
    assert one.timeline_digest(one.end_step) != two.timeline_digest(two.end_step)


@settings(max_examples=25, deadline=None)
@given(schedules, st.sampled_from([4, 16]))
def test_dropped_versions_are_never_asked_for_again(schedule: Schedule, lanes: int) -> None:
    windows = pull(planner(schedule, lanes), 40)
    for index, window in enumerate(windows):
        later = [int(v) for w in windows[index + 1 :] for block in w.blocks for v in block.start_version]
        old = {version for version in later if version < window.end_step}
        assert old <= set(window.live_versions.tolist())


def test_summary_counts_by_hand() -> None:
    """Two lanes, K = C = 2, equal durations: rounds of two, staleness 0, one block a step."""
    population = Population(1, 100, Devices(Constant(10.0)))
    source = Planner(Timeline(population, AsyncSchedule(2, 2), 1), PlanSettings(2, 1, "test"), WEIGH)
    builder = SummaryBuilder(3, 2, model_bytes=100)
    for window in pull(source, 3):
        builder.add(window)
    found = builder.build()
    assert (found.client_updates, found.participations, found.blocks, found.depth) == (6, 6, 3, 3)
    assert (found.occupancy, found.mean_width, found.mean_staleness, found.peak_live_versions) == (1.0, 1.0, 0.0, 1)
    assert found.virtual_hours == pytest.approx(30 / 3600)
    assert (found.uplink_bytes, found.downlink_bytes) == (600, 600)


def test_memory_that_does_not_fit_is_refused_with_the_sum() -> None:
    builder = SummaryBuilder(20, 8, model_bytes=2**30)
    for window in pull(planner(AsyncSchedule(40, 2), 8), 20):
        builder.add(window)
    summary = builder.build()
    assert summary.peak_live_versions > 5
    with pytest.raises(PlanError, match=r"live model versions x 1\.000 GiB.*lower schedule\.concurrency"):
        check_memory(summary, model_bytes=2**30, block_bytes=2**20, budget_bytes=2**31, workers=2)
    check_memory(summary, model_bytes=2**10, block_bytes=2**20, budget_bytes=2**31, workers=2)


def test_grid_is_as_fine_as_fits_and_refuses_what_drowns() -> None:
    grid = Grid.for_plan(delta_bound=1000.0, weight_bound=200.0)
    assert 2**60 < grid.scale * 1000.0 * 200.0 <= 2**61
    with pytest.raises(PlanError, match=r"aggregation\.delta_bound"):
        Grid.for_plan(delta_bound=1e12, weight_bound=1e6)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(PlanError):
            Grid.for_plan(delta_bound=bad, weight_bound=1.0)
