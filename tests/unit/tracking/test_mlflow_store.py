"""preflight, initialisation, the HTTP tracker against a broken server, and the command of the web page."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from atoll.errors import InfrastructureError, SpecError
from atoll.runtime.store import Commit, SqliteJournal
from atoll.tracking import (
    MlflowTracker,
    Row,
    RunInfo,
    absolute_uri,
    artifact_root,
    initialise,
    page_url,
    preflight,
    ui,
)


def serve(answer):
    """A server on a free port; `answer(method, path, body)` gives (status, JSON value)."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, value = answer(self.command, self.path, json.loads(body) if body else {})
            payload = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = do_PATCH = handle_any

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def stub():
    state = {"down": False, "rows": set(), "calls": 0}
    info = {"run_id": "a" * 32, "experiment_id": "1", "status": "RUNNING", "lifecycle_stage": "active"}
    run = {"run": {"info": info, "data": {}}}

    def answer(method, path, body):
        state["calls"] += 1
        if state["down"]:
            return 503, {"error": "maintenance"}
        if "experiments/get-by-name" in path:
            return 200, {"experiment": {"experiment_id": "1", "name": "e", "lifecycle_stage": "active"}}
        if "runs/log-batch" in path:
            state["rows"] |= {(m["key"], m["step"], m["value"], m["timestamp"]) for m in body.get("metrics", [])}
            return 200, {}
        if "runs/search" in path:
            return 200, {"runs": []}
        return 200, run

    server, uri = serve(answer)
    state["uri"] = uri
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def _hasty(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.mark.usefixtures("_hasty")
def test_a_server_that_answers_503_loses_nothing_and_stops_nothing(stub, tmp_path):
    tracker = MlflowTracker(stub["uri"])
    tracker.start(RunInfo("e", "n", "k"))

    def waiting(journal: SqliteJournal) -> list[Row]:
        return [Row(*row) for row in journal.pending(1500)[1]]

    with SqliteJournal(tmp_path / "j.db") as journal:
        journal.claim()
        journal.commit(Commit(rows=tuple(("a", step, step, 5) for step in range(1500))))
        stub["down"] = True
        begin = time.monotonic()
        with pytest.raises(InfrastructureError, match="publishing metrics"):
            tracker.publish(waiting(journal))
        assert time.monotonic() - begin < 5
        assert journal.num_pending == 1500
        stub["down"] = False
        tracker.publish(waiting(journal))
    assert len(stub["rows"]) == 1500


@pytest.mark.usefixtures("_hasty")
def test_a_server_that_is_down_at_the_start_is_one_clear_error(stub):
    stub["down"] = True
    with pytest.raises(InfrastructureError, match="starting the run"):
        MlflowTracker(stub["uri"]).start(RunInfo("e", "n", "k"))


def test_preflight_accepts_a_server_that_answers(stub):
    preflight(stub["uri"])


def refused(uri):
    begin = time.monotonic()
    with pytest.raises(SpecError) as caught:
        preflight(uri)
    assert time.monotonic() - begin < 8
    (problem,) = caught.value.problems
    assert problem.path == "tracking.uri"
    return str(problem)


def test_preflight_refuses_a_server_that_is_down_or_broken(stub):
    assert "running MLflow server" in refused("http://127.0.0.1:1")
    stub["down"] = True
    assert "503" in refused(stub["uri"])


def test_preflight_never_prints_a_password():
    text = refused("http://me:secret@127.0.0.1:1")
    assert "secret" not in text
    assert "***" in text


@pytest.mark.parametrize("uri", ["mlruns", "file:///x", "ftp://x", "sqlite://", "sqlite:///:memory:", "databricks"])
def test_preflight_refuses_addresses_it_does_not_understand(uri):
    assert "sqlite:///" in refused(uri)


def test_preflight_refuses_files_that_are_not_its_own(tmp_path):
    assert "not a folder" in refused(f"sqlite:///{tmp_path}/none/mlflow.db")
    (tmp_path / "text.db").write_text("hello" * 10)
    assert "something else" in refused(f"sqlite:///{tmp_path}/text.db")
    assert "is a folder" in refused(f"sqlite:///{tmp_path}")
    with closing(sqlite3.connect(tmp_path / "other.db")) as db:
        db.execute("CREATE TABLE t (x)")
    assert "other tables" in refused(f"sqlite:///{tmp_path}/other.db")
    (tmp_path / "cut.db").write_bytes(b"SQLite format 3\x00" + b"\xff" * 200)
    assert "SQLite" in refused(f"sqlite:///{tmp_path}/cut.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_preflight_refuses_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    assert "read-only" in refused(f"sqlite:///{tmp_path}/mlflow.db")


def test_preflight_of_an_initialised_file_is_quick_and_quiet(mlflow_uri, caplog, capfd):
    with caplog.at_level(logging.INFO):
        preflight(mlflow_uri)
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_a_file_that_mlflow_has_opened_is_known_without_it(mlflow_uri):
    initialise(mlflow_uri)
    code = "import sys\nfrom atoll.tracking import *\npreflight(sys.argv[1])\nsys.exit('mlflow' in sys.modules)\n"
    subprocess.run([sys.executable, "-c", code, mlflow_uri], check=True)


def test_artifacts_land_beside_the_database_not_in_the_working_directory(mlflow_uri, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "f.txt").write_text("x")
    tracker = MlflowTracker(mlflow_uri)
    tracker.start(RunInfo("my exp / α", "n", "k"))
    tracker.artifact(tmp_path / "f.txt")
    assert [path.name for path in (tmp_path / "mlartifacts").rglob("*.txt")] == ["f.txt"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_deleted_experiment_is_refused_with_the_way_back(mlflow_uri):
    from atoll.tracking.mlflow_tracker import client

    tracker = MlflowTracker(mlflow_uri)
    tracker.start(RunInfo("gone", "n", "k"))
    opened = client(mlflow_uri)
    opened.delete_experiment(opened.get_experiment_by_name("gone").experiment_id)
    with pytest.raises(SpecError, match="restore"):
        MlflowTracker(mlflow_uri).start(RunInfo("gone", "n", "k"))


def test_a_relative_address_means_one_file_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert absolute_uri("sqlite:////a/b.db?timeout=3") == "sqlite:////a/b.db?timeout=3"
    assert artifact_root("sqlite:////a/b.db") == "/a/mlartifacts"
    assert artifact_root("http://h:1") is None


def test_the_web_page_command_listens_on_loopback_with_telemetry_off(tmp_path):
    command = ui(f"sqlite:///{tmp_path}/mlflow.db")
    port = command.url.rpartition(":")[2]
    words = " ".join(command.argv)
    assert f"--host 127.0.0.1 --port {port}" in words
    assert f"--backend-store-uri sqlite:///{tmp_path}/mlflow.db" in words
    assert f"--default-artifact-root {tmp_path}/mlartifacts" in words
    assert command.env["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_taken_port_is_refused(stub, tmp_path):
    with pytest.raises(SpecError, match="free port"):
        ui(f"sqlite:///{tmp_path}/mlflow.db", int(stub["uri"].rpartition(":")[2]))


@pytest.mark.slow
def test_launches_in_parallel_on_an_empty_database_make_one_experiment(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    code = (
        "import sys\nfrom atoll.tracking import *\npreflight(sys.argv[1])\nt = MlflowTracker(sys.argv[1])\n"
        "t.start(RunInfo('shared', sys.argv[2], sys.argv[2]))\nt.publish([Row('a', 1, 1.0, 5)])\nt.finish('FINISHED')\n"
    )
    args = [[sys.executable, "-c", code, uri, f"k{index}"] for index in range(3)]
    children = [subprocess.Popen(arg, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for arg in args]
    said = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], said
    assert "".join(said) == ""
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as db:
        assert db.execute("SELECT count(*) FROM experiments WHERE name = 'shared'").fetchone() == (1,)
        assert db.execute("SELECT count(*) FROM runs").fetchone() == (3,)


def test_page_addresses_open_the_view_for_training_runs():
    query = "?workflowType=machine_learning"
    assert page_url("http://h:5/", "1", "ab") == f"http://h:5/#/experiments/1/runs/ab{query}"
    assert page_url("http://h:5", "1") == f"http://h:5/#/experiments/1{query}"
