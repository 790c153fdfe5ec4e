"""`atoll.run` in this process: what it leaves behind, how it stops, what it refuses, how it fails."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from atoll import spec as sp
from atoll.errors import ClientWorkError, InfrastructureError, PlanError, SpecError
from atoll.experiment import Run, load, plan, run
from atoll.messages import ModelVersion, model_digest
from atoll.runtime.store import Commit, SqliteJournal
from atoll.tracking import MlflowTracker, RunSummary, Target, load_run
from atoll.tracking.mlflow_tracker import client as mlflow_client
from tiny_kit import tiny

pytestmark = pytest.mark.usefixtures("finished", "_no_plots")


@pytest.fixture(scope="module")
def uri(_mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for the module: nothing here reads another test's runs."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copy(_mlflow_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(uri: str, folder: Path) -> Run:
    """One run that most tests look at."""
    progress: list[dict[str, float]] = []
    tracking = {"uri": uri, "experiment": "running", "checkpoint_every_steps": 3}
    found = run(tiny(tracking=tracking), "seed=5", on_progress=progress.append, runs_folder=folder)
    assert progress[-1]["step"] == 7
    assert "eval/loss" in progress[-1]
    return found


def spec_of(uri: str, **sections) -> dict:
    return tiny(**{"tracking": {"uri": uri, "experiment": "running"}, **sections})


def statuses(uri: str, name: str) -> list[str]:
    store = mlflow_client(uri)
    experiment = store.get_experiment_by_name("running")
    found = store.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    return [one.info.status for one in found]


# ---- what a run leaves behind -------------------------------------------------------------------------------------


def test_the_folder_holds_everything(finished: Run) -> None:
    folder = Path(finished.folder)
    names = {path.name for path in folder.iterdir()}
    assert {"spec.yaml", "timeline.parquet", "journal.db", "model.safetensors", "result.json", "plots"} <= names
    assert len(list((folder / "plots").glob("*.png"))) >= 5
    spec = sp.load(folder / "spec.yaml")
    assert (spec.name, spec.seed, spec.client.lr) == ("tiny", 5, 0.1)
    rows = pq.read_table(folder / "timeline.parquet")
    step = rows.column("step").to_numpy()
    assert (step >= 0).sum() == finished.client_updates == 14
    assert step.max() == finished.server_steps - 1 == 6
    assert json.loads((folder / "result.json").read_text())["model_digest"] == finished.model_digest


def test_the_result(finished: Run) -> None:
    assert (finished.name, finished.arm, finished.seed, finished.reason) == ("tiny", "", 5, "server steps done")
    assert (finished.unpublished_rows, finished.lost_pools, finished.num_diverged) == (0, 0, 0)
    assert {"eval/loss", "eval/auc"} <= set(finished.metrics)
    assert 0 < finished.busy_s <= finished.wall_s
    assert 0 <= finished.overhead_share < 1
    assert finished.metrics["eval/loss"] == finished.history()["eval/loss"][-1][1]
    assert json.loads(json.dumps(finished.as_dict()))["run_id"] == finished.run_id


def test_plan_says_what_run_does(finished: Run, uri: str) -> None:
    report = plan(spec_of(uri), "seed=5")
    assert report.timeline_digest == finished.timeline_digest
    assert report.plan_digest == finished.plan_digest
    assert report.summary.client_updates == finished.client_updates
    assert report.summary.virtual_hours == pytest.approx(finished.virtual_hours, rel=1e-12)
    assert report.summary.mean_staleness == pytest.approx(finished.mean_staleness, rel=1e-12)
    assert plan(spec_of(uri), "seed=6").plan_digest != finished.plan_digest


def test_history_has_a_row_for_every_step(finished: Run) -> None:
    history = finished.history()
    for key in ("train/loss", "sim/hours", "sim/client_updates", "sim/uplink_bytes", "wall_s", "staleness/mean"):
        assert [step for step, _ in history[key]] == list(range(1, 8)), key
    assert [step for step, _ in history["eval/auc"]] == [0, 3, 6, 7]
    assert history["sim/client_updates"][-1][1] == 14
    assert history["sim/hours"][-1][1] == finished.virtual_hours


def test_mlflow_holds_params_tags_metrics_and_artifacts(finished: Run, uri: str) -> None:
    store = mlflow_client(uri)
    found = store.get_run(finished.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params["client.lr"] == "0.1"
    assert found.data.params["schedule.buffer_goal"] == "2"
    assert found.data.params["lanes"] == "4"
    for name in ("model", "timeline", "plan"):
        assert found.data.tags[f"fl.digest.{name}"] == getattr(finished, f"{name}_digest")
    assert found.data.tags["fl.seed"] == "5"
    for key, points in finished.history().items():
        logged = sorted((m.step, m.value) for m in store.get_metric_history(finished.run_id, key))
        assert logged == points, key
    kept = {item.path for item in store.list_artifacts(finished.run_id)}
    assert {"spec.yaml", "timeline.parquet", "model.safetensors", "plots", "checkpoints"} <= kept
    versions = [Path(item.path).name for item in store.list_artifacts(finished.run_id, "checkpoints")]
    assert sorted(versions) == [f"version-{v:06d}.safetensors" for v in (3, 6, 7)]


def test_the_store_alone_is_enough_to_compare(finished: Run, uri: str) -> None:
    stored, own = load_run(uri, finished.run_id), finished.summary()
    assert isinstance(own, RunSummary)
    assert stored.history["eval/auc"] == own.history["eval/auc"]
    assert (stored.seed, stored.arm, stored.digests) == (own.seed, own.arm, own.digests)


def test_the_weights_come_back(finished: Run) -> None:
    model = finished.model()
    assert isinstance(model, ModelVersion)
    assert model.version == 7
    assert model_digest(model) == finished.model_digest
    arrays = load_file(Path(finished.folder) / "model.safetensors")
    assert sum(array.size for array in arrays.values()) == model.dense.size
    assert all(array.dtype == np.float32 for array in arrays.values())


def test_the_same_spec_gives_the_same_bits_again(finished: Run, uri: str, tmp_path: Path) -> None:
    again = run(spec_of(uri, seed=5), runs_folder=tmp_path)
    assert again.model_digest == finished.model_digest
    assert again.run_id != finished.run_id
    assert science(again) == science(finished)
    assert run(spec_of(uri, seed=6), runs_folder=tmp_path).model_digest != finished.model_digest


def science(one: Run) -> dict:
    return {key: points for key, points in one.history().items() if not key.startswith("wall_")}


# ---- load ---------------------------------------------------------------------------------------------------------


def test_load_by_id_name_and_folder(finished: Run, folder: Path) -> None:
    assert load(finished.run_id, folder) == finished
    assert load(finished.run_id[:8], folder) == finished
    assert load("tiny", folder) == finished
    assert load(finished.folder) == finished
    assert load(Path(finished.folder), "nowhere") == finished


def test_load_says_what_there_is(finished: Run, folder: Path, tmp_path: Path) -> None:
    name = Path(finished.folder).name
    with pytest.raises(SpecError, match=f"run: got 'tinny'; need a run under .*{name} \\(tiny\\)"):
        load("tinny", folder)
    with pytest.raises(SpecError, match="none yet"):
        load("tiny", tmp_path)
    for number in (1, 2):
        twin = tmp_path / f"twin-{number}"
        twin.mkdir()
        shutil.copy(Path(finished.folder) / "result.json", twin)
        shutil.copy(Path(finished.folder) / "journal.db", twin)
        with SqliteJournal(twin / "journal.db") as journal:
            journal.claim()
            journal.commit(Commit(meta={"run_id": f"{number}{finished.run_id[1:]}"}))
    with pytest.raises(SpecError, match="several runs match"):
        load("tiny", tmp_path)
    assert load(f"2{finished.run_id[1:]}", tmp_path).folder == str(tmp_path / "twin-2")
    (twin / "result.json").unlink()
    with pytest.raises(
        SpecError, match=r"need a finished run. this one is not. atoll resume \S*twin-2 goes on with it"
    ):
        load("twin-2", tmp_path)


# ---- stopping -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "value"), [("loss", 0.6), ("auc", 0.7), ("accuracy", 0.62)])
def test_a_target_ends_the_run_in_its_own_direction(uri: str, tmp_path: Path, metric: str, value: float) -> None:
    evaluation = {"every_steps": 2, "metrics": ["loss", "accuracy", "auc"]}
    stop = {"server_steps": 400, "target": {"metric": metric, "value": value}}
    found = run(spec_of(uri, evaluation=evaluation, stop=stop, client={"lr": 0.5}), runs_folder=tmp_path)
    assert found.reason == "target reached"
    points = found.history()[f"eval/{metric}"]
    is_good = [number <= value if metric == "loss" else number >= value for _, number in points]
    assert is_good.index(True) == len(points) - 1, "stops at the first version that is good enough"
    assert found.server_steps == points[-1][0] < 400
    assert found.server_steps > 0
    assert found.summary().target == Target(metric, value)
    report = plan(spec_of(uri, client={"lr": 0.5}, evaluation=evaluation), f"stop.server_steps={found.server_steps}")
    assert report.timeline_digest == found.timeline_digest


def test_a_target_that_version_0_reaches_takes_no_step(uri: str, tmp_path: Path) -> None:
    stop = {"server_steps": 5, "target": {"metric": "auc", "value": 0.01}}
    found = run(spec_of(uri, stop=stop), runs_folder=tmp_path)
    assert (found.reason, found.server_steps, found.client_updates) == ("target reached", 0, 0)
    assert load(found.folder) == found


def test_a_target_out_of_reach_takes_all_steps(uri: str, tmp_path: Path) -> None:
    stop = {"server_steps": 5, "target": {"metric": "auc", "value": 1.5}}
    found = run(spec_of(uri, stop=stop), runs_folder=tmp_path)
    assert (found.reason, found.server_steps) == ("server steps done", 5)


def test_diverging_clients_are_counted(uri: str, tmp_path: Path) -> None:
    found = run(spec_of(uri, client={"lr": 1e30}), runs_folder=tmp_path)
    assert found.num_diverged == found.client_updates == 14
    diverged = [value for _, value in found.history()["train/diverged"]]
    assert sum(diverged) == found.num_diverged
    assert np.isfinite(found.model().dense).all()


def test_a_bound_counts_only_those_beyond_it(uri: str, tmp_path: Path) -> None:
    tight = {"kind": "fedbuff", "delta_bound": 0.12}
    found = run(spec_of(uri, aggregation=tight), runs_folder=tmp_path)
    assert 0 < found.num_diverged < found.client_updates


# ---- refusals before the start ------------------------------------------------------------------------------------


def refused(match: str, mapping: dict, tmp_path: Path, *overrides: str, error: type[Exception] = SpecError) -> None:
    with pytest.raises(error, match=match):
        run(mapping, *overrides, runs_folder=tmp_path / "runs")
    assert not (tmp_path / "runs").exists(), "a refused run leaves nothing behind"


def arrays(tmp_path: Path, num_classes: int) -> dict:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(40, 3)).astype(np.float32), np.arange(40) % num_classes
    np.savez(tmp_path / "d.npz", x=x, y=y)
    return {"kind": "arrays", "path": str(tmp_path / "d.npz"), "clients": 5}


def test_a_split_that_the_data_does_not_have(uri: str, tmp_path: Path) -> None:
    mapping = spec_of(uri, data=arrays(tmp_path, 2), population={"size": "data"}, evaluation={"metrics": ["loss"]})
    refused(r"evaluation\.split: got 'unseen'; need a split of this data with rows.*The data holds out:", mapping,
            tmp_path)  # fmt: skip


def test_auc_of_classes_that_only_the_data_knows(uri: str, tmp_path: Path) -> None:
    mapping = spec_of(uri, data=arrays(tmp_path, 3), population={"size": "data"})
    refused(r"evaluation\.metrics: got auc with 3 classes", mapping, tmp_path)


def test_a_plan_that_does_not_fit(uri: str, tmp_path: Path) -> None:
    refused("memory_bytes", spec_of(uri), tmp_path, "runtime.memory_bytes=100", error=PlanError)


def test_a_tracking_server_that_does_not_answer(tmp_path: Path) -> None:
    refused(r"tracking\.uri: got 'http://127\.0\.0\.1:9'", spec_of("http://127.0.0.1:9"), tmp_path)


def test_folders_that_cannot_be_written(uri: str, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    mapping = spec_of(uri, tracking={"uri": uri, "artifacts": str(in_the_way / "kept")})
    refused(r"tracking\.artifacts: got .*; need a folder that may be written. .* is not a folder", mapping, tmp_path)
    with pytest.raises(SpecError, match=r"runs: got .*; need a folder that may be written"):
        run(spec_of(uri), runs_folder=in_the_way)


def test_a_device_that_is_not_there(uri: str, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    refused(r"runtime\.device_class", spec_of(uri), tmp_path, "runtime.device_class=cuda")
    crowd = "runtime={kind: ray, workers: 5000}"
    refused(r"runtime\.workers: got 5000; need at most \d+ here", spec_of(uri), tmp_path, crowd)


# ---- failures on the way ------------------------------------------------------------------------------------------


class Raising(torch.nn.Module):
    """Fails on some batch of training: where gradients are on and a feature is large."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("no such sensor")
        return self.layer(x)


