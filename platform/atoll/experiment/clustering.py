"""Disjoint clusters of clients: who is in which, how many and how much that is, and what is wrong with it.

Every client that trains is in exactly one cluster; which one is a function of the seed, the section `clusters` and the
data. The rules themselves: `cluster_rules`, `cluster_kmeans`.

Shape legend: D data clients that train, U clients that never train.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atoll import population as po
from atoll import spec as sp
from atoll.data import ClientData, attributes_of, content_digest
from atoll.data.shape import I64
from atoll.errors import Problem, SpecError
from atoll.experiment.cluster_kmeans import by_kmeans
from atoll.experiment.cluster_rules import Division, by_attribute, by_file, by_volume

__all__ = ["ClusterSize", "Clustering", "cluster_inputs", "cluster_problems", "cluster_sizes", "clustering_of"]

#: Populations up to this size are walked through to count the examples of clusters without a table.
_MOST_WALKED = 10**6
#: Clusters that are too small, and so on, are named one by one up to this number.
_MOST_NAMED = 20
#: Divisions that this process keeps: every planner and evaluator of an ensemble asks for the same few.
_KEPT = 16
_DIVISIONS: dict[tuple[Any, ...], tuple[Division | None, tuple[Problem, ...]]] = {}


@dataclass(frozen=True, eq=False)
class Clustering:
    """The disjoint parts that the population is divided into; a cluster's number is its place here.

    Attributes:
        names: letters, digits, `_ . -`; each once, whatever the case of letters.
        sizes: clients of the population in each cluster, at least 1; they sum to the population.
        of_client: int64 [D + U], cluster of each data client; those that never train included, −1 where the rule does
            not say. None where the rule is about ids, not data clients: single and random.
        parts: the members of each cluster; Everyone() where there is one cluster.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    of_client: I64 | None
    parts: tuple[po.Members, ...] = ()

    def members(self, index: int) -> po.Members:
        """Who is in cluster `index`; Everyone() where it is the only one."""
        return self.parts[index]

    def index(self, only: str | None) -> int:
        """The number of the cluster of this name; 0 for None."""
        return 0 if only is None else self.names.index(only)


@dataclass(frozen=True, slots=True)
class ClusterSize:
    """One row of the table of clusters.

    Attributes:
        name: of the cluster.
        clients: of the population.
        train_examples: of these clients together; None where that would take a walk through a huge population.
    """

    name: str
    clients: int
    train_examples: int | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def clustering_of(spec: sp.Spec, data: ClientData) -> Clustering:
    """Divides the population as `spec.clusters` says.

    Guarantees: disjoint and complete; equal for equal (spec.seed, spec.clusters, spec.population.size, data) in every
    process. The seed plays no part where the rule has no chance in it.

    Raises:
        SpecError: no such column or attribute, clients without a cluster or in two, empty clusters, `only` that names
            none; all problems, with counts.

    Purity: reads the file of kind file; else pure.
    """
    clustering, problems = _examined(spec, data)
    if problems or clustering is None:
        raise SpecError(problems)
    return clustering


def cluster_problems(spec: sp.Spec, data: ClientData) -> list[Problem]:
    """Everything that keeps the clusters of a run, or of a whole ensemble, from being trained; empty if nothing does.

    Beyond `clustering_of`: every cluster has at least as many clients as its leaf has in flight, or selects for one
    round with over-selection, whatever the sampling. A plain run on the whole population has no clusters.

    Purity: as `clustering_of`.
    """
    if spec.clusters.kind == "single" and spec.clusters.only is None and spec.ensemble is None:
        return []
    clustering, problems = _examined(spec, data)
    if clustering is None:
        return problems
    leaves: Mapping[str, Mapping[str, Any]] = {} if spec.ensemble is None else spec.ensemble.leaves
    for name in leaves:
        if name not in clustering.names:
            problems.append(_unknown_name(f"ensemble.leaves.{name}", name, clustering.names))
    only = spec.clusters.only
    small = []
    for name, size in zip(clustering.names, clustering.sizes, strict=True):
        if only in (None, name) and size:
            small += _too_small(spec, name, size, leaves.get(name, {}))
    problems += small[:_MOST_NAMED]
    if len(small) > _MOST_NAMED:
        got = f"{len(small) - _MOST_NAMED} more clusters that are too small"
        problems.append(Problem("clusters", got, "fewer and larger clusters"))
    return problems


