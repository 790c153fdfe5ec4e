"""What became of a sweep and of each of its trials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from atoll.experiment.records import Run
from atoll.experiment.sweep_settings import Planned
from atoll.experiment.sweep_study import Settings

__all__ = ["SweepRun", "Trial", "arm_name", "trial_of"]


def arm_name(number: int) -> str:
    """Arm of a trial's runs, and the beginning of their folders' names."""
    return f"t{number:03d}"


@dataclass(frozen=True)
class Trial:
    """What became of one trial.

    Attributes:
        number: from 0.
        values: by key.
        scores: at each rung that it came to, the mean over seeds; None: not finite, or the target was not reached.
        state: stopped: others were better at a rung; lost: it has no score; refused: its spec is wrong, see `why`.
        timeline_digest: up to the first rung, with the first seed.
        runs: one per seed, as far as each came.
        why: it was refused.
    """

    number: int
    values: Mapping[str, Any]
    scores: Mapping[int, float | None]
    state: Literal["finished", "stopped", "lost", "refused"]
    timeline_digest: str
    runs: tuple[Run, ...]
    why: str = ""

    @property
    def name(self) -> str:
        """Arm of its runs."""
        return arm_name(self.number)

    @property
    def step(self) -> int:
        """The last rung that it came to; 0 where it never trained."""
        return max(self.scores, default=0)

    @property
    def score(self) -> float | None:
        """At its last rung."""
        return self.scores.get(self.step)

    @property
    def virtual_hours(self) -> float | None:
        """Simulated time, the mean over seeds."""
        return sum(one.virtual_hours for one in self.runs) / len(self.runs) if self.runs else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "number": self.number,
            "values": dict(self.values),
            "state": self.state,
            "score": self.score,
            "scores": {str(rung): score for rung, score in self.scores.items()},
            "timeline_digest": self.timeline_digest,
            "run_ids": [one.run_id for one in self.runs],
            "folders": [one.folder for one in self.runs],
            "why": self.why,
        }


@dataclass(frozen=True)
class SweepRun:
    """A finished sweep.

    Attributes:
        folder: of the sweep; every run's folder is inside.
        settings: what decided the trials.
        trials: by number.
        best: the best of those that went to the end; None where none has a score.
        moves_timeline: keys whose values change who starts and finishes when; for all others, the trials of one seed
            share a timeline.
        best_spec: file with its spec, for `atoll run`; "" without a best.
        html: the best trials beside one another; "" without a best.
        csv: every trial.
        parent_run_id: the MLflow run that holds them all.
        tracking_uri, experiment: where it is logged.
    """

    folder: str
    settings: Settings
    trials: tuple[Trial, ...]
    best: Trial | None
    moves_timeline: tuple[str, ...]
    best_spec: str
    html: str
    csv: str
    parent_run_id: str
    tracking_uri: str
    experiment: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        names = ("folder", "best_spec", "html", "csv", "parent_run_id")
        return {
            **{name: getattr(self, name) for name in names},
            "metric": self.settings.metric,
            "moves_timeline": list(self.moves_timeline),
            "best": None if self.best is None else self.best.as_dict(),
            "trials": [one.as_dict() for one in self.trials],
        }


def trial_of(one: Planned, scores: Mapping[int, float | None], last_rung: int, runs: tuple[Run, ...] = ()) -> Trial:
    """A planned trial with its scores so far."""
    state: Literal["finished", "stopped", "lost", "refused"] = "stopped"
    if one.report is None:
        state = "refused"
    elif scores and scores[max(scores)] is None:
        state = "lost"
    elif last_rung in scores:
        state = "finished"
    digest = "" if one.report is None else one.report.timeline_digest
    return Trial(one.number, one.values, dict(scores), state, digest, runs, one.why)
