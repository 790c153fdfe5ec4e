"""`atoll sweep`: many trials of one experiment, a few at a time; the best is printed, its spec is a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from atoll.errors import Problem, SpecError

if TYPE_CHECKING:
    from atoll.experiment import SweepRun

__all__ = ["add_to", "resume", "sweep"]

_console = Console(highlight=False)
_STATES = {
    "finished": "",
    "stopped": "stopped",
    "lost": "no score",
    "refused": "refused",
}


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command()(sweep)


def sweep(
    config: Annotated[Path, typer.Argument(help="The experiment, a YAML file.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUES]...",
            help="Varied: KEY=A,B,C or KEY=low..high, KEY=low..high:log, KEY=low..high:int. Fixed: KEY=VALUE.",
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="How many trials; every combination for a grid.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds per trial, from the file's upwards; the mean counts.")] = 1,
    method: Annotated[
        str | None, typer.Option(help="grid, random or bayes; grid where all keys have lists, else bayes.")
    ] = None,
    at_once: Annotated[int, typer.Option("--at-once", help="Trials that run at the same time.")] = 2,
    metric: Annotated[
        str | None,
        typer.Option(
            help="What trials are judged by at their end: one of evaluation.metrics; with a stop.target hours, "
            "client_updates, traffic_bytes or server_steps."
        ),
    ] = None,
    rungs: Annotated[
        str | None, typer.Option(metavar="STEP,STEP,…", help="Server steps at which only the best trials go on.")
    ] = None,
    keep: Annotated[int, typer.Option(help="One trial in so many goes on from a rung.")] = 3,
    batch: Annotated[
        int | None, typer.Option(help="Trials suggested together, and compared at rungs; 4 for bayes, else all.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Name of the sweep, made of what it is if none: started again, it goes on.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Try values of keys, a few trials at a time, and print the best; the same command again goes on."""
    from atoll.cli import show
    from atoll.cli.main import _stopping
    from atoll.experiment import sweep as run_sweep

    with _stopping(), show.live() as display:
        found = run_sweep(
            config,
            *(arguments or ()),
            method=method,
            trials=trials,
            seeds=seeds,
            metric=metric,
            rungs=_numbers(rungs),
            keep=keep,
            batch=batch,
            at_once=at_once,
            key=key,
            on_group=display.begin_next_group,
        )
    _tell(found, as_json)


def resume(folder: Path, as_json: bool) -> None:
    """Goes on with the sweep in `folder`."""
    from atoll.cli import show
    from atoll.cli.main import _stopping
    from atoll.experiment import resume_sweep

    with _stopping(), show.live() as display:
        found = resume_sweep(folder, on_group=display.begin_next_group)
    _tell(found, as_json)


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return () if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise SpecError([Problem("rungs", repr(text), "server steps, such as 50,100")]) from None


def _tell(found: SweepRun, as_json: bool) -> None:
    from atoll.cli import show
    from atoll.cli.main import _echo_object

    _console.print(_table(found))
    for line in _conclusion(found):
        _console.print(line, soft_wrap=True, markup=False)
    show.address(found.tracking_uri, found.experiment)
    if as_json:
        _echo_object(found.as_dict())


def _table(found: SweepRun) -> Table:
    """Every trial, the best first."""
    from atoll.experiment.sweep_report import best_first, short_names, short_value

    settings = found.settings
    keys = [one.key for one in settings.space]
    over = f", means of {len(settings.seeds)} seeds" if len(settings.seeds) > 1 else ""
    title = f"{Path(found.folder).name}: {len(found.trials)} trials by {settings.method}{over}"
    table = Table(title=escape(title), title_justify="left")
    for name in ("trial", *short_names(keys), settings.metric, "step", "virtual\nhours"):
        table.add_column(escape(name), justify="right", overflow="fold")
    table.add_column("", no_wrap=True)
    for one in best_first(found.trials, is_falling=settings.is_falling):
        score = "" if one.score is None else f"{one.score:.5g}"
        hours = "" if one.virtual_hours is None else f"{one.virtual_hours:.2f}"
        state = "best" if found.best is not None and one.number == found.best.number else _STATES[one.state]
        cells = [str(one.number), *(short_value(one.values[key]) for key in keys), score, f"{one.step:,}", hours]
        table.add_row(*map(escape, [*cells, state]))
    return table


def _conclusion(found: SweepRun) -> list[str]:
    from atoll.experiment.sweep_report import values_text

    lines = [f"trial {one.number}: {one.why}" for one in found.trials if one.state == "refused"]
    if any(one.state == "lost" for one in found.trials):
        lines.append("Trials without a score diverged, or never reached the target.")
    if any(one.state == "stopped" for one in found.trials):
        lines.append(f"Trials were stopped where others were better, one in {found.settings.keep} went on.")
    if found.moves_timeline:
        keys = ", ".join(found.moves_timeline)
        lines.append(f"Trials share seeds and devices, but not timelines: {keys} changes who finishes when.")
    elif len(found.trials) > 1:
        lines.append("All trials of a seed share one timeline: they differ in what was learned alone.")
    if found.best is None:
        return [*lines, f"No trial has a score: look at the metrics in MLflow, or at {found.csv}."]
    best = f"Best: trial {found.best.number}, {values_text(found.best)}"
    spec = os.path.relpath(found.best_spec)
    return [*lines, best, f"Its spec:  atoll run {spec}", f"Report: {found.html}", f"Table:  {found.csv}"]
