"""Models of the field: what they accept, and what they refuse of themselves and of the data."""

from __future__ import annotations

from typing import Any

import pytest

from atoll import spec as sp
from atoll.errors import SpecError
from atoll.experiment.modelling import settings_of
from atoll.models import Dlrm, WideDeep

BASE: dict[str, Any] = {
    "name": "field",
    "data": {"kind": "flights"},
    "client": {"lr": 0.1},
    "schedule": {"kind": "sync", "cohort": 10},
    "aggregation": {"kind": "fedavg"},
    "stop": {"server_steps": 5},
}
PARQUET = {"kind": "parquet", "path": "x.parquet", "client_column": "u", "label_column": "y", "task": "binary"}
MOVIES = {"kind": "movielens", "history": 5}


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ({"kind": "wide_deep"}, WideDeep((64,), 8)),
        ({"kind": "wide_deep", "hidden": [8, 4], "embedding_dim": 2}, WideDeep((8, 4), 2)),
        ({"kind": "dlrm"}, Dlrm(16, (16,), (256,))),
        ({"kind": "dlrm", "embedding_dim": 8}, Dlrm(8, (8,), (256,))),
        ({"kind": "dlrm", "embedding_dim": 8, "bottom": [32, 8], "top": [9]}, Dlrm(8, (32, 8), (9,))),
    ],
)
def test_settings(model: dict[str, Any], settings: Dlrm | WideDeep) -> None:
    spec = sp.parse({**BASE, "model": model})
    assert settings_of(spec) == settings
    assert sp.parse(sp.to_dict(spec)) == spec


def test_a_history_where_the_data_has_one() -> None:
    spec = sp.parse({**BASE, "data": MOVIES, "model": {"kind": "dlrm", "history": True}})
    assert settings_of(spec) == Dlrm(history=True)


@pytest.mark.parametrize(
    ("model", "data", "told"),
    [
        ({"kind": "dlrm"}, {"kind": "shakespeare"}, "model.kind: got dlrm with data.kind shakespeare; need data.kind"),
        ({"kind": "wide_deep"}, {"kind": "arrays", "path": "x.npz"}, "got wide_deep with data.kind arrays"),
        ({"kind": "dlrm"}, {"kind": "synthetic"}, "model.kind: got dlrm without data.categories; need data with"),
        ({"kind": "wide_deep"}, PARQUET, "model.kind: got wide_deep without data.categories"),
        (
            {"kind": "dlrm", "bottom": [16, 8]},
            {"kind": "flights"},
            r"model.bottom: got \[16, 8\]; need a last layer as",
        ),
        ({"kind": "dlrm", "history": True}, {"kind": "flights"}, "model.history: got true with data.kind flights"),
        ({"kind": "dlrm", "history": True}, {"kind": "movielens"}, "model.history: got true with data.kind movielens"),
        ({"kind": "dlrm", "top": []}, {"kind": "flights"}, "model.top"),
        ({"kind": "dlrm", "embedding_dim": 0}, {"kind": "flights"}, "model.embedding_dim"),
    ],
)
def test_refusals(model: dict[str, Any], data: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told) as caught:
        sp.parse({**BASE, "data": data, "model": model, "population": {"size": 100}})
    assert len([problem for problem in caught.value.problems if problem.path.startswith("model")]) == 1
