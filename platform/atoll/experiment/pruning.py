"""Making room in the folder of runs: what no run needs to go on, and what finished runs kept to be made longer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from atoll.errors import SpecError
from atoll.experiment.building import SNAPSHOTS_FOLDER
from atoll.experiment.listing import Entry, list_runs
from atoll.experiment.places import only_one
from atoll.experiment.records import JOURNAL_FILE, RUNS_FOLDER
from atoll.runtime.store import SqliteJournal, epoch_of

__all__ = ["Pruned", "prune_runs"]


@dataclass(frozen=True)
class Pruned:
    """What was removed.

    Attributes:
        freed_bytes: of the files removed.
        files: how many.
        shortened: names of finished runs whose snapshots are gone: made longer, they compute their steps again.
        skipped: names of runs that were worked on or could not be read, and were left alone.
    """

    freed_bytes: int
    files: int
    shortened: tuple[str, ...]
    skipped: tuple[str, ...]


def prune_runs(root: str | Path = RUNS_FOLDER) -> Pruned:
    """Removes files that were begun and never finished, snapshots that no journal names, and those of finished runs.

    Guarantees: no journal names a file that is gone, a run that can be resumed still can, with all it had, and a run
    that another process works on is left alone; each is locked meanwhile. Results, weights, checkpoints, timelines
    and journals stay. A finished run that has rows to publish keeps its snapshots, since it needs them for that.

    Args:
        root: where runs lie.
    """
    freed: list[int] = []
    shortened: list[str] = []
    skipped: list[str] = []
    for entry in list_runs(root):
        try:
            # A comparison's own lock keeps it from beginning one of its runs meanwhile.
            with only_one(Path(root) / entry.name):
                for run in entry.runs or (entry,):
                    _prune(Path(root) / run.name, run, freed, shortened, skipped)
        except (SpecError, OSError):
            skipped.append(entry.name)
    return Pruned(sum(freed), len(freed), tuple(shortened), tuple(skipped))
