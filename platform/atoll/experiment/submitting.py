"""`atoll submit`: experiments as jobs on a Ray cluster.

The spec is checked here before anything is sent; what needs the data is checked there, where the data may lie. A job's
name is a function of its spec: submitted again, the job that runs is found, or the one that died goes on.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll import spec as sp
from atoll.errors import InfrastructureError, Problem, SpecError
from atoll.experiment import orders
from atoll.experiment.attempts import attempts_of, find_job, key_of, may_go_on, reached, story_of
from atoll.experiment.orders import Driver
from atoll.experiment.planning import SpecLike, as_spec
from atoll.experiment.running import keyed_folder

if TYPE_CHECKING:
    from atoll.runtime.jobs import Job, JobServer, Order

__all__ = ["Submission", "follow_job", "job_server", "see_through", "stop_job", "submit"]

_SPEC_KEY, _NAME_KEY = "atoll_spec", "atoll_name"
#: before a job that waits gets its first explanation, and between two
_PATIENCE_S, _REMIND_S = 10.0, 60.0
#: before an attempt that nobody asked for: this long, then twice as long each time, to a minute
_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 60.0
_POLL_S = 0.5
#: what pyproject.toml asks for
_LEAST = {"ray": "2.56", "python": "3.11"}


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that is there now.

    Attributes:
        job_id: KEY-aATTEMPT.
        key: shared by all attempts; the run's name in its store.
        attempt: 1, 2, …
        is_new: whether this call submitted it; else it was there.
        notes: what one should know, such as what a lost node would cost.
    """

    job_id: str
    key: str
    attempt: int
    is_new: bool
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def job_server(address: str | None = None) -> JobServer:
    """The job server at `address`, or where RAY_API_SERVER_ADDRESS or an http RAY_ADDRESS points.

    Raises:
        SpecError: no address, nobody there, no token.
    """
    from atoll.runtime.jobs import JobServer

    known = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if known is None and os.environ.get("RAY_ADDRESS", "").startswith("http"):
        known = os.environ["RAY_ADDRESS"]
    if known is None:
        rule = "the head's job server, such as http://10.0.0.7:8265"
        raise SpecError([Problem("--address", "nothing", rule, hint="Give --address, or set RAY_API_SERVER_ADDRESS")])
    return JobServer(known)


def submit(
    spec: SpecLike,
    *overrides: str,
    address: str | None = None,
    server: JobServer | None = None,
    key: str | None = None,
    driver: Driver | None = None,
) -> Submission:
    """Sends an experiment to a Ray cluster, unless a job of its key runs there, or has finished this very spec.

    Args:
        spec: a Spec, a mapping, or the path of a YAML file; for a run, a comparison or an ensemble.
        overrides: `dotted.key=value`.
        address: of the cluster's job server.
        server: that server, where it is connected already.
        key: names the run over all attempts; a function of the spec if None.
        driver: what the job's driver asks of its node.

    Raises:
        SpecError: everything that is wrong with the spec, or what cannot work there; a job of this key runs with
            another spec. Nothing is sent then.
        InfrastructureError: the server does not take the job.
    """
    resolved, asks = as_spec(spec, overrides), driver or Driver()
    name = key_of(resolved) if key is None else key
    keyed_folder(name, Path())
    environment = orders.environment_for(asks.environment, os.environ)
    server = job_server(address) if server is None else server
    here = Path.cwd() if server.is_this_machine() else None
    orders.check_portable(resolved, here)
    text = sp.dump(resolved)
    notes = (*orders.notes_of(resolved, here), *_software_notes(server))
    attempts = attempts_of(server.jobs(), name)
    if (attempt := _standing(attempts, name, text)) is not None:
        return Submission(f"{name}-a{attempt}", name, attempt, False, notes)
    from atoll.runtime.jobs import Order

    attempt = attempts[-1][0] + 1 if attempts else 1
    order = Order(
        id=f"{name}-a{attempt}",
        entrypoint=orders.entrypoint_of(name, here),
        files={orders.SPEC_FILE: text},
        packages=orders.packages_for(resolved, [str(Path.cwd()), *sys.path]),
        environment=environment,
        num_cpus=asks.num_cpus,
        resources=asks.resources,
        labels=asks.labels,
        metadata={_NAME_KEY: resolved.name, _SPEC_KEY: orders.fingerprint(text)},
    )
    return Submission(order.id, name, attempt, _send(server, order, text), notes)


def _send(server: JobServer, order: Order, text: str) -> bool:
    """Whether the job is ours: somebody else may submit the same one in this very moment."""
    try:
        with tempfile.TemporaryDirectory(prefix="atoll-job-") as folder:
            server.submit(order, Path(folder))
    except InfrastructureError:
        taken = next((job for job in server.jobs() if job.id == order.id), None)
        if taken is None or taken.metadata.get(_SPEC_KEY) != orders.fingerprint(text):
            raise
        return False
    return True


