"""Which Ray a run asks for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from atoll import spec as sp
from atoll.experiment.planning import PlanReport

__all__ = ["session_for", "store_bytes_of"]

#: object store of an embedded Ray at least; one for all the runs on it
_LEAST_STORE_BYTES = 512 * 2**20


def store_bytes_of(report: PlanReport) -> int:
    """Object store that this plan's live versions need; runs that share an embedded Ray need the sum."""
    return 3 * report.summary.peak_live_versions * report.model_bytes


def session_for(spec: sp.Spec, store_bytes: int = 0) -> AbstractContextManager[Any]:
    """The Ray session that `spec` asks for, to be entered; a null context for the inline runtime.

    Give it to several `run` calls to share workers between them.

    Args:
        spec: its `runtime`.
        store_bytes: object store that the runs on an embedded Ray need, unless the spec names its size.
    """
    runtime = spec.runtime
    if not isinstance(runtime, sp.RayRuntime):
        return nullcontext()
    from atoll.runtime.session import RaySession

    store_bytes = runtime.object_store_bytes or max(_LEAST_STORE_BYTES, store_bytes)
    return RaySession(
        runtime.least_workers,
        runtime.gpus_per_worker,
        store_bytes,
        most_workers=runtime.most_workers,
        labels=runtime.labels,
    )
