"""Comparison of runs by what they cost until the target metric is reached: one row per arm, ratios to a baseline arm.

Everything here is pure but `load_run` and `child_runs`, which read MLflow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from atoll.errors import Problem, SpecError
from atoll.tracking.curves import History, lower_is_better, value_at
from atoll.tracking.mlflow_tracker import client, store_errors
from atoll.tracking.tracker import PARENT_TAG

__all__ = [
    "MEASURES",
    "ArmOutcome",
    "Comparison",
    "RunOutcome",
    "RunSummary",
    "Spread",
    "Target",
    "child_runs",
    "compare",
    "load_run",
    "summary_tags",
]

MEASURES: Mapping[str, tuple[str, ...]] = {
    "hours": ("sim/hours",),
    "client_updates": ("sim/client_updates",),
    "traffic_bytes": ("sim/uplink_bytes", "sim/downlink_bytes"),
    "server_steps": (),
}
"""Costs by name, and the cumulative metrics that are summed for each; server steps are the step itself."""

_READ_PREFIXES = ("eval/", "sim/", "wall_", "train/", "staleness/")


@dataclass(frozen=True, slots=True)
class Target:
    """What a run wants to reach.

    Attributes:
        metric: `auc` or `eval/auc`.
        value: reached when the metric is at least (losses and errors: at most) this. None: no target, and costs are
            those of the whole run.
    """

    metric: str
    value: float | None = None

    @property
    def key(self) -> str:
        """The metric's key, with `eval/` where no area was given."""
        return self.metric if "/" in self.metric else f"eval/{self.metric}"

    def reached(self, value: float) -> bool:
        """Whether `value` is good enough; never without a target value."""
        if self.value is None:
            return False
        return value <= self.value if lower_is_better(self.key) else value >= self.value


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run, as a comparison needs it.

    Attributes:
        run_id: in the tracking store, or any unique name.
        name: what people read.
        arm: runs of one arm differ in the seed alone; empty: the run is an arm of its own, by its name.
        seed: None where unknown.
        history: (step, value) per metric key, steps ascending.
        target: what it wants to reach; None where it has none.
        digests: such as {"timeline": …, "plan": …, "weights": …}; printed, never compared.
    """

    run_id: str
    name: str
    arm: str
    seed: int | None
    history: History
    target: Target | None = None
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest over the runs of an arm. Infinite: never reached. NaN: not measured."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What one run came to.

    Attributes:
        run: the run.
        reached_step: the first evaluated step at which the target was reached; None: never (or no target).
        costs: per measure, up to that step; infinite when never reached; of the whole run without a target.
        final: metric at the last evaluation; NaN without any.
    """

    run: RunSummary
    reached_step: int | None
    costs: Mapping[str, float]
    final: float


