"""The rules that read who a client is: an attribute, how much data it has, a file.

Shape legend: D data clients that train, U clients that never train.
"""

from __future__ import annotations

import difflib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from atoll import rng
from atoll import spec as sp
from atoll.data import ClientData, attributes_of, is_null
from atoll.data.columns import read_columns
from atoll.data.shape import I64, Array
from atoll.errors import Problem, SpecError

__all__ = ["Division", "by_attribute", "by_file", "by_volume", "known_clients", "too_many_generated"]

Found = tuple["Division | None", list[Problem]]
Bools = npt.NDArray[np.bool_]

#: Clusters of one ensemble; more are a mistake in the choice of the column.
_MOST_CLUSTERS = 1000
#: Generated clients whose sizes are put into a table.
_MOST_GENERATED = 10**6
_LONGEST_NAME = 60
#: What YAML reads as something other than text, so that a name would have to stand in quotes.
_YAML_WORDS = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
_OTHER = "other"


@dataclass(frozen=True, eq=False)
class Division:
    """The clusters of data clients.

    Attributes:
        names: of the clusters.
        of_client: int64 [D + U], number of the cluster; −1: the rule does not say. Read-only.
    """

    names: tuple[str, ...]
    of_client: I64

    def __post_init__(self) -> None:
        self.of_client.setflags(write=False)


def known_clients(data: ClientData) -> int:
    """D + U: clients that train, and those of which there are held-out rows alone."""
    known = [int(part.client.max()) + 1 for part in data.held_out().values() if part.num_rows]
    return max(data.num_clients, *known) if known else data.num_clients


def too_many_generated(data: ClientData, most: int, what: str) -> list[Problem]:
    """The refusal of clusters that would have every client of a huge population generated."""
    if data.counts() is not None or data.num_clients <= most:
        return []
    got = f"{data.num_clients:,} clients that are generated on demand"
    why = f"{what} of each of them would have to be generated whenever a run is planned"
    return [Problem("clusters.kind", got, f"at most {most:,}", why, "Use clusters.kind random")]


def by_attribute(clusters: sp.AttributeClusters, data: ClientData) -> Found:
    """One cluster per value, or per bin, that clients that train have; small ones joined. Pure."""
    columns = attributes_of(data)
    if clusters.column not in columns:
        hint = f"It has {', '.join(columns)}" if columns else "This data says nothing about its clients"
        near = difflib.get_close_matches(clusters.column, list(columns), 1)
        hint = f"Did you mean {near[0]}? {hint}" if near else hint
        rule = "an attribute of the data's clients"
        return None, [Problem("clusters.column", repr(clusters.column), rule, hint=hint)]
    null, problems = is_null(columns[clusters.column]), []
    trains = np.arange(len(null)) < data.num_clients
    if lacking := np.flatnonzero(null & trains).tolist():
        got = f"{clusters.column!r} without a value for {len(lacking)} of {data.num_clients} clients: {_some(lacking)}"
        rule, hint = "a value for every client that trains", "Use another attribute, or a file of clusters"
        problems.append(Problem("clusters.column", got, rule, "Every client is in one cluster", hint))
    if null[trains].all():
        return None, problems
    values = _plain(columns[clusters.column][~null])
    if clusters.bins is None:
        names, code = _by_value(values, trains[~null], clusters.column)
    elif values.dtype.kind in "iuf":
        numbers = values.astype(np.float64)
        edges, found = _edges(clusters, numbers[trains[~null]])
        problems += found
        names, code = _bin_names(edges), np.searchsorted(np.array(edges), numbers, side="right").astype(np.int64)
    else:
        got, rule = f"bins of {clusters.column!r}, which is text", "null for an attribute of text"
        return None, [*problems, Problem("clusters.bins", got, rule)]
    of_client = np.full(max(len(null), known_clients(data)), -1, dtype=np.int64)
    of_client[np.flatnonzero(~null)] = code
    names, of_client = _joined(names, of_client, data.num_clients, clusters.min_clients)
    if len(names) > _MOST_CLUSTERS:
        got, rule = f"{clusters.column!r} with {len(names):,} values", f"at most {_MOST_CLUSTERS:,} clusters"
        hint = "Set clusters.bins for numbers, or clusters.min_clients to join small ones"
        return None, [*problems, Problem("clusters.column", got, rule, hint=hint)]
    return Division(names, of_client), problems


def _edges(clusters: sp.AttributeClusters, numbers: npt.NDArray[np.float64]) -> tuple[tuple[float, ...], list[Problem]]:
    bins = clusters.bins
    if isinstance(bins, tuple):
        return bins, []
    edges = _quantiles(numbers, bins or 1)
    if len(edges) + 1 == bins:
        return edges, []
    got, rule = f"{bins} quantile bins of {clusters.column!r}", f"at most {len(edges) + 1}"
    hint = f"Write edges, such as bins: [{', '.join(map(_number, edges))}]" if edges else ""
    return edges, [Problem("clusters.bins", got, rule, "Too many clients share a value", hint)]


