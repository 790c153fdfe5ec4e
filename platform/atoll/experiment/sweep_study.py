"""Which trials a sweep makes, and which of them go on: a function of its settings and of the scores, of nothing else.

Trials are suggested in batches of a fixed size and scores are told in the order of their numbers, so neither how many
run at the same time nor who ends first can change a suggestion: repeated, a sweep makes the same trials.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal, Protocol

from atoll.errors import Problem, SpecError
from atoll.experiment.sweep_space import Choice, Dimension, dimension_from
from atoll.rng import key

__all__ = [
    "Method",
    "Settings",
    "Suggestions",
    "agreed",
    "finite",
    "ranked",
    "sampler_version",
    "suggestions",
    "survivors",
]

Method = Literal["grid", "random", "bayes"]
#: score of a trial at each rung that it came to; None: not finite, it diverged or never reached the target
Scores = Mapping[int, float | None]


@dataclass(frozen=True)
class Settings:
    """What decides which trials a sweep makes.

    Attributes:
        space: what is varied.
        method: where values come from.
        num_trials: how many.
        seeds: every trial runs with each.
        metric: what a trial is judged by.
        is_falling: whether small values of it are good.
        rungs: server steps at which trials are judged, ascending; all that are left end at the last.
        keep: one in so many goes on from each rung.
        batch: trials suggested together, and judged beside one another at rungs.
        seed: of the suggestions.
    """

    space: tuple[Dimension, ...]
    method: Method
    num_trials: int
    seeds: tuple[int, ...]
    metric: str
    is_falling: bool
    rungs: tuple[int, ...]
    keep: int
    batch: int
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain |= {"seeds": list(self.seeds), "rungs": list(self.rungs)}
        return plain | {"space": [one.as_dict() for one in self.space]}

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> Settings:
        """What `as_dict` made plain."""
        space = tuple(map(dimension_from, plain["space"]))
        return Settings(**{**plain, "space": space, "seeds": tuple(plain["seeds"]), "rungs": tuple(plain["rungs"])})


# ---- who goes on ----------------------------------------------------------------------------------------------------


def ranked(scores: Mapping[int, float | None], *, is_falling: bool) -> list[int]:
    """Numbers of the trials with a score, best first; of equal ones the first.

    Purity: pure.

    Example:
        >>> ranked({0: 0.5, 1: None, 2: 0.7, 3: 0.7}, is_falling=False)
        [2, 3, 0]
    """
    sign = 1.0 if is_falling else -1.0
    known = [(sign * score, number) for number, score in scores.items() if score is not None]
    return [number for _, number in sorted(known)]


def survivors(scores: Mapping[int, float | None], keep: int, *, is_falling: bool) -> list[int]:
    """Numbers of the trials that go on from a rung, ascending: the best one in `keep`, and one at least.

    One without a score never goes on. Purity: pure.

    Example:
        >>> survivors({0: 0.5, 1: 0.9, 2: 0.7, 3: 0.6}, 2, is_falling=False)
        [1, 2]
    """
    return sorted(ranked(scores, is_falling=is_falling)[: max(1, len(scores) // keep)])


# ---- suggestions ----------------------------------------------------------------------------------------------------


class Suggestions(Protocol):
    """Where trials come from. Asked and told in the order of the trials' numbers."""

    def ask(self, count: int) -> list[dict[str, Any]]:
        """Values by key of the next `count` trials."""
        ...

    def tell(self, number: int, scores: Scores) -> None:
        """What became of a trial; no scores: it was refused."""
        ...


def suggestions(settings: Settings) -> Suggestions:
    """A fresh source of trials: the same from the same settings, told the same scores."""
    return _Grid(settings) if settings.method == "grid" else _Sampler(settings)


def sampler_version(settings: Settings) -> str:
    """What the suggestions depend on beside the settings."""
    return "" if settings.method == "grid" else f"optuna {metadata.version('optuna')}"


