"""Temporary folders of killed processes are swept, and their Ray's orphans ended; nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from atoll.runtime.orphans import end_orphans
from atoll.runtime.store.scratch import Scratch, abandoned


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def left_behind() -> Path:
    """A scratch folder whose process is gone."""
    made = Scratch("test-")
    made._lock.close()
    return made.path


def test_a_folder_that_is_held_stays_and_closing_removes_it() -> None:
    held = Scratch("test-")
    other = Scratch("test-")
    assert held.path.is_dir()
    assert abandoned("test-") == []
    held.close()
    assert not held.path.exists()
    other.close()


@pytest.mark.parametrize(("age_s", "is_swept"), [(10, False), (1000, True)])
def test_what_a_killed_process_left_is_swept_after_a_while(age_s: float, is_swept: bool) -> None:
    old = left_behind()
    then = time.time_ns() / 1e9 - age_s
    os.utime(old / ".atoll-scratch", (then, then))
    assert abandoned("test-") == [old]
    Scratch("test-").close()
    assert old.exists() is not is_swept
    assert abandoned("other-") == []


@pytest.mark.parametrize(("title", "is_ended"), [("ray::DashboardAgent", True), ("somebody else", False)])
def test_only_processes_of_ray_with_files_there_are_ended(title: str, is_ended: bool) -> None:
    folder = left_behind()
    with (folder / "agent.log").open("w") as log:
        process = subprocess.Popen([title, "-c", "import time; time.sleep(60)"], executable=sys.executable, stdout=log)
    elsewhere = subprocess.Popen(["ray::Worker", "-c", "import time; time.sleep(60)"], executable=sys.executable)
    try:
        until = time.monotonic() + 10
        while (Path("/proc") / str(process.pid) / "cmdline").read_bytes()[:5] != title.encode()[:5]:
            assert time.monotonic() < until
        assert end_orphans([folder]) == ([process.pid] if is_ended else [])
        assert (process.wait(10) == -9) if is_ended else (process.poll() is None)
        assert elsewhere.poll() is None
        assert end_orphans([]) == []
    finally:
        for one in (process, elsewhere):
            one.kill()
            one.wait()