def _plain(values: Array) -> Array:
    """Numbers or text; objects are numbers where all of them are."""
    if values.dtype.kind == "O" and all(isinstance(value, int | float | np.number) for value in values):
        values = values.astype(np.float64)
    return values if values.dtype.kind in "iufUS" else values.astype(str)


def _number(value: Any) -> str:
    number = float(value)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else f"{number:.6g}"


def _texts(values: Array) -> Array:
    """Values as text; 5, 5.0 and "5" read the same."""
    plain = _plain(values)
    return np.array([_number(value) for value in plain]) if plain.dtype.kind in "iuf" else plain.astype(str)


def _by_value(values: Array, trains: Bools, column: str) -> tuple[tuple[str, ...], I64]:
    """(names, number of each value among the sorted values of clients that train; −1: no such client has it)."""
    kinds = np.unique(values[trains])
    code = np.minimum(np.searchsorted(kinds, values), len(kinds) - 1).astype(np.int64)
    return _names([str(text) for text in _texts(kinds)], column), np.where(kinds[code] == values, code, -1)


def _names(texts: Iterable[str], column: str) -> tuple[str, ...]:
    """A name per text: its letters, digits, `_ . -`; told apart by numbers where that makes two the same."""
    prefix = _slug(column) or "value"
    names, taken = [], set()
    for text in texts:
        base = _slug(text)
        if not base[:1].isalpha() or base.lower() in _YAML_WORDS:
            base = f"{prefix}_{base}"
        name, number = base[:_LONGEST_NAME], 2
        while name.lower() in taken:
            name, number = f"{base[:_LONGEST_NAME]}_{number}", number + 1
        taken.add(name.lower())
        names.append(name)
    return tuple(names)


def _slug(text: str) -> str:
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", ascii_text.strip()).strip("_.")


def _quantiles(values: npt.NDArray[np.float64], bins: int) -> tuple[float, ...]:
    """Edges among the values, so that as many as possible of `bins` bins hold about as many clients."""
    kinds, counts = np.unique(values, return_counts=True)
    below = np.cumsum(counts)[:-1]
    if not len(below):
        return ()
    targets = np.arange(1, bins) * len(values) / bins
    chosen = np.abs(below[:, None] - targets).argmin(axis=0)
    return tuple(float(kinds[place + 1]) for place in np.unique(chosen))


def _bin_names(edges: Sequence[float]) -> tuple[str, ...]:
    texts = list(map(_number, edges))
    inner = [f"{low}-{high}" if low[0] != "-" else f"from_{low}_to_{high}" for low, high in itertools.pairwise(texts)]
    names, taken = [], set()
    for name in [f"lt_{texts[0]}", *inner, f"ge_{texts[-1]}"] if texts else ["all"]:
        base, number = name.replace("+", ""), 2
        name = base
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        taken.add(name)
        names.append(name)
    return tuple(names)


def _joined(names: tuple[str, ...], of_client: I64, num_clients: int, least: int) -> tuple[tuple[str, ...], I64]:
    """Clusters with fewer than `least` clients that train, joined into `other`; those without any are dropped."""
    trained = of_client[:num_clients]
    counts = np.bincount(trained[trained >= 0], minlength=len(names))
    is_small = counts < least
    if not is_small.any():
        return names, of_client
    # a value of this name takes the small ones in
    known = next((index for index, name in enumerate(names) if name.lower() == _OTHER), len(names))
    is_other = is_small & (counts > 0)
    if known < len(names) and (is_other.any() or not is_small[known]):
        is_other[known] = True
    kept = np.flatnonzero(~is_small & ~is_other)
    place = np.full(len(names) + 1, -1, dtype=np.int64)
    place[kept] = np.arange(len(kept))
    place[np.flatnonzero(is_other)] = len(kept)
    last = (names[known] if known < len(names) else _OTHER,) if is_other.any() else ()
    return (*(names[index] for index in kept.tolist()), *last), place[of_client]


