"""Predicted wall times: blocks made by hand on pretended clusters, against sums that one can do on paper."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.messages import Block
from atoll.plan import ClusterCosts, Ending, Prediction, Predictor, Traffic, WorkCosts

#: nothing but client work costs anything
FREE = ClusterCosts(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, float("inf"), 1)
#: a second per client update
WORK = WorkCosts(0.0, 1.0, 0.0, 0.0)
TRAFFIC = Traffic(dense_bytes=400)


@dataclass
class Piece:
    """What a predictor reads of a window."""

    first_step: int
    blocks: list[Block]
    num_steps: int = 1
    live_versions: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int32))

    @property
    def steps(self) -> range:
        return range(self.num_steps)

    @property
    def end_step(self) -> int:
        return self.first_step + self.num_steps


def block(number: int, steps: list[int], versions: list[int], examples: int = 1) -> Block:
    lanes = len(steps)
    ids = np.arange(lanes, dtype=np.int64)
    ones = np.ones(lanes)
    return Block(
        number, ids, ids, np.array(versions, dtype=np.int32), np.array(steps, dtype=np.int32),
        np.full(lanes, examples, dtype=np.int64), ones, ones,
    )  # fmt: skip


def rounds(num_steps: int, blocks: int, lanes: int = 1, examples: int = 1) -> list[Piece]:
    """Synchronous: every block of a step starts from the step's version."""
    return [
        Piece(step, [block(step * blocks + i, [step] * lanes, [step] * lanes, examples) for i in range(blocks)])
        for step in range(num_steps)
    ]


def predicted(
    pieces: list[Piece], pools: int, work: WorkCosts = WORK, cluster: ClusterCosts = FREE, every: int = 10**6, **more
) -> Prediction:
    ending = Ending(pieces[-1].end_step, every, more.pop("waits", False))
    predictor = Predictor([pools], work, cluster, more.pop("traffic", TRAFFIC), ending)
    for piece in pieces:
        predictor.add(piece)
    (found,) = predictor.build()
    return found


@pytest.mark.parametrize(("pools", "wall_s"), [(1, 15.0), (2, 9.0), (4, 6.0), (5, 3.0), (64, 3.0)])
def test_a_round_lasts_as_long_as_its_busiest_pool(pools: int, wall_s: float) -> None:
    found = predicted(rounds(3, 5), pools)
    assert found.wall_s == pytest.approx(wall_s)
    assert found.occupancy == pytest.approx(15 / (pools * wall_s))
    assert found.pool_hours == pytest.approx(pools * wall_s / 3600)


def test_a_block_costs_what_is_in_it() -> None:
    work = WorkCosts(block_s=0.5, update_s=0.25, example_s=0.125, evaluation_s=0.0)
    assert predicted(rounds(2, 3, lanes=4, examples=8), 1, work).wall_s == pytest.approx(6 * (0.5 + 4 * 0.25 + 32 / 8))


def test_blocks_on_old_versions_fill_the_time_in_which_a_step_closes() -> None:
    """Asynchronous with one step of staleness: while a step closes, the next one's blocks are at work."""
    slow = replace(FREE, step_s=1.0)
    stale = [Piece(s, [block(s, [s], [max(s - 1, 0)])], live_versions=np.array([s])) for s in range(20)]
    fresh = [Piece(s, [block(s, [s], [s])]) for s in range(20)]
    assert predicted(fresh, 1, cluster=slow).wall_s == pytest.approx(40.0)
    assert predicted(stale, 1, cluster=slow).wall_s == pytest.approx(21.0)


def test_evaluations_take_a_pool_and_the_last_one_is_waited_for() -> None:
    work = replace(WORK, evaluation_s=3.0)
    assert predicted(rounds(4, 1), 1, work, every=2).wall_s == pytest.approx(4 + 3 * 3)
    # 0–3 version 0 beside two blocks; 2–5 version 2 beside the two others, from 3 on; 5–8 version 4
    assert predicted(rounds(4, 1), 2, work, every=2).wall_s == pytest.approx(8)


def test_a_target_holds_steps_until_the_evaluation_is_known() -> None:
    work = replace(WORK, evaluation_s=3.0)
    assert predicted(rounds(4, 1), 2, work, every=2, waits=True).wall_s == pytest.approx(3 + 1 + 3 + 1 + 3)


