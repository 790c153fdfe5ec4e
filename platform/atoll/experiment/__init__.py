"""Composition root: the one place that wires rooms together, and the public interface of atoll.

A folder rather than one file, since wiring, planning, running and comparing change for different reasons. Importing it
loads neither torch nor ray nor mlflow; running does.
"""

from atoll.experiment.comparing import ComparisonRun, compare_runs, outcome_dict, run_comparison, write_comparison
from atoll.experiment.planning import PlanReport, as_spec, plan
from atoll.experiment.running import Run, load, run, session_for

__all__ = [
    "ComparisonRun",
    "PlanReport",
    "Run",
    "as_spec",
    "compare_runs",
    "load",
    "outcome_dict",
    "plan",
    "run",
    "run_comparison",
    "session_for",
    "write_comparison",
]
