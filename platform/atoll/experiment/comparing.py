"""Comparisons: every arm and seed of one file under one MLflow parent run, then costs until the target, with ratios."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll import spec as sp
from atoll.errors import Problem, SpecError
from atoll.experiment.finishing import observing
from atoll.experiment.parents import begin_parent, begun_folder, named_folder
from atoll.experiment.places import check_places, only_one
from atoll.experiment.planning import PlanReport, SpecLike, as_spec, plan
from atoll.experiment.records import RUNS_FOLDER, Run, load
from atoll.experiment.running import Progress, Wanted, not_a_run, pinned, run_in
from atoll.experiment.sessions import session_for, store_bytes_of
from atoll.tracking import (
    Comparison,
    MlflowTracker,
    RunSummary,
    Target,
    absolute_uri,
    child_runs,
    compare,
    load_run,
    to_csv,
    to_html,
)

__all__ = [
    "ComparisonRun",
    "compare_runs",
    "outcome_dict",
    "resume_comparison",
    "run_comparison",
    "write_comparison",
]

#: (arm, number, of, spec) → a progress callback for that run, or none
OnRun = Callable[[str, int, int, sp.Spec], Progress | None]


@dataclass(frozen=True)
class ComparisonRun:
    """A finished comparison.

    Attributes:
        comparison: per arm, costs until the target and ratios to the baseline.
        runs: every run, arm by arm.
        html, csv: the report's files.
        parent_run_id: the MLflow run that holds them all.
    """

    comparison: Comparison
    runs: tuple[Run, ...]
    html: str
    csv: str
    parent_run_id: str


def run_comparison(
    spec: SpecLike,
    *overrides: str,
    key: str | None = None,
    on_run: OnRun | None = None,
    runs_folder: str | Path = RUNS_FOLDER,
) -> ComparisonRun:
    """Runs every arm with every seed of `spec.comparison`, one after another on shared workers.

    Args:
        spec: with a `comparison`.
        overrides: `dotted.key=value`.
        key: names the comparison: begun once under it, it goes on when it is started again.
        on_run: called before each run with (arm, number, of, spec); may return a progress callback for it.
        runs_folder: where the runs' folders are made.

    Raises:
        SpecError, PlanError: any of the runs is refused; nothing has started then.
    """
    resolved = pinned(as_spec(spec, overrides))
    if resolved.ensemble is not None:
        raise SpecError([not_a_run(resolved)])
    check_places(resolved, runs_folder)
    folder, is_begun = named_folder(key, resolved, Path(runs_folder))
    if folder is not None and is_begun:
        return resume_comparison(folder, on_run=on_run)
    reports = _checked(resolved)
    with begun_folder(folder, resolved, Path(runs_folder)) as place:
        return _compare(place, resolved, reports, on_run)


def resume_comparison(folder: Path, *, on_run: OnRun | None = None) -> ComparisonRun:
    """Goes on with a comparison: runs that are finished stay, the one that was stopped goes on, the others begin."""
    resolved = sp.load(folder / "spec.yaml")
    with only_one(folder):
        return _compare(folder, resolved, _checked(resolved), on_run)


def _checked(spec: sp.Spec) -> list[PlanReport]:
    """Plans every run before the first one starts."""
    arms = sp.arms(spec)
    _check_target(arms)
    return [plan(one) for _, _, one in arms]


def _compare(folder: Path, spec: sp.Spec, reports: Sequence[PlanReport], on_run: OnRun | None) -> ComparisonRun:
    """Every run in a folder of its own below the comparison's, by arm and seed: what is there already is found."""
    arms = sp.arms(spec)
    tracker = MlflowTracker(spec.tracking.uri, spec.tracking.artifacts)
    parent_id = begin_parent(folder, spec, tracker)
    runs: list[Run] = []
    try:
        with session_for(spec, max(map(store_bytes_of, reports))) as session:
            for number, (arm, seed, one) in enumerate(arms, 1):
                on_progress = None if on_run is None else on_run(arm, number, len(arms), one)
                slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{arm}-s{seed}")
                wanted = Wanted(folder / slug, one, f"{folder.name}.{slug}", arm, parent_id, again=folder)
                runs.append(run_in(wanted, on_progress=on_progress, session=session, runs_folder=folder))
        for found in runs:
            check_comparable(found)
        baseline = None if spec.comparison is None else spec.comparison.baseline
        comparison = compare([one.summary() for one in runs], baseline)
        html, csv = write_comparison(comparison, folder / "comparison", spec.name)
    except BaseException as error:
        with observing():
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    with observing():
        tracker.artifact(folder / "comparison")
        tracker.artifact(folder / "spec.yaml")
        tracker.finish("FINISHED")
    return ComparisonRun(comparison, tuple(runs), html, csv, parent_id)


