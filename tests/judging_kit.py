"""Clients of two groups, and ensembles that are judged without being trained."""

from __future__ import annotations

from typing import Any

import numpy as np

from atoll import spec as sp
from atoll.data import ClientData, ClientTable, client_table, open_data
from atoll.experiment.modelling import first_version
from atoll.experiment.study import Study
from atoll.experiment.wiring import source_of
from atoll.messages import ModelVersion
from tiny_kit import tiny

__all__ = ["data_of", "ensemble_spec", "grouped", "trained"]


def grouped(clients: int = 60, rows: int = 8) -> ClientTable:
    """Clients 0, 2, 4 … are red, the others blue; a third of them never trains."""
    draw = np.random.default_rng(0)
    client = np.repeat(np.arange(clients), rows)
    x = draw.normal(size=(clients * rows, 4)).astype(np.float32)
    sign = np.where(client % 2 == 0, 1.0, -1.0)
    y = (draw.random(len(x)) < 1 / (1 + np.exp(-2 * x[:, 0] - sign * x[:, 1]))).astype(np.int64)
    return client_table(
        x,
        y,
        client,
        task="binary",
        unseen=list(range(0, clients, 3)),
        holdout_fraction=0.25,
        attributes={"group": {number: "red" if number % 2 == 0 else "blue" for number in range(clients)}},
    )


_OPENED: dict[str, ClientData] = {}


def data_of(spec: sp.Spec) -> ClientData:
    name = repr(source_of(spec))
    if name not in _OPENED:
        _OPENED[name] = open_data(source_of(spec))
    return _OPENED[name]


def ensemble_spec(**sections: Any) -> sp.Spec:
    base: dict[str, Any] = {
        "clusters": {"kind": "attribute", "column": "group"},
        "ensemble": {"over_arch": {"kind": "logistic"}, "resamples": 100},
        "evaluation": {"metrics": ["loss", "auc"], "server_share": 0.4, "split": "unseen"},
        "comparison": {"seeds": [1, 2], "baseline": "a", "arms": {"a": {}}},
        "data": {"kind": "custom", "factory": "judging_kit:grouped"},
        "population": {"size": "data"},
        "schedule": {"kind": "async", "concurrency": 4, "buffer_goal": 2},
    }
    return sp.parse(tiny(**{**base, **sections}))


def trained(study: Study) -> dict[str, ModelVersion]:
    """Weights in place of trained ones: the first version, moved by a keyed step of its own for every member."""
    found = {}
    for number, member in enumerate(study.members):
        first = first_version(member.spec, data_of(member.spec).shape)
        draw = np.random.default_rng(number)
        dense = first.dense + draw.normal(size=first.dense.size).astype(np.float32) * np.float32(0.3)
        found[member.name] = ModelVersion(7, dense, first.tables)
    return found
