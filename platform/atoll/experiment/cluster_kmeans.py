"""Clusters of clients whose training examples look alike: k-means over label or feature summaries.

Shape legend: D data clients that train, U clients that never train, S columns of a summary, R rows of a chunk.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from atoll import rng
from atoll import spec as sp
from atoll.data import ClientData, DataShape
from atoll.data.shape import I64, Array
from atoll.errors import Problem
from atoll.experiment.cluster_rules import Division, Found, known_clients, too_many_generated

__all__ = ["by_kmeans"]

F64 = npt.NDArray[np.float64]
Rows = dict[str, Array]

#: Generated clients whose examples are all made, to be summarised.
_MOST_GENERATED = 10**5
#: Columns of a summary that one feature array, or one category column, is folded into by hashing.
_MOST_FEATURES, _MOST_CODES = 512, 64
#: Clients that centroids are fitted on, drawn by lot where there are more; fewer where their summaries are wide.
_MOST_FITTED, _MOST_NUMBERS = 50_000, 2**25
#: Numbers that one chunk of rows, or of clients, may need: 32 MiB.
_CHUNK_NUMBERS = 2**22
_RESTARTS = 4


@dataclass(frozen=True)
class _Column:
    """What one label, feature array or category column adds to a summary.

    Attributes:
        width: columns of the summary.
        sums: rows → [R, width] numbers whose mean over a client's rows is the summary.
        is_histogram: the columns are shares, which count as one column of the data; else each counts by itself.
    """

    width: int
    sums: Callable[[Rows], F64]
    is_histogram: bool


def by_kmeans(clusters: sp.KmeansClusters, seed: int, data: ClientData, *, has_strangers: bool) -> Found:
    """k-means with keyed starts; the largest cluster first, ties by centroid. Pure.

    On labels, clients that never train are in no cluster: their labels are test data. On features they are in the
    cluster of the nearest centroid, if `has_strangers`: if their rows are somebody's.
    """
    num = data.num_clients
    if problems := too_many_generated(data, _MOST_GENERATED, "the examples"):
        return None, problems
    if clusters.count > num:
        return None, [Problem("clusters.count", str(clusters.count), f"at most {num}, the clients that train")]
    on_labels = clusters.on == "labels"
    columns = _label_columns(data.shape) if on_labels else _feature_columns(data.shape, seed)
    width = sum(column.width for column in columns)
    chosen = _drawn(num, max(clusters.count, min(_MOST_FITTED, _MOST_NUMBERS // width)), seed)
    means = _means(_training_rows(data, chosen, width), columns, len(chosen))
    scale = np.ones(width) if on_labels else _scales(means, columns)
    centroids = _fitted(means / scale, clusters.count, seed)
    labels = np.empty(num, dtype=np.int64)
    step = max(1, _CHUNK_NUMBERS // width)
    for first in range(0, num, step):
        part = np.arange(first, min(first + step, num))
        means = _means(_training_rows(data, part, width), columns, len(part))
        labels[part] = _nearest(means / scale, centroids)
    sizes = np.bincount(labels, minlength=len(centroids))
    if (differ := np.count_nonzero(sizes)) < clusters.count:
        got = f"{clusters.count} clusters of clients of {differ} kinds"
        return None, [Problem("clusters.count", got, f"at most {differ}", "No cluster may be empty")]
    order = sorted(range(clusters.count), key=lambda index: (-sizes[index], centroids[index].tolist()))
    of_client = np.full(known_clients(data), -1, dtype=np.int64)
    of_client[:num] = np.argsort(order)[labels]
    if not on_labels and has_strangers and len(of_client) > num:
        means = _means(_held_out_rows(data, width), columns, len(of_client) - num)
        there = np.flatnonzero(~np.isnan(means[:, 0]))
        of_client[num + there] = np.argsort(order)[_nearest(means[there] / scale, centroids)]
    return Division(tuple(f"c{index}" for index in range(clusters.count)), of_client), []


def _drawn(num: int, most: int, seed: int) -> I64:
    """At most `most` of `num` clients, by lot, ascending."""
    if num <= most:
        return np.arange(num)
    tie = rng.bits(rng.key(seed, "cluster", "kmeans", "sample"), np.arange(num))
    return np.sort(np.argsort(tie, kind="stable")[:most])


def _label_columns(shape: DataShape) -> list[_Column]:
    width = min(shape.num_classes, _MOST_FEATURES)
    return [_Column(width, lambda rows: _one_hot(rows["y"] % width, width), True)]


def _feature_columns(shape: DataShape, seed: int) -> list[_Column]:
    columns = []
    if shape.x_dtype == "int64":
        columns.append(_coded(_hashed(lambda rows: rows["x"], shape.vocabulary, seed, "tokens")))
    elif (num_features := int(np.prod(shape.x_shape))) > 0:
        width = min(num_features, _MOST_FEATURES)
        stream = rng.key(seed, "cluster", "kmeans", "x")
        place = rng.integers(stream, width, np.arange(num_features))
        sign = np.where(rng.uniform(stream, np.arange(num_features), 1) < 0.5, -1.0, 1.0)

        def features(rows: Rows) -> F64:
            x = rows["x"].reshape(len(rows["x"]), num_features).astype(np.float64)
            if width == num_features:
                return x
            folded = np.zeros((width, len(x)))
            np.add.at(folded, place, (x * sign).T)
            return folded.T

        columns.append(_Column(width, features, False))
    for number, category in enumerate(shape.categories):

        def codes(rows: Rows, number: int = number) -> Array:
            return rows["c"][:, number]

        columns.append(_coded(_hashed(codes, category.size, seed, f"category {number}")))
    return columns


_Codes = tuple[Callable[[Rows], Array], int]


def _hashed(codes: Callable[[Rows], Array], size: int, seed: int, name: str) -> _Codes:
    """The codes themselves, or a keyed hash of them where there are many."""
    if size <= _MOST_CODES:
        return codes, size
    stream = rng.key(seed, "cluster", "kmeans", name)
    return lambda rows: rng.integers(stream, _MOST_CODES, codes(rows)), _MOST_CODES


def _coded(codes: _Codes) -> _Column:
    of_rows, width = codes

    def shares(rows: Rows) -> F64:
        found = of_rows(rows)
        flat = found.reshape(len(found), -1)
        return np.asarray(sum(_one_hot(part, width) for part in flat.T) / flat.shape[1], dtype=np.float64)

    return _Column(width, shares, True)


def _one_hot(codes: Array, width: int) -> F64:
    out = np.zeros((len(codes), width))
    out[np.arange(len(codes)), codes] = 1.0
    return out


def _training_rows(data: ClientData, clients: I64, width: int) -> Iterator[tuple[I64, Rows]]:
    """(place in `clients` of each row, rows) of their training examples, client by client, a chunk at a time."""
    counts = data.num_examples(clients)
    ends = np.cumsum(counts)
    total, size = int(ends[-1]), _rows_per_chunk(data.shape, width)
    for first in range(0, total, size):
        row = np.arange(first, min(first + size, total))
        place = np.searchsorted(ends, row, side="right")
        block = data.gather(clients[place], (row - (ends - counts)[place])[:, None])
        yield place, {name: values[:, 0] for name, values in block.items()}


def _rows_per_chunk(shape: DataShape, width: int) -> int:
    return max(256, _CHUNK_NUMBERS // (width + int(np.prod(shape.x_shape)) + len(shape.categories)))


def _held_out_rows(data: ClientData, width: int) -> Iterator[tuple[I64, Rows]]:
    """(client − D of each row, rows) of clients that never train, in the order of clients."""
    for part in data.held_out().values():
        order = np.argsort(part.client, kind="stable")
        order = order[part.client[order] >= data.num_clients]
        size = _rows_per_chunk(data.shape, width)
        for first in range(0, len(order), size):
            chosen = order[first : first + size]
            rows = {name: values[chosen] for name, values in part.arrays.items()}
            yield part.client[chosen] - data.num_clients, rows


def _means(chunks: Iterator[tuple[I64, Rows]], columns: list[_Column], num: int) -> F64:
    """[num, S] float64, mean over each client's rows; NaN for clients without rows."""
    sums = np.zeros((num, sum(column.width for column in columns)))
    rows_of = np.zeros(num, dtype=np.int64)
    for client, rows in chunks:
        # rows of one client are neighbours
        begin = np.flatnonzero(np.diff(client, prepend=-1))
        whole = np.concatenate([column.sums(rows) for column in columns], axis=1)
        sums[client[begin]] += np.add.reduceat(whole, begin, axis=0)
        rows_of += np.bincount(client, minlength=num)
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / rows_of[:, None], dtype=np.float64)


