"""Splits of a labelled dataset over clients: every example goes to exactly one client, every client has at least one.

All are pure functions of (labels, num_clients, seed).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from atoll import rng
from atoll.data.shape import I64, Array
from atoll.data.sources import Dirichlet, Iid, Partition, QuantitySkew, Shards
from atoll.errors import Problem, SpecError

__all__ = ["partition_examples"]


def partition_examples(partition: Partition, labels: Array, num_clients: int, seed: int) -> I64:
    """int64 [rows], the client (0 … num_clients − 1) of every example.

    Args:
        partition: the law of the split.
        labels: integers [rows].
        num_clients: at most the number of rows.
        seed: key of the split; another seed, another split.

    Raises:
        SpecError: more clients (or shards) than examples, or a parameter out of range.

    Purity: pure.
    """
    rows = len(labels)
    _check(partition, rows, num_clients)
    stream = rng.generator(seed, "partition", str(partition), num_clients)
    shuffled = stream.permutation(rows)
    match partition:
        case Iid():
            sizes = _shares(np.full(num_clients, 1 / num_clients), rows)
        case QuantitySkew():
            weight = np.exp(partition.sigma * stream.standard_normal(num_clients))
            sizes = _at_least_one(_shares(weight / weight.sum(), rows))
        case Shards():
            return _by_shards(partition, labels, num_clients, shuffled, stream)
        case Dirichlet():
            return _by_dirichlet(partition, labels, num_clients, shuffled, stream)
    client = np.empty(rows, dtype=np.int64)
    client[shuffled] = np.repeat(np.arange(num_clients), sizes)
    return client


def _check(partition: Partition, rows: int, num_clients: int) -> None:
    problems = []
    if not 1 <= num_clients <= rows:
        problems.append(Problem("data.clients", str(num_clients), f"1 … {rows}, the number of examples"))
    if isinstance(partition, Dirichlet) and not (0 < partition.alpha < np.inf):
        problems.append(Problem("data.partition.alpha", str(partition.alpha), "a number above 0"))
    if isinstance(partition, QuantitySkew) and not (0 <= partition.sigma <= 10):
        problems.append(Problem("data.partition.sigma", str(partition.sigma), "a number from 0 to 10"))
    if isinstance(partition, Shards):
        per_client = partition.per_client
        if per_client < 1 or per_client * num_clients > rows:
            rule = f"at least 1, and at most {max(rows // max(num_clients, 1), 1)} for {num_clients} clients"
            problems.append(Problem("data.partition.per_client", str(per_client), rule, "every shard needs an example"))
    if problems:
        raise SpecError(problems)


def _shares(proportions: npt.NDArray[np.float64], rows: int) -> I64:
    """Integer sizes that sum to rows, from rounded cumulative proportions."""
    cuts = np.rint(np.cumsum(proportions) * rows).astype(np.int64)
    cuts[-1] = rows
    return np.diff(np.minimum(cuts, rows), prepend=0)


def _at_least_one(sizes: I64) -> I64:
    """Empty clients take one example each from the largest."""
    sizes = sizes.copy()
    for empty in np.flatnonzero(sizes == 0):
        sizes[np.argmax(sizes)] -= 1
        sizes[empty] = 1
    return sizes


def _by_shards(partition: Shards, labels: Array, num_clients: int, shuffled: I64, stream: np.random.Generator) -> I64:
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    num_shards = num_clients * partition.per_client
    owner = stream.permutation(num_shards) // partition.per_client
    client = np.empty(len(labels), dtype=np.int64)
    client[order] = np.repeat(owner, _shares(np.full(num_shards, 1 / num_shards), len(labels)))
    return client


def _by_dirichlet(
    partition: Dirichlet, labels: Array, num_clients: int, shuffled: I64, stream: np.random.Generator
) -> I64:
    client = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = shuffled[labels[shuffled] == label]
        # tiny alpha underflows to all zeros, where the law's limit is one client for the class
        with np.errstate(invalid="ignore"):
            proportions = stream.dirichlet(np.full(num_clients, partition.alpha))
        if not np.isfinite(proportions).all() or proportions.sum() < 0.5:
            proportions = np.zeros(num_clients)
            proportions[stream.integers(num_clients)] = 1.0
        client[rows] = np.repeat(np.arange(num_clients), _shares(proportions, len(rows)))
    sizes = np.bincount(client, minlength=num_clients)
    for empty in np.flatnonzero(sizes == 0):
        donor = int(np.argmax(sizes))
        client[np.flatnonzero(client == donor)[0]] = empty
        sizes[donor] -= 1
        sizes[empty] = 1
    return client
