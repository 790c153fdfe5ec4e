"""What lies in the folder of runs: which runs, how far they are, what can be done about each. Looks only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from atoll import spec as sp
from atoll.experiment.places import is_held
from atoll.experiment.records import (
    COMPARISON_FILE,
    ENSEMBLE_FILE,
    JOURNAL_FILE,
    RESULT_FILE,
    RUNS_FOLDER,
    STORE_FILE,
    TOLD,
    is_sweep,
)
from atoll.runtime.store import SqliteJournal

__all__ = ["Entry", "State", "list_runs", "run_entry"]

State = Literal["running", "finished", "interrupted", "elsewhere", "not begun", "damaged"]
_REPORTS = (Path("comparison") / "comparison.html", Path("comparison") / "trials.csv", Path(ENSEMBLE_FILE))
#: files that name a folder as one of ours; an empty folder is one whose run died in its first moments
_OURS = (JOURNAL_FILE, STORE_FILE, COMPARISON_FILE, "spec.yaml", ".lock")


@dataclass(frozen=True)
class Entry:
    """One folder of a run, or of several: a comparison, an ensemble or a sweep.

    Attributes:
        name: the folder, as `atoll resume` takes it; of a run of a comparison COMPARISON/RUN.
        kind: run; sweep; or comparison, ensembles included.
        state: running: a process of this machine works on it now; interrupted: it was begun and did not end, by
            whatever cause, and can be resumed; elsewhere: it keeps itself in a shared store, of which this folder has
            no copy yet; not begun: its process died before there was anything to keep;
            damaged: it cannot be read, see `problem`.
        step: server steps committed; of a comparison, runs finished.
        stop: server steps asked for; of a comparison, runs asked for; None where that is not known.
        snapshot_version: newest model version to go on from; None if there is none.
        size_bytes: of all its files, a comparison's runs included.
        written_s: Unix time of the newest of its files.
        run_id: in MLflow; None before it has one.
        unpublished_rows: metric rows that the tracking service has not taken.
        unpublished_files: files that it has not taken; the end of a finished run counts as one.
        advice: what one can do; may be empty.
        problem: what is wrong with a damaged one.
        runs: of a comparison.
    """

    name: str
    kind: Literal["run", "comparison", "sweep"]
    state: State
    step: int = 0
    stop: int | None = None
    snapshot_version: int | None = None
    size_bytes: int = 0
    written_s: float = 0.0
    run_id: str | None = None
    unpublished_rows: int = 0
    unpublished_files: int = 0
    advice: str = ""
    problem: str = ""
    runs: tuple[Entry, ...] = ()

    @property
    def has_unpublished(self) -> bool:
        """Whether anything waits for the tracking service."""
        return bool(self.unpublished_rows or self.unpublished_files)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def list_runs(root: str | Path = RUNS_FOLDER) -> tuple[Entry, ...]:
    """Every run and comparison under `root`, the one written last at the end; runs of a comparison are inside it.

    Guarantees: nothing is made or changed, runs that are worked on are not held up, and a folder that cannot be read
    is an entry that says so. Whether a journal is whole to the last byte is checked by resuming, not here. Of a run
    that keeps itself in a shared store, the copy in its folder is told, made when it last stopped here. No root: no
    entries.

    Args:
        root: where runs lie.
    """
    base = Path(root)
    try:
        folders = [path for path in base.iterdir() if path.is_dir() and _is_ours(path)]
    except OSError:
        return ()
    return _by_time(_entry(folder) for folder in folders)


def _is_ours(folder: Path) -> bool:
    try:
        return any((folder / name).exists() for name in _OURS) or not any(folder.iterdir())
    except OSError:
        return True  # it will say why it cannot be read


def _by_time(entries: Iterator[Entry]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda entry: (entry.written_s, entry.name)))


def _entry(folder: Path) -> Entry:
    """The entry of a folder, whatever state it is in."""
    try:
        is_run = any((folder / name).exists() for name in (JOURNAL_FILE, STORE_FILE))
        inner = () if is_run else (JOURNAL_FILE, STORE_FILE)
        children = sorted({path.parent for name in inner for path in folder.glob(f"*/{name}")})
        is_comparison = (folder / COMPARISON_FILE).exists() or children
        found = _comparison(folder, children) if is_comparison else run_entry(folder, is_worked_on=is_held(folder))
        return replace(found, advice=_advice(found))
    except Exception as error:  # one broken folder must not hide the others
        return Entry(folder.name, "run", "damaged", problem=f"{type(error).__name__}: {error}")


# ---- one run --------------------------------------------------------------------------------------------------------


def run_entry(folder: Path, *, is_worked_on: bool) -> Entry:
    """The entry of one run, without advice. Its journal is tried twice: somebody may begin to write it meanwhile."""
    size_bytes, written_s = _disk(folder)
    state: State = "running" if is_worked_on else "not begun"
    empty = Entry(folder.name, "run", state, size_bytes=size_bytes, written_s=written_s)
    path = folder / JOURNAL_FILE
    if not path.exists() or not path.stat().st_size:
        is_elsewhere = not is_worked_on and (folder / STORE_FILE).is_file()
        return replace(empty, state="elsewhere") if is_elsewhere else empty
    for is_last in (False, True):
        try:
            with SqliteJournal(path, is_readonly=True) as journal:
                return _of_journal(empty, folder, journal)
        except Exception as error:  # bytes may be anything, and fail in any way
            if is_last:
                return replace(empty, state="damaged", problem=str(error))
    raise AssertionError("unreachable")


def _of_journal(entry: Entry, folder: Path, journal: SqliteJournal) -> Entry:
    begun = journal.get("spec") or journal.get("birth")
    step = journal.last_step + 1
    if begun is None and not step:
        return entry
    ended = json.loads(journal.get("ended") or "null")
    if entry.state != "running":
        is_finished = ended is not None and (folder / RESULT_FILE).is_file()
        entry = replace(entry, state="finished" if is_finished else "interrupted")
    told = json.loads(journal.get("spec") or "{}")
    return replace(
        entry,
        step=step,
        stop=told.get("stop", {}).get("server_steps"),
        snapshot_version=max((record.version for record in journal.snapshots()), default=None),
        run_id=journal.get("run_id"),
        unpublished_rows=journal.num_pending,
        unpublished_files=len(journal.pending_artifacts()) + (entry.state == "finished" and journal.get(TOLD) == "no"),
    )


def _disk(folder: Path) -> tuple[int, float]:
    """(bytes of all files below, Unix time of the newest of them); a run may delete some meanwhile."""
    size_bytes, newest_s = 0, folder.stat().st_mtime
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                found = os.lstat(os.path.join(place, name))
            except OSError:
                continue
            size_bytes += found.st_size
            newest_s = max(newest_s, found.st_mtime)
    return size_bytes, newest_s


# ---- a comparison ---------------------------------------------------------------------------------------------------


def _comparison(folder: Path, children: list[Path]) -> Entry:
    runs = _by_time(_child(child) for child in children)
    size_bytes, written_s = _disk(folder)
    wanted = _runs_wanted(folder)
    if wanted is not None and (folder / ENSEMBLE_FILE).is_file():
        wanted = max(wanted, len(runs))  # with the runs that fit over-archs
    done = sum(run.state == "finished" for run in runs)
    kind: Literal["comparison", "sweep"] = "sweep" if is_sweep(folder) else "comparison"
    found = Entry(
        folder.name, kind, "interrupted", done, wanted, size_bytes=size_bytes, written_s=written_s, runs=runs,
        unpublished_rows=sum(run.unpublished_rows for run in runs),
        unpublished_files=sum(run.unpublished_files for run in runs) + (not _is_told(folder)),
    )  # fmt: skip
    try:
        found = replace(found, run_id=json.loads((folder / COMPARISON_FILE).read_text())["parent_run_id"])
    except FileNotFoundError:
        found = replace(found, state="not begun")
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = replace(found, state="damaged", problem=f"{folder / COMPARISON_FILE}: {error}")
    if is_held(folder):
        found = replace(found, state="running")
    elif found.state == "interrupted" and done == len(runs) == wanted and _has_report(folder):
        found = replace(found, state="finished")
    # What goes on is the comparison; where that cannot, its runs still can.
    is_whole = found.run_id is not None
    runs = tuple(replace(run, advice="" if is_whole else _advice(run)) for run in runs)
    return replace(found, runs=runs)


def _is_told(folder: Path) -> bool:
    """Whether the tracking service has all of an ensemble's judgement, if there is one."""
    try:
        return bool(json.loads((folder / ENSEMBLE_FILE).read_text())["is_told"])
    except (OSError, ValueError, KeyError):
        return True


def _has_report(folder: Path) -> bool:
    return any((folder / report).is_file() for report in _REPORTS)


def _child(folder: Path) -> Entry:
    try:
        found = run_entry(folder, is_worked_on=is_held(folder))
    except Exception as error:
        found = Entry(folder.name, "run", "damaged", problem=f"{type(error).__name__}: {error}")
    return replace(found, name=f"{folder.parent.name}/{folder.name}")


def _runs_wanted(folder: Path) -> int | None:
    try:
        if (number := json.loads((folder / COMPARISON_FILE).read_text()).get("num_runs")) is not None:
            return int(number)
        comparison = sp.load(folder / "spec.yaml").comparison
    except Exception:  # another version of atoll may have written it
        return None
    return None if comparison is None else len(comparison.arms) * len(comparison.seeds)


def _advice(entry: Entry) -> str:
    match entry.state:
        case "running":
            return ""
        case "interrupted" | "elsewhere":
            return f"atoll resume {entry.name}"
        case "finished":
            return f"atoll resume {entry.name}" if entry.has_unpublished else ""
        case "not begun":
            return "" if entry.runs else "holds nothing: may be deleted"
        case "damaged":
            return "bring it back from a copy, or begin anew"
