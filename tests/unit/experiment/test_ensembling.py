"""An ensemble from its spec to its judgement, in this process: what is trained, kept, told, and done again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import atoll
from atoll import spec as sp
from atoll.errors import InfrastructureError, MembersFailed, Problem, SpecError
from atoll.experiment import EnsembleRun, list_runs, plan_ensemble, resume, resume_ensemble
from atoll.experiment.records import COMPARISON_FILE, ENSEMBLE_FILE
from atoll.tracking.mlflow_tracker import client as mlflow_client
from tiny_kit import tiny

CLUSTERS = {"kind": "data_volume", "count": 3}
EVALUATION = {"every_steps": 3, "metrics": ["loss", "auc"], "server_share": 0.4}
CONTROLS = {"single": {}, "equal_updates": None, "random": None, "large": None}


pytestmark = pytest.mark.usefixtures("_no_plots")


@pytest.fixture
def uri(_mlflow_template: Path, tmp_path: Path) -> str:
    shutil.copy(_mlflow_template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def spec_of(uri: str, **sections) -> sp.Spec:
    common = {
        "clusters": CLUSTERS,
        "evaluation": EVALUATION,
        "ensemble": {"controls": CONTROLS, "resamples": 50},
        "tracking": {"uri": uri, "experiment": "fel"},
    }
    return sp.parse(tiny(**{**common, **sections}))


def told(uri: str, found: EnsembleRun) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Rows in MLflow of every run under the parent, by run name; wall_* without their values."""
    store = mlflow_client(uri)
    experiment = store.get_experiment_by_name("fel").experiment_id
    runs = store.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{found.parent_run_id}'")
    return {
        run.info.run_name: {
            key: sorted(
                (row.step, 0.0 if key.startswith("wall_") else row.value)
                for row in store.get_metric_history(run.info.run_id, key)
            )
            for key in run.data.metrics
        }
        for run in runs
    }


def test_members_arms_and_parent_and_again_without_a_row_more(uri: str, tmp_path: Path) -> None:
    groups: list[list[str]] = []

    def note(label: str, runs: Sequence[tuple[str, sp.Spec]]) -> None:
        groups.append([name for name, _ in runs])

    found = atoll.run_ensemble(spec_of(uri), key="fel", on_group=note, runs_folder=tmp_path)
    assert groups == [["single-s3"], ["q0-s3", "q1-s3", "q2-s3"]]
    assert set(found.runs) == {"single-s3", "q0-s3", "q1-s3", "q2-s3"}
    rows = told(uri, found)
    assert sorted(rows) == sorted(
        [*(f"tiny-{name}" for name in found.runs), "tiny-ensemble-s3-joined", "tiny-single-s3-joined"]
    )
    joined = rows["tiny-ensemble-s3-joined"]
    assert joined["ens/models"] == [(0, 3.0)]
    assert {"ens/auc", "ens/mean/auc", "leaf/q1/auc", "gain/auc"} <= set(joined)
    assert Path(found.html).is_file()
    assert Path(found.csv).is_file()
    clients = [
        set(pq.read_table(tmp_path / "fel" / name / "timeline.parquet")["client_id"].to_pylist())
        for name in ("q0-s3", "q1-s3", "q2-s3")
    ]
    assert all(clients)
    assert len(set.union(*clients)) == sum(map(len, clients)), "no client's update reaches two leaves"
    kept = json.loads((tmp_path / "fel" / ENSEMBLE_FILE).read_text())
    again = atoll.run_ensemble(spec_of(uri), key="fel", runs_folder=tmp_path)
    assert again.parent_run_id == found.parent_run_id
    assert told(uri, found) == rows
    assert json.loads((tmp_path / "fel" / ENSEMBLE_FILE).read_text()) == kept


def test_a_leaf_alone_has_the_bits_that_it_has_inside(uri: str, tmp_path: Path) -> None:
    found = atoll.run_ensemble(spec_of(uri), runs_folder=tmp_path)
    for cluster in ("q0", "q2"):
        alone = spec_of(uri, ensemble=None, clusters={**CLUSTERS, "only": cluster})
        run, inside = atoll.run(alone, runs_folder=tmp_path), found.runs[f"{cluster}-s3"]
        assert (run.model_digest, run.plan_digest, run.timeline_digest) == (
            inside.model_digest, inside.plan_digest, inside.timeline_digest,
        )  # fmt: skip
        assert run.metrics == inside.metrics


