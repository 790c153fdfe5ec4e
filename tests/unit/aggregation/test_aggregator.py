"""The aggregator: order-free, idempotent, exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.aggregation import Aggregator, Rule, ServerSgd, add_exact, merge_results, merge_rows
from atoll.errors import AggregationError
from atoll.messages import BlockResult, ModelVersion, PartialSum, RowSum, VersionedTable, model_digest
from atoll.plan import Grid, StepPlan

GRID = Grid.for_plan(delta_bound=16.0, weight_bound=64.0)


def step_plan(step: int, num_lanes: int, divisor: float | None = None, versions=(0,), weights=(1.0,)) -> StepPlan:
    return StepPlan(
        step=step, closed_us=step, fill_us=1, num_lanes=num_lanes,
        divisor=float(divisor or num_lanes), staleness_mean=0.0, staleness_p95=0.0, num_failed=0, wasted_us=0,
        used_us=1, start_versions=np.array(versions, dtype=np.int32), start_weights=np.array(weights),
    )  # fmt: skip


def partial(step: int, delta, lanes: int = 1, *, tables=(), diverged: int = 0, lost: float = 0.0) -> PartialSum:
    return PartialSum(
        step=step, num_lanes=lanes, num_diverged=diverged, lost_weight=round(lost * 2**24),
        dense=np.rint(np.asarray(delta, dtype=np.float64) * GRID.scale).astype(np.int64), tables=tuple(tables),
        metrics=np.array([lanes], dtype=np.int64),
    )  # fmt: skip


def aggregator(stop: int = 3, rule: Rule | None = None, size: int = 2, tables=()) -> Aggregator:
    model = ModelVersion(0, np.zeros(size, dtype=np.float32), tuple(tables))
    return Aggregator(model, rule or Rule(ServerSgd(lr=1.0)), GRID, stop)


def test_a_fresh_delta_is_start_minus_local_and_is_descended() -> None:
    agg = aggregator()
    agg.expect([step_plan(0, 1)])
    (step,) = agg.handle(BlockResult((0,), (partial(0, [0.25, -0.5]),)))
    assert step.model.version == 1
    np.testing.assert_array_equal(step.model.dense, np.float32([-0.25, 0.5]))


def test_steps_close_in_order_however_sums_arrive() -> None:
    agg = aggregator()
    agg.expect([step_plan(0, 2), step_plan(1, 1)])
    assert agg.handle(BlockResult((1,), (partial(1, [1, 1]),))) == []
    assert agg.handle(BlockResult((0,), (partial(0, [1, 0]),))) == []
    closed = agg.handle(BlockResult((2,), (partial(0, [0, 1]),)))
    assert [step.plan.step for step in closed] == [0, 1]
    np.testing.assert_array_equal(closed[1].model.dense, np.float32([-1.5, -1.5]))


def test_merging_rows_notices_overflow_far_down_the_table() -> None:
    rows, values = np.arange(3000), np.ones((3000, 2), dtype=np.int64)
    large = values.copy()
    large[2999, 1] = 2**63 - 1
    half = RowSum(rows[1000:], values[1000:])
    assert merge_rows([RowSum(rows, values), half]).values.sum() == 10_000
    with pytest.raises(AggregationError, match="9223372036854775807"):
        merge_rows([RowSum(rows, large), half])


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(6)), st.lists(st.integers(0, 5), max_size=4))
def test_order_and_duplicates_change_nothing(order: list[int], again: list[int]) -> None:
    deltas = np.random.Generator(np.random.Philox(3)).normal(size=(6, 4))
    results = [BlockResult((i,), (partial(i // 3, deltas[i]),)) for i in range(6)]

    def run(sequence: list[int]) -> str:
        agg = aggregator(size=4)
        agg.expect([step_plan(0, 3), step_plan(1, 3)])
        for index in sequence:
            agg.handle(results[index])
        assert agg.model.version == 2
        return model_digest(agg.model)

    assert run([*order[:3], *again, *order[3:], *again]) == run(list(range(6)))


def test_a_duplicate_with_other_bits_is_refused() -> None:
    agg = aggregator()
    agg.expect([step_plan(0, 2)])
    agg.handle(BlockResult((0,), (partial(0, [1, 1]),)))
    with pytest.raises(AggregationError, match="delivered twice with different bits"):
        agg.handle(BlockResult((0,), (partial(0, [1, 2]),)))


def test_hold_after_stops_at_a_version_and_goes_on() -> None:
    agg = aggregator()
    agg.expect([step_plan(0, 1), step_plan(1, 1)])
    agg.hold_after(1)
    agg.handle(BlockResult((0,), (partial(0, [1, 1]),)))
    assert agg.handle(BlockResult((1,), (partial(1, [1, 1]),))) == []
    agg.hold_after(2)
    assert [step.plan.step for step in agg.close_full()] == [1]


def test_steps_after_the_stop_are_dropped() -> None:
    agg = aggregator(stop=1)
    agg.expect([step_plan(0, 1), step_plan(1, 1)])
    closed = agg.handle(BlockResult((0,), (partial(0, [1, 1]), partial(1, [1, 1]))))
    assert [step.plan.step for step in closed] == [0]
    assert agg.close_full() == []


def test_overflow_raises_and_names_the_coordinate() -> None:
    big = np.array([0, 2**62], dtype=np.int64)
    with pytest.raises(AggregationError, match="coordinate 1"):
        add_exact(big.copy(), big.copy())
    with pytest.raises(AggregationError, match="coordinate 1"):
        add_exact(-big - 2, -big - 2)


def test_divisor_under_divergence() -> None:
    """Equal weights: stays K. Example weights: the diverged client's weight leaves it (design 9.2)."""
    for shrinks, divisor, expected in ((False, 4.0, 0.25), (True, 4.0, 0.5)):
        agg = aggregator(rule=Rule(ServerSgd(), divergence_shrinks_divisor=shrinks))
        agg.expect([step_plan(0, 2, divisor=divisor)])
        (step,) = agg.handle(BlockResult((0,), (partial(0, [1, 1], lanes=2, diverged=1, lost=2.0),)))
        assert step.num_diverged == 1
        np.testing.assert_allclose(step.model.dense, [-expected, -expected])


