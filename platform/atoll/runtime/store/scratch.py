"""Temporary folders that a killed process cannot leave behind for ever."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
import time
from pathlib import Path
from typing import IO

__all__ = ["Scratch", "abandoned"]

_LOCK_FILE = ".atoll-scratch"
#: a folder that nobody holds is swept when it is this old: whoever made it may be about to lock it, or still ending
_GRACE_S = 120.0


class Scratch:
    """A fresh folder below the machine's temporary folder; making one sweeps those whose process is gone.

    Args:
        prefix: of its name.
    """

    def __init__(self, prefix: str) -> None:
        _sweep(prefix)
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        self._lock: IO[str] = (self.path / _LOCK_FILE).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Removes the folder and all in it."""
        self._lock.close()
        shutil.rmtree(self.path, ignore_errors=True)


def abandoned(prefix: str) -> list[Path]:
    """Scratch folders whose process is gone."""
    found = []
    for lock in Path(tempfile.gettempdir()).glob(f"{prefix}*/{_LOCK_FILE}"):
        # Other people's folders, and those that go while one looks, are none of this one's business.
        with contextlib.suppress(OSError), lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.append(lock.parent)
    return found


def _sweep(prefix: str) -> None:
    for folder in abandoned(prefix):
        with contextlib.suppress(OSError):
            # The wall clock, as files' times are of it.
            if time.time_ns() / 1e9 - (folder / _LOCK_FILE).stat().st_mtime > _GRACE_S:
                shutil.rmtree(folder, ignore_errors=True)
