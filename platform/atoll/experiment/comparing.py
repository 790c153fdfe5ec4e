"""Comparisons: every arm and seed of one file under one MLflow parent run, then costs until the target, with ratios."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll import spec as sp
from atoll.errors import Problem, SpecError
from atoll.experiment.planning import SpecLike, as_spec, plan
from atoll.experiment.running import RUNS_FOLDER, Run, check_places, load, observing, run, session_for
from atoll.tracking import (
    Comparison,
    MlflowTracker,
    RunInfo,
    Target,
    absolute_uri,
    child_runs,
    compare,
    load_run,
    preflight,
    to_csv,
    to_html,
)

__all__ = ["ComparisonRun", "compare_runs", "outcome_dict", "run_comparison", "write_comparison"]

COMPARE_FOLDER = "compare"


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
    on_run: Callable[[str, int, int, sp.Spec], Callable[[dict[str, float]], None] | None] | None = None,
    runs_folder: str | Path = RUNS_FOLDER,
) -> ComparisonRun:
    """Runs every arm with every seed of `spec.comparison`, one after another on shared workers.

    Args:
        spec: with a `comparison`.
        overrides: `dotted.key=value`.
        on_run: called before each run with (arm, number, of, spec); may return a progress callback for it.
        runs_folder: where the runs' folders are made.

    Raises:
        SpecError, PlanError: any of the runs is refused; nothing has started then.
    """
    resolved = as_spec(spec, overrides)
    arms = sp.arms(resolved)
    _check_target(arms)
    reports = [plan(one) for _, _, one in arms]
    uri = absolute_uri(resolved.tracking.uri)
    preflight(uri)
    check_places(resolved, runs_folder)
    tracker = MlflowTracker(uri, resolved.tracking.artifacts)
    largest = max(reports, key=lambda report: report.summary.peak_live_versions * report.model_bytes)
    experiment = resolved.tracking.experiment or resolved.name
    folder = Path(runs_folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    parent_id = tracker.start(RunInfo(experiment, resolved.name, _fresh_key(resolved, folder)))
    runs: list[Run] = []
    try:
        with session_for(resolved, largest) as session:
            for number, (arm, _, one) in enumerate(arms, 1):
                on_progress = None if on_run is None else on_run(arm, number, len(arms), one)
                runs.append(
                    run(one, on_progress=on_progress, session=session, parent_run_id=parent_id, arm=arm,
                        runs_folder=runs_folder)
                )  # fmt: skip
    except BaseException as error:
        with observing():
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    baseline = None if resolved.comparison is None else resolved.comparison.baseline
    comparison = compare([one.summary() for one in runs], baseline)
    html, csv = write_comparison(comparison, folder / f"comparison-{parent_id[:8]}", resolved.name)
    (folder / f"comparison-{parent_id[:8]}" / "spec.yaml").write_text(sp.dump(resolved))
    with observing():
        tracker.artifact(Path(html).parent)
        tracker.finish("FINISHED")
    return ComparisonRun(comparison, tuple(runs), html, csv, parent_id)


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
    summaries = [load(name, runs_folder).summary() if store is None else load_run(store, name) for name in names]
    target = None if metric is None else Target(metric, value)
    return compare(summaries, baseline, target)


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


def _fresh_key(spec: sp.Spec, folder: Path) -> str:
    number = sum(1 for path in folder.glob("comparison-*") if path.is_dir())
    return f"{spec.name}-{sp.digest(spec)[:12]}-{number}-{folder.stat().st_ino}"


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