def test_the_coordinator_does_one_thing_at_a_time() -> None:
    busy = replace(FREE, answer_s=0.5)
    found = predicted(rounds(1, 40), 40, cluster=busy)
    # 40 calls and 2 evaluations
    assert found.wall_s == pytest.approx(1 + 42 * 0.5)
    assert found.coordinator_share == pytest.approx(21 / 22)


def test_sums_and_versions_pass_one_link_and_a_node_gets_a_version_once() -> None:
    narrow = replace(FREE, bytes_per_s=400.0, pools_per_node=2)
    found = predicted(rounds(1, 4), 4, cluster=narrow)
    # two nodes get 400 bytes one after the other, four sums of 800 come back, one node gets version 1 to evaluate it
    assert found.bytes_moved == 2 * 400 + 4 * 800 + 400
    assert found.wall_s == pytest.approx(1 + 1 + 4 * 2 + 1)
    assert predicted(rounds(1, 4), 4).bytes_moved == 4 * 400 + 4 * 800 + 400, "a node each"


def test_of_tables_only_the_rows_that_clients_read_move() -> None:
    traffic = Traffic(dense_bytes=100, table_bytes=10**9, row_bytes=40, is_sparse=True)
    assert traffic.sums(num_steps=2, num_examples=5) == 2 * (200 + 200)
    assert traffic.version(num_examples=5) == 100 + 200
    assert replace(traffic, is_sparse=False).version(5) == 100 + 10**9
    assert traffic.sums(1, 10**9) == 2 * (100 + 10**9), "never more than all of them"
    assert traffic.stepped_parameters == 25


def test_short_blocks_travel_together() -> None:
    """Each call costs its pool a millisecond: a call per block would double the time."""
    found = predicted(rounds(1, 4000), 1, WorkCosts(0.0, 1e-3, 0.0, 0.0), replace(FREE, call_s=1e-3))
    assert 4.0 < found.wall_s < 4.1


def test_what_comes_after_the_end_is_left_out() -> None:
    pieces = rounds(3, 2)
    ending = Ending(2, 10**6)
    predictor = Predictor([1], WORK, FREE, TRAFFIC, ending)
    for piece in pieces:
        predictor.add(piece)
    assert predictor.build()[0].wall_s == pytest.approx(4.0)


def test_a_plan_that_is_too_short_is_a_mistake() -> None:
    predictor = Predictor([1], WORK, FREE, TRAFFIC, Ending(3, 10))
    predictor.add(rounds(1, 1)[0])
    with pytest.raises(ValueError, match="3 steps"):
        predictor.build()


def test_memory_does_not_grow_with_the_run() -> None:
    predictor = Predictor([3], WORK, FREE, TRAFFIC, Ending(5_000, 10))
    for step in range(5_000):
        lanes = [step] * 2
        predictor.add(Piece(step, [block(step, lanes, [max(step - 1, 0)] * 2)], live_versions=np.array([step])))
    (schedule,) = predictor._schedules
    sizes = {
        name: len(value)
        for name in ("_calls", "_desk", "_ready", "_waiting", "_open", "_examples", "_to_evaluate")
        if (value := getattr(schedule, name)) is not None
    }
    assert max(sizes.values()) <= 600, sizes
    assert sum(map(len, schedule._held)) <= 3 * 600
    predictor.build()


PLANS = st.lists(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=6), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(PLANS, st.integers(1, 9), st.integers(1, 5))
def test_no_schedule_beats_its_work_or_its_chain_and_none_is_slower_than_one_pool(
    plan: list[list[tuple[int, int]]], pools: int, every: int
) -> None:
    pieces, number = [], 0
    for step, blocks in enumerate(plan):
        own = []
        for lanes, age in blocks:
            own.append(block(number, [step] * lanes, [max(step - age, 0)] * lanes))
            number += 1
        pieces.append(Piece(step, own))
    work = replace(WORK, evaluation_s=0.5)
    total = sum(lanes for blocks in plan for lanes, _ in blocks)
    total += 0.5 * len({*range(0, len(plan) + 1, every), len(plan)})
    made = [0.0]  # earliest time of each version
    for step, blocks in enumerate(plan):
        made.append(max([made[-1], *(made[max(step - age, 0)] + lanes for lanes, age in blocks)]))
    found = predicted(pieces, pools, work, every=every).wall_s
    assert found >= max(total / pools, made[-1] + 0.5) - 1e-9
    assert found <= total + 1e-9
    assert predicted(pieces, 1, work, every=every).wall_s == pytest.approx(total)
