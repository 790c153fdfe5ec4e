"""`atoll plan | run | compare | ui | schema`."""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from atoll.errors import AtollError, Problem, SpecError

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
_INTERRUPTED = "interrupted; a run that had started keeps its metrics and timeline so far, in its folder and in MLflow"

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
def plan(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Plan only, no training: duration, staleness, waste, blocks, memory."""
    from atoll.cli import show
    from atoll.experiment import as_spec
    from atoll.experiment import plan as make_plan
    from atoll.spec import arms

    reports = {}
    for arm, seed, spec in arms(as_spec(config, overrides or ())):
        reports[f"{arm} seed {seed}" if arm else spec.name] = make_plan(spec)
    show.plans(reports)
    if as_json:
        found = {name: report.as_dict() for name, report in reports.items()}
        _echo_object(next(iter(found.values())) if len(found) == 1 else {"plans": found})


@app.command()
def run(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Run an experiment here; where it names arms to compare, run them all and print the ratios."""
    from atoll.cli import show
    from atoll.experiment import as_spec, outcome_dict, run_comparison
    from atoll.experiment import run as run_one

    spec = as_spec(config, overrides or ())
    if spec.comparison is not None:
        with show.live() as display:
            compared = run_comparison(spec, on_run=display.begin)
        show.comparison(compared.comparison, compared.html, compared.csv)
        show.address(spec.tracking.uri, spec.tracking.experiment or spec.name)
        if as_json:
            _echo_object(outcome_dict(compared))
        return
    with show.live() as display:
        finished = run_one(spec, on_progress=display.begin("", 1, 1, spec))
    show.run(finished)
    show.address(spec.tracking.uri, finished.experiment)
    if as_json:
        _echo_object(finished.as_dict())


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
    from atoll.tracking import preflight
    from atoll.tracking import ui as command

    preflight(uri)
    found = command(uri, port)
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
    try:
        code: Any = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        _end(_INTERRUPTED, 130)
    except _UsageProblem as error:
        error.show()
        sys.exit(error.exit_code)
    except AtollError as error:
        _end(str(error), error.exit_code)
    except Exception:
        traceback.print_exc()
        _end("this is a bug in atoll, or in code that it was given; please report it with the lines above", 1)
    if code == 130:  # typer's own answer to Ctrl-C
        _end(_INTERRUPTED, 130)
    sys.exit(code if isinstance(code, int) else 0)


def _end(message: str, code: int) -> NoReturn:
    """Prints what went wrong, one problem a line, and ends."""
    lines = message.splitlines() or [""]
    if code == 2 and len(lines) > 1:
        lines = [f"{len(lines)} problems:", *(f"  - {line}" for line in lines)]
    print("atoll: " + "\n".join(lines), file=sys.stderr)
    sys.exit(code)
