"""Ray actors as thin shells round pure state machines, and the in-process executor.

Ray itself is imported by `runtime.session` and `runtime.ray_executor` only, so inline runs start without it.
"""

from atoll.runtime.coordinator import Coordinator, CoordinatorSettings, Target
from atoll.runtime.inline import run_inline
from atoll.runtime.parts import MetricRow, Outbox, Parts, Publisher, RunResult

__all__ = [
    "Coordinator",
    "CoordinatorSettings",
    "MetricRow",
    "Outbox",
    "Parts",
    "Publisher",
    "RunResult",
    "Target",
    "run_inline",
]
