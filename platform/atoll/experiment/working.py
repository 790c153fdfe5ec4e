"""Works on runs, one or several at the same time, from where their journals stand to their ends."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll import spec as sp
from atoll.errors import AtollError, ClientWorkError, FencedError, Interrupted
from atoll.experiment.birth import Birth
from atoll.experiment.finishing import finish, observing, run_of
from atoll.experiment.opened import data_of
from atoll.experiment.planning import PlanReport
from atoll.experiment.records import RESULT_FILE, TOLD, Run, short
from atoll.experiment.resuming import Resumption
from atoll.experiment.sessions import session_for, store_bytes_of
from atoll.experiment.storing import store_in
from atoll.runtime.opening import POOL_KIND
from atoll.runtime.store import Commit, Journal, LocalFiles
from atoll.tracking import MlflowTracker, RunInfo, flatten_params, summary_tags

if TYPE_CHECKING:
    from atoll.runtime import Outcome

__all__ = ["Ended", "Progress", "Work", "begin_work", "work"]

#: figures for a display, one mapping per run
Progress = Callable[[list[dict[str, float]]], None]
#: how a run ended
Ended = Run | AtollError | Interrupted


@dataclass(frozen=True)
class Work:
    """A run that is to be worked on: its folder is locked, its journal says what it is.

    Attributes:
        folder: of the run.
        spec: what it goes on with.
        birth: what it was begun with.
        store_bytes: object store that its plan needs.
        info: names it in the tracking store.
        tracker: of its own.
        is_over: all its steps are done.
        is_comparable: nothing that decides bits was forced.
        again: what a person is to resume after a stop.
        is_pictured: whether it gets pictures of its own.
    """

    folder: Path
    spec: sp.Spec
    birth: Birth
    store_bytes: int
    info: RunInfo
    tracker: MlflowTracker
    is_over: bool
    is_comparable: bool
    again: Path
    is_pictured: bool = True

    def journal(self) -> Journal:
        """The run's journal, claimed."""
        return _claimed(self.folder)


def _claimed(folder: Path) -> Journal:
    journal = store_in(folder).journal()
    journal.claim()
    return journal


def begin_work(
    folder: Path,
    spec: sp.Spec,
    report: PlanReport | None,
    birth: Birth,
    resumed: Resumption | None = None,
    *,
    again: Path | None = None,
    is_pictured: bool = True,
) -> Work:
    """Writes into the journal what the run is. The tracker finds or makes its MLflow run while clients train.

    Args:
        folder: of the run, locked by the caller.
        spec: pinned.
        report: its plan, where it was made.
        birth: what the run was begun with.
        resumed: how it stands, where it goes on.
        again: what a person is to resume after a stop; the run itself if None.
        is_pictured: whether it gets pictures of its own.
    """
    is_comparable = resumed is None or resumed.is_comparable
    store_bytes = store_bytes_of(report) if report is not None else 0 if resumed is None else resumed.store_bytes
    info = _run_info(spec, birth)
    tracker = MlflowTracker(spec.tracking.uri, spec.tracking.artifacts)
    is_over = resumed is not None and resumed.is_complete
    with closing(_claimed(folder)) as journal:
        meta = {"name": spec.name, "birth": birth.to_json(), "spec": json.dumps(sp.to_dict(spec)), TOLD: "no"}
        meta |= {"tracking": f"{spec.tracking.uri} {info.experiment}"}
        meta |= {"is_comparable": "yes" if is_comparable else "no", "store_bytes": str(store_bytes)}
        if not is_over:
            meta["ended"] = "null"
            (folder / RESULT_FILE).unlink(missing_ok=True)
        if not is_comparable:
            meta[POOL_KIND] = ""  # forced: another kind of device may go on
        if resumed is not None and resumed.is_moved:
            journal.publish_again()
            meta["run_id"] = ""
        journal.commit(Commit(meta=meta))
    LocalFiles(folder).write("spec.yaml", sp.dump(spec).encode())
    more = (is_over, is_comparable, again or folder, is_pictured)
    return Work(folder, spec, birth, store_bytes, info, tracker, *more)


def work(works: Sequence[Work], session: Any = None, on_progress: Progress | None = None) -> list[Ended]:
    """All of `works` at the same time, each to its own end.

    Args:
        works: with one runtime; may be none.
        session: an entered session; made here if None.
        on_progress: called with figures for a display, one mapping per run.

    Returns:
        Per run, finished; or what ended it, with advice. One that fails does not take the others down.

    Raises:
        FencedError: another process has taken a run over; neither its status nor advice is this one's business.
    """
    try:
        outcomes = _execute(works, session, on_progress)
    except FencedError:
        raise
    except BaseException as error:
        for one in works:
            _not_finished(one, error)
        raise _with_advice(error, works[0]) from error.__cause__
    ended: list[Ended] = []
    bugs: list[Exception] = []
    for one, outcome in zip(works, outcomes, strict=True):
        try:
            ended.append(_ended(one, outcome))
        except FencedError:
            raise
        except Exception as error:  # a bug in how one of them ends must not keep the others from ending
            bugs.append(error)
    if bugs:
        raise bugs[0]
    return ended


