"""A finished run, and how runs are found again in the folder of runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from atoll import spec as sp
from atoll.errors import Problem, SpecError
from atoll.messages import ModelVersion
from atoll.runtime.store import LocalFiles, SqliteJournal, open_files
from atoll.tracking import RunSummary, Target

__all__ = [
    "COMPARISON_FILE",
    "ENSEMBLE_FILE",
    "JOURNAL_FILE",
    "RESULT_FILE",
    "RUNS_FOLDER",
    "STORE_FILE",
    "SWEEP_FILE",
    "TOLD",
    "Run",
    "find_folder",
    "is_ensemble",
    "is_sweep",
    "load",
    "read_result",
    "run_folders",
    "short",
    "write_result",
]

RUNS_FOLDER = "runs"
JOURNAL_FILE, RESULT_FILE, COMPARISON_FILE = "journal.db", "result.json", "comparison.json"
#: how an ensemble came out
ENSEMBLE_FILE = "ensemble.json"
#: what a sweep is, what it tried and what came out
SWEEP_FILE = "sweep.json"
#: says where a run keeps itself that keeps itself elsewhere
STORE_FILE = "store.txt"
#: meta key of the journal: whether the tracking store has everything that is told at the end
TOLD = "told"


def is_ensemble(folder: Path) -> bool:
    """Whether a folder of several runs is an ensemble's, and not a comparison's."""
    return sp.load(folder / "spec.yaml").ensemble is not None


def is_sweep(folder: Path) -> bool:
    """Whether a folder of several runs is a sweep's."""
    return (folder / SWEEP_FILE).is_file()


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        run_id: in MLflow.
        name, arm, seed: what it was; `arm` is empty outside a comparison.
        folder: where its journal, timeline and weights lie.
        model_digest: of the final weights; equal digests are equal models, bit for bit.
        timeline_digest, plan_digest: of the steps taken.
        server_steps, client_updates: what was done.
        virtual_hours: simulated time.
        mean_staleness: over client updates.
        num_diverged: client updates that were zeroed because they diverged.
        metrics: of the last evaluation.
        wall_s: wall time of the run itself.
        busy_s: wall time that workers spent in client training and evaluation.
        workers: client pools at most.
        reason: why it stopped.
        tracking_uri, experiment: where it is logged.
        pool_s: wall time that workers had a place, summed; 0.0 in process.
        durable_s: wall time that snapshots and commits took.
        unpublished_rows: rows that the tracking service has not taken; they are in the journal.
        lost_pools: worker processes that died or hung and were replaced.
        attempts: how often it was begun or taken up from a snapshot, as far as that was committed.
        is_comparable: False where the run was resumed by force, on another software or with other settings.
    """

    run_id: str
    name: str
    arm: str
    seed: int
    folder: str
    model_digest: str
    timeline_digest: str
    plan_digest: str
    server_steps: int
    client_updates: int
    virtual_hours: float
    mean_staleness: float
    num_diverged: int
    metrics: Mapping[str, float]
    wall_s: float
    busy_s: float
    workers: int
    reason: str
    tracking_uri: str
    experiment: str
    pool_s: float = 0.0
    durable_s: float = 0.0
    unpublished_rows: int = 0
    lost_pools: int = 0
    attempts: int = 1
    is_comparable: bool = True
    target: Mapping[str, Any] | None = field(default=None)

    @property
    def overhead_share(self) -> float:
        """Share of the workers' wall time that was not client training or evaluation."""
        return max(0.0, 1.0 - self.busy_s / max(self.pool_s or self.workers * self.wall_s, 1e-9))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "metrics": dict(self.metrics), "overhead_share": self.overhead_share}

    def history(self) -> dict[str, list[tuple[int, float]]]:
        """(server step, value) per metric, read from the run's journal."""
        with SqliteJournal(Path(self.folder) / JOURNAL_FILE, is_readonly=True) as journal:
            return journal.history()

    def summary(self) -> RunSummary:
        """What a comparison needs."""
        target = None if self.target is None else Target(self.target["metric"], self.target["value"])
        digests = {"model": self.model_digest, "timeline": self.timeline_digest, "plan": self.plan_digest}
        return RunSummary(self.run_id, self.name, self.arm, self.seed, self.history(), target, digests)

    def model(self) -> ModelVersion:
        """The final weights. Opens the data for its shape.

        Raises:
            SpecError: the run's files or its data are not there any more.
        """
        from atoll.data import open_data
        from atoll.experiment.modelling import shape_of
        from atoll.experiment.wiring import source_of
        from atoll.models.checkpoint import load_version

        spec = sp.load(Path(self.folder) / "spec.yaml")
        return load_version(Path(self.folder) / "model.safetensors", shape_of(spec, open_data(source_of(spec)).shape))


