"""What a pool builds for itself: an evaluator that knows the test rows' clusters, without torch where that goes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atoll import spec as sp
from atoll.data import open_data
from atoll.evaluation import Evaluation, LaneForward
from atoll.experiment import building, splitting
from atoll.experiment.clustering import clustering_of
from atoll.experiment.modelling import asked_of, first_version
from atoll.experiment.wiring import source_of
from atoll.models import PlainModel
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


@pytest.mark.parametrize(
    ("model", "kernel", "kind"),
    [
        ({"kind": "mlp", "hidden": [8]}, "auto", PlainModel),
        ({"kind": "logistic"}, "compiled", PlainModel),
        ({"kind": "mlp", "hidden": [8]}, "lanes", LaneForward),
    ],
)
def test_evaluation_is_without_torch_where_training_is(model: dict[str, object], kernel: str, kind: type) -> None:
    spec = sp.parse(tiny(model=model, runtime={"kind": "inline", "kernel": kernel}))
    assert type(asked_of(spec, open_data(source_of(spec)).shape)) is kind


INLINE = """
import sys, atoll
sys.path.insert(0, sys.argv[1])
from tiny_kit import tiny

seen = []
atoll.run(tiny(), on_progress=lambda figures: seen.append("torch" in sys.modules))
print(len(seen) > 3, any(seen), "torch" in sys.modules)
"""


def test_a_run_of_a_compiled_model_loads_torch_nowhere(tmp_path: Path, mlflow_uri: str) -> None:
    """Version 0, clients, evaluation, checkpoint, report."""
    tests = str(Path(__file__).parents[2])
    code = [sys.executable, "-c", INLINE, tests]
    done = subprocess.run(code, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True False False"


def test_what_every_actor_loads_is_light() -> None:
    heavy = ("torch", "scipy", "pandas", "matplotlib", "mlflow", "pyarrow", "numba")
    code = (
        f"import sys, atoll.runtime.actors, atoll.experiment.building; print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