def test_one_cluster_and_no_over_arch_is_plain_federated_learning(uri: str, tmp_path: Path) -> None:
    """n = 1, the acceptance check: the ensemble's model and quality are those of the run on all clients."""
    plain = atoll.run(spec_of(uri, ensemble=None, clusters=None), runs_folder=tmp_path)
    one = {"over_arch": {"kind": "mean"}, "controls": CONTROLS, "resamples": 0}
    found = atoll.run_ensemble(spec_of(uri, ensemble=one, clusters=None), runs_folder=tmp_path)
    (run,) = found.runs.values()
    assert (run.model_digest, run.plan_digest) == (plain.model_digest, plain.plan_digest)
    metrics = found.judgement.metrics_of("ensemble-s3")
    # the run's logits come from NumPy, as its clients train compiled, the judgement's from torch
    assert metrics["ens/auc"] == pytest.approx(plain.metrics["eval/auc"], rel=1e-6)
    assert metrics["ens/loss"] == pytest.approx(plain.metrics["eval/loss"], rel=1e-6)


def test_a_leaf_that_fails_is_named_and_goes_on_alone(uri: str, tmp_path: Path, monkeypatch) -> None:
    """One leaf has no failures left to bear; the others finish, and are not trained again."""
    fails = True
    import atoll.experiment.building as building

    build = building.build_learner

    class Failing:
        def __init__(self, inner) -> None:
            self._inner = inner

        def train(self, block, versions):
            (found,) = self.train_all([block], versions)
            return found

        def train_all(self, blocks, versions):
            if fails:
                raise RuntimeError("no such sensor")
            return self._inner.train_all(blocks, versions)

    def learner(spec: sp.Spec, identity: str):
        found = build(spec, identity)
        return Failing(found) if spec.clusters.only == "q1" else found

    monkeypatch.setattr(building, "build_learner", learner)
    with pytest.raises(MembersFailed, match=r"1 of 4 runs did not finish(.|\n)*q1-s3: client work raised") as caught:
        atoll.run_ensemble(spec_of(uri), key="fel", runs_folder=tmp_path)
    assert any("atoll resume" in note for note in caught.value.__notes__)
    assert not (tmp_path / "fel" / ENSEMBLE_FILE).exists()
    fails = False
    done = (tmp_path / "fel" / "q0-s3" / "result.json").stat().st_mtime_ns
    alone = resume(tmp_path / "fel" / "q1-s3", runs_folder=tmp_path)
    found = resume_ensemble(tmp_path / "fel")
    assert (tmp_path / "fel" / "q0-s3" / "result.json").stat().st_mtime_ns == done
    assert found.runs["q1-s3"].model_digest == alone.model_digest
    calm = atoll.run_ensemble(spec_of(uri), runs_folder=tmp_path)
    assert calm.judgement.as_dict() == found.judgement.as_dict()


def test_a_plan_tells_what_every_member_would_do(uri: str) -> None:
    planned = plan_ensemble(spec_of(uri))
    assert set(planned.reports) == {"single-s3", "q0-s3", "q1-s3", "q2-s3"}
    assert json.loads(json.dumps(planned.as_dict()))["members"]["q0-s3"]["client_updates"] == 14


def test_everything_that_is_wrong_is_told_before_anything_starts(uri: str, tmp_path: Path) -> None:
    wrong = spec_of(uri, schedule={"kind": "async", "concurrency": 30, "buffer_goal": 2})
    with pytest.raises(SpecError) as caught:
        atoll.run_ensemble(wrong, runs_folder=tmp_path / "runs")
    told = [str(problem) for problem in caught.value.problems]
    assert len(told) == 3
    assert all("of 20 clients" in text for text in told)
    assert not (tmp_path / "runs").exists()


def test_an_ensemble_is_neither_a_run_nor_a_comparison(uri: str, tmp_path: Path) -> None:
    comparison = {"seeds": [1], "arms": {"a": {}}, "baseline": "a"}
    with pytest.raises(SpecError, match=r"ensemble: got an ensemble.*run_ensemble"):
        atoll.run(spec_of(uri), runs_folder=tmp_path)
    with pytest.raises(SpecError, match=r"ensemble: got an ensemble.*run_ensemble"):
        atoll.run_comparison(spec_of(uri, comparison=comparison), runs_folder=tmp_path)


def test_a_key_belongs_to_one_spec(uri: str, tmp_path: Path) -> None:
    atoll.run_ensemble(spec_of(uri), key="fel", runs_folder=tmp_path)
    with pytest.raises(SpecError, match="the client that it was begun with"):
        atoll.run_ensemble(spec_of(uri, client={"lr": 0.2, "batch_size": 4}), key="fel", runs_folder=tmp_path)
    assert json.loads((tmp_path / "fel" / COMPARISON_FILE).read_text())["num_runs"] == 4


