"""All arms alike, on rows that nothing was fitted on: what is measured, related, left out, and shown."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll import aggregation as agg
from atoll import spec as sp
from atoll.evaluation import Evaluator, auc, outputs
from atoll.evaluation.bootstrap import QUALITIES
from atoll.experiment import splitting
from atoll.experiment.building import build_evaluator
from atoll.experiment.judging import Judgement, judge, write_report
from atoll.experiment.modelling import lane_model_of
from atoll.experiment.study import Study, study_of
from atoll.messages import ModelVersion
from judging_kit import data_of, ensemble_spec, trained


def judged(spec: sp.Spec) -> tuple[Study, dict[str, ModelVersion], Judgement]:
    study = study_of(spec, data_of)
    models = trained(study)
    updates = {member.name: 10 for member in study.members}
    return study, models, judge(study, data_of, models, updates)


@pytest.fixture(scope="module")
def found() -> tuple[Study, dict[str, ModelVersion], Judgement]:
    return judged(ensemble_spec())


def test_every_arm_is_judged_alike(found: tuple[Study, dict[str, ModelVersion], Judgement]) -> None:
    study, models, judgement = found
    assert [arm.name for arm in judgement.arms] == [arm.name for arm in study.arms]
    assert judgement.left_out == {}
    for arm, own in zip(study.arms, judgement.arms, strict=True):
        data = data_of(arm.spec)
        test, server = splitting.test_rows(arm.spec, data), splitting.server_rows(arm.spec, data)
        said = []
        for part in (test, server):
            members = [next(one for one in study.members if one.name == name).spec for name in arm.members]
            rows = [
                outputs(lane_model_of(spec, data.shape), models[name], part.arrays, kind="logits")
                for name, spec in zip(arm.members, members, strict=True)
            ]
            said.append(np.stack(rows, axis=1))
        over_arch = agg.fit(agg.Logistic(1.0), said[1], server.arrays["y"], arm.seed)
        assert over_arch.digest == own.over_arch.digest == judgement.over_archs[arm.name].digest
        assert own.joined["auc"] == pytest.approx(auc(test.arrays["y"], over_arch.apply(said[0])))
        assert own.mean["auc"] == pytest.approx(auc(test.arrays["y"], said[0][:, :, 0].mean(1)))
        assert own.median["auc"] == pytest.approx(auc(test.arrays["y"], np.median(said[0][:, :, 0], 1)))
        assert not set(server.client) & set(test.client)
        assert (own.test_rows, own.test_clients) == (test.num_rows, len(set(test.client)))


def test_sums_of_bytes_and_updates(found: tuple[Study, dict[str, ModelVersion], Judgement]) -> None:
    _, models, judgement = found
    for arm in judgement.arms:
        sizes = [models[leaf.member].dense.nbytes for leaf in arm.leaves]
        assert (arm.device_bytes, arm.capacity_bytes, arm.updates) == (max(sizes), sum(sizes), 10 * len(sizes))
    large = next(arm for arm in judgement.arms if arm.role == "large")
    ensemble = next(arm for arm in judgement.arms if arm.role == "ensemble")
    assert large.capacity_bytes >= ensemble.capacity_bytes


def test_gains_are_over_the_single_model_of_the_same_seed(
    found: tuple[Study, dict[str, ModelVersion], Judgement],
) -> None:
    _, _, judgement = found
    arms = {arm.name: arm for arm in judgement.arms}
    for arm in judgement.arms:
        if arm.role == "single":
            assert arm.gain == {}
            continue
        base = arms[arm.baseline or ""]
        assert (base.role, base.seed) == ("single", arm.seed)
        assert arm.gain["auc"] == pytest.approx(arm.joined["auc"] / base.joined["auc"] - 1)
        assert arm.gain["loss"] == pytest.approx(1 - arm.joined["loss"] / base.joined["loss"])
    assert set(judgement.gains) == {arm.label for arm in judgement.arms}
    for label, ways in judgement.gains.items():
        for name in QUALITIES:
            gain = ways["joined"][name]
            assert len(gain.by_seed) == 2
            assert gain.low <= gain.value <= gain.high or label.startswith("single"), (label, gain)


def test_clusters_are_measured_on_their_own_rows(found: tuple[Study, dict[str, ModelVersion], Judgement]) -> None:
    _, _, judgement = found
    for arm in judgement.arms:
        assert set(arm.in_clusters) == {"red", "blue"}
    ensemble = next(arm for arm in judgement.arms if arm.role == "ensemble")
    assert sum(cluster.test_rows for cluster in ensemble.clusters) == ensemble.test_rows
    share = {cluster.name: cluster.test_rows / ensemble.test_rows for cluster in ensemble.clusters}
    joined = sum(share[name] * ensemble.in_clusters[name]["loss"] for name in share)
    assert joined == pytest.approx(ensemble.joined["loss"])
    for leaf in ensemble.leaves:
        assert set(leaf.at_home) == set(QUALITIES)
    drawn = next(arm for arm in judgement.arms if arm.role == "random")
    assert all(not leaf.at_home for leaf in drawn.leaves)


def test_one_leaf_joined_by_a_mean_is_the_single_model() -> None:
    spec = ensemble_spec(clusters={"kind": "single"}, ensemble={"over_arch": {"kind": "mean"}}, comparison=None)
    study, models, judgement = judged(spec)
    single, ensemble = (next(arm for arm in judgement.arms if arm.role == role) for role in ("single", "ensemble"))
    assert single.joined == ensemble.joined
    assert ensemble.gain == dict.fromkeys(QUALITIES, 0.0)
    (member,) = study.members
    evaluator: Evaluator = build_evaluator(member.spec, data_of(spec).identity)
    assert ensemble.joined["auc"] == evaluator.evaluate(models[member.name]).metrics["eval/auc"]


def test_an_arm_without_all_its_models_is_left_out_and_named() -> None:
    study = study_of(ensemble_spec(), data_of)
    models = trained(study)
    gone = next(member.name for member in study.members if member.role == "leaf" and member.seed == 1)
    del models[gone]
    judgement = judge(study, data_of, models, {})
    (name,) = judgement.left_out
    assert gone in judgement.left_out[name]
    assert judgement.metrics_of(name) == {}
    label = next(arm.label for arm in study.arms if arm.name == name)
    assert len(judgement.gains[label]["joined"]["auc"].by_seed) == 1


def test_the_table_of_clusters_knows_the_single_model_where_another_ensemble_is_left_out() -> None:
    arms = {"a": {}, "b": {"client.lr": 0.3}}
    study = study_of(ensemble_spec(comparison={"seeds": [1], "baseline": "a", "arms": arms}), data_of)
    models = trained(study)
    del models[next(arm for arm in study.arms if arm.label == "b").members[0]]
    rows = judge(study, data_of, models, {}).report().clusters
    assert {row.label for row in rows} == {"a"}
    assert all(row.single for row in rows)


def test_a_leaf_that_says_nan_takes_its_own_arm_out_alone() -> None:
    study = study_of(ensemble_spec(comparison=None), data_of)
    models = trained(study)
    broken = next(member.name for member in study.members if member.role == "leaf")
    models[broken] = ModelVersion(7, np.full_like(models[broken].dense, np.nan))
    judgement = judge(study, data_of, models, {})
    assert list(judgement.left_out) == [arm.name for arm in study.arms if arm.role == "ensemble"]
    assert "NaN" in next(iter(judgement.left_out.values()))


def test_over_archs_from_elsewhere_are_taken() -> None:
    fit = {
        "kind": "federated",
        "client": {"lr": 0.1},
        "schedule": {"kind": "sync", "cohort": 2},
        "aggregation": {"kind": "fedavg"},
        "stop": {"server_steps": 2},
    }
    spec = ensemble_spec(ensemble={"over_arch": {"kind": "logistic"}, "fit": fit}, comparison=None)
    study = study_of(spec, data_of)
    models = trained(study)
    own = {
        arm.name: agg.OverArch("logistic", ((np.ones((1, len(arm.members))), np.zeros(1)),)) for arm in study.arms[1:]
    }
    judgement = judge(study, data_of, models, {}, own)
    assert list(judgement.left_out) == [study.arms[0].name]
    assert judgement.over_archs == own


def test_mean_is_not_fitted_and_not_told_twice() -> None:
    judgement = judged(ensemble_spec(ensemble={"over_arch": {"kind": "mean"}}, comparison=None))[2]
    ensemble = next(arm for arm in judgement.arms if arm.role == "ensemble")
    assert ensemble.joined == ensemble.mean
    assert [row.joined for row in judgement.rows if row.label == ensemble.label] == ["mean", "median"]


def test_penultimate_vectors() -> None:
    over_arch = {"kind": "mlp", "hidden": [3], "inputs": "penultimate"}
    judgement = judged(ensemble_spec(ensemble={"over_arch": over_arch}, comparison=None))[2]
    ensemble = next(arm for arm in judgement.arms if arm.role == "ensemble")
    assert ensemble.over_arch.layers[0][0].shape == (3, 2 * 8)
    assert np.isfinite(ensemble.joined["loss"])


def test_equal_arguments_equal_bits(found: tuple[Study, dict[str, ModelVersion], Judgement]) -> None:
    study, models, judgement = found
    again = judge(study, data_of, models, {member.name: 10 for member in study.members})
    assert json.dumps(again.as_dict()) == json.dumps(judgement.as_dict())


def test_plain_values_and_flat_metrics(found: tuple[Study, dict[str, ModelVersion], Judgement]) -> None:
    _, _, judgement = found
    plain = json.loads(json.dumps(judgement.as_dict(), allow_nan=False))
    assert plain["protocol"] == "our protocol"
    for arm in judgement.arms:
        told = plain["arms"][arm.name]
        arrays = {name: np.array(values) for name, values in told["over_arch"]["arrays"].items()}
        again = agg.OverArch.from_arrays(told["over_arch"]["kind"], arrays)
        assert again.digest == arm.over_arch.digest == told["over_arch"]["digest"]
        assert told["members"] == [leaf.member for leaf in arm.leaves]
        metrics = judgement.metrics_of(arm.name)
        assert all(np.isfinite(value) for value in metrics.values())
        for key in ("ens/auc", "ens/mean/auc", "ens/median/loss", "ens/cluster/red/auc", "ens/client_loss_p50"):
            assert key in metrics
        assert ("gain/auc" in metrics) == (arm.role != "single")
    leaf = judgement.metrics_of(next(arm.name for arm in judgement.arms if arm.role == "ensemble"))
    assert {"leaf/red/auc", "leaf/red/home/auc", "leaf/blue/auc"} <= set(leaf)


def test_the_report_says_whose_protocol_it_is(
    found: tuple[Study, dict[str, ModelVersion], Judgement], tmp_path: Path
) -> None:
    _, _, judgement = found
    page, table = write_report(judgement, tmp_path / "report", "fel <test>")
    text = page.read_text()
    assert text.count("our protocol") >= 4
    assert "&lt;test&gt;" in text
    assert "http" not in text.replace("http-equiv", "")
    lines = list(csv.DictReader(io.StringIO(table.read_text())))
    assert {line["protocol"] for line in lines} == {"our protocol"}
    assert len(lines) == len(judgement.rows)
    assert (tmp_path / "report" / "gain_auc.png").read_bytes().startswith(b"\x89PNG")
    assert judgement.rows[0].is_baseline
    assert sum(row.is_baseline for row in judgement.rows) == 1
    for note in judgement.notes:
        for fact in (
            "2 clusters by attribute group",
            "red",
            "bytes",
            "logistic over logits",
            "server rows",
            "seeds 1, 2",
        ):
            assert fact in note


def test_the_terminal_shows_arms_clusters_and_the_mark(
    found: tuple[Study, dict[str, ModelVersion], Judgement], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from rich.console import Console

    from atoll.cli import show_ensemble

    monkeypatch.setattr(show_ensemble, "_console", Console(width=80))
    show_ensemble.judgement(found[2])
    shown = capsys.readouterr().out
    assert shown.count("our protocol") == 2
    assert "baseline" in shown
    assert "random clusters: 2" in shown  # 80 characters suffice
    assert "…" not in shown
    assert "own leaf" in shown
