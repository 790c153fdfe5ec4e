"""The compiled learner: each lane's share of the sum is its own, whatever it is trained with; compiled once."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.learner import ClientWork
from atoll.learner.kernels import train_lanes
from atoll.learner.programs import program_of
from atoll.messages import Block, BlockResult
from atoll.models import Dlrm, Mlp, ModelInputs
from lane_kit import LEARNERS, Kind, block_of, by_name, gather_of, learner_of

COMPILED = [kind for kind in LEARNERS if kind.kernel == "compiled"]
WORK = ClientWork(lr=0.1, batch_size=8, momentum=0.3)


def sums(results: list[BlockResult]) -> tuple[Counter, dict[int, np.ndarray], dict[tuple[int, int], np.ndarray]]:
    """(lanes per step, Σ per step, Σ per step and table row), whatever the grouping."""
    lanes: Counter = Counter()
    dense: dict[int, np.ndarray] = {}
    rows: dict[tuple[int, int], np.ndarray] = {}
    for result in results:
        for part in result.partials:
            lanes[part.step] += part.num_lanes
            dense[part.step] = dense.get(part.step, 0) + part.dense
            for table in part.tables:
                for row, values in zip(table.rows.tolist(), table.values, strict=True):
                    rows[part.step, row] = rows.get((part.step, row), 0) + values
    return lanes, dense, rows


def assert_same(one: list[BlockResult], other: list[BlockResult]) -> None:
    lanes, dense, rows = sums(one)
    other_lanes, other_dense, other_rows = sums(other)
    assert lanes == other_lanes
    assert dense.keys() == other_dense.keys()
    for step, total in dense.items():
        np.testing.assert_array_equal(total, other_dense[step])
    live = {key for key, values in rows.items() if values.any()}
    assert live == {key for key, values in other_rows.items() if values.any()}
    for key in live:
        np.testing.assert_array_equal(rows[key], other_rows[key])


@pytest.mark.parametrize("kind", COMPILED, ids=lambda kind: kind.name)
def test_blocks_together_and_lanes_alone_sum_to_the_same_integers(kind: Kind) -> None:
    versions = {0: kind.version(), 3: kind.version(3)}
    first = block_of([21, 16, 9], start_version=[0, 3, 3], step=[7, 8, 7], weight=[1, 0.5, 0.7])
    second = block_of([9, 8, 1], start_version=[3, 0, 0], step=[7, 7, 9], first_client=500, block_id=1)
    learner = learner_of(kind, WORK)
    alone = [learner.train(block.lane(lane), versions) for block in (first, second) for lane in range(3)]
    together = learner.train_all([first, second], versions)
    assert [ids for result in together for ids in result.block_ids] == [0, 1]
    assert_same(alone, together)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_cut_of_the_same_lanes_gives_the_same_sums(data: st.DataObject) -> None:
    kind = by_name["wide_deep-compiled"]
    sizes = sorted(data.draw(st.lists(st.integers(1, 30), min_size=2, max_size=12)), reverse=True)
    whole = block_of(sizes, step=[data.draw(st.integers(0, 2)) for _ in sizes])
    cut = data.draw(st.integers(1, len(sizes) - 1))
    parts = [_part(whole, slice(0, cut), 1), _part(whole, slice(cut, None), 2)]
    learner, versions = learner_of(kind, WORK), {0: kind.version()}
    assert_same([learner.train(whole, versions)], learner.train_all(parts, versions))


def test_versions_that_come_and_go_give_the_sums_of_a_new_learner() -> None:
    """Rows of start versions are used again: after other versions, and where a version's weights are other ones."""
    kind = by_name["wide_deep-compiled"]
    models = {version: kind.version(version) for version in range(6)}
    other = dataclasses.replace(models[2], dense=-models[2].dense)
    learner = learner_of(kind, WORK)
    for used in ([0, 1, 2], [2, 3], [1, 4, 5, 2], [2], [0, 3, 5]):
        block = block_of([9, 8, 8, 5][: len(used)], start_version=used)
        for versions in (models, models | {2: other}):
            assert_same([learner.train(block, versions)], [learner_of(kind, WORK).train(block, versions)])


def _part(block: Block, at: slice, block_id: int) -> Block:
    arrays = {name: getattr(block, name)[at] for name in Block.__slots__ if name != "block_id"}
    return Block(block_id, **arrays)


def test_read_only_and_strided_input_is_not_compiled_anew() -> None:
    kind = by_name["mlp_sparse-compiled"]
    plain = gather_of(kind.inputs)

    def awkward(clients: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
        found = {name: np.asfortranarray(values) for name, values in plain(clients, positions).items()}
        for values in found.values():
            values.flags.writeable = False
        return found

    block, versions = block_of([12, 5]), {0: kind.version()}
    expected = learner_of(kind, WORK).train(block, versions)
    compiled = len(train_lanes.signatures)
    for name in Block.__slots__[1:]:
        getattr(block, name).flags.writeable = False
    for array in (versions[0].dense, *versions[0].tables):
        array.flags.writeable = False
    found = learner_of(kind, WORK, gather=awkward).train(block, versions)
    assert_same([expected], [found])
    assert len(train_lanes.signatures) == compiled == 1


def test_blocks_of_unlike_sizes_are_not_padded_to_the_longest() -> None:
    kind = by_name["mlp-compiled"]
    widths = []
    plain = gather_of(kind.inputs)

    def spy(clients: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
        widths.append(positions.shape)
        return plain(clients, positions)

    blocks = [block_of([200, 190]), block_of([20, 18], block_id=1), block_of([19, 17], block_id=2)]
    learner_of(kind, WORK, gather=spy).train_all(blocks, {0: kind.version()})
    assert widths == [(2, 200), (4, 20)]


def test_weights_come_back_where_they_were() -> None:
    for settings_, inputs in (
        (Mlp((20, 17)), ModelInputs("multiclass", 16, (5,), (4, 6))),
        (Dlrm(16, (32, 16), (40,)), ModelInputs("binary", 1, (5,), (7, 9))),
    ):
        program = program_of(settings_, inputs)
        weights = np.arange(program.model.dense_size, dtype=np.float32)
        turned = program.into(weights)
        assert (turned != weights).any()
        np.testing.assert_array_equal(program.back(turned[None].astype(np.int64))[0], weights)


def test_a_lane_out_of_bounds_adds_nothing() -> None:
    kind = by_name["dlrm-compiled"]
    learner = learner_of(kind, WORK, gather=gather_of(kind.inputs, nan_client=101))
    block = dataclasses.replace(block_of([9, 9, 9], step=7))
    (found,) = learner.train(block, {0: kind.version()}).partials
    assert (found.num_lanes, found.num_diverged) == (3, 1)
    healthy = [learner.train(block.lane(lane), {0: kind.version()}) for lane in (0, 2)]
    np.testing.assert_array_equal(found.dense, sum(one.partials[0].dense for one in healthy))