def short(folder: Path) -> str:
    """The folder as one types it."""
    return os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)


def run_folders(root: str | Path = RUNS_FOLDER) -> Iterator[Path]:
    """Folders of all runs under `root`, those of comparisons included, oldest name first."""
    base = Path(root)
    patterns = [f"{depth}{name}" for depth in ("*/", "*/*/") for name in (JOURNAL_FILE, STORE_FILE)]
    yield from sorted({path.parent for pattern in patterns for path in base.glob(pattern)})


def find_folder(run: str | Path, root: str | Path = RUNS_FOLDER) -> Path:
    """The folder of a run or a comparison.

    Args:
        run: its folder, the folder's name, its MLflow run id (or a beginning of it), its name, or where it keeps
            itself: the URL or shared folder of `runtime.store`, and the folder's name.
        root: where runs lie.

    Raises:
        SpecError: none or several match.
    """
    if "://" in str(run) or (Path(run) / "journal").is_dir():
        # A run that this machine has not seen: its folder here begins with where it keeps itself.
        place = str(run).rstrip("/") if "://" in str(run) else str(Path(run).absolute())
        if not open_files(f"{place}/journal").names():
            raise SpecError([Problem("run", repr(place), "a run's own place in a store", "there is no journal in it")])
        folder = (Path(root) / place.rpartition("/")[2]).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        LocalFiles(folder).write(STORE_FILE, place.encode())
        return folder
    for folder in (Path(run), Path(root) / run):
        if any((folder / name).is_file() for name in (JOURNAL_FILE, STORE_FILE, COMPARISON_FILE)):
            return folder.absolute()
    found = {folder: _names(folder) for folder in run_folders(root)}
    found |= {path.parent: _comparison_names(path) for path in sorted(Path(root).glob(f"*/{COMPARISON_FILE}"))}
    text = str(run)
    matches = [folder for folder, (name, run_id) in found.items() if name == text or (run_id or "?").startswith(text)]
    if len(matches) == 1:
        return matches[0].absolute()
    if matches:
        rule = "a run id or a folder, since several runs match"
        raise SpecError([Problem("run", repr(text), rule, hint=", ".join(str(path) for path in matches[-5:]))])
    known = ", ".join(f"{path} ({name})" for path, (name, _) in list(found.items())[-5:]) or "none yet"
    raise SpecError([Problem("run", repr(text), f"a run under {root}/", hint=f"the last ones: {known}")])


def _names(folder: Path) -> tuple[str, str | None]:
    """(name, MLflow run id) of a run, as its journal has them; nothing where that cannot be read."""
    try:
        with SqliteJournal(folder / JOURNAL_FILE, is_readonly=True) as journal:
            return journal.get("name") or folder.name, journal.get("run_id")
    except Exception:
        return folder.name, None


def _comparison_names(path: Path) -> tuple[str, str | None]:
    try:
        found = json.loads(path.read_text())
        return str(found["name"]), str(found["parent_run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return path.parent.name, None


def load(run: str | Path, root: str | Path = RUNS_FOLDER) -> Run:
    """A finished run by its folder, its folder's name, its MLflow run id (or a beginning of it), or its name.

    Raises:
        SpecError: none or several match, or it is not finished.
    """
    folder = find_folder(run, root)
    if not (folder / RESULT_FILE).is_file():
        hint = f"atoll resume {short(folder)} goes on with it"
        raise SpecError([Problem("run", repr(str(run)), "a finished run", "this one is not", hint)])
    return read_result(folder)


def read_result(folder: Path) -> Run:
    """The finished run in `folder`."""
    return replace(Run(**json.loads((folder / RESULT_FILE).read_text())), folder=str(folder.absolute()))


def write_result(finished: Run) -> None:
    """Leaves the run's result in its folder, whole or not at all."""
    text = json.dumps(asdict(finished), indent=2, default=dict)
    LocalFiles(finished.folder).write(RESULT_FILE, text.encode())
