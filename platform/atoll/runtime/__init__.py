"""Ray actors as thin shells round pure state machines, the in-process executor, and what survives a crash.

Ray itself is imported by `runtime.session` and `runtime.ray_executor` only, so inline runs start without it; torch by
the executors only, so that a run's journal can be read at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atoll.runtime.coordinator import Coordinator, CoordinatorSettings, Target
from atoll.runtime.parts import Outcome, Parts, Publisher, RunResult
from atoll.runtime.store import MetricRow

if TYPE_CHECKING:
    from atoll.runtime.inline import run_inline, run_inline_together

__all__ = [
    "Coordinator",
    "CoordinatorSettings",
    "MetricRow",
    "Outcome",
    "Parts",
    "Publisher",
    "RunResult",
    "Target",
    "run_inline",
    "run_inline_together",
]


def __getattr__(name: str) -> Any:
    if name in ("run_inline", "run_inline_together"):
        from atoll.runtime import inline

        return getattr(inline, name)
    raise AttributeError(f"module 'atoll.runtime' has no attribute {name!r}")
