"""What a finished sweep leaves: the best trial's spec, a table of all trials, the best beside one another, MLflow."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from atoll import spec as sp
from atoll.errors import PlanError, SpecError
from atoll.experiment.comparing import write_comparison
from atoll.experiment.planning import plan
from atoll.experiment.sweep_settings import spec_at
from atoll.experiment.sweep_study import Settings, ranked
from atoll.experiment.sweep_trials import SweepRun, Trial
from atoll.runtime.store import LocalFiles
from atoll.tracking import MEASURES, MlflowTracker, Row, Target, compare, flatten_params

__all__ = [
    "BEST_FILE",
    "REPORT_FOLDER",
    "TRIALS_FILE",
    "best_first",
    "moving_keys",
    "short_names",
    "short_value",
    "tell",
    "values_text",
    "write_report",
]

BEST_FILE, REPORT_FOLDER, TRIALS_FILE = "best.yaml", "comparison", "trials.csv"
#: trials that are drawn beside one another: more lines than that nobody tells apart
_MOST_DRAWN = 8


def best_first(trials: Sequence[Trial], *, is_falling: bool) -> list[Trial]:
    """Trials that came further before others, of these the better ones; those without a score last. Purity: pure."""
    by_number = {one.number: one for one in trials}
    ordered: list[int] = []
    for step in sorted({one.step for one in trials}, reverse=True):
        ordered += ranked({one.number: one.score for one in trials if one.step == step}, is_falling=is_falling)
    rest = [number for number in by_number if number not in ordered]
    return [by_number[number] for number in ordered + rest]


def write_report(
    folder: Path, base: sp.Spec, settings: Settings, trials: Sequence[Trial]
) -> tuple[Trial | None, str, str, str]:
    """(best trial, file of its spec, HTML of the best, CSV of all); None and "" where no trial went to the end."""
    files = LocalFiles(folder / REPORT_FOLDER)
    files.write(TRIALS_FILE, _csv(settings, trials).encode())
    table = str(folder / REPORT_FOLDER / TRIALS_FILE)
    order = best_first(trials, is_falling=settings.is_falling)
    finished = [one for one in order if one.state == "finished"]
    if not finished:
        return None, "", "", table
    best = finished[0]
    spec = spec_at(base, best.values, settings.seeds[0], settings.rungs[-1], f"{base.name}-best"[:250])
    LocalFiles(folder).write(BEST_FILE, sp.dump(spec).encode())
    keys = [one.key for one in settings.space]
    summaries = [
        replace(run.summary(), arm=f"{one.name} {values_text(one, short_names(keys))}")
        for one in finished[:_MOST_DRAWN]
        for run in one.runs
    ]
    target = None if settings.metric in MEASURES else Target(settings.metric)
    html, _ = write_comparison(compare(summaries, target=target), folder / REPORT_FOLDER, f"{base.name}: best trials")
    return best, str(folder / BEST_FILE), html, table


def values_text(one: Trial, names: Sequence[str] | None = None) -> str:
    """`client.lr=0.1 client.epochs=2`, numbers at four digits; other names for the keys if given."""
    pairs = zip(names or one.values, one.values.values(), strict=True)
    return " ".join(f"{name}={short_value(value)}" for name, value in pairs)


def short_names(keys: Sequence[str]) -> list[str]:
    """The ends of dotted keys, as long as it takes to tell them apart.

    Example:
        >>> short_names(["client.lr", "aggregation.server_optimizer.lr", "client.epochs"])
        ['client.lr', 'server_optimizer.lr', 'epochs']
    """
    parts = [key.split(".") for key in keys]
    return [
        next(
            ".".join(own[-length:])
            for length in range(1, len(own) + 1)
            if sum(other[-length:] == own[-length:] for other in parts) == 1 or length == len(own)
        )
        for own in parts
    ]


def short_value(value: Any) -> str:
    """A value as one reads it in a table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return flatten_params({"value": value}).get("value", str(value)) if not isinstance(value, dict) else str(value)


def _csv(settings: Settings, trials: Sequence[Trial]) -> str:
    """One row per trial and seed."""
    keys = [one.key for one in settings.space]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    head = ["trial", "state", *keys, settings.metric, "step", "timeline_digest"]
    table.writerow([*head, "seed", "run_id", "virtual_hours", "client_updates", "model_digest"])
    for one in trials:
        row = [one.number, one.state, *(one.values[key] for key in keys), one.score, one.step, one.timeline_digest]
        for run in one.runs:
            table.writerow([*row, run.seed, run.run_id, run.virtual_hours, run.client_updates, run.model_digest])
        if not one.runs:
            table.writerow([*row, "", "", "", "", ""])
    return text.getvalue()


def moving_keys(base: sp.Spec, settings: Settings, trials: Sequence[Trial]) -> tuple[str, ...]:
    """Keys that move the timeline: changed alone, from the values of the first trial, they give another digest.

    None where all trials have one digest.
    """
    known = [one for one in trials if one.timeline_digest]
    if len({one.timeline_digest for one in known}) < 2:
        return ()
    first = known[0]

    def moves(key: str, value: Any) -> bool:
        values = {**first.values, key: value}
        try:
            report = plan(spec_at(base, values, settings.seeds[0], settings.rungs[0], base.name))
        except (SpecError, PlanError):
            return False  # it cannot stand beside the first trial's other values
        return report.timeline_digest != first.timeline_digest

    return tuple(
        one.key
        for one in settings.space
        if any(moves(one.key, value) for value in one.ends() if value != first.values[one.key])
    )


def tell(found: SweepRun, base: sp.Spec, tracker: MlflowTracker, stamp_ms: int) -> None:
    """The parent run: every trial's score, the best so far, and what was best; may be done again.

    Args:
        found: the sweep.
        base: its spec.
        tracker: of the parent run, started.
        stamp_ms: of every row, the same each time.
    """
    settings = found.settings
    better = min if settings.is_falling else max
    rows: list[Row] = []
    best: float | None = None
    for one in found.trials:
        if one.score is None:
            continue
        rows.append(Row(f"sweep/{settings.metric}", one.number, one.score, stamp_ms))
        if one.state == "finished":
            best = one.score if best is None else better(best, one.score)
            rows.append(Row(f"sweep/best_{settings.metric}", one.number, best, stamp_ms))
    tracker.publish(rows)
    facts: dict[str, Any] = {"sweep": {"method": settings.method, "trials": settings.num_trials}}
    facts["sweep"] |= {"seeds": list(settings.seeds), "metric": settings.metric, "rungs": list(settings.rungs)}
    tags = {"fl.sweep": Path(found.folder).name}
    if found.best is not None:
        facts["best"] = {"trial": found.best.number, **found.best.values}
        tags["fl.best_run"] = found.best.runs[0].run_id
    tracker.params(flatten_params(facts))
    tracker.tags(tags)
    folder = Path(found.folder)
    for path in (folder / REPORT_FOLDER, folder / "spec.yaml", folder / BEST_FILE):
        if path.exists():
            tracker.artifact(path)
    tracker.finish("FINISHED")
