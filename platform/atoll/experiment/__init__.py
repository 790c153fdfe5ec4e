"""Composition root: the one place that wires rooms together, and the public interface of atoll.

A folder rather than one file, since wiring, planning, running and comparing change for different reasons. Importing it
loads neither torch nor ray nor mlflow; running does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atoll.experiment.checking_cluster import check_cluster_file
    from atoll.experiment.comparing import (
        ComparisonRun,
        compare_runs,
        outcome_dict,
        resume_comparison,
        run_comparison,
        write_comparison,
    )
    from atoll.experiment.ensembling import EnsemblePlan, EnsembleRun, plan_ensemble, resume_ensemble, run_ensemble
    from atoll.experiment.examining import Diagnosis, NodeHealth, doctor
    from atoll.experiment.exporting import Exported, export
    from atoll.experiment.listing import Entry, list_runs
    from atoll.experiment.orders import Driver
    from atoll.experiment.planning import PlanReport, as_spec, plan
    from atoll.experiment.predicting import Forecast, predict
    from atoll.experiment.pruning import Pruned, prune_runs
    from atoll.experiment.records import Run, find_folder, load
    from atoll.experiment.replaying import Replay, ReplayCase, prepare_replay, replay
    from atoll.experiment.running import resume, run
    from atoll.experiment.sessions import session_for
    from atoll.experiment.submitting import Submission, follow_job, job_server, stop_job, submit
    from atoll.experiment.sweep_trials import SweepRun, Trial
    from atoll.experiment.sweeping import resume_sweep, sweep
    from atoll.experiment.tuning import Timing, Tuned, tune

__all__ = [
    "ComparisonRun",
    "Diagnosis",
    "Driver",
    "EnsemblePlan",
    "EnsembleRun",
    "Entry",
    "Exported",
    "Forecast",
    "NodeHealth",
    "PlanReport",
    "Pruned",
    "Replay",
    "ReplayCase",
    "Run",
    "Submission",
    "SweepRun",
    "Timing",
    "Trial",
    "Tuned",
    "as_spec",
    "check_cluster_file",
    "compare_runs",
    "doctor",
    "export",
    "find_folder",
    "follow_job",
    "job_server",
    "list_runs",
    "load",
    "outcome_dict",
    "plan",
    "plan_ensemble",
    "predict",
    "prepare_replay",
    "prune_runs",
    "replay",
    "resume",
    "resume_comparison",
    "resume_ensemble",
    "resume_sweep",
    "run",
    "run_comparison",
    "run_ensemble",
    "session_for",
    "stop_job",
    "submit",
    "sweep",
    "tune",
    "write_comparison",
]

#: what stands where: `atoll plan` need not wait for what runs, compares and exports
_PARTS = {
    "checking_cluster": ("check_cluster_file",),
    "comparing": (
        "ComparisonRun",
        "compare_runs",
        "outcome_dict",
        "resume_comparison",
        "run_comparison",
        "write_comparison",
    ),
    "ensembling": ("EnsemblePlan", "EnsembleRun", "plan_ensemble", "resume_ensemble", "run_ensemble"),
    "examining": ("Diagnosis", "NodeHealth", "doctor"),
    "exporting": ("Exported", "export"),
    "listing": ("Entry", "list_runs"),
    "orders": ("Driver",),
    "planning": ("PlanReport", "as_spec", "plan"),
    "predicting": ("Forecast", "predict"),
    "pruning": ("Pruned", "prune_runs"),
    "records": ("Run", "find_folder", "load"),
    "replaying": ("Replay", "ReplayCase", "prepare_replay", "replay"),
    "running": ("resume", "run"),
    "sessions": ("session_for",),
    "sweep_trials": ("SweepRun", "Trial"),
    "sweeping": ("resume_sweep", "sweep"),
    "submitting": ("Submission", "follow_job", "job_server", "stop_job", "submit"),
    "tuning": ("Timing", "Tuned", "tune"),
}
_PART_OF = {name: part for part, names in _PARTS.items() for name in names}


def __getattr__(name: str) -> Any:
    """The public names, imported when first asked for."""
    if name in _PART_OF:
        return getattr(import_module(f"atoll.experiment.{_PART_OF[name]}"), name)
    raise AttributeError(f"module 'atoll.experiment' has no attribute {name!r}")
