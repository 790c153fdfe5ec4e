"""`open_data`: from a source record to client data; `describe`: what is in it."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from atoll.data.shape import ClientData
from atoll.data.sources import (
    ArraysSource,
    CustomSource,
    DataSource,
    Flights,
    LeafOutputsSource,
    Movielens,
    ParquetSource,
    Shakespeare,
    SyntheticSource,
)
from atoll.errors import Problem, SpecError

__all__ = ["describe", "open_data"]

_DESCRIBED_CLIENTS = 100_000


def open_data(source: DataSource) -> ClientData:
    """Open the data that `source` names, in this process.

    Guarantees: two opens, in any two processes, give equal arrays and one identity.

    Raises:
        SpecError: what is wrong with files, columns, values or parameters; all problems found.

    Purity: reads files; ParquetSource writes its cache folder.

    Example:
        >>> data = open_data(SyntheticSource(num_clients=10))
        >>> data.gather(np.array([3, 4]), np.array([[0, 1], [0, 1]]))["x"].shape
        (2, 2, 16)
    """
    # each kind is imported where it is used: pyarrow and scipy cost start-up time
    match source:
        case Flights():
            from atoll.data.flights import open_flights

            return open_flights(source)
        case Movielens():
            from atoll.data.movielens import open_movielens

            return open_movielens(source)
        case Shakespeare():
            from atoll.data.shakespeare import open_shakespeare

            return open_shakespeare(source)
        case ParquetSource():
            from atoll.data.parquet import open_parquet

            return open_parquet(source)
        case ArraysSource():
            from atoll.data.arrays import open_arrays

            return open_arrays(source)
        case SyntheticSource():
            from atoll.data.synthetic import open_synthetic

            return open_synthetic(source)
        case LeafOutputsSource():
            from atoll.data.leaf_outputs import open_leaf_outputs

            return open_leaf_outputs(source)
        case CustomSource():
            return _open_custom(source)


def _open_custom(source: CustomSource) -> ClientData:
    place = "data.factory"
    module_name, _, function_name = source.factory.partition(":")
    if not module_name or not function_name:
        raise SpecError([Problem(place, repr(source.factory), "package.module:function")])
    try:
        factory = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:
        hint = "is the package installed where atoll runs?"
        raise SpecError([Problem(place, repr(source.factory), "a function to import", str(error), hint)]) from error
    try:
        data = factory(**source.arguments)
    except SpecError:
        raise
    except Exception as error:
        # The factory is foreign code: whatever it raises is an answer to the spec.
        why, hint = f"{type(error).__name__}: {error}", "data.arguments must fit the function"
        raise SpecError([Problem(place, repr(source.factory), "a function that works", why, hint)]) from error
    if not isinstance(data, ClientData):
        absent = [name for name in _MEMBERS if not hasattr(data, name)]
        got = f"{source.factory!r}, which returned {type(data).__name__} without {', '.join(absent)}"
        raise SpecError([Problem(place, got, "a ClientData", "", "atoll.data.client_table makes one from arrays")])
    return data


_MEMBERS = ("shape", "num_clients", "identity", "about", "num_examples", "counts", "gather", "held_out")


def describe(data: ClientData) -> dict[str, Any]:
    """Facts for reports and `atoll plan`: plain values, JSON-ready.

    Counts cover every client; for generated clients, the first 100,000 (`described_clients` says how many). Label
    shares are those of the held-out rows.

    Returns:
        clients, described_clients, train_examples, min_examples, median_examples, max_examples, held_out (rows by
        name), label_shares (by held-out name, at most 10 labels), features, categories, task, identity, and `about`.

    Purity: pure.
    """
    counts = data.counts()
    if counts is None:
        counts = data.num_examples(np.arange(min(data.num_clients, _DESCRIBED_CLIENTS)))
    held_out = data.held_out()
    shares = {}
    for name, part in held_out.items():
        share = np.bincount(part.arrays["y"], minlength=data.shape.num_classes) / max(part.num_rows, 1)
        shares[name] = {int(label): float(share[label]) for label in np.argsort(-share, kind="stable")[:10]}
    return {
        **data.about,
        "task": data.shape.task,
        "num_classes": data.shape.num_classes,
        "x_shape": list(data.shape.x_shape),
        "categories": {category.name: category.size for category in data.shape.categories},
        "clients": data.num_clients,
        "described_clients": len(counts),
        "train_examples": int(counts.sum()),
        "min_examples": int(counts.min()),
        "median_examples": float(np.median(counts)),
        "max_examples": int(counts.max()),
        "held_out": {name: part.num_rows for name, part in held_out.items()},
        "label_shares": shares,
        "identity": data.identity,
    }
