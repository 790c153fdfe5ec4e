"""Tracking stores: is this address usable, is its database initialised, how is its web page served."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
import sqlite3
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.errors import Problem, SpecError

__all__ = [
    "UiCommand",
    "absolute_uri",
    "artifact_root",
    "initialise",
    "load_mlflow",
    "page_url",
    "preflight",
    "quiet",
    "ui",
]

_PLACE = "tracking.uri"
_PROBE_TIMEOUT_S = 5
_SQL_SCHEMES = ("postgresql", "mysql", "mssql")
_SERVER_SCHEMES = ("http://", "https://")
#: answers only who may use the server, where it asks who one is
_GUARDED = "/api/2.0/mlflow/experiments/search?max_results=1"
_DRIVERS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
#: where passwords belong, by the address's scheme
_CREDENTIALS = {
    "http": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment",
    "postgresql": "set PGPASSWORD in the environment, or write ~/.pgpass",
}
_NOISY_LOGGERS = ("alembic", "mlflow.store.db.utils", "mlflow.store.tracking.sqlalchemy_store")
_CLIENT_ENV = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # The outbox waits and tries again by itself: a client that retries for minutes only hides the failure from it.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def load_mlflow() -> Any:
    """Import MLflow (about two seconds the first time) with telemetry off and short HTTP retries.

    Environment variables that are set already are left as they are.
    """
    for name, value in _CLIENT_ENV.items():
        os.environ.setdefault(name, value)
    with quiet():
        import mlflow
        import mlflow.store.tracking.sqlalchemy_store
    return mlflow


@contextmanager
def quiet() -> Iterator[None]:
    """Silence MLflow's and Alembic's chatter and third-party deprecation warnings inside the block."""
    levels = {name: logging.getLogger(name).level for name in _NOISY_LOGGERS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _NOISY_LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _sqlite_path(uri: str) -> Path | None:
    prefix = "sqlite:///"
    if not uri.startswith(prefix) or len(uri) == len(prefix) or ":memory:" in uri:
        return None
    return Path(uri.removeprefix(prefix).partition("?")[0]).absolute()


def absolute_uri(uri: str) -> str:
    """`uri` with a SQLite path made absolute, so that every process means the same file.

    Example:
        >>> absolute_uri("http://127.0.0.1:5000")
        'http://127.0.0.1:5000'
    """
    path = _sqlite_path(uri)
    if path is None:
        return uri
    query = uri.partition("?")[2]
    return f"sqlite:///{path}" + (f"?{query}" if query else "")


def artifact_root(uri: str) -> str | None:
    """Absolute folder for artifacts, beside the SQLite file; None where a server decides it."""
    path = _sqlite_path(uri)
    return None if path is None else str(path.parent / "mlartifacts")


def preflight(uri: str) -> None:
    """Refuse a tracking store that cannot be used, before anything starts.

    Takes at most 5 s for a server that does not answer; no time for an SQLite file that this MLflow has opened before,
    and for a new one, which whoever opens it first initialises: MLflow, seconds to load, stays out of this process.
    Only a server that asks for credentials is asked by MLflow itself, with those that the run will use.

    Raises:
        SpecError: the address is not understood or holds a password, the server does not answer or refuses the
            credentials, or the file cannot be used.
    """
    scheme = uri.partition(":")[0].partition("+")[0]
    _check_no_password(uri, scheme)
    if scheme in ("http", "https"):
        _probe_server(uri)
    elif scheme == "sqlite":
        path = _sqlite_path(uri)
        if path is None:
            raise _refuse(uri, "sqlite:/// and a file path", "metrics must outlive the process")
        if _check_sqlite_file(uri, path):
            initialise(uri)
    elif scheme in _SQL_SCHEMES:
        initialise(uri)
    else:
        why = "MLflow's file store is switched off since 3.13" if scheme in ("file", "") or "/" in scheme else ""
        hint = "sqlite:///mlflow.db works without a server"
        raise _refuse(uri, "an address that starts with sqlite:///, http://, https:// or postgresql://", why, hint)


def _refuse(uri: str, rule: str, why: str = "", hint: str = "") -> SpecError:
    return SpecError([Problem(_PLACE, repr(_without_password(uri)), rule, why, hint)])


def _without_password(uri: str) -> str:
    return re.sub(r"//([^/:@]*):[^@/]*@", r"//\1:***@", uri)


def _check_no_password(uri: str, scheme: str) -> None:
    """An address is written down: in spec.yaml, in the journal, in MLflow."""
    hint = _CREDENTIALS.get("http" if scheme == "https" else scheme)
    if hint is not None and _without_password(uri) != uri:
        raise _refuse(uri, "an address without a password", "it is kept in spec.yaml, the journal and MLflow", hint)


def _probe_server(uri: str) -> None:
    url = uri.rstrip("/")
    status, said = _get(f"{url}/health")
    # a proxy may guard /health, yet somebody speaks HTTP there; broken servers say 5xx
    if status is None or status >= 500 or status == 404:
        raise _refuse(uri, "a running MLflow server", said, "start it with `mlflow server`, or use sqlite:///mlflow.db")
    status, said = _get(url + _GUARDED)
    if "Invalid Host header" in said:
        host = uri.partition("//")[2].partition("/")[0]
        hint = f"start it with `mlflow server --allowed-hosts {host}`; that list takes the place of the default"
        raise _refuse(uri, "a host name that the server allows", said, hint)
    if status in (401, 403):
        _check_credentials(uri)


def _get(url: str) -> tuple[int | None, str]:
    """(status, what was said, shortened) of an HTTP server; no status where there is none."""
    import urllib.error  # brings http, email and ssl: only preflight of a server pays for them
    import urllib.request

    # urllib takes "user@host" for a host name
    url = re.sub(r"//[^/@]*@", "//", url)
    try:
        with urllib.request.urlopen(url, timeout=_PROBE_TIMEOUT_S) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        with closing(error):
            body = error.read(300).decode(errors="replace").strip()
            return error.code, f"{url} answered {error.code} {body}".strip()
    except (OSError, ValueError) as error:
        return None, f"{url}: {getattr(error, 'reason', error)}"


def _check_credentials(uri: str) -> None:
    """Asks as the run will: MLflow's client has several ways to find credentials, plug-ins among them."""
    mlflow = load_mlflow()
    try:
        with quiet():
            mlflow.MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except Exception as error:  # requests, MLflow and its plug-ins each raise their own kinds
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise _refuse(uri, "credentials that the server accepts", why, _CREDENTIALS["http"]) from error


