"""`atoll plan | run | resume | compare | ui | schema`."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from atoll.cli import cluster, doctor, export, jobs, sweep, upkeep
from atoll.errors import AtollError, Interrupted, Problem, SpecError

if TYPE_CHECKING:
    from atoll.experiment import ComparisonRun, EnsembleRun, Run
    from atoll.spec import Spec

__all__ = ["app", "main"]

app = typer.Typer(
    name="atoll",
    help="Federated learning experiments: synchronous and asynchronous (FedBuff), millions of virtual clients, "
    "one plan, one model bit for bit.\n\nStart with:  atoll run configs/quickstart.yaml",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

#: what typer raises for wrong usage: its own copy of click's class in new releases, click's in old ones
_UsageProblem: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
_INTERRUPTED = "interrupted; what a run had committed is kept: `atoll runs` lists what can be resumed"

Config = Annotated[Path, typer.Argument(help="The experiment, a YAML file such as configs/fedbuff_flights.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes, by dotted key: client.lr=0.05 schedule.buffer_goal=10"),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from atoll import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    pools: Annotated[
        str | None,
        typer.Option(help="Predict wall time, hours, occupancy and bytes for so many client pools, such as 1,8,64."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Plan only, no training: duration, staleness, waste, blocks, memory; with --pools also the wall time."""
    from atoll.cli import show
    from atoll.experiment import as_spec
    from atoll.experiment import plan as make_plan
    from atoll.spec import arms

    resolved = as_spec(config, overrides or ())
    if pools is not None:
        _forecast(resolved, pools, as_json)
        return
    if resolved.ensemble is not None:
        from atoll.cli import show_ensemble
        from atoll.experiment import plan_ensemble

        planned = plan_ensemble(resolved)
        show_ensemble.plan(planned)
        if as_json:
            _echo_object(planned.as_dict())
        return
    reports = {}
    for arm, seed, spec in arms(resolved):
        reports[f"{arm} seed {seed}" if arm else spec.name] = make_plan(spec)
    show.plans(reports)
    if as_json:
        found = {name: report.as_dict() for name, report in reports.items()}
        _echo_object(next(iter(found.values())) if len(found) == 1 else {"plans": found})


def _forecast(resolved: Spec, pools: str, as_json: bool) -> None:
    from atoll.cli import show, show_forecast
    from atoll.experiment import predict
    from atoll.spec import arms

    if not all(part.strip().isdecimal() for part in pools.split(",")):
        rule = "numbers of client pools, such as 1,8,64,512"
        raise SpecError([Problem("--pools", repr(pools), rule)])
    if resolved.ensemble is not None:
        hint = "predict one leaf alone: ensemble=null clusters.only=NAME"
        raise SpecError([Problem("--pools", "a file with an ensemble", "a file without one", hint=hint)])
    numbers = [int(part) for part in pools.split(",")]
    forecasts = {
        f"{arm} seed {seed}" if arm else spec.name: predict(spec, pools=numbers) for arm, seed, spec in arms(resolved)
    }
    show.plans({name: forecast.report for name, forecast in forecasts.items()})
    for name, forecast in forecasts.items():
        show_forecast.forecast(name, forecast)
    show_forecast.assumptions(forecasts)
    if as_json:
        found = {name: forecast.as_dict() for name, forecast in forecasts.items()}
        _echo_object(next(iter(found.values())) if len(found) == 1 else {"plans": found})


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    key: Annotated[
        str | None,
        typer.Option(help="Name of the run: begun once under it, it goes on where it stopped when started again."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run an experiment here; where it names arms to compare, or an ensemble, run them all and compare."""
    from atoll.cli import show
    from atoll.experiment import as_spec, run_comparison, run_ensemble
    from atoll.experiment import run as run_one

    spec = as_spec(config, overrides or ())
    if spec.ensemble is not None:
        with _stopping(), show.live() as display:
            joined = run_ensemble(spec, key=key, on_group=display.begin_group)
        _tell_ensemble(joined, as_json)
        return
    if spec.comparison is not None:
        with _stopping(), show.live() as display:
            compared = run_comparison(spec, key=key, on_run=display.begin)
        _tell_comparison(compared, as_json)
        return
    with _stopping(), show.live() as display:
        finished = run_one(spec, key=key, on_progress=display.begin("", 1, 1, spec))
    _tell_run(finished, as_json)


@app.command()
def resume(
    run: Annotated[str, typer.Argument(help="Folder, run id or name of a run, or the folder of several.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="A longer stop (stop.server_steps=900), tracking, workers."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Go on with other software or client settings; the result is marked as not comparable."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Go on exactly where a run stopped, whatever stopped it; or make a finished run longer."""
    from atoll.cli import show
    from atoll.experiment import find_folder, resume_comparison, resume_ensemble
    from atoll.experiment import resume as resume_one
    from atoll.experiment.records import COMPARISON_FILE, is_ensemble, is_sweep

    folder = find_folder(run)
    if not (folder / COMPARISON_FILE).is_file():
        with _stopping(), show.live() as display:
            note = display.begin_named(folder.name)
            finished = resume_one(folder, *(overrides or ()), force=force, on_progress=note)
        _tell_run(finished, as_json)
        return
    if overrides or force:
        rule, hint = "no change to several runs at once", "resume one of its runs, or begin anew"
        raise SpecError([Problem("resume", " ".join(overrides or ["--force"]), rule, "", hint)])
    if is_sweep(folder):
        sweep.resume(folder, as_json)
        return
    with _stopping(), show.live() as display:
        if is_ensemble(folder):
            joined, compared = resume_ensemble(folder, on_group=display.begin_group), None
        else:
            joined, compared = None, resume_comparison(folder, on_run=display.begin)
    if joined is not None:
        _tell_ensemble(joined, as_json)
    if compared is not None:
        _tell_comparison(compared, as_json)


class _Stopped(AtollError):
    """An Interrupted that typer does not take for its own Ctrl-C: the message would be lost."""

    exit_code = 130


@contextmanager
def _stopping() -> Iterator[None]:
    try:
        yield
    except Interrupted as error:
        raise _Stopped(error.message) from error


def _tell_run(finished: Run, as_json: bool) -> None:
    from atoll.cli import show

    show.run(finished)
    show.address(finished.tracking_uri, finished.experiment)
    if as_json:
        _echo_object(finished.as_dict())


def _tell_comparison(compared: ComparisonRun, as_json: bool) -> None:
    from atoll.cli import show
    from atoll.experiment import outcome_dict

    show.comparison(compared.comparison, compared.html, compared.csv)
    show.address(compared.runs[0].tracking_uri, compared.runs[0].experiment)
    if as_json:
        _echo_object(outcome_dict(compared))


def _tell_ensemble(joined: EnsembleRun, as_json: bool) -> None:
    from atoll.cli import show, show_ensemble

    show_ensemble.judgement(joined.judgement)
    show.files(joined.html, joined.csv)
    show.address(joined.tracking_uri, joined.experiment)
    if as_json:
        _echo_object(joined.as_dict())


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Two runs or more: run id, name or folder; with --uri run ids, a parent's for all its runs."
        ),
    ],
    baseline: Annotated[
        str | None, typer.Option(help="Arm or run name that ratios refer to; the first if none.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Target metric, such as auc; the runs' own if none.")] = None,
    value: Annotated[float | None, typer.Option(help="Target value.")] = None,
    uri: Annotated[str | None, typer.Option(help="Read run ids from this MLflow store instead of ./runs.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for comparison.html and comparison.csv.")] = Path("compare"),
    as_json: Json = False,
) -> None:
    """Cost until the target, in virtual hours, client updates and bytes, with ratios; saved as HTML and CSV."""
    from atoll.cli import show
    from atoll.experiment import compare_runs, write_comparison

    found = compare_runs(runs, uri=uri, baseline=baseline, metric=metric, value=value)
    html, csv = write_comparison(found, out, "Comparison of runs")
    show.comparison(found, html, csv)
    if as_json:
        ratios = {arm.name: dict(arm.ratios) for arm in found.arms}
        _echo_object({"html": html, "csv": csv, "ratios": ratios})


