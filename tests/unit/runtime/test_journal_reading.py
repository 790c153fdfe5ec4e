"""A journal that is only looked at: nothing beside it is made or changed, whoever writes it or died over it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from atoll.errors import InfrastructureError
from atoll.runtime.store import Commit, SqliteJournal, StepRecord

SUM = "0" * 64


def step(number: int) -> Commit:
    return Commit(steps=(StepRecord(number, number, SUM),), rows=(("loss", number, 0.5, 1),), meta={"name": "x"})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def looked(path: Path) -> tuple[int, int, str | None]:
    with SqliteJournal(path, is_readonly=True) as journal:
        return journal.last_step, journal.num_pending, journal.get("name")


def test_a_closed_journal(tmp_path: Path) -> None:
    path = tmp_path / "a journal 100%.db"
    with SqliteJournal(path) as journal:
        journal.claim()
        journal.commit(step(0))
    before = contents(tmp_path)
    assert looked(path) == (0, 1, "x")
    assert contents(tmp_path) == before
    with SqliteJournal(path, is_readonly=True) as journal, pytest.raises(InfrastructureError, match="readonly"):
        journal.claim()


def test_a_journal_that_is_written_at_this_moment(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with SqliteJournal(path) as journal:
        journal.claim()
        assert looked(path)[0] == -1
        for number in range(5):
            journal.commit(step(number))
            names = sorted(contents(tmp_path))
            assert looked(path) == (number, number + 1, "x")
            assert sorted(contents(tmp_path)) == names


def test_looking_does_not_disturb_who_writes(tmp_path: Path) -> None:
    path, seen, done = tmp_path / "journal.db", [], threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.append(looked(path)[0])

    with SqliteJournal(path) as journal:
        journal.claim()
        reader = threading.Thread(target=look)
        reader.start()
        for number in range(100):
            journal.commit(step(number))
        done.set()
        reader.join()
    assert seen == sorted(seen)
    assert seen[-1] > 0


def test_what_a_killed_process_left(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    code = (
        "import os, sys\nfrom atoll.runtime.store import Commit, SqliteJournal, StepRecord\n"
        "journal = SqliteJournal(sys.argv[1])\njournal.claim()\n"
        "for number in range(3):\n"
        "    journal.commit(Commit(steps=(StepRecord(number, 0, '0'),), meta={'name': 'x'}))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], env={**os.environ}, check=False)
    assert killed.returncode == -signal.SIGKILL
    before = contents(tmp_path)
    assert set(before) == {"journal.db", "journal.db-shm", "journal.db-wal"}
    assert looked(path) == (2, 0, "x")
    assert contents(tmp_path) == before
    # A copy of the folder may lack the index of the log.
    (tmp_path / "journal.db-shm").unlink()
    assert looked(path) == (2, 0, "x")
    with SqliteJournal(path) as journal:
        assert (journal.last_step, journal.damage()) == (2, [])


@pytest.mark.parametrize("content", [None, b"", b"no journal at all" * 100])
def test_what_is_no_journal(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "journal.db"
    if content is not None:
        path.write_bytes(content)
    before = contents(tmp_path)
    with pytest.raises(InfrastructureError, match="opening failed"):
        SqliteJournal(path, is_readonly=True)
    assert contents(tmp_path) == before
