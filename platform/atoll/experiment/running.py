"""`atoll.run` and `atoll.resume`: check everything, run on Ray or in-process, leave a folder and an MLflow run behind.

Both end in `_work`: a run that begins is one whose journal is empty.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll import spec as sp
from atoll.data import open_data
from atoll.errors import (
    AtollError,
    ClientWorkError,
    FencedError,
    InfrastructureError,
    Interrupted,
    Problem,
    SpecError,
)
from atoll.experiment.birth import Birth, born
from atoll.experiment.finishing import finish, observing, run_of
from atoll.experiment.places import check_device, check_places, only_one
from atoll.experiment.planning import PlanReport, SpecLike, as_spec, plan
from atoll.experiment.records import (
    COMPARISON_FILE,
    JOURNAL_FILE,
    RESULT_FILE,
    RUNS_FOLDER,
    STORE_FILE,
    TOLD,
    Run,
    find_folder,
    read_result,
    short,
)
from atoll.experiment.resuming import Resumption, check_resumption
from atoll.experiment.storing import RunStore, check_store, store_in, store_of
from atoll.experiment.wiring import source_of
from atoll.runtime.store import Commit, Journal, LocalFiles
from atoll.tracking import MlflowTracker, RunInfo, absolute_uri, flatten_params, preflight, summary_tags

if TYPE_CHECKING:
    from atoll.runtime import RunResult

__all__ = [
    "Progress",
    "keyed_folder",
    "new_folder",
    "pinned",
    "resume",
    "run",
    "run_in",
    "session_for",
    "store_bytes_of",
]

Progress = Callable[[dict[str, float]], None]


def store_bytes_of(report: PlanReport) -> int:
    """Object store that an embedded Ray needs for this plan's live versions."""
    return max(512 * 2**20, 3 * report.summary.peak_live_versions * report.model_bytes)


def session_for(spec: sp.Spec, store_bytes: int = 0) -> AbstractContextManager[Any]:
    """The Ray session that `spec` asks for, to be entered; a null context for the inline runtime.

    Give it to several `run` calls to share workers between them.

    Args:
        spec: its `runtime`.
        store_bytes: object store of an embedded Ray, unless the spec names it; 0: a default.
    """
    runtime = spec.runtime
    if not isinstance(runtime, sp.RayRuntime):
        return nullcontext()
    from atoll.runtime.session import RaySession

    return RaySession(runtime.workers, runtime.gpus_per_worker, runtime.object_store_bytes or store_bytes or None)


def run(
    spec: SpecLike,
    *overrides: str,
    key: str | None = None,
    on_progress: Progress | None = None,
    session: Any = None,
    runs_folder: str | Path = RUNS_FOLDER,
) -> Run:
    """Runs one experiment to its end.

    Args:
        spec: a Spec, a mapping, or the path of a YAML file; without a `comparison`.
        overrides: `dotted.key=value`.
        key: names the run. Where a run of this key was begun, it goes on; where it is finished, it is returned: a job
            that is started again does not begin again. A fresh name if None.
        on_progress: called with figures for a display.
        session: an entered session from `session_for`, to share workers; made for this run if None.
        runs_folder: where the run's own folder is made.

    Raises:
        SpecError, PlanError: refused before anything starts.
        ClientWorkError, AggregationError, InfrastructureError: failed on the way; what is committed is kept.
        KeyboardInterrupt: Ctrl-C or SIGTERM; everything up to a step boundary is kept, the MLflow run is marked
            KILLED, `resume` goes on.
    """
    resolved = as_spec(spec, overrides)
    if resolved.comparison is not None:
        hint = "atoll.run_comparison runs the arms; comparison=null drops them"
        arms = ", ".join(resolved.comparison.arms)
        raise SpecError([Problem("comparison", f"arms {arms}", "null for a single run", hint=hint)])
    folder = None if key is None else keyed_folder(key, Path(runs_folder))
    return run_in(folder, resolved, on_progress=on_progress, session=session, runs_folder=runs_folder)


def run_in(
    folder: Path | None,
    spec: sp.Spec,
    *,
    store_key: str | None = None,
    arm: str = "",
    parent_run_id: str | None = None,
    again: Path | None = None,
    on_progress: Progress | None = None,
    session: Any = None,
    runs_folder: str | Path = RUNS_FOLDER,
) -> Run:
    """As `run`, in a given folder (a new one if None): begins there, goes on there, or returns what is finished.

    Args:
        folder: of the run.
        spec: without a comparison.
        store_key: names the run in a shared store; the folder's name if None.
        arm: its arm in a comparison.
        parent_run_id: MLflow run of the comparison.
        again: what a person is to resume after a stop; the run itself if None.
        on_progress: called with figures for a display.
        session: an entered session.
        runs_folder: where a new folder is made.
    """
    spec = pinned(spec)
    check_store(spec)
    if folder is not None and _there(spec, folder, store_key or folder.name).is_begun():
        return _go_on(folder, spec, again=again, on_progress=on_progress, session=session)
    report = plan(spec)
    preflight(spec.tracking.uri)
    check_places(spec, runs_folder)
    check_device(spec)
    folder = new_folder(spec, Path(runs_folder)) if folder is None else folder
    key = store_key or folder.name
    store = store_of(spec, folder, key)
    store.prepare()
    # Not the folder's name: another run may get that later, and must not be taken for this one by the tracking store.
    birth = born(spec, open_data(source_of(spec)), f"{key}-{secrets.token_hex(4)}", arm, parent_run_id)
    with only_one(folder):
        if not store.is_begun():
            return _work(folder, spec, report, birth, on_progress, session, again=again)
    # Another process has begun it while this one planned.
    return _go_on(folder, spec, again=again, on_progress=on_progress, session=session)


