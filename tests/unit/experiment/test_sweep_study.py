"""Which trials a sweep makes, and which go on: functions of the settings and the scores, of nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import SpecError
from atoll.experiment.sweep_space import Choice, Range
from atoll.experiment.sweep_study import Settings, agreed, ranked, suggestions, survivors

SPACE = (
    Range("lr", 1e-3, 10.0, is_log=True),
    Range("epochs", 1.0, 9.0, is_int=True),
    Choice("hidden", ([8], [8, 8], None)),
)


def settings_of(**changes: Any) -> Settings:
    usual: dict[str, Any] = {
        "space": SPACE, "method": "bayes", "num_trials": 24, "seeds": (3,), "metric": "loss", "is_falling": True,
        "rungs": (7,), "keep": 3, "batch": 4, "seed": 3,
    }  # fmt: skip
    return Settings(**usual | changes)


def score(values: dict[str, Any]) -> float:
    return abs(math.log(values["lr"])) + values["epochs"] / 9 + (values["hidden"] != [8, 8])


def trials(settings: Settings, judge: Callable[[dict[str, Any]], float | None] = score) -> list[dict[str, Any]]:
    """All trials of a sweep whose scores are known without training."""
    source, made = suggestions(settings), []
    while len(made) < settings.num_trials:
        batch = source.ask(min(settings.batch, settings.num_trials - len(made)))
        for number, values in enumerate(batch, len(made)):
            source.tell(number, {settings.rungs[-1]: judge(values)})
        made += batch
    return made


# ---- who goes on ----------------------------------------------------------------------------------------------------

SCORES = st.dictionaries(st.integers(0, 30), st.one_of(st.none(), st.floats(-9, 9, width=16)), min_size=1, max_size=20)


@given(SCORES, st.integers(2, 5), st.booleans())
def test_the_best_go_on(scores: dict[int, float | None], keep: int, is_falling: bool) -> None:
    known = {number: one for number, one in scores.items() if one is not None}
    going = survivors(scores, keep, is_falling=is_falling)
    assert len(going) == min(len(known), max(1, len(scores) // keep))
    assert going == sorted(set(going) & set(known))
    for one in going:
        for other in set(known) - set(going):
            better = known[one] < known[other] if is_falling else known[one] > known[other]
            assert better or (known[one] == known[other] and one < other)
    shuffled = dict(sorted(scores.items(), key=lambda item: hash(item)))
    assert survivors(shuffled, keep, is_falling=is_falling) == going
    assert ranked(scores, is_falling=is_falling)[: len(going)] == sorted(
        going, key=lambda number: (known[number] if is_falling else -known[number], number)
    )


# ---- suggestions ----------------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_the_last_key_fastest() -> None:
    space = (Choice("a", (1, 2)), Choice("b", ("x", "y", "z")))
    made = trials(settings_of(space=space, method="grid", num_trials=6, batch=4), lambda values: 0.0)
    assert [(one["a"], one["b"]) for one in made] == [(a, b) for a in (1, 2) for b in "xyz"]


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_the_same_settings_and_scores_give_the_same_trials(method: Any) -> None:
    settings = settings_of(method=method)
    first = trials(settings)
    assert trials(settings) == first
    assert json.loads(json.dumps(first)) == first, "the file that holds them gives them back exactly"
    assert trials(settings_of(method=method, seed=4)) != first
    for one in first:
        assert 1e-3 <= one["lr"] <= 10
        assert isinstance(one["epochs"], int)
        assert 1 <= one["epochs"] <= 9
        assert one["hidden"] in ([8], [8, 8], None)
    assert sum(one["lr"] < 0.1 for one in first) > 2, "equal ratios are equally likely"


def test_bayes_learns_from_scores_and_random_does_not() -> None:
    def other(values: dict[str, Any]) -> float:
        return -score(values)

    assert trials(settings_of(method="random")) == trials(settings_of(method="random"), other)
    calm, turned = trials(settings_of()), trials(settings_of(), other)
    assert calm[:8] == turned[:8]
    assert calm != turned
    means = [sum(map(score, made[12:])) / 12 for made in (calm, turned)]
    assert means[0] < means[1]


def test_the_size_of_batches_is_part_of_what_a_sweep_is() -> None:
    assert trials(settings_of(batch=4)) != trials(settings_of(batch=1))


def test_trials_that_stop_early_or_lead_nowhere_are_told_too() -> None:
    settings = settings_of(rungs=(3, 7), num_trials=16)

    def made(early: bool) -> list[dict[str, Any]]:
        source, found = suggestions(settings), []
        for first in range(0, 16, 4):
            batch = source.ask(4)
            for number, values in enumerate(batch, first):
                told: dict[int, float | None] = {3: score(values), 7: score(values)}
                if number % 4 == 1:
                    told = {3: None}
                elif number % 4 == 2 and early:
                    told = {3: score(values)}
                source.tell(number, {} if number % 4 == 3 else told)
            found += batch
        return found

    assert made(early=True) == made(early=True)
    assert made(early=True)[:8] == made(early=False)[:8]


def test_settings_are_plain_in_a_file_and_back() -> None:
    settings = settings_of(rungs=(3, 7), seeds=(3, 4))
    assert Settings.from_dict(json.loads(json.dumps(settings.as_dict()))) == settings


# ---- the stored study -----------------------------------------------------------------------------------------------


def told(lr: float, **scores: float | None) -> dict[str, Any]:
    return {"values": {"lr": lr}, "scores": {rung[1:]: one for rung, one in scores.items()}}


def test_a_stored_study_and_its_replay_become_one() -> None:
    stored = [told(0.1, r3=1.0, r7=2.0), told(0.2, r3=None), told(0.3)]
    assert agreed(stored, [], "sweep.json", ("o 1", "o 1")) == stored
    assert agreed([], stored, "sweep.json", ("o 1", "o 1")) == stored
    found = [told(0.1, r3=1.0), told(0.2), told(0.3, r3=4.0), told(0.4)]
    merged = agreed(stored, found, "sweep.json", ("o 1", "o 2"))
    assert merged == [told(0.1, r3=1.0, r7=2.0), told(0.2, r3=None), told(0.3, r3=4.0), told(0.4)]


def test_what_does_not_agree_is_told() -> None:
    stored = [told(0.1, r3=1.0), told(0.2, r3=2.0)]
    with pytest.raises(SpecError) as caught:
        agreed(stored, [told(0.1, r3=1.5), told(0.25)], "runs/k/sweep.json", ("optuna 4.5", "optuna 5.0"))
    first, second = caught.value.problems
    assert "trial 0: got 1.0 at step 3; need 1.5, as its runs say" in str(first)
    assert "trial 1" in str(second)
    assert "optuna 4.5 suggested then, optuna 5.0 now" in str(second)
    assert "install optuna 4.5" in str(second)