def test_over_archs_are_never_measured_on_what_they_were_fitted_on(uri: str, tmp_path: Path) -> None:
    from atoll.data import open_data
    from atoll.experiment.splitting import server_rows, test_rows
    from atoll.experiment.wiring import source_of

    found = atoll.run_ensemble(spec_of(uri), runs_folder=tmp_path)
    spec = spec_of(uri)
    data = open_data(source_of(spec))
    server, test = server_rows(spec, data), test_rows(spec, data)
    assert not set(np.unique(server.client)) & set(np.unique(test.client))
    arm = found.judgement.as_dict()["arms"]["ensemble-s3"]
    assert arm["test_rows"] == test.num_rows
    assert arm["test_clients"] == len(np.unique(test.client))


def test_clients_fit_the_over_arch_when_the_server_has_no_data(uri: str, tmp_path: Path) -> None:
    """Leaves frozen; the over-arch of every arm is an ordinary run, begun once."""
    fit = {
        "kind": "federated",
        "client": {"lr": 0.5, "batch_size": 8},
        "schedule": {"kind": "async", "concurrency": 8, "buffer_goal": 4},
        "aggregation": {"kind": "fedbuff"},
        "stop": {"server_steps": 20},
    }
    ensemble = {"over_arch": {"kind": "logistic"}, "fit": fit, "controls": CONTROLS, "resamples": 0}
    evaluation = {**EVALUATION, "server_share": 0.0}
    spec = spec_of(uri, ensemble=ensemble, evaluation=evaluation)
    found = atoll.run_ensemble(spec, key="fel", runs_folder=tmp_path)
    arm = found.judgement.as_dict()["arms"]["ensemble-s3"]
    weights = np.array(arm["over_arch"]["arrays"]["layer0.weight"])
    assert weights.shape == (1, 3)
    assert np.abs(weights).max() > 0
    assert {path.name for path in (tmp_path / "fel").glob("over-arch-*")} == {
        "over-arch-ensemble-s3", "over-arch-single-s3",
    }  # fmt: skip
    (entry,) = list_runs(tmp_path)
    assert (entry.state, entry.step, entry.stop, entry.has_unpublished) == ("finished", 6, 6, False)
    rows = told(uri, found)
    again = resume_ensemble(tmp_path / "fel")
    assert again.judgement.as_dict() == found.judgement.as_dict()
    assert told(uri, again) == rows


def test_a_leaf_that_diverged_leaves_its_arm_out_of_a_federated_fit(uri: str, tmp_path: Path, monkeypatch) -> None:
    from atoll.experiment import federated_fit

    write = federated_fit.write_leaf_outputs

    def diverged(arm, *more):
        if arm.role == "ensemble":
            raise SpecError([Problem("ensemble.fit", "3 rows of NaN", "finite outputs of leaves")])
        return write(arm, *more)

    monkeypatch.setattr(federated_fit, "write_leaf_outputs", diverged)
    fit = {
        "kind": "federated",
        "client": {"lr": 0.5, "batch_size": 8},
        "schedule": {"kind": "sync", "cohort": 4},
        "aggregation": {"kind": "fedavg"},
        "stop": {"server_steps": 2},
    }
    ensemble = {"over_arch": {"kind": "logistic"}, "fit": fit, "controls": CONTROLS, "resamples": 0}
    found = atoll.run_ensemble(spec_of(uri, ensemble=ensemble), runs_folder=tmp_path).judgement.as_dict()
    assert set(found["arms"]) == {"single-s3"}
    assert "not fitted" in found["left_out"]["ensemble-s3"]


def test_what_mlflow_was_not_told_is_seen_and_told_by_resuming(uri: str, tmp_path: Path, monkeypatch) -> None:
    from atoll.experiment import ensembling

    def away(*arguments):
        raise InfrastructureError("the tracking service is away")

    with monkeypatch.context() as patch:
        patch.setattr(ensembling, "_tell", away)
        found = atoll.run_ensemble(spec_of(uri), key="fel", runs_folder=tmp_path)
    (entry,) = list_runs(tmp_path)
    assert entry.state == "finished"
    assert entry.has_unpublished
    assert "tiny-ensemble-s3-joined" not in told(uri, found)
    again = resume_ensemble(tmp_path / "fel")
    assert "tiny-ensemble-s3-joined" in told(uri, again)
    (entry,) = list_runs(tmp_path)
    assert not entry.has_unpublished
