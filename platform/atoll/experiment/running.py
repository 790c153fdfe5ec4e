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
from atoll.errors import AtollError, ClientWorkError, InfrastructureError, Interrupted, Problem, SpecError
from atoll.experiment.birth import Birth, born
from atoll.experiment.finishing import finish, observing, run_of
from atoll.experiment.places import check_device, check_places, only_one
from atoll.experiment.planning import PlanReport, SpecLike, as_spec, plan
from atoll.experiment.records import COMPARISON_FILE, RESULT_FILE, RUNS_FOLDER, Run, find_folder, read_result
from atoll.experiment.resuming import Resumption, check_resumption
from atoll.experiment.storing import check_store, store_in, store_of
from atoll.experiment.wiring import source_of
from atoll.runtime.store import Commit, LocalFiles
from atoll.tracking import MlflowTracker, RunInfo, absolute_uri, flatten_params, preflight, summary_tags

if TYPE_CHECKING:
    from atoll.runtime import RunResult

__all__ = ["Progress", "keyed_folder", "new_folder", "resume", "run", "run_in", "session_for", "short"]

Progress = Callable[[dict[str, float]], None]


def session_for(spec: sp.Spec, report: PlanReport | None = None) -> AbstractContextManager[Any]:
    """The Ray session that `spec` asks for, to be entered; a null context for the inline runtime.

    Give it to several `run` calls to share workers between them.
    """
    runtime = spec.runtime
    if not isinstance(runtime, sp.RayRuntime):
        return nullcontext()
    from atoll.runtime.session import RaySession

    store = runtime.object_store_bytes
    if store is None and report is not None:
        store = max(512 * 2**20, 3 * report.summary.peak_live_versions * report.model_bytes)
    return RaySession(runtime.workers, runtime.gpus_per_worker, store)


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
    run_key: str | None = None,
    arm: str = "",
    parent_run_id: str | None = None,
    on_progress: Progress | None = None,
    session: Any = None,
    runs_folder: str | Path = RUNS_FOLDER,
) -> Run:
    """As `run`, in a given folder (a new one if None): begins there, goes on there, or returns what is finished."""
    check_store(spec)
    if folder is not None and (there := store_of(spec, folder, run_key or folder.name)).is_begun():
        there.prepare()
        return _go_on(folder, spec, on_progress=on_progress, session=session)
    report = plan(spec)
    uri = absolute_uri(spec.tracking.uri)
    preflight(uri)
    check_places(spec, runs_folder)
    check_device(spec)
    folder = new_folder(spec, Path(runs_folder)) if folder is None else folder
    store_of(spec, folder, run_key or folder.name).prepare()
    birth = born(spec, open_data(source_of(spec)), run_key or folder.name, arm, parent_run_id)
    with only_one(folder):
        return _work(folder, spec, report, birth, on_progress, session)


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
    on_progress: Progress | None = None,
    session: Any = None,
) -> Run:
    with only_one(folder):
        found = check_resumption(folder, change, force=force)
        if found.is_complete and (folder / RESULT_FILE).is_file() and not found.has_unpublished:
            return read_result(folder)
        return _work(folder, found.spec, found.report, found.birth, on_progress, session, found)


@dataclass(frozen=True)
class _Place:
    """Where a run lives and how it is tracked."""

    folder: Path
    uri: str
    info: RunInfo


def _work(
    folder: Path,
    spec: sp.Spec,
    report: PlanReport | None,
    birth: Birth,
    on_progress: Progress | None,
    session: Any,
    resumed: Resumption | None = None,
) -> Run:
    """The run from where its journal stands to its end."""
    uri = absolute_uri(spec.tracking.uri)
    is_comparable = resumed is None or resumed.is_comparable
    place = _Place(folder, uri, _run_info(spec, birth))
    tracker = MlflowTracker(uri, spec.tracking.artifacts)
    run_id = _begin(place, spec, birth, tracker, resumed, is_comparable=is_comparable)
    LocalFiles(folder).write("spec.yaml", sp.dump(spec).encode())
    try:
        is_over = resumed is not None and resumed.is_complete
        result = _execute(spec, report, place, session, on_progress, is_over=is_over)
    except BaseException as error:
        with observing():
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise _with_advice(error, folder, spec) from error.__cause__
    finished = run_of(spec, result, folder, run_id, uri, birth.arm, is_comparable=is_comparable)
    finish(finished, spec, result.model, tracker)
    return finished


def _begin(
    place: _Place,
    spec: sp.Spec,
    birth: Birth,
    tracker: MlflowTracker,
    resumed: Resumption | None,
    *,
    is_comparable: bool,
) -> str:
    """Writes into the journal what the run is, finds or makes its MLflow run; returns the run's id."""
    with closing(store_in(place.folder).journal()) as journal:
        journal.claim()
        known = journal.get("run_id")
        moved = journal.get("tracking") not in (None, f"{place.uri} {place.info.experiment}")
        if moved:
            journal.publish_again()
            known = None
        meta = {"name": spec.name, "birth": birth.to_json(), "spec": json.dumps(sp.to_dict(spec))}
        meta |= {"tracking": f"{place.uri} {place.info.experiment}", "is_comparable": "yes" if is_comparable else "no"}
        if resumed is None or not resumed.is_complete:
            meta["ended"] = "null"
            (place.folder / RESULT_FILE).unlink(missing_ok=True)
        journal.commit(Commit(meta=meta))
        try:
            run_id = tracker.start(place.info)
        except InfrastructureError:
            # Found again by its key when the service is back; the rows wait in the journal.
            if resumed is None or known is None:
                raise
            run_id = known
        journal.commit(Commit(meta={"run_id": run_id}))
    return run_id


def _execute(
    spec: sp.Spec,
    report: PlanReport | None,
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
    with session_for(spec, report) as own:
        return run_on_ray(parts, own, on_progress=on_progress)


def _with_advice(error: BaseException, folder: Path, spec: sp.Spec) -> BaseException:
    """The error, with what to do about it."""
    again = f"atoll resume {short(folder)}"
    if isinstance(error, Interrupted):
        return Interrupted(f"{error.message}; everything up to there is kept. Go on with: {again}")
    if isinstance(error, ClientWorkError) and error.task_id is not None:
        error.add_note(f"seed {spec.seed}; replay this client alone: atoll replay {short(folder)} {error.task_id}")
    if isinstance(error, AtollError) and error.exit_code == 3:
        error.add_note(f"What is committed is kept. When the cause is gone: {again}")
    return error


def short(folder: Path) -> str:
    """The folder as one types it."""
    return os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)


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
