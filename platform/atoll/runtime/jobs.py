"""Jobs on a Ray cluster, over its job server: what there is, one more, its log, its end. Nothing is decided here."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.errors import InfrastructureError, Problem, SpecError
from atoll.runtime.connecting import Software, ask, check_job_server, settle_authentication

__all__ = ["Job", "JobServer", "Node", "Order"]

_CONNECT_S, _ANSWER_S = 5.0, 60.0
_POLL_S = 1.0
#: without an answer for this long, the server counts as lost
_LOST_S = 60.0
#: how long the last lines of a log may take once its job is over
_LAST_LINES_S = 10.0
_OVER = frozenset(["SUCCEEDED", "FAILED", "STOPPED"])
#: loggers that tell of every package that is sent
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


@dataclass(frozen=True, slots=True)
class Job:
    """What the server knows of a job.

    Attributes:
        id: submission id.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        message: Ray's words on it.
        exit_code: of its process; None before its end, after a stop, and where it was lost with its node.
        error_type: Ray's name for what went wrong, or "".
        began_ms, ended_ms: Unix time; None if not yet.
        metadata: given by who submitted it.
    """

    id: str
    status: str
    message: str = ""
    exit_code: int | None = None
    error_type: str = ""
    began_ms: int | None = None
    ended_ms: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether its status can change no more."""
        return self.status in _OVER


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is alive: where it is, what it has in all, free or not."""

    address: str
    is_head: bool
    resources: Mapping[str, float]
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Order:
    """A job to be.

    Attributes:
        id: submission id, new on this cluster.
        entrypoint: shell command.
        files: name → content of its working directory.
        packages: folders of Python packages, or single modules, that every process of the job imports first.
        environment: variables of every process of the job.
        num_cpus, resources, labels: of the node that runs the entry point.
        metadata: kept with the job.
    """

    id: str
    entrypoint: str
    files: Mapping[str, str]
    packages: Sequence[Path]
    environment: Mapping[str, str]
    num_cpus: float
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    metadata: Mapping[str, str]


class JobServer:
    """A cluster's job server, once it has been found to answer.

    Args:
        address: http://HOST:8265.

    Raises:
        SpecError: nobody answers there, or not to this token.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        settle_authentication()
        self.software: Software = check_job_server(self.address)
        self._client = _client(self.address)

    def jobs(self) -> list[Job]:
        """All that were submitted, oldest first; drivers that people started by hand are none."""
        found = [_job(one) for one in self._asked(self._client.list_jobs) if one.type.value == "SUBMISSION"]
        return sorted(found, key=lambda job: job.began_ms or 0)

    def job(self, job_id: str) -> Job:
        """One of them.

        Raises:
            InfrastructureError: there is none, or no answer.
        """
        return _job(self._asked(lambda: self._client.get_job_info(job_id)))

    def submit(self, order: Order, folder: Path) -> None:
        """Sends the job; returns before it starts.

        Args:
            order: the job.
            folder: empty; what is to be sent is put together in it.

        Raises:
            InfrastructureError: the server does not take it.
        """
        for name, text in order.files.items():
            (folder / name).write_text(text, encoding="utf-8")
        for path in order.packages:
            if path.is_file():  # Ray takes folders only; the working directory is looked into for modules too
                shutil.copy(path, folder)
        environment: dict[str, Any] = {
            "working_dir": str(folder),
            "py_modules": [str(path) for path in order.packages if path.is_dir()],
            "excludes": ["__pycache__"],
            "env_vars": dict(order.environment),
        }
        self._asked(
            lambda: self._client.submit_job(
                submission_id=order.id,
                entrypoint=order.entrypoint,
                runtime_env=environment,
                metadata=dict(order.metadata),
                entrypoint_num_cpus=order.num_cpus,
                entrypoint_resources=dict(order.resources) or None,
                entrypoint_label_selector=dict(order.labels) or None,
            )
        )

    def stop(self, job_id: str) -> None:
        """Asks it to stop; returns before it has."""
        self._asked(lambda: self._client.stop_job(job_id))

    def log(self, job_id: str) -> str:
        """All that it printed so far."""
        return str(self._asked(lambda: self._client.get_job_logs(job_id)))

    def nodes(self) -> list[Node]:
        """Those that are alive, as far as the server tells."""
        try:
            return nodes_of(ask(self.address, "/api/v0/nodes?detail=true&limit=1000", _ANSWER_S))
        except InfrastructureError:
            return []

    def is_this_machine(self) -> bool:
        """Whether every node of the cluster is this machine: folders here are the job's folders too.

        The address does not tell: people forward ports. The processes of the cluster's session do.
        """
        session = str(ask(self.address, "/api/version").get("session_name", ""))
        # a head that has just started names no nodes yet, not even itself
        return bool(session) and _raylets_here(session) >= max(1, len(self.nodes()))

    def follow(self, job_id: str, write: Callable[[str], None], on_poll: Callable[[Job], None] | None = None) -> Job:
        """Passes the job's log on until its end.

        Args:
            job_id: submission id.
            write: gets pieces of the log, each once.
            on_poll: told how the job stands, every second.

        Raises:
            InfrastructureError: the server was lost; the job may go on.
            KeyboardInterrupt: Ctrl-C; the job goes on.
        """
        return asyncio.run(self._follow(job_id, write, on_poll or (lambda job: None)))

    async def _follow(self, job_id: str, write: Callable[[str], None], on_poll: Callable[[Job], None]) -> Job:
        log = _Log(write)
        tail = asyncio.create_task(self._pass_on(job_id, log))
        answered = time.monotonic()
        try:
            while True:
                try:
                    job = await asyncio.to_thread(self.job, job_id)
                    answered = time.monotonic()
                except InfrastructureError:
                    if time.monotonic() - answered > _LOST_S:
                        raise
                    await asyncio.sleep(_POLL_S)
                    continue
                on_poll(job)
                if job.is_over:
                    await asyncio.wait([tail], timeout=_LAST_LINES_S)
                    return job
                if tail.done():  # its node is gone, or the connection broke
                    tail = asyncio.create_task(self._pass_on(job_id, log))
                await asyncio.wait([tail], timeout=_POLL_S)
                await asyncio.sleep(_POLL_S if tail.done() else 0)
        finally:
            tail.cancel()

    async def _pass_on(self, job_id: str, log: _Log) -> None:
        """Follows the log from its beginning; what was passed on before is left out."""
        log.begin()
        with contextlib.suppress(Exception):  # whatever breaks the connection: it is made again, or the job is over
            async for text in self._client.tail_job_logs(job_id):
                log.add(text)

    def _asked(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (RuntimeError, OSError) as error:  # Ray's client, and requests under it
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InfrastructureError(f"the job server at {self.address}: {first[:300]}") from error
        except Exception as error:
            if type(error).__name__ != "AuthenticationError":
                raise
            rule, hint = "the cluster's token", "It was right when this command began"
            raise SpecError([Problem("address", repr(self.address), rule, hint=hint)]) from error


class _Log:
    """What was passed on of a log, that may be read from its beginning again."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._passed, self._read = write, 0, 0

    def begin(self) -> None:
        self._read = 0

    def add(self, text: str) -> None:
        self._read += len(text)
        fresh = min(len(text), self._read - self._passed)
        if fresh > 0:
            self._passed = self._read
            self._write(text[-fresh:])


def _client(address: str) -> Any:
    """Ray's client of the job server, with an end to its patience."""
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)

    with _only_address(address):
        client = JobSubmissionClient(address)
    # Ray's requests wait for ever for a server that has gone silent.
    client._do_request = functools.partial(client._do_request, timeout=(_CONNECT_S, _ANSWER_S))
    return client