@dataclass(frozen=True, slots=True)
class ArmOutcome:
    """What one arm came to.

    Attributes:
        name: of the arm.
        runs: its runs, by seed.
        num_reached: how many reached the target.
        costs: Spread per measure. A run that never reached counts as infinite: it is never dropped.
        ratios: median cost over the baseline's median cost; NaN where either is infinite or zero.
        final: Spread of the final metric.
        final_ratio: median final metric over the baseline's.
    """

    name: str
    runs: tuple[RunOutcome, ...]
    num_reached: int
    costs: Mapping[str, Spread]
    ratios: Mapping[str, float]
    final: Spread
    final_ratio: float

    @property
    def typical(self) -> RunOutcome:
        """The run with the (lower) median hours to target: the one drawn thick."""
        ordered = sorted(self.runs, key=lambda outcome: outcome.costs["hours"])
        return ordered[(len(ordered) - 1) // 2]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Arms in the order given, against the arm named `baseline`."""

    target: Target
    baseline: str
    arms: tuple[ArmOutcome, ...]

    @property
    def missed(self) -> tuple[RunOutcome, ...]:
        """Runs that never reached the target; empty without a target value."""
        if self.target.value is None:
            return ()
        return tuple(run for arm in self.arms for run in arm.runs if run.reached_step is None)


def compare(runs: Sequence[RunSummary], baseline: str | None = None, target: Target | None = None) -> Comparison:
    """Group runs by arm and relate each arm's costs to the baseline's.

    Args:
        runs: at least one; run ids unique.
        baseline: name of an arm; None: the first run's arm.
        target: None: the runs' own, which must then be one and the same.

    Raises:
        SpecError: no runs, a run given twice, an unknown baseline, no target or several.

    Purity: pure.
    """
    if not runs:
        raise SpecError([Problem("runs", "none", "at least one run")])
    ids = [run.run_id for run in runs]
    twice = sorted({run_id for run_id in ids if ids.count(run_id) > 1})
    if twice:
        raise SpecError([Problem("runs", ", ".join(twice), "each run once", "it would count twice in a median")])
    target = target or _common_target(runs)
    groups: dict[str, list[RunSummary]] = {}
    for run in runs:
        groups.setdefault(run.arm or run.name, []).append(run)
    baseline = next(iter(groups)) if baseline is None else baseline
    if baseline not in groups:
        raise SpecError([Problem("baseline", repr(baseline), "one of the arms", hint=", ".join(groups))])
    outcomes = {
        name: [_outcome(run, target) for run in sorted(group, key=lambda run: (run.seed is None, run.seed or 0))]
        for name, group in groups.items()
    }
    base_costs, base_final = _spreads(outcomes[baseline])
    return Comparison(
        target, baseline, tuple(_arm(name, found, base_costs, base_final) for name, found in outcomes.items())
    )


def _common_target(runs: Sequence[RunSummary]) -> Target:
    targets = {(run.target.key, run.target.value) for run in runs if run.target is not None}
    if len(targets) != 1:
        shown = ", ".join(f"{metric} {value}" for metric, value in sorted(targets, key=str)) or "no target"
        why = "runs are compared by what they cost until one target"
        raise SpecError([Problem("target", shown, "one target for all runs", why, "name a metric and a value")])
    return Target(*targets.pop())


def _outcome(run: RunSummary, target: Target) -> RunOutcome:
    points = run.history.get(target.key, ())
    final = float(points[-1][1]) if points else math.nan
    reached = next((step for step, value in points if target.reached(value)), None)
    until = reached
    if target.value is None:
        until = max((points[-1][0] for points in run.history.values() if points), default=0)
    if until is None:
        return RunOutcome(run, None, dict.fromkeys(MEASURES, math.inf), final)
    costs = {name: _cost(run.history, keys, until) for name, keys in MEASURES.items()}
    return RunOutcome(run, reached, costs, final)


def _cost(history: History, keys: Sequence[str], step: int) -> float:
    if not keys:
        return float(step)
    if not all(history.get(key) for key in keys):
        return math.nan
    return sum(value_at(history[key], step) for key in keys)


def _spread(values: Sequence[float]) -> Spread:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Spread(math.nan, math.nan, math.nan)
    import statistics  # brings fractions and decimal: only comparisons pay for them

    return Spread(statistics.median(known), min(known), max(known))


def _spreads(found: Sequence[RunOutcome]) -> tuple[dict[str, Spread], Spread]:
    costs = {name: _spread([outcome.costs[name] for outcome in found]) for name in MEASURES}
    return costs, _spread([outcome.final for outcome in found])


def _ratio(value: float, base: float) -> float:
    usable = math.isfinite(value) and math.isfinite(base) and base != 0
    return value / base if usable else math.nan


def _arm(name: str, found: Sequence[RunOutcome], base_costs: Mapping[str, Spread], base_final: Spread) -> ArmOutcome:
    costs, final = _spreads(found)
    return ArmOutcome(
        name=name,
        runs=tuple(found),
        num_reached=sum(outcome.reached_step is not None for outcome in found),
        costs=costs,
        ratios={measure: _ratio(costs[measure].median, base_costs[measure].median) for measure in MEASURES},
        final=final,
        final_ratio=_ratio(final.median, base_final.median),
    )


def summary_tags(
    arm: str, seed: int, target: Target | None = None, digests: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Tags that let `load_run` rebuild a RunSummary: give them to `RunInfo.tags`. Purity: pure."""
    tags = {"fl.arm": arm, "fl.seed": str(seed)}
    if target is not None:
        tags["fl.target_metric"] = target.key
        if target.value is not None:
            tags["fl.target_value"] = repr(float(target.value))
    return tags | {f"fl.digest.{name}": value for name, value in (digests or {}).items()}


def load_run(uri: str, run_id: str) -> RunSummary:
    """Read a run from MLflow; where a metric has two rows at a step, the earlier one stands.

    Raises:
        SpecError: there is no such run.
        InfrastructureError: the store failed.
    """
    opened = client(uri)
    with store_errors("reading a run"):
        run = _get_run(opened, uri, run_id)
        history: dict[str, list[tuple[int, float]]] = {}
        for key in sorted(run.data.metrics):
            if key.startswith(_READ_PREFIXES):
                first: dict[int, float] = {}
                for metric in sorted(opened.get_metric_history(run_id, key), key=lambda m: (m.step, m.timestamp)):
                    first.setdefault(int(metric.step), float(metric.value))
                history[key] = list(first.items())
    tags = run.data.tags
    value = tags.get("fl.target_value")
    metric = tags.get("fl.target_metric")
    return RunSummary(
        run_id=run_id,
        name=run.info.run_name,
        arm=tags.get("fl.arm", ""),
        seed=int(tags["fl.seed"]) if "fl.seed" in tags else None,
        history=history,
        target=None if metric is None else Target(metric, None if value is None else float(value)),
        digests={key.removeprefix("fl.digest."): tags[key] for key in sorted(tags) if key.startswith("fl.digest.")},
    )


def child_runs(uri: str, parent_run_id: str) -> list[str]:
    """Ids of the runs under a parent run, oldest first; none where it is no parent.

    Raises:
        SpecError: there is no such run.
        InfrastructureError: the store failed.
    """
    opened = client(uri)
    with store_errors("reading a sweep"):
        experiment_id = _get_run(opened, uri, parent_run_id).info.experiment_id
        found: list[str] = []
        token = None
        while token is None or token:
            page = opened.search_runs(
                [experiment_id],
                f"tags.`{PARENT_TAG}` = '{parent_run_id}'",
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            found += [run.info.run_id for run in page]
            token = page.token or ""
    return found


def _get_run(opened: Any, uri: str, run_id: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return opened.get_run(run_id)
    except MlflowException as error:
        # An id of the wrong form is no run either.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise SpecError([Problem("run", repr(run_id), f"a run id in {uri}", str(error))]) from error