def by_volume(clusters: sp.DataVolumeClusters, seed: int, data: ClientData, *, has_strangers: bool) -> Found:
    """Quantiles of training examples, fewest first; ties are broken by a keyed hash of the client's number. Pure.

    Clients that never train are placed by the number of their rows, if `has_strangers`: if those rows are somebody's.
    """
    if problems := too_many_generated(data, _MOST_GENERATED, "the number of examples"):
        return None, problems
    num, ids = data.num_clients, np.arange(known_clients(data))
    counts = data.counts()
    sizes = np.full(len(ids), -1, dtype=np.int64)
    sizes[:num] = data.num_examples(ids[:num]) if counts is None else counts
    for part in data.held_out().values() if has_strangers else ():
        rows = np.bincount(part.client, minlength=len(ids))
        sizes[num:] = np.where(rows[num:] > 0, np.maximum(sizes[num:], 0) + rows[num:], sizes[num:])
    tie = rng.bits(rng.key(seed, "cluster", "volume"), ids)
    order = np.lexsort((tie[:num], sizes[:num]))
    of_client = np.empty(len(ids), dtype=np.int64)
    of_client[order] = np.arange(num) * clusters.count // num
    of_client[num:] = np.where(sizes[num:] < 0, -1, 0)
    strangers = sizes[num:] >= 0
    for cluster in range(1, clusters.count):
        first = order[min(-(-cluster * num // clusters.count), num - 1)]
        is_above = (sizes[num:] > sizes[first]) | ((sizes[num:] == sizes[first]) & (tie[num:] >= tie[first]))
        of_client[num:][strangers & is_above] = cluster
    return Division(tuple(f"q{index}" for index in range(clusters.count)), of_client), []


def by_file(clusters: sp.FileClusters, data: ClientData) -> Found:
    """The clusters that a file names. Reads the file."""
    columns, problems = _file_columns(clusters)
    if problems:
        return None, problems
    whose, cluster = columns
    client, problems = _client_numbers(clusters.client_column, whose, data)
    if client is None:
        return None, problems
    if unknown := sorted({str(value) for value in whose[client < 0]}):
        got = f"{len(unknown)} clients that the data does not have: {_some(unknown)}"
        rule = f"the data's clients, of which {data.num_clients} train"
        problems.append(Problem("clusters.client_column", got, rule))
    texts = _texts(cluster)[client >= 0]
    kinds, code = np.unique(texts, return_inverse=True)
    pairs = np.unique(client[client >= 0] * np.int64(len(kinds)) + code)
    owner, code = np.divmod(pairs, max(len(kinds), 1))
    of_client = np.full(max(known_clients(data), int(owner.max(initial=-1)) + 1), -1, dtype=np.int64)
    of_client[owner] = code
    shown = {int(number): str(name) for number, name in zip(client, whose, strict=True) if number >= 0}
    twice = np.unique(owner[1:][np.diff(owner) == 0])
    if twice.size:
        got = f"{twice.size} clients in more than one cluster: {_some(shown[number] for number in twice.tolist())}"
        problems.append(Problem("clusters.cluster_column", got, "one cluster per client", "Clusters are disjoint"))
    missing = np.flatnonzero(of_client[: data.num_clients] < 0)
    if missing.size:
        got = f"no row for {missing.size} of {data.num_clients} clients: {_some(_called(missing, clusters, data))}"
        rule = "a row for every client that trains"
        problems.append(Problem("clusters.client_column", got, rule, "Every client is in one cluster"))
    trained = np.unique(of_client[: data.num_clients])
    trained = trained[trained >= 0]
    if not 0 < len(trained) <= _MOST_CLUSTERS:
        got, rule = f"{len(trained):,} clusters of clients that train", f"1 to {_MOST_CLUSTERS:,} clusters"
        return None, [*problems, Problem("clusters.cluster_column", got, rule)]
    place = np.full(len(kinds) + 1, -1, dtype=np.int64)
    place[trained] = np.arange(len(trained))
    names = _names([str(kinds[number]) for number in trained], clusters.cluster_column)
    return Division(names, place[of_client]), problems


def _file_columns(clusters: sp.FileClusters) -> tuple[list[Array], list[Problem]]:
    columns, problems = [], []
    for field in ("client_column", "cluster_column"):
        name = getattr(clusters, field)
        try:
            columns.append(read_columns(clusters.path, (name,), "clusters")[name])
        except SpecError as error:
            for problem in error.problems:
                path = problem.path.replace("clusters.column", f"clusters.{field}")
                problems.append(Problem(path, problem.value, problem.rule, problem.why, problem.hint))
    return columns, list(dict.fromkeys(problems))


def _client_numbers(column: str, whose: Array, data: ClientData) -> tuple[I64 | None, list[Problem]]:
    """int64 [rows of the file], the data's client of each row; −1: the data has no such client."""
    attribute = attributes_of(data).get(column)
    if attribute is None:
        if whose.dtype.kind not in "iu":
            names = ", ".join(attributes_of(data))
            hint = f"For values, name the column after an attribute: {names}" if names else ""
            rule = "client numbers 0, 1 …, since the data has no attribute of this name"
            return None, [Problem("clusters.client_column", f"{column!r} of type {whose.dtype}", rule, hint=hint)]
        number = whose.astype(np.int64)
        return np.where((number >= 0) & (number < known_clients(data)), number, -1), []
    known = np.flatnonzero(~is_null(attribute))
    texts = _texts(attribute[known])
    order = np.argsort(texts, kind="stable")
    ordered = texts[order]
    if (ordered[1:] == ordered[:-1]).any() or len(known) < data.num_clients:
        got = f"attribute {column!r} with {len(np.unique(ordered))} values for {len(attribute)} clients"
        return None, [Problem("clusters.client_column", got, "an attribute that is another for every client")]
    wanted = _texts(whose)
    place = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.where(ordered[place] == wanted, known[order[place]], -1).astype(np.int64), []


def _called(numbers: I64, clusters: sp.FileClusters, data: ClientData) -> list[str]:
    attribute = attributes_of(data).get(clusters.client_column)
    return [str(number) if attribute is None else str(attribute[number]) for number in numbers[:4].tolist()]


def _some(values: Iterable[Any]) -> str:
    """The first three, as one names examples."""
    listed = [str(value) for value in values]
    return ", ".join(listed[:3]) + (" …" if len(listed) > 3 else "")