def check_comparable(found: Run) -> None:
    """Refuses a run that was resumed by force.

    Raises:
        SpecError: its bits are not its plan's.
    """
    if not found.is_comparable:
        why = "it was resumed by force, on another software or with other settings"
        raise SpecError([Problem("compare", found.folder, "a run whose bits are its plan's", why, "run it anew")])


def _check_target(arms: Sequence[tuple[str, int, sp.Spec]]) -> None:
    """Runs are compared by their costs until one target: without it they would train for nothing."""
    targets = {(t.metric, t.value) for t in (one.stop.target for _, _, one in arms) if t is not None}
    if len(targets) == 1:
        return
    found = ", ".join(f"{metric} {value:g}" for metric, value in sorted(targets)) or "none"
    why, hint = "arms are compared by what they cost until it", "Set stop.target={metric: loss, value: 0.5}"
    raise SpecError([Problem("stop.target", found, "one target for all arms", why, hint)])


def compare_runs(
    names: Sequence[str],
    *,
    uri: str | None = None,
    baseline: str | None = None,
    metric: str | None = None,
    value: float | None = None,
    runs_folder: str | Path = RUNS_FOLDER,
) -> Comparison:
    """Compares finished runs by run id, name or folder.

    Args:
        names: runs; with `uri` MLflow run ids, where the id of a comparison's parent run stands for all its runs.
        uri: tracking store to read from; the runs' own folders if None.
        baseline: arm or name that ratios refer to; the first if None.
        metric: target metric; the runs' own target if None.
        value: target value.
        runs_folder: where run folders lie.

    Raises:
        SpecError: fewer than two runs, one is not found, or they have no common target.
    """
    store = None if uri is None else absolute_uri(uri)
    if store is not None:
        names = [run_id for name in names for run_id in (child_runs(store, name) or [name])]
    if len(names) < 2:
        raise SpecError([Problem("compare", f"{len(names)} run", "two runs or more")])
    summaries = [_summary(name, store, runs_folder) for name in names]
    target = None if metric is None else Target(metric, value)
    return compare(summaries, baseline, target)


def _summary(name: str, store: str | None, runs_folder: str | Path) -> RunSummary:
    if store is not None:
        return load_run(store, name)
    found = load(name, runs_folder)
    check_comparable(found)
    return found.summary()


def write_comparison(comparison: Comparison, folder: Path, title: str) -> tuple[str, str]:
    """Writes `comparison.html` (self-contained, with plots) and `comparison.csv`; returns their paths.

    Raises:
        SpecError: they cannot be written there.
    """
    html, csv = folder / "comparison.html", folder / "comparison.csv"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        html.write_text(to_html(comparison, title), encoding="utf-8")
        csv.write_text(to_csv(comparison), encoding="utf-8")
    except OSError as error:
        raise SpecError([Problem("out", repr(str(folder)), "a folder that may be written", str(error))]) from error
    return str(html), str(csv)


def outcome_dict(finished: ComparisonRun) -> dict[str, Any]:
    """Plain values, for JSON."""
    comparison = finished.comparison
    return {
        "parent_run_id": finished.parent_run_id,
        "html": finished.html,
        "csv": finished.csv,
        "target": {"metric": comparison.target.metric, "value": comparison.target.value},
        "arms": {
            arm.name: {
                "num_reached": arm.num_reached,
                "runs": len(arm.runs),
                "costs": {name: spread.median for name, spread in arm.costs.items()},
                "ratios": dict(arm.ratios),
                "final": arm.final.median,
            }
            for arm in comparison.arms
        },
        "runs": [one.as_dict() for one in finished.runs],
    }