def initialise(uri: str) -> None:
    """Make an SQL database ready for MLflow: its tables, 2 to 9 s, once. Does nothing to a server.

    Safe to call from several processes at once. An SQLite file that this MLflow has opened before takes no time.

    Raises:
        SpecError: the database cannot be used, or is of another MLflow.
    """
    path = _sqlite_path(uri)
    if uri.startswith(_SERVER_SCHEMES) or (path is not None and _is_ready(path)):
        return
    mlflow = load_mlflow()
    with _lock(path), quiet():
        try:
            if path is None:
                _connect_once(uri)
            store = mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore(
                absolute_uri(uri), artifact_root(uri) or "mlartifacts"
            )
        except Exception as error:  # drivers of several databases raise their own kinds; all mean: unusable
            hint = "mlflow db upgrade URI brings an old database up to date, after a backup"
            if isinstance(error, ModuleNotFoundError):
                hint = f"pip install {_DRIVERS.get(error.name or '', error.name)}, on every machine that writes there"
            raise _refuse(uri, "a database that MLflow can open", str(error).split("\n")[0][:500], hint) from error
        store.engine.dispose()
        if path is not None:
            _stamp_path(path).write_text(_stamp(path))


def _connect_once(uri: str) -> None:
    """Raises what the database's driver says: MLflow would try for minutes to reach one that is not there."""
    import sqlalchemy

    arguments = {"connect_timeout": _PROBE_TIMEOUT_S} if uri.startswith("postgresql") else {}
    sqlalchemy.create_engine(uri, connect_args=arguments, poolclass=sqlalchemy.NullPool).connect().close()


def _is_ready(path: Path) -> bool:
    """Whether this MLflow is known to have found the file good."""
    try:
        return path.exists() and _stamp_path(path).read_text() == _stamp(path)
    except (OSError, sqlite3.Error):
        return False


