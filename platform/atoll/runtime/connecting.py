"""Is there a Ray cluster at this address, may this process use it, is it of the same software? Answers in seconds.

Ray itself would try again for minutes where nobody answers, and for ever where the token is missing.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from atoll.errors import InfrastructureError, Problem, SpecError

__all__ = ["Software", "ask", "check_cluster", "check_job_server", "settle_authentication", "token_in"]

#: how long anybody may take to answer
_PROBE_S = 5.0
_CLUSTER, _SERVER = "RAY_ADDRESS", "address"
_CLUSTER_FORM = "host:port of the head's GCS, such as 10.0.0.7:6379"
_SERVER_FORM = "the head's job server, such as http://10.0.0.7:8265"
_TOKEN_HINT = "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"


@dataclass(frozen=True, slots=True)
class Software:
    """What a cluster was started with; "" for what it does not tell."""

    ray: str
    python: str

    @classmethod
    def here(cls) -> Software:
        """Of this process."""
        return cls(version("ray"), platform.python_version())


# ---- who may connect ------------------------------------------------------------------------------------------------


def token_in(environment: Mapping[str, str]) -> str | None:
    """The cluster's token, found where Ray looks for it; None without one, or where authentication is switched off."""
    if environment.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return token
    home = Path(environment.get("HOME") or "~").expanduser()
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def settle_authentication() -> None:
    """A token that lies ready is used: Ray would leave it where it is as long as RAY_AUTH_MODE does not say so.

    To be called before Ray is imported, since that is when Ray reads how to authenticate.
    """
    if "RAY_AUTH_MODE" not in os.environ and token_in(os.environ):
        os.environ["RAY_AUTH_MODE"] = "token"


# ---- a cluster to connect to ----------------------------------------------------------------------------------------


def check_cluster(address: str) -> None:
    """Refuses an address that `ray.init` would wait at for minutes, or fail at with a riddle; takes 5 s, at most 15.

    Args:
        address: as in RAY_ADDRESS: host:port, `auto`, or `local`, which is not looked at.

    Raises:
        SpecError: it is not an address; nobody is there, or something else; the token is missing or wrong; its Ray or
            Python is another one.
    """
    if address == "local":
        return
    place = _found_here() if address == "auto" else address
    if "://" in place:
        hint = "http:// addresses are for atoll submit; here it is the port that ray start --head prints"
        raise _refuse(_CLUSTER, place, _CLUSTER_FORM, "Ray itself speaks no HTTP", hint)
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise _refuse(_CLUSTER, place, _CLUSTER_FORM)
    _probe(_CLUSTER, place, host.strip("[]"), int(port), "Is the head running? `ray start --head` prints its address")
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" and token_in(os.environ) is None:
        raise _refuse(_CLUSTER, place, "a token", "RAY_AUTH_MODE is token, and there is none", _TOKEN_HINT)
    found = _ask_gcs(place)
    if found is not None:
        _check_same(place, found)


def _found_here() -> str:
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        return str(canonicalize_bootstrap_address_or_die("auto"))
    except ConnectionError as error:
        hint = "Start one with `ray start --head`, or leave RAY_ADDRESS out: atoll then starts its own Ray"
        raise _refuse(_CLUSTER, "auto", "a Ray cluster on this machine", "none is running", hint) from error


def _ask_gcs(place: str) -> Software | None:
    """The cluster's software; None where this Ray has no such question, and `ray.init` has to find out."""
    try:
        import grpc  # type: ignore[import-untyped]
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated import gcs_service_pb2 as messages
        from ray.core.generated import gcs_service_pb2_grpc as services

        # Not the core worker's client, which would try again for ever.
        channel = init_grpc_channel(place)
        request = messages.InternalKVGetRequest(key=b"CLUSTER_METADATA", namespace=b"cluster")
        ask_for = services.InternalKVGcsServiceStub(channel).InternalKVGet
    except (ImportError, AttributeError):
        return None
    with closing(channel):
        try:
            answer = ask_for(request, timeout=_PROBE_S)
        except grpc.RpcError as error:
            raise _not_answered(place, error.code().name, str(error.details())) from error
    found = json.loads(answer.value or b"{}")
    return Software(str(found.get("ray_version", "")), str(found.get("python_version", "")))


