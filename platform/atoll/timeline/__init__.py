"""When: who starts on which model version, who ends when, which server step uses it. Pure, resumable, prefix-stable.

Integer microseconds of virtual time; columnar rows in the total order (finish, arrivals before aborts, task id).
Imports neither torch nor ray.
"""

from atoll.population import Outcome
from atoll.timeline.heap import HeapLoop
from atoll.timeline.records import ROW, Batch, Chunk, Rows, concat
from atoll.timeline.rounds import RoundLoop
from atoll.timeline.schedules import AsyncSchedule, Sampling, Schedule, SyncSchedule
from atoll.timeline.selection import MAX_ATTEMPTS, SLOT_SHIFT, Selector, never_available
from atoll.timeline.stats import TimelineStats, stats
from atoll.timeline.timeline import Engine, Timeline
from atoll.timeline.window import WindowEngine

__all__ = [
    "MAX_ATTEMPTS",
    "ROW",
    "SLOT_SHIFT",
    "AsyncSchedule",
    "Batch",
    "Chunk",
    "Engine",
    "HeapLoop",
    "Outcome",
    "RoundLoop",
    "Rows",
    "Sampling",
    "Schedule",
    "Selector",
    "SyncSchedule",
    "Timeline",
    "TimelineStats",
    "WindowEngine",
    "concat",
    "never_available",
    "stats",
]