def test_client_code_that_raises_fails_the_run_with_its_story(uri: str, tmp_path: Path) -> None:
    model = {"kind": "custom", "factory": "test_running:Raising"}
    mapping = spec_of(uri, name="raising", model=model)
    with pytest.raises(ClientWorkError, match="RuntimeError: no such sensor") as caught:
        run(mapping, runs_folder=tmp_path)
    assert caught.value.exit_code == 3
    assert re.match(r"client \d+, task \d+, block 0, server steps \[1\], start versions \[0\]\n", caught.value.story)
    assert "in forward" in caught.value.story
    assert statuses(uri, "raising") == ["FAILED"]


class RaisingInEvaluation(Raising):
    """Fails where it is only asked."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            raise RuntimeError("not in the mood")
        return self.layer(x)


def test_a_model_that_raises_in_evaluation_fails_the_run_too(uri: str, tmp_path: Path) -> None:
    model = {"kind": "custom", "factory": "test_running:RaisingInEvaluation"}
    with pytest.raises(ClientWorkError, match="evaluation of version 0 raised RuntimeError: not in the mood"):
        run(spec_of(uri, name="moody", model=model), runs_folder=tmp_path)
    assert statuses(uri, "moody") == ["FAILED"]


def test_a_store_that_is_gone_at_the_end_does_not_fail_the_run(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*_) -> None:
        raise InfrastructureError("tracking store failed at storing x: gone")

    monkeypatch.setattr(MlflowTracker, "artifact", gone)
    monkeypatch.setattr("atoll.runtime.inline._DRAIN_S", 0.2)
    found = run(spec_of(uri, name="gone"), runs_folder=tmp_path)
    assert load("gone", tmp_path) == found
    assert model_digest(found.model()) == found.model_digest
    assert "gone; the run's own folder holds everything" in caplog.text


def test_a_store_that_is_gone_does_not_hide_why_a_run_failed(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_) -> None:
        raise InfrastructureError("tracking store failed at closing the run: gone")

    monkeypatch.setattr(MlflowTracker, "finish", gone)
    model = {"kind": "custom", "factory": "test_running:Raising"}
    with pytest.raises(ClientWorkError, match="no such sensor"):
        run(spec_of(uri, model=model), runs_folder=tmp_path)


def test_ctrl_c_keeps_what_there_is(uri: str, tmp_path: Path) -> None:
    def interrupt(figures: dict[str, float]) -> None:
        if 3 <= figures["step"] < 7:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"stopped at server step [3-6]; .* Go on with: atoll resume "):
        run(spec_of(uri, name="interrupted"), on_progress=interrupt, runs_folder=tmp_path)
    assert statuses(uri, "interrupted") == ["KILLED"]
    store = mlflow_client(uri)
    experiment = store.get_experiment_by_name("running")
    found = store.search_runs([experiment.experiment_id], "attributes.run_name = 'interrupted'")[0]
    assert found.data.metrics["sim/client_updates"] >= 6
    kept = pq.read_table(next(tmp_path.glob("interrupted-*")) / "timeline.parquet").column("step").to_numpy()
    assert (kept >= 0).sum() == found.data.metrics["sim/client_updates"]


def test_a_store_that_fails_on_the_way_does_not_stop_training(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics and checkpoints are refused; the run ends, says so, and keeps every row."""
    calls = []

    def fail(self, *args) -> None:
        calls.append(args)
        raise OSError("disk full")

    from atoll.experiment.facts import TrackerPublisher

    monkeypatch.setattr(TrackerPublisher, "publish", fail)
    monkeypatch.setattr(TrackerPublisher, "upload", fail)
    monkeypatch.setattr("atoll.runtime.publishing._BACK_OFF_S", (0.01,))
    monkeypatch.setattr("atoll.runtime.inline._DRAIN_S", 0.2)
    found = run(spec_of(uri), runs_folder=tmp_path)
    assert found.server_steps == 7
    assert found.unpublished_rows == sum(len(points) for points in found.history().values())
    assert len(calls) >= 3
