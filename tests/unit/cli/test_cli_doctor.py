"""`atoll doctor` as people see it: a table, everything that is wrong, exit codes 0 and 2."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.cli import doctor as command
from atoll.experiment import Diagnosis, NodeHealth
from terminal_kit import Terminal, last_object


def test_a_sound_machine_ends_with_0(atoll: Terminal) -> None:
    code, out, err = atoll("doctor", atoll.write(), "--json")
    assert code == 0, err
    assert "client updates/s" in " ".join(out.split())
    assert "Software: atoll " in out
    found = last_object(out)
    assert found["problems"] == []
    assert found["nodes"][0]["checks"] == {"data": "ok", "block": "ok", "mlflow": "ok"}
    assert not (atoll.folder / "runs").exists(), "nothing is left behind"


def test_everything_that_is_wrong_is_told_and_ends_with_2(atoll: Terminal) -> None:
    code, out, err = atoll("doctor", atoll.write(), "tracking.uri=file:///nowhere", "--json")
    assert code == 2
    assert "tracking.uri" in err
    assert "WRONG" in out
    assert last_object(out)["problems"]


def test_a_wrong_file_is_refused_as_ever(atoll: Terminal) -> None:
    code, _, err = atoll("doctor", atoll.write(), "client.lr=-1")
    assert code == 2
    assert err.startswith("atoll: client.lr")


def test_software_is_said_once_where_it_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    one = NodeHealth("a", software={"atoll": "1", "processor": "x y"}, packages={"ray": "2"}, checks={"data": "ok"})
    nodes = (one, replace(one, node="b"), NodeHealth("c", checks={"node": "no answer"}))
    assert command._software(Diagnosis(nodes, ())) == {"atoll 1, ray 2; 2 processor features": ["a", "b"]}
