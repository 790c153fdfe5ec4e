"""`atoll plan --pools` as people see it."""

from __future__ import annotations

import pytest
import yaml

from atoll.cli.show_forecast import duration
from terminal_kit import Terminal, last_object
from tiny_kit import tiny


def test_a_column_per_cluster_and_the_assumptions(atoll: Terminal) -> None:
    (atoll.folder / "tiny.yaml").write_text(yaml.safe_dump(tiny()))
    code, out, err = atoll("plan", "tiny.yaml", "--pools", "1,8", "--json")
    assert code == 0, err
    for text in ("wall time", "core hours", "pools at work", "bytes moved", "NOT MEASURED", "GB/s"):
        assert text in out
    found = last_object(out)
    assert [one["pools"] for one in found["predictions"]] == [1, 8]
    assert found["assumptions"]
    assert found["timeline_digest"]


def test_what_holds_for_every_arm_is_said_once(atoll: Terminal) -> None:
    comparison = {"seeds": [1, 2], "baseline": "a", "arms": {"a": {}, "b": {"client.epochs": 2}}}
    (atoll.folder / "tiny.yaml").write_text(yaml.safe_dump(tiny(comparison=comparison)))
    code, out, err = atoll("plan", "tiny.yaml", "--pools", "2")
    assert code == 0, err
    assert out.count("GB/s") == 1
    assert out.count("│ wall time") == 4
    assert out.count("NOT MEASURED") == 1


@pytest.mark.parametrize("pools", ["", "two", "1,,2", "-1", "0"])
def test_pools_that_are_no_numbers_are_refused(atoll: Terminal, pools: str) -> None:
    (atoll.folder / "tiny.yaml").write_text(yaml.safe_dump(tiny()))
    code, _, err = atoll("plan", "tiny.yaml", f"--pools={pools}")
    assert code == 2
    assert "numbers of client pools" in err


@pytest.mark.parametrize(("seconds", "text"), [(0.0123, "0.0123 s"), (119, "119 s"), (600, "10 min"), (10**6, "278 h")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
