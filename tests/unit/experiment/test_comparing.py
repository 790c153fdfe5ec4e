"""A comparison of two arms over two seeds in this process: runs, parent, report, ratios."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import pytest

from atoll.errors import InfrastructureError, SpecError
from atoll.experiment import ComparisonRun, compare_runs, load, outcome_dict, run, run_comparison, write_comparison
from atoll.tracking import MlflowTracker, child_runs, compare
from atoll.tracking.mlflow_tracker import client as mlflow_client
from tiny_kit import tiny

ARMS = {"fedbuff": {}, "single": {"schedule.buffer_goal": 1, "stop.server_steps": 20}}


@pytest.fixture(scope="module")
def uri(_mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copy(_mlflow_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def spec_of(uri: str, **sections) -> dict:
    comparison = {"seeds": [1, 2], "arms": ARMS, "baseline": "single"}
    base = {
        "tracking": {"uri": uri, "experiment": "comparing"},
        "comparison": comparison,
        "stop": {"server_steps": 8, "target": {"metric": "loss", "value": 0.68}},
        "client": {"lr": 0.5, "batch_size": 4},
        "evaluation": {"every_steps": 1, "metrics": ["loss"]},
    }
    return tiny(**{**base, **sections})


@pytest.fixture(scope="module")
def finished(uri: str, folder: Path) -> ComparisonRun:
    seen = []

    def on_run(arm: str, number: int, total: int, spec):
        seen.append((arm, number, total, spec.seed))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atoll.experiment.finishing.plots", lambda *args, **options: {})  # a second per run
        found = run_comparison(spec_of(uri), on_run=on_run, runs_folder=folder)
    assert [(number, total) for _, number, total, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert {(arm, seed) for arm, _, _, seed in seen} == {(arm, seed) for arm in ARMS for seed in (1, 2)}
    return found


def test_every_arm_with_every_seed(finished: ComparisonRun, folder: Path) -> None:
    assert {(one.arm, one.seed) for one in finished.runs} == {(arm, seed) for arm in ARMS for seed in (1, 2)}
    assert len({one.model_digest for one in finished.runs}) == 4
    for one in finished.runs:
        assert load(one.run_id, folder) == one
        buffer = 1 if one.arm == "single" else 2
        assert one.client_updates == buffer * one.server_steps


def test_costs_and_ratios_are_those_of_the_runs(finished: ComparisonRun) -> None:
    found = finished.comparison
    assert found.baseline == "single"
    hours = {}
    for arm in found.arms:
        costs = []
        for one in finished.runs:
            if one.arm == arm.name:
                history = one.history()
                step = next((step for step, loss in history["eval/loss"] if loss <= 0.68), None)
                costs.append(math.inf if step is None else dict(history["sim/hours"]).get(step, 0.0))
        hours[arm.name] = sum(costs) / 2
        assert arm.costs["hours"].median == pytest.approx(hours[arm.name])
        assert arm.num_reached == sum(math.isfinite(cost) for cost in costs)
    assert all(0 < cost < math.inf for cost in hours.values()), "choose a target that both arms reach"
    fedbuff = next(arm for arm in found.arms if arm.name == "fedbuff")
    assert fedbuff.ratios["hours"] == pytest.approx(hours["fedbuff"] / hours["single"])


def test_the_report(finished: ComparisonRun) -> None:
    text = Path(finished.html).read_text()
    assert "<html" in text
    assert "data:image/png;base64," in text
    for arm in ARMS:
        assert arm in text
    rows = list(csv.DictReader(Path(finished.csv).read_text().splitlines()))
    assert len(rows) >= 2
    home = Path(finished.html).parent.parent
    assert (home / "spec.yaml").is_file()
    # The runs lie in the comparison's folder, by arm and seed, so that a comparison that goes on finds them.
    assert {Path(one.folder) for one in finished.runs} == {home / f"{arm}-s{seed}" for arm in ARMS for seed in (1, 2)}
    told = json.loads(json.dumps(outcome_dict(finished)))
    assert set(told["arms"]) == set(ARMS)
    assert len(told["runs"]) == 4


def test_the_parent_run_holds_them(finished: ComparisonRun, uri: str) -> None:
    store = mlflow_client(uri)
    assert store.get_run(finished.parent_run_id).info.status == "FINISHED"
    assert set(child_runs(uri, finished.parent_run_id)) == {one.run_id for one in finished.runs}
    kept = [item.path for item in store.list_artifacts(finished.parent_run_id)]
    assert kept


def test_the_parent_stands_for_its_runs_when_read_from_the_store(finished: ComparisonRun, uri: str) -> None:
    found = compare_runs([finished.parent_run_id], uri=uri)
    assert {arm.name: arm.ratios for arm in found.arms} == {arm.name: arm.ratios for arm in finished.comparison.arms}


def test_the_same_runs_compared_later(finished: ComparisonRun, uri: str, folder: Path) -> None:
    ids = [one.run_id for one in finished.runs]
    by_folder = compare_runs(ids, baseline="single", runs_folder=folder)
    by_store = compare_runs(ids, baseline="single", uri=uri)
    for again in (by_folder, by_store):
        assert [arm.ratios for arm in again.arms] == [arm.ratios for arm in finished.comparison.arms]
    other = compare_runs(ids, metric="loss", value=0.0, baseline="single", runs_folder=folder)
    assert [arm.num_reached for arm in other.arms] == [0, 0]
    assert compare([one.summary() for one in finished.runs], "single").target.key == "eval/loss"


def test_a_store_that_is_gone_at_the_end_does_not_fail_the_comparison(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*_) -> None:
        raise InfrastructureError("tracking store failed at closing the run: gone")

    monkeypatch.setattr("atoll.experiment.finishing.plots", lambda *args, **options: {})
    monkeypatch.setattr(MlflowTracker, "finish", gone)
    comparison = {"seeds": [1], "arms": ARMS, "baseline": "single"}
    found = run_comparison(spec_of(uri, comparison=comparison), runs_folder=tmp_path)
    assert Path(found.html).is_file()
    assert caplog.text.count("gone; the run's own folder holds everything") == 3


@pytest.mark.parametrize(
    ("target", "arm", "found"),
    [(None, {}, "none"), ({"metric": "loss", "value": 0.5}, {"stop.target.value": 0.4}, "loss 0")],
)
def test_arms_without_one_target_are_refused_before_they_train(
    uri: str, tmp_path: Path, target: dict | None, arm: dict, found: str
) -> None:
    comparison = {"seeds": [1], "arms": {"one": {}, "other": arm}, "baseline": "one"}
    spec = spec_of(uri, comparison=comparison, stop={"server_steps": 8, "target": target})
    with pytest.raises(SpecError, match=rf"stop\.target: got {found}.*; need one target for all arms"):
        run_comparison(spec, runs_folder=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_arms_that_plan_refuses_stop_the_comparison_before_it_starts(uri: str, tmp_path: Path) -> None:
    arms = {"small": {}, "big": {"runtime.memory_bytes": 100}}
    comparison = {"seeds": [1], "arms": arms, "baseline": "small"}
    with pytest.raises(Exception, match="memory_bytes"):
        run_comparison(spec_of(uri, comparison=comparison), runs_folder=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_report_that_cannot_be_written(finished: ComparisonRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SpecError, match=r"out: got .*; need a folder that may be written"):
        write_comparison(finished.comparison, tmp_path / "file", "title")


def test_compare_needs_two(folder: Path) -> None:
    with pytest.raises(SpecError, match="two runs or more"):
        compare_runs(["one"], runs_folder=folder)


def test_a_comparison_is_not_one_run(uri: str, tmp_path: Path) -> None:
    """`run` would ignore the arms silently."""
    with pytest.raises(SpecError, match=r"comparison: got arms .*; need null for a single run"):
        run(spec_of(uri), runs_folder=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
