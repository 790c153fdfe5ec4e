"""What a block's result promises: exact sums, zeroed divergence, bits that depend on nothing but the block."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from atoll.errors import AggregationError
from atoll.learner import METRICS, ClientWork, Learner
from atoll.messages import Block, BlockResult, ModelVersion, PartialSum
from atoll.plan import METRIC_EXPONENT, Grid
from lane_kit import GRID, LEARNERS, Kind, block_of, by_name, gather_of, lane_deltas, learner_of

SIZES = [21, 16, 9, 8, 3, 1]


def work_of(kind: Kind) -> ClientWork:
    return ClientWork(lr=kind.lr, batch_size=8, momentum=0.3)


def row_bytes(partial: PartialSum) -> list[bytes]:
    return [array.tobytes() for table in partial.tables for array in (table.rows, table.values)]


def as_bytes(result: BlockResult) -> list[tuple]:
    return [
        (p.step, p.num_lanes, p.num_diverged, p.lost_weight, p.dense.tobytes(), p.metrics.tobytes(), *row_bytes(p))
        for p in result.partials
    ]


def metric(result: BlockResult, name: str) -> np.ndarray:
    return np.array([p.metrics[METRICS.index(name)] for p in result.partials]) / 2.0**METRIC_EXPONENT


@pytest.mark.parametrize("kind", LEARNERS, ids=lambda kind: kind.name)
def test_bits_depend_on_the_block_alone(kind: Kind) -> None:
    versions = {0: kind.version(), 3: kind.version(3)}
    block = block_of(SIZES, start_version=[0, 3, 3, 0, 3, 0], step=[7, 8, 7, 7, 8, 7], weight=[1, 0.5, 0.7, 1, 0.3, 2])
    learner = learner_of(kind, work_of(kind))
    first = as_bytes(learner.train(block, versions))
    for other in (block_of([40, 2], first_client=7), block_of([5], first_client=900)):
        learner.train(other, versions)
    assert as_bytes(learner.train(block, versions)) == first
    assert as_bytes(learner_of(kind, work_of(kind)).train(block, versions)) == first


@pytest.mark.parametrize("kind", LEARNERS, ids=lambda kind: kind.name)
def test_versions_are_never_written_to(kind: Kind) -> None:
    version = kind.version()
    for array in (version.dense, *version.tables):
        array.flags.writeable = False
    kept = [array.copy() for array in (version.dense, *version.tables)]
    for sizes in (SIZES, [6], [5, 5]):
        learner_of(kind, work_of(kind)).train(block_of(sizes), {0: version})
    for array, copy in zip((version.dense, *version.tables), kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_the_callers_grad_mode_has_no_say() -> None:
    kind = by_name["cnn_grey"]
    learner, block, versions = learner_of(kind, work_of(kind)), block_of(SIZES), {0: kind.version()}
    first = as_bytes(learner.train(block, versions))
    with torch.no_grad():
        assert as_bytes(learner.train(block, versions)) == first
    with torch.inference_mode():
        assert as_bytes(learner.train(block, versions)) == first


@pytest.mark.parametrize("name", ["mlp", "mlp_sparse", "logistic_sparse"])
def test_sums_are_off_by_half_a_grid_step_at_most(name: str) -> None:
    kind, versions = by_name[name], {0: by_name[name].version()}
    weight = [1.0, 0.5773502691896258, 0.25, 1 / 3, 0.7071067811865476, 1.0]
    learner = learner_of(kind, work_of(kind))
    apart = learner.train(block_of(SIZES), versions)
    # On this coarse grid float64's own rounding is far below one step, and a delta is known far better than to a step.
    coarse = Grid(exponent=12, delta_bound=GRID.delta_bound, weight_bound=GRID.weight_bound)
    (total,) = (
        learner_of(kind, work_of(kind), grid=coarse).train(block_of(SIZES, step=7, weight=weight), versions).partials
    )
    exact = [Fraction(w) for w in weight]
    for coordinate in range(0, total.dense.size, 7):
        want = sum(
            w * Fraction(int(p.dense[coordinate]), 2**GRID.exponent) for w, p in zip(exact, apart.partials, strict=True)
        )
        assert abs(Fraction(int(total.dense[coordinate]), 2**12) - want) <= Fraction(1, 2**13) + Fraction(1, 2**30)
    for table, rows in enumerate(total.tables):
        want_rows = np.zeros((rows.rows.max() + 1, rows.values.shape[1]))
        holders = np.zeros(rows.rows.max() + 1)
        for w, p in zip(weight, apart.partials, strict=True):
            want_rows[p.tables[table].rows] += w * p.tables[table].values / GRID.scale
            holders[p.tables[table].rows] += 1
        # Rows are rounded once per lane, so that a row's cost is its holders', whoever they are.
        error = np.abs(rows.values / coarse.scale - want_rows[rows.rows])
        assert (error <= holders[rows.rows][:, None] * 2.0**-13 + 1e-9).all()


@pytest.mark.parametrize("name", ["mlp", "mlp_sparse", "cnn_grey"])
def test_a_block_split_over_steps_adds_up(name: str) -> None:
    kind, versions = by_name[name], {0: by_name[name].version()}
    learner, weight = learner_of(kind, work_of(kind)), [1, 0.5, 0.25, 0.75, 0.3, 1]
    (whole,) = learner.train(block_of(SIZES, step=7, weight=weight), versions).partials
    split = learner.train(block_of(SIZES, step=[9, 7, 8, 7, 9, 7], weight=weight), versions).partials
    assert [p.step for p in split] == [7, 8, 9]
    assert [p.num_lanes for p in split] == [3, 1, 2]
    assert np.abs(sum(p.dense for p in split) - whole.dense).max() <= 2
    np.testing.assert_array_equal(sum(p.metrics for p in split), whole.metrics)
    for table, rows in enumerate(whole.tables):
        total = np.zeros((300 + 7 + 11, rows.values.shape[1]), dtype=np.int64)
        for part in split:
            np.add.at(total, part.tables[table].rows, part.tables[table].values)
        np.testing.assert_array_equal(total[rows.rows], rows.values)
        total[rows.rows] = 0
        assert not total.any()


@pytest.mark.parametrize("name", ["mlp_sparse", "logistic_sparse", "mlp_codes_only"])
def test_rows_are_those_that_the_clients_hold(name: str) -> None:
    kind = by_name[name]
    (table,) = kind.model().shape.tables
    result = learner_of(kind, work_of(kind)).train(block_of(SIZES, step=4), {0: kind.version()})
    rows = result.partials[0].tables[0].rows
    held: set[int] = set()
    for lane, size in enumerate(SIZES):
        codes = gather_of(kind.inputs)(np.array([100 + lane]), np.arange(size)[None])["c"]
        held |= set((codes + np.array(table.offsets)).reshape(-1).tolist())
    assert rows.tolist() == sorted(held)


def test_metrics_are_what_they_say() -> None:
    kind = by_name["mlp"]
    versions = {0: kind.version()}
    work = ClientWork(lr=kind.lr, batch_size=8, epochs=2)
    result = learner_of(kind, work).train(block_of(SIZES), versions)
    deltas = lane_deltas(kind, learner_of(kind, work), block_of(SIZES), versions)
    norms = [np.linalg.norm(delta.dense) for delta in deltas]
    np.testing.assert_allclose(metric(result, "delta_norm_sum"), norms, atol=1e-6)
    np.testing.assert_allclose(metric(result, "delta_norm_sq_sum"), np.square(norms), atol=1e-6)
    assert metric(result, "examples").tolist() == [2 * size for size in SIZES]
    assert metric(result, "local_steps").tolist() == [6, 4, 4, 2, 2, 2]
    assert ((metric(result, "loss_sum") > 0.5) & (metric(result, "loss_sum") < 5)).all()


def test_the_loss_of_one_step_is_the_start_versions() -> None:
    kind = by_name["mlp_binary"]
    version, model = kind.version(), kind.model()
    result = learner_of(kind, ClientWork(lr=0.1, batch_size=32)).train(block_of([12]), {0: version})
    data = gather_of(kind.inputs)(np.array([100]), np.arange(12)[None])
    params, begin = {}, 0
    for p in model.shape.parameters:
        params[p.name] = torch.tensor(version.dense[begin : begin + p.size]).reshape(1, *p.shape)
        begin += p.size
    score = model.logits(params, None, {"x": torch.tensor(data["x"])})[0, :, 0].double().numpy()
    y = data["y"][0]
    want = np.mean(np.log1p(np.exp(score)) - y * score)
    np.testing.assert_allclose(metric(result, "loss_sum"), [want], atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "mlp_sparse", "logistic_sparse", "cnn_grey", "custom"])
def test_a_client_with_nan_is_zeroed_and_its_neighbours_are_untouched(
    name: str, request: pytest.FixtureRequest
) -> None:
    kind, versions, lane = by_name[name], {0: by_name[name].version()}, 2
    block = replace(block_of(SIZES), example_weight=np.array([1, 1, 2.5, 1, 1, 1.0]))
    clean = learner_of(kind, work_of(kind)).train(block, versions)
    gather = gather_of(kind.inputs, nan_client=100 + lane)
    found = learner_of(kind, work_of(kind), gather=gather).train(block, versions)
    for index, (got, want) in enumerate(zip(found.partials, clean.partials, strict=True)):
        if index == lane:
            assert (got.num_lanes, got.num_diverged, got.lost_weight) == (1, 1, int(2.5 * 2**METRIC_EXPONENT))
            assert not got.dense.any()
            assert not got.metrics.any()
            assert not any(t.values.any() for t in got.tables)
        else:
            assert (got.num_diverged, got.lost_weight) == (0, 0)
            np.testing.assert_allclose(got.dense / GRID.scale, want.dense / GRID.scale, atol=1e-6)
            assert got.dense.any()
            for a, b in zip(got.tables, want.tables, strict=True):
                assert a.rows.tolist() == b.rows.tolist()
                np.testing.assert_allclose(a.values / GRID.scale, b.values / GRID.scale, atol=1e-6)


def test_a_delta_over_the_bound_is_zeroed_and_one_below_stays() -> None:
    kind, versions = by_name["mlp"], {0: by_name["mlp"].version()}
    norms = metric(learner_of(kind, work_of(kind)).train(block_of(SIZES), versions), "delta_norm_sum")
    bound = float((np.sort(norms)[2] + np.sort(norms)[3]) / 2)
    grid = Grid.for_plan(bound, 16.0)
    result = learner_of(kind, work_of(kind), grid=grid).train(block_of(SIZES), versions)
    assert [p.num_diverged for p in result.partials] == (norms > bound).astype(int).tolist()
    assert sum(p.num_diverged for p in result.partials) == 3


def test_the_bound_is_on_dense_and_table_rows_together() -> None:
    kind = by_name["logistic_sparse"]
    versions = {0: kind.version()}
    (delta,) = lane_deltas(kind, learner_of(kind, work_of(kind)), block_of([16]), versions)
    dense = np.linalg.norm(delta.dense)
    both = float(np.hypot(dense, np.linalg.norm(delta.tables[0])))
    assert dense < 0.95 * both
    for bound, diverged in ((0.99 * both, 1), (1.01 * both, 0)):
        learner = learner_of(kind, work_of(kind), grid=Grid.for_plan(bound, 4.0))
        assert learner.train(block_of([16]), versions).partials[0].num_diverged == diverged


@pytest.mark.parametrize("name", ["mlp", "mlp_sparse", "char_lstm"])
def test_a_rate_far_too_high_never_reaches_the_sums(name: str) -> None:
    kind = by_name[name]
    work = ClientWork(lr=1e30, batch_size=4, epochs=3)
    gather = None if kind.inputs.vocabulary else gather_of(kind.inputs, scale=1e6)
    result = learner_of(kind, work, gather=gather).train(block_of(SIZES, step=3), {0: kind.version()})
    (partial,) = result.partials
    assert partial.num_diverged == len(SIZES)
    assert partial.lost_weight == len(SIZES) << METRIC_EXPONENT
    assert not partial.dense.any()
    assert not partial.metrics.any()


@pytest.mark.parametrize("delta_bound", [1e3, 1e7])
def test_metrics_of_large_deltas_never_wrap(delta_bound: float) -> None:
    kind = by_name["logistic"]
    versions, target = {0: kind.version()}, 0.9 * delta_bound
    block = block_of([8])
    small = metric(learner_of(kind, ClientWork(lr=1.0, batch_size=8)).train(block, versions), "delta_norm_sum")[0]
    grid = Grid.for_plan(delta_bound, 1.0)
    learner = learner_of(kind, ClientWork(lr=target / small, batch_size=8), grid=grid)
    if target**2 * 2.0**METRIC_EXPONENT > 2.0**62:
        with pytest.raises(AggregationError, match="delta_bound"):
            learner.train(block, versions)
        return
    result = learner.train(block, versions)
    assert result.partials[0].num_diverged == 0
    np.testing.assert_allclose(metric(result, "delta_norm_sum"), [target], rtol=1e-4)
    np.testing.assert_allclose(metric(result, "delta_norm_sq_sum"), [target**2], rtol=1e-4)


def test_a_single_lane_has_the_same_bits_wherever_its_arrays_lie() -> None:
    """NumPy aligns to 16 bytes only; a product whose bits hung on that would differ from worker to worker."""
    kind = Kind("wide", by_name["mlp"].settings, replace(by_name["mlp"].inputs, x_shape=(61,)))
    version = kind.version()
    learner, block = learner_of(kind, work_of(kind)), block_of([21])
    seen = set()
    for shift in range(16):
        room = np.zeros(version.dense.size + 32, dtype=np.float32)
        room[shift : shift + version.dense.size] = version.dense
        moved = ModelVersion(0, room[shift : shift + version.dense.size])
        ballast = [np.empty(shift * 5 + 3, dtype=np.float32) for _ in range(4)]
        seen.add(learner.train(block, {0: moved}).partials[0].dense.tobytes())
        del ballast
    assert len(seen) == 1


def test_work_scales_with_what_lanes_hold() -> None:
    """Local steps beyond a lane's own are not computed for it: the model sees a shrinking prefix."""
    kind = by_name["mlp"]
    inner, seen = kind.model(), []

    class Spy:
        shape, reads_codes = inner.shape, inner.reads_codes

        def gradients(self, params: dict, rows: object, batch: dict, share: torch.Tensor) -> object:
            seen.append(tuple(share.shape))
            return inner.gradients(params, rows, batch, share)

    learner = Learner(model=Spy(), gather=gather_of(kind.inputs), work=ClientWork(0.1, batch_size=8), grid=GRID, seed=1)
    learner.train(block_of([40, 17, 16, 8, 3]), {0: kind.version()})
    assert seen == [(5, 8), (3, 8), (2, 8), (1, 8), (1, 8)]


def test_start_versions_come_from_the_block() -> None:
    kind = by_name["mlp"]
    with pytest.raises(KeyError):
        learner_of(kind, work_of(kind)).train(block_of([4], start_version=3), {0: kind.version()})


def test_empty_weight_counts_a_lane_without_moving_the_sum() -> None:
    kind = by_name["mlp"]
    block: Block = block_of([9, 8], step=3, weight=[1.0, 0.0])
    (both,) = learner_of(kind, work_of(kind)).train(block, {0: kind.version()}).partials
    (first, _) = learner_of(kind, work_of(kind)).train(block_of([9, 8]), {0: kind.version()}).partials
    assert both.num_lanes == 2
    np.testing.assert_array_equal(both.dense, first.dense)