def _there(spec: sp.Spec, folder: Path, key: str) -> RunStore:
    """Where the run keeps itself: as its folder says, or as the spec says on a machine that does not know the run."""
    if (folder / COMPARISON_FILE).is_file():
        raise SpecError([Problem("key", repr(folder.name), "a key that is free", "a comparison has it")])
    if (folder / JOURNAL_FILE).is_file() or (folder / STORE_FILE).is_file():
        return store_in(folder)
    found = store_of(spec, folder, key)
    if found.is_begun():
        found.prepare()
    return found


def pinned(spec: sp.Spec) -> sp.Spec:
    """Places of the tracking store absolute: resumed from another folder, the run is still tracked where it was."""
    tracking = spec.tracking
    artifacts = tracking.artifacts
    if artifacts is not None and "://" not in artifacts:
        artifacts = str(Path(artifacts).absolute())
    changes = {"uri": absolute_uri(tracking.uri), "artifacts": artifacts}
    return spec.model_copy(update={"tracking": tracking.model_copy(update=changes)})


def resume(
    run: str | Path,
    *overrides: str,
    force: bool = False,
    on_progress: Progress | None = None,
    session: Any = None,
    runs_folder: str | Path = RUNS_FOLDER,
) -> Run:
    """Goes on exactly where a run stopped, whatever stopped it; ends in the bits of a run that was never stopped.

    A finished run with a longer `stop` goes on to there, as if it had been asked for at first; without one, it sends
    what the tracking service has not taken and is returned.

    Args:
        run: folder, folder's name, run id or name.
        overrides: `dotted.key=value`, of `stop`, `tracking` and `runtime` (but lanes and device_class).
        force: go on although the software, `client` or `evaluation` differ; the result is marked as not comparable.
        on_progress: called with figures for a display.
        session: an entered session, to share workers.
        runs_folder: where runs lie.

    Raises:
        SpecError: the run is not there, is worked on, its journal is damaged, or something that decides bits differs;
            all of it is told.
    """
    folder = find_folder(run, runs_folder)
    if (folder / COMPARISON_FILE).is_file():
        hint = "atoll.experiment.resume_comparison goes on with all of it; or name one of its runs"
        raise SpecError([Problem("run", repr(str(run)), "a single run", "this is a comparison", hint)])
    return _go_on(folder, overrides, force=force, on_progress=on_progress, session=session)


def _go_on(
    folder: Path,
    change: sp.Spec | Sequence[str],
    *,
    force: bool = False,
    again: Path | None = None,
    on_progress: Progress | None = None,
    session: Any = None,
) -> Run:
    with only_one(folder):
        found = check_resumption(folder, change, force=force)
        spec = pinned(found.spec)
        if found.is_moved:
            preflight(spec.tracking.uri)
            check_places(spec, folder)
        if found.is_complete and (folder / RESULT_FILE).is_file() and not (found.has_untold or found.is_moved):
            return read_result(folder)
        return _work(folder, spec, found.report, found.birth, on_progress, session, found, again=again)


@dataclass(frozen=True)
class _Place:
    """Where a run lives and how it is tracked."""

    folder: Path
    uri: str
    info: RunInfo

    def journal(self) -> Journal:
        """The run's journal, claimed."""
        journal = store_in(self.folder).journal()
        journal.claim()
        return journal


