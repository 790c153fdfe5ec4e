"""Making room in the folder of runs: what no run needs to go on, and what finished runs kept to be made longer."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atoll.errors import AtollError, InfrastructureError
from atoll.experiment.listing import list_runs, run_entry
from atoll.experiment.places import only_one
from atoll.experiment.records import JOURNAL_FILE, RUNS_FOLDER, STORE_FILE
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

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def prune_runs(root: str | Path = RUNS_FOLDER) -> Pruned:
    """Removes files that were begun and never finished, snapshots that no journal names, and those of finished runs.

    Guarantees: no journal names a file that is gone, a run that can be resumed still can, with all it had, and a run
    that another process works on is left alone; each is locked meanwhile. Results, weights, checkpoints, timelines
    and journals stay. A finished run that has rows to publish keeps its snapshots, since it needs them for that. A run
    that keeps itself in a shared store is left as it is: another machine may work on it.

    Args:
        root: where runs lie.
    """
    freed: dict[str, int] = {}
    shortened: list[str] = []
    skipped: list[str] = []
    for entry in list_runs(root):
        if entry.state == "not begun" and not entry.runs:
            continue
        if entry.state == "damaged" and not entry.runs:
            skipped.append(entry.name)
            continue
        try:
            with ExitStack() as locks:
                # A comparison's own lock keeps it from beginning one of its runs meanwhile.
                for name in dict.fromkeys((entry.name, *(run.name for run in entry.runs))):
                    locks.enter_context(only_one(Path(root) / name))
                for run in entry.runs or (entry,):
                    if _prune(Path(root) / run.name, freed):
                        shortened.append(run.name)
        except (AtollError, OSError):
            skipped.append(entry.name)
    return Pruned(sum(freed.values()), len(freed), tuple(shortened), tuple(skipped))


def _prune(folder: Path, freed: dict[str, int]) -> bool:
    """Prunes a locked run; notes file → bytes in `freed`; whether the run lost its snapshots.

    Raises:
        InfrastructureError: its journal cannot be trusted.
    """
    from atoll.experiment.storing import SNAPSHOTS_FOLDER

    entry = run_entry(folder, is_worked_on=False)
    if entry.state == "not begun" or (folder / STORE_FILE).is_file():
        return False
    may_shorten = entry.state == "finished" and not entry.has_unpublished
    names: list[str] = []
    with SqliteJournal(folder / JOURNAL_FILE, is_readonly=not may_shorten) as journal:
        if damage := journal.damage():
            raise InfrastructureError(f"{folder / JOURNAL_FILE}: {damage[0]}")
        if may_shorten:
            # The journal first: what it names is always there, even if this process dies between the two.
            journal.claim()
            names = journal.keep_snapshots(0)
        needed = {name for record in journal.snapshots() for name in record.hashes}
    snapshots = (folder / SNAPSHOTS_FOLDER).glob("*")
    unnamed = [path for path in snapshots if epoch_of(path.name) and path.name not in needed]
    for path in {*unnamed, *folder.rglob("*.tmp")}:
        size_bytes = path.stat().st_size
        path.unlink()
        freed[str(path)] = size_bytes
    return bool(names)
