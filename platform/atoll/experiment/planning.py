"""`atoll.plan`: the timeline alone, no training: duration, staleness, waste, blocks, memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll import __version__
from atoll import spec as sp
from atoll.data import ClientData
from atoll.errors import Problem, SpecError
from atoll.experiment.clustering import ClusterSize, cluster_inputs, cluster_problems, cluster_sizes, clustering_of
from atoll.experiment.modelling import kernel_problems, lanes_of, memory_problems, shape_of
from atoll.experiment.opened import data_of
from atoll.experiment.profile import with_profile
from atoll.experiment.splitting import split_problems
from atoll.experiment.wiring import (
    grid_of,
    population_of,
    schedule_of,
    tasks_per_step,
    weighting_of,
)
from atoll.models import ModelShape, load_version
from atoll.plan import (
    Planner,
    PlanSettings,
    PlanSummary,
    SummaryBuilder,
    Window,
    check_memory,
    lookahead_steps,
    profile_digest,
)
from atoll.timeline import AsyncSchedule, Timeline

__all__ = ["PlanReport", "SpecLike", "as_spec", "make_planner", "plan"]

#: A parsed spec, a mapping with a spec's keys, or the path of a YAML file.
SpecLike = sp.Spec | Mapping[str, Any] | str | Path
#: Share of the machine's memory that a run may plan with when `runtime.memory_bytes` is null.
_MEMORY_SHARE = 0.7
#: Copies of a lane's parameters while a block trains: weights, gradients, delta, and one of slack.
_COPIES_PER_LANE = 4


@dataclass(frozen=True)
class PlanReport:
    """What a plan says ahead of training.

    Attributes:
        spec: the resolved spec.
        summary: duration, staleness, waste, blocks.
        lanes: W.
        lookahead_steps: server steps per window.
        parameters: number of weights, tables included.
        model_bytes: one model version, float32.
        timeline_digest: of the first `stop.server_steps` steps.
        plan_digest: of the windows that hold them.
        data: clients, examples.
        clusters: clients and examples of every cluster; () for a population that is not divided.
    """

    spec: sp.Spec
    summary: PlanSummary
    lanes: int
    lookahead_steps: int
    parameters: int
    model_bytes: int
    timeline_digest: str
    plan_digest: str
    data: Mapping[str, Any]
    clusters: tuple[ClusterSize, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "name": self.spec.name,
            "spec_digest": sp.digest(self.spec),
            "timeline_digest": self.timeline_digest,
            "plan_digest": self.plan_digest,
            **self.summary.as_dict(),
            "lanes": self.lanes,
            "lookahead_steps": self.lookahead_steps,
            "parameters": self.parameters,
            "model_bytes": self.model_bytes,
            "data": dict(self.data),
            "clusters": [cluster.as_dict() for cluster in self.clusters],
        }


def as_spec(spec: SpecLike, overrides: Sequence[str] = ()) -> sp.Spec:
    """A Spec out of whatever names one.

    Raises:
        SpecError: every problem of the file and the overrides.
    """
    if isinstance(spec, sp.Spec):
        return sp.parse(sp.to_dict(spec), overrides) if overrides else spec
    if isinstance(spec, Mapping):
        return sp.parse(spec, overrides)
    return sp.load(spec, overrides)


def make_planner(spec: sp.Spec, data: ClientData, shape: ModelShape) -> Planner:
    """A fresh planner: the same from the same spec in every process."""
    schedule = schedule_of(spec)
    lanes = lanes_of(spec, shape)
    ahead = lookahead_steps(lanes, tasks_per_step(spec), is_async=isinstance(schedule, AsyncSchedule))
    identity = ";".join(
        [
            f"atoll={__version__}",
            f"spec={sp.digest(spec)}",
            f"data={data.identity}",
            f"model={shape.identity}",
            f"grid={grid_of(spec, data)}",
            f"profile={profile_digest()}",
            f"init={_file_digest(spec.model.init_from)}",
            *(f"{name}={digest}" for name, digest in cluster_inputs(spec, data).items()),
        ]
    )
    only = spec.clusters.only
    cluster = 0 if only is None else clustering_of(spec, data).index(only)
    timeline = Timeline(population_of(spec, data), schedule, spec.seed, cluster)
    return Planner(timeline, PlanSettings(lanes, ahead, identity), weighting_of(spec))


def plan(spec: SpecLike, *overrides: str, on_window: Callable[[Window], None] | None = None) -> PlanReport:
    """Plans an experiment without training anything.

    Args:
        spec: a Spec, a mapping, or the path of a YAML file.
        overrides: `dotted.key=value`.
        on_window: called with every window, in order.

    Raises:
        SpecError: wrong input, all problems at once.
        PlanError: valid input that cannot run: too few clients, versions that do not fit.

    Example:
        >>> report = plan("configs/fedbuff_flights.yaml", "stop.server_steps=20")  # doctest: +SKIP
        >>> report.summary.virtual_hours  # doctest: +SKIP
    """
    resolved = with_profile(as_spec(spec, overrides))
    data = data_of(resolved)
    shape = shape_of(resolved, data.shape)
    problems = _evaluation_problems(resolved, data) + split_problems(resolved, data) + kernel_problems(resolved)
    if problems := [*problems, *memory_problems(resolved, data.shape), *cluster_problems(resolved, data)]:
        raise SpecError(problems)
    if resolved.model.init_from is not None:
        load_version(resolved.model.init_from, shape)
    planner = make_planner(resolved, data, shape)
    steps, lanes = resolved.stop.server_steps, planner.settings.lanes
    builder = SummaryBuilder(steps, lanes, shape.bytes)
    is_planned = False
    while not is_planned:
        window = planner.advance()
        builder.add(window)
        if on_window is not None:
            on_window(window)
        is_planned = window.end_step >= steps
    summary = builder.build()
    _check_memory(resolved, summary, shape, lanes)
    counts = data.counts()
    return PlanReport(
        spec=resolved,
        summary=summary,
        lanes=lanes,
        lookahead_steps=planner.settings.lookahead_steps,
        parameters=shape.bytes // 4,
        model_bytes=shape.bytes,
        timeline_digest=window.timeline_digest(steps),
        plan_digest=window.plan_digest,
        data={
            "kind": resolved.data.kind,
            "clients": data.num_clients,
            "train_examples": None if counts is None else int(counts.sum()),
        },
        clusters=cluster_sizes(resolved, data),
    )


def _evaluation_problems(spec: sp.Spec, data: ClientData) -> list[Problem]:
    """What the spec alone cannot know of arrays, files and custom data."""
    held_out, problems = data.held_out(), []
    rows = {name: part.num_rows for name, part in held_out.items()}
    split = spec.evaluation.split
    if not rows.get(split):
        known = ", ".join(f"{name} ({number} rows)" for name, number in rows.items()) or "none at all"
        hint = f"The data holds out: {known}"
        if not rows and spec.data.kind == "arrays":
            hint += "; an .npz file holds out x_test and y_test"
        problems.append(Problem("evaluation.split", repr(split), "a split of this data with rows", hint=hint))
    for metric in ("auc", "normalized_entropy"):
        if metric in spec.evaluation.metrics and data.shape.task != "binary":
            found, why = f"{metric} with {data.shape.num_classes} classes", "It is defined for two classes"
            problems.append(Problem("evaluation.metrics", found, "a binary task", why, "use accuracy"))
    return problems


def _check_memory(spec: sp.Spec, summary: PlanSummary, shape: ModelShape, lanes: int) -> None:
    budget = spec.runtime.memory_bytes or int(_MEMORY_SHARE * _machine_bytes())
    workers = spec.runtime.most_workers if isinstance(spec.runtime, sp.RayRuntime) else 1
    check_memory(
        summary,
        model_bytes=shape.bytes,
        block_bytes=lanes * _COPIES_PER_LANE * 4 * shape.dense_size,
        budget_bytes=budget,
        workers=workers,
    )


def _machine_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _file_digest(path: str | None) -> str:
    if path is None or not Path(path).is_file():
        return "none"
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
