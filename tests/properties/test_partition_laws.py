"""Laws of every partitioner: complete, disjoint, nobody empty, keyed by the seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.data import Dirichlet, Iid, Partition, QuantitySkew, Shards, arrange, partition_examples
from atoll.errors import SpecError

partitions = st.one_of(
    st.just(Iid()),
    st.builds(Dirichlet, st.sampled_from([1e-300, 1e-6, 0.1, 1.0, 1e6])),
    st.builds(Shards, st.integers(1, 3)),
    st.builds(QuantitySkew, st.sampled_from([0.0, 1.0, 10.0])),
)


@settings(max_examples=60, deadline=None)
@given(partitions, st.integers(1, 12), st.integers(0, 200), st.integers(1, 6), st.integers(0, 2**40))
def test_every_example_has_one_client_and_every_client_an_example(
    partition: Partition, num_clients: int, extra: int, num_classes: int, seed: int
) -> None:
    rows = 3 * num_clients + extra
    labels = np.random.default_rng(extra).integers(0, num_classes, rows)
    client = partition_examples(partition, labels, num_clients, seed)
    assert client.shape == (rows,)
    assert client.dtype == np.int64
    assert set(client.tolist()) == set(range(num_clients))
    np.testing.assert_array_equal(client, partition_examples(partition, labels, num_clients, seed))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=6, max_size=60), st.integers(0, 62), st.floats(0, 0.99))
def test_arrange_keeps_every_row_once_in_order_and_trains_first(drawn: list[int], mask: int, fraction: float) -> None:
    codes = np.array([0, 1, 2, 3, 4, 5, *drawn])
    unseen = np.array([bool(mask >> i & 1) for i in range(6)])
    plan = arrange(codes, unseen, fraction)
    assert sorted(plan.order.tolist()) == list(range(len(codes)))
    assert plan.num_clients == np.count_nonzero(~unseen)
    for place, client in enumerate(plan.clients):
        rows = plan.order[plan.starts[place] : plan.ends[place]]
        np.testing.assert_array_equal(rows, np.flatnonzero(codes == client))
        held = len(rows) - plan.trains[place]
        if unseen[client]:
            assert plan.trains[place] == 0
            assert place >= plan.num_clients
        else:
            assert plan.trains[place] >= 1
            assert held <= fraction * len(rows) < held + 1 or plan.trains[place] == 1


def test_iid_sizes_differ_by_at_most_one() -> None:
    sizes = np.bincount(partition_examples(Iid(), np.zeros(103, int), 10, 0))
    assert sizes.max() - sizes.min() <= 1


def test_another_seed_is_another_split() -> None:
    labels = np.arange(200) % 5
    for partition in (Iid(), Dirichlet(0.5), Shards(2), QuantitySkew(1.0)):
        assert (partition_examples(partition, labels, 10, 0) != partition_examples(partition, labels, 10, 1)).any()


def test_shards_limit_the_classes_of_a_client() -> None:
    labels = np.arange(1000) % 10
    client = partition_examples(Shards(2), labels, 50, 7)
    assert max(len(set(labels[client == i])) for i in range(50)) <= 2
    assert (np.bincount(client) == 20).all()


def _label_distance(alpha: float) -> float:
    labels = np.arange(5000) % 10
    client = partition_examples(Dirichlet(alpha), labels, 20, 1)
    table = np.zeros((20, 10))
    np.add.at(table, (client, labels), 1)
    return float(np.abs(table / table.sum(1, keepdims=True) - 0.1).sum(1).mean())


def test_small_alpha_skews_labels_and_large_alpha_does_not() -> None:
    assert _label_distance(0.1) > 1.0
    assert _label_distance(1000.0) < 0.15


def test_quantity_skew_spreads_sizes() -> None:
    sizes = np.bincount(partition_examples(QuantitySkew(1.5), np.zeros(20000, int), 100, 3))
    assert sizes.max() > 10 * np.median(sizes)


@pytest.mark.parametrize(
    ("partition", "num_clients", "place"),
    [
        (Iid(), 11, "data.clients"),
        (Iid(), 0, "data.clients"),
        (Dirichlet(0.0), 2, "data.partition.alpha"),
        (Dirichlet(float("nan")), 2, "data.partition.alpha"),
        (Shards(6), 2, "data.partition.per_client"),
        (QuantitySkew(-1.0), 2, "data.partition.sigma"),
    ],
)
def test_impossible_splits_are_refused(partition: Partition, num_clients: int, place: str) -> None:
    with pytest.raises(SpecError) as caught:
        partition_examples(partition, np.zeros(10, int), num_clients, 0)
    assert [problem.path for problem in caught.value.problems] == [place]