@contextlib.contextmanager
def _only_address(address: str) -> Iterator[None]:
    """Inside, Ray's environment variables say what we say: they would go before any argument."""
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _job(found: Any) -> Job:
    return Job(
        id=str(found.submission_id),
        status=str(found.status.value),
        message=str(found.message or ""),
        exit_code=found.driver_exit_code,
        error_type=str(found.error_type or ""),
        began_ms=found.start_time,
        ended_ms=found.end_time,
        metadata=dict(found.metadata or {}),
    )


def nodes_of(answer: Mapping[str, Any]) -> list[Node]:
    """Nodes that are alive, out of the server's answer.

    Purity: pure.
    """
    rows = ((answer.get("data") or {}).get("result") or {}).get("result") or []
    found = []
    for row in rows:
        if row.get("state") != "ALIVE":
            continue
        resources = row.get("resources_total") or {}
        numbers = {name: float(value) for name, value in resources.items() if isinstance(value, int | float)}
        labels = dict(row.get("labels") or {})
        found.append(Node(str(row.get("node_ip", "")), bool(row.get("is_head_node")), numbers, labels))
    return found


def _raylets_here(session: str) -> int:
    """How many nodes of this session are processes of this machine; 0 where the system does not say."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            words = path.read_bytes().split(b"\0")
            count += words[0].endswith(b"/raylet") and any(session.encode() in word for word in words)
    return count
