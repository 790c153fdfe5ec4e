"""`atoll.run`: checks everything, runs on Ray or in-process, leaves a folder and an MLflow run behind."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atoll import spec as sp
from atoll.errors import InfrastructureError, Problem, SpecError
from atoll.experiment.planning import PlanReport, SpecLike, as_spec, plan
from atoll.messages import ModelVersion, model_digest
from atoll.tracking import (
    Journal,
    MlflowTracker,
    RunInfo,
    RunSummary,
    Target,
    absolute_uri,
    flatten_params,
    plots,
    preflight,
    summary_tags,
)

if TYPE_CHECKING:
    from atoll.runtime import RunResult

__all__ = ["Run", "check_places", "load", "observing", "run", "session_for"]

RUNS_FOLDER = "runs"
_RESULT_FILE = "result.json"
#: workers that an embedded Ray accepts at most: per core, and on any machine
_WORKERS_PER_CORE, _LEAST_WORKERS = 4, 8
#: points of the picture of active clients over virtual time
_ACTIVE_POINTS = 400
_log = logging.getLogger(__name__)
Progress = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        run_id: in MLflow.
        name, arm, seed: what it was; `arm` is empty outside a comparison.
        folder: where its journal, timeline and weights lie.
        model_digest: of the final weights; equal digests are equal models, bit for bit.
        timeline_digest, plan_digest: of the steps taken.
        server_steps, client_updates: what was done.
        virtual_hours: simulated time.
        mean_staleness: over client updates.
        num_diverged: client updates that were zeroed because they diverged.
        metrics: of the last evaluation.
        wall_s: wall time of the run itself.
        busy_s: wall time that workers spent in client training and evaluation.
        workers: client pools.
        reason: why it stopped.
        tracking_uri, experiment: where it is logged.
        unpublished_rows: rows that the tracking service has not taken; they are in the journal.
        lost_pools: worker processes that died and were replaced.
    """

    run_id: str
    name: str
    arm: str
    seed: int
    folder: str
    model_digest: str
    timeline_digest: str
    plan_digest: str
    server_steps: int
    client_updates: int
    virtual_hours: float
    mean_staleness: float
    num_diverged: int
    metrics: Mapping[str, float]
    wall_s: float
    busy_s: float
    workers: int
    reason: str
    tracking_uri: str
    experiment: str
    unpublished_rows: int = 0
    lost_pools: int = 0
    target: Mapping[str, Any] | None = field(default=None)

    @property
    def overhead_share(self) -> float:
        """Share of the workers' wall time that was not client training or evaluation: 1 − busy / (workers · wall)."""
        return max(0.0, 1.0 - self.busy_s / max(self.workers * self.wall_s, 1e-9))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "metrics": dict(self.metrics), "overhead_share": self.overhead_share}

    def history(self) -> dict[str, list[tuple[int, float]]]:
        """(server step, value) per metric, read from the run's journal."""
        with Journal(Path(self.folder) / "journal.db") as journal:
            return journal.history()

    def summary(self) -> RunSummary:
        """What a comparison needs."""
        target = None if self.target is None else Target(self.target["metric"], self.target["value"])
        digests = {"model": self.model_digest, "timeline": self.timeline_digest, "plan": self.plan_digest}
        return RunSummary(self.run_id, self.name, self.arm, self.seed, self.history(), target, digests)

    def model(self) -> ModelVersion:
        """The final weights. Opens the data for its shape.

        Raises:
            SpecError: the run's files or its data are not there any more.
        """
        from atoll.data import open_data
        from atoll.experiment.modelling import shape_of
        from atoll.experiment.wiring import source_of
        from atoll.models.checkpoint import load_version

        spec = sp.load(Path(self.folder) / "spec.yaml")
        return load_version(Path(self.folder) / "model.safetensors", shape_of(spec, open_data(source_of(spec)).shape))


