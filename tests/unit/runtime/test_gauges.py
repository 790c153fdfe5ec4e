"""Figures for Prometheus, without Ray; and the Grafana page that shows them."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.runtime.gauges import COUNTERS, GAUGES, Figures, Gauges, gauges_here, prometheus_names

PAGE = Path(__file__).parents[3] / "configs/grafana/atoll.json"


class Meters:
    """Remembers what each metric was told."""

    def __init__(self) -> None:
        self.time_s = 100.0
        self.totals: dict[tuple[str, str], float] = {}
        self.added: list[float] = []
        self.gauges = Gauges(lambda name, _, only_grows: Meter(self, name, only_grows), lambda: self.time_s)

    def emit(self, seconds: float = 2.0, **runs: Figures) -> None:
        self.gauges.emit(lambda: runs)
        self.time_s += seconds

    def __getitem__(self, place: tuple[str, str]) -> float:
        return self.totals.get((f"atoll_{place[0]}", place[1]), 0.0)


class Meter:
    def __init__(self, meters: Meters, name: str, only_grows: bool) -> None:
        self.meters, self.name, self.only_grows = meters, name, only_grows

    def add(self, value: float, run: str) -> None:
        assert self.only_grows
        self.meters.added.append(value)
        self.meters.totals[self.name, run] = self.meters.totals.get((self.name, run), 0.0) + value

    def set(self, value: float, run: str) -> None:
        assert not self.only_grows
        self.meters.totals[self.name, run] = value


def test_every_figure_is_a_counter_or_a_gauge() -> None:
    assert [field.name for field in fields(Figures)] == [*COUNTERS, *GAUGES]


def test_counters_add_what_came_since() -> None:
    meters = Meters()
    meters.emit(a=Figures())
    meters.emit(a=Figures(client_updates=30, open_blocks=7))
    meters.emit(a=Figures(client_updates=50, open_blocks=2))
    assert meters["client_updates", "a"] == 50
    assert meters["open_blocks", "a"] == 2


def test_a_resumed_run_adds_no_jump() -> None:
    meters = Meters()
    meters.emit(a=Figures(client_updates=5000))
    meters.emit(a=Figures(client_updates=5020))
    assert meters["client_updates", "a"] == 20


def test_a_run_that_begins_again_adds_nothing_until_it_is_as_far() -> None:
    meters = Meters()
    for steps in (0, 40, 25, 38, 45):
        meters.emit(a=Figures(server_steps=steps))
    assert meters["server_steps", "a"] == 45


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=20))
def test_counters_follow_the_highest_figure(values: list[float]) -> None:
    """Whatever rolls back how often: the total is the highest figure less the first, and nothing is ever taken away."""
    meters = Meters()
    for value in values:
        meters.emit(a=Figures(busy_seconds=value))
    assert all(added > 0 for added in meters.added)
    assert meters["busy_seconds", "a"] == pytest.approx(max(values) - values[0], abs=1e-3)


def test_every_other_second_at_most_and_nobody_is_asked_between() -> None:
    meters, asked = Meters(), []
    for _ in range(100):
        meters.gauges.emit(lambda: asked.append(1) or {})
        meters.time_s += 0.25
    assert len(asked) == 13


def test_runs_are_apart_and_what_has_gone_waits_for_nothing() -> None:
    meters = Meters()
    one = Figures(outbox_rows=9, open_blocks=4)
    meters.emit(a=one, b=replace(one, outbox_rows=5))
    assert (meters["outbox_rows", "a"], meters["outbox_rows", "b"]) == (9, 5)
    meters.emit(b=one)
    assert (meters["outbox_rows", "a"], meters["open_blocks", "a"]) == (0, 0)
    assert meters["outbox_rows", "b"] == 9


def test_the_end_is_emitted_whatever_the_time() -> None:
    meters = Meters()
    meters.emit(0.1, a=Figures())
    meters.gauges.close(lambda: {"a": Figures(server_steps=3, outbox_rows=7)})
    assert meters["server_steps", "a"] == 3
    assert meters["outbox_rows", "a"] == 0


def test_an_embedded_ray_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_enable_metrics_collection", "false")
    gauges = gauges_here()
    gauges.emit(lambda: pytest.fail("nobody looks"))
    gauges.close(lambda: pytest.fail("nobody looks"))


# ---- the Grafana page ---------------------------------------------------------------------------------------------


def expressions(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["expr"]] if isinstance(value.get("expr"), str) else []
        return own + [found for inner in value.values() for found in expressions(inner)]
    return [found for inner in value for found in expressions(inner)] if isinstance(value, list) else []


def test_the_page_shows_every_metric_and_no_other() -> None:
    shown = {name for text in expressions(json.loads(PAGE.read_text())) for name in re.findall(r"ray_atoll_\w+", text)}
    assert shown == prometheus_names()


def test_the_page_is_ready_to_be_imported() -> None:
    page = json.loads(PAGE.read_text())
    assert page["uid"] == "atoll"
    panels = page["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert 0 <= panel["gridPos"]["x"] <= 24 - panel["gridPos"]["w"]
        for target in panel["targets"]:
            text = target["expr"]
            assert text.count("(") == text.count(")")
            assert 'run=~"$run"' in text
            if "_total" in text:
                assert re.search(r"rate\(|increase\(", text), "a counter is shown by what it gains"
    assert {variable["name"] for variable in page["templating"]["list"]} == {"datasource", "run"}
