"""A sweep that is stopped anywhere, any number of times, and repeated makes the trials of one that never was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.experiment import sweeping
from atoll.experiment.sweep_record import SweepRecord
from atoll.experiment.sweep_settings import Asked, Planned, settled
from atoll.experiment.sweep_study import Settings, suggestions
from atoll.experiment.sweep_trials import Trial
from tiny_kit import tiny

SPACE = ("client.lr=0.001..1:log", "client.epochs=1..5:int", "client.batch_size=2,4,8")


class Stopped(Exception):
    """The process has ended here."""


class FakeShop:
    """Trains nothing: the score of a trial at a rung is a function of its values. Remembers who has been where."""

    def __init__(self, spec: Any, asked: Settings, been: set[tuple[int, int]], moves: int) -> None:
        self.spec, self.settings, self._been, self._moves = spec, asked, been, moves
        self._values: dict[int, Mapping[str, Any]] = {}

    def bring(self, trials: Sequence[Planned], rung: int) -> None:
        for one in trials:
            self._values[one.number] = one.values
            if (one.number, rung) not in self._been:
                self._moves -= 1
                if self._moves < 0:
                    raise Stopped
                self._been.add((one.number, rung))

    def score(self, number: int, rung: int) -> float | None:
        values = self._values[number]
        found = abs(math.log(values["client.lr"]) + 3) + values["client.epochs"] / rung
        return None if values["client.batch_size"] == 8 and rung > 3 else found

    def runs_of(self, number: int) -> tuple[Any, ...]:
        return ()


def planned(spec: Any, asked: Settings, first: int, values: Sequence[Mapping[str, Any]], **_: Any) -> list[Planned]:
    """Every seventh trial is refused, as its spec would be."""
    report: Any = SimpleNamespace(timeline_digest="d")
    return [Planned(number, one, None if number % 7 == 5 else report) for number, one in enumerate(values, first)]


def attempt(spec: Any, asked: Settings, folder: Path, been: set[tuple[int, int]], moves: int) -> list[Trial]:
    """One process's life: it is stopped after so many moves of a trial to a rung."""
    record, source = SweepRecord(folder, spec, asked, at_once=1), suggestions(asked)
    record.begin()
    first = planned(spec, asked, 0, source.ask(asked.batch))
    return sweeping._all_trials(FakeShop(spec, asked, been, moves), record, source, first)  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 7),
    rungs=st.sampled_from([(), (2,), (2, 4)]),
    keep=st.integers(2, 3),
    lives=st.lists(st.integers(0, 12), max_size=6),
    seed=st.integers(0, 2**32),
)
def test_whatever_stops_it(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    rungs: tuple[int, ...],
    keep: int,
    lives: list[int],
    seed: int,
) -> None:
    monkeypatch.setattr(sweeping, "planned", planned)
    asked = Asked(trials=14, batch=batch, rungs=rungs, keep=keep, metric="loss")
    spec, chosen = settled(tiny(seed=seed), SPACE, asked)
    calm: set[tuple[int, int]] = set()
    expected = attempt(spec, chosen, tmp_path_factory.mktemp("calm"), calm, 10**6)
    folder, been = tmp_path_factory.mktemp("storm"), set[tuple[int, int]]()
    for moves in lives:
        try:
            attempt(spec, chosen, folder, been, moves)
        except Stopped:
            continue
    assert attempt(spec, chosen, folder, been, 10**6) == expected
    assert been == calm, "nobody has trained for nothing"
    assert len(expected) == 14
