"""`atoll runs | replay | tune`: the folder of runs, one client again in a debugger, the fastest kernel here."""

from __future__ import annotations

import bdb
import inspect
import json
import traceback
from pathlib import Path
from typing import Annotated

import typer

from atoll.errors import AtollError

__all__ = ["add_to", "replay", "runs", "tune"]

#: entries that are shown without --all
_SHOWN = 20
_FAILED = 3

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    for command in (runs, replay, tune):
        app.command()(command)


def runs(
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Remove what no run needs to go on, and the snapshots of finished runs: made longer, those compute "
            "their steps again.",
        ),
    ] = False,
    show_all: Annotated[bool, typer.Option("--all", help=f"Show all, not only the last {_SHOWN}.")] = False,
    as_json: Json = False,
) -> None:
    """What lies under ./runs, newest last: how far each run is, and what can be done about it."""
    from atoll.cli import show_runs
    from atoll.experiment import list_runs, prune_runs

    pruned = prune_runs() if prune else None
    entries = list_runs()
    shown = entries if show_all else entries[-_SHOWN:]
    show_runs.listing(shown, len(entries) - len(shown))
    if pruned is not None:
        show_runs.pruned(pruned)
    if as_json:
        found = {"runs": [entry.as_dict() for entry in entries]}
        typer.echo(json.dumps(found if pruned is None else {**found, "pruned": pruned.as_dict()}, allow_nan=False))


def replay(
    run: Annotated[str, typer.Argument(help="Folder, run id or name of a run.")],
    task: Annotated[int, typer.Argument(help="Task id, as the failure of a run names it.")],
    as_json: Json = False,
) -> None:
    """Train the client of one task again, alone, without Ray: `python -m pdb -m atoll replay …` stops in its code."""
    from atoll.cli import show_runs
    from atoll.experiment import prepare_replay

    case = prepare_replay(run, task)
    try:
        found = case.train()
    except AtollError:
        raise
    except bdb.BdbQuit:
        raise typer.Exit(_FAILED) from None
    except Exception as error:
        traceback.print_exc()
        if _is_debugged():
            import pdb

            pdb.post_mortem(error.__traceback__)
        raise typer.Exit(_FAILED) from error
    show_runs.replayed(found)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), allow_nan=False))


def tune(
    config: Annotated[Path, typer.Argument(help="The experiment, a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, by dotted key.")
    ] = None,
    profile: Annotated[Path, typer.Option(help="The table to write this model's entry to.")] = Path("profile.json"),
    as_json: Json = False,
) -> None:
    """Measure which kernel and lane width train this model fastest here; plans read the table by runtime.profile."""
    from atoll.cli import show_runs
    from atoll.experiment import tune as measure

    found = measure(config, *(overrides or []), path=profile, on_timing=show_runs.timing)
    show_runs.tuned(found)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), allow_nan=False))


def _is_debugged() -> bool:
    """Whether pdb runs this process: its frames lie below, traced or not."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == bdb.__name__:
            return True
        frame = frame.f_back
    return False
