"""Columns that say one thing per client, read from rows in one pass: memory grows with the clients, not the rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from atoll.data.shape import I64, Array
from atoll.errors import Problem, SpecError

__all__ = ["read_client_columns"]

_UNREAD = object()


def read_client_columns(
    names: Sequence[str], batches: Iterable[tuple[I64, Any]], clients: Sequence[Any]
) -> dict[str, Array]:
    """One value per client of each column, checked to be the same in all of the client's rows.

    Args:
        names: columns wanted: text, numbers or bool.
        batches: (client of every row as an index into `clients`, Arrow record batch), once through all rows.
        clients: what the clients are called, for messages.

    Returns:
        By column, in the order of `clients`: text with "" for null; int64 (bool: 0 and 1); float64 with NaN for null.

    Raises:
        SpecError: columns that vary inside a client, each with the number of such clients and an example.
    """
    held = {name: np.full(len(clients), _UNREAD, dtype=object) for name in names}
    varying: dict[str, dict[int, tuple[Any, Any]]] = {name: {} for name in names}
    kinds: dict[str, pa.DataType] = {}
    for codes, batch in batches:
        for name in names:
            kinds[name], values, index = _coded(batch[name])
            found = held[name]
            # few pairs: a client that says one thing gives one
            for pair in np.unique(codes * len(values) + index).tolist():
                client, value = pair // len(values), values[pair % len(values)]
                if found[client] is _UNREAD:
                    found[client] = value
                elif found[client] != value:
                    varying[name].setdefault(client, (found[client], value))
    problems = []
    for name, examples in varying.items():
        if examples:
            client, (one, other) = min(examples.items())
            got = f"{name!r}, which varies within {len(examples):,} of {len(clients):,} clients"
            why = f"client {clients[client]!r} has {one!r} and {other!r}"
            problems.append(Problem("data.attributes", got, "a column with one value per client", why))
    if problems:
        raise SpecError(problems)
    return {name: _array(kinds[name], found.tolist()) for name, found in held.items()}


def _coded(column: Any) -> tuple[pa.DataType, list[Any], I64]:
    """(type, the distinct values with None for null, NaN and "", the place of every row's value among them)."""
    if pt.is_dictionary(column.type):
        column = column.dictionary_decode()
    coded = column.dictionary_encode(null_encoding="encode")
    values = [None if value == "" or value != value else value for value in coded.dictionary.to_pylist()]
    return column.type, values, coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _array(kind: pa.DataType, values: list[Any]) -> Array:
    if pt.is_string(kind) or pt.is_large_string(kind):
        return np.array(["" if value is None else value for value in values], dtype=np.str_)
    if None in values or pt.is_floating(kind):
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return np.array(values, dtype=np.int64)
