"""The end of a run: its result, final weights and pictures, in its folder and in the tracking store."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atoll import spec as sp
from atoll.errors import InfrastructureError, SpecError
from atoll.experiment.facts import TIMELINE_FILE
from atoll.experiment.opened import data_of
from atoll.experiment.records import Run, write_result
from atoll.messages import ModelVersion, model_digest
from atoll.tracking import MlflowTracker, plots, summary_tags

if TYPE_CHECKING:
    from atoll.runtime import RunResult

__all__ = ["finish", "observing", "run_of"]

#: points of the picture of active clients over virtual time
_ACTIVE_POINTS = 400
_log = logging.getLogger(__name__)


@contextmanager
def observing() -> Iterator[None]:
    """Tracking observes, it never answers: a store that fails now does not fail the run, which is in its folder."""
    try:
        yield
    except (InfrastructureError, SpecError) as error:
        _log.warning("tracking: %s; the run's own folder holds everything", error)


def finish(
    finished: Run, spec: sp.Spec, model: ModelVersion, tracker: MlflowTracker, *, is_pictured: bool = True
) -> bool:
    """Writes weights, pictures and result, then hands them to the tracking store. May be done again.

    The result comes last in the folder: a run without it is not finished, and resuming it ends here again.

    Returns:
        Whether the tracking store has everything.

    Raises:
        InfrastructureError: the folder cannot be written.
    """
    is_told = False
    try:
        artifacts = _write_artifacts(spec, finished, model, is_pictured=is_pictured)
        with observing():
            for path, place in artifacts:
                tracker.artifact(path, place)
            summary = finished.summary()
            tags = summary_tags(finished.arm, spec.seed, summary.target, summary.digests)
            if not finished.is_comparable:
                tags = {**tags, "fl.comparable": "no"}
            tracker.tags(tags)
            tracker.finish("FINISHED")
            is_told = finished.unpublished_rows == 0
        write_result(finished)
    except OSError as error:
        raise InfrastructureError(f"{finished.folder}: writing the result failed: {error}. Make room.") from error
    return is_told


def run_of(
    spec: sp.Spec, result: RunResult, folder: Path, run_id: str, uri: str, arm: str, *, is_comparable: bool
) -> Run:
    """The finished run."""
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
        pool_s=result.pool_s,
        workers=spec.runtime.most_workers if isinstance(spec.runtime, sp.RayRuntime) else 1,
        reason=result.reason,
        tracking_uri=uri,
        experiment=spec.tracking.experiment or spec.name,
        durable_s=result.durable_s,
        unpublished_rows=result.unpublished_rows,
        lost_pools=result.lost_pools,
        attempts=result.attempts,
        is_comparable=is_comparable,
        target=None if target is None else {"metric": target.metric, "value": target.value},
    )


def _write_artifacts(
    spec: sp.Spec, finished: Run, model: ModelVersion, *, is_pictured: bool
) -> list[tuple[Path, str | None]]:
    """Final weights and plots into the run's folder; (file, folder in the store) of all that the store keeps."""
    from atoll.experiment.modelling import shape_of
    from atoll.models.checkpoint import save_version

    folder = Path(finished.folder)
    shape = shape_of(spec, data_of(spec).shape)
    save_version(folder / "model.safetensors", model, shape)
    kept: list[tuple[Path, str | None]]
    kept = [(folder / name, None) for name in ("spec.yaml", TIMELINE_FILE, "model.safetensors")]
    if not is_pictured:
        return kept
    metric = spec.stop.target.metric if spec.stop.target else spec.evaluation.metrics[-1]
    pictures = plots(
        finished.history(), folder / "plots", metric=f"eval/{metric}", title=spec.name, **_timeline_facts(folder)
    )
    return kept + [(path, "plots") for path in pictures.values()]


def _timeline_facts(folder: Path) -> dict[str, Any]:
    """Staleness counts and active clients over virtual time, from the run's timeline."""
    import pyarrow.parquet as pq

    columns = ["start_us", "finish_us", "start_version", "step"]
    table = pq.read_table(folder / TIMELINE_FILE, columns=columns)
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
