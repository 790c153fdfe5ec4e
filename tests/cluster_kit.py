"""Data whose clients have attributes, and specs that divide them, for every test of clusters."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from atoll import spec as sp
from atoll.data import Category, ClientTable, client_table
from tiny_kit import tiny

__all__ = ["FACTORY", "divided", "factory", "people"]

FACTORY = "cluster_kit_factory:make"
#: clients of `people` that never train
UNSEEN = (3, 17, 40, 41)


def people(clients: int = 60, holdout: float = 0.25, **attributes: Any) -> ClientTable:
    """Clients 0 … `clients` − 1 with 4 to 23 rows, two features, one category, labels that lean by client.

    The attributes are a mapping of client to value each, or one value per client; maker, age, code and one by default.
    """
    stream = np.random.default_rng(5)
    client = np.repeat(np.arange(clients), 4 + stream.integers(0, 20, clients))
    lean = client % 3
    x = (stream.standard_normal((len(client), 2)) + lean[:, None]).astype(np.float32)
    y = (stream.random(len(client)) < 0.2 + 0.3 * lean).astype(np.int64)
    c = np.minimum(stream.integers(0, 9, len(client)), 3 * lean + 2)[:, None]
    default = {
        "maker": [("Boeing", "Airbus", "Cessna & Co.")[i % 7 % 3] for i in range(clients)],
        "age": [float(i * 7 % 31) for i in range(clients)],
        "code": [f"N{i:03d}" for i in range(clients)],
        "one": ["only"] * clients,
    }
    known = {
        name: values if isinstance(values, dict) else dict(enumerate(values))
        for name, values in (default | attributes).items()
    }
    return client_table(
        x, y, client, task="binary", c=c, categories=(Category("k", 9),), unseen=[u for u in UNSEEN if u < clients],
        holdout_fraction=holdout, attributes=known,
    )  # fmt: skip


@contextmanager
def factory(make: Any = people) -> Iterator[None]:
    """Where `data.factory: FACTORY` finds `make`."""
    module = ModuleType(FACTORY.partition(":")[0])
    module.make = make  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        del sys.modules[module.__name__]


def divided(clusters: dict[str, Any], **sections: Any) -> sp.Spec:
    """A tiny spec on the data of FACTORY with these clusters; without `only`, none is chosen, as in an ensemble."""
    mapping = {"data": {"kind": "custom", "factory": FACTORY}, "population": {"size": "data"}} | sections
    spec = sp.parse(tiny(**mapping, clusters={"only": "all"} | clusters))
    if "only" in clusters:
        return spec
    return spec.model_copy(update={"clusters": spec.clusters.model_copy(update={"only": None})})