def load(run: str | Path, root: str | Path = RUNS_FOLDER) -> Run:
    """A finished run by its MLflow run id (or a beginning of it), its name, or its folder.

    Raises:
        SpecError: none or several match.
    """
    folder = Path(run)
    if (folder / _RESULT_FILE).is_file():
        return _read(folder)
    found = [_read(path.parent) for path in sorted(Path(root).glob(f"*/{_RESULT_FILE}"))]
    matches = [one for one in found if one.run_id.startswith(str(run)) or one.name == str(run)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        rule = "a run id or a folder, since several runs match"
        raise SpecError([Problem("run", repr(str(run)), rule, hint=", ".join(m.run_id for m in matches[-5:]))])
    known = ", ".join(f"{one.run_id} ({one.name})" for one in found[-5:]) or "none yet"
    raise SpecError([Problem("run", repr(str(run)), f"a finished run under {root}/", hint=f"the last ones: {known}")])


def _read(folder: Path) -> Run:
    return Run(**json.loads((folder / _RESULT_FILE).read_text()))


def session_for(spec: sp.Spec, report: PlanReport | None = None) -> AbstractContextManager[Any]:
    """The Ray session that `spec` asks for, to be entered; a null context for the inline runtime.

    Give it to several `run` calls to share workers between them.
    """
    runtime = spec.runtime
    if not isinstance(runtime, sp.RayRuntime):
        return nullcontext()
    from atoll.runtime.session import RaySession

    store = runtime.object_store_bytes
    if store is None and report is not None:
        store = max(512 * 2**20, 3 * report.summary.peak_live_versions * report.model_bytes)
    return RaySession(runtime.workers, runtime.gpus_per_worker, store)


def run(
    spec: SpecLike,
    *overrides: str,
    on_progress: Progress | None = None,
    session: Any = None,
    parent_run_id: str | None = None,
    arm: str = "",
    runs_folder: str | Path = RUNS_FOLDER,
) -> Run:
    """Runs one experiment to its end.

    Args:
        spec: a Spec, a mapping, or the path of a YAML file; without a `comparison`.
        overrides: `dotted.key=value`.
        on_progress: called with figures for a display.
        session: an entered session from `session_for`, to share workers; made for this run if None.
        parent_run_id: MLflow run that this one belongs to.
        arm: its arm in a comparison.
        runs_folder: where the run's own folder is made.

    Raises:
        SpecError, PlanError: refused before anything starts.
        ClientWorkError, AggregationError, InfrastructureError: failed on the way; rows so far are kept.
        KeyboardInterrupt: Ctrl-C; rows so far are kept, the MLflow run is marked KILLED.
    """
    resolved = as_spec(spec, overrides)
    if resolved.comparison is not None:
        arms, hint = (
            ", ".join(resolved.comparison.arms),
            "atoll.run_comparison runs the arms; comparison=null drops them",
        )
        raise SpecError([Problem("comparison", f"arms {arms}", "null for a single run", hint=hint)])
    report = plan(resolved)
    uri = absolute_uri(resolved.tracking.uri)
    preflight(uri)
    check_places(resolved, runs_folder)
    _check_device(resolved)
    folder = _new_folder(resolved, Path(runs_folder))
    info = _run_info(resolved, report, folder, parent_run_id, arm)
    tracker = MlflowTracker(uri, resolved.tracking.artifacts)
    run_id = tracker.start(info)
    try:
        result = _execute(resolved, report, folder, uri, info, session, on_progress)
    except BaseException as error:
        with observing():
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    finished = _finished(resolved, result, folder, run_id, uri, info, arm)
    (folder / _RESULT_FILE).write_text(json.dumps(asdict(finished), indent=2, default=dict))
    artifacts = _write_artifacts(resolved, finished, result.model)
    with observing():
        for path, place in artifacts:
            tracker.artifact(path, place)
        tracker.tags(summary_tags(arm, resolved.seed, finished.summary().target, finished.summary().digests))
        tracker.finish("FINISHED")
    return finished


@contextmanager
def observing() -> Iterator[None]:
    """Tracking observes, it never answers: a store that fails now does not fail the run, which is in its folder."""
    try:
        yield
    except InfrastructureError as error:
        _log.warning("tracking: %s; the run's own folder holds everything", error)


def _execute(
    spec: sp.Spec,
    report: PlanReport,
    folder: Path,
    uri: str,
    info: RunInfo,
    session: Any,
    on_progress: Progress | None,
) -> RunResult:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from atoll.experiment.building import parts_of

    parts = parts_of(spec, folder, uri, spec.tracking.artifacts, info)
    if not isinstance(spec.runtime, sp.RayRuntime):
        import torch

        from atoll.runtime import run_inline

        torch.set_num_threads(1)
        return run_inline(parts, on_progress=on_progress)
    from atoll.runtime.ray_executor import run_on_ray

    if session is not None:
        return run_on_ray(parts, session, on_progress=on_progress)
    with session_for(spec, report) as own:
        return run_on_ray(parts, own, on_progress=on_progress)


def check_places(spec: sp.Spec, runs_folder: str | Path) -> None:
    """Refuses folders of results that cannot be made or written; creates nothing.

    Raises:
        SpecError: the folder of runs, or `tracking.artifacts` where that is a folder of this machine.
    """
    places = {"runs": str(runs_folder)}
    if spec.tracking.artifacts is not None and "://" not in spec.tracking.artifacts:
        places["tracking.artifacts"] = spec.tracking.artifacts
    problems = []
    for place, text in places.items():
        folder = Path(text).absolute()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            why = f"{there} is {'read-only' if there.is_dir() else 'not a folder'}"
            problems.append(Problem(place, repr(text), "a folder that may be written", why))
    if problems:
        raise SpecError(problems)


def _check_device(spec: sp.Spec) -> None:
    _check_workers(spec)
    if spec.runtime.device_class != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        problem = Problem("runtime.device_class", "'cuda'", "a CUDA device that torch can use", "none is visible here")
        raise SpecError([problem])


def _check_workers(spec: sp.Spec) -> None:
    """An embedded Ray starts every worker on this machine: each is a process with torch in memory."""
    if not isinstance(spec.runtime, sp.RayRuntime) or "RAY_ADDRESS" in os.environ:
        return
    most = max(_LEAST_WORKERS, _WORKERS_PER_CORE * (os.cpu_count() or 1))
    if spec.runtime.workers > most:
        why = "without RAY_ADDRESS all workers start on this machine, each a process of some 300 MB"
        hint = "one worker per core is best; set RAY_ADDRESS to use a Ray cluster"
        raise SpecError([Problem("runtime.workers", str(spec.runtime.workers), f"at most {most} here", why, hint)])


def _new_folder(spec: sp.Spec, root: Path) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", spec.name)
    folder = (root / f"{slug}-{stamp}-{secrets.token_hex(2)}").absolute()
    folder.mkdir(parents=True)
    (folder / "spec.yaml").write_text(sp.dump(spec))
    return folder


def _run_info(spec: sp.Spec, report: PlanReport, folder: Path, parent_run_id: str | None, arm: str) -> RunInfo:
    tags = summary_tags(arm, spec.seed) | {"fl.spec_digest": sp.digest(spec)}
    params = flatten_params(sp.to_dict(spec)) | {"lanes": str(report.lanes)}
    experiment = spec.tracking.experiment or spec.name
    return RunInfo(experiment, spec.name, folder.name, params, tags, parent_run_id)


def _finished(spec: sp.Spec, result: RunResult, folder: Path, run_id: str, uri: str, info: RunInfo, arm: str) -> Run:
    target = spec.stop.target
    return Run(
        run_id=run_id,
        name=spec.name,
        arm=arm,
        seed=spec.seed,
        folder=str(folder),
        model_digest=model_digest(result.model),
        timeline_digest=result.timeline_digest,
        plan_digest=result.plan_digest,
        server_steps=result.model.version,
        client_updates=result.client_updates,
        virtual_hours=result.virtual_hours,
        mean_staleness=result.mean_staleness,
        num_diverged=result.num_diverged,
        metrics=dict(result.metrics),
        wall_s=result.wall_s,
        busy_s=result.busy_s,
        workers=spec.runtime.workers if isinstance(spec.runtime, sp.RayRuntime) else 1,
        reason=result.reason,
        tracking_uri=uri,
        experiment=info.experiment,
        unpublished_rows=result.unpublished_rows,
        lost_pools=result.lost_pools,
        target=None if target is None else {"metric": target.metric, "value": target.value},
    )


def _write_artifacts(spec: sp.Spec, finished: Run, model: ModelVersion) -> list[tuple[Path, str | None]]:
    """Final weights and plots into the run's folder; (file, folder in the store) of all that the store keeps."""
    from atoll.data import open_data
    from atoll.experiment.modelling import shape_of
    from atoll.experiment.wiring import source_of
    from atoll.models.checkpoint import save_version

    folder = Path(finished.folder)
    shape = shape_of(spec, open_data(source_of(spec)).shape)
    save_version(folder / "model.safetensors", model, shape)
    metric = spec.stop.target.metric if spec.stop.target else spec.evaluation.metrics[-1]
    pictures = plots(
        finished.history(), folder / "plots", metric=f"eval/{metric}", title=spec.name, **_timeline_facts(folder)
    )
    kept = ("spec.yaml", "timeline.parquet", "model.safetensors")
    return [(folder / name, None) for name in kept] + [(path, "plots") for path in pictures.values()]


def _timeline_facts(folder: Path) -> dict[str, Any]:
    """Staleness counts and active clients over virtual time, from the run's timeline."""
    import pyarrow.parquet as pq

    columns = ["start_us", "finish_us", "start_version", "step"]
    table = pq.read_table(folder / "timeline.parquet", columns=columns)
    if not table.num_rows:
        return {}
    start, finish, version, step = (table.column(name).to_numpy() for name in columns)
    is_used = step >= 0
    counts = np.bincount(step[is_used] - version[is_used])
    moments = np.linspace(0, finish.max(), _ACTIVE_POINTS, endpoint=False)
    active = np.searchsorted(np.sort(start), moments, "right") - np.searchsorted(np.sort(finish), moments, "right")
    return {
        "staleness_counts": {int(tau): int(count) for tau, count in enumerate(counts) if count},
        "active": [(float(at) / 3.6e9, float(number)) for at, number in zip(moments, active, strict=True)],
    }