def test_sum_with_rate_over_k_equals_mean() -> None:
    """(sum, η/K) ≡ (mean, η), with momentum (fedbuff.md 2.1); K a power of two, so to the bit."""
    models = []
    for rule in (Rule(ServerSgd(0.5, 0.9)), Rule(ServerSgd(0.5 / 4, 0.9), normalizer="sum")):
        agg = aggregator(rule=rule, stop=3)
        agg.expect([step_plan(s, 4) for s in range(3)])
        for s in range(3):
            agg.handle(BlockResult((s,), (partial(s, [0.3 * (s + 1), -0.7], lanes=4),)))
        models.append(agg.model.dense)
    np.testing.assert_array_equal(models[0], models[1])


def test_mixing_form_averages_models() -> None:
    """FedAsync: w ← (1 − α s) w + α s · local, whatever the start version (Xie et al., algorithm 1)."""
    agg = aggregator(rule=Rule(ServerSgd(lr=0.5), normalizer="sum", form="mixing"), stop=2)
    agg.expect([step_plan(0, 1), step_plan(1, 1, versions=(0,), weights=(0.5,))])
    agg.handle(BlockResult((0,), (partial(0, [-2.0, 0.0]),)))
    np.testing.assert_array_equal(agg.model.dense, np.float32([1.0, 0.0]))
    # A client that started on version 0 = (0, 0) comes back with (3, 1): delta = −(3, 1), weight 0.5.
    agg.handle(BlockResult((1,), (partial(1, [-1.5, -0.5]),)))
    np.testing.assert_allclose(agg.model.dense, 0.75 * np.array([1.0, 0.0]) + 0.25 * np.array([3.0, 1.0]))


def test_table_rows_sparse_equals_dense() -> None:
    """Untouched rows stay; plain SGD over rows gives the same bits as a dense step."""
    table = np.arange(8, dtype=np.float32).reshape(4, 2)
    units = int(GRID.scale)
    parts = [
        RowSum(np.array([1, 3]), np.array([[units, 0], [0, units]])),
        RowSum(np.array([3]), np.array([[units, 0]])),
    ]
    sparse = aggregator(size=1, tables=(table,), rule=Rule(ServerSgd(0.5)))
    momentum = aggregator(size=1, tables=(table,), rule=Rule(ServerSgd(0.5, momentum=1e-30)))
    for agg in (sparse, momentum):
        agg.expect([step_plan(0, 2)])
        for block, part in enumerate(parts):
            agg.handle(BlockResult((block,), (partial(0, [0.0], tables=(part,)),)))
    expected = table.copy()
    expected[1, 0] -= 0.25
    expected[3] -= 0.25
    np.testing.assert_array_equal(sparse.model.tables[0], expected)
    np.testing.assert_array_equal(momentum.model.tables[0], expected)


@pytest.mark.parametrize("shape", [(16, 2), (1 << 18, 2)])
def test_every_version_keeps_its_table_through_later_steps(shape: tuple[int, int]) -> None:
    """Large tables share memory between versions, small ones are copied: what is read is the same."""
    table, units = np.ones(shape, dtype=np.float32), int(GRID.scale)
    agg = aggregator(stop=3, size=1, tables=(table,))
    agg.expect([step_plan(step, 1) for step in range(3)])
    models, wanted = [agg.model], [table]
    for step, row in enumerate((3, 5, 3)):
        part = RowSum(np.array([row]), np.array([[units, 2 * units]]))
        models += [one.model for one in agg.handle(BlockResult((step,), (partial(step, [0.0], tables=(part,)),)))]
        wanted.append(wanted[-1].copy())
        wanted[-1][row] -= np.float32([1, 2])
    assert {isinstance(model.tables[0], VersionedTable) for model in models} == {table.nbytes > 1 << 20}
    for model, want in zip(models, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(model.tables[0]), want)
    resumed = Aggregator(agg.state(), Rule(ServerSgd(lr=1.0)), GRID, 3)
    assert model_digest(resumed.model) == model_digest(ModelVersion(3, models[3].dense, (wanted[3],)))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=5, unique=True), min_size=1, max_size=4), st.randoms())