def _work(
    folder: Path,
    spec: sp.Spec,
    report: PlanReport | None,
    birth: Birth,
    on_progress: Progress | None,
    session: Any,
    resumed: Resumption | None = None,
    *,
    again: Path | None = None,
) -> Run:
    """The run from where its journal stands to its end."""
    is_comparable = resumed is None or resumed.is_comparable
    place = _Place(folder, spec.tracking.uri, _run_info(spec, birth))
    tracker = MlflowTracker(place.uri, spec.tracking.artifacts)
    store_bytes = store_bytes_of(report) if report is not None else 0 if resumed is None else resumed.store_bytes
    run_id = _begin(place, spec, birth, tracker, resumed, store_bytes, is_comparable=is_comparable)
    try:
        LocalFiles(folder).write("spec.yaml", sp.dump(spec).encode())
        is_over = resumed is not None and resumed.is_complete
        result = _execute(spec, store_bytes, place, session, on_progress, is_over=is_over)
        with observing():
            run_id = tracker.start(place.info)  # where the service was away at the start
        finished = run_of(spec, result, folder, run_id, place.uri, birth.arm, is_comparable=is_comparable)
        if finish(finished, spec, result.model, tracker):
            with closing(place.journal()) as journal:
                journal.commit(Commit(meta={TOLD: "yes"}))
    except FencedError:
        raise  # the run is another process's now: neither its status nor advice is this one's business
    except BaseException as error:
        with observing():
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise _with_advice(error, folder, again or folder, spec) from error.__cause__
    return finished


def _begin(
    place: _Place,
    spec: sp.Spec,
    birth: Birth,
    tracker: MlflowTracker,
    resumed: Resumption | None,
    store_bytes: int,
    *,
    is_comparable: bool,
) -> str:
    """Writes into the journal what the run is, finds or makes its MLflow run; returns the run's id, "" if unknown."""
    with closing(place.journal()) as journal:
        meta = {"name": spec.name, "birth": birth.to_json(), "spec": json.dumps(sp.to_dict(spec)), TOLD: "no"}
        meta |= {"tracking": f"{place.uri} {place.info.experiment}", "is_comparable": "yes" if is_comparable else "no"}
        meta["store_bytes"] = str(store_bytes)
        if resumed is None or not resumed.is_complete:
            meta["ended"] = "null"
            (place.folder / RESULT_FILE).unlink(missing_ok=True)
        if resumed is not None and resumed.is_moved:
            journal.publish_again()
            meta["run_id"] = ""
        journal.commit(Commit(meta=meta))
        known = journal.get("run_id") or ""
        try:
            run_id = tracker.start(place.info)
        except InfrastructureError:
            # Found again by its key when the service is back; the rows wait in the journal.
            if resumed is None and birth.parent_run_id is None:
                raise
            return known
        if known and run_id != known:
            journal.publish_again()  # the run that had the rows is not there any more
        journal.commit(Commit(meta={"run_id": run_id}))
    return run_id


def _execute(
    spec: sp.Spec,
    store_bytes: int,
    place: _Place,
    session: Any,
    on_progress: Progress | None,
    *,
    is_over: bool,
) -> RunResult:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from atoll.experiment.building import parts_of

    parts = parts_of(spec, store_in(place.folder), place.uri, spec.tracking.artifacts, place.info)
    # A run whose steps are all done only needs its end: the same bits, and no cluster.
    if is_over or not isinstance(spec.runtime, sp.RayRuntime):
        import torch

        from atoll.runtime import run_inline

        torch.set_num_threads(1)
        return run_inline(parts, on_progress=on_progress)
    from atoll.runtime.ray_executor import run_on_ray

    if session is not None:
        return run_on_ray(parts, session, on_progress=on_progress)
    with session_for(spec, store_bytes) as own:
        return run_on_ray(parts, own, on_progress=on_progress)


def _with_advice(error: BaseException, folder: Path, again: Path, spec: sp.Spec) -> BaseException:
    """The error, with what to do about it."""
    command = f"atoll resume {short(again)}"
    if isinstance(error, Interrupted):
        return Interrupted(f"{error.message}; everything up to there is kept. Go on with: {command}")
    if isinstance(error, ClientWorkError) and error.task_id is not None:
        error.add_note(f"seed {spec.seed}; replay this client alone: atoll replay {short(folder)} {error.task_id}")
    if isinstance(error, AtollError) and error.exit_code == 3:
        error.add_note(f"What is committed is kept. When the cause is gone: {command}")
    return error


def new_folder(spec: sp.Spec, root: Path) -> Path:
    """A fresh folder for a run or a comparison."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", spec.name)
    folder = (root / f"{slug}-{stamp}-{secrets.token_hex(2)}").absolute()
    folder.mkdir(parents=True)
    return folder


def keyed_folder(key: str, root: Path) -> Path:
    """The folder that a key names.

    Raises:
        SpecError: it cannot name one.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}", key):
        raise SpecError([Problem("key", repr(key), "letters, digits and _ . -", "it names a folder")])
    return (root / key).absolute()


def _run_info(spec: sp.Spec, birth: Birth) -> RunInfo:
    from atoll.experiment.modelling import lanes_of, shape_of

    lanes = lanes_of(spec, shape_of(spec, open_data(source_of(spec)).shape))
    tags = summary_tags(birth.arm, spec.seed) | {"fl.spec_digest": sp.digest(spec)}
    params = flatten_params(sp.to_dict(spec)) | {"lanes": str(lanes)}
    experiment = spec.tracking.experiment or spec.name
    return RunInfo(experiment, spec.name, birth.run_key, params, tags, birth.parent_run_id)