def _not_answered(place: str, code: str, details: str) -> SpecError:
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return _refuse(_CLUSTER, place, "its token", details.split("\n")[0][:200] or code, _TOKEN_HINT)
    try:
        ask(f"http://{place}", "/api/version")
    except (InfrastructureError, SpecError):
        why = f"Something listens there, but no Ray answers ({code.lower()}: {details.splitlines()[0][:150]})"
        return _refuse(_CLUSTER, place, _CLUSTER_FORM, why, "`ray start --head` prints the address")
    return _refuse(_CLUSTER, place, _CLUSTER_FORM, "This is the job server, for atoll submit", "Try port 6379")


def _check_same(place: str, found: Software) -> None:
    """Ray's own rule: processes of one cluster have one Ray and one Python."""
    here = Software.here()
    depth = 2 if os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL") == "minor" else 3
    problems = []
    if found.ray and found.ray != here.ray:
        hint = f"Install ray=={found.ray} here, or use atoll submit: a job runs on the cluster's own Ray"
        problems.append(Problem(_CLUSTER, f"{place} with Ray {found.ray}", f"Ray {here.ray}, as here", hint=hint))
    if found.python and found.python.split(".")[:depth] != here.python.split(".")[:depth]:
        hint = "Use atoll submit: a job runs on the cluster's own Python"
        got = f"{place} with Python {found.python}"
        problems.append(Problem(_CLUSTER, got, f"Python {here.python}, as here", "objects are pickled", hint))
    if problems:
        raise SpecError(problems)


# ---- a job server to send to ----------------------------------------------------------------------------------------


def check_job_server(address: str) -> Software:
    """The software of the cluster whose job server is at `address`; 5 s, at most 15.

    Raises:
        SpecError: it is not an address; nobody is there, or no job server; the token is missing or wrong.
    """
    parts = _parsed(address)
    hint = "Is the head running, and its port reachable from here? `ray dashboard cluster.yaml` forwards it"
    _probe(_SERVER, address, str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80), hint)
    try:
        found = ask(address, "/api/version")
    except InfrastructureError as error:
        hint = "RAY_ADDRESS's host:port is another port of the same head" if "HTTP" in str(error) else ""
        raise _refuse(_SERVER, address, _SERVER_FORM, str(error), hint) from error
    if "ray_version" not in found:
        raise _refuse(_SERVER, address, _SERVER_FORM, "another web server answers there")
    try:
        more = ask(address, "/api/v0/cluster_metadata").get("data") or {}
    except InfrastructureError:
        more = {}
    return Software(str(found["ray_version"]), str(more.get("pythonVersion") or more.get("python_version") or ""))


def _parsed(address: str) -> Any:
    try:
        parts = urlsplit(address)
        if parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port):
            return parts
    except ValueError:
        pass
    hint = f"Write http://{address}" if "://" not in address and address.rpartition(":")[2] == "8265" else ""
    raise _refuse(_SERVER, address, _SERVER_FORM, "jobs are sent by HTTP", hint)


def ask(address: str, path: str, timeout_s: float | None = None) -> dict[str, Any]:
    """The JSON object that the server at `address` has at `path`.

    Raises:
        SpecError: the token is missing or wrong.
        InfrastructureError: no answer in time, or no such answer.
    """
    token = token_in(os.environ)
    request = urllib.request.Request(address.rstrip("/") + path, headers=_headers(token))
    try:
        with urllib.request.urlopen(request, timeout=timeout_s or _PROBE_S) as answer:
            found = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with closing(error):
            if error.code in (401, 403):
                rule = "its token" if token is None else "the right token"
                why = error.read(200).decode(errors="replace").strip()
                raise _refuse(_SERVER, address, rule, why, _TOKEN_HINT) from error
            raise InfrastructureError(f"{address}{path} answered {error.code}") from error
    except (http.client.HTTPException, ValueError) as error:
        raise InfrastructureError(f"{address} does not speak HTTP with JSON: {type(error).__name__}") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise InfrastructureError(f"{address}{path} does not answer: {reason}") from error
    if not isinstance(found, dict):
        raise InfrastructureError(f"{address}{path} answered something else than an object")
    return found


def _headers(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _probe(path: str, address: str, host: str, port: int, hint: str) -> None:
    try:
        socket.create_connection((host, port), timeout=_PROBE_S).close()
    except OSError as error:
        rule = _CLUSTER_FORM if path == _CLUSTER else _SERVER_FORM
        why = f"Nobody answers at {host} port {port}: {error}"
        raise _refuse(path, address, f"{rule}, that answers", why, hint) from error


def _refuse(path: str, address: str, rule: str, why: str = "", hint: str = "") -> SpecError:
    return SpecError([Problem(path, repr(address), rule, why, hint)])
