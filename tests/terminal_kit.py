"""A terminal to type commands into, for the tests of the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from atoll.cli import main
from tiny_kit import tiny

__all__ = ["Terminal", "last_object"]


class Terminal:
    """Types a command in an empty folder; gives code, output and errors."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._monkeypatch, self._capsys = folder, monkeypatch, capsys
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", "120")

    def write(self, name: str = "tiny.yaml", **sections) -> str:
        (self.folder / name).write_text(yaml.safe_dump(tiny(**sections)))
        return name

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["atoll", *arguments])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        text = self._capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, text.out, text.err


def last_object(out: str) -> dict:
    found = json.loads(out.splitlines()[-1], parse_constant=pytest.fail)
    assert isinstance(found, dict)
    return found
