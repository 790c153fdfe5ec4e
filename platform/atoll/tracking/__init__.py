"""Where results go: the run's journal and outbox, trackers (MLflow, memory), plots, and the comparison of runs.

The only room with mlflow; mlflow, matplotlib and rich are imported inside the functions that need them.
"""

from atoll.tracking.mlflow_tracker import MlflowTracker
from atoll.tracking.outbox import Drained, Journal, StepRecord, drain
from atoll.tracking.rows import Row, RunInfo, finite_rows, flatten_params, now_ms
from atoll.tracking.store import UiCommand, absolute_uri, artifact_root, preflight, ui
from atoll.tracking.tracker import MemoryRun, MemoryStore, MemoryTracker, RunStatus, Tracker

__all__ = [
    "Drained",
    "Journal",
    "MemoryRun",
    "MemoryStore",
    "MemoryTracker",
    "MlflowTracker",
    "Row",
    "RunInfo",
    "RunStatus",
    "StepRecord",
    "Tracker",
    "UiCommand",
    "absolute_uri",
    "artifact_root",
    "drain",
    "finite_rows",
    "flatten_params",
    "now_ms",
    "preflight",
    "ui",
]