def _standing(attempts: Sequence[tuple[int, Job]], key: str, text: str) -> int | None:
    """The attempt that there is no need to submit again: it runs, or it has finished this very spec.

    Raises:
        SpecError: it runs with another spec.
    """
    if not attempts:
        return None
    attempt, last = attempts[-1]
    is_same = last.metadata.get(_SPEC_KEY) == orders.fingerprint(text)
    if not last.is_over and not is_same:
        why = "the same experiment with another stop, tracking store or runtime"
        hint = f"Wait for it, or atoll stop {last.id}, then submit; or give this one a --key of its own"
        raise SpecError([Problem("key", repr(key), f"one that is free: {last.id} runs there", why, hint)])
    return attempt if not last.is_over or (last.status == "SUCCEEDED" and is_same) else None


def _software_notes(server: JobServer) -> tuple[str, ...]:
    """What differs between there and here. The job's driver and workers are all of the cluster's own software.

    Raises:
        SpecError: this atoll does not run on it.
    """
    from atoll.runtime.connecting import Software

    here, there = Software.here(), server.software
    problems = []
    for name, found in (("ray", there.ray), ("python", there.python)):
        if found and _numbers(found) < _numbers(_LEAST[name]):
            hint = "Start the cluster from an image with newer software"
            problems.append(
                Problem("address", f"a cluster with {name} {found}", f"{name} {_LEAST[name]} or newer", hint=hint)
            )
    if problems:
        raise SpecError(problems)
    if there.ray in ("", here.ray) and there.python in ("", here.python):
        return ()
    return (
        f"The cluster has Ray {there.ray or '?'} and Python {there.python or '?'}, this machine Ray {here.ray} and "
        f"Python {here.python}: the job runs on the cluster's. Bits are equal on equal software only.",
    )


def _numbers(version: str) -> list[int]:
    """The first two of a version."""
    return [int(part) for part in version.split(".")[:2] if part.isdigit()]


def follow_job(
    server: JobServer,
    job_id: str,
    write: Callable[[str], None],
    on_wait: Callable[[str], None] | None = None,
    driver: Driver | None = None,
) -> Job:
    """Passes a job's log on until its end.

    Args:
        server: of the cluster.
        job_id: submission id.
        write: gets pieces of the log, each once.
        on_wait: told, after ten seconds and then every minute, why the job has not started.
        driver: what it asks of its node, for that story.

    Raises:
        InfrastructureError: the server was lost; the job may go on.
        KeyboardInterrupt: Ctrl-C; the job goes on.
    """
    due = time.monotonic() + _PATIENCE_S

    def poll(job: Job) -> None:
        nonlocal due
        if on_wait is not None and job.status == "PENDING" and time.monotonic() >= due:
            due = time.monotonic() + _REMIND_S
            on_wait(f"{job_id} {orders.waiting_story(driver or Driver(), server.nodes())}")

    return server.follow(job_id, write, poll)


def see_through(
    begin: Callable[[], Submission],
    follow: Callable[[Submission], Job],
    retries: int,
    tell: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Submission, Job]:
    """Follows a job to its end, and its next attempts where it was lost on the way.

    Args:
        begin: submits; called again for each attempt.
        follow: to the end of one attempt.
        retries: attempts after the first.
        tell: told why there is another one.
        sleep: waits so many seconds.

    Returns:
        The last attempt, and how it ended.
    """
    submission = begin()
    for pause in _pauses(retries):
        job = follow(submission)
        if not may_go_on(job):
            return submission, job
        tell(f"{job.id} was lost ({story_of(job)}); the next attempt goes on from its last snapshot in {pause:.0f} s")
        sleep(pause)
        submission = begin()
    return submission, follow(submission)


def _pauses(count: int) -> Iterator[float]:
    for number in range(count):
        yield min(_PAUSE_S * 2.0**number, _LONGEST_PAUSE_S)


def stop_job(server: JobServer, name: str, wait_s: float = orders.STOP_WAIT_S + 30.0) -> tuple[Job, str]:
    """Stops a job at its run's next step boundary, and waits for that.

    Args:
        server: of the cluster.
        name: submission id, or the key, for its last attempt.
        wait_s: how long to wait.

    Returns:
        The job at its end, and how far its run got, "" where its log does not say.

    Raises:
        SpecError: there is no such job.
        InfrastructureError: it has not ended in time.
    """
    job = find_job(server.jobs(), name)
    if not job.is_over:
        server.stop(job.id)
    began = time.monotonic()
    while not job.is_over:
        waited = time.monotonic() - began
        if job.status == "PENDING" and waited > _PATIENCE_S:
            story = "it stops as soon as it starts, or fails when Ray gives its start up (900 s)"
            raise InfrastructureError(f"{job.id} was asked to stop, but has not started: {story}")
        if waited > wait_s:
            raise InfrastructureError(f"{job.id} has not ended {wait_s:.0f} s after it was asked to")
        time.sleep(_POLL_S)
        job = server.job(job.id)
    try:
        return job, reached(server.log(job.id))
    except InfrastructureError:
        return job, ""  # its node is gone, and its log with it
