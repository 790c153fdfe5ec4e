"""What answers at an address, and what is said where the right thing does not; stand-in servers, no Ray."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from atoll.errors import SpecError
from atoll.runtime import connecting
from atoll.runtime.connecting import Software, check_cluster, check_job_server, token_in

VERSION = {"version": "4", "ray_version": "2.58.0", "ray_commit": "c", "session_name": "s"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Short patience, and nobody's token."""
    monkeypatch.setattr(connecting, "_PROBE_S", 0.5)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@contextmanager
def web(answers: dict[str, object], token: str | None = None, status: int = 200) -> Iterator[str]:
    """A web server: path → JSON; asks for a token where there is one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers.get("Authorization")
            if token is not None and given != f"Bearer {token}":
                self.send_response(401 if given is None else 403)
                self.end_headers()
                self.wfile.write(b"Unauthorized: Missing authentication token" if given is None else b"Forbidden")
                return
            found = answers.get(self.path)
            self.send_response(404 if found is None else status)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def listener(says: bytes | None) -> Iterator[str]:
    """Accepts everybody; says something and hangs up, or nothing, for ever."""
    kept: list[socket.socket] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def serve() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                kept.append(peer)
                if says is not None:
                    with suppress(OSError):  # whoever only looks has gone
                        peer.sendall(says)
                        peer.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    for peer in kept:
        peer.close()


@pytest.fixture
def closed() -> str:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def gcs(metadata: dict[str, str] | None, token: str | None = None) -> Iterator[str]:
    """What a driver asks of a head: the one question that is asked before Ray does."""
    import grpc
    from ray.core.generated import gcs_service_pb2 as messages
    from ray.core.generated import gcs_service_pb2_grpc as services

    class Store(services.InternalKVGcsServiceServicer):
        def InternalKVGet(self, request, context):
            given = dict(context.invocation_metadata()).get("authorization")
            if token is not None and given != f"Bearer {token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken: no")
            assert (request.key, request.namespace) == (b"CLUSTER_METADATA", b"cluster")
            return messages.InternalKVGetReply(value=b"" if metadata is None else json.dumps(metadata).encode())

    server = grpc.server(ThreadPoolExecutor(1))
    services.add_InternalKVGcsServiceServicer_to_server(Store(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def said(check, address: str, *parts: str, within_s: float = 5.0) -> str:
    began = time.monotonic()
    with pytest.raises(SpecError) as refused:
        check(address)
    assert time.monotonic() - began < within_s
    for part in parts:
        assert part in str(refused.value)
    return str(refused.value)


# ---- the job server -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["", "head", "head:8265", "ray://head:10001", "http://", "http://h:x", "http://h:0"]
)
def test_no_address_of_a_job_server(address: str) -> None:
    said(check_job_server, address, f"address: got {address!r}", "http://10.0.0.7:8265")


def test_the_scheme_is_all_that_is_missing() -> None:
    said(check_job_server, "head:8265", "Write http://head:8265")


def test_nobody_there(closed: str) -> None:
    said(check_job_server, f"http://{closed}", "Nobody answers", "Is the head running")


def test_a_name_that_nobody_has() -> None:
    said(check_job_server, "http://no-such-head.invalid:8265", "Nobody answers at no-such-head.invalid port 8265")


def test_silence_ends() -> None:
    with listener(None) as place:
        said(check_job_server, f"http://{place}", "does not answer")


def test_the_other_port_of_the_head() -> None:
    with listener(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00") as place:
        said(check_job_server, f"http://{place}", "does not speak HTTP", "RAY_ADDRESS")
    with gcs({}) as place:
        said(check_job_server, f"http://{place}", "RAY_ADDRESS")


def test_another_web_server() -> None:
    with web({"/api/version": {"hello": "world"}}) as place:
        said(check_job_server, f"http://{place}", "another web server")
    with web({}) as place:
        said(check_job_server, f"http://{place}", "answered 404")
    with web({"/api/version": [1]}) as place:
        said(check_job_server, f"http://{place}", "something else than an object")


def test_the_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with web({"/api/version": VERSION}, token="right") as place:
        said(check_job_server, f"http://{place}", "need its token", "Missing", "RAY_AUTH_TOKEN")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
        said(check_job_server, f"http://{place}", "need the right token", "Forbidden")
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("right\n")
        assert check_job_server(f"http://{place}/").ray == "2.58.0"
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        said(check_job_server, f"http://{place}", "need its token")


def test_the_software_of_a_cluster() -> None:
    more = {"/api/v0/cluster_metadata": {"result": True, "data": {"pythonVersion": "3.12.4", "rayVersion": "2.58.0"}}}
    with web({"/api/version": VERSION, **more}) as place:
        assert check_job_server(f"http://{place}") == Software("2.58.0", "3.12.4")
    with web({"/api/version": VERSION}) as place:
        assert check_job_server(f"http://{place}") == Software("2.58.0", "")


def test_where_a_token_lies(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from file\n")
    home = {"HOME": str(tmp_path / "nobody")}
    assert token_in(home) is None
    assert token_in({**home, "RAY_AUTH_TOKEN_PATH": str(file)}) == "from file"
    assert token_in({**home, "RAY_AUTH_TOKEN_PATH": str(file), "RAY_AUTH_TOKEN": "given"}) == "given"
    assert token_in({**home, "RAY_AUTH_TOKEN": "given", "RAY_AUTH_MODE": "disabled"}) is None


def test_a_token_that_lies_ready_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    connecting.settle_authentication()
    assert "RAY_AUTH_MODE" not in os.environ
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    connecting.settle_authentication()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    monkeypatch.delenv("RAY_AUTH_MODE")
    connecting.settle_authentication()
    assert os.environ["RAY_AUTH_MODE"] == "token"


# ---- a cluster to connect to ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["", "head", "head:", ":6379", "head:gcs", "head:99999"])
def test_no_address_of_a_cluster(address: str) -> None:
    said(check_cluster, address, f"RAY_ADDRESS: got {address!r}", "10.0.0.7:6379")


def test_the_job_servers_address_is_another_one() -> None:
    said(check_cluster, "http://head:8265", "speaks no HTTP", "atoll submit")
    with web({"/api/version": VERSION}) as place:
        said(check_cluster, place, "This is the job server", within_s=10)


def test_nobody_in_the_cluster(closed: str) -> None:
    said(check_cluster, closed, "Nobody answers", "ray start --head")


def test_something_else_than_ray() -> None:
    with listener(None) as place:
        said(check_cluster, place, "no Ray answers")
    with listener(b"220 mail\r\n") as place:
        said(check_cluster, place, "no Ray answers", within_s=10)


def test_an_embedded_ray_is_not_looked_at() -> None:
    check_cluster("local")


def test_the_same_software_is_let_in() -> None:
    here = Software.here()
    with gcs({"ray_version": here.ray, "python_version": here.python}) as place:
        check_cluster(place)
    with gcs(None) as place:  # a cluster that does not tell: Ray itself has to find out
        check_cluster(place)


def test_other_software_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Software.here()
    with gcs({"ray_version": "2.31.0", "python_version": "3.9.1"}) as place:
        text = said(check_cluster, place, "with Ray 2.31.0", f"Ray {here.ray}, as here", "Python 3.9.1", "atoll submit")
        assert len(text.splitlines()) == 2, "all problems at once"
    patch = ".".join([*here.python.split(".")[:2], "99"])
    with gcs({"ray_version": here.ray, "python_version": patch}) as place:
        said(check_cluster, place, f"Python {patch}")
        monkeypatch.setenv("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "minor")
        check_cluster(place)


def test_a_cluster_that_wants_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with gcs({}, token="right") as place:
        said(check_cluster, place, "need its token", "RAY_AUTH_MODE=token")
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        said(check_cluster, place, "need a token", "there is none")
