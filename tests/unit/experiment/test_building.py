"""What a pool builds for itself: an evaluator that knows the test rows' clusters."""

from __future__ import annotations

import numpy as np
import pytest

from atoll import spec as sp
from atoll.data import open_data
from atoll.evaluation import Evaluation
from atoll.experiment import building, splitting
from atoll.experiment.clustering import clustering_of
from atoll.experiment.modelling import first_version
from atoll.experiment.wiring import source_of
from cluster_kit import divided, factory
from tiny_kit import tiny

EVALUATION = {"split": "unseen", "metrics": ["loss", "auc"], "per_client": False}
MAKERS = {"kind": "attribute", "column": "maker"}


def evaluated(spec: sp.Spec) -> tuple[Evaluation, dict[str, int]]:
    """Of the first version; and test rows per cluster."""
    data = open_data(source_of(spec))
    found = building.build_evaluator(spec, data.identity).evaluate(first_version(spec, data.shape))
    clustering = clustering_of(spec, data)
    if clustering.of_client is None:
        return found, {}
    numbers = clustering.of_client[splitting.test_rows(spec, data).client]
    return found, {name: int((numbers == index).sum()) for index, name in enumerate(clustering.names)}


@pytest.mark.parametrize("only", [{}, {"only": "Airbus"}], ids=["ensemble", "leaf"])
@pytest.mark.parametrize("split", ["seen", "unseen"])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_every_cluster_is_measured_on_its_own_test_rows(only: dict[str, str], split: str, share: float) -> None:
    with factory():
        evaluation = EVALUATION | {"split": split, "server_share": share}
        found, rows = evaluated(divided(MAKERS | only, evaluation=evaluation))
    losses = {name: found.metrics.get(f"eval/cluster/{name}/loss") for name in rows}
    assert sum(rows.values()) > 0
    assert {name for name, loss in losses.items() if loss is not None} == {
        name for name, count in rows.items() if count
    }
    weighted = sum(rows[name] * loss for name, loss in losses.items() if loss is not None) / sum(rows.values())
    assert weighted == pytest.approx(found.metrics["eval/loss"], rel=1e-12)


def test_without_a_table_of_clients_there_are_no_groups() -> None:
    for clusters in (None, {"kind": "random", "count": 3, "only": "r1"}):
        found, _ = evaluated(sp.parse(tiny(clusters=clusters)))
        assert not [name for name in found.metrics if "cluster" in name]
        assert np.isfinite(found.metrics["eval/loss"])