def _execute(works: Sequence[Work], session: Any, on_progress: Progress | None) -> list[Outcome]:
    if not works:
        return []
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from atoll.experiment.building import parts_of

    figures: list[dict[str, float]] = [{} for _ in works]
    outcomes: dict[int, Outcome] = {}
    parts = [
        parts_of(one.spec, store_in(one.folder), one.spec.tracking.uri, one.spec.tracking.artifacts, one.info)
        for one in works
    ]

    def watcher(numbers: Sequence[int]) -> Progress:
        def note(found: list[dict[str, float]]) -> None:
            for number, new in zip(numbers, found, strict=True):
                figures[number] = new or figures[number]
            if on_progress is not None:
                on_progress(figures)

        return note

    # A run whose steps are all done only needs its end: the same bits, and no cluster.
    is_inline = [one.is_over or not isinstance(one.spec.runtime, sp.RayRuntime) for one in works]
    here = [number for number in range(len(works)) if is_inline[number]]
    there = [number for number in range(len(works)) if not is_inline[number]]
    if here:
        from atoll.runtime import run_inline_together

        found = run_inline_together([parts[number] for number in here], on_progress=watcher(here))
        outcomes.update(zip(here, found, strict=True))
    if there:
        from atoll.runtime.ray_executor import run_on_ray

        chosen = [parts[number] for number in there]
        if session is not None:
            found = run_on_ray(chosen, session, on_progress=watcher(there))
        else:
            store_bytes = sum(works[number].store_bytes for number in there)
            with session_for(works[there[0]].spec, store_bytes) as own:
                found = run_on_ray(chosen, own, on_progress=watcher(there))
        outcomes.update(zip(there, found, strict=True))
    return [outcomes[number] for number in range(len(works))]


def _ended(one: Work, outcome: Outcome) -> Ended:
    """The finished run, told to the tracking store; or what ended it, with advice."""
    try:
        if isinstance(outcome, AtollError | Interrupted):
            raise outcome
        run_id = _known_run_id(one)
        with observing():
            run_id = one.tracker.start(one.info)
        uri, arm = one.spec.tracking.uri, one.birth.arm
        finished = run_of(one.spec, outcome, one.folder, run_id, uri, arm, is_comparable=one.is_comparable)
        if finish(finished, one.spec, outcome.model, one.tracker, is_pictured=one.is_pictured):
            with closing(one.journal()) as journal:
                journal.commit(Commit(meta={TOLD: "yes"}))
    except FencedError:
        raise
    except BaseException as error:
        _not_finished(one, error)
        found, cause = _with_advice(error, one), error.__cause__
        if isinstance(found, AtollError | Interrupted):
            found.__cause__ = cause
            return found
        raise
    return finished


def _not_finished(one: Work, error: BaseException) -> None:
    with observing():
        run_id = one.tracker.start(one.info)
        one.tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        if not _known_run_id(one):  # it ended before its first batch
            with closing(one.journal()) as journal:
                journal.commit(Commit(meta={"run_id": run_id}))


def _known_run_id(one: Work) -> str:
    """MLflow's, as the journal has it; "" if unknown."""
    with closing(store_in(one.folder).journal()) as journal:
        return journal.get("run_id") or ""


def _with_advice(error: BaseException, one: Work) -> BaseException:
    """The error, with what to do about it."""
    command = f"atoll resume {short(one.again)}"
    if isinstance(error, Interrupted):
        return Interrupted(f"{error.message}; everything up to there is kept. Go on with: {command}")
    if isinstance(error, ClientWorkError) and error.task_id is not None:
        replay = f"atoll replay {short(one.folder)} {error.task_id}"
        error.add_note(f"seed {one.spec.seed}; replay this client alone: {replay}")
    if isinstance(error, AtollError) and error.exit_code == 3:
        error.add_note(f"What is committed is kept. When the cause is gone: {command}")
    return error


def _run_info(spec: sp.Spec, birth: Birth) -> RunInfo:
    from atoll.experiment.modelling import lanes_of, shape_of

    lanes = lanes_of(spec, shape_of(spec, data_of(spec).shape))
    tags = summary_tags(birth.arm, spec.seed) | {"fl.spec_digest": sp.digest(spec)}
    params = flatten_params(sp.to_dict(spec)) | {"lanes": str(lanes)}
    experiment = spec.tracking.experiment or spec.name
    return RunInfo(experiment, spec.name, birth.run_key, params, tags, birth.parent_run_id)
