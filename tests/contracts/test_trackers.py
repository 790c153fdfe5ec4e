"""The promises of atoll.tracking.Tracker, held by every implementation."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing

import pytest

from atoll.errors import InfrastructureError, SpecError
from atoll.tracking import MemoryStore, MemoryTracker, MlflowTracker, Row, RunInfo

INFO = RunInfo("exp / one", "first run", "key-1", params={"lr": "0.1"}, tags={"fl.arm": "async"})


class MemoryHarness:
    def __init__(self):
        self.store = MemoryStore()

    def tracker(self):
        return MemoryTracker(self.store)

    def num_runs(self):
        return len(self.store.runs)

    def read(self, run_id):
        run = self.store.runs[run_id]
        keys = {row.key for row in run.rows}
        latest = {
            key: max((row.step, row.timestamp_ms, row.value) for row in run.rows if row.key == key)[2] for key in keys
        }
        return {
            "status": run.status,
            "params": dict(run.params),
            "tags": run.tags,
            "history": {key: run.history(key) for key in keys},
            "latest": latest,
            "artifacts": sorted(run.artifacts),
        }


class MlflowHarness:
    def __init__(self, uri):
        from atoll.tracking.mlflow_tracker import client

        self.uri, self.client = uri, client(uri)

    def tracker(self):
        return MlflowTracker(self.uri)

    def num_runs(self):
        return len(self.client.search_runs([e.experiment_id for e in self.client.search_experiments()]))

    def read(self, run_id):
        run = self.client.get_run(run_id)
        history = {
            key: sorted((m.step, m.value) for m in self.client.get_metric_history(run_id, key))
            for key in run.data.metrics
        }

        def walk(path=None):
            for item in self.client.list_artifacts(run_id, path):
                yield from walk(item.path) if item.is_dir else [item.path]

        return {
            "status": run.info.status,
            "params": run.data.params,
            "tags": run.data.tags,
            "history": history,
            "latest": run.data.metrics,
            "artifacts": sorted(walk()),
        }


@pytest.fixture(params=["memory", "mlflow"])
def harness(request):
    return MemoryHarness() if request.param == "memory" else MlflowHarness(request.getfixturevalue("mlflow_uri"))


def rows(num=50, value=1.0, timestamp_ms=1_700_000_000_000):
    return [Row("eval/auc", step, value + step, timestamp_ms + step) for step in range(num)]


def test_replaying_a_batch_adds_nothing(harness):
    tracker = harness.tracker()
    run_id = tracker.start(INFO)
    assert tracker.publish(rows()) == 0
    before = harness.read(run_id)
    tracker.publish(rows())
    tracker.publish(rows()[10:20])
    assert harness.read(run_id) == before
    assert before["history"]["eval/auc"] == [(step, 1.0 + step) for step in range(50)]


def test_the_latest_value_does_not_go_back(harness):
    tracker = harness.tracker()
    run_id = tracker.start(INFO)
    tracker.publish(rows())
    tracker.publish(rows(3, timestamp_ms=1_900_000_000_000))
    assert harness.read(run_id)["latest"] == {"eval/auc": 50.0}


def test_more_than_a_batch_is_cut_into_batches(harness):
    tracker = harness.tracker()
    run_id = tracker.start(INFO)
    tracker.publish(rows(2001))
    assert len(harness.read(run_id)["history"]["eval/auc"]) == 2001


def test_values_that_are_not_finite_are_left_out_and_counted(harness):
    tracker = harness.tracker()
    run_id = tracker.start(INFO)
    assert tracker.publish([Row("a", 0, float("nan"), 5), Row("a", 1, float("inf"), 5), Row("a", 2, 2.0, 5)]) == 2
    assert harness.read(run_id)["history"] == {"a": [(2, 2.0)]}
    assert tracker.publish([]) == 0


@pytest.mark.parametrize("bad", [Row("acc@1", 0, 1.0, 5), Row("a", 1.5, 1.0, 5), Row("a", -1, 1.0, 5)])
def test_an_illegal_row_stores_nothing_of_its_batch(harness, bad):
    tracker = harness.tracker()
    run_id = tracker.start(INFO)
    with pytest.raises(SpecError):
        tracker.publish([Row("good", 0, 1.0, 5), bad])
    assert harness.read(run_id)["history"] == {}


def test_starting_again_with_the_key_reopens_the_one_run(harness):
    tracker = harness.tracker()
    run_id = tracker.start(INFO)
    tracker.publish(rows(5))
    tracker.finish("FAILED")
    assert harness.read(run_id)["status"] == "FAILED"
    again = harness.tracker()
    assert again.start(INFO) == run_id
    assert harness.read(run_id)["status"] == "RUNNING"
    again.publish(rows(7))
    again.finish("FINISHED")
    seen = harness.read(run_id)
    assert (seen["status"], len(seen["history"]["eval/auc"]), harness.num_runs()) == ("FINISHED", 7, 1)


def test_another_key_or_experiment_is_another_run(harness):
    ids = {
        harness.tracker().start(info)
        for info in (INFO, RunInfo("exp / one", "first run", "key-2"), RunInfo("exp two", "first run", "key-1"))
    }
    assert len(ids) == harness.num_runs() == 3


def test_a_parameter_keeps_its_first_value_and_the_change_is_told(harness):
    run_id = harness.tracker().start(INFO)
    changed = RunInfo(INFO.experiment, INFO.run_name, INFO.run_key, params={"lr": "0.2", "steps": "9"})
    harness.tracker().start(changed)
    seen = harness.read(run_id)
    assert seen["params"] == {"lr": "0.1", "steps": "9"}
    assert seen["tags"]["fl.changed.lr"] == "0.2"
    assert "fl.changed.steps" not in seen["tags"]


def test_tags_take_the_last_value(harness):
    tracker = harness.tracker()
    run_id = tracker.start(INFO)
    tracker.tags({"fl.attempt": "1", "fl.arm": "async"})
    tracker.tags({"fl.attempt": "2"})
    tags = harness.read(run_id)["tags"]
    assert (tags["fl.attempt"], tags["fl.arm"], tags["fl.run_key"]) == ("2", "async", "key-1")


def test_a_child_names_its_parent(harness):
    parent = harness.tracker().start(RunInfo("sweep", "sweep", "sweep-1"))
    child = harness.tracker().start(RunInfo("sweep", "child", "sweep-1.0", parent_run_id=parent))
    assert harness.read(child)["tags"]["mlflow.parentRunId"] == parent
    assert "mlflow.parentRunId" not in harness.read(parent)["tags"]


def test_files_and_folders_are_stored_and_overwritten(harness, tmp_path):
    tracker = harness.tracker()
    run_id = tracker.start(INFO)
    folder = tmp_path / "plots"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "deep" / "b.txt").write_text("b")
    for _ in range(2):
        tracker.artifact(folder, "plots")
        tracker.artifact(folder / "a.txt")
    assert harness.read(run_id)["artifacts"] == ["a.txt", "plots/a.txt", "plots/deep/b.txt"]


def test_nothing_works_before_start(harness):
    tracker = harness.tracker()
    for call in (
        lambda: tracker.publish(rows(1)),
        lambda: tracker.finish("FINISHED"),
        lambda: tracker.tags({"a": "b"}),
        lambda: tracker.params({"a": "b"}),
    ):
        with pytest.raises(InfrastructureError, match="before start"):
            call()


def test_what_a_store_would_cut_is_refused_before_a_run_exists(harness):
    with pytest.raises(SpecError):
        harness.tracker().start(RunInfo("e", "n", "k", params={"p": "x" * 6001}))
    assert harness.num_runs() == 0


def tables(uri):
    """Both tables of metrics, without the run's id."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as db:
        columns = "key, value, timestamp, step, is_nan"
        return [sorted(db.execute(f"SELECT {columns} FROM {name}")) for name in ("metrics", "latest_metrics")]


