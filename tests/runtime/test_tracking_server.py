"""A team's MLflow: a real server with basic authentication, over SQLite and over PostgreSQL; runs that log there."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from head_kit import head
from ray_kit import facts

from atoll.errors import SpecError
from atoll.experiment import Run, run
from atoll.tracking import preflight
from atoll.tracking.mlflow_tracker import client as mlflow_client
from tiny_kit import tiny

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

PASSWORD = "correct horse battery"
_POSTGRES = shutil.which("pg_ctl") or next(
    iter(sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")))), None
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_healthy(uri: str) -> bool:
    try:
        urllib.request.urlopen(f"{uri}/health", timeout=2).close()
    except OSError:
        return False
    return True


# ---- PostgreSQL -----------------------------------------------------------------------------------------------------


@dataclass
class Postgres:
    """A database server of this module's own; it never runs as root."""

    folder: Path
    port: int
    user: str

    @property
    def uri(self) -> str:
        return f"postgresql://{self.user}@127.0.0.1:{self.port}/postgres"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if _POSTGRES is None:
        pytest.skip("no PostgreSQL on this machine")
    pytest.importorskip("psycopg", reason="the driver of PostgreSQL is not installed")
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if os.geteuid() == 0:
        try:
            shutil.chown(folder, user)
        except LookupError:
            pytest.skip("root may not run PostgreSQL, and there is no user postgres")
    found = Postgres(folder, free_port(), user)
    options = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": True}
    if os.geteuid() == 0:
        options["user"] = user
    data, program = folder / "data", str(_POSTGRES)
    subprocess.run([program, "init", "-D", str(data), "-o", f"--auth=trust --username={user}"], **options)
    own = f"-p {found.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    subprocess.run([program, "start", "-w", "-D", str(data), "-o", own, "-l", str(folder / "log")], **options)
    try:
        yield found
    finally:
        subprocess.run([program, "stop", "-m", "immediate", "-D", str(data)], **options)
        shutil.rmtree(folder, ignore_errors=True)


# ---- MLflow ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(
    request: pytest.FixtureRequest, _mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Address of an MLflow server that asks who one is; the administrator has PASSWORD."""
    pytest.importorskip("flask_wtf", reason="MLflow's authentication needs Flask-WTF")
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(_mlflow_template, folder / "mlflow.db")
    backend = f"sqlite:///{folder}/mlflow.db"
    if request.param == "postgresql":
        backend = request.getfixturevalue("postgres").uri
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{folder}/auth.db\nadmin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        # else every request costs a tenth of a second for the password's hash
        "auth_cache_ttl_seconds = 600\n"
    )
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--backend-store-uri", backend,
        "--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--allowed-hosts", f"127.0.0.1:{port},localhost:{port}",
    ]  # fmt: skip
    environment = {
        **os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"), "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test alone",
    }  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 120
        while not is_healthy(uri):
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            assert time.monotonic() < until, (folder / "log").read_text()[-3000:]
            time.sleep(0.2)
        yield uri
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def log_in(monkeypatch: pytest.MonkeyPatch, user: str = "admin", password: str = PASSWORD) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def logged(uri: str, folder: Path, **tracking) -> Run:
    return run(tiny(tracking={"uri": uri, "experiment": "team", **tracking}), runs_folder=folder)


@pytest.fixture(scope="module")
def expected(uri: str, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The same run into SQLite."""
    return facts(logged(uri, tmp_path_factory.mktemp("alone")), uri)


def test_every_row_and_file_arrives(
    server: str, expected: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch)
    found = logged(server, tmp_path / "runs")
    assert found.unpublished_rows == 0
    assert facts(found, server) == expected
    store = mlflow_client(server)
    assert store.get_run(found.run_id).info.status == "FINISHED"
    names = {file.path for file in store.list_artifacts(found.run_id)}
    assert {"checkpoints", "spec.yaml"} <= names, "artifacts go through the server: nobody needs its folder"


@pytest.mark.parametrize("password", [None, "guessed at random"])
def test_whoever_the_server_does_not_know_is_told_in_seconds(
    server: str, password: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if password is not None:
        log_in(monkeypatch, password=password)
    begin = time.monotonic()
    with pytest.raises(SpecError, match=r"tracking\.uri.*credentials that the server accepts.*401") as caught:
        logged(server, tmp_path / "runs")
    assert caught.value.exit_code == 2
    assert time.monotonic() - begin < 15
    assert not (tmp_path / "runs").exists(), "nothing was begun"
    assert "guessed" not in str(caught.value)


def test_whoever_may_only_read_is_told_at_the_first_batch(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch)
    logged(server, tmp_path / "runs", experiment="of the administrator")
    from mlflow.server import get_app_client

    get_app_client("basic-auth", server).create_user("reader", "reads and never writes")
    log_in(monkeypatch, "reader", "reads and never writes")
    with pytest.raises(SpecError, match=r"tracking\.experiment.*may write"):
        logged(server, tmp_path / "others", experiment="of the administrator")
    assert logged(server, tmp_path / "others", experiment="of the reader").unpublished_rows == 0


@pytest.mark.ray
@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
def test_on_a_cluster_the_tracker_logs_in_as_the_driver(server: str, expected: dict, tmp_path: Path) -> None:
    """The processes of a cluster were started by somebody else, elsewhere: they know no credentials."""
    runtime = {"kind": "ray", "workers": 1, "lanes": 4}
    (tmp_path / "spec.yaml").write_text(
        yaml.safe_dump(tiny(tracking={"uri": server, "experiment": "cluster"}, runtime=runtime))
    )
    user = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    with head(2) as there:
        done = there.atoll("run", "spec.yaml", "--json", cwd=tmp_path, RAY_ADDRESS=there.gcs, **user)
        out, err = done.communicate(timeout=200)
        assert done.returncode == 0, err
        found = json.loads(out.splitlines()[-1])
        assert found["unpublished_rows"] == 0
        assert found["model_digest"] == expected["fixed"][0]
        for log in Path(there.environment["HOME"]).rglob("*.log"):
            assert PASSWORD not in log.read_text(errors="replace"), log.name


# ---- PostgreSQL without a server ------------------------------------------------------------------------------------


def test_rows_go_into_postgresql(postgres: Postgres, expected: dict, tmp_path: Path) -> None:
    preflight(postgres.uri)
    found = logged(postgres.uri, tmp_path / "runs", experiment="direct", artifacts=str(tmp_path / "artifacts"))
    assert found.unpublished_rows == 0
    assert facts(found, postgres.uri) == expected
    assert list((tmp_path / "artifacts").rglob("spec.yaml"))


@pytest.mark.parametrize("broken", ["port", "database"])
def test_a_database_that_is_not_there_is_told_in_seconds(postgres: Postgres, broken: str) -> None:
    uri = postgres.uri.replace(str(postgres.port), "1") if broken == "port" else postgres.uri + "x"
    begin = time.monotonic()
    with pytest.raises(SpecError, match=r"tracking\.uri.*a database that MLflow can open"):
        preflight(uri)
    assert time.monotonic() - begin < 15