@app.command()
def ui(
    uri: Annotated[str, typer.Option(help="Tracking store.")] = "sqlite:///mlflow.db",
    port: Annotated[int | None, typer.Option(help="Port on 127.0.0.1; a free one if none.")] = None,
) -> None:
    """Open the MLflow UI on the right store."""
    from atoll.tracking import initialise, preflight
    from atoll.tracking import ui as command

    preflight(uri)
    initialise(uri)
    found = command(uri, port)
    if not found.argv:
        typer.echo(f"MLflow: {found.url}   (a server: open it in a browser)")
        return
    typer.echo(f"MLflow: {found.url}   (Ctrl-C ends it)")
    os.execvpe(found.argv[0], list(found.argv), {**os.environ, **found.env})


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of printing.")] = None,
) -> None:
    """JSON schema of experiment files, for editors to complete and check them."""
    from atoll.spec import json_schema

    text = json.dumps(json_schema(), indent=2)
    if out is None:
        typer.echo(text)
        return
    try:
        out.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise SpecError([Problem("out", repr(str(out)), "a file that may be written", str(error))]) from error


cluster.add_to(app)
upkeep.add_to(app)
doctor.add_to(app)
export.add_to(app)
sweep.add_to(app)
jobs.add_to(app)


def _echo_object(found: dict[str, Any]) -> None:
    """One JSON object on one line; JSON has no NaN and no infinity, so they become null."""
    typer.echo(json.dumps(_finite(found), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> NoReturn:
    """Entry point: exit 0 done, 2 refused before the start, 3 failed on the way, 130 interrupted, 1 a bug."""
    # A job that is stopped gets SIGTERM: before a run has begun it ends like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code: Any = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        _end(_INTERRUPTED, 130)
    except _UsageProblem as error:
        error.show()
        sys.exit(error.exit_code)
    except AtollError as error:
        _end("\n".join([str(error), *getattr(error, "__notes__", ())]), error.exit_code)
    except Exception:
        traceback.print_exc()
        _end("this is a bug in atoll, or in code that it was given; please report it with the lines above", 1)
    if code == 130:  # typer's own answer to Ctrl-C
        _end(_INTERRUPTED, 130)
    sys.exit(code if isinstance(code, int) else 0)


def _end(message: str, code: int) -> NoReturn:
    """Prints what went wrong, one problem a line, and ends; an indented line goes on with the problem above it."""
    lines = message.splitlines() or [""]
    count = sum(not line.startswith(" ") for line in lines)
    if code == 2 and count > 1:
        lines = [f"{count} problems:", *(f"  {'  ' if line.startswith(' ') else '- '}{line}" for line in lines)]
    print("atoll: " + "\n".join(lines), file=sys.stderr)
    sys.exit(code)