def _stamp_path(path: Path) -> Path:
    """The file whose lock keeps initialisers apart; it says which MLflow has found the database good."""
    return path.with_name(f".{path.name}.lock")


def _stamp(path: Path) -> str:
    """The installed MLflow and the version of the database's tables."""
    from importlib.metadata import version

    with closing(sqlite3.connect(path, timeout=20.0)) as db:
        return f"{version('mlflow')} {db.execute('SELECT version_num FROM alembic_version').fetchall()}"


def _check_sqlite_file(uri: str, path: Path) -> bool:
    """Whether there are tables; raises SpecError where they are not MLflow's, or there is no room for a file."""
    folder = path.parent
    if not folder.is_dir():
        raise _refuse(uri, "a file in an existing folder", f"{folder} is not a folder", f"mkdir -p {folder}")
    if path.is_dir():
        raise _refuse(uri, "a file", f"{path} is a folder")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.R_OK | os.W_OK)):
        raise _refuse(uri, "a file that may be written", f"{path} or its folder is read-only")
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        if file.read(16) != b"SQLite format 3\x00":
            raise _refuse(uri, "an SQLite file", f"{path} is something else", "choose another file name")
    tables = _tables(path)
    if tables and "alembic_version" not in tables:
        raise _refuse(uri, "an MLflow database", f"{path} holds other tables", "choose another file name")
    return bool(tables)


def _tables(path: Path) -> set[str]:
    try:
        with closing(sqlite3.connect(path, timeout=20.0)) as db:
            return {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise _refuse(f"sqlite:///{path}", "a readable SQLite file", str(error)) from error


@contextmanager
def _lock(path: Path | None) -> Iterator[None]:
    """One initialiser at a time: MLflow's migrations race on a new file."""
    if path is None:
        yield
        return
    try:
        file = _stamp_path(path).open("a")
    except OSError as error:
        raise _refuse(f"sqlite:///{path}", "a file in a folder that may be written", str(error)) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True, slots=True)
class UiCommand:
    """How to serve a tracking store's web page: `os.execvpe(argv[0], argv, {**os.environ, **env})`; then open `url`.

    `argv` is empty where a server serves it already.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    url: str


def ui(uri: str, port: int | None = None) -> UiCommand:
    """Command that serves the web page of the store at `uri` on loopback, on `port` or a free one.

    Raises:
        SpecError: the port is taken, or `uri` is a server, which has a port of its own.
    """
    if uri.startswith(_SERVER_SCHEMES):
        if port is not None:
            raise SpecError([Problem("port", str(port), "no port for a server", f"{uri} has its own", "leave it out")])
        return UiCommand((), {}, uri)
    chosen = _free_port(port)
    hosts = f"127.0.0.1:{chosen},localhost:{chosen}"
    argv = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", absolute_uri(uri)]
    root = artifact_root(uri)
    if root is not None:
        argv += ["--default-artifact-root", root]
    argv += ["--host", "127.0.0.1", "--port", str(chosen), "--workers", "1", "--allowed-hosts", hosts]
    env = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return UiCommand(tuple(argv), env, f"http://127.0.0.1:{chosen}")


def page_url(server_url: str, experiment_id: str, run_id: str | None = None) -> str:
    """Address of a run's page, or of its experiment's table of runs, on a running server.

    Without the query MLflow 3.17 opens experiments in its view for chat applications, where runs are hidden; links
    inside the web page lose it again, and the switch "Model training" at the top left brings it back.

    Example:
        >>> page_url("http://127.0.0.1:5000", "1", "ab12")
        'http://127.0.0.1:5000/#/experiments/1/runs/ab12?workflowType=machine_learning'
    """
    place = "" if run_id is None else f"/runs/{run_id}"
    return f"{server_url.rstrip('/')}/#/experiments/{experiment_id}{place}?workflowType=machine_learning"


def _free_port(port: int | None) -> int:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port or 0))
        except (OSError, OverflowError) as error:
            raise SpecError([Problem("port", str(port), "a free port", str(error), "leave it out")]) from error
        return int(probe.getsockname()[1])
