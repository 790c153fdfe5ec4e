"""`atoll.sweep`: many trials of one experiment, a few at a time, under one MLflow parent run.

Every trial and seed is an ordinary run in a folder of its own below the sweep's, so that what is killed goes on where
it stopped. What becomes of a trial is a function of its runs' scores: a sweep that is repeated makes the same trials,
skips what is done, and ends as if it had never been stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from atoll import spec as sp
from atoll.errors import Interrupted, Problem, SpecError
from atoll.experiment.comparing import check_comparable
from atoll.experiment.finishing import observing
from atoll.experiment.opened import opened_once
from atoll.experiment.parents import begin_parent, begun_folder, not_all_finished
from atoll.experiment.places import check_device, check_places, only_one
from atoll.experiment.planning import SpecLike
from atoll.experiment.records import (
    COMPARISON_FILE,
    JOURNAL_FILE,
    RESULT_FILE,
    RUNS_FOLDER,
    STORE_FILE,
    SWEEP_FILE,
    Run,
    read_result,
    short,
)
from atoll.experiment.running import Wanted, keyed_folder, run_together
from atoll.experiment.sessions import session_for, store_bytes_of
from atoll.experiment.storing import store_in, store_of
from atoll.experiment.sweep_record import SweepRecord
from atoll.experiment.sweep_report import moving_keys, tell, write_report
from atoll.experiment.sweep_settings import Asked, Planned, default_key, planned, settled, spec_at
from atoll.experiment.sweep_study import Settings, Suggestions, finite, suggestions, survivors
from atoll.experiment.sweep_trials import SweepRun, Trial, arm_name, trial_of
from atoll.experiment.working import Progress
from atoll.runtime.store import LocalFiles
from atoll.tracking import MEASURES, MlflowTracker, compare

__all__ = ["OnGroup", "resume_sweep", "sweep"]

#: (what is run now, names and specs of the runs) → a progress callback for them, or none
OnGroup = Callable[[str, Sequence[tuple[str, sp.Spec]]], Progress | None]
#: files that say that a folder is one run's
_RUN_FILES = (JOURNAL_FILE, STORE_FILE)


@opened_once()
def sweep(
    spec: SpecLike,
    *arguments: str,
    method: str | None = None,
    trials: int | None = None,
    seeds: int = 1,
    metric: str | None = None,
    rungs: Sequence[int] = (),
    keep: int = 3,
    batch: int | None = None,
    at_once: int = 2,
    key: str | None = None,
    on_group: OnGroup | None = None,
    runs_folder: str | Path = RUNS_FOLDER,
) -> SweepRun:
    """Runs many trials of one experiment and finds the best.

    The trials, their scores and the best are the same whatever `at_once`, the workers, and whatever is killed on the
    way. All trials run with the same seeds; where no swept key changes the timeline, on the same timelines.

    Args:
        spec: a Spec, a mapping, or the path of a YAML file; neither a comparison nor an ensemble.
        arguments: `KEY=A,B,C` and `KEY=low..high[:log][:int]` are varied, other `KEY=VALUE` are overrides.
        method: grid, random or bayes; grid where all keys have lists and `trials` is None, else bayes.
        trials: how many; every combination for a grid.
        seeds: how many per trial, from the spec's seed upwards; a trial's score is the mean over them.
        metric: one of evaluation.metrics, the last if None: the value at the last evaluation; with a `stop.target`
            hours, client_updates, traffic_bytes or server_steps: the cost until it.
        rungs: server steps at which only the best trials go on; stop.server_steps ends those that are left.
        keep: one trial in so many goes on.
        batch: trials suggested together, and compared at rungs; 4 for bayes, else all.
        at_once: trials that run at the same time, each with all its seeds.
        key: names the sweep: begun once under it, it goes on when it is started again. A name made of what the sweep
            is if None.
        on_group: called before each group of runs with a label and (name, spec) of each; may return what is to be
            called with figures for a display.
        runs_folder: where the sweep's folder is made.

    Raises:
        SpecError, PlanError: refused, all problems at once; nothing has started then.
        MembersFailed: some runs did not finish; repeated, the sweep goes on with them.
        Interrupted: stopped; everything up to a step boundary is kept.
    """
    asked = Asked(method, trials, seeds, metric, tuple(rungs), keep, batch, at_once)
    base, settings = settled(spec, arguments, asked)
    check_places(base, runs_folder)
    check_device(base)
    folder = keyed_folder(default_key(base, settings) if key is None else key, Path(runs_folder))
    if not (folder / SWEEP_FILE).is_file() and any(
        (folder / name).is_file() for name in (*_RUN_FILES, COMPARISON_FILE)
    ):
        raise SpecError([Problem("key", repr(folder.name), "a key that is free", "a run or a comparison has it")])
    return _run(folder, base, settings, at_once, on_group)


@opened_once()
def resume_sweep(folder: Path, *, at_once: int | None = None, on_group: OnGroup | None = None) -> SweepRun:
    """Goes on with a sweep: runs that are done stay, those that were stopped go on, the others begin."""
    base = sp.load(folder / "spec.yaml")
    facts = json.loads((folder / SWEEP_FILE).read_text())
    return _run(folder, base, Settings.from_dict(facts["settings"]), at_once or facts["at_once"], on_group)


def _run(folder: Path, base: sp.Spec, settings: Settings, at_once: int, on_group: OnGroup | None) -> SweepRun:
    """Checks and plans what is known of the trials, then makes them."""
    record = SweepRecord(folder, base, settings, at_once)
    source = suggestions(settings)
    first = planned(base, settings, 0, source.ask(settings.batch), is_strict=True)
    here = only_one(folder) if (folder / SWEEP_FILE).is_file() else begun_folder(folder, base, folder.parent)
    with here:
        record.begin()
        tracker = MlflowTracker(base.tracking.uri, base.tracking.artifacts)
        parent_id = begin_parent(folder, base, tracker, num_runs=settings.num_trials * len(settings.seeds))
        record.share()
        try:
            with _Shop(folder, base, settings, at_once, parent_id, on_group) as shop:
                trials = _all_trials(shop, record, source, first)
            found = _ended(folder, base, settings, trials, parent_id)
        except BaseException as error:
            with observing():
                tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            if isinstance(error, KeyboardInterrupt) and not isinstance(error, Interrupted):
                raise Interrupted(
                    f"stopped; what is committed is kept. Go on with: atoll resume {short(folder)}"
                ) from error
            raise
        with observing():
            tell(found, base, tracker, record.stamp_ms())
        return found


def _ended(folder: Path, base: sp.Spec, settings: Settings, trials: Sequence[Trial], parent_id: str) -> SweepRun:
    """Report and best spec: a pure function of the trials."""
    _correct(folder, sum(one.state != "refused" for one in trials) * len(settings.seeds))
    best, best_spec, html, csv = write_report(folder, base, settings, trials)
    moves = moving_keys(base, settings, trials)
    uri, experiment = base.tracking.uri, base.tracking.experiment or base.name
    where = (best_spec, html, csv, parent_id, uri, experiment)
    return SweepRun(str(folder), settings, tuple(trials), best, moves, *where)


def _correct(folder: Path, num_runs: int) -> None:
    """How many runs there are, now that it is known which trials were refused."""
    facts = json.loads((folder / COMPARISON_FILE).read_text())
    LocalFiles(folder).write(COMPARISON_FILE, json.dumps({**facts, "num_runs": num_runs}).encode())


# ---- trials ---------------------------------------------------------------------------------------------------------


def _all_trials(shop: _Shop, record: SweepRecord, source: Suggestions, first: Sequence[Planned]) -> list[Trial]:
    """Batch by batch: each is suggested once all scores of those before are told."""
    trials: list[Trial] = []
    batch, total = first, shop.settings.num_trials
    while True:
        found = _judged(shop, batch, record, trials)
        for one in found:
            source.tell(one.number, one.scores)
        trials += found
        if len(trials) == total:
            return trials
        asked = source.ask(min(shop.settings.batch, total - len(trials)))
        batch = planned(shop.spec, shop.settings, len(trials), asked, is_strict=False)


def _judged(shop: _Shop, batch: Sequence[Planned], record: SweepRecord, before: Sequence[Trial]) -> list[Trial]:
    """The trials of a batch from rung to rung, fewer each time; all that are left reach the last.

    Args:
        shop: where their runs are worked on.
        batch: planned.
        record: keeps what was suggested before it trains, and every score.
        before: trials of earlier batches.
    """
    settings, last = shop.settings, shop.settings.rungs[-1]
    scores: dict[int, dict[int, float | None]] = {one.number: {} for one in batch}
    alive = [one for one in batch if one.report is not None]
    for rung in settings.rungs:
        record.note([*before, *(trial_of(one, scores[one.number], last) for one in batch)])
        shop.bring(alive, rung)
        for one in alive:
            scores[one.number][rung] = shop.score(one.number, rung)
        if rung < last:
            now = {one.number: scores[one.number][rung] for one in alive}
            best = survivors(now, settings.keep, is_falling=settings.is_falling)
            alive = [one for one in alive if one.number in best]
    found = [trial_of(one, scores[one.number], last, shop.runs_of(one.number)) for one in batch]
    record.note([*before, *found])
    return found


class _Shop:
    """Where the runs of a sweep are worked on: shared workers, started when the first run needs them.

    Args:
        folder: of the sweep.
        spec: without what is varied.
        settings: of the sweep.
        at_once: trials at the same time.
        parent_id: MLflow run above the runs.
        on_group: told before each group.
    """

    def __init__(
        self, folder: Path, spec: sp.Spec, settings: Settings, at_once: int, parent_id: str, on_group: OnGroup | None
    ) -> None:
        self.folder, self.spec, self.settings = folder, spec, settings
        self._at_once, self._parent_id, self._on_group = at_once, parent_id, on_group
        self._stack = ExitStack()
        self._session: Any = None

    def __enter__(self) -> _Shop:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def bring(self, trials: Sequence[Planned], rung: int) -> None:
        """Every run of these trials to `rung`, a few trials at a time; those that are there already stay.

        Raises:
            Interrupted: stopped.
            MembersFailed: some did not get there; the others did.
            SpecError: one was resumed by force.
        """
        failed: dict[str, BaseException] = {}
        for first in range(0, len(trials), self._at_once):
            group = trials[first : first + self._at_once]
            wanted = {name: one for name, one in self._runs(group, rung) if not self._has_passed(one, rung)}
            todo = [number for number, one in enumerate(wanted.values()) if not _is_there(one)]
            numbers = ", ".join(str(one.number) for one in group)
            label = f"trials {numbers} of {self.settings.num_trials}, to step {rung:,}"
            note = self._display(label, wanted, todo)
            session = self._session_for(trials) if todo else None
            ended = run_together(list(wanted.values()), on_progress=note, session=session, runs_folder=self.folder)
            for name, one in zip(wanted, ended, strict=True):
                if isinstance(one, Interrupted):
                    raise one
                if isinstance(one, Run):
                    check_comparable(one)
                else:
                    failed[name] = one
        if failed:
            raise not_all_finished(self.folder, failed, len(trials) * len(self.settings.seeds))

    def _display(self, label: str, wanted: Mapping[str, Wanted], todo: Sequence[int]) -> Progress | None:
        """What is called with figures of all runs and shows those that there is something to do for."""
        if self._on_group is None or not todo:
            return None
        names = list(wanted)
        show = self._on_group(label, [(names[number], wanted[names[number]].spec) for number in todo])
        return None if show is None else lambda figures: show([figures[number] for number in todo])

    def _runs(self, trials: Sequence[Planned], rung: int) -> Iterator[tuple[str, Wanted]]:
        """(folder's name, run) of every trial and seed."""
        for one in trials:
            for seed in self.settings.seeds:
                arm, folder = arm_name(one.number), self._folder_of(one.number, seed)
                spec = spec_at(self.spec, one.values, seed, rung, f"{self.spec.name}-{folder.name}"[:250])
                key = f"{self.folder.name}.{folder.name}"
                yield folder.name, Wanted(folder, spec, key, arm, self._parent_id, self.folder, is_pictured=False)

    def _folder_of(self, number: int, seed: int) -> Path:
        return self.folder / f"{arm_name(number)}-s{seed}"

    def _has_passed(self, wanted: Wanted, rung: int) -> bool:
        """Whether the run was asked for more than this before: then it has been here, and is not made shorter."""
        folder = wanted.folder or self.folder
        is_known = any((folder / name).is_file() for name in _RUN_FILES)
        store = store_in(folder) if is_known else store_of(wanted.spec, folder, wanted.store_key or folder.name)
        if not store.is_begun():
            return False
        store.prepare()
        with closing(store.journal()) as journal:
            begun = json.loads(journal.get("spec") or "{}")
        return int(begun.get("stop", {}).get("server_steps", 0)) > rung

    def _session_for(self, trials: Sequence[Planned]) -> Any:
        if self._session is None:
            most = max(store_bytes_of(one.report) for one in trials if one.report is not None)
            session = session_for(self.spec, most * self._at_once * len(self.settings.seeds))
            self._session = self._stack.enter_context(session)
        return self._session

    def runs_of(self, number: int) -> tuple[Run, ...]:
        """One per seed, those that have a result."""
        folders = [self._folder_of(number, seed) for seed in self.settings.seeds]
        return tuple(read_result(folder) for folder in folders if (folder / RESULT_FILE).is_file())

    def score(self, number: int, rung: int) -> float | None:
        """Of a trial whose runs have all been at `rung`: the mean over seeds."""
        values = [self._value(self._folder_of(number, seed), rung) for seed in self.settings.seeds]
        return finite(sum(values) / len(values))

    def _value(self, folder: Path, rung: int) -> float:
        """Of one run: its last evaluation up to `rung`, or what it cost until its target."""
        metric = self.settings.metric
        if metric in MEASURES:
            (arm,) = compare([read_result(folder).summary()]).arms
            return arm.costs[metric].median
        with closing(store_in(folder).journal()) as journal:
            known = journal.evaluations()
        newest = max((version for version in known if version <= rung), default=None)
        return math.nan if newest is None else float(known[newest].get(f"eval/{metric}", math.nan))


def _is_there(wanted: Wanted) -> bool:
    """Whether all its steps are done, as far as its folder says: nobody has to start workers for it."""
    folder = wanted.folder
    if folder is None or not (folder / RESULT_FILE).is_file():
        return False
    found = read_result(folder)
    return found.server_steps >= wanted.spec.stop.server_steps or found.reason == "target reached"
