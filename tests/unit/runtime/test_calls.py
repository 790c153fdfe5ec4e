"""Answers of processes that are gone."""

from __future__ import annotations

from typing import Any

import pytest

from atoll.runtime import calls as module
from atoll.runtime.calls import Calls


def test_a_late_answer_of_one_that_is_gone_pays_no_debt_of_its_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    ready: list[str] = []
    heard: list[Any] = []

    def wait(pending: list[str], *, num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        return [one for one in pending if one in ready], []

    monkeypatch.setattr(module.ray, "wait", wait)
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    calls = Calls(10.0)
    calls.ask("aggregator", "old", heard.append)
    calls.forget("aggregator")
    calls.ask("aggregator", "new", heard.append)
    ready.append("old")
    calls.take(0.0)
    assert heard == ["old"], "what it means is for the handler to say"
    now = 11.0
    assert calls.overdue().keys() == {"aggregator"}
