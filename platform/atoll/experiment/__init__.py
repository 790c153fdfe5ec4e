"""Composition root: the one place that wires rooms together, and the public interface of atoll.

A folder rather than one file, since wiring, planning, running and comparing change for different reasons. Importing it
loads neither torch nor ray nor mlflow; running does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atoll.experiment.comparing import (
        ComparisonRun,
        compare_runs,
        outcome_dict,
        resume_comparison,
        run_comparison,
        write_comparison,
    )
    from atoll.experiment.ensembling import EnsemblePlan, EnsembleRun, plan_ensemble, resume_ensemble, run_ensemble
    from atoll.experiment.exporting import Exported, export
    from atoll.experiment.listing import Entry, list_runs
    from atoll.experiment.planning import PlanReport, as_spec, plan
    from atoll.experiment.pruning import Pruned, prune_runs
    from atoll.experiment.records import Run, find_folder, load
    from atoll.experiment.replaying import Replay, ReplayCase, prepare_replay, replay
    from atoll.experiment.running import resume, run
    from atoll.experiment.sessions import session_for
    from atoll.experiment.tuning import Timing, Tuned, tune

__all__ = [
    "ComparisonRun",
    "EnsemblePlan",
    "EnsembleRun",
    "Entry",
    "Exported",
    "PlanReport",
    "Pruned",
    "Replay",
    "ReplayCase",
    "Run",
    "Timing",
    "Tuned",
    "as_spec",
    "compare_runs",
    "export",
    "find_folder",
    "list_runs",
    "load",
    "outcome_dict",
    "plan",
    "plan_ensemble",
    "prepare_replay",
    "prune_runs",
    "replay",
    "resume",
    "resume_comparison",
    "resume_ensemble",
    "run",
    "run_comparison",
    "run_ensemble",
    "session_for",
    "tune",
    "write_comparison",
]

#: what stands where: `atoll plan` need not wait for what runs, compares and exports
_PARTS = {
    "comparing": (
        "ComparisonRun",
        "compare_runs",
        "outcome_dict",
        "resume_comparison",
        "run_comparison",
        "write_comparison",
    ),
    "ensembling": ("EnsemblePlan", "EnsembleRun", "plan_ensemble", "resume_ensemble", "run_ensemble"),
    "exporting": ("Exported", "export"),
    "listing": ("Entry", "list_runs"),
    "planning": ("PlanReport", "as_spec", "plan"),
    "pruning": ("Pruned", "prune_runs"),
    "records": ("Run", "find_folder", "load"),
    "replaying": ("Replay", "ReplayCase", "prepare_replay", "replay"),
    "running": ("resume", "run"),
    "sessions": ("session_for",),
    "tuning": ("Timing", "Tuned", "tune"),
}
_PART_OF = {name: part for part, names in _PARTS.items() for name in names}


def __getattr__(name: str) -> Any:
    """The public names, imported when first asked for."""
    if name in _PART_OF:
        return getattr(import_module(f"atoll.experiment.{_PART_OF[name]}"), name)
    raise AttributeError(f"module 'atoll.experiment' has no attribute {name!r}")
