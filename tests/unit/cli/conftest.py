"""Fixtures of the command line's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from terminal_kit import Terminal


@pytest.fixture
def atoll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(tmp_path, monkeypatch, capsys)
