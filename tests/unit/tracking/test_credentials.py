"""A server that asks for credentials, and addresses that hold them: told before anything starts."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from atoll import spec as sp
from atoll.errors import SpecError
from atoll.tracking import MlflowTracker, RunInfo, preflight, ui
from tiny_kit import tiny

VARIABLES = ("USERNAME", "PASSWORD", "TOKEN", "AUTH", "AWS_SIGV4")


class Guarded(ThreadingHTTPServer):
    """Answers /health to everybody, and the rest to `ann`, to whoever has the token, or to nobody."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        basic = base64.b64encode(b"ann:sesame").decode()
        self.accepted = {f"Basic {basic}", "Bearer t0ken"}
        self.answer: tuple[int, dict] = (200, {"experiments": []})
        self.asked: list[str] = []
        self.uri = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Guarded = self.server  # type: ignore[assignment]
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server.asked.append(self.path)
        if self.path == "/health":
            self._say(200, b"OK")
        elif self.headers.get("Authorization") not in server.accepted:
            self._say(401, b"You are not authenticated.")
        else:
            status, value = server.answer
            self._say(status, json.dumps(value).encode())

    do_POST = do_GET

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[Guarded]:
    for name in VARIABLES:
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # nobody's ~/.mlflow/credentials
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    found = Guarded()
    threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def refused(uri: str) -> str:
    begin = time.monotonic()
    with pytest.raises(SpecError) as caught:
        preflight(uri)
    assert time.monotonic() - begin < 15
    (problem,) = caught.value.problems
    assert problem.path == "tracking.uri"
    return str(problem)


def test_credentials_of_the_environment(server: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "sesame")
    preflight(server.uri)


def test_a_token_of_the_environment(server: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    preflight(server.uri)


@pytest.mark.parametrize("password", [None, "wrong"])
def test_wrong_ones_and_none(server: Guarded, monkeypatch: pytest.MonkeyPatch, password: str | None) -> None:
    if password is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    text = refused(server.uri)
    assert "need credentials that the server accepts" in text
    assert "401" in text
    assert "MLFLOW_TRACKING_USERNAME" in text
    assert "wrong" not in text, "a password is never printed"


def test_an_open_server_is_not_asked_twice(server: Guarded) -> None:
    server.accepted.add(None)  # type: ignore[arg-type]
    preflight(server.uri)
    assert len(server.asked) == 2, "without MLflow, which takes seconds to load"


def test_a_host_name_that_the_server_does_not_know(server: Guarded) -> None:
    server.accepted.add(None)  # type: ignore[arg-type]
    server.answer = (403, {"message": "Invalid Host header - possible DNS rebinding attack detected"})
    assert "--allowed-hosts 127.0.0.1" in refused(server.uri)


def test_who_may_only_read_is_refused_at_the_start(server: Guarded) -> None:
    server.accepted.add(None)  # type: ignore[arg-type]
    server.answer = (403, {"error_code": "PERMISSION_DENIED", "message": "Permission denied"})
    with pytest.raises(SpecError, match=r"tracking\.experiment.*may write"):
        MlflowTracker(server.uri).start(RunInfo("e", "n", "k"))


@pytest.mark.parametrize(
    ("uri", "variable"),
    [
        ("http://ann:sesame@127.0.0.1:1", "MLFLOW_TRACKING_PASSWORD"),
        ("https://ann:sesame@mlflow.example", "MLFLOW_TRACKING_PASSWORD"),
        ("postgresql://ann:sesame@127.0.0.1:1/mlflow", "PGPASSWORD"),
        ("postgresql+psycopg2://ann:sesame@127.0.0.1:1/mlflow", "PGPASSWORD"),
    ],
)
def test_an_address_never_holds_a_password(uri: str, variable: str) -> None:
    text = refused(uri)
    assert "an address without a password" in text
    assert variable in text
    assert "sesame" not in text


def test_the_page_of_a_server_is_its_own() -> None:
    found = ui("https://mlflow.example")
    assert (found.argv, found.url) == ((), "https://mlflow.example")
    with pytest.raises(SpecError, match="no port for a server"):
        ui("https://mlflow.example", 5000)


@pytest.mark.parametrize("uri", ["postgresql://ann@db/mlflow", "postgresql+psycopg2://db/mlflow", "mysql://db/mlflow"])
def test_a_database_needs_a_place_for_artifacts(uri: str) -> None:
    with pytest.raises(SpecError, match=r"tracking\.artifacts: got null"):
        sp.parse(tiny(tracking={"uri": uri}))
    assert sp.parse(tiny(tracking={"uri": uri, "artifacts": "s3://bucket/mlflow"})).tracking.artifacts
