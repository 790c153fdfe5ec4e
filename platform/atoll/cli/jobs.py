"""`atoll submit | jobs | logs | stop`: experiments as jobs on a Ray cluster."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.errors import Problem, SpecError

if TYPE_CHECKING:
    from atoll.experiment.orders import Driver
    from atoll.experiment.submitting import Submission
    from atoll.runtime.jobs import Job, JobServer

__all__ = ["add_to", "jobs", "logs", "stop", "submit"]

#: jobs that are shown without --all
_SHOWN = 20
_INTERRUPTED = 130

Address = Annotated[
    str | None,
    typer.Option(help="The head's job server, such as http://10.0.0.7:8265; RAY_API_SERVER_ADDRESS if none."),
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="Job id, or the key of its run for the last attempt.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    for command in (submit, jobs, logs, stop):
        app.command()(command)


def submit(
    config: Annotated[Path, typer.Argument(help="The experiment, a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, by dotted key.")
    ] = None,
    address: Address = None,
    key: Annotated[str | None, typer.Option(help="Name of the run over all attempts; from the spec if none.")] = None,
    retries: Annotated[int, typer.Option(min=0, help="Attempts more where the job is lost on the way.")] = 0,
    follow: Annotated[bool, typer.Option(help="Show its log until it ends; its exit code is the command's.")] = True,
    num_cpus: Annotated[
        float, typer.Option("--num-cpus", min=0, help="CPUs that the driver holds; a head without any gets none.")
    ] = 1.0,
    resource: Annotated[
        list[str] | None, typer.Option(metavar="NAME=NUMBER", help="Custom resource that the driver holds.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Label of the driver's node.")] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Variable of this shell for the job.")] = None,
    as_json: Json = False,
) -> None:
    """Run an experiment as a job on a Ray cluster; submitted again it is found there, or goes on where it died."""
    from atoll.experiment import submitting
    from atoll.experiment.orders import Driver
    from atoll.experiment.planning import as_spec

    if retries and not follow:
        why = "this command begins them, so it has to stay"
        raise SpecError([Problem("--retries", str(retries), "0 with --no-follow", why)])
    spec = as_spec(config, overrides or ())
    driver = Driver(num_cpus, _numbers(resource or ()), dict(_pairs("--label", label or ())), tuple(env or ()))
    server = submitting.job_server(address)

    def begin() -> Submission:
        found = submitting.submit(spec, server=server, key=key, driver=driver)
        _tell_submission(found, server, follow)
        return found

    if not follow:
        found = begin()
        if as_json:
            _echo_object(found.as_dict())
        return
    tail = _Tail()
    submission, job = submitting.see_through(
        begin, lambda found: _follow(server, found.job_id, driver, tail), retries, _say
    )
    _end(job, {**submission.as_dict(), "result": tail.last_object()} if as_json else None)


def jobs(
    address: Address = None,
    show_all: Annotated[bool, typer.Option("--all", help=f"Show all, not only the last {_SHOWN}.")] = False,
    as_json: Json = False,
) -> None:
    """The jobs of a cluster, newest last: how each stands, which attempt it is, what it said at its end."""
    from atoll.experiment.submitting import job_server

    found = [_facts(job) for job in job_server(address).jobs()]
    shown = found if show_all else found[-_SHOWN:]
    _table(shown)
    if len(shown) < len(found):
        typer.echo(f"{len(found) - len(shown):,} older ones: atoll jobs --all")
    if as_json:
        _echo_object({"jobs": found})


def logs(
    job: JobName,
    address: Address = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Until the job ends; its exit code is the command's.")
    ] = False,
) -> None:
    """What a job printed."""
    from atoll.experiment.attempts import find_job
    from atoll.experiment.orders import Driver
    from atoll.experiment.submitting import job_server

    server = job_server(address)
    found = find_job(server.jobs(), job)
    if not follow:
        typer.echo(server.log(found.id), nl=False)
        return
    _end(_follow(server, found.id, Driver(), _Tail()), None)


def stop(job: JobName, address: Address = None, as_json: Json = False) -> None:
    """Stop a job at its run's next step boundary, and say how far it got."""
    from atoll.experiment.submitting import job_server, stop_job

    ended, where = stop_job(job_server(address), job)
    facts = _facts(ended) | {"reached": where}
    typer.echo(f"{ended.id} is {ended.status}{f': {where}' if where else ''}")
    if ended.status == "STOPPED":
        typer.echo("What is committed is kept. Submit the same experiment again to go on.")
    if as_json:
        _echo_object(facts)


