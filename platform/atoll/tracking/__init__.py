"""Where results go: trackers (MLflow, memory), plots, and the comparison of runs.

The only room with mlflow; mlflow, matplotlib and rich are imported inside the functions that need them.
"""

from atoll.tracking.compare import (
    MEASURES,
    ArmOutcome,
    Comparison,
    RunOutcome,
    RunSummary,
    Spread,
    Target,
    child_runs,
    compare,
    load_run,
    summary_tags,
)
from atoll.tracking.curves import History, lower_is_better
from atoll.tracking.mlflow_tracker import MlflowTracker
from atoll.tracking.plots import comparison_plots, plots
from atoll.tracking.render import insert_between, to_csv, to_html, to_markdown, to_table, to_text
from atoll.tracking.rows import Row, RunInfo, finite_rows, flatten_params, now_ms
from atoll.tracking.store import UiCommand, absolute_uri, artifact_root, initialise, page_url, preflight, ui
from atoll.tracking.tracker import MemoryRun, MemoryStore, MemoryTracker, RunStatus, Tracker

__all__ = [
    "MEASURES",
    "ArmOutcome",
    "Comparison",
    "History",
    "MemoryRun",
    "MemoryStore",
    "MemoryTracker",
    "MlflowTracker",
    "Row",
    "RunInfo",
    "RunOutcome",
    "RunStatus",
    "RunSummary",
    "Spread",
    "Target",
    "Tracker",
    "UiCommand",
    "absolute_uri",
    "artifact_root",
    "child_runs",
    "compare",
    "comparison_plots",
    "finite_rows",
    "flatten_params",
    "initialise",
    "insert_between",
    "load_run",
    "lower_is_better",
    "now_ms",
    "page_url",
    "plots",
    "preflight",
    "summary_tags",
    "to_csv",
    "to_html",
    "to_markdown",
    "to_table",
    "to_text",
    "ui",
]