def _scales(means: F64, columns: list[_Column]) -> F64:
    """[S] what to divide by, so that each column of the data has variance 1 over clients, a histogram in total."""
    variance, scales, first = means.var(axis=0), [], 0
    for column in columns:
        part = variance[first : first + column.width]
        scales.append(np.full(column.width, part.sum()) if column.is_histogram else part)
        first += column.width
    whole = np.sqrt(np.concatenate(scales))
    return np.where(whole > 1e-12, whole, 1.0)


def _fitted(points: F64, count: int, seed: int) -> F64:
    """[count, S] centroids, some of them of no point where fewer points differ."""
    from sklearn.cluster import KMeans

    start: Any = rng.key(seed, "cluster", "kmeans") % 2**32
    with warnings.catch_warnings(), _one_thread():
        warnings.simplefilter("ignore")  # fewer different points than clusters: the caller tells
        found = KMeans(count, n_init=_RESTARTS, random_state=start, algorithm="lloyd").fit(points)
    return np.asarray(found.cluster_centers_, dtype=np.float64)


def _nearest(points: F64, centroids: F64) -> I64:
    """[R] the nearest centroid of each point; of equally near ones the first."""
    apart = np.stack([((points - centroid) ** 2).sum(axis=1) for centroid in centroids], axis=1)
    return np.asarray(apart.argmin(axis=1), dtype=np.int64)


def _one_thread() -> Any:
    """Sums over points in one order, whatever the number of cores."""
    import threadpoolctl

    return threadpoolctl.threadpool_limits(limits=1)
