"""The order in which a task visits its examples."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.learner import example_order


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    seed=st.integers(0, 2**31),
    first_task=st.integers(0, 2**62),
    epoch=st.integers(0, 5),
)
def test_rows_are_permutations_that_no_company_changes(
    sizes: list[int], seed: int, first_task: int, epoch: int
) -> None:
    counts = np.array(sorted(sizes, reverse=True), dtype=np.int64)
    tasks = first_task + np.arange(len(counts), dtype=np.int64)
    order = example_order(seed, tasks, counts, epoch)
    for lane, count in enumerate(counts):
        assert sorted(order[lane, :count].tolist()) == list(range(count))
        alone = example_order(seed, tasks[lane : lane + 1], counts[lane : lane + 1], epoch)
        assert alone[0].tolist() == order[lane, :count].tolist()


def test_every_key_matters() -> None:
    tasks, counts = np.array([5, 6]), np.array([40, 40])
    base = example_order(1, tasks, counts, 0)
    assert base[0].tolist() != base[1].tolist()
    assert example_order(2, tasks, counts, 0)[0].tolist() != base[0].tolist()
    assert example_order(1, tasks, counts, 1)[0].tolist() != base[0].tolist()
    assert base[0].tolist() != list(range(40))


def test_first_places_are_uniform() -> None:
    first = example_order(3, np.arange(20_000), np.full(20_000, 5), 0)[:, 0]
    shares = np.bincount(first, minlength=5) / 20_000
    # five standard deviations
    assert np.abs(shares - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / 20_000)
