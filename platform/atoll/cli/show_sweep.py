"""What people see of a sweep: every trial, the best, its spec."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from atoll.cli import show

if TYPE_CHECKING:
    from atoll.experiment import SweepRun

__all__ = ["sweep"]

_console = Console(highlight=False)
_STATES = {
    "finished": "",
    "stopped": "stopped",
    "lost": "no score",
    "refused": "refused",
}


def sweep(found: SweepRun) -> None:
    """A table of all trials, and what follows from it."""
    _console.print(_table(found))
    for line in _conclusion(found):
        _console.print(line, soft_wrap=True, markup=False)
    show.address(found.tracking_uri, found.experiment)


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