class _Grid:
    """Every combination, the last key fastest."""

    def __init__(self, settings: Settings) -> None:
        keys = [one.key for one in settings.space]
        values = itertools.product(*(one.ends() for one in settings.space))
        self._left: Iterator[dict[str, Any]] = (dict(zip(keys, found, strict=True)) for found in values)

    def ask(self, count: int) -> list[dict[str, Any]]:
        return list(itertools.islice(self._left, count))

    def tell(self, number: int, scores: Scores) -> None:
        del number, scores


class _Sampler:
    """Optuna: uniformly at random, or by a tree-structured Parzen estimator."""

    def __init__(self, settings: Settings) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        seed = key(settings.seed, "sweep") % 2**32
        with warnings.catch_warnings():
            # Trials of a batch are kept apart by it; it is old, and still said to be an experiment.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            bayes = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        sampler = bayes if settings.method == "bayes" else optuna.samplers.RandomSampler(seed=seed)
        best = optuna.study.StudyDirection.MINIMIZE if settings.is_falling else optuna.study.StudyDirection.MAXIMIZE
        self._study = optuna.create_study(sampler=sampler, direction=best)
        self._space, self._last_rung = settings.space, settings.rungs[-1]
        self._distributions = {one.key: _distribution(one) for one in settings.space}
        self._trials: list[Any] = []

    def ask(self, count: int) -> list[dict[str, Any]]:
        asked = [self._study.ask(self._distributions) for _ in range(count)]
        self._trials += asked
        return [{one.key: _value(one, trial.params[one.key]) for one in self._space} for trial in asked]

    def tell(self, number: int, scores: Scores) -> None:
        from optuna.trial import TrialState

        trial, last = self._trials[number], None
        for rung, score in sorted(scores.items()):
            last = score
            if score is not None:
                trial.report(score, rung)
        if last is None:
            self._study.tell(trial, state=TrialState.FAIL)
        elif self._last_rung in scores:
            self._study.tell(trial, last)
        else:
            self._study.tell(trial, state=TrialState.PRUNED)


def _distribution(one: Dimension) -> Any:
    from optuna import distributions as d

    if isinstance(one, Choice):
        return d.CategoricalDistribution(range(len(one.values)))  # by place: values may be lists and sections
    if one.is_int:
        return d.IntDistribution(int(one.low), int(one.high), log=one.is_log)
    return d.FloatDistribution(one.low, one.high, log=one.is_log)


def _value(one: Dimension, suggested: Any) -> Any:
    return one.values[suggested] if isinstance(one, Choice) else suggested


# ---- the stored study -----------------------------------------------------------------------------------------------


def agreed(
    stored: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]], place: str, versions: tuple[str, str]
) -> list[dict[str, Any]]:
    """The stored trials and those found now as one, where they agree on all that both know.

    Args:
        stored: {"values": …, "scores": {rung: score}} per trial, as a sweep wrote them before.
        found: the same, as far as it came this time.
        place: of the stored ones, for messages.
        versions: what suggested the stored ones, and what suggests now.

    Raises:
        SpecError: they do not agree: whatever was learned from the old trials would not hold for the new ones.

    Purity: pure.
    """
    was, now = versions
    changed = f"; {was} suggested then, {now} now" if was != now else ""
    problems, merged = [], []
    for number, (old, new) in enumerate(itertools.zip_longest(stored, found)):
        if old is None or new is None:
            merged.append(dict(old if new is None else new))
            continue
        if old["values"] != new["values"]:
            why = f"asked again, the sampler suggests {new['values']}{changed}"
            hint = f"install {was}, or begin anew with another --key" if changed else "begin anew with another --key"
            problems.append(Problem(f"{place}, trial {number}", str(old["values"]), "the same values", why, hint))
        problems += [
            Problem(
                f"{place}, trial {number}", f"{score} at step {rung}", f"{new['scores'][rung]}, as its runs say",
                "a run was changed since, or the file", "begin anew with another --key",
            )
            for rung, score in old["scores"].items()
            if rung in new["scores"] and new["scores"][rung] != score
        ]  # fmt: skip
        merged.append({"values": new["values"], "scores": {**old["scores"], **new["scores"]}})
    if problems:
        raise SpecError(problems)
    return merged


def finite(score: float) -> float | None:
    """The score, or None where it says that the trial led nowhere."""
    return score if math.isfinite(score) else None
