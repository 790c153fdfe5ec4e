"""From a sweep's arguments to its settings, or everything that is wrong with them at once."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from atoll import spec as sp
from atoll.errors import PlanError, Problem, SpecError
from atoll.experiment.planning import PlanReport, SpecLike, as_spec, plan
from atoll.experiment.running import not_a_run, pinned
from atoll.experiment.sweep_space import Choice, Dimension, corners, read_space
from atoll.experiment.sweep_study import Method, Settings
from atoll.tracking import MEASURES, lower_is_better

__all__ = ["Asked", "Planned", "default_key", "identity_of", "planned", "settled", "spec_at"]

#: trials that are suggested at once where each batch learns from those before
_BAYES_BATCH = 4
_MOST_TRIALS, _MOST_SEEDS = 100_000, 1000


@dataclass(frozen=True)
class Asked:
    """A sweep as a person asks for it; None: what is usual.

    Attributes:
        method: grid where all keys have lists and no number of trials is given, else bayes.
        trials: how many; every combination for a grid.
        seeds: how many per trial, from the spec's seed upwards.
        metric: one of evaluation.metrics, the last if None, judged at the last evaluation; or, with a `stop.target`,
            a cost until it: hours, client_updates, traffic_bytes or server_steps.
        rungs: server steps before the last at which poor trials stop.
        keep: one trial in so many goes on from a rung.
        batch: trials suggested together: 4 for bayes, all of them otherwise.
        at_once: trials that run at the same time; no part of what the sweep is.
    """

    method: str | None = None
    trials: int | None = None
    seeds: int = 1
    metric: str | None = None
    rungs: Sequence[int] = ()
    keep: int = 3
    batch: int | None = None
    at_once: int = 2


def settled(spec: SpecLike, arguments: Sequence[str], asked: Asked) -> tuple[sp.Spec, Settings]:
    """The spec without what is varied, tracking places absolute, and what decides the trials.

    Args:
        spec: a Spec, a mapping, or the path of a YAML file.
        arguments: see `read_space`.
        asked: the rest.

    Raises:
        SpecError: everything that is wrong with the arguments, the file and the options.
    """
    problems: list[Problem] = []
    space: tuple[Dimension, ...] = ()
    overrides = tuple(one for one in arguments if "=" not in one)
    try:
        space, overrides = read_space(arguments)
    except SpecError as error:
        problems += error.problems
    resolved = None
    try:
        resolved = pinned(as_spec(spec, overrides))
    except SpecError as error:
        problems += error.problems
    problems += _number_problems(asked)
    if resolved is not None:
        problems += _kind_problems(resolved) + _metric_problems(resolved, asked) + _rung_problems(resolved, asked)
    method, wanted = _method(asked, space), asked.trials
    problems += _method_problems(asked, method, space) if space else []
    if problems or resolved is None:
        raise SpecError(problems)
    number = math.prod(len(one.ends()) for one in space) if wanted is None else wanted
    metric = asked.metric or resolved.evaluation.metrics[-1]
    rungs = tuple(dict.fromkeys([*asked.rungs, resolved.stop.server_steps]))
    usual = _BAYES_BATCH if method == "bayes" else number
    settings = Settings(
        space=space,
        method=method,
        num_trials=number,
        seeds=tuple(range(resolved.seed, resolved.seed + asked.seeds)),
        metric=metric,
        is_falling=metric in MEASURES or lower_is_better(metric),
        rungs=rungs,
        keep=asked.keep,
        batch=min(asked.batch or usual, number),
        seed=resolved.seed,
    )
    return resolved, settings


def _method(asked: Asked, space: Sequence[Dimension]) -> Any:
    if asked.method is not None:
        return asked.method
    is_list = all(isinstance(one, Choice) for one in space)
    return "grid" if is_list and asked.trials is None else "bayes"


def _kind_problems(spec: sp.Spec) -> list[Problem]:
    if spec.ensemble is not None:
        return [not_a_run(spec)]
    if spec.comparison is None:
        return []
    hint = "comparison=null sweeps the file without its arms"
    return [Problem("comparison", f"arms {', '.join(spec.comparison.arms)}", "null for a sweep", hint=hint)]


def _number_problems(asked: Asked) -> list[Problem]:
    bounds: dict[str, tuple[int | None, int, int]] = {
        "trials": (asked.trials, 1, _MOST_TRIALS),
        "seeds": (asked.seeds, 1, _MOST_SEEDS),
        "keep": (asked.keep, 2, _MOST_TRIALS),
        "batch": (asked.batch, 1, _MOST_TRIALS),
        "at_once": (asked.at_once, 1, _MOST_TRIALS),
    }
    return [
        Problem(name, str(value), f"a number from {low} to {high}")
        for name, (value, low, high) in bounds.items()
        if value is not None and not low <= value <= high
    ]


def _metric_problems(spec: sp.Spec, asked: Asked) -> list[Problem]:
    known, target, metric = spec.evaluation.metrics, spec.stop.target, asked.metric
    if metric in MEASURES:
        if target is None:
            hint = "set stop.target={metric: loss, value: 0.5}, or judge by " + ", ".join(known)
            return [Problem("metric", repr(metric), "a stop.target, for a cost until it", "none is set", hint)]
        if asked.rungs:
            why = "a trial that has not reached the target yet has no cost to be judged by"
            return [Problem("rungs", f"with metric {metric}", "none for a cost until a target", why)]
        return []
    if metric is not None and metric not in known:
        rule = f"one of evaluation.metrics ({', '.join(known)}) or of the costs until a target ({', '.join(MEASURES)})"
        return [Problem("metric", repr(metric), rule)]
    if target is not None:
        why = "trials that stop at a target are all as good as it"
        hint = f"stop.target=null, or judge by the cost until it: --metric {next(iter(MEASURES))}"
        return [Problem("stop.target", f"{target.metric} {target.value:g}", "null for a sweep by quality", why, hint)]
    return []


def _rung_problems(spec: sp.Spec, asked: Asked) -> list[Problem]:
    rungs, last = asked.rungs, spec.stop.server_steps
    if all(low < high for low, high in itertools.pairwise([0, *rungs, last + 1])):
        return []
    rule = f"server steps from 1 to {last}, ascending"
    return [Problem("rungs", ",".join(map(str, rungs)), rule, "a trial ends at stop.server_steps")]


def _method_problems(asked: Asked, method: str, space: Sequence[Dimension]) -> list[Problem]:
    names = get_args(Method)
    if method not in names:
        return [Problem("method", repr(method), f"one of {', '.join(names)}")]
    if method != "grid":
        if asked.trials is None:
            return [Problem("trials", "none", f"how many trials {method} may make", hint="--trials 20")]
        return []
    ranges = [one.key for one in space if not isinstance(one, Choice)]
    if ranges:
        rule, why = "values, KEY=A,B,C, for a grid", "a range has no end of values"
        return [Problem(key, "a range", rule, why, "or --method random or bayes") for key in ranges]
    number = math.prod(len(one.ends()) for one in space)
    if asked.trials not in (None, number):
        why, hint = f"a grid makes all its {number}", "leave --trials out, or --method random"
        return [Problem("trials", str(asked.trials), str(number), why, hint)]
    return []


# ---- trials as specs ------------------------------------------------------------------------------------------------


def spec_at(spec: sp.Spec, values: Mapping[str, Any], seed: int, steps: int, name: str) -> sp.Spec:
    """The spec of one run: a trial's values, a seed, and how far it goes.

    Raises:
        SpecError: everything that is wrong with it.

    Purity: pure.
    """
    plain = sp.to_dict(spec)
    tracking = plain["tracking"] | {"experiment": spec.tracking.experiment or spec.name}
    stop = plain["stop"] | {"server_steps": steps}
    return sp.derived(spec, values, name=name, seed=seed, tracking=tracking, stop=stop)


@dataclass(frozen=True)
class Planned:
    """A trial before it trains.

    Attributes:
        number: from 0.
        values: by key.
        report: its plan with the first seed, up to the first rung; None where it is refused.
        why: it is refused.
    """

    number: int
    values: Mapping[str, Any]
    report: PlanReport | None
    why: str = ""


def planned(
    spec: sp.Spec, settings: Settings, first: int, asked: Sequence[Mapping[str, Any]], *, is_strict: bool
) -> list[Planned]:
    """Checks and plans trials.

    Args:
        spec: without what is varied.
        settings: of the sweep.
        first: number of the first of them.
        asked: their values.
        is_strict: the sweep is about to begin: corners of the space are checked too, and nothing is let pass.

    Raises:
        SpecError, PlanError: with `is_strict`, all that is wrong with any of them.
    """
    seed, steps = settings.seeds[0], settings.rungs[0]
    found: list[Planned] = []
    problems: dict[str, Problem] = {}
    for corner in corners(settings.space) if is_strict and settings.method != "grid" else ():
        try:
            spec_at(spec, corner, seed, steps, spec.name)
        except SpecError as error:
            problems.update({str(one): one for one in _with_hints(error.problems, settings.space)})
    for number, values in enumerate(asked, first):
        try:
            report, why = plan(spec_at(spec, values, seed, steps, spec.name)), ""
        except (SpecError, PlanError) as error:
            problems.update({str(one): one for one in _with_hints(error.problems, settings.space)})
            report, why = None, str(error)
        found.append(Planned(number, values, report, why))
    if is_strict and problems:
        raise SpecError(list(problems.values()))
    return found


def _with_hints(problems: Sequence[Problem], space: Sequence[Dimension]) -> list[Problem]:
    """Where a range gives fractions and whole numbers are wanted, `:int` is what was forgotten."""
    fractions = {one.key for one in space if not isinstance(one, Choice) and not one.is_int}
    return [
        Problem(one.path, one.value, one.rule, one.why, f"{one.path}=low..high:int gives whole numbers")
        if one.path in fractions and "whole number" in one.rule
        else one
        for one in problems
    ]


# ---- what a sweep is ------------------------------------------------------------------------------------------------


def identity_of(spec: sp.Spec, settings: Settings) -> dict[str, Any]:
    """What a sweep that goes on must share with the one that was begun, as plain values of JSON. Purity: pure."""
    target = sp.to_dict(spec)["stop"]["target"]
    found = {**sp.identity(spec), "name": spec.name, "stop.target": target, **settings.as_dict()}
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def default_key(spec: sp.Spec, settings: Settings) -> str:
    """A sweep's name where none is given: of what it is, so that the same command goes on. Purity: pure."""
    text = json.dumps(identity_of(spec, settings), sort_keys=True)
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", spec.name)[:150]
    return f"{slug}-sweep-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
