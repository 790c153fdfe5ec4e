"""`atoll sweep`: many trials of one experiment, a few at a time; the best is printed, its spec is a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.errors import Problem, SpecError

if TYPE_CHECKING:
    from atoll.experiment import SweepRun

__all__ = ["add_to", "resume", "sweep"]


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
    from atoll.cli import show_sweep
    from atoll.cli.main import _echo_object

    show_sweep.sweep(found)
    if as_json:
        _echo_object(found.as_dict())