def cluster_sizes(spec: sp.Spec, data: ClientData) -> tuple[ClusterSize, ...]:
    """Clients and training examples of every cluster, `clusters.only` or not; () where the population is not divided.

    Raises:
        SpecError: as `clustering_of`.
    """
    if spec.clusters.kind == "single":
        return ()
    clustering = clustering_of(spec, data)
    size = _population_size(spec, data)
    rows = zip(clustering.names, clustering.sizes, clustering.parts, strict=True)
    return tuple(ClusterSize(name, count, _examples(part, size, data)) for name, count, part in rows)


def cluster_inputs(spec: sp.Spec, data: ClientData) -> dict[str, str]:
    """Name → digest of what the clusters are read from, beyond the data's rows: a file, an attribute; often nothing.

    Purity: reads the file of kind file.
    """
    clusters, inputs = spec.clusters, {}
    column = None
    if isinstance(clusters, sp.FileClusters):
        file = Path(clusters.path)
        inputs["clusters.path"] = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "nothing"
        column = clusters.client_column
    elif isinstance(clusters, sp.AttributeClusters):
        column = clusters.column
    if column is not None and (values := attributes_of(data).get(column)) is not None:
        # as text: an array of objects has no bytes of its own
        inputs[f"attribute {column}"] = content_digest(np.asarray(values).astype(str))
    return inputs


def _population_size(spec: sp.Spec, data: ClientData) -> int:
    return data.num_clients if spec.population.size == "data" else spec.population.size


def _examined(spec: sp.Spec, data: ClientData) -> tuple[Clustering | None, list[Problem]]:
    """The clusters as far as they can be told, and all that is wrong with them."""
    clusters, size = spec.clusters, _population_size(spec, data)
    clustering: Clustering | None
    problems: list[Problem] = []
    if isinstance(clusters, sp.SingleClusters):
        clustering = Clustering(("all",), (size,), None, (po.Everyone(),))
    elif isinstance(clusters, sp.RandomClusters):
        clustering = _drawn(clusters, spec.seed, size)
        problems += _sum_problems(clusters, size)
    else:
        division, found = _division_of(spec, data)
        problems += found
        clustering = None if division is None else _listed(division, data.num_clients, size)
    if clustering is None:
        return None, problems
    empty = [name for name, count in zip(clustering.names, clustering.sizes, strict=True) if not count]
    if empty:
        named = ", ".join(empty[:_MOST_NAMED]) + (" …" if len(empty) > _MOST_NAMED else "")
        got = f"{len(empty)} of {len(clustering.names)} clusters without a client that trains: {named}"
        hint = f"The population has {size} clients; use fewer clusters"
        problems.append(Problem("clusters", got, "at least one client in each cluster", hint=hint))
    if clusters.only is not None and clusters.only not in clustering.names:
        problems.append(_unknown_name("clusters.only", clusters.only, clustering.names))
    return clustering, problems


def _unknown_name(path: str, name: str, names: Sequence[str]) -> Problem:
    shown = ", ".join(names[:_MOST_NAMED]) + (f" … ({len(names)})" if len(names) > _MOST_NAMED else "")
    by_case = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), list(by_case), n=1, cutoff=0.6)
    return Problem(path, repr(name), f"one of {shown}", "", f"Did you mean {by_case[near[0]]}" if near else "")


def _sum_problems(clusters: sp.RandomClusters, size: int) -> list[Problem]:
    if clusters.sizes is None or sum(clusters.sizes) == size:
        return []
    got, rule = f"sizes that sum to {sum(clusters.sizes)}", f"sizes that sum to the population's {size} clients"
    return [Problem("clusters.sizes", got, rule, "Every client is in one cluster")]


def _drawn(clusters: sp.RandomClusters, seed: int, size: int) -> Clustering:
    parts: tuple[po.Members, ...]
    if clusters.sizes is None:
        count = clusters.count or 1
        parts = tuple(po.RandomMembers(seed, index, count) for index in range(count))
    else:
        count = len(clusters.sizes)
        parts = tuple(po.SizedMembers(seed, index, clusters.sizes) for index in range(count))
    names = tuple(f"r{index}" for index in range(count))
    sizes = tuple(part.count(size) for part in parts)
    return Clustering(names, sizes, None, (po.Everyone(),) if count == 1 else parts)


