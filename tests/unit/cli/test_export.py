"""`atoll export`: what it prints, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll import experiment
from atoll.errors import Problem, SpecError
from atoll.experiment import Exported
from terminal_kit import Terminal, last_object


def test_it_says_how_to_load_the_model(atoll: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def export(run: str, out: Path | None, *, arm: str | None) -> Exported:
        asked.append((run, out, arm))
        folder = tmp_path / "runs" / "tiny" / "export"
        return Exported(str(folder), "tiny", "d" * 64, "r1", "m-1", ("age", "year"), ("item",), ("probability",), 3)

    monkeypatch.setattr(experiment, "export", export)
    code, out, _ = atoll("export", "tiny", "--json")
    assert (code, asked) == (0, [("tiny", None, None)])
    assert out.splitlines()[:3] == [
        "tiny, 3 leaf models: 2 numeric columns, 1 of text → probability",
        '  mlflow.pyfunc.load_model("runs/tiny/export")',
        '  mlflow.pyfunc.load_model("models:/m-1")',
    ]
    assert last_object(out)["features"] == ["age", "year"]
    atoll("export", "tiny", "--out", "there", "--arm", "s2")
    assert asked[1] == ("tiny", Path("there"), "s2")


def test_what_is_refused_ends_with_two(atoll: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(run: str, out: Path | None, *, arm: str | None) -> Exported:
        raise SpecError([Problem("out", repr(str(out)), "a new folder, or an earlier export")])

    monkeypatch.setattr(experiment, "export", export)
    code, _, err = atoll("export", "tiny", "--out", "mine")
    assert code == 2
    assert "atoll: out: got 'mine'; need a new folder, or an earlier export" in err
