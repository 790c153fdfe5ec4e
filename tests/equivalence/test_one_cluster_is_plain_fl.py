"""One cluster that holds everyone is plain federated learning, bit for bit, whatever rule made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atoll import spec as sp
from atoll.experiment import Run, run
from cluster_kit import FACTORY, factory
from tiny_kit import tiny

RULES: dict[str, dict[str, Any]] = {
    "single by name": {"kind": "single", "only": "all"},
    "random": {"kind": "random", "count": 1, "only": "r0"},
    "random of a size": {"kind": "random", "sizes": [56], "only": "r0"},
    "attribute": {"kind": "attribute", "column": "one", "only": "only"},
    "attribute joined": {"kind": "attribute", "column": "maker", "min_clients": 99, "only": "other"},
    "data volume": {"kind": "data_volume", "count": 1, "only": "q0"},
    "k-means": {"kind": "kmeans", "count": 1, "only": "c0"},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "async": {"schedule": {"kind": "async", "concurrency": 8, "buffer_goal": 2}, "aggregation": {"kind": "fedbuff"}},
    "sync": {
        "schedule": {"kind": "sync", "cohort": 6, "over_selection": 0.3}, "aggregation": {"kind": "fedavg"},
    },
}  # fmt: skip


def trained(uri: str, folder: Path, clusters: dict[str, Any], **sections: Any) -> Run:
    mapping = tiny(
        data={"kind": "custom", "factory": FACTORY}, population={"size": "data"}, clusters=clusters,
        stop={"server_steps": 4}, evaluation={"every_steps": 4, "metrics": ["loss"], "split": "seen"},
        tracking={"uri": uri}, **sections,
    )  # fmt: skip
    return run(sp.parse(mapping), runs_folder=folder)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_one_cluster_has_the_bits_of_plain_fl(kind: str, mlflow_uri: str, tmp_path: Path) -> None:
    with factory():
        plain = trained(mlflow_uri, tmp_path, {"kind": "single"}, **SCHEDULES[kind])
        for name, clusters in RULES.items():
            one = trained(mlflow_uri, tmp_path, clusters, **SCHEDULES[kind])
            assert (one.model_digest, one.timeline_digest) == (plain.model_digest, plain.timeline_digest), name
        # and a part of it has not
        part = trained(mlflow_uri, tmp_path, {"kind": "random", "count": 2, "only": "r0"}, **SCHEDULES[kind])
        assert part.model_digest != plain.model_digest
