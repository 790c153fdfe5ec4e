"""Rules between fields of different places; each yields problems from whichever sections are valid by themselves."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from atoll.errors import Problem
from atoll.spec.data import CustomData, ParquetData, SyntheticData
from atoll.spec.ensemble_rules import ensemble_findings
from atoll.spec.execution import Comparison, Evaluation, RayRuntime, Stop, Tracking
from atoll.spec.model_rules import kernel_findings, model_findings, precision_findings
from atoll.spec.population import AttributeClusters, Clusters, Population, RandomClusters
from atoll.spec.training import Aggregation, AsyncSchedule, CustomModel, FedAsync, FedAvg, Schedule, SyncSchedule

__all__ = ["cross_problems"]

#: (paths that the rule reads, the problem)
Finding = tuple[tuple[str, ...], Problem]


def cross_problems(sections: Mapping[str, Any], distrusted: Collection[str] = ()) -> list[Problem]:
    """All broken rules between fields.

    Args:
        sections: valid sections by name; a section that is missing, or None, is not looked at.
        distrusted: dotted paths whose value in `sections` is a stand-in for a wrong one; rules that read them are
            silent, so that one mistake is told once.

    Purity: pure.
    """
    get = sections.get
    findings: list[Finding] = []
    if schedule := get("schedule"):
        findings += _schedule(schedule, get("population"))
        if aggregation := get("aggregation"):
            findings += _aggregation(aggregation, schedule)
    if clusters := get("clusters"):
        # an ensemble that is wrong in itself is None here, and is told already
        is_unclear = any(place.split(".")[0] == "ensemble" for place in distrusted)
        findings += _clusters(clusters, get("population"), get("ensemble"), is_unclear)
    if ensemble := get("ensemble"):
        is_binary = _is_binary(get("data")) if get("data") else None
        findings += ensemble_findings(ensemble, get("evaluation"), get("model"), is_binary)
    if data := get("data"):
        findings += _data(data, get("population"))
    if model := get("model"):
        findings += model_findings(model, data)
    if evaluation := get("evaluation"):
        findings += _evaluation(evaluation, data, get("stop"))
    for name in ("data", "model"):
        if isinstance(section := get(name), CustomData | CustomModel):
            findings += _arguments(f"{name}.arguments", section.arguments)
    runtime = get("runtime")
    if isinstance(runtime, RayRuntime):
        findings += _runtime(runtime)
    if runtime and model:
        findings += kernel_findings(runtime, model)
    if runtime and (client := get("client")):
        findings += precision_findings(runtime, client)
    if tracking := get("tracking"):
        findings += _tracking(tracking)
    if comparison := get("comparison"):
        findings += _comparison(comparison, get("name") or "")
    return [problem for paths, problem in findings if not any(_is_in(path, distrusted) for path in paths)]


def _is_in(path: str, places: Collection[str]) -> bool:
    return any(path == place or path.startswith(f"{place}.") for place in places)


def _tracking(tracking: Tracking) -> Iterator[Finding]:
    if tracking.uri.partition(":")[0].partition("+")[0] in ("postgresql", "mysql", "mssql") and not tracking.artifacts:
        why = "MLflow would put plots and models into the working directory of whoever runs"
        hint = "Or give the address of an MLflow server, which knows where its artifacts are"
        rule = "a folder or an address that everyone reaches, where tracking.uri is a database"
        yield ("tracking.uri", "tracking.artifacts"), Problem("tracking.artifacts", "null", rule, why, hint)


def _schedule(schedule: Schedule, population: Population | None) -> Iterator[Finding]:
    if isinstance(schedule, AsyncSchedule):
        name, needed = "concurrency", schedule.concurrency
        if schedule.buffer_goal > schedule.concurrency:
            yield (
                ("schedule.buffer_goal", "schedule.concurrency"),
                Problem(
                    "schedule.buffer_goal",
                    str(schedule.buffer_goal),
                    f"≤ schedule.concurrency ({schedule.concurrency})",
                    "Fewer tasks run than one step needs, so every step would wait for several generations of them",
                    "Lower buffer_goal or raise concurrency",
                ),
            )
    else:
        # 1e-9: 100 · 1.1 is 110.00000000000001 in floating point, and that is 110 tasks
        name, needed = "cohort", math.ceil(schedule.cohort * (1 + schedule.over_selection) - 1e-9)
    size = population.size if population else "data"
    if isinstance(size, int) and schedule.sampling == "without_replacement" and needed > size:
        given = schedule.concurrency if isinstance(schedule, AsyncSchedule) else schedule.cohort
        got = f"{given}, {needed} with over_selection" if needed != given else str(given)
        yield (
            (f"schedule.{name}", "schedule.over_selection", "schedule.sampling", "population.size"),
            Problem(
                f"schedule.{name}",
                got,
                f"≤ population.size ({size}) when sampling is without_replacement",
                "There are not that many different clients",
                f"Lower {name}, raise population.size or set schedule.sampling to with_replacement",
            ),
        )


def _clusters(clusters: Clusters, population: Population | None, ensemble: Any, is_unclear: bool) -> Iterator[Finding]:
    paths = ("clusters.kind", "clusters.only", "ensemble")
    if clusters.kind != "single" and clusters.only is None and ensemble is None and not is_unclear:
        yield (
            paths,
            Problem(
                "clusters.kind",
                f"{clusters.kind} without an ensemble",
                "an ensemble, or clusters.only",
                "Every cluster has a leaf model of its own",
                "Add the section ensemble, or set clusters.only to the cluster whose leaf is trained",
            ),
        )
    if clusters.only is not None and ensemble is not None:
        rule, why = "null beside an ensemble", "An ensemble needs the leaves of all clusters"
        hint = "Set clusters.only to null, or ensemble to null"
        yield paths, Problem("clusters.only", repr(clusters.only), rule, why, hint)
    if isinstance(clusters, RandomClusters):
        yield from _random(clusters, population.size if population else "data")
    if isinstance(clusters, AttributeClusters) and isinstance(clusters.bins, tuple):
        edges = clusters.bins
        if any(second <= first for first, second in itertools.pairwise(edges)):
            got = ", ".join(f"{edge:g}" for edge in edges)
            yield ("clusters.bins",), Problem("clusters.bins", f"[{got}]", "edges in ascending order, each once")


def _random(clusters: RandomClusters, population: int | str) -> Iterator[Finding]:
    count, sizes = clusters.count, clusters.sizes
    paths = ("clusters.count", "clusters.sizes")
    if sizes is None:
        if count is None:
            yield paths, Problem("clusters.count", "nothing", "a number of clusters, or their sizes")
        elif isinstance(population, int) and count > population:
            rule = f"at most population.size ({population})"
            yield (*paths, "population.size"), Problem("clusters.count", str(count), rule, "No cluster may be empty")
        return
    if count not in (None, len(sizes)):
        rule = f"{len(sizes)}, as many as clusters.sizes has, or null"
        yield paths, Problem("clusters.count", str(count), rule)
    if isinstance(population, int) and sum(sizes) != population:
        got, rule = f"sizes that sum to {sum(sizes)}", f"sizes that sum to population.size ({population})"
        yield (
            ("clusters.sizes", "population.size"),
            Problem("clusters.sizes", got, rule, "Every client is in one cluster"),
        )


def _aggregation(aggregation: Aggregation, schedule: Schedule) -> Iterator[Finding]:
    is_sync = isinstance(schedule, SyncSchedule)
    kinds = ("aggregation.kind", "schedule.kind")
    if isinstance(aggregation, FedAvg) and not is_sync:
        yield (
            kinds,
            Problem(
                "aggregation.kind",
                "fedavg with schedule.kind async",
                "schedule.kind sync for fedavg",
                "FedAvg averages one cohort that started together; over arrivals it is FedBuff without staleness",
                "Use aggregation.kind fedbuff with staleness {kind: constant}, or a sync schedule",
            ),
        )
    if not isinstance(aggregation, FedAvg) and is_sync:
        yield (
            kinds,
            Problem(
                "aggregation.kind",
                f"{aggregation.kind} with schedule.kind sync",
                f"schedule.kind async for {aggregation.kind}",
                "In rounds nothing is stale, so it would be FedAvg under another name",
                "Use aggregation.kind fedavg, or an async schedule",
            ),
        )
    if isinstance(aggregation, FedAsync) and isinstance(schedule, AsyncSchedule) and schedule.buffer_goal != 1:
        yield (
            ("schedule.buffer_goal", *kinds),
            Problem(
                "schedule.buffer_goal",
                str(schedule.buffer_goal),
                "1 for aggregation.kind fedasync",
                "FedAsync steps at every arrival",
                "Set buffer_goal to 1, or use aggregation.kind fedbuff",
            ),
        )


def _data(data: Any, population: Population | None) -> Iterator[Finding]:
    if isinstance(data, SyntheticData) and population and population.size == "data":
        yield (
            ("population.size", "data.kind"),
            Problem(
                "population.size",
                "'data'",
                "a number when data.kind is synthetic",
                "Generated clients have no count of their own",
                "Set population.size, such as 1000",
            ),
        )
    if isinstance(data, ParquetData):
        yield from _columns(data)


def _columns(data: ParquetData) -> Iterator[Finding]:
    uses = {"client_column": [data.client_column], "label_column": [data.label_column]}
    uses |= {"features": list(data.features or ()), "categories": list(data.categories)}
    seen: dict[str, str] = {}
    for field, columns in uses.items():
        for column in columns:
            if column in seen:
                yield (
                    (f"data.{field}", f"data.{seen[column]}"),
                    Problem(f"data.{field}", repr(column), f"a column that is not already data.{seen[column]}"),
                )
            seen.setdefault(column, field)


def _is_binary(data: Any) -> bool | None:
    """Whether the task is binary; None: not known from the spec."""
    if data.kind in ("flights", "movielens", "leaf_outputs"):
        return True
    if data.kind == "shakespeare":
        return False
    if isinstance(data, ParquetData):
        return data.task == "binary"
    if isinstance(data, SyntheticData):
        return data.classes == 2
    return None


_BINARY_METRICS = {
    "auc": "The area under the ROC curve is defined for two classes",
    "normalized_entropy": "The base rate that it is divided by is that of class 1",
}


def _evaluation(evaluation: Evaluation, data: Any, stop: Stop | None) -> Iterator[Finding]:
    yield from _repeated("evaluation.metrics", evaluation.metrics)
    for metric, why in _BINARY_METRICS.items():
        if data is not None and metric in evaluation.metrics and _is_binary(data) is False:
            rule = f"loss or accuracy; data.kind {data.kind} here has more than two classes"
            yield (
                ("evaluation.metrics", "data.kind", "data.task", "data.classes"),
                Problem("evaluation.metrics", metric, rule, why),
            )
    if stop is not None and stop.target is not None and stop.target.metric not in evaluation.metrics:
        yield (
            ("stop.target.metric", "stop.target", "evaluation.metrics"),
            Problem(
                "stop.target.metric",
                repr(stop.target.metric),
                f"one of evaluation.metrics ({', '.join(evaluation.metrics)})",
                "What is not measured is never reached",
                f"Add {stop.target.metric} to evaluation.metrics",
            ),
        )


def _arguments(path: str, value: Any) -> Iterator[Finding]:
    """Only what YAML and JSON write and read back unchanged may enter the digest."""
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        for key, inner in value.items():
            yield from _arguments(f"{path}.{key}", inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _arguments(f"{path}[{index}]", inner)
    elif not (value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))):
        yield (
            (path,),
            Problem(
                path, repr(value)[:60], "a plain value: null, true, false, a finite number, text, a list, a mapping"
            ),
        )


def _runtime(runtime: RayRuntime) -> Iterator[Finding]:
    for name, value in runtime.labels.items():
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", value):
            path, rule = f"runtime.labels.{name}", "letters, digits, _ . and -, as labels of Ray nodes have"
            yield (
                ("runtime.labels",),
                Problem(path, repr(value), rule, "", "Name one value; operators are not understood"),
            )
    if runtime.least_workers > runtime.most_workers:
        rule, hint = f"≤ runtime.workers.max ({runtime.most_workers})", "Lower min or raise max"
        found = ("runtime.workers.min", "runtime.workers.max")
        yield found, Problem(found[0], str(runtime.least_workers), rule, hint=hint)
    paths = ("runtime.gpus_per_worker", "runtime.device_class")
    got = f"{runtime.gpus_per_worker:g}"
    if runtime.gpus_per_worker > 0 and runtime.device_class == "cpu":
        rule, why = "0 when runtime.device_class is cpu", "The GPUs would be reserved and stay idle"
        yield paths, Problem(paths[0], got, rule, why, "Set runtime.device_class to cuda")
    if runtime.gpus_per_worker == 0 and runtime.device_class == "cuda":
        rule, why = "a number > 0 when runtime.device_class is cuda", "Ray hides the GPUs from a worker without any"
        yield paths, Problem(paths[0], got, rule, why, "Set runtime.gpus_per_worker, such as 1 or 0.5")
    elif runtime.gpus_per_worker > 0 and not _is_unit_fraction(runtime.gpus_per_worker):
        rule, why = "1, or exactly 1/n of a GPU: 0.5, 0.25, 0.2, 0.125 …", "A worker trains on one GPU, and n share it"
        why = why if runtime.gpus_per_worker > 1 else "Other parts leave a rest that no worker fits into, and it waits"
        yield paths[:1], Problem(paths[0], got, rule, why, f"Set {_nearest_fraction(runtime.gpus_per_worker)}")


def _is_unit_fraction(value: float) -> bool:
    """1/n, as near as Ray counts: ten-thousandths."""
    return value <= 1 and abs(1 / value - round(1 / value)) * value < 1e-4


def _nearest_fraction(value: float) -> str:
    return "1" if value >= 1 else f"{1 / max(1, int(1 / value)):.4g}"


def _repeated(path: str, values: Sequence[Any]) -> Iterator[Finding]:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        yield (path,), Problem(path, f"{', '.join(map(str, twice))} more than once", "each value once")


def _comparison(comparison: Comparison, name: str) -> Iterator[Finding]:
    yield from _repeated("comparison.seeds", comparison.seeds)
    for arm, values in comparison.arms.items():
        path = f"comparison.arms.{arm}"
        if not re.fullmatch(r"[A-Za-z0-9_-]+", arm):
            yield (path,), Problem(path, repr(arm), "an arm name of letters, digits, _ and -", "It becomes a run name")
        for key in values:
            top = key.split(".")[0]
            if top in ("name", "seed", "comparison", "tracking", "runtime"):
                rule = "a key outside name, seed, tracking, runtime and comparison"
                yield (path,), Problem(path, key, rule, "Arms share these, and comparison.seeds sets the seeds")
    longest = len(f"{name}-{max(comparison.arms, key=len)}-s{max(comparison.seeds)}")
    if longest > 250:
        rule = "run names NAME-ARM-sSEED of at most 250 characters"
        yield ("name", "comparison.arms"), Problem("comparison.arms", f"up to {longest}", rule)
    if comparison.baseline not in comparison.arms:
        rule = f"one of the arms: {', '.join(comparison.arms)}"
        yield (
            ("comparison.baseline", "comparison.arms"),
            Problem("comparison.baseline", repr(comparison.baseline), rule),
        )