def test_rows_in_one_statement_are_those_that_mlflow_writes(mlflow_uri, tmp_path):
    other = f"sqlite:///{tmp_path / 'other.db'}"
    shutil.copy(mlflow_uri.removeprefix("sqlite:///"), tmp_path / "other.db")
    quick, slow = MlflowTracker(mlflow_uri), MlflowTracker(other)
    for tracker in (quick, slow):
        tracker.start(INFO)
    assert quick._bulk is not None
    slow._bulk = None
    batches = [
        [Row(key, step, step / 7, 1_000 + step) for step in range(30) for key in ("a", "b/c")],
        rows(20),
        [Row("a", 29, 29 / 7, 1_029), Row("a", 29, 5.0, 1_029), Row("a", 12, 1.0, 9_000), Row("d", 0, -0.0, 1)],
        [Row("a", 29, 4.0, 1_029), Row("a", 29, 5.0, 1_029), Row("a", 40, 1e300, 2), Row("a", 40, 1e300, 2)],
    ]
    for batch in batches:
        assert quick.publish(batch) == slow.publish(batch) == 0
        assert tables(mlflow_uri) == tables(other)
    assert len(tables(other)[0]) == 60 + 20 + 3 + 2


def test_a_deleted_run_takes_no_rows(mlflow_uri):
    from atoll.tracking.mlflow_tracker import client

    tracker = MlflowTracker(mlflow_uri)
    run_id = tracker.start(INFO)
    client(mlflow_uri).delete_run(run_id)
    with pytest.raises(InfrastructureError, match="publishing metrics"):
        tracker.publish(rows(1))
    assert tables(mlflow_uri)[0] == []
