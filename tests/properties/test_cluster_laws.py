"""Laws of clusters: disjoint, complete, the same for every chunk; names are slugs, each once."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from atoll import population as po
from atoll import spec as sp
from atoll.data import ClientTable, client_table
from atoll.errors import SpecError
from atoll.experiment.cluster_rules import by_attribute, by_volume
from atoll.population import Members, RandomMembers, SizedMembers

seeds = st.integers(0, 2**63 - 1)
sizes = st.lists(st.integers(1, 40), min_size=1, max_size=8).map(tuple)


def check(parts: list[Members], size: int) -> list[np.ndarray]:
    ids = [part.client(np.arange(part.count(size)), size) for part in parts]
    assert sorted(np.concatenate(ids).tolist()) == list(range(size))
    for part, found in zip(parts, ids, strict=True):
        some = np.arange(part.count(size))[::-2].reshape(1, -1)
        assert part.client(some, size).tolist() == found[some].tolist()
    return ids


@settings(max_examples=80, deadline=None)
@given(seeds, st.integers(1, 12), st.integers(1, 300))
def test_equal_parts_are_disjoint_and_complete(seed: int, count: int, size: int) -> None:
    ids = check([RandomMembers(seed, cluster, count) for cluster in range(count)], size)
    assert max(map(len, ids)) - min(map(len, ids)) <= 1


@settings(max_examples=80, deadline=None)
@given(seeds, sizes)
def test_parts_of_given_sizes_are_disjoint_and_complete(seed: int, given_sizes: tuple[int, ...]) -> None:
    parts = [SizedMembers(seed, cluster, given_sizes) for cluster in range(len(given_sizes))]
    ids = check(list(parts), sum(given_sizes))
    assert tuple(map(len, ids)) == given_sizes
    # the cut of a part does not depend on how the others are cut
    if len(given_sizes) > 2:
        merged = (given_sizes[0], sum(given_sizes[1:]))
        first = SizedMembers(seed, 0, merged).client(np.arange(given_sizes[0]), sum(given_sizes))
        assert first.tolist() == ids[0].tolist()


def test_parts_of_given_sizes_take_no_memory_and_depend_on_the_seed() -> None:
    parts = [SizedMembers(seed, 1, (10**7, 9 * 10**7)) for seed in (1, 2)]
    found = [part.client(np.array([0, 9 * 10**7 - 1]), 10**8) for part in parts]
    assert (found[0] != found[1]).all()
    assert po.identity((parts[0],)) != po.identity((SizedMembers(1, 1, (10**7 + 1, 9 * 10**7 - 1)),))
    for cluster, wrong in ((2, (1, 2)), (-1, (1, 2)), (0, (-1, 2))):
        with pytest.raises(SpecError, match="clusters"):
            SizedMembers(1, cluster, wrong)
    # what is beyond the population is in no part
    assert [SizedMembers(1, cluster, (3, 5)).count(4) for cluster in range(2)] == [3, 1]


def table(values: list[object]) -> ClientTable:
    rows = np.arange(len(values))
    known = {"a": dict(enumerate(values))}
    x = np.zeros((len(values), 1), np.float32)
    return client_table(x, rows % 2, rows, task="binary", attributes=known)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=30), st.integers(0, 5))
def test_clusters_of_any_text_have_names_of_their_own(values: list[str], least: int) -> None:
    clusters = sp.AttributeClusters(kind="attribute", column="a", min_clients=least)
    assume(all("\0" not in value for value in values))  # NumPy's text ends there
    division, problems = by_attribute(clusters, table(list(values)))
    assert problems == []
    assert division is not None
    assert len({name.lower() for name in division.names}) == len(division.names)
    for name in division.names:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", name)
        assert sp.parse_override(f"x={name}") == ("x", name)
    counts = np.bincount(division.of_client, minlength=len(division.names))
    assert (counts >= 1).all()
    assert (counts[:-1] >= least).all(), "only the last, other, may be smaller"
    # one value, one cluster
    for value in set(values):
        assert len({division.of_client[i] for i in range(len(values)) if values[i] == value}) == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-5, 20) | st.floats(-1e6, 1e6), min_size=2, max_size=40), st.integers(2, 6))
def test_quantile_bins_are_intervals(values: list[float], bins: int) -> None:
    clusters = sp.AttributeClusters(kind="attribute", column="a", bins=bins)
    numbers = [float(value) for value in values]
    division, problems = by_attribute(clusters, table(list(numbers)))
    assert division is not None
    assert (len(division.names) < bins) == bool(problems)
    order = np.argsort(numbers, kind="stable")
    assert (np.diff(division.of_client[order]) >= 0).all()
    assert len(set(division.of_client.tolist())) == len(division.names) == len(set(division.names))
    for name in division.names:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", name)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=40), st.integers(1, 9), seeds)
def test_volumes_are_equal_parts(counts: list[int], parts: int, seed: int) -> None:
    client = np.repeat(np.arange(len(counts)), counts)
    data = client_table(np.zeros((len(client), 1), np.float32), client % 2, client, task="binary")
    clusters = sp.DataVolumeClusters(kind="data_volume", count=parts)
    division, problems = by_volume(clusters, seed, data, has_strangers=True)
    assert problems == []
    assert division is not None
    found = np.bincount(division.of_client, minlength=parts)
    assert found.max() - found.min() <= 1
    order = np.argsort(division.of_client, kind="stable")
    means = [np.array(counts)[order][division.of_client[order] == part] for part in range(parts)]
    present = [part for part in means if len(part)]
    assert all(low.max() <= high.min() for low, high in itertools.pairwise(present))