def test_merging_rows_is_order_free(parts: list[list[int]], shuffle) -> None:
    sums = [
        RowSum(np.array(sorted(rows), dtype=np.int64), np.arange(len(rows) * 2).reshape(-1, 2) + 1) for rows in parts
    ]
    merged = merge_rows(sums)
    assert merged.rows.tolist() == sorted(set().union(*parts))
    dense = np.zeros((7, 2), dtype=np.int64)
    for part in sums:
        np.add.at(dense, part.rows, part.values)
    np.testing.assert_array_equal(dense[merged.rows], merged.values)
    assert dense.sum() == merged.values.sum()
    shuffle.shuffle(sums)
    again = merge_rows(sums)
    np.testing.assert_array_equal(again.values, merged.values)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(6)), st.lists(st.integers(1, 3), min_size=6, max_size=6))
def test_merging_on_the_worker_changes_nothing(order: list[int], sizes: list[int]) -> None:
    deltas = np.random.Generator(np.random.Philox(4)).normal(size=(6, 4))

    def result(i: int) -> BlockResult:
        return BlockResult((i,), (partial(i % 2, deltas[i]),))

    def run(groups: list[list[int]]) -> str:
        agg = aggregator(size=4)
        agg.expect([step_plan(0, 3), step_plan(1, 3)])
        for group in groups:
            agg.handle(merge_results([result(i) for i in group]))
        return model_digest(agg.model)

    groups, rest = [], list(order)
    while rest:
        size = sizes[len(groups)]
        groups.append(rest[:size])
        rest = rest[size:]
    assert run(groups) == run([[i] for i in range(6)])


def test_blocks_that_are_summed_in_part_are_refused() -> None:
    agg = aggregator()
    agg.expect([step_plan(0, 9)])
    agg.handle(BlockResult((0, 1), (partial(0, [1, 1], lanes=2),)))
    agg.handle(BlockResult((0, 1), (partial(0, [1, 1], lanes=2),)))
    with pytest.raises(AggregationError, match="some of them are summed already"):
        agg.handle(BlockResult((1, 2), (partial(0, [1, 1], lanes=2),)))


def test_mixing_keeps_a_start_version_until_its_step_has_closed() -> None:
    """Work may be done, and the version forgotten elsewhere, long before the step that needs it closes."""
    agg = aggregator(rule=Rule(ServerSgd(lr=1.0), form="mixing"), stop=2)
    agg.expect([step_plan(0, 1), step_plan(1, 1, versions=(0,), weights=(1.0,))])
    agg.handle(BlockResult((1,), (partial(1, [-3.0, -3.0]),)))
    agg.handle(BlockResult((0,), (partial(0, [-1.0, -1.0]),)))
    np.testing.assert_array_equal(agg.model.dense, np.float32([3.0, 3.0]))
    held = aggregator(rule=Rule(ServerSgd(lr=1.0), form="mixing"), stop=2)
    held.expect([step_plan(0, 1), step_plan(1, 1, versions=(0,), weights=(1.0,))])
    held.handle(BlockResult((0,), (partial(0, [-1.0, -1.0]),)))
    held.forget(live_versions=(1,))
    held.handle(BlockResult((1,), (partial(1, [-3.0, -3.0]),)))
    np.testing.assert_array_equal(held.model.dense, np.float32([3.0, 3.0]))
    held.forget(live_versions=(2,))
    assert list(held._kept) == [2]


def test_mixing_keeps_versions_that_the_sender_of_forget_has_not_heard_of() -> None:
    """The coordinator hears of closed steps later than they close, and later windows may start from them."""
    agg = aggregator(rule=Rule(ServerSgd(lr=1.0), form="mixing"), stop=4)
    agg.expect([step_plan(step, 1, versions=(step,)) for step in range(3)])
    for step in range(3):
        agg.handle(BlockResult((step,), (partial(step, [-1.0, -1.0]),)))
    agg.forget(live_versions=(0,))
    agg.expect([step_plan(3, 1, versions=(1,))])
    (closed,) = agg.handle(BlockResult((3,), (partial(3, [-1.0, -1.0]),)))
    np.testing.assert_array_equal(closed.model.dense, np.float32([2.0, 2.0]))
    agg.forget(live_versions=(3, 4))
    assert sorted(agg._kept) == [3, 4]


def test_mixing_with_a_diverged_task_moves_nothing() -> None:
    """Not towards the version that the task started from either: it has no model to mix with."""
    agg = aggregator(rule=Rule(ServerSgd(lr=1.0), form="mixing"), stop=2)
    agg.expect([step_plan(0, 1), step_plan(1, 1, versions=(0,))])
    agg.handle(BlockResult((0,), (partial(0, [-1.0, -1.0]),)))
    (closed,) = agg.handle(BlockResult((1,), (partial(1, [0.0, 0.0], diverged=1),)))
    np.testing.assert_array_equal(closed.model.dense, np.float32([1.0, 1.0]))