# ---- following ------------------------------------------------------------------------------------------------------


class _Tail:
    """Shows a log, and keeps its last line."""

    def __init__(self) -> None:
        self._line = ""

    def write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        kept = self._line + text
        # the last line that is whole, and what follows it
        start = kept.rstrip("\n").rfind("\n") + 1
        self._line = kept[start:]

    def last_object(self) -> Any:
        """The job's own result; None where its last line is no JSON object."""
        try:
            found = json.loads(self._line)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None


def _follow(server: JobServer, job_id: str, driver: Driver, tail: _Tail) -> Job:
    from atoll.experiment.submitting import follow_job

    with _leaving(server, job_id):
        return follow_job(server, job_id, tail.write, _say, driver)


@contextmanager
def _leaving(server: JobServer, job_id: str) -> Iterator[None]:
    """Ctrl-C leaves the job running, and says so."""
    try:
        yield
    except KeyboardInterrupt:
        where = f"--address {server.address}"
        _say(f"{job_id} goes on. Look again: atoll logs {job_id} --follow {where}; end it: atoll stop {job_id} {where}")
        raise SystemExit(_INTERRUPTED) from None


def _end(job: Job, facts: dict[str, Any] | None) -> None:
    """Ends this command as the job ended."""
    from atoll.experiment.attempts import exit_code_of, story_of

    code = exit_code_of(job)
    _say(f"{job.id} {job.status}" + (f": {story_of(job)}" if code else ""))
    if facts is not None:
        _echo_object(facts | {"status": job.status, "exit_code": code})
    raise SystemExit(code)


def _tell_submission(found: Submission, server: JobServer, follow: bool) -> None:
    for note in found.notes:
        _say(note)
    _say(f"{found.job_id} {'submitted' if found.is_new else 'is there already'}")
    if not follow:
        where = f"--address {server.address}"
        _say(f"follow it: atoll logs {found.job_id} --follow {where}; stop it: atoll stop {found.job_id} {where}")


def _say(text: str) -> None:
    """To people, beside the log."""
    typer.echo(f"atoll: {text}", err=True)


# ---- arguments and tables -------------------------------------------------------------------------------------------


def _pairs(option: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [(name, value) for name, equals, value in (text.partition("=") for text in texts)]
    wrong = [text for text, (name, value) in zip(texts, pairs, strict=True) if not name or not value]
    if wrong:
        raise SpecError([Problem(option, repr(text), "NAME=VALUE") for text in wrong])
    return pairs


def _numbers(texts: Sequence[str]) -> dict[str, float]:
    pairs = _pairs("--resource", texts)
    try:
        return {name: float(value) for name, value in pairs}
    except ValueError as error:
        raise SpecError([Problem("--resource", ", ".join(texts), "NAME=NUMBER", str(error))]) from error


def _facts(job: Job) -> dict[str, Any]:
    from atoll.experiment.attempts import exit_code_of, split_id, story_of

    key, attempt = split_id(job.id) or (None, None)
    return {
        "job_id": job.id,
        "key": key,
        "attempt": attempt,
        "status": job.status,
        "began_ms": job.began_ms,
        "ended_ms": job.ended_ms,
        "exit_code": exit_code_of(job) if job.is_over else None,
        "message": story_of(job),
    }


def _table(rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        typer.echo("No jobs on this cluster yet. Send one with:  atoll submit configs/NAME.yaml --address URL")
        return
    cells = [("job", "run key", "attempt", "status", "since", "exit code", "what it says")]
    for row in rows:
        since = (row["ended_ms"] or row["began_ms"] or 0) / 1000
        moment = time.strftime("%m-%d %H:%M:%S", time.localtime(since)) if since else ""
        texts = (row["job_id"], row["key"], row["attempt"], row["status"], moment, row["exit_code"], row["message"])
        cells.append(tuple("" if text is None else str(text) for text in texts))  # type: ignore[arg-type]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        typer.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _echo_object(found: dict[str, Any]) -> None:
    typer.echo(json.dumps(found, allow_nan=False))