def _listed(division: Division, num_clients: int, size: int) -> Clustering:
    trained = division.of_client[:num_clients]
    count = len(division.names)
    if count == 1 and (trained == 0).all():
        return Clustering(division.names, (size,), division.of_client, (po.Everyone(),))
    order = np.argsort(trained, kind="stable")
    bounds = np.searchsorted(trained[order], np.arange(count + 1))
    parts = tuple(
        po.ListedMembers(order[first:stop], num_clients)
        for first, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    )
    sizes = tuple(part.count(size) for part in parts)
    return Clustering(division.names, sizes, division.of_client, parts)


def _division_of(spec: sp.Spec, data: ClientData) -> tuple[Division | None, tuple[Problem, ...]]:
    clusters = spec.clusters
    section = json.dumps(clusters.model_dump(mode="json", exclude={"only"}), sort_keys=True)
    is_drawn = isinstance(clusters, sp.DataVolumeClusters | sp.KmeansClusters)
    key = (data.identity, spec.seed if is_drawn else None, section, *sorted(cluster_inputs(spec, data).items()))
    if key in _DIVISIONS:
        return _DIVISIONS[key]
    # plain arrays have test rows that are nobody's
    has_strangers = spec.data.kind != "arrays"
    match clusters:
        case sp.AttributeClusters():
            division, problems = by_attribute(clusters, data)
        case sp.DataVolumeClusters():
            division, problems = by_volume(clusters, spec.seed, data, has_strangers=has_strangers)
        case sp.KmeansClusters():
            division, problems = by_kmeans(clusters, spec.seed, data, has_strangers=has_strangers)
        case sp.FileClusters():
            division, problems = by_file(clusters, data)
        case _:
            raise AssertionError(clusters.kind)
    if len(_DIVISIONS) >= _KEPT:
        del _DIVISIONS[next(iter(_DIVISIONS))]
    _DIVISIONS[key] = (division, tuple(problems))
    return _DIVISIONS[key]


def _too_small(spec: sp.Spec, name: str, size: int, overrides: Mapping[str, Any]) -> list[Problem]:
    schedule, place = spec.schedule, "schedule"
    if any(key.split(".")[0] == "schedule" for key in overrides):
        place = f"ensemble.leaves.{name}.schedule"
        clusters = sp.to_dict(spec)["clusters"] | {"only": name}
        schedule = sp.derived(spec, overrides, ensemble=None, comparison=None, clusters=clusters).schedule
    if isinstance(schedule, sp.AsyncSchedule):
        path, given, needed = f"{place}.concurrency", f"{schedule.concurrency}", schedule.concurrency
    else:
        # 1e-9: 100 · 1.1 is 110.00000000000001 in floating point, and that is 110 tasks
        needed = math.ceil(schedule.cohort * (1 + schedule.over_selection) - 1e-9)
        path, given = f"{place}.cohort", f"{schedule.cohort}"
        given += f", {needed} with over_selection," if needed != schedule.cohort else ""
    if size >= needed:
        return []
    hint = f"Lower it, for this leaf alone in ensemble.leaves.{name}, or make larger clusters"
    if spec.ensemble is None:
        hint = "Lower it, or make larger clusters"
    got = f"{given} in cluster {name} of {size} clients"
    return [Problem(path, got, f"at most {size}", "So many of its clients would have to train at once", hint)]


def _examples(part: po.Members, size: int, data: ClientData) -> int | None:
    counts = data.counts()
    if counts is not None and isinstance(part, po.ListedMembers | po.Everyone):
        laps, rest = divmod(size, data.num_clients)
        rows = part.rows if isinstance(part, po.ListedMembers) else np.arange(data.num_clients)
        return laps * int(counts[rows].sum()) + int(counts[rows[rows < rest]].sum())
    if size > _MOST_WALKED:
        return None
    chunks = (np.arange(first, min(first + 2**16, part.count(size))) for first in range(0, part.count(size), 2**16))
    add = functools.reduce(lambda total, ids: total + int(data.num_examples(part.client(ids, size)).sum()), chunks, 0)
    return int(add)
