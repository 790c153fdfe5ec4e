"""May this run go on, and with what? Everything that speaks against it is told before anything starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll import spec as sp
from atoll.errors import InfrastructureError, Problem, SpecError
from atoll.experiment.birth import Birth, born, differences
from atoll.experiment.opened import data_of
from atoll.experiment.places import check_device
from atoll.experiment.planning import PlanReport, plan
from atoll.experiment.records import JOURNAL_FILE, TOLD
from atoll.experiment.storing import store_in
from atoll.runtime.store import Journal
from atoll.tracking import absolute_uri, lower_is_better

__all__ = ["Resumption", "check_resumption"]


@dataclass(frozen=True)
class Resumption:
    """A run that may go on.

    Attributes:
        spec: what it goes on with.
        birth: what it was begun with; under force, what it goes on with.
        report: the plan, where the run became longer.
        is_complete: all its steps are done.
        has_untold: the tracking service lacks rows, files, or the end.
        is_moved: it is to be tracked elsewhere than before.
        is_comparable: nothing that decides bits was forced.
        store_bytes: object store that the plan needs.
    """

    spec: sp.Spec
    birth: Birth
    report: PlanReport | None
    is_complete: bool
    has_untold: bool
    is_moved: bool
    is_comparable: bool
    store_bytes: int


def check_resumption(folder: Path, change: sp.Spec | Sequence[str], *, force: bool) -> Resumption:
    """Reads the run's journal and compares.

    Args:
        folder: of the run.
        change: overrides, or the spec to go on with.
        force: pass over what may be forced.

    Raises:
        SpecError: all that speaks against going on.
    """
    store = store_in(folder)
    if not store.is_begun():
        why, hint = "its process died before there was anything to keep", "run it again"
        raise SpecError([Problem("run", str(folder), "a run that was begun", why, hint)])
    try:
        journal = store.journal()
    except InfrastructureError as error:
        raise SpecError([_damaged(folder, str(error))]) from error
    with closing(journal):
        if damage := journal.damage():
            raise SpecError([_damaged(folder, text) for text in damage])
        text = journal.get("birth")
        if text is None:
            raise SpecError([_damaged(folder, "it does not say what the run was begun with")])
        old = Birth.from_json(text)
        old_spec = sp.parse(old.spec)
        # Its stop may have become longer since.
        begun_with = sp.parse(json.loads(journal.get("spec") or "null") or old.spec)
        spec = change if isinstance(change, sp.Spec) else sp.parse(sp.to_dict(begun_with), change)
        new = born(spec, data_of(spec), old.run_key, old.arm, old.parent_run_id)
        fatal, forceable = differences(old, new, old_spec, spec)
        fatal += _stop_problems(journal, spec, begun_with)
        if spec.runtime.store != begun_with.runtime.store:
            rule = f"{begun_with.runtime.store!r}, where the run keeps itself"
            fatal.append(Problem("runtime.store", repr(spec.runtime.store), rule))
        if fatal or (forceable and not force):
            raise SpecError([*fatal, *([] if force else forceable)])
        ended = json.loads(journal.get("ended") or "null")
        is_complete = ended is not None and _is_enough(ended, spec, begun_with)
        has_untold = bool(journal.num_pending or journal.pending_artifacts()) or journal.get(TOLD) != "yes"
        experiment = spec.tracking.experiment or spec.name
        is_moved = journal.get("tracking") not in (None, f"{absolute_uri(spec.tracking.uri)} {experiment}")
        store_bytes = int(journal.get("store_bytes") or 0)
        was_comparable = journal.get("is_comparable") != "no"
    check_device(spec)
    is_longer = spec.stop != begun_with.stop
    report = plan(spec) if is_longer else None
    birth = new if forceable else old
    is_comparable = was_comparable and not forceable
    return Resumption(spec, birth, report, is_complete, has_untold, is_moved, is_comparable, store_bytes)


def _damaged(folder: Path, text: str) -> Problem:
    hint = "bring it back from a copy, or begin a new run; what MLflow has is not touched"
    return Problem(store_in(folder).place or str(folder / JOURNAL_FILE), "", "a journal that is whole", text, hint)


def _stop_problems(journal: Journal, spec: sp.Spec, before: sp.Spec) -> list[Problem]:
    """A run that has gone further than it is asked to cannot equal the run that is asked for."""
    problems, done = [], journal.last_step + 1
    if spec.stop.server_steps < done:
        found, why = str(spec.stop.server_steps), "so many server steps are committed"
        problems.append(Problem("stop.server_steps", found, f"at least {done}", why))
    target = spec.stop.target
    if target is None or target == before.stop.target:
        return problems
    name, falls, known = f"eval/{target.metric}", lower_is_better(target.metric), journal.evaluations()
    missing = [version for version in range(0, done + 1, spec.evaluation.every_steps) if version not in known]
    if missing:
        rule, hint = "the target that the run has", "resume without the change first, then with it"
        why = f"the evaluation of version {missing[0]} is not known yet, and steps after it are committed"
        problems.append(Problem("stop.target", f"{target.metric} {target.value:g}", rule, why, hint))
    for version, metrics in known.items():
        value = metrics.get(name)
        is_due = version % spec.evaluation.every_steps == 0
        if value is not None and is_due and (value <= target.value if falls else value >= target.value):
            rule = f"a target that version {version} did not reach ({name} {value:.6g})"
            why = "asked for at first, the run would have stopped there"
            problems.append(Problem("stop.target.value", f"{target.value:g}", rule, why))
            break
    return problems


def _is_enough(ended: Mapping[str, Any], spec: sp.Spec, before: sp.Spec) -> bool:
    return spec.stop == before.stop or int(ended["version"]) >= spec.stop.server_steps
