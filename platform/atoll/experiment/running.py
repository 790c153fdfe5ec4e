"""`atoll.run` and `atoll.resume`: check everything, run on Ray or in-process, leave a folder and an MLflow run behind.

Both end in `work`: a run that begins is one whose journal is empty.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from atoll import spec as sp
from atoll.errors import Problem, SpecError
from atoll.experiment.birth import born
from atoll.experiment.opened import data_of, opened_once
from atoll.experiment.places import check_device, check_places, only_one
from atoll.experiment.planning import SpecLike, as_spec, plan
from atoll.experiment.profile import with_profile
from atoll.experiment.records import (
    COMPARISON_FILE,
    JOURNAL_FILE,
    RESULT_FILE,
    RUNS_FOLDER,
    STORE_FILE,
    Run,
    find_folder,
    read_result,
)
from atoll.experiment.resuming import check_resumption
from atoll.experiment.storing import RunStore, check_store, store_in, store_of
from atoll.experiment.working import Ended, Work, begin_work, work
from atoll.tracking import absolute_uri, preflight

__all__ = [
    "Progress",
    "Wanted",
    "keyed_folder",
    "new_folder",
    "not_a_run",
    "pinned",
    "resume",
    "run",
    "run_in",
    "run_together",
]

#: called with figures for a display
Progress = Callable[[dict[str, float]], None]


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
    if resolved.ensemble is not None:
        raise SpecError([not_a_run(resolved)])
    if resolved.comparison is not None:
        hint = "atoll.run_comparison runs the arms; comparison=null drops them"
        arms = ", ".join(resolved.comparison.arms)
        raise SpecError([Problem("comparison", f"arms {arms}", "null for a single run", hint=hint)])
    folder = None if key is None else keyed_folder(key, Path(runs_folder))
    wanted = Wanted(folder, resolved)
    return run_in(wanted, on_progress=on_progress, session=session, runs_folder=runs_folder)


@dataclass(frozen=True)
class Wanted:
    """A run that is to be there, in the end.

    Attributes:
        folder: of the run; a new one if None.
        spec: without a comparison.
        store_key: names the run in a shared store; the folder's name if None.
        arm: its arm in a comparison.
        parent_run_id: MLflow run of the comparison.
        again: what a person is to resume after a stop; the run itself if None.
        is_pictured: whether it gets pictures of its own; one of very many is seen in the report of all.
    """

    folder: Path | None
    spec: sp.Spec
    store_key: str | None = None
    arm: str = ""
    parent_run_id: str | None = None
    again: Path | None = None
    is_pictured: bool = True


def not_a_run(spec: sp.Spec) -> Problem:
    """What to tell where an ensemble is taken for a run, or for a comparison of runs."""
    found, hint = (
        f"an ensemble, clusters by {spec.clusters.kind}",
        "atoll.run_ensemble trains it; ensemble=null drops it",
    )
    return Problem("ensemble", found, "null for a run, or for a comparison of runs", hint=hint)


def run_together(
    wanted: Sequence[Wanted],
    *,
    on_progress: Callable[[list[dict[str, float]]], None] | None = None,
    session: Any = None,
    runs_folder: str | Path = RUNS_FOLDER,
) -> list[Ended]:
    """Runs several experiments at the same time on shared workers: begins, goes on, or takes what is finished.

    Args:
        wanted: with one runtime.
        on_progress: called with figures for a display, one mapping per run, empty where there is nothing to do.
        session: an entered session; made here if None.
        runs_folder: where new folders are made.

    Returns:
        Per run: finished, or what ended it; one that fails does not take the others down.

    Raises:
        SpecError, PlanError: one of them is refused; none has trained then.
        FencedError: another process works on one of them.
    """
    with opened_once(), ExitStack() as locks:
        found = [_undertake(one, locks, Path(runs_folder)) for one in wanted]
        todo = [number for number, one in enumerate(found) if isinstance(one, Work)]

        def note(figures: list[dict[str, float]]) -> None:
            if on_progress is not None:
                known = dict(zip(todo, figures, strict=True))
                on_progress([known.get(number, {}) for number in range(len(found))])

        ended = iter(work([one for one in found if isinstance(one, Work)], session, note))
        return [next(ended) if isinstance(one, Work) else one for one in found]


def _only(ended: list[Ended]) -> Run:
    """The one run.

    Raises:
        AtollError, Interrupted: it did not finish.
    """
    (one,) = ended
    if not isinstance(one, Run):
        raise one
    return one


def _single(on_progress: Progress | None) -> Callable[[list[dict[str, float]]], None] | None:
    return None if on_progress is None else lambda figures: on_progress(figures[0])


def run_in(
    wanted: Wanted,
    *,
    on_progress: Progress | None = None,
    session: Any = None,
    runs_folder: str | Path = RUNS_FOLDER,
) -> Run:
    """As `run`, in a given folder: begins there, goes on there, or returns what is finished."""
    note = _single(on_progress)
    return _only(run_together([wanted], on_progress=note, session=session, runs_folder=runs_folder))


def _undertake(wanted: Wanted, locks: ExitStack, runs_folder: Path) -> Run | Work:
    """What there is to do for a run: nothing, or work."""
    spec, folder = with_profile(pinned(wanted.spec)), wanted.folder
    check_store(spec)
    if folder is not None and _there(spec, folder, wanted.store_key or folder.name).is_begun():
        return _go_on(folder, spec, locks, again=wanted.again, is_pictured=wanted.is_pictured)
    report = plan(spec)
    preflight(spec.tracking.uri)
    check_places(spec, runs_folder)
    check_device(spec)
    folder = new_folder(spec, runs_folder) if folder is None else folder
    key = wanted.store_key or folder.name
    store = store_of(spec, folder, key)
    store.prepare()
    # Not the folder's name: another run may get that later, and must not be taken for this one by the tracking store.
    run_key = f"{key}-{secrets.token_hex(4)}"
    birth = born(spec, data_of(spec), run_key, wanted.arm, wanted.parent_run_id)
    with ExitStack() as own:
        own.enter_context(only_one(folder))
        if not store.is_begun():
            locks.push(own.pop_all())
            return begin_work(folder, spec, report, birth, again=wanted.again, is_pictured=wanted.is_pictured)
    # Another process has begun it while this one planned.
    return _go_on(folder, spec, locks, again=wanted.again, is_pictured=wanted.is_pictured)


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
    with opened_once(), ExitStack() as locks:
        found = _go_on(folder, overrides, locks, force=force)
        return _only(work([found], session, _single(on_progress))) if isinstance(found, Work) else found


def _go_on(
    folder: Path,
    change: sp.Spec | Sequence[str],
    locks: ExitStack,
    *,
    force: bool = False,
    again: Path | None = None,
    is_pictured: bool = True,
) -> Run | Work:
    locks.enter_context(only_one(folder))
    found = check_resumption(folder, change, force=force)
    spec = pinned(found.spec)
    if found.is_moved:
        preflight(spec.tracking.uri)
        check_places(spec, folder)
    if found.is_complete and (folder / RESULT_FILE).is_file() and not (found.has_untold or found.is_moved):
        return read_result(folder)
    return begin_work(folder, spec, found.report, found.birth, found, again=again, is_pictured=is_pictured)


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
