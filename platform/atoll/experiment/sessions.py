"""Which Ray a run asks for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from atoll import spec as sp
from atoll.experiment.planning import PlanReport

__all__ = ["session_for", "store_bytes_of"]


def store_bytes_of(report: PlanReport) -> int:
    """Object store that an embedded Ray needs for this plan's live versions."""
    return max(512 * 2**20, 3 * report.summary.peak_live_versions * report.model_bytes)


def session_for(spec: sp.Spec, store_bytes: int = 0) -> AbstractContextManager[Any]:
    """The Ray session that `spec` asks for, to be entered; a null context for the inline runtime.

    Give it to several `run` calls to share workers between them.

    Args:
        spec: its `runtime`.
        store_bytes: object store of an embedded Ray, unless the spec names it; 0: a default.
    """
    runtime = spec.runtime
    if not isinstance(runtime, sp.RayRuntime):
        return nullcontext()
    from atoll.runtime.session import RaySession

    return RaySession(runtime.workers, runtime.gpus_per_worker, runtime.object_store_bytes or store_bytes or None)
