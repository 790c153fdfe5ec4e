"""Windows planned together are what they would be one by one, and figures are those of the plain formulas."""

from __future__ import annotations

import numpy as np
import pytest

from atoll.plan import Planner, PlanSettings
from atoll.plan.blocks import cut_windows
from atoll.plan.steps import Used
from atoll.population import Devices, DrawnSizes, HalfNormal, Outcome, Population
from atoll.timeline import AsyncSchedule, SyncSchedule, Timeline

SIZES = DrawnSizes("log_normal", 10, 1)
POPULATION = Population(3, 10**6, Devices(HalfNormal(30), per_example_s=1, dropout=0.1), SIZES)
SCHEDULES = [
    AsyncSchedule(100, 7),
    AsyncSchedule(60, 20, max_staleness=3, sampling="without_replacement"),
    SyncSchedule(15, over_selection=0.4),
]


def weigh(staleness, num_examples):
    return num_examples * (1.0 + staleness) ** -0.5, np.sqrt(num_examples)


def make_planner(schedule, lookahead):
    return Planner(Timeline(POPULATION, schedule, 5), PlanSettings(16, lookahead, "x"), weigh)


@pytest.mark.parametrize("lookahead", [1, 3])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=["plain", "stale", "sync"])
def test_steps_have_the_figures_of_the_plain_formulas(schedule, lookahead):
    planner, before_us = make_planner(schedule, lookahead), 0
    for _ in range(40):
        window = planner.advance()
        for index, plan in enumerate(window.steps):
            rows = window.rows[window.offsets[index] : window.offsets[index + 1]]
            is_used = rows["outcome"] == Outcome.USED
            used, failed = rows[is_used], rows[~is_used]
            staleness = plan.step - used["start_version"].astype(np.int64)
            weight, example_weight = weigh(staleness, used["num_examples"].astype(np.int64))
            versions, where = np.unique(used["start_version"], return_inverse=True)
            assert (used["step"] == plan.step).all()
            assert plan.fill_us == plan.closed_us - before_us
            assert (plan.num_lanes, plan.num_failed) == (len(used), len(failed))
            assert plan.divisor == example_weight.sum()
            assert plan.staleness_mean == staleness.mean()
            assert plan.staleness_p95 == np.percentile(staleness, 95)
            assert plan.wasted_us == (failed["finish_us"] - failed["start_us"]).sum()
            assert plan.used_us == (used["finish_us"] - used["start_us"]).sum()
            assert plan.start_versions.tolist() == versions.tolist()
            assert plan.start_weights.tolist() == np.bincount(where, weights=weight).tolist()
            before_us = plan.closed_us


@pytest.mark.parametrize("lookahead", [1, 3])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=["plain", "stale", "sync"])
def test_a_window_has_the_blocks_that_it_has_alone(schedule, lookahead):
    planner, next_id = make_planner(schedule, lookahead), 0
    for _ in range(60):
        window = planner.advance()
        rows = window.rows[window.rows["outcome"] == Outcome.USED]
        staleness = rows["step"].astype(np.int64) - rows["start_version"]
        used = Used(rows, *weigh(staleness, rows["num_examples"].astype(np.int64)))
        (alone,) = cut_windows(used, window.first_step, 1, lookahead, 16, next_id)
        assert [block.block_id for block in window.blocks] == list(range(next_id, next_id + len(alone)))
        for block, other in zip(window.blocks, alone, strict=True):
            for name in ("task_id", "client_id", "start_version", "step", "num_examples", "weight", "example_weight"):
                assert getattr(block, name).tolist() == getattr(other, name).tolist()
            keys = list(zip(-block.num_examples, block.step, block.task_id, strict=True))
            assert keys == sorted(keys)
        next_id += len(alone)


def test_lanes_are_in_order_also_where_numbers_are_too_wide_to_pack():
    rows = make_planner(SCHEDULES[0], 1).advance().rows
    rows = rows[rows["outcome"] == Outcome.USED].copy()
    rows["num_examples"] = np.arange(len(rows)) % 3 * (2**31 - 1) // 2
    many = np.concatenate([rows] * 2**14)
    many["step"] = np.arange(len(many)) // len(rows)
    many["start_version"] = 0
    weight = np.ones(len(many))
    windows = cut_windows(Used(many, weight, weight), 0, 2**14, 1, 16, 0)
    # the same tasks in every window
    expected = rows[np.lexsort((rows["task_id"], -rows["num_examples"].astype(np.int64)))]["task_id"].tolist()
    assert all(np.concatenate([block.task_id for block in blocks]).tolist() == expected for blocks in windows)


@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=["plain", "stale"])
def test_versions_alive_are_those_in_flight(schedule):
    planner, rows, found = make_planner(schedule, 2), [], []
    for _ in range(400):
        window = planner.advance()
        rows.append(window.rows)
        found.append((window.end_step, window.steps[-1].closed_us, set(window.live_versions.tolist())))
    known = np.concatenate(rows)
    end = 0
    for part, (end_step, closed_us, alive) in zip(rows[:30], found, strict=False):
        end += len(part)
        later = known[end:]  # an abort at the instant of a close comes after it
        in_flight = later[later["start_us"] <= closed_us]
        assert set(in_flight["start_version"].tolist()) - {end_step} == alive - {end_step}
